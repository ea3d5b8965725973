"""A local folder of a store's write-once files, each hashed on its way in."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from ..errors import ConfigError, IntegrityError, NotFound
from .base import Store
from .room import default_bytes

_CHUNK = 32 << 20  # bytes fetched at a time: memory stays bounded, and a retry repeats no more than this
_IN_USE_S = 600.0  # a file used this recently may be about to be opened by another process
_ABANDONED_S = 86_400.0  # a half-written file this old has lost its writer
DEFAULT_MAX_BYTES = 50 << 30


class FileCache:
    """Files named by their sha256 under one folder, shared by all processes of a user.

    A file enters under a name of its own and is renamed when it is whole and its digest right, so what is found here
    was checked; only its size is looked at again. Before a file enters, those not used for longest are removed until
    it fits below `max_bytes`; one that is still open or mapped stays readable to its process. A file larger than the
    limit enters all the same: without it its release cannot be read.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None, *, max_bytes: int | None = None) -> None:
        """folder: None takes `default_folder()`; it is made when missing. max_bytes: None takes what is free.

        Pickled, a cache is what it was given: another machine has a default folder and free space of its own.
        """
        self._given = None if folder is None else Path(folder).absolute()
        self.folder = self._given or default_folder()
        self.max_bytes = max_bytes

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (self._given, self.max_bytes)

    def fetch(
        self, store: Store, name: str, *, size: int, sha256: str, came: Callable[[int], None] | None = None
    ) -> Path:
        """Return a local path of a stored file of `size` bytes, fetched now if it is not here.

        came: told of the bytes of each piece that has come; of a file that is here, of all at once.
        Raises IntegrityError when the stored bytes have another size or digest or are gone, ConfigError when the
        folder cannot be written.
        """
        path = self.folder / sha256[:2] / sha256
        if self._held(path, size):
            if came is not None:
                came(size)
            return path
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            handle, partial = tempfile.mkstemp(dir=path.parent, prefix=".partial-")
        except OSError as error:
            raise self._unwritable(error) from error
        self._make_room(size)
        try:
            with os.fdopen(handle, "wb") as sink:
                found_size, found = 0, hashlib.sha256()
                for chunk in _chunks(store, name, size):
                    found.update(chunk)
                    found_size += len(chunk)
                    try:
                        sink.write(chunk)
                    except OSError as error:
                        raise self._unwritable(error, size) from error
                    if came is not None:
                        came(len(chunk))
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
        return path

    def drop(self, sha256: str) -> None:
        """Remove a file that nobody here will ask for again; whoever has it open or mapped reads on."""
        with contextlib.suppress(OSError):
            (self.folder / sha256[:2] / sha256).unlink(missing_ok=True)

    def make_room_for(self, files: Iterable[tuple[str, int]]) -> None:
        """Make room for several files, of (sha256, bytes), that are about to be fetched; those here count not."""
        sizes = [size for sha256, size in files if not self._held(self.folder / sha256[:2] / sha256, size)]
        if sizes and self.folder.is_dir():
            self._make_room(sum(sizes))

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

    def _make_room(self, size: int) -> None:
        """Remove what was not used for longest until `size` more bytes fit; one process of those here does it."""
        with _alone(self.folder) as alone:
            if not alone:
                return
            now, files = time.time(), []
            for path in self.folder.glob("??/*"):
                with contextlib.suppress(OSError):  # another process has just removed it
                    stat = path.stat()
                    if path.name.startswith("."):
                        if now - stat.st_mtime > _ABANDONED_S:
                            path.unlink()
                    else:
                        files.append((stat.st_mtime, stat.st_size, path))
            held = sum(size for _, size, _ in files)
            limit = self.max_bytes
            if limit is None:
                limit = default_bytes(self.folder, held=held, most=DEFAULT_MAX_BYTES)
            excess = held + size - limit
            for used, bytes_, path in sorted(files):
                if excess <= 0 or now - used <= _IN_USE_S:
                    return
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)  # gone already counts as well
                    excess -= bytes_

    def _unwritable(self, error: OSError, size: int | None = None) -> ConfigError:
        wanted = "" if size is None else f" a file of {size:,} bytes"
        return ConfigError(
            f"cannot write{wanted} into the cache folder {self.folder} ({error.strerror}); pass another cache_dir, or "
            "set XDG_CACHE_HOME to a folder with room"
        )


def _rebuilt(folder: Path | None, max_bytes: int | None) -> FileCache:
    return FileCache(folder, max_bytes=max_bytes)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    """Whether this process is the only one that now removes files here; never waits."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:  # a folder of another user, who makes room
        yield False
        return
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # another process does it, or the file system knows no locks
            yield False
            return
        try:
            yield True
        finally:
            fcntl.flock(handle, fcntl.LOCK_UN)  # by hand: a child forked meanwhile has this handle too
    finally:
        os.close(handle)


def default_folder() -> Path:
    """Return `$XDG_CACHE_HOME/visual-codebooks`, else `~/.cache/visual-codebooks`, else one in the temporary folder.

    Never the folder that trainings keep their parts in, nor one above it: each cache removes only its own files.
    """
    named = os.environ.get("XDG_CACHE_HOME")
    if named:
        return Path(named).absolute() / "visual-codebooks"
    with contextlib.suppress(RuntimeError, OSError):  # no home at all, or one that cannot be written
        folder = Path.home() / ".cache" / "visual-codebooks"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if os.access(folder, os.W_OK):
            return folder
    return temporary_folder("releases")


def temporary_folder(purpose: str) -> Path:
    """Return this user's folder for one purpose below the machine's temporary folder; it is made when missing.

    Raises ConfigError when another user has it.
    """
    base = Path(tempfile.gettempdir()) / f"visual-codebooks-{os.getuid()}"
    base.mkdir(exist_ok=True, mode=0o700)
    if base.stat().st_uid != os.getuid():  # anyone may make a folder of this name there, and fill it
        raise ConfigError(f"{base} belongs to another user; set XDG_CACHE_HOME and TMPDIR to folders of your own")
    folder = base / purpose
    folder.mkdir(exist_ok=True, mode=0o700)
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
