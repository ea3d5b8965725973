"""Keeping secrets out of what is printed, logged and published: parts of URLs, and settings that look like one."""

from __future__ import annotations

import os
import re

MASK = "***"
_LEAST_SECRET = 12  # characters; a shorter value is a word that may stand anywhere
_SECRET_VARIABLE = re.compile(r"(?i)secret|password|passwd|token|access_?key|credential|webhook|authorization")
# `user@`, `user:password@`, and the latter with a `/` in the password, as AWS secrets have and a URL must not.
_USER = re.compile(r"(?<=//)(?:[^/?#@\s'\"]*@|[^/?#@\s'\":]*:(?!\d+(?:/|$))[^@\s'\"]*@)")
# Names of what signs a URL, or stands for a password in it: AWS, CloudFront, Google, Azure, and plain tokens.
_SIGNING = re.compile(
    r"(?i)(?<=[?&;])((?:x-(?:amz|goog)-(?:signature|credential|security-token)|signature|awsaccesskeyid|googleaccessid"
    r"|policy|key-pair-id|sig|token|[a-z_-]*(?:token|secret|password|passwd|api[_-]?key)|auth|key|pwd)=)[^&#\s'\"]*"
)
_LONG_WORD = re.compile(r"(\S{100})\S{900,}")
_WORDS = r"(?:key|secret|token|password|passwd|pwd|credentials?|auth|signature)s?"
_SECRET_NAME = re.compile(rf"(?i)(?:^|[_.-]){_WORDS}(?:$|[_.-])")
# The address of a webhook is its own password.
_OPTION = re.compile(
    rf"(?i)(?<!\w)((?:[\w.-]*[_.-])?(?:{_WORDS}|webhook)(?:[_.-][\w.-]*)?[\"']?\s*[=:]\s*)(?!//)[^\s,}}\]]+"
)


def masked(text: str) -> str:
    """Return a text with `user:password@` of URLs and the values of signing query parameters as `***`."""
    return _SIGNING.sub(rf"\g<1>{MASK}", _USER.sub(f"{MASK}@", text))


def masked_for_people(text: str) -> str:
    """Return what `masked` does, with the values of this process's secret environment variables as `***` too.

    A word of over 1,000 characters, such as a key that holds a whole file, is cut to its beginning and its length.
    """
    for name, value in os.environ.items():
        if len(value) >= _LEAST_SECRET and _SECRET_VARIABLE.search(name) and "/" not in value[:1]:
            text = text.replace(value, MASK)
    # After the masks: a secret cut in two would not be known for one.
    return _LONG_WORD.sub(lambda word: f"{word[1]}...({len(word[0]):,} characters)", masked(text))


def masked_options(text: str) -> str:
    """Return what `masked` does, with the values of `--store.key=VALUE`, `{key: VALUE}` and the like as `***` too."""
    return masked(_OPTION.sub(rf"\g<1>{MASK}", text))


def holds_user(url: str) -> bool:
    """Return whether a URL names a user, with or without a password: `https://user:password@host/`."""
    return _USER.search(url) is not None


def names_secret(name: str) -> bool:
    """Return whether a setting of this name would be a secret: `key`, `secret_access_key`, `password`, ..."""
    return _SECRET_NAME.search(re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name)) is not None
