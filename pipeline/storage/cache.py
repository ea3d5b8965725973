"""A local folder of a store's write-once files, each hashed on its way in."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from ..errors import ConfigError, IntegrityError, NotFound
from .base import Store

_CHUNK = 32 << 20  # bytes fetched at a time: memory stays bounded, and a retry repeats no more than this
_IN_USE_S = 600.0  # a file used this recently may be about to be opened by another process
_ABANDONED_S = 86_400.0  # a half-written file this old has lost its writer
DEFAULT_MAX_BYTES = 50 << 30


class FileCache:
    """Files named by their sha256 under one folder, shared by all processes of a user.

    A file enters under a name of its own and is renamed when it is whole and its digest right, so what is found here
    was checked; only its size is looked at again. Above `max_bytes` the files not used for longest are removed; one
    that is still open or mapped stays readable to its process.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None, *, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        """folder: None takes `default_folder()`; it is made when missing."""
        self.folder = default_folder() if folder is None else Path(folder).absolute()
        self.max_bytes = max_bytes

    def fetch(self, store: Store, name: str, *, size: int, sha256: str) -> Path:
        """Return a local path of a stored file of `size` bytes, fetched now if it is not here.

        Raises IntegrityError when the stored bytes have another size or digest or are gone, ConfigError when the
        folder cannot be written.
        """
        path = self.folder / sha256[:2] / sha256
        if self._held(path, size):
            return path
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            handle, partial = tempfile.mkstemp(dir=path.parent, prefix=".partial-")
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            with os.fdopen(handle, "wb") as sink:
                found_size, found = 0, hashlib.sha256()
                for chunk in _chunks(store, name, size):
                    found.update(chunk)
                    found_size += len(chunk)
                    try:
                        sink.write(chunk)
                    except OSError as error:
                        raise self._unwritable(error) from error
                if (found_size, found.hexdigest()) != (size, sha256):
                    raise IntegrityError(
                        f"{name} on {store.url} has {_several(found_size, size)} and the sha256 {found.hexdigest()}, "
                        f"its manifest says {size:,} bytes and {sha256}: it was changed after it was written; "
                        "roll the channel back to another release"
                    )
                sink.flush()
                os.fsync(sink.fileno())  # else a crash could leave the right name and size over empty blocks
            Path(partial).replace(path)
        finally:
            Path(partial).unlink(missing_ok=True)
        self._prune(keep=path)
        return path

    def _held(self, path: Path, size: int) -> bool:
        try:
            if path.stat().st_size != size:
                return False
            os.utime(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except PermissionError:  # a shared folder that this process may only read
            return True
        return True

    def _prune(self, *, keep: Path) -> None:
        now, files = time.time(), []
        for path in self.folder.glob("*/*"):
            with contextlib.suppress(OSError):  # another process has just removed it
                stat = path.stat()
                if path.name.startswith("."):
                    if now - stat.st_mtime > _ABANDONED_S:
                        path.unlink()
                else:
                    files.append((stat.st_mtime, stat.st_size, path))
        excess = sum(size for _, size, _ in files) - self.max_bytes
        for used, size, path in sorted(files):
            if excess <= 0:
                return
            if path != keep and now - used > _IN_USE_S:
                with contextlib.suppress(OSError):
                    path.unlink()
                    excess -= size

    def _unwritable(self, error: OSError) -> ConfigError:
        return ConfigError(
            f"cannot write into the cache folder {self.folder} ({error.strerror}); pass another cache_dir, or set "
            "XDG_CACHE_HOME to a folder with room"
        )


def default_folder() -> Path:
    """Return `$XDG_CACHE_HOME/visual-codebooks`, else `~/.cache/visual-codebooks`, else one in the temporary folder."""
    named = os.environ.get("XDG_CACHE_HOME")
    if named:
        return Path(named).absolute() / "visual-codebooks"
    with contextlib.suppress(RuntimeError, OSError):  # no home at all, or one that cannot be written
        folder = Path.home() / ".cache" / "visual-codebooks"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if os.access(folder, os.W_OK):
            return folder
    folder = Path(tempfile.gettempdir()) / f"visual-codebooks-{os.getuid()}"
    folder.mkdir(exist_ok=True, mode=0o700)
    if folder.stat().st_uid != os.getuid():  # anyone may make a folder of this name there, and fill it
        raise ConfigError(f"{folder} belongs to another user; pass cache_dir or set XDG_CACHE_HOME")
    return folder


def _chunks(store: Store, name: str, size: int) -> Iterator[bytes]:
    """Yield a file's bytes; one byte more than `size` is asked for, so that a longer file is noticed."""
    try:
        for start in range(0, max(size, 1), _CHUNK):
            last = start + _CHUNK >= size
            yield store.get(name, start=start, end=size + 1 if last else start + _CHUNK) if size else store.get(name)
    except NotFound as error:
        raise IntegrityError(
            f"{name} is not on {store.url}, although a manifest names it: the release has expired or was damaged; "
            "open another release"
        ) from error


def _several(found: int, size: int) -> str:
    return f"more than {size:,} bytes" if found > size else f"{found:,} bytes"
