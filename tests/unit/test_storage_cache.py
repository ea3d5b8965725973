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
from pipeline.storage import room as room_module
from pipeline.storage.cache import FileCache, default_folder
from pipeline.training.part_cache import cache_folder


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


def old_files(store: Store, cache: FileCache, count: int) -> list[Path]:
    """Files of 100 bytes each that nobody used for an hour and more, the oldest first."""
    paths = []
    for number in range(count):
        path = cache.fetch(store, f"o{number}", **put(store, f"o{number}", bytes([number]) * 100))
        used = time.time() - 10_000 + number
        os.utime(path, (used, used))
        paths.append(path)
    return paths


def test_a_file_that_another_process_has_just_removed_counts_as_freed(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = FileCache(tmp_path / "cache", max_bytes=1000)
    paths = old_files(store, cache, 10)
    unlink = Path.unlink

    def rival(path: Path, *, missing_ok: bool = False) -> None:
        if path == paths[0]:
            unlink(path)  # the other process is quicker
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", rival)
    cache.fetch(store, "last", **put(store, "last", b"z" * 100))
    assert [path.exists() for path in paths] == [False] + [True] * 9, "one was enough"


def test_two_processes_do_not_evict_at_once(store: Store, tmp_path: Path) -> None:
    cache = FileCache(tmp_path / "cache", max_bytes=1000)
    paths = old_files(store, cache, 10)
    with cache_module._alone(cache.folder) as alone:
        assert alone
        cache.fetch(store, "last", **put(store, "last", b"z" * 100))
        assert all(path.exists() for path in paths), "the other one is at it"
    cache.fetch(store, "more", **put(store, "more", b"y" * 100))
    assert [path.exists() for path in paths[:4]] == [False, False, True, True]


def test_a_cache_without_a_limit_takes_a_quarter_of_what_is_free(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = FileCache(tmp_path / "cache")
    paths = old_files(store, cache, 10)
    monkeypatch.setattr(room_module, "free_bytes", lambda folder: 1400)  # (1000 + 1400) / 4 = 600 in all
    cache.fetch(store, "last", **put(store, "last", b"z" * 100))
    assert [path.exists() for path in paths] == [False] * 5 + [True] * 5
    monkeypatch.undo()
    assert room_module.default_bytes(tmp_path, held=0, most=10**18) <= os.statvfs(tmp_path).f_bavail * 4096 // 4


def test_a_folder_in_memory_has_no_more_room_than_its_control_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts, cgroups, root = tmp_path / "mounts", tmp_path / "cgroup", tmp_path / "groups"
    disk = room_module.free_bytes(tmp_path)
    cgroups.write_text("0::/pod/box\n")
    for group, most, now in (("", "max", 9), ("pod", 5000, 3000), ("pod/box", 4000, 1000)):
        (root / group).mkdir(parents=True, exist_ok=True)
        (root / group / "memory.max").write_text(f"{most}\n")
        (root / group / "memory.current").write_text(f"{now}\n")
    mounts.write_text(f"/dev/x / ext4 rw 0 0\ntmpfs {tmp_path} tmpfs rw 0 0\n")
    for name, value in (("_MOUNTS", mounts), ("_CGROUPS", cgroups), ("_CGROUP_ROOT", root)):
        monkeypatch.setattr(room_module, name, value)
    assert room_module.free_bytes(tmp_path) == 2000, "what the pod, one above, has left"
    mounts.write_text("/dev/x / ext4 rw 0 0\n")
    assert room_module.free_bytes(tmp_path) == pytest.approx(disk, rel=0.2), "a disk's pages are no memory"
    version_1 = root / "memory" / "box"
    version_1.mkdir(parents=True)
    (version_1 / "memory.limit_in_bytes").write_text("700\n")
    (version_1 / "memory.usage_in_bytes").write_text("100\n")
    cgroups.write_text("4:cpu:/box\n5:memory:/box\n")
    mounts.write_text(f"/dev/x / ext4 rw 0 0\ntmpfs {tmp_path} tmpfs rw 0 0\n")
    assert room_module.free_bytes(tmp_path) == 600


@pytest.mark.parametrize(("given", "variable", "expected"), [
    (None, None, None), (None, "1.5", 3 << 29), (2, "1.5", 2 << 30), (0, None, 0), (None, "", None),
])  # fmt: skip
def test_a_limit_is_given_in_gib(
    given: float | None, variable: str | None, expected: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if variable is not None:
        monkeypatch.setenv("SOME_CACHE_GIB", variable)
    assert room_module.asked_bytes(given, "SOME_CACHE_GIB") == expected


@pytest.mark.parametrize("wrong", ["many", "-1", "nan", "inf", "20GiB"])
def test_a_limit_that_is_none_is_named(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_CACHE_GIB", wrong)
    with pytest.raises(ConfigError, match=f"SOME_CACHE_GIB is '{wrong}'"):
        room_module.asked_bytes(None, "SOME_CACHE_GIB")
    with pytest.raises(ConfigError, match="cache_gib is True"):
        room_module.asked_bytes(True, "SOME_CACHE_GIB")


def test_the_readers_and_trainings_folders_never_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a home both lie below the temporary folder, where trainings delete what is old of theirs."""
    monkeypatch.setattr(cache_module.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    reader = default_folder()
    os.utime(reader, (0, 0))
    training = cache_folder("0123456789ab")
    assert reader.exists(), "an old folder, but not of a training"
    assert reader not in (training, *training.parents)
    assert training not in reader.parents


def test_a_file_found_here_counts_as_used(store: Store, tmp_path: Path) -> None:
    cache = FileCache(tmp_path / "cache")
    entry = put(store, "a", b"hello")
    path = cache.fetch(store, "a", **entry)
    os.utime(path, (0, 0))
    cache.fetch(store, "a", **entry)
    assert time.time() - path.stat().st_mtime < 60


@pytest.mark.slow
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
    assert folder.parent.parent == tmp_path
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700, "nobody else may put files there"


def test_a_folder_that_cannot_be_made_names_the_remedy(store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cache_dir"):
        FileCache(tmp_path / "file").fetch(store, "a", **put(store, "a", b"x"))
