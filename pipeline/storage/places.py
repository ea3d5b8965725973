"""What a catalogue may name: the places that photos may come from, whatever an address or a link in a folder says."""

from __future__ import annotations

import functools
import os
import re
from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError, InputError, NotAllowed
from .addresses import Address, address_of, leaves_its_path, never_asked, path_of, shown
from .local import local_path
from .urls import scheme_of

WEB = ("https", "http")
LOCAL = ("", "file")
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Places:
    """Folders that photos may come from, each with all that lies below it.

    prefixes: `s3://BUCKET/`, `s3://BUCKET/FOLDER/`, `https://HOST/FOLDER/`, `/FOLDER/`, `memory://NAME/`. Local folders
    count as what they are after every symbolic link is followed, and so do the files in them.
    """

    prefixes: tuple[str, ...]

    def web(self) -> tuple[str, ...]:
        """Return the prefixes on the web."""
        return tuple(prefix for prefix in self.prefixes if scheme_of(prefix) in WEB)

    def check(self, uri: str) -> str:
        """Return the URI that is to be opened: a local path with its links followed, anything else as it is.

        Raises NotAllowed outside of the places; ConfigError, InputError for a URI that names nothing.
        """
        scheme = scheme_of(uri)
        if scheme in WEB:
            check_web(uri, uri, self.web())
            return uri
        if scheme in LOCAL:
            return self._check_local(uri)
        if not {".", ".."}.isdisjoint(uri.split("/")):
            raise NotAllowed(f"{uri}: a path with '.' or '..' is not followed; write the address it stands for")
        if not any(uri.startswith(folder(prefix)) for prefix in self.prefixes):
            raise outside(uri, uri, self.prefixes)
        return uri

    def _check_local(self, uri: str) -> str:
        path = real_path(uri)
        if not any(_is_below(path, real_path(prefix)) for prefix in self.prefixes if scheme_of(prefix) in LOCAL):
            raise outside(path, uri, self.prefixes)
        return path


def check_web(target: str, uri: str, prefixes: tuple[str, ...]) -> None:
    """Raise NotAllowed unless a web address is under one of the prefixes; uri: what led to it."""
    address, path = address_of(target), path_of(target)
    if leaves_its_path(target):
        raise NotAllowed(f"{shown(uri)}: a path with '.' or '..' is not followed; write the address it stands for")
    why = never_asked(address[1])
    if why is not None:
        raise NotAllowed(f"{shown(target)} is {why}")
    if not path.startswith(_web_folders(prefixes).get(address, ())):
        raise outside(target, uri, prefixes)


@functools.lru_cache(maxsize=8)
def _web_folders(prefixes: tuple[str, ...]) -> dict[Address, tuple[str, ...]]:
    found: dict[Address, tuple[str, ...]] = {}
    for prefix in prefixes:
        address = address_of(prefix)
        found[address] = (*found.get(address, ()), path_of(folder(prefix)))
    return found


def outside(target: str, uri: str, prefixes: tuple[str, ...]) -> NotAllowed:
    """Return the error for a URI that is, or leads to, something outside of the places; it names the prefix to add."""
    what = (
        shown(uri) if target in (uri, uri.removeprefix("file://")) else f"{shown(uri)} leads to {shown(target)}, which"
    )
    allowed = ", ".join(prefixes[:_SHOWN]) or "none are set"
    more = f" and {len(prefixes) - _SHOWN} more" if len(prefixes) > _SHOWN else ""
    return NotAllowed(
        f"{what} is under none of the allowed prefixes ({allowed}{more}); to allow it add {prefix_of(target)!r} to "
        "`catalogue.allowed_prefixes`"
    )


def prefix_of(uri: str) -> str:
    """Return the prefix that allows a URI: its host, bucket or folder."""
    found = re.match(r"[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*", uri)
    if found and scheme_of(uri) not in LOCAL:
        return shown(f"{found[0]}/")
    return folder(str(Path(real_path(uri)).parent))


def folder(prefix: str) -> str:
    """Return a prefix with the slash at its end that keeps `s3://shop` from allowing `s3://shop-of-others`."""
    return f"{prefix.rstrip('/')}/"


def real_path(uri: str) -> str:
    """Return the local file that a path or file:// URI reaches in the end. Raises ConfigError, InputError for none."""
    try:
        return os.path.realpath(local_path(uri))
    except ConfigError:
        raise
    except (ValueError, OSError) as error:  # a NUL, a lone surrogate, a link to itself
        raise InputError(f"{uri!r} names no file: {error}") from error


def _is_below(path: str, root: str) -> bool:
    return path == root or path.startswith(folder(root))
