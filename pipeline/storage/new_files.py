"""Files of this machine that a command is asked to write: new ones only, so that nothing of a user is lost."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from ..errors import ConfigError
from .local import expanded

_ANOTHER = "name another file"


def new_file(text: str, endings: Sequence[str]) -> Path:
    """Return the file that a page or table is to be written to. Raises ConfigError where that cannot be."""
    path = expanded(text)
    if path.suffix.lower() not in endings:
        raise ConfigError(f"--to {text!r} does not end in one of {', '.join(endings)}, which says what to write")
    if path.exists():
        raise ConfigError(f"{path} is there already; name another file, or delete it first")
    if not path.parent.is_dir():
        raise ConfigError(f"{path.parent} is no folder; make it first, or name another file")
    return path


def write_new(path: Path, data: bytes) -> int:
    """Write a file that must not be there yet and return its bytes. Raises ConfigError where it cannot be written."""
    try:
        with path.open("xb") as file:
            return file.write(data)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error}); name another file") from error


def unused(text: str, remedy: str = _ANOTHER) -> Path:
    """Return the file that a text names, which must not be there, not even as a broken link. Raises ConfigError."""
    path = expanded(text)
    if os.path.lexists(path):
        raise ConfigError(f"{str(path)!r} exists and is not overwritten; {remedy}")
    return path


def open_new(text: str, remedy: str = _ANOTHER) -> BinaryIO:
    """Return the file that a text names, made now and open. Raises ConfigError where it is there or cannot be made."""
    try:
        return expanded(text).open("xb")
    except FileExistsError as error:
        raise ConfigError(f"{text!r} exists and is not overwritten; {remedy}") from error
    except OSError as error:
        raise ConfigError(f"{text!r} cannot be written: {error}; {remedy}") from error
