"""Reading photos and tables by their URIs, wherever they are."""

from __future__ import annotations

import io
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import ConfigError, NotFound
from .base import Body, Entry, Store
from .hosts import CONNECTIONS, Traffic
from .local import expanded, is_folder, local_path
from .options import StorageOptions
from .places import WEB, Places
from .urls import open_store, scheme_of, split_uri
from .web import Revalidated, WebReader


class Files:
    """Reads any URI: s3://, local paths, file://, memory:// and, under given prefixes only, https://.

    Safe to pickle and to use from several threads. places: what `fetch` and `stat` may reach (photos, which a catalogue
    names); None: everything but the web. `read`, `open` and `list` are for what the config itself names, and hold only
    web addresses to the places. host_connections: to one web host at once. folder: where relative paths begin; None:
    in this process's own.
    """

    def __init__(
        self,
        options: StorageOptions | None = None,
        places: Places | None = None,
        *,
        host_connections: int = CONNECTIONS,
        folder: str | None = None,
    ) -> None:
        self.places, self.folder = places, folder
        self._options = options
        self._web = WebReader(places.web() if places else (), connections=host_connections)
        self._begin()

    def _begin(self) -> None:
        self._stores: dict[str, Store] = {}
        self._last: tuple[str, Store] | None = None  # the last folder asked for: photos lie many in one
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"places": self.places, "folder": self.folder, "_options": self._options, "_web": self._web}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()

    def read(self, uri: str, *, start: int | None = None, end: int | None = None) -> bytes:
        """Return the bytes behind a URI, or those in [start, end).

        Raises NotFound, Forbidden, Unavailable, ConfigError.
        """
        if scheme_of(uri) in WEB:
            return self._web.fetch(uri, start=start, end=end).data
        store, name = self._locate(uri)
        return store.get(name, start=start, end=end)

    def fetch(
        self, uri: str, *, start: int | None = None, end: int | None = None, max_bytes: int | None = None
    ) -> Body:
        """Return the bytes of a photo, or those in [start, end) of the file that holds it, and their tokens.

        Raises what `read` does, NotAllowed outside of the places, TooLarge for more than `max_bytes`, of which no more
        is read than that.
        """
        if scheme_of(uri) in WEB:
            return self._web.fetch(uri, start=start, end=end, max_bytes=max_bytes)
        store, name = self._locate(self._checked(uri))
        return store.fetch(name, start=start, end=end, max_bytes=max_bytes)

    def open(self, uri: str) -> BinaryIO:
        """Open a URI for reading, with seek; https is read whole into memory."""
        if scheme_of(uri) in WEB:
            return io.BytesIO(self._web.fetch(uri).data)
        store, name = self._locate(uri)
        return store.open(name)

    def stat(self, uri: str) -> Entry:
        """Return the entry of a URI; its name is relative to the root that `split_uri` gives (https: the URI)."""
        if scheme_of(uri) in WEB:
            return self._web.stat(uri)
        store, name = self._locate(self._checked(uri))
        return store.stat(name)

    def traffic(self) -> dict[str, Traffic]:
        """Return this process's requests to each web host."""
        return self._web.traffic()

    def revalidate(self, uri: str, token: str | None) -> Revalidated:
        """Return ("same" | "changed", token) of an https URI, without its bytes where the server gives a token."""
        return self._web.revalidate(uri, token)

    def list(self, uri_prefix: str, *, after: str = "") -> Iterator[tuple[str, Entry]]:
        """Yield (URI, entry) of every file under a folder URI, in name order; an entry's name is relative to the root.

        after: of a folder on a store, only files whose URI comes behind this one.
        Raises NotFound when a local folder or a bucket does not exist, ConfigError for https.
        """
        scheme = scheme_of(uri_prefix)
        if scheme in WEB:
            raise ConfigError(
                f"{uri_prefix} cannot be listed: give a table of https URIs, or a folder on s3:// or a disk"
            )
        if scheme in {"", "file"}:
            if not is_folder(local_path(uri_prefix)):
                raise NotFound(f"{uri_prefix} is not a folder of this machine")
            root, prefix = uri_prefix.rstrip("/") or "/", ""
        else:
            root, folder = split_uri(uri_prefix.rstrip("/") + "/.")
            prefix = folder.removesuffix(".")
        behind = after.removeprefix(root).removeprefix("/")
        for entry in self._store(root).list(prefix, after=behind):
            name = urllib.parse.quote(entry.name) if scheme == "file" else entry.name
            yield f"{root.rstrip('/')}/{name}", entry

    def _checked(self, uri: str) -> str:
        return uri if self.places is None else self.places.check(uri)

    def _locate(self, uri: str) -> tuple[Store, str]:
        if self.folder is not None and not scheme_of(uri):
            uri = str(Path(self.folder, expanded(uri)))
        root, name = split_uri(uri)
        return self._store(root), urllib.parse.unquote(name) if root.startswith("file:") else name

    def _store(self, root: str) -> Store:
        if scheme_of(root) in {"", "file"}:  # as many roots as folders: only one is kept
            last = self._last
            if last is None or last[0] != root:
                last = self._last = root, open_store(root)
            return last[1]
        with self._lock:
            found = self._stores.get(root)
            if found is None:
                found = self._stores[root] = open_store(root, self._options)
            return found
