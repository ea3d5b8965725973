"""The local cache: checked on the way in, shared, bounded, never half a file."""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.errors import ConfigError, IntegrityError
from pipeline.storage import LocalStore, Store, open_store
from pipeline.storage import cache as cache_module
from pipeline.storage.cache import FileCache, default_folder


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


def put(store: Store, name: str, data: bytes) -> dict[str, object]:
    store.put_if_absent(name, data)
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


@pytest.mark.parametrize("size", [0, 1, 99, 100, 101, 250, 300])
def test_a_file_comes_in_whole_over_several_requests(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(cache_module, "_CHUNK", 100)
    data = os.urandom(size)
    entry = put(store, "a/b", data)
    path = FileCache(tmp_path / "cache").fetch(store, "a/b", **entry)
    assert path.read_bytes() == data
    assert [found.name for found in path.parent.iterdir()] == [entry["sha256"]], "nothing half written is left"


def test_a_second_fetch_reads_nothing(store: Store, tmp_path: Path) -> None:
    entry = put(store, "a", b"hello")
    cache = FileCache(tmp_path / "cache")
    first = cache.fetch(store, "a", **entry)
    store.delete("a")
    assert cache.fetch(store, "a", **entry) == first


@pytest.mark.parametrize("held", [b"hellO", b"hell", b"hello!", b""])
def test_other_bytes_than_named_are_refused_and_leave_nothing(store: Store, tmp_path: Path, held: bytes) -> None:
    put(store, "a", held)
    cache = FileCache(tmp_path / "cache")
    with pytest.raises(IntegrityError, match=r"a on .*its manifest says 5 bytes"):
        cache.fetch(store, "a", size=5, sha256=hashlib.sha256(b"hello").hexdigest())
    assert [path for path in cache.folder.rglob("*") if path.is_file()] == []


def test_a_shortened_cache_file_is_fetched_again(store: Store, tmp_path: Path) -> None:
    entry = put(store, "a", b"hello")
    cache = FileCache(tmp_path / "cache")
    path = cache.fetch(store, "a", **entry)
    path.write_bytes(b"hel")
    assert cache.fetch(store, "a", **entry).read_bytes() == b"hello"


def test_a_name_the_store_lost_is_said_so(store: Store, tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="gone/x is not on"):
        FileCache(tmp_path).fetch(store, "gone/x", size=3, sha256="0" * 64)


def test_the_oldest_files_go_when_it_is_full_but_none_in_use(store: Store, tmp_path: Path) -> None:
    cache, full = FileCache(tmp_path / "cache"), FileCache(tmp_path / "cache", max_bytes=150)
    paths = {}
    for number, age in enumerate((4_000, 5_000, 3_000, 100)):
        name = f"f{number}"
        paths[name] = cache.fetch(store, name, **put(store, name, bytes([number]) * 100))
        used = time.time() - age
        os.utime(paths[name], (used, used))
    abandoned = paths["f0"].parent / ".partial-x"
    abandoned.touch()
    os.utime(abandoned, (0, 0))
    kept_open = paths["f1"].open("rb")
    full.fetch(store, "last", **put(store, "last", b"z" * 100))
    assert {name for name, path in paths.items() if path.exists()} == {"f3"}, "too full, but f3 may be in use"
    assert not abandoned.exists()
    assert kept_open.read() == b"\x01" * 100
    kept_open.close()


def test_a_file_found_here_counts_as_used(store: Store, tmp_path: Path) -> None:
    cache = FileCache(tmp_path / "cache")
    entry = put(store, "a", b"hello")
    path = cache.fetch(store, "a", **entry)
    os.utime(path, (0, 0))
    cache.fetch(store, "a", **entry)
    assert time.time() - path.stat().st_mtime < 60


def test_processes_that_fetch_the_same_file_at_once_all_get_it_whole(store: Store, tmp_path: Path) -> None:
    entry = put(store, "a", os.urandom(3_000_000))
    assert isinstance(store, LocalStore)
    code = (
        "import sys, hashlib\n"
        "from pipeline.storage import open_store\n"
        "from pipeline.storage.cache import FileCache\n"
        "url, folder, size, sha = sys.argv[1:]\n"
        "for _ in range(20):\n"
        "    path = FileCache(folder).fetch(open_store(url), 'a', size=int(size), sha256=sha)\n"
        "    assert hashlib.sha256(path.read_bytes()).hexdigest() == sha\n"
    )
    arguments = [sys.executable, "-c", code, store.url, str(tmp_path / "c"), str(entry["size"]), str(entry["sha256"])]
    children = [subprocess.Popen(arguments) for _ in range(3)]
    assert [child.wait(timeout=200) for child in children] == [0, 0, 0]
    assert len([path for path in (tmp_path / "c").rglob("*") if path.is_file()]) == 1


def test_where_it_lies_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert default_folder() == tmp_path / "x" / "visual-codebooks"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_folder() == tmp_path / "home" / ".cache" / "visual-codebooks"
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "file"))  # a home that cannot hold a folder
    monkeypatch.setattr(cache_module.tempfile, "gettempdir", lambda: str(tmp_path))
    folder = default_folder()
    assert folder.parent == tmp_path
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700, "nobody else may put files there"


def test_a_folder_that_cannot_be_made_names_the_remedy(store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cache_dir"):
        FileCache(tmp_path / "file").fetch(store, "a", **put(store, "a", b"x"))
