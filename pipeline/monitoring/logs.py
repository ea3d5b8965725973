"""`--log json`: standard error as one JSON object a line, whoever writes to it."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import logging
import platform
import re
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, TextIO

from ..events import Event, ShardEnded, StageBegan, StageEnded, listening
from ..storage.secrets import masked_for_people

_OURS = ("pipeline", "jobs", "cluster")
# How the command line's own text begins where it is bad news; every other line of it is information.
_LEVELS = (("error", re.compile(r"codebooks: |Traceback ")), ("warning", re.compile(r"(?i)warning\b")))
# What another process of ours has logged, a job that this one follows: passed on as it is.
_LINE = re.compile(r'\{"time": "[^\n]*"node": [^\n]*\}')
_MOST_HELD = 65_536  # characters of a line that nobody ends


@contextmanager
def json_lines(words: Sequence[str], run: Callable[[], str | None]) -> Iterator[None]:
    """Turn this process's standard error into JSON lines where a command line says `--log json`, until the end.

    words: of the command line, before anything is parsed: what is wrong with them has to be logged too. run: the name
    that the run has by now. Bars become lines: what is not a terminal gets none.
    """
    if "--log=json" not in words and ("--log", "json") not in itertools.pairwise(words):
        yield
        return
    lines = JsonLines(sys.stderr, run)
    handler = _Records(lines)
    levels = {name: logging.getLogger(name).level for name in _OURS}
    for name in _OURS:
        logging.getLogger(name).setLevel(logging.INFO)
    logging.getLogger().addHandler(handler)
    try:
        with contextlib.redirect_stderr(lines), listening(lines.note), _shown_warnings(lines):
            yield
    finally:
        lines.finish()
        logging.getLogger().removeHandler(handler)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


class JsonLines(io.TextIOBase):
    """A stream of text that writes objects with time, level, message, run, stage, shard and node.

    stage: the innermost one at work; shard: of a message about one, else null; node: this machine's name. What one
    `write` ends with a line break is one message, of several lines or not, so a traceback is one object.
    """

    logs_events = True  # `Progress` need not show them as lines too

    def __init__(
        self, stream: TextIO, run: Callable[[], str | None], clock: Callable[[], datetime] | None = None
    ) -> None:
        self._stream, self._run, self._clock = stream, run, clock or (lambda: datetime.now(UTC))
        self._node = platform.node()
        self._stages: list[str] = []
        self._held = ""
        self._lock = threading.RLock()

    @property
    def lost(self) -> str | None:
        """Why nothing can be written any more, as `process.Steady`."""
        return getattr(self._stream, "lost", None)

    def writable(self) -> bool:
        """Return True."""
        return True

    def fileno(self) -> int:
        """Return the file below, for libraries that ask; what they write to it stays text."""
        return self._stream.fileno()

    def write(self, text: str, /) -> int:
        """Hold a text until it ends a line."""
        with self._lock:
            self._held += text
            if self._held.endswith(("\n", "\r")) or len(self._held) > _MOST_HELD:
                self.finish()
        return len(text)

    def finish(self) -> None:
        """Write what is held."""
        with self._lock:
            held, self._held = self._held, ""
            message = held.strip("\r\n")
            if _LINE.fullmatch(message):
                self._stream.write(message + "\n")
                self._stream.flush()
            elif message:
                self.say(next((level for level, start in _LEVELS if start.match(message)), "info"), message)

    def flush(self) -> None:
        """Flush the stream below; half a line stays held."""
        self._stream.flush()

    def say(self, level: str, message: str, **more: Any) -> None:
        """Write one object. more: fields of its own, `shard` among them."""
        with self._lock:
            said: dict[str, Any] = {
                "time": self._clock().isoformat(timespec="milliseconds").replace("+00:00", "Z"),
                "level": level,
                "message": masked_for_people(message),
                "run": self._run(),
                "stage": self._stages[-1] if self._stages else None,
                "shard": None,
                "node": self._node,
                **more,
            }
            # ASCII, whatever the terminal's encoding; one write, so that no other process's line comes between.
            self._stream.write(json.dumps(said, default=str) + "\n")
            self._stream.flush()

    def note(self, event: Event) -> None:
        """Keep the stage, and log what text alone does not tell: how stages and shards ended."""
        if isinstance(event, StageBegan):
            self._stages.append(event.name)
        elif isinstance(event, ShardEnded):
            text = f"shard {event.number}: {event.photos:,} photos, {event.refused:,} refused"
            place = {"shard": event.number, "node": event.node or self._node}
            told = {"photos": event.photos, "refused": event.refused, "reused": event.reused}
            self.say("info", text, **{**place, **told, "seconds": event.seconds})
            for line in event.said:
                level = line.partition(" ")[0].lower()
                self.say(level, line, **place)
        elif isinstance(event, StageEnded):
            said = {"seconds": round(event.seconds, 3), **({"photos": event.photos} if event.photos else {})}
            self.say("info", f"{event.name}: ended after {event.seconds:.1f} s", **said)
            if event.name in self._stages:
                self._stages.remove(event.name)


class _Records(logging.Handler):
    """Gives log records to the lines, instead of Python's own last resort."""

    def __init__(self, lines: JsonLines) -> None:
        super().__init__(logging.INFO)
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        ours = record.name.partition(".")[0] in _OURS
        if not ours and record.levelno < logging.WARNING:
            return
        try:
            self._lines.say(record.levelname.lower(), self.format(record), logger=record.name)
        except Exception:  # noqa: BLE001  as logging itself does: what cannot be logged stops nothing
            self.handleError(record)


@contextmanager
def _shown_warnings(lines: JsonLines) -> Iterator[None]:
    """Give Python's warnings to the lines as one object each; filters that make them errors stay."""
    shown = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *_where: Any, **_more: Any) -> None:
        lines.say("warning", f"{category.__name__}: {message}")

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = shown
