"""Pixels to latents in batches: on CPUs to the same bits whatever is beside a photo, on a GPU that never waits."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..index import LatentArrays
from ..models.base import Batch, Latents, Model
from .config import USUAL_BATCH, Precision
from .decoding import Pixels

_log = logging.getLogger(__name__)

Rows = npt.NDArray[np.int64]

# The probe doubles a GPU's batches as long as that makes them so much faster.
_PROBED = tuple(USUAL_BATCH * 2**step for step in range(6))
_WORTH_IT = 1.05
_PASSES = 4


class Encoder:
    """Runs a model over pixels in batches of exactly `batch_size`, so that a photo's bits depend on nothing else.

    On CPUs the last batch is padded, the memory format is contiguous NCHW and the number of torch threads is fixed:
    each of these changes the last bits of a convolution. On a GPU, where equal bits are not promised, batches lie with
    the channels last, are copied from pinned memory while the one before is computed, and what they give stays on the
    GPU until the whole shard is done. batch_size: `auto` is 256 on CPUs, and on a GPU what a probe finds the fastest.
    """

    def __init__(
        self,
        model: Model,
        *,
        batch_size: int | Literal["auto"] = "auto",
        precision: Precision = "fp32",
        threads: int = 1,
        device: str = "cpu",
        compiles: bool = False,
    ) -> None:
        self.device = torch.device(device)
        self.streams = self.device.type == "cuda"
        self.model = model.to(self.device).eval()
        if self.streams:
            self.model = self.model.to(memory_format=torch.channels_last)
        self.precision = precision
        self.threads = threads
        self.batch_size = batch_size if batch_size != "auto" else USUAL_BATCH
        self._probes = batch_size == "auto" and self.streams
        self._compiled: Callable[..., Latents] | None = torch.compile(self.model.encode) if compiles else None
        self._lock = threading.Lock()  # the number of torch's threads is the process's, and so is a GPU's memory

    def __call__(
        self, pixels: Pixels | Sequence[Pixels], rows: Rows, condition: npt.NDArray[np.int64] | None = None
    ) -> LatentArrays:
        """Return the latents of `pixels[rows]`, pixels uint8 RGB [n, size, size, 3], one of each size the model takes.

        condition: of each of `rows`, for a conditional model (see `models.conditions.condition_of`).
        """
        seen = [pixels] if isinstance(pixels, np.ndarray) else list(pixels)
        autocast = torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16")
        with self._lock, _torch_threads(self.threads), torch.inference_mode(), autocast:
            if not self.streams:
                return self._in_turn(seen, rows, condition)
            if self._probes and len(rows):
                self.batch_size = self._fastest_batch(seen, len(rows), conditional=condition is not None)
                self._probes = False
            return self._in_stream(seen, rows, condition)

    def of_features(
        self, features: npt.NDArray[np.float32], rows: Rows, condition: npt.NDArray[np.int64] | None = None
    ) -> LatentArrays:
        """Return the latents of photos by `features[rows]`, float32 [n, D], what the teacher said that a model reads.

        As of their pixels, whose teacher was asked in batches of the same size; only the rest of the model is run.
        """

        def encoded(took: Rows, told: Tensor | None) -> Latents:
            batch = np.zeros((self.batch_size, features.shape[1]), np.float32)
            batch[: len(took)] = features[took]
            unseen = torch.zeros((self.batch_size, 3, 0, 0), dtype=torch.uint8, device=self.device)
            return self.model.encode_batch(Batch(unseen, told, features=torch.from_numpy(batch).to(self.device)))

        autocast = torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16")
        with self._lock, _torch_threads(self.threads), torch.inference_mode(), autocast:
            return self._one_by_one(encoded, rows, condition)

    # --- on CPUs: one batch after the other

    def _in_turn(self, seen: list[Pixels], rows: Rows, condition: npt.NDArray[np.int64] | None) -> LatentArrays:
        def encoded(took: Rows, told: Tensor | None) -> Latents:
            return self._encoded([self._batch(each, took) for each in seen], told)

        return self._one_by_one(encoded, rows, condition)

    def _one_by_one(
        self,
        encoded: Callable[[Rows, Tensor | None], Latents],
        rows: Rows,
        condition: npt.NDArray[np.int64] | None,
    ) -> LatentArrays:
        """Return the latents of rows, `encoded` batch by batch: those of some rows, filled up to a whole batch."""
        model = self.model
        mean = np.empty((len(rows), model.latent_dim), np.float32)
        log_var = np.empty_like(mean) if model.has_log_var else None
        codes = np.empty((len(rows), model.num_latent_codes), np.int32) if model.num_latent_codes else None
        for start in range(0, len(rows), self.batch_size):
            took = rows[start : start + self.batch_size]
            latents = encoded(took, self._padded(condition, start))
            end = start + len(took)
            mean[start:end] = latents.mean[: len(took)].float().cpu().numpy()
            if log_var is not None and latents.log_var is not None:
                log_var[start:end] = latents.log_var[: len(took)].float().cpu().numpy()
            if codes is not None and latents.codes is not None:
                codes[start:end] = latents.codes[: len(took)].cpu().numpy()
        return LatentArrays(mean, log_var, codes)

    def _encoded(self, batches: list[Tensor], condition: Tensor | None) -> Latents:
        images: Any = batches[0] if len(batches) == 1 else tuple(batches)
        return (self._compiled or self.model.encode)(images, condition)

    def _batch(self, pixels: Pixels, rows: Rows) -> Tensor:
        batch = np.zeros((self.batch_size, *pixels.shape[1:]), np.uint8)
        batch[: len(rows)] = pixels[rows]
        return torch.from_numpy(batch).to(self.device).permute(0, 3, 1, 2).contiguous()

    def _padded(self, condition: npt.NDArray[np.int64] | None, start: int) -> Tensor | None:
        if condition is None:
            return None
        took = condition[start : start + self.batch_size]
        batch = np.zeros(self.batch_size, np.int64)
        batch[: len(took)] = took
        return torch.from_numpy(batch).to(self.device)

    # --- on a GPU: the next batch is on its way while one is computed

    def _in_stream(self, seen: list[Pixels], rows: Rows, condition: npt.NDArray[np.int64] | None) -> LatentArrays:
        model, count = self.model, len(rows)
        mean = torch.empty((count, model.latent_dim), device=self.device)
        log_var = torch.empty_like(mean) if model.has_log_var else None
        codes = None
        if model.num_latent_codes:
            codes = torch.empty((count, model.num_latent_codes), dtype=torch.int32, device=self.device)
        told = None if condition is None else torch.from_numpy(condition).to(self.device)
        start = 0
        for batches in _Ahead(seen, rows, self.batch_size, self.device):
            end = min(start + self.batch_size, count)
            latents = self._encoded(batches, None if told is None else _filled(told[start:end], self.batch_size))
            mean[start:end] = latents.mean[: end - start]
            if log_var is not None and latents.log_var is not None:
                log_var[start:end] = latents.log_var[: end - start]
            if codes is not None and latents.codes is not None:
                codes[start:end] = latents.codes[: end - start]
            start = end
        kept = [_to_host(made) for made in (mean, log_var, codes) if made is not None]
        self._wait()  # the one of a shard
        arrays = iter([made.numpy() for made in kept])
        return LatentArrays(
            next(arrays),
            None if log_var is None else next(arrays),
            None if codes is None else next(arrays),
        )

    def _fastest_batch(self, seen: list[Pixels], most: int, *, conditional: bool) -> int:
        """Return how many photos a batch this GPU encodes the fastest, by black ones; not more than a shard has."""
        best, rate = USUAL_BATCH, 0.0
        for size in _PROBED:
            if size > max(USUAL_BATCH, most):
                break
            try:
                found = size / self._seconds_of(seen, size, conditional=conditional)
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()
                break
            if found < _WORTH_IT * rate:
                break
            best, rate = size, found
        _log.info("encode.batch_size is auto: %d, %.0f photos/s by the network alone", best, rate)
        return best

    def _seconds_of(self, seen: list[Pixels], size: int, *, conditional: bool) -> float:
        black = [
            torch.zeros((size, *each.shape[1:]), dtype=torch.uint8, device=self.device).permute(0, 3, 1, 2)
            for each in seen
        ]
        condition = torch.zeros(size, dtype=torch.int64, device=self.device) if conditional else None
        self._encoded(black, condition)  # picks its kernels
        self._wait()
        began = time.perf_counter()
        for _ in range(_PASSES):
            self._encoded(black, condition)
        self._wait()
        return (time.perf_counter() - began) / _PASSES

    def _wait(self) -> None:
        if self.streams:
            torch.cuda.synchronize(self.device)


class _Ahead:
    """The batches of a shard on the device, uint8 [batch_size, 3, H, W] with the channels last, one copied ahead.

    Two pinned buffers of each size take turns; one is filled again only when its copy is done. The last batch is filled
    up with what was there before, of which nothing is kept.
    """

    def __init__(self, seen: Sequence[Pixels], rows: Rows, batch_size: int, device: torch.device) -> None:
        self._seen = [torch.from_numpy(each) for each in seen]
        self._rows = torch.from_numpy(rows)
        self._batch_size = batch_size
        self._device = device
        self._cuda = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if self._cuda else None  # type: ignore[no-untyped-call]
        self._buffers = [
            [torch.zeros((batch_size, *each.shape[1:]), dtype=torch.uint8, pin_memory=self._cuda) for each in seen]
            for _ in range(2)
        ]
        self._copied: list[Any] = [torch.cuda.Event() if self._cuda else None for _ in range(2)]  # type: ignore[no-untyped-call]

    def __iter__(self) -> Iterator[list[Tensor]]:
        starts = range(0, len(self._rows), self._batch_size)
        coming = [self._send(0, 0)] if starts else []
        for number, start in enumerate(starts):
            (batches,) = coming
            if self._stream is not None:
                computing = torch.cuda.current_stream(self._device)
                computing.wait_event(self._copied[number % 2])
                for batch in batches:
                    batch.record_stream(computing)
            following = start + self._batch_size
            # Sent before this one is computed, so that filling and copying go on beside it.
            coming = [self._send(number + 1, following)] if following < len(self._rows) else []
            yield batches

    def _send(self, number: int, start: int) -> list[Tensor]:
        """Fill a buffer with a batch's photos and begin to copy it; views of it have the channels last."""
        rows, turn = self._rows[start : start + self._batch_size], number % 2
        if self._cuda and number >= 2:
            self._copied[turn].synchronize()
        for pixels, buffer in zip(self._seen, self._buffers[turn], strict=True):
            torch.index_select(pixels, 0, rows, out=buffer[: len(rows)])
        if self._stream is None:
            return [buffer.to(self._device, copy=True).permute(0, 3, 1, 2) for buffer in self._buffers[turn]]
        with torch.cuda.stream(self._stream):
            sent = [buffer.to(self._device, non_blocking=True) for buffer in self._buffers[turn]]
            self._copied[turn].record(self._stream)
        return [batch.permute(0, 3, 1, 2) for batch in sent]


def _filled(told: Tensor, batch_size: int) -> Tensor:
    return torch.nn.functional.pad(told, (0, batch_size - len(told)))


def _to_host(made: Tensor) -> Tensor:
    """Return a tensor on its way to the CPU; it is there when the device has done what it was told."""
    if made.device.type != "cuda":
        return made
    return torch.empty(made.shape, dtype=made.dtype, pin_memory=True).copy_(made, non_blocking=True)


@contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
