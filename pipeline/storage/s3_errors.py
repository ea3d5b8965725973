"""What s3fs, botocore and aiohttp raise, told as the project's errors."""

from __future__ import annotations

import asyncio
import errno
import ssl
from email.utils import formatdate
from typing import Any

import botocore.exceptions as boto

from ..errors import (
    ClientRefused,
    ClientStale,
    CodebooksError,
    ConfigError,
    Forbidden,
    InputError,
    Misconfigured,
    NotFound,
    SignatureRefused,
    Unavailable,
)
from .retry import temporary_status
from .secrets import masked

# 409 ConditionalRequestConflict: a delete came between; 400 RequestTimeout: the body came too slowly.
_TEMPORARY_CODES = {
    "ConditionalRequestConflict", "InternalError", "OperationAborted", "RequestTimeout", "ServiceUnavailable",
    "SlowDown", "Throttling", "ThrottlingException", "TooManyRequests",
}  # fmt: skip
_PACE_CODES = {"SlowDown", "Throttling", "ThrottlingException", "TooManyRequests"}
# What is wrong with the sender, whatever it asks for.
_SKEW_CODES = {"RequestTimeTooSkewed"}
_EXPIRED_CODES = {"ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"}
_UNKNOWN_CODES = {
    "AccountProblem", "AuthFailure", "InvalidAccessKeyId", "InvalidClientTokenId", "InvalidSecurity", "InvalidToken",
    "NotSignedUp", "UnrecognizedClientException",
}  # fmt: skip
_ELSEWHERE_CODES = {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}
_NO_CREDENTIALS = (boto.NoCredentialsError, boto.PartialCredentialsError, boto.CredentialRetrievalError)
_NO_SUCH_PROFILE = (boto.ProfileNotFound, boto.ConfigNotFound, boto.ConfigParseError)


def _is_broken_connection(error: BaseException) -> bool:
    # Imported where S3 is asked already: see `s3_client`.
    import aiohttp
    from botocore.parsers import ResponseParserError
    from fsspec.asyn import FSTimeoutError

    return isinstance(
        error,
        boto.HTTPClientError | boto.ConnectionError | boto.IncompleteReadError | boto.ResponseStreamingError
        | ResponseParserError | FSTimeoutError | aiohttp.ClientError | asyncio.TimeoutError | TimeoutError
        | ConnectionError | EOFError,
    )  # fmt: skip


def response_of(error: BaseException) -> dict[str, Any]:
    """Return the server's answer that an error of s3fs stands for, or {} when there was none."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, boto.ClientError):
            return dict(cause.response)
        cause = cause.__cause__
    return {}


def status_of(error: BaseException) -> int:
    """Return the HTTP status behind an error, or 0 when no answer came."""
    return int(response_of(error).get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def code_of(error: BaseException) -> str:
    """Return the server's word for an error, for example `NoSuchKey`; "" where it gave none, as to every HEAD."""
    code = str(response_of(error).get("Error", {}).get("Code") or "")
    return "" if code.isdecimal() else code  # botocore puts the status there when the answer has no body


def says_taken(error: BaseException) -> bool:
    """Return whether a PUT with `If-None-Match: *` was refused because the name exists.

    s3fs raises FileExistsError only when the answer has a <Condition> element, which some servers leave out; then it
    is OSError(EINVAL), as for many a status 400, so the status decides where there is one.
    """
    status = status_of(error)
    if status:
        return status == 412
    return isinstance(error, FileExistsError) or (isinstance(error, OSError) and error.errno == errno.EINVAL)


def says_range_is_empty(error: BaseException) -> bool:
    """Return whether a range was refused because it lies beyond the end."""
    return status_of(error) == 416 or code_of(error) == "InvalidRange"


