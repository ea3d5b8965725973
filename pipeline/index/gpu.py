"""Moving an index between the CPU and the GPUs that the installed FAISS sees.

A GPU index cannot be written to a file, so what is built on a GPU always comes back to the CPU first.
"""

from __future__ import annotations

from typing import Any

from .faiss_module import load_faiss


def num_gpus() -> int:
    """Return how many GPUs FAISS can use; 0 with a CPU wheel or without a device."""
    faiss = load_faiss()
    return int(faiss.get_num_gpus()) if hasattr(faiss, "StandardGpuResources") else 0


def cloned_to_gpu(index: Any) -> Any:
    """Return the index on the first GPU, or the same index where there is none."""
    if num_gpus() == 0:
        return index
    faiss = load_faiss()
    # The GPU index shares ownership of what these resources manage, so they need not be kept.
    return faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index)


def cloned_to_cpu(index: Any) -> Any:
    """Return a GPU index as a CPU index, ready to be written."""
    return load_faiss().index_gpu_to_cpu(index)
