"""How a command ends: what it answers, as text and as JSON, exit codes, and which of them an error stands for."""

from __future__ import annotations

import errno
import json
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TextIO

from .errors import CodebooksError, GateRefused, Unavailable
from .keys import plain_json
from .stopping import STOPPING
from .storage.secrets import masked_for_people

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


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a command that did not fail answers.

    run, release: their names where there are any. published: did this run move a channel. reason: a few words for a
    scheduler's log. details: more fields of the JSON object. text: for people. exit_code: other than 0 only where the
    answer itself is bad news, as with `doctor`.
    """

    run: str | None = None
    release: str | None = None
    published: bool = False
    reason: str = "done"
    details: Mapping[str, Any] = field(default_factory=dict)
    text: str = ""
    exit_code: int = 0


class Answer:
    """Says how a command ended: text on standard error, with --json one object on standard output."""

    def __init__(self, stdout: TextIO, *, as_json: bool, run: str | None) -> None:
        self.run = run
        self._stdout = stdout
        self._as_json = as_json

    def done(self, outcome: Outcome) -> int:
        """Say what a command answers, and return its exit code."""
        if outcome.text:
            sys.stderr.write(outcome.text + "\n")
        self._object(
            {
                **outcome.details,
                "run": outcome.run,
                "release": outcome.release,
                "published": outcome.published,
                "reason": outcome.reason,
            }
        )
        return outcome.exit_code

    def failed(
        self, text: str, code: int, *, release: str | None = None, verdicts: Sequence[Mapping[str, Any]] = ()
    ) -> int:
        """Say why a command failed, and return its exit code."""
        text = masked_for_people(text)
        sys.stderr.write(f"codebooks: {text}\n")
        reason = EXIT_CODES[code][0]
        self._object(
            {
                "run": self.run,
                "release": release,
                "published": False,
                "reason": reason,
                "error": text,
                "exit_code": code,
                **({"verdicts": list(verdicts)} if verdicts else {}),
            }
        )
        return code

    def stopped(self) -> None:
        """Say that the process ends on the spot; nothing is left to say it later."""
        self.failed(STOPPING.text, Unavailable.exit_code)

    def _object(self, values: Mapping[str, Any]) -> None:
        if self._as_json:
            # ASCII, whatever the terminal's encoding and the names in it: the object must come, also after a publish.
            self._stdout.write(json.dumps(plain_json(values), default=str, ensure_ascii=True, allow_nan=False) + "\n")
            self._stdout.flush()
            if lost := getattr(self._stdout, "lost", None):
                sys.stderr.write(f"codebooks: the JSON object could not be written to standard output ({lost})\n")
        self._as_json = False  # exactly one object, whatever happens after it