def meaning(error: Exception, uri: str, *, who: str = "the credentials in use") -> CodebooksError:
    """Return the project's error for one of s3fs about `uri`; what it does not know is returned as InputError.

    who: signs the requests, in words. Unavailable means that a write may or may not have taken effect: read back
    before deciding.
    """
    status, code = status_of(error), code_of(error)
    words = _words(error, status, code)
    sender = _of_the_sender(code, f"{uri}: {words}", who, error)
    if sender is not None:
        return sender
    if isinstance(error, _NO_CREDENTIALS):
        return ClientRefused(
            f"{uri}: no usable credentials ({words}); set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile or a "
            "role, or `anonymous: true` for a public bucket"
        )
    if isinstance(error, _NO_SUCH_PROFILE):
        return Misconfigured(f"{uri}: {words}; check AWS_PROFILE and `profile`")
    if isinstance(error, boto.ParamValidationError):
        return ConfigError(f"{uri}: {words}; check the bucket's name and the endpoint")
    if isinstance(error, boto.InvalidEndpointConfigurationError | ValueError):
        return Misconfigured(f"{uri}: {words}; check the bucket's name and the endpoint")
    if isinstance(error, boto.SSLError | ssl.SSLError) and "certificate" in words.lower():
        return Misconfigured(f"{uri}: {words}; check the endpoint's https certificate (AWS_CA_BUNDLE)")
    if code == "NoSuchBucket":
        return missing_bucket(uri)
    if status == 404 or isinstance(error, FileNotFoundError):
        return NotFound(f"{uri} is not there")
    if code in _ELSEWHERE_CODES or status in {301, 307}:
        return ConfigError(f"{uri}: {words}; the bucket is in another region: set AWS_REGION or `region` to its own")
    if status in {401, 403} or code == "AccessDenied" or isinstance(error, PermissionError):
        return Forbidden(
            f"{uri}: {words}; check the credentials and what they are allowed to do with this bucket ({who})"
        )
    if code in _PACE_CODES:
        return Unavailable(f"{uri}: {words}; lower encode.actors and encode.fetch_threads if it lasts")
    if code in _TEMPORARY_CODES or temporary_status(status) or (not status and _is_broken_connection(error)):
        return Unavailable(f"{uri}: {words}")
    if status == 501 or (isinstance(error, OSError) and error.errno == errno.ENOSYS):
        return ConfigError(f"{uri}: the server does not offer this ({words}); use another S3-compatible server")
    return InputError(f"{uri}: {words}")


def _of_the_sender(code: str, what: str, who: str, error: Exception) -> CodebooksError | None:
    """Return the error for a word of the server that is about who asks and not about what is asked for, else None."""
    if code in _SKEW_CODES:
        return ClientStale(f"{what}{_clocks(error)}; set this machine's clock (NTP: chronyd, timedatectl)")
    if code in _EXPIRED_CODES:
        return ClientStale(f"{what}; {who} expired: renew them (a new session token, or a role that does it)")
    if code in _UNKNOWN_CODES:
        return ClientRefused(
            f"{what}; the server does not know {who}: check AWS_ACCESS_KEY_ID, AWS_SESSION_TOKEN, the profile or the "
            "role, and that the endpoint is the one they belong to"
        )
    if code == "SignatureDoesNotMatch":
        return SignatureRefused(f"{what}; the secret does not belong to {who}: check AWS_SECRET_ACCESS_KEY")
    return None


def _clocks(error: Exception) -> str:
    """Return both clocks in words, where the answer says what the server's is."""
    said = response_of(error).get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
    return f"; the server's clock says {said}, this one {formatdate(usegmt=True)}" if said else ""


def missing_bucket(uri: str) -> NotFound:
    """Return the error for a bucket that is not there."""
    bucket = uri.removeprefix("s3://").partition("/")[0]
    return NotFound(
        f"{uri}: there is no bucket {bucket!r}; make it first, or check its name and the endpoint (AWS_ENDPOINT_URL)"
    )


def _words(error: Exception, status: int, code: str) -> str:
    message = str(response_of(error).get("Error", {}).get("Message") or "")
    if not status:
        message = message or str(error)
    kind = f"HTTP {status}" if status else type(error).__name__
    return masked(": ".join(part for part in (" ".join(word for word in (kind, code) if word), message) if part))
