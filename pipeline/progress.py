"""Progress on standard error: bars on a terminal, elsewhere plain lines that a log can hold."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from .events import ShardEnded, Trained, tell

if TYPE_CHECKING:  # importing it loads torch and ray
    from .training import TrainProgress

LINE_EVERY_S = 5.0
Advance = Callable[[int], None]


class Progress:
    """Shows notes, counted stages and training; `bars` None: a terminal gets bars, anything else gets lines."""

    def __init__(
        self, stream: TextIO | None = None, *, bars: bool | None = None, every_s: float = LINE_EVERY_S
    ) -> None:
        self._stream = stream or sys.stderr
        self._bars = _takes_bars(self._stream) if bars is None else bars
        self._every_s = every_s
        self._training_bar: Any = None
        self._training_shown = 0.0

    def note(self, text: str) -> None:
        """Show one line."""
        if self._bars:
            _tqdm().write(text, file=self._stream)
        else:
            self._stream.write(text + "\n")
            self._stream.flush()

    @contextmanager
    def stage(self, name: str, *, total: int) -> Iterator[Advance]:
        """Show a stage that works on `total` photos; call what is yielded with the number of photos just done."""
        if self._bars:
            with _tqdm()(total=total, desc=name, unit=" photos", file=self._stream, smoothing=0.05) as bar:
                yield lambda photos: bar.update(photos) and None
            return
        lines = _Lines(name, total, self._every_s, self.note)
        yield lines.advance
        lines.end()

    def shard(self, ended: ShardEnded) -> None:
        """Show, in a log, where a shard was done and what its process said; a bar has no room for it."""
        if self._bars or not ended.node or getattr(self._stream, "logs_events", False):  # it says so itself
            return
        refused = f", {ended.refused:,} refused" if ended.refused else ""
        place = f"{ended.stage}: shard {ended.number} on {ended.node}"
        self.note(f"{place}: {ended.photos:,} photos{refused}, {ended.seconds:.1f} s")
        for line in ended.said:
            self.note(f"{place} said: {line}")

    def training(self, progress: TrainProgress) -> None:
        """Show how far a training is; called after every few steps."""
        tell(Trained(progress.step, progress.total_steps, progress.loss, progress.images_per_s))
        if self._bars:
            self._training_on_bar(progress)
            return
        now, last = time.monotonic(), progress.step >= progress.total_steps
        if last or now - self._training_shown >= self._every_s:
            self._training_shown = now
            self.note(
                f"train: epoch {progress.epoch}/{progress.epochs}, step {progress.step:,}/{progress.total_steps:,}, "
                f"{_losses(progress)}, {progress.images_per_s:,.0f} photos/s, {_time(progress.seconds_left)} left"
            )

    def _training_on_bar(self, progress: TrainProgress) -> None:
        if self._training_bar is None:
            self._training_bar = _tqdm()(
                total=progress.total_steps,
                initial=progress.resumed_from or 0,
                desc="train",
                unit=" steps",
                file=self._stream,
            )
        bar = self._training_bar
        bar.set_postfix_str(f"epoch {progress.epoch}/{progress.epochs}, {_losses(progress)}", refresh=False)
        bar.update(progress.step - bar.n)
        if progress.step >= progress.total_steps:
            bar.close()
            self._training_bar = None


class _Lines:
    """Writes a stage's progress as lines, at most one every few seconds and one at its end."""

    def __init__(self, name: str, total: int, every_s: float, note: Callable[[str], None]) -> None:
        self._name, self._total, self._every_s, self._note = name, total, every_s, note
        self._done = 0
        self._began = self._shown = time.monotonic()

    def advance(self, photos: int) -> None:
        self._done += photos
        now = time.monotonic()
        if now - self._shown >= self._every_s:
            self._shown = now
            rate = self._done / (now - self._began)
            left = (self._total - self._done) / rate if rate else 0.0
            self._note(
                f"{self._name}: {self._done:,} of {self._total:,} photos, {rate:,.0f} photos/s, {_time(left)} left"
            )

    def end(self) -> None:
        seconds = max(time.monotonic() - self._began, 1e-9)
        self._note(f"{self._name}: {self._done:,} photos in {_time(seconds)}, {self._done / seconds:,.0f} photos/s")


def _losses(progress: TrainProgress) -> str:
    parts = " ".join(f"{name} {value:.4g}" for name, value in progress.parts.items())
    held_out = progress.validation.get("validation/total")
    return (
        f"loss {progress.loss:.4g}"
        + (f" ({parts})" if parts else "")
        + (f", held out {held_out:.4g}" if held_out is not None else "")
    )


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return (
        f"{minutes} min {rest:02d} s"
        if minutes
        else f"{max(seconds, 0.0):.0f} s"
        if seconds >= 1
        else f"{seconds:.1f} s"
    )


def _takes_bars(stream: TextIO) -> bool:
    """Return whether a stream is a terminal of some width; on one of width 0 (a container's) bars show nothing."""
    return stream.isatty() and os.get_terminal_size(stream.fileno()).columns > 0


def _tqdm() -> Any:
    from tqdm import tqdm

    return tqdm
