"""One HTTP request to who is told of a run: no redirects, a time-out, the machine's certificates and proxies."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from ..errors import CodebooksError, ConfigError, Unavailable

_ANSWER_BYTES = 300  # of an answer that refuses, for the message


@dataclass(frozen=True, slots=True)
class Request:
    """What is sent. headers hold secrets, and so may url: only `host` of it is ever shown."""

    method: str
    url: str
    body: bytes
    headers: Mapping[str, str]

    @property
    def host(self) -> str:
        """The address without what may be a secret."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}"


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the secret of the address or the header to another host."""

    def redirect_request(self, *_: Any) -> None:
        return None


def send(request: Request, *, timeout_s: float) -> None:
    """Send a request and read nothing of a good answer.

    timeout_s: of each wait for the network. Raises Unavailable where another try may help (no answer, 408, 429, 5xx),
    ConfigError where the answer refuses (any other status but 2xx).
    """
    asked = urllib.request.Request(  # noqa: S310  the config takes http and https only
        request.url, data=request.body, headers=dict(request.headers), method=request.method
    )
    try:
        with urllib.request.build_opener(_NoRedirects).open(asked, timeout=timeout_s):
            return
    except urllib.error.HTTPError as error:
        with error:
            raise _refusal(request, error) from error
    except (OSError, http.client.HTTPException) as error:  # URLError, time-outs, certificates, broken connections
        reason = getattr(error, "reason", None) or error
        raise Unavailable(f"{request.method} {request.host}: {type(reason).__name__}: {reason}") from error


def _refusal(request: Request, error: urllib.error.HTTPError) -> CodebooksError:
    try:
        said = error.read(_ANSWER_BYTES).decode(errors="replace").strip()
    except (OSError, http.client.HTTPException):
        said = ""
    text = f"{request.method} {request.host}: HTTP {error.code}{f': {said}' if said else ''}"
    return Unavailable(text) if error.code in (408, 425, 429) or error.code >= 500 else ConfigError(text)
