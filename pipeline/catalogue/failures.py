"""Asking for photos one by one: failures of one photo told from those of its bucket or host, and of who asks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from ..errors import (
    ClientRefused,
    ClientStale,
    CodebooksError,
    ConfigError,
    Forbidden,
    InputError,
    IntegrityError,
    Misconfigured,
    NotAllowed,
    NotFound,
    SignatureRefused,
    TooLarge,
    Unavailable,
)
from ..storage import Files, masked
from ..storage.places import WEB
from ..storage.urls import home_of, scheme_of
from .allowed import NOT_ALLOWED

Answer = TypeVar("Answer")
_OF_THE_SENDER = (ClientRefused, ClientStale, Misconfigured)
_SILENT_STORE = 10  # photos of a bucket or disk without an answer in a row, after which it is asked for a listing


@dataclass(frozen=True, slots=True)
class Failure:
    """Why one photo cannot be had. reason: of refusals.ASKED_REASONS; detail: the last answer, without secrets."""

    reason: str
    detail: str


@dataclass(slots=True)
class _Place:
    """answered: when something last came from it; silent: photos without an answer since; unsigned: photos whose
    signature it refused."""

    answered: float = float("-inf")
    silent: int = 0
    unsigned: set[str] = field(default_factory=set)


class Failures:
    """What went wrong so far at each bucket and host; safe to use from several threads."""

    def __init__(self, files: Files, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._files = files
        self._clock = clock
        self._places: dict[str, _Place] = {}
        self._lock = threading.Lock()

    def ask(self, uri: str, question: Callable[[], Answer]) -> Answer | Failure:
        """Return the answer to a question about one photo, or why there is none.

        A refusal is asked about once more. Raises what stops the run: ClientRefused, ClientStale and Misconfigured,
        which no photo causes, the second photo of a bucket whose signature is refused, and Unavailable when a bucket
        or disk answers nothing at all any more.
        """
        name = home_of(uri)
        with self._lock:
            place = self._places.setdefault(name, _Place())
            begun = self._clock()
        try:
            answer = _twice(question)
        except SignatureRefused as error:
            with self._lock:
                place.unsigned.add(uri)
            if len(place.unsigned) > 1:  # one photo may have a name that something on the way spells otherwise
                raise
            return Failure("forbidden", masked(str(error)))
        except _OF_THE_SENDER:
            raise
        except Unavailable as error:
            self._silent(name, place, begun, error, uri)
            return Failure("unreachable", masked(str(error)))
        except (NotFound, Forbidden, ConfigError, InputError, IntegrityError) as error:
            self._answered(place)
            return Failure(reason_of(error), masked(str(error)))
        self._answered(place)
        return answer

    def _answered(self, place: _Place) -> None:
        with self._lock:
            place.answered = self._clock()
            place.silent = 0

    def _silent(self, name: str, place: _Place, begun: float, error: Unavailable, uri: str) -> None:
        with self._lock:
            if place.answered > begun:
                return  # others were answered meanwhile: it is this photo
            place.silent += 1
            # Web hosts are given up one by one (storage/hosts.py): many may be dead without any fault of ours.
            due = place.silent % _SILENT_STORE == 0 and scheme_of(uri) not in WEB
        if due and not self._lists(uri):
            raise Unavailable(
                f"{name or 'the disk'}: no answer to {place.silent} photos in a row, nor to a listing; last: {error}"
            ) from error

    def _lists(self, uri: str) -> bool:
        """Return whether the photo's folder gives any answer to a listing, a refusal too."""
        try:
            next(self._files.list(uri.rpartition("/")[0] + "/"), None)
        except Unavailable:
            return False
        except CodebooksError:
            return True
        return True


def reason_of(error: CodebooksError) -> str:
    """Return the reason word for what is wrong with one photo."""
    if isinstance(error, NotAllowed):
        return NOT_ALLOWED
    if isinstance(error, TooLarge):
        return "too_many_bytes"
    if isinstance(error, NotFound):
        return "missing"
    if isinstance(error, Forbidden):
        return "forbidden"
    if isinstance(error, ConfigError):
        return "bad_uri"
    if isinstance(error, Unavailable):
        return "unreachable"
    return "changed" if isinstance(error, IntegrityError) else "unreadable"


def _twice(question: Callable[[], Answer]) -> Answer:
    try:
        return question()
    except _OF_THE_SENDER:
        raise
    except Forbidden:
        return question()  # a server's slip must not cost a photo its night
