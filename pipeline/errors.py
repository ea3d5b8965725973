"""Every exception of the project, each with the exit code a scheduler sees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class CodebooksError(Exception):
    """Base of all errors raised on purpose; the text says what, the value, and what to do."""

    exit_code = 1


class ConfigError(CodebooksError, ValueError):
    """A command line or configuration value that cannot be used."""

    exit_code = 2


class InputError(CodebooksError, ValueError):
    """A catalogue, table or bundle that cannot be read as asked."""

    exit_code = 3


class GateRefused(CodebooksError):
    """A release was built and a gate refused to publish it; the channel stays where it was.

    release: the id of the release that is written and on no channel. verdicts: of its gates, as plain values.
    """

    exit_code = 4

    def __init__(self, text: str, *, release: str | None = None, verdicts: Sequence[Mapping[str, Any]] = ()) -> None:
        super().__init__(text)
        self.release = release
        self.verdicts = verdicts


class Conflict(CodebooksError):
    """Another run has won the channel, or this attempt of a run is no longer the live one."""

    exit_code = 5


class Unavailable(CodebooksError):
    """A temporary failure (time-out, 5xx, a live other attempt): the same command may be tried again."""

    exit_code = 6


class NotAllowed(ConfigError):
    """An address or a file that a catalogue may not name, by `catalogue.allowed_prefixes` or by what it is."""


class TooLarge(InputError):
    """A photo of more bytes than a reader holds; it is found out before they are read."""


class Throttled(Unavailable):
    """A host that asks for fewer requests (HTTP 429, 503). after_s: seconds that it asks to wait; 0: it did not say."""

    def __init__(self, text: str, after_s: float = 0.0) -> None:
        super().__init__(text)
        self.after_s = after_s

    def __reduce__(self) -> tuple[type[Throttled], tuple[str, float]]:
        return (type(self), (str(self), self.after_s))


class NoAnswer(Unavailable):
    """A host to which no connection came about, or that closed it or fell silent before it had answered."""


class HostSilent(Unavailable):
    """A host that has not answered for a while, or asked to be left alone for long: not worth another try now."""


class NotFound(CodebooksError, FileNotFoundError):
    """A name that the store does not hold."""

    exit_code = 3


class Forbidden(CodebooksError, PermissionError):
    """The store refused access to a name (HTTP 401 or 403, or file permissions)."""

    exit_code = 3


class Misconfigured(ConfigError):
    """How storage is reached is wrong (profile, endpoint, certificate). No photo is to be judged by it."""


class ClientRefused(Forbidden):
    """The server refused who asks: credentials that are unknown, wrong or absent. No photo is to be judged by it."""


class SignatureRefused(ClientRefused):
    """The server computes another signature: a wrong secret, or a name that something on the way spells otherwise."""


class ClientStale(Unavailable):
    """The server refused this machine's clock or credentials that have run out; right again once they are renewed."""


class IntegrityError(CodebooksError):
    """Bytes on the store are not what a manifest, key or footer says they are."""

    exit_code = 3


class Untrusted(IntegrityError):
    """A release that no trusted key has signed, or that is not what was signed."""


class UnknownItem(CodebooksError, KeyError):
    """An item_id that the release does not hold; the text says if it is quarantined, delisted or unseen."""

    exit_code = 3

    def __str__(self) -> str:  # KeyError would print the repr of the message
        return str(self.args[0]) if self.args else ""


class NotReconstructing(CodebooksError):
    """`decode` was called on a model that has no decoder to pixels."""


class RequestRefused(CodebooksError):
    """A request over HTTP that is not answered as asked. status: the HTTP status that says why."""

    exit_code = 2

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status

    def __reduce__(self) -> tuple[type[RequestRefused], tuple[int, str]]:
        return (type(self), (self.status, str(self)))


class PhotoRefused(CodebooksError):
    """One photo cannot be used; it becomes a row of the quarantine table, never a crash.

    stage: fetch | decode | encode. reason: a short fixed word, for example `missing`, `truncated`.
    """

    exit_code = 3

    def __init__(self, stage: str, reason: str, detail: str) -> None:
        super().__init__(f"{stage}: {reason}: {detail}")
        self.stage = stage
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type[PhotoRefused], tuple[str, str, str]]:
        return (type(self), (self.stage, self.reason, self.detail))


class TooSlow(CodebooksError):
    """A kind of index is far slower than another one, at an effort that is not even enough."""
