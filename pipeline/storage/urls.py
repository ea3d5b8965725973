"""From URLs to stores."""

from __future__ import annotations

import re
from collections.abc import Callable

from ..errors import ConfigError
from .base import Store
from .local import LocalStore
from .memory import MemoryStore
from .options import StorageOptions
from .s3 import S3Store

# One line per storage backend; a URL without a scheme is a local path.
SCHEMES: dict[str, Callable[[str, StorageOptions | None], Store]] = {
    "s3": S3Store,
    "file": lambda url, _: LocalStore(url),
    "memory": lambda url, _: MemoryStore(url),
}
# As RE2 and Python understand it: a URI's scheme with its bucket or host.
HOME = r"^(?P<home>[A-Za-z][A-Za-z0-9+.\-]*://[^/?#]*)"
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")


def scheme_of(url: str) -> str:
    """Return the scheme of a URL, "" for a local path."""
    found = _SCHEME.match(url)
    return found[1] if found else ""


def home_of(uri: str) -> str:
    """Return what answers for a URI, its bucket or host: `s3://BUCKET`, `https://HOST`; "" for this machine's disks."""
    found = re.match(HOME, uri)
    return found["home"] if found and not uri.startswith("file:") else ""


def open_store(url: str, options: StorageOptions | None = None) -> Store:
    """Return the store at s3://BUCKET/PREFIX, a local path, file:///PATH or memory://NAME; nothing is asked of it yet.

    Raises ConfigError when the URL has another form.
    """
    scheme = scheme_of(url)
    if not scheme:
        return LocalStore(url)
    if scheme not in SCHEMES:
        raise ConfigError(
            f"{url!r} is no store: the scheme {scheme!r} is unknown; write s3://BUCKET/PREFIX, a local path or "
            + ", ".join(f"{name}://" for name in SCHEMES)
        )
    return SCHEMES[scheme](url, options)


def split_uri(uri: str) -> tuple[str, str]:
    """Return (root, name) of a file's URI: the root is what `open_store` takes.

    s3://b/k/x -> (s3://b, k/x); memory://m/k/x -> (memory://m, k/x); /a/b/c.jpg -> (/a/b, c.jpg). Raises ConfigError
    when the URI names no file in a store.
    """
    scheme = scheme_of(uri)
    if scheme not in {"", *SCHEMES}:
        raise ConfigError(f"{uri!r} is in no store: the scheme {scheme!r} is not one of {', '.join(SCHEMES)}")
    if scheme in {"", "file"}:
        root, slash, name = uri.rpartition("/")
        root = root if root.strip("/:") not in {"", "file", "file://localhost"} else root + slash
        root = root or "."
    else:
        space, _, name = uri.removeprefix(f"{scheme}://").partition("/")
        root = f"{scheme}://{space}" if space else ""
    if not root or not name:
        raise ConfigError(f"{uri!r} names no file; expected for example s3://BUCKET/KEY or /folder/file")
    return root, name
