"""How a command ends: exit codes, and which of them an error stands for."""

from __future__ import annotations

import errno
import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .errors import CodebooksError, GateRefused, Unavailable
from .stopping import STOPPING

EXIT_CODES: dict[int, tuple[str, str]] = {
    0: ("done", "done, or nothing to do"),
    1: ("unexpected error", "unexpected; please report it"),
    2: ("usage or config", "the command line or the config is wrong"),
    3: ("input unreadable", "the catalogue, the store or a release cannot be read"),
    4: ("refused by a gate", "a gate refused the new release; yesterday's stays live"),
    5: ("another run won", "another run has won the channel, or this one was superseded"),
    6: ("temporary, try again", "temporary, or stopped by SIGTERM; try the same command again"),
}
_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, slots=True)
class Failure:
    """What an error means to who called a command. release: of a release that is written and on no channel.

    verdicts: of the gates that refused it. unexpected: a mistake of ours, of which the traceback is worth printing.
    """

    text: str
    exit_code: int
    release: str | None = None
    unexpected: bool = False
    verdicts: Sequence[Mapping[str, Any]] = ()


def failure_of(error: BaseException) -> Failure:
    """Return how a command ends that this error came out of; secrets are not masked here."""
    if isinstance(error, KeyboardInterrupt | SystemExit):  # a library's own handler of SIGTERM may call sys.exit
        return Failure(STOPPING.text, Unavailable.exit_code)
    if isinstance(error, GateRefused):
        return Failure(str(error), error.exit_code, error.release, verdicts=error.verdicts)
    if isinstance(error, CodebooksError):
        return Failure(str(error), error.exit_code)
    if full := full_disk(error):
        return Failure(full, Unavailable.exit_code)
    text = "".join(traceback.format_exception_only(error)).strip()
    return Failure(text, CodebooksError.exit_code, unexpected=True)


def full_disk(error: BaseException) -> str | None:
    """Return the words for an error that a full disk has caused, here or in a worker; None for any other."""
    for cause in _causes(error):
        if isinstance(cause, OSError) and cause.errno in _FULL:
            where = cause.filename or f"the folder for temporary files, {tempfile.gettempdir()}, or the store"
            return f"there is no room left on the disk of {where} ({cause.strerror}); free some and run it again"
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        wrapped = getattr(error, "cause", None)  # Ray's errors carry the worker's
        error = wrapped if isinstance(wrapped, BaseException) else error.__cause__ or error.__context__
