"""A store seen as a pyarrow filesystem, with the store's own retries and errors."""

from __future__ import annotations

import io
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.fs as pafs

from ..errors import NotFound
from .base import Entry, Store


def filesystem_over(store: Store, root: str) -> Any:
    """Return a picklable `pyarrow.fs.FileSystem` over `store`, in which `root` is the path of the store's root."""
    return pafs.PyFileSystem(StoreHandler(store, root))


class StoreHandler(pafs.FileSystemHandler):  # type: ignore[misc]
    """Answers pyarrow's calls from a store; folders are what the names imply, as on S3."""

    def __init__(self, store: Store, root: str) -> None:
        self.store = store
        self.root = root.strip("/")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StoreHandler) and other.store.url == self.store.url

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(self.store.url)

    def _name(self, path: str) -> str:
        path = path.strip("/")
        if path != self.root and not path.startswith(f"{self.root}/"):
            raise NotFound(f"{path!r} is outside of {self.root!r}, the root of {self.store.url}")
        return path.removeprefix(self.root).lstrip("/")

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}"

    def get_type_name(self) -> str:
        return "codebooks-store"

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: list[str]) -> list[Any]:
        return [self._info(path) for path in paths]

    def _info(self, path: str) -> Any:
        name = self._name(path)
        if name:
            try:
                return self._file_info(self.store.stat(name))
            except NotFound:
                if next(self.store.list(f"{name}/"), None) is None:
                    return pafs.FileInfo(path, pafs.FileType.NotFound)
        return pafs.FileInfo(path, pafs.FileType.Directory)

    def _file_info(self, entry: Entry) -> Any:
        return pafs.FileInfo(
            self._path(entry.name), pafs.FileType.File, size=entry.size, mtime=entry.modified.timestamp()
        )

    def get_file_info_selector(self, selector: Any) -> list[Any]:
        name = self._name(selector.base_dir)
        base = f"{name}/" if name else ""
        found: list[Any] = []
        folders: set[str] = set()
        empty = True
        for entry in self.store.list(base):
            empty = False
            parts = entry.name.removeprefix(base).split("/")
            for depth in range(1, len(parts) if selector.recursive else min(len(parts), 2)):
                folder = base + "/".join(parts[:depth])
                if folder not in folders:
                    folders.add(folder)
                    found.append(pafs.FileInfo(self._path(folder), pafs.FileType.Directory))
            if selector.recursive or len(parts) == 1:
                found.append(self._file_info(entry))
        if empty and base and not selector.allow_not_found:
            raise NotFound(f"{self.store.url}/{base} holds nothing")
        return found

    def open_input_file(self, path: str) -> Any:
        return pa.PythonFile(self.store.open(self._name(path)), mode="r")

    def open_input_stream(self, path: str) -> Any:
        return self.open_input_file(path)

    def open_output_stream(self, path: str, metadata: Any) -> Any:
        return pa.PythonFile(_Upload(self.store, self._name(path)), mode="w")

    def create_dir(self, path: str, recursive: bool) -> None:  # noqa: FBT001 - pyarrow's signature
        """Do nothing: a folder is there as soon as a name is in it."""

    def delete_file(self, path: str) -> None:
        self.store.delete(self._name(path))

    def delete_dir(self, path: str) -> None:
        self.delete_dir_contents(path, missing_dir_ok=True)

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:  # noqa: FBT001, FBT002
        name = self._name(path)
        if not name:
            self.delete_root_dir_contents()
        for entry in self.store.list(f"{name}/"):
            self.store.delete(entry.name)

    def delete_root_dir_contents(self) -> NoReturn:
        raise NotImplementedError(f"emptying the whole store {self.store.url} is not offered here")

    def copy_file(self, src: str, dest: str) -> None:
        self.store.put(self._name(dest), self.store.get(self._name(src)))

    def move(self, src: str, dest: str) -> None:
        self.copy_file(src, dest)
        self.delete_file(src)

    def open_append_stream(self, path: str, metadata: Any) -> NoReturn:
        raise NotImplementedError(f"{path}: names on a store are written whole, nothing is appended")


class _Upload(io.BytesIO):
    """Bytes gathered in memory and put under a name, whole, when the stream is closed."""

    def __init__(self, store: Store, name: str) -> None:
        super().__init__()
        self._store = store
        self._name = name

    def close(self) -> None:
        if not self.closed:
            self._store.put(self._name, self.getvalue())
        super().close()
