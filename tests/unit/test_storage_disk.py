"""What is special about a store on a disk: folders, links, and the failures of disks and network mounts."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import ConfigError, Forbidden, InputError, NotFound, Unavailable
from pipeline.storage import LocalStore, Retry, open_store
from pipeline.storage.local import ASIDE

QUICK = Retry(attempts=4, first_s=0.01, cap_s=0.02, total_s=10)


class TestNames:
    """What only a disk does."""

    def test_a_name_cannot_be_a_folder_too(self, tmp_path: Path) -> None:
        store = LocalStore(str(tmp_path))
        store.put("d/x", b"1")
        store.put("f", b"1")
        for write in (store.put, store.put_if_absent):
            for name in ("d", "f/y"):
                with pytest.raises(InputError, match="cannot be a file and a folder at once"):
                    write(name, b"2")
        with pytest.raises(NotFound):
            store.get("d")
        with pytest.raises(NotFound):
            store.stat("d")
        with pytest.raises(NotFound):
            store.get("f/y")
        with pytest.raises(InputError, match="empty part"):
            store.put("a//b", b"2")
        store.delete("d")  # a folder is no name: nothing to delete
        assert [entry.name for entry in store.list()] == ["d/x", "f"]

    def test_what_is_on_its_way_is_never_shown(self, tmp_path: Path) -> None:
        store = LocalStore(str(tmp_path))
        store.put("a", b"1")
        assert list((tmp_path / ASIDE).iterdir()) == []
        (tmp_path / ASIDE / "left over by a killed process").write_bytes(b"half")
        assert [entry.name for entry in store.list()] == ["a"]
        assert [entry.name for entry in store.list(".")] == []
        with pytest.raises(InputError, match="on their way"):
            store.get(f"{ASIDE}/x")

    def test_links_to_folders_end_and_dangling_ones_are_nothing(self, tmp_path: Path) -> None:
        (tmp_path / "real").mkdir()
        (tmp_path / "real" / "a.jpg").write_bytes(b"1")
        (tmp_path / "link").symlink_to(tmp_path / "real")
        (tmp_path / "real" / "loop").symlink_to(tmp_path)
        (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
        (tmp_path / "self").symlink_to(tmp_path / "self")
        names = [entry.name for entry in LocalStore(str(tmp_path)).list()]
        assert names == ["link/a.jpg", "real/a.jpg"]

    def test_file_urls_and_paths_are_one_store(self, tmp_path: Path) -> None:
        root = tmp_path / "a b%20c"
        LocalStore(str(root)).put("x", b"1")
        assert open_store(root.as_uri()).get("x") == b"1"
        assert open_store(f"file://localhost{root.as_uri().removeprefix('file://')}").get("x") == b"1"
        with pytest.raises(ConfigError, match="this machine"):
            open_store("file://elsewhere/x")


class TestFailures:
    """What a disk or a network mount may answer."""

    def test_a_link_that_was_made_and_told_as_failed_is_a_win(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = os.link
        for number, error in enumerate((errno.EEXIST, errno.EIO, errno.ETIMEDOUT, errno.EPERM)):

            def lost(source: Any, target: Any, error: int = error, **rest: Any) -> None:
                real(source, target, **rest)
                raise OSError(error, os.strerror(error))

            monkeypatch.setattr(os, "link", lost)
            store = LocalStore(str(tmp_path), retry=QUICK)
            assert store.put_if_absent(f"a{number}", b"mine") is True
            monkeypatch.setattr(os, "link", real)
            assert store.get(f"a{number}") == b"mine"
            assert store.put_if_absent(f"a{number}", b"mine") is False

    def test_a_failing_link_is_tried_again_and_a_loss_stays_one(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real, store, failures = os.link, LocalStore(str(tmp_path), retry=QUICK), [errno.ESTALE, errno.EIO]

        def flaky(source: Any, target: Any, **rest: Any) -> None:
            if failures:
                raise OSError(failures.pop(), "injected")
            Path(target).write_bytes(b"theirs")  # another writer, between the tries
            real(source, target, **rest)

        monkeypatch.setattr(os, "link", flaky)
        assert store.put_if_absent("a", b"mine") is False
        assert store.get("a") == b"theirs"

    def test_a_file_system_without_links_is_named_with_the_remedy(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: Any, **__: Any) -> None:
            raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

        monkeypatch.setattr(os, "link", refuse)
        with pytest.raises(ConfigError, match="file system with hard links"):
            LocalStore(str(tmp_path)).put_if_absent("a", b"mine")
        assert [*(tmp_path / ASIDE).iterdir()] == []

    @pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
    def test_a_full_or_failing_disk_is_unavailable(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int
    ) -> None:
        def fail(_: int) -> None:
            raise OSError(error, os.strerror(error))

        store = LocalStore(str(tmp_path), retry=QUICK)
        store.put("runs/a", b"before")
        monkeypatch.setattr(os, "fsync", fail)
        for write in (store.put, store.put_if_absent):
            with pytest.raises(Unavailable, match=f"errno {error}.*4 tries"):
                write("runs/b", b"after")
        assert [entry.name for entry in store.list()] == ["runs/a"]
        assert [*(tmp_path / ASIDE).iterdir()] == []

    @pytest.mark.parametrize("call", ["stat", "delete", "list", "open", "exists", "put_if_absent"])
    def test_a_moments_failure_of_a_mount_is_borne_by_every_call(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
    ) -> None:
        store = LocalStore(str(tmp_path), retry=QUICK)
        store.put("d/a", b"1")
        failing = {"stat": 1, "unlink": 1, "open": 1, "scandir": 1}

        def flaky(name: str, real: Any) -> Any:
            def now(*given: Any, **options: Any) -> Any:
                if str(given[0]).startswith(str(tmp_path / "d")) and failing[name]:
                    failing[name] -= 1
                    raise OSError(errno.ESTALE, "injected")
                return real(*given, **options)

            return now

        for name in ("stat", "unlink", "open"):
            monkeypatch.setattr(Path, name, flaky(name, getattr(Path, name)))
        monkeypatch.setattr(os, "scandir", flaky("scandir", os.scandir))
        if call == "list":
            assert [entry.name for entry in store.list()] == ["d/a"]
        elif call == "open":
            with store.open("d/a") as handle:
                assert handle.read() == b"1"
        elif call == "put_if_absent":
            assert store.put_if_absent("d/a", b"2") is False
        else:
            getattr(store, call)("d/a")
        assert 0 in failing.values()
        monkeypatch.undo()
        assert (tmp_path / "d" / "a").is_file() is (call != "delete")

    def test_each_write_is_made_durable(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        synced: list[str] = []
        real = os.fsync

        def note(handle: int) -> None:
            synced.append(str(Path(f"/proc/self/fd/{handle}").readlink()))
            real(handle)

        if not Path("/proc/self/fd").is_dir():
            pytest.skip("needs /proc to see what is synced")
        monkeypatch.setattr(os, "fsync", note)
        store = LocalStore(str(tmp_path))
        assert store.put_if_absent("new/folder/a", b"1") is True
        assert {str(tmp_path), str(tmp_path / "new"), str(tmp_path / "new/folder")} <= set(synced)
        assert any(f"/{ASIDE}/" in path for path in synced)

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
    def test_what_may_not_be_read_is_forbidden(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(b"1")
        (tmp_path / "a").chmod(0)
        with pytest.raises(Forbidden, match="check the owner"):
            LocalStore(str(tmp_path)).get("a")

    def test_a_refused_open_is_forbidden(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: Any, **__: Any) -> None:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

        (tmp_path / "a").write_bytes(b"1")
        monkeypatch.setattr(Path, "open", refuse)
        monkeypatch.setattr("pipeline.storage.local._without_waiting", refuse)
        for call in (LocalStore(str(tmp_path)).get, LocalStore(str(tmp_path)).open):
            with pytest.raises(Forbidden, match=str(tmp_path / "a")):
                call("a")
