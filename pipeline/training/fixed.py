"""A process whose training repeats bit for bit, and that keeps the memory it works in."""

from __future__ import annotations

import ctypes
import warnings

import torch

from .config import TrainConfig

_KEPT_BLOCK = 256 * 2**20


def fix_process(config: TrainConfig, device: torch.device) -> None:
    """Set this process so that a training repeats bit for bit on one kind of CPU: fixed threads, fixed kernels.

    Another kind of processor (AVX2, AVX-512) has other kernels, which round sums in another way. On a GPU, where that
    is not promised, products are computed in TF32 and the fastest kernels are looked for.
    """
    torch.set_num_threads(config.threads)
    keep_memory()
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    if device.type == "cpu":
        torch.use_deterministic_algorithms(True, warn_only=True)
        # Filling fresh memory would find bugs, not repeat results, and costs time.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        warnings.filterwarnings("ignore", ".*does not have a deterministic implementation", UserWarning)


def keep_memory() -> None:
    """Have glibc keep freed blocks of up to 256 MiB for this process; does nothing with another C library.

    A step frees and asks for the same large blocks again and again. Handed back to the kernel in between, they return
    page by page: 8 of 115 ms a step of the VAE at 64 pixels (128 photos, one CPU thread).
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(-3, _KEPT_BLOCK)  # M_MMAP_THRESHOLD: smaller blocks come from the heap
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: the heap does not shrink
