"""What our own process needs before anything is imported: streams that cannot end a run, and a home."""

from __future__ import annotations

import io
import os
import pwd
import sys
import tempfile
from pathlib import Path
from typing import TextIO

from .storage.local import HOMELESS

_NAMES = ("LOGNAME", "USER", "LNAME", "USERNAME")  # where `getpass.getuser` looks


def settle() -> None:
    """Make standard output and error safe to write to, and give a process without a home or a name both."""
    sys.stdout = _steady(sys.stdout, 1)
    sys.stderr = _steady(sys.stderr, 2)
    _settle_home()


class Steady(io.TextIOWrapper):
    """A standard stream that outlives whoever reads it: what cannot be written is lost, not the run that says it.

    Characters that the terminal's encoding lacks are written as escapes. lost: why nothing can be written any more.
    """

    lost: str | None = None

    def write(self, text: str, /) -> int:
        if self.lost is None:
            try:
                return super().write(text)
            except (OSError, ValueError) as error:  # its reader has gone, its disk is full, it was closed
                self._give_up(error)
        return len(text)

    def flush(self) -> None:
        if self.lost is None:
            try:
                super().flush()
            except (OSError, ValueError) as error:
                self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self.lost = getattr(error, "strerror", None) or str(error)
        try:
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, self.fileno())  # what is buffered must go somewhere when the interpreter ends
            os.close(nothing)
        except (OSError, ValueError):
            return


def _steady(stream: TextIO | None, number: int) -> Steady:
    if stream is None:  # closed by whoever started us: any file opened next would get its number
        if number == 1:
            _fill_up(0)
        _fill_up(number)
        return Steady(io.FileIO(number, "w", closefd=False), encoding="utf-8", errors="backslashreplace")
    return Steady(stream.buffer, encoding=stream.encoding, errors="backslashreplace", line_buffering=True)


def _fill_up(number: int) -> None:
    try:
        os.fstat(number)
    except OSError:
        nothing = os.open(os.devnull, os.O_RDWR)
        if nothing != number:
            os.dup2(nothing, number)
            os.close(nothing)


def _settle_home() -> None:
    """Libraries expand `~` and ask for the user's name while they are imported, and fail where there is neither.

    A container that runs under any uid has no entry in its passwd. Paths of the user's own still refuse `~` there.
    """
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = tempfile.gettempdir()
        os.environ[HOMELESS] = "1"
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        if not any(os.environ.get(name) for name in _NAMES):
            os.environ["USER"] = os.environ["LOGNAME"] = f"uid-{os.getuid()}"
