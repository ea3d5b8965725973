"""A store in a folder of a local disk or a network mount."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat as modes
import urllib.parse
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow.fs as pafs

from ..errors import CodebooksError, ConfigError, Forbidden, InputError, IntegrityError, NotFound, Unavailable
from .base import Body, Entry, Store
from .names import check_name, check_prefix, check_range, check_size, clip_range
from .retry import Retry, retrying

# Files on their way to a name; `list` never shows them and whatever a killed process left there is harmless.
ASIDE = ".codebooks-aside"
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}
_TEMPORARY = {
    errno.EAGAIN, errno.EBUSY, errno.EDQUOT, errno.EINTR, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM,
    errno.ENOSPC, errno.ESTALE, errno.ETIMEDOUT,
}  # fmt: skip


class LocalStore(Store):
    """Names as files under a root folder, which is made by the first write.

    url: a path or file:// URL. A name cannot be a file and a folder at once: `d` beside `d/x` raises InputError.
    """

    def __init__(self, url: str, *, retry: Retry | None = None) -> None:
        self._root = local_path(url)
        self.url = str(self._root)
        self._retry = retry or Retry(attempts=5, first_s=0.05, cap_s=2.0, total_s=15.0)

    def fetch(
        self, name: str, *, start: int | None = None, end: int | None = None, max_bytes: int | None = None
    ) -> Body:
        check_range(start, end)
        path = self._path(name)

        def read() -> Body:
            with _translated(path), open(path, "rb", opener=_without_waiting) as handle:
                found = os.fstat(handle.fileno())
                if not modes.S_ISREG(found.st_mode):
                    raise NotFound(f"{path} is not a regular file")
                first, last = clip_range(start, end, found.st_size)
                check_size(str(path), last - first, max_bytes)
                handle.seek(first)
                whole = start is None and end is None and max_bytes is None
                data = handle.read(-1 if whole else last - first)
                token = _entry(name, found).token
                if _entry(name, os.fstat(handle.fileno())).token != token:
                    raise IntegrityError(f"{path} changed while it was being read; read it again")
                return Body(data, (token,))

        return retrying(read, self._retry)

    def put(self, name: str, data: bytes | memoryview) -> None:
        path = self._path(name)

        def write() -> None:
            with self._aside(data) as aside, _translated(path, writing=True):
                _make_folder(path.parent)
                aside.replace(path)
                _sync_folder(path.parent)

        retrying(write, self._retry)

    def put_if_absent(self, name: str, data: bytes | memoryview) -> bool:
        path = self._path(name)
        if retrying(lambda: _is_file(path), self._retry):  # spares writing aside what could not win
            return False  # else the link below is what decides
        # One file aside for all tries: its link count says whether any of them won.
        with self._aside(data) as aside:
            return retrying(lambda: _link(aside, path), self._retry)

    def list(self, prefix: str = "", *, after: str = "") -> Iterator[Entry]:
        base, slash, stem = check_prefix(prefix).rpartition("/")
        if slash and "" in base.split("/"):
            return  # no file has an empty part in its name
        for entry in self._walk(base + slash, stem, ()):
            if not after or entry.name > check_prefix(after):
                yield entry

    def stat(self, name: str) -> Entry:
        path = self._path(name)

        def look() -> os.stat_result:
            with _translated(path):
                return path.stat()

        found = retrying(look, self._retry)
        if not modes.S_ISREG(found.st_mode):
            raise NotFound(f"{path} is a folder, not a file")
        return _entry(name, found)

    def delete(self, name: str) -> None:
        path = self._path(name)

        def remove() -> None:
            with contextlib.suppress(NotFound), _translated(path):
                if not path.is_dir():
                    path.unlink()

        retrying(remove, self._retry)

    def open(self, name: str) -> BinaryIO:
        path = self._path(name)

        def opened() -> BinaryIO:
            with _translated(path):
                return path.open("rb")

        return retrying(opened, self._retry)

    def arrow_filesystem(self) -> tuple[Any, str]:
        return pafs.LocalFileSystem(), str(self._root)

    def _path(self, name: str) -> Path:
        first, *rest = check_name(name).split("/")
        if "" in rest:
            raise InputError(f"the name {name!r} has an empty part ('//'), which a folder cannot hold")
        if first == ASIDE:
            raise InputError(f"the name {name!r} begins with {ASIDE!r}, where files on their way to a name live")
        return self._root / name

    @contextlib.contextmanager
    def _aside(self, data: bytes | memoryview) -> Iterator[Path]:
        path = self._root / ASIDE / f"{os.getpid()}-{uuid.uuid4().hex}"

        def write() -> None:
            with _translated(path, writing=True):
                _make_folder(path.parent)
                with io.FileIO(path, "w") as handle:
                    rest = memoryview(data).cast("B")
                    while rest:
                        rest = rest[handle.write(rest) :]
                    os.fsync(handle.fileno())

        try:
            retrying(write, self._retry)
            yield path
        finally:
            with contextlib.suppress(OSError):  # harmless where it stays
                path.unlink()

    def _listed(self, name: str) -> str:
        try:
            return check_name(name)
        except InputError as error:
            raise InputError(f"in {self._root}: {error}") from error

    def _walk(self, base: str, stem: str, above: tuple[tuple[int, int], ...]) -> Iterator[Entry]:
        """Yield the files under the folder `base` whose names in it begin with `stem`."""
        folder = self._root / base
        looked = retrying(lambda: _looked(folder, stem), self._retry)
        if looked is None:
            return
        identity, names = looked
        if identity in above:
            return  # a symbolic link to a folder that is being walked
        # A folder sorts with its slash: `a-b` comes before `a/x` in the order of whole names.
        for name in sorted(names):
            if name == f"{ASIDE}/" and not base:
                continue
            if name.endswith("/"):
                yield from self._walk(base + name, "", (*above, identity))
                continue
            details = retrying(lambda path=folder / name: _details(path), self._retry)  # type: ignore[misc]
            if details is not None:
                yield _entry(self._listed(base + name), details)


# Set where HOME was made up, because the user has none: libraries need one, paths of the user's own do not mean it.
HOMELESS = "VISUAL_CODEBOOKS_HOMELESS"


def expanded(path: str) -> Path:
    """Return a path with `~` at its beginning resolved.

    Raises ConfigError where that names nobody's home, and for a path that no system call takes.
    """
    if "\0" in path:
        raise ConfigError(f"the path {path!r} holds a NUL character; rename it")
    if not path.startswith("~"):
        return Path(path)
    found = None
    if HOMELESS not in os.environ or path.split("/")[0] != "~":
        with contextlib.suppress(RuntimeError):  # no such user
            found = Path(path).expanduser()
    if found is None:
        raise ConfigError(f"the path {path!r} begins with a home that is not there; write it whole, or set HOME")
    return found


def local_path(url: str) -> Path:
    """Return the absolute path of a path or file:// URL (whose %-escapes are resolved; a path has none).

    Raises ConfigError when the URL is empty or names another machine.
    """
    if not url:
        raise ConfigError("the path is empty; give a folder or s3://BUCKET/PREFIX")
    if not url.startswith("file:"):
        return expanded(url).absolute()
    host, slash, path = url.removeprefix("file:").removeprefix("//").partition("/")
    if host not in {"", "localhost"} or not slash:
        raise ConfigError(f"{url!r} does not name a file of this machine; write file:///absolute/path")
    return expanded("/" + urllib.parse.unquote(path))


def _without_waiting(path: str, flags: int) -> int:
    """Open a file; a named pipe is opened too, instead of waiting for ever for somebody who writes into it."""
    return os.open(path, flags | os.O_NONBLOCK)


def is_folder(path: Path) -> bool:
    """Return whether a path is a folder. Raises Forbidden where that may not be seen, InputError for no path at all."""
    with _translated(path):
        return path.is_dir()


def _is_file(path: Path) -> bool:
    with _translated(path):
        return path.is_file()


def _looked(folder: Path, stem: str) -> tuple[tuple[int, int], list[str]] | None:
    """Return what a folder is, and the names in it that begin with `stem`, folders with a slash; None: it is not."""
    with _translated(folder):
        try:
            here = folder.stat()
            with os.scandir(folder) as found:
                names = [
                    entry.name + "/" if _is_folder(entry) else entry.name
                    for entry in found
                    if entry.name.startswith(stem)
                ]
        except (FileNotFoundError, NotADirectoryError):
            return None
    return (here.st_dev, here.st_ino), names


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno == errno.ELOOP:  # a symbolic link to itself reaches nothing, as a dangling one
            return False
        raise


def _details(path: Path) -> os.stat_result | None:
    """Return what is known of a regular file; None for anything else and for what has just been deleted."""
    with _translated(path):
        try:
            found = path.stat()
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno == errno.ELOOP:
                return None
            raise
    return found if modes.S_ISREG(found.st_mode) else None


def _entry(name: str, found: os.stat_result) -> Entry:
    modified = datetime.fromtimestamp(found.st_mtime_ns / 1e9, UTC)
    return Entry(name, found.st_size, f"stat:{found.st_size}:{found.st_mtime_ns}", modified)


def _link(aside: Path, path: Path) -> bool:
    """Give the file aside its name; return whether it now has it."""
    with _translated(path, writing=True):
        _make_folder(path.parent)
        try:
            path.hardlink_to(aside)
            won = True
        except OSError as error:
            # A network mount may report a failure, even EEXIST, of a link that it made: the link count is the truth.
            won = aside.stat().st_nlink == 2
            if not won and error.errno in _NO_LINKS:
                raise ConfigError(
                    f"{path} could not be made by a hard link ({error.strerror}), which is how this store "
                    "writes a name once; use a folder on a file system with hard links, or s3://"
                ) from error
            if not won and not isinstance(error, FileExistsError):
                raise
        if not won and path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "a folder has this name", str(path))
        _sync_folder(path.parent)  # the loser too: it goes on with the winner's file, which must outlive a power cut
    return won


def _make_folder(path: Path) -> None:
    """Make a folder and those above it, each of them durable."""
    if path.is_dir():
        return
    _make_folder(path.parent)
    try:
        path.mkdir()
    except FileExistsError:
        if not path.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "a file has the name of a folder", str(path)) from None
    _sync_folder(path.parent)


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _translated(path: Path, *, writing: bool = False) -> Iterator[None]:
    try:
        yield
    except CodebooksError:
        raise
    except OSError as error:
        raise _meaning(path, error, writing=writing) from error


def _meaning(path: Path, error: OSError, *, writing: bool) -> CodebooksError:
    if isinstance(error, NotADirectoryError | IsADirectoryError):
        if writing:
            return InputError(f"{path}: on a disk a name cannot be a file and a folder at once; choose another name")
        return NotFound(f"{path} is not there as a file")
    if isinstance(error, FileNotFoundError):
        return NotFound(f"{path} is not there")
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        return Forbidden(f"{path}: {error.strerror}; check the owner and the mode of the file and its folders")
    if error.errno in _TEMPORARY:
        return Unavailable(f"{path}: {error.strerror} (errno {error.errno})")
    return InputError(f"{path}: {error.strerror or error} (errno {error.errno})")
