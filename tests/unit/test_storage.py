"""Retries, URLs and the reading of files by URI."""

from __future__ import annotations

import pickle
import random
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.errors import ConfigError, InputError, NotFound, Unavailable
from pipeline.storage import (
    Entry,
    Files,
    LocalStore,
    MemoryStore,
    Retry,
    S3Store,
    StorageOptions,
    check_shows_writes,
    check_write_once,
    open_store,
    split_uri,
)
from pipeline.storage.memory import SPACES
from pipeline.storage.retry import retrying, temporary_status


class Watch:
    """A clock that only sleeping (and `busy`) moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def clock(self) -> float:
        return self.now


class Flaky:
    """Fails so many times, taking so many seconds for each try."""

    def __init__(self, failures: int, watch: Watch, busy_s: float = 0.0, error: Exception | None = None) -> None:
        self.failures = failures
        self.watch = watch
        self.busy_s = busy_s
        self.error = error or Unavailable("s3://b/k: HTTP 503")
        self.tries = 0

    def __call__(self) -> str:
        self.tries += 1
        self.watch.now += self.busy_s
        if self.tries <= self.failures:
            raise self.error
        return "answer"


class TestRetry:
    """Capped exponential back-off with full jitter."""

    def test_waits_grow_to_the_cap(self) -> None:
        watch = Watch()
        action = Flaky(7, watch)
        policy = Retry(attempts=8, first_s=0.2, cap_s=5.0, total_s=60.0)
        answer = retrying(action, policy, sleep=watch.sleep, clock=watch.clock, uniform=lambda _, high: high)
        assert answer == "answer"
        assert watch.slept == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0])

    def test_jitter_is_full(self) -> None:
        drawn: list[tuple[float, float]] = []
        generator = random.Random(3)

        def uniform(low: float, high: float) -> float:
            drawn.append((low, high))
            return generator.uniform(low, high)

        watch = Watch()
        retrying(Flaky(3, watch), Retry(), sleep=watch.sleep, clock=watch.clock, uniform=uniform)
        assert drawn == [(0.0, 0.2), (0.0, 0.4), (0.0, 0.8)]
        assert all(low < high for low, high in pairwise(sorted(watch.slept)))

    def test_the_number_of_tries_is_bounded(self) -> None:
        watch = Watch()
        action = Flaky(99, watch)
        with pytest.raises(Unavailable, match=r"HTTP 503; 3 tries in .* run the same command again") as caught:
            retrying(action, Retry(attempts=3), sleep=watch.sleep, clock=watch.clock)
        assert action.tries == 3
        assert isinstance(caught.value.__cause__, Unavailable)

    def test_the_time_is_bounded(self) -> None:
        watch = Watch()
        action = Flaky(10_000, watch, busy_s=7.0)
        with pytest.raises(Unavailable):
            retrying(
                action, Retry(attempts=1000, total_s=60.0), sleep=watch.sleep, clock=watch.clock,
                uniform=lambda _, high: high,
            )  # fmt: skip
        assert watch.now <= 67.0
        assert action.tries >= 5

    @pytest.mark.parametrize("error", [NotFound("x"), ConfigError("x"), ValueError("x"), OSError("x")])
    def test_other_errors_pass_at_once(self, error: Exception) -> None:
        watch = Watch()
        action = Flaky(1, watch, error=error)
        with pytest.raises(type(error)):
            retrying(action, Retry(), sleep=watch.sleep, clock=watch.clock)
        assert action.tries == 1

    def test_the_seeded_generator_is_left_alone(self) -> None:
        watch = Watch()
        random.seed(5)
        expected = random.Random(5).random()
        retrying(Flaky(3, watch), Retry(), sleep=watch.sleep, clock=watch.clock)
        assert random.random() == expected

    def test_what_is_temporary(self) -> None:
        temporary = {status for status in range(100, 600) if temporary_status(status)}
        assert temporary == {408, 425, 429, *range(500, 600)} - {501, 505}

    def test_a_policy_is_checked(self) -> None:
        with pytest.raises(ValidationError):
            Retry(attempts=0)


class TestUrls:
    """From URLs to stores and names."""

    @pytest.mark.parametrize(
        ("uri", "expected"),
        [
            ("s3://b/k", ("s3://b", "k")),
            ("s3://b/a//c d+%20.jpg", ("s3://b", "a//c d+%20.jpg")),
            ("s3://b/k?versionId=1", ("s3://b", "k?versionId=1")),
            ("memory://m/a/b", ("memory://m", "a/b")),
            ("/a/b/c.jpg", ("/a/b", "c.jpg")),
            ("/c.jpg", ("/", "c.jpg")),
            ("photos/c.jpg", ("photos", "c.jpg")),
            ("c.jpg", (".", "c.jpg")),
            ("a:b/c.jpg", ("a:b", "c.jpg")),
            ("file:///a/b/c%20d.jpg", ("file:///a/b", "c%20d.jpg")),
            ("file:///c.jpg", ("file:///", "c.jpg")),
            ("file:/a/c.jpg", ("file:/a", "c.jpg")),
        ],
    )
    def test_split_uri(self, uri: str, expected: tuple[str, str]) -> None:
        assert split_uri(uri) == expected

    @pytest.mark.parametrize(
        "uri", ["", "s3://", "s3://b", "s3://b/", "s3:///k", "/", "/a/", "gs://b/k", "https://x/y", "memory://m"]
    )
    def test_what_names_no_file(self, uri: str) -> None:
        with pytest.raises(ConfigError):
            split_uri(uri)

    def test_every_part_of_a_split_uri_is_read_back(self, tmp_path: Path) -> None:
        (tmp_path / "a b%20c.jpg").write_bytes(b"1")
        for uri in (str(tmp_path / "a b%20c.jpg"), (tmp_path / "a b%20c.jpg").as_uri()):
            assert Files().read(uri) == b"1"
            with Files().open(uri) as handle:
                assert handle.read() == b"1"
            assert Files().stat(uri).size == 1

    def test_open_store(self, tmp_path: Path) -> None:
        kinds = {str(tmp_path): LocalStore, tmp_path.as_uri(): LocalStore, "s3://b/p": S3Store}
        for url, kind in {**kinds, "memory://m": MemoryStore}.items():
            assert type(open_store(url)) is kind
        assert open_store("s3://b/p/").url == "s3://b/p"
        assert open_store("relative").url == str(Path.cwd() / "relative")
        for url in ("gs://b/x", "https://x/y", "", "memory://", "s3://"):
            with pytest.raises(ConfigError):
                open_store(url)

    def test_options_are_closed(self) -> None:
        with pytest.raises(ValidationError):
            StorageOptions(secret="x")  # type: ignore[call-arg]
        assert StorageOptions(endpoint="http://x") == StorageOptions(endpoint="http://x")


@pytest.fixture
def space() -> Iterator[str]:
    name = uuid.uuid4().hex
    yield f"memory://{name}"
    SPACES.pop(name, None)


class TestFiles:
    """One door to photos and tables wherever they are."""

    def test_reads_by_uri_from_several_stores(self, tmp_path: Path, space: str) -> None:
        open_store(space).put("a/b c.jpg", b"in memory")
        (tmp_path / "d.jpg").write_bytes(b"on disk")
        files = pickle.loads(pickle.dumps(Files()))
        assert files.read(f"{space}/a/b c.jpg") == b"in memory"
        assert files.read(str(tmp_path / "d.jpg")) == b"on disk"
        assert files.stat(f"{space}/a/b c.jpg").name == "a/b c.jpg"
        with files.open(f"{space}/a/b c.jpg") as handle:
            handle.seek(3)
            assert handle.read() == b"memory"
        for uri in (f"{space}/no", str(tmp_path / "no")):
            with pytest.raises(NotFound, match="is not there"):
                files.read(uri)
            with pytest.raises(NotFound):
                files.open(uri)

    def test_one_store_for_a_root(self, space: str) -> None:
        open_store(space).put("a", b"1")
        files = Files()
        with ThreadPoolExecutor(16) as threads:
            assert list(threads.map(files.read, [f"{space}/a"] * 200)) == [b"1"] * 200
        assert len(files._stores) == 1

    def test_lists_a_folder_and_not_its_neighbours(self, tmp_path: Path, space: str) -> None:
        for name in ("photos/b.jpg", "photos/a b%/1.jpg", "photos-old/x.jpg", "photos.csv"):
            open_store(space).put(name, b"1")
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(b"1")
        for root in (space, str(tmp_path), tmp_path.as_uri()):
            for folder in (f"{root}/photos", f"{root}/photos/"):
                found = list(Files().list(folder))
                assert [Files().read(uri) for uri, _ in found] == [b"1", b"1"]
                assert [uri.rpartition("/")[2] for uri, _ in found] == ["1.jpg", "b.jpg"]
                for uri, entry in found:
                    assert uri.startswith(f"{root}/photos/")
                    assert Files().stat(uri).token == entry.token
        assert len(list(Files().list(space))) == 4

    def test_a_folder_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(NotFound, match="is not a folder"):
            list(Files().list(str(tmp_path / "no")))

    def test_https_is_closed_by_default(self) -> None:
        for call in (Files().read, Files().open, Files().stat):
            with pytest.raises(ConfigError, match=r"under none of the allowed prefixes \(none are set\)"):
                call("https://shop.example/a.jpg")
        with pytest.raises(ConfigError, match="cannot be listed"):
            list(Files().list("https://shop.example/a/"))

    def test_a_name_that_leads_elsewhere(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="lead out of the store"):
            Files().read(f"{tmp_path}/..")
        with pytest.raises(InputError, match="lead out of the store"):
            Files().read("s3://b/a/../c")

    @pytest.mark.s3
    @pytest.mark.slow
    def test_sixteen_threads_read_photos_from_s3(self, s3_server: Any) -> None:
        url = s3_server.make_bucket(f"photos-{uuid.uuid4().hex[:8]}")
        store = open_store(url)
        contents = {f"{url}/p/photo {number}.jpg": bytes([number]) * 1000 for number in range(64)}
        for uri, data in contents.items():
            store.put(split_uri(uri)[1], data)
        files = pickle.loads(pickle.dumps(Files()))
        s3_server.reset_counts()
        with ThreadPoolExecutor(16) as threads:
            assert list(threads.map(files.read, contents)) == list(contents.values())
        assert len(s3_server.count_gets()) == len(contents)
        assert [uri for uri, _ in files.list(f"{url}/p")] == sorted(contents)
        with pytest.raises(NotFound, match="no bucket 'no-such-photos'"):
            list(files.list("s3://no-such-photos/p"))


def test_a_store_that_overwrites_is_found_out(space: str) -> None:
    class Careless(MemoryStore):
        def put_if_absent(self, name: str, data: bytes | memoryview) -> bool:
            self.put(name, data)
            return True

    check_write_once(MemoryStore(space), "runs/probe")
    with pytest.raises(ConfigError, match="overwrites names that exist"):
        check_write_once(Careless(space), "runs/probe")
    assert not MemoryStore(space).exists("runs/probe")


def test_a_store_that_does_not_show_what_it_holds_is_found_out(space: str) -> None:
    class Forgetful(MemoryStore):
        def list(self, prefix: str = "", *, after: str = "") -> Iterator[Entry]:
            return iter(())

    class Stale(MemoryStore):
        def get(self, name: str, *, start: int | None = None, end: int | None = None) -> bytes:
            return b"first"

    class Undying(MemoryStore):
        def exists(self, name: str) -> bool:
            return True

    check_shows_writes(MemoryStore(space), "runs/probe/")
    for wrong, problem in ((Forgetful, "listing does not"), (Stale, "does not return"), (Undying, "what was deleted")):
        with pytest.raises(ConfigError, match=problem):
            check_shows_writes(wrong(space), "runs/probe/")
        assert list(MemoryStore(space).list("runs/")) == []
