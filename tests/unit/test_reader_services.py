"""The reader inside services: forks, pickles, keys as callers have them, memory that does not grow."""

from __future__ import annotations

import copy
import enum
import json
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.errors import ConfigError, IntegrityError, UnknownItem
from pipeline.index import items as items_module
from pipeline.index.items import ItemTable, stored_item_id
from pipeline.reader import Release, open_release
from pipeline.release import read_manifest, read_table
from pipeline.storage import StorageOptions, Store, open_store

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


# --- forks


@pytest.mark.slow
def test_forked_children_answer_as_their_parent_and_none_hangs(maker: Any, store: Store) -> None:
    maker.make_release(store, maker.some_photos(200))
    environment = {**os.environ, "OMP_NUM_THREADS": "4", "PYTHONPATH": str(ROOT)}
    code = [sys.executable, str(ROOT / "tests" / "forked_reader.py"), store.url]
    done = subprocess.run(code, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "plain": {"right": 3},
        "grandchild": {"right": 1},
        "thread": {"right": 1},
        "busy": {"right": 12},
        "held": {"right": 1},
        "pool": {"right": 6},
        "futures": {"right": 6},
        "as_before": {"hung": 1},  # negative control
    }


APPLICATION = """
import json, os
from pipeline.reader import open_release
release = open_release(os.environ["STORE"])
release.search([[1.0] * 6] * 40)  # a warm-up before the fork, as services do: the parent now has FAISS threads
def application(environ, start_response):
    item_id = environ["PATH_INFO"].strip("/")
    near = [found.item_id for found in release.similar(item_id, k=5)]
    many = [[found.item_id for found in answer] for answer in release.search([[1.0] * 6] * 40, k=2)]
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps([os.getpid(), near, many[0]]).encode()]
"""


def served(folder: Path, url: str, *, queries: int, workers: int = 4, threads: int = 8) -> tuple[set[int], list[Any]]:
    """Ask a release under gunicorn, loaded before it forks; return the workers' process ids and the wrong answers."""
    (folder / "service.py").write_text(APPLICATION)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "4", "PYTHONPATH": f"{ROOT}:{folder}", "STORE": url}
    command = [
        sys.executable, "-m", "gunicorn", "service:application", "--preload", "--workers", str(workers),
        "--bind", f"127.0.0.1:{port}", "--timeout", "60", "--log-level", "warning", "--no-control-socket",
    ]  # fmt: skip
    server = subprocess.Popen(command, env=environment, cwd=folder, stderr=subprocess.PIPE, text=True)
    release = open_release(url)
    ids = release.item_ids()
    expected = {item_id: [near.item_id for near in release.similar(item_id, k=5)] for item_id in ids}
    pids: set[int] = set()
    wrong: list[Any] = []

    def ask(first: int) -> None:
        for number in range(first, queries, threads):
            item_id = ids[number % len(ids)]
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/{item_id}", timeout=90) as answer:
                    pid, near, _ = json.load(answer)
            except OSError as error:
                wrong.append(f"{item_id}: {error}")
                return
            pids.add(pid)
            if near != expected[item_id]:
                wrong.append((item_id, near))

    try:
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        askers = [threading.Thread(target=ask, args=(number,)) for number in range(threads)]
        for asker in askers:
            asker.start()
        for asker in askers:
            asker.join()
    finally:
        server.terminate()
        _, errors = server.communicate(timeout=60)
    assert "TIMEOUT" not in errors, errors
    return pids, wrong


@pytest.mark.slow
def test_a_pre_fork_server_answers_from_its_children(maker: Any, store: Store, tmp_path: Path) -> None:
    maker.make_release(store, maker.some_photos(100))
    pids, wrong = served(tmp_path, store.url, queries=int(os.environ.get("SERVICE_QUERIES", "200")))
    assert wrong == []
    assert len(pids) > 1


# --- pickles and copies


def test_a_pickle_is_what_it_was_opened_with_and_opens_at_the_first_question(
    maker: Any, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "never-in-a-pickle")
    first = maker.make_release(store, maker.some_photos(20), run="n1")
    release = open_release(store.url, expect_model=maker.MODEL, cache_gib=3, options=StorageOptions(region="eu-1"))
    data = pickle.dumps(release)
    assert len(data) < 2_000
    assert b"never-in-a-pickle" not in data
    second = maker.make_release(store, maker.some_photos(25), run="n2")
    lazy = pickle.loads(data)
    assert lazy._opened is None
    assert lazy.similar("sku-001") == release.similar("sku-001")
    assert lazy.release_id == first.release_id, "the release that it was on, whatever was published since"
    assert lazy.refresh()
    assert (lazy.release_id, len(lazy)) == (second.release_id, 25)
    assert lazy._cache.max_bytes == 3 << 30
    unopened = pickle.loads(data)
    assert unopened.refresh(), "the first release need not be opened, nor be there"
    assert unopened.release_id == second.release_id
    pinned = pickle.loads(pickle.dumps(open_release(store.url, release_id=first.release_id)))
    assert not pinned.refresh()
    assert pinned.release_id == first.release_id
    maker.make_release(store, maker.some_photos(25), run="n3", model_id="cd" * 32)
    with pytest.raises(IntegrityError, match="expected"):
        pickle.loads(data).refresh()


def test_another_machines_pickle_takes_its_own_default_cache(
    maker: Any, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    maker.make_release(store, maker.some_photos(5))
    data = pickle.dumps(open_release(store.url))
    given = pickle.dumps(open_release(store.url, cache_dir=tmp_path / "given"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    assert pickle.loads(data)._cache.folder == tmp_path / "elsewhere" / "visual-codebooks"
    assert pickle.loads(given)._cache.folder == tmp_path / "given"


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_a_copy_shares_what_is_open_and_moves_alone(maker: Any, store: Store, copied: Any) -> None:
    first = maker.make_release(store, maker.some_photos(10), run="n1")
    release = open_release(store.url)
    other = copied(release)
    assert other._opened is release._opened
    maker.make_release(store, maker.some_photos(12), run="n2")
    assert other.refresh()
    assert release.release_id == first.release_id


# --- keys


class Colour(str, enum.Enum):  # noqa: UP042 - its str() is `Colour.RED`, its value the text
    RED = "sku-red"


UUID = uuid.UUID("12345678-1234-5678-1234-567812345678")
KEYS: list[tuple[Any, str]] = [
    (7, "7"), (-3, "-3"), (np.int64(7), "7"), (np.uint8(7), "7"), (Decimal(7), "7"), (pa.scalar(7), "7"),
    (pa.scalar("x"), "x"), (pa.scalar("x").cast(pa.dictionary(pa.int8(), pa.string())), "x"), (np.str_("x"), "x"),
    (UUID, str(UUID)), (Colour.RED, "sku-red"), ("007", "007"),
]  # fmt: skip
NO_KEYS = [
    None, float("nan"), 7.0, np.float64(7), True, np.bool_(True), b"7", [7], {"a": 1}, object(), Decimal("7.5"),
    np.array([7, 8]), pa.scalar(None, pa.int64()),
]  # fmt: skip


@pytest.mark.parametrize(("given", "stored"), KEYS, ids=[repr(given) for given, _ in KEYS])
def test_a_key_becomes_the_text_that_is_stored(given: Any, stored: str) -> None:
    found = stored_item_id(given)
    assert (found, type(found)) == (stored, str)


@pytest.fixture
def numbered(maker: Any, store: Store) -> Release:
    names = ["7", "8", "x", "sku-red", str(UUID)]
    maker.make_release(
        store, [maker.Photo(name, f"u/{n}", 0, np.eye(6)[n].astype("f4")) for n, name in enumerate(names)]
    )
    return open_release(store.url)


def test_keys_may_be_numbers_wherever_one_goes_in(numbered: Release) -> None:
    for given, stored in ((7, "7"), (np.int32(7), "7"), (UUID, str(UUID))):
        assert given in numbered
        assert numbered.attributes(given) == numbered.attributes(stored)
        assert numbered.similar(given) == numbered.similar(stored)
        assert numbered.similar_to_many([given, "x"]) == numbered.similar_to_many([stored, "x"])
        assert numbered.latents([given])["item_id"].to_pylist() == [stored]
    assert numbered.similar_to_many(np.array([7, 8])) == numbered.similar_to_many(["7", "8"])
    assert numbered.latents(number for number in (8, 7))["item_id"].to_pylist() == ["8", "7"]
    assert 9 not in numbered
    for absent in (9, "\ud800", "7\0"):
        with pytest.raises(UnknownItem, match="never seen"):
            numbered.similar(absent)


@pytest.mark.parametrize("wrong", NO_KEYS, ids=[f"{type(key).__name__}-{n}" for n, key in enumerate(NO_KEYS)])
def test_what_is_no_key_is_named_wherever_one_goes_in(numbered: Release, wrong: Any) -> None:
    for ask in (
        lambda: numbered.similar(wrong),
        lambda: numbered.attributes(wrong),
        lambda: wrong in numbered,
        lambda: numbered.latents(["7", wrong]),
        lambda: numbered.similar_to_many(["7", wrong]),
    ):
        with pytest.raises(ConfigError, match="is no key"):
            ask()


@pytest.mark.parametrize("wrong", ["7", b"7", 7, None, {"7": 1}])
def test_one_key_is_no_list_of_keys(numbered: Release, wrong: Any) -> None:
    for ask in (numbered.latents, numbered.similar_to_many):
        with pytest.raises(ConfigError, match="list of item_ids"):
            ask(wrong)


@pytest.mark.parametrize(
    "value", ["\ud800", object(), np.array([1, 2]), b"\xff"], ids=["surrogate", "object", "array", "bytes"]
)
def test_a_where_value_that_no_column_holds_is_named(maker: Any, store: Store, value: Any) -> None:
    maker.make_release(store, maker.some_photos(4))
    for name in ("category", "stock"):
        with pytest.raises(ConfigError, match=f"where: attribute '{name}'"):
            open_release(store.url).similar("sku-000", where={name: value})


# --- memory


@pytest.mark.slow
def test_filters_are_kept_up_to_a_number_of_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = 80_000
    table = ItemTable(pa.table({"item_id": [f"{n:06d}" for n in range(rows)], "price": list(range(rows))}))
    one = table.filter({"price": {"min": 0}})
    assert one.nbytes == rows / 8, "many rows: a bit each"
    few = table.filter({"price": {"min": rows - 1000}})
    assert (len(few), few.nbytes) == (1000, 8000), "few rows: a number each"
    monkeypatch.setattr(items_module, "FILTER_BYTES", 60_000)
    for number in range(200):
        table.filter({"price": {"min": number}})
    assert sum(kept.nbytes for kept in table._filters.values()) <= 60_000
    assert len(table._filters) == 5
    assert table.filter({"price": {"min": 199}}) is next(reversed(table._filters.values())), "the newest is kept"
    long = {"price": list(range(rows))}
    assert len(table.filter(long)) == rows
    assert max(map(len, table._filters)) == 64, "a condition of any length has a short key"


_POOLS = []  # never destroyed: memory that came out of one may live on


def peak(ask: Callable[[], Any]) -> int:
    """The most memory that Arrow takes for a question, in bytes."""
    before = pa.default_memory_pool()
    counting = pa.proxy_memory_pool(before)
    _POOLS.append(counting)
    pa.set_memory_pool(counting)
    try:
        ask()
        return int(counting.max_memory())
    finally:
        pa.set_memory_pool(before)


@pytest.mark.slow
def test_was_it_ever_seen_does_not_read_history_into_memory(maker: Any, store: Store) -> None:
    photos = maker.some_photos(5)
    many = [f"gone-{number:07d}" for number in range(500_000)]
    first = maker.make_release(store, photos, run="n1", removed=many)
    maker.make_release(store, photos, run="n2", parent=first.release_id, removed=many[::2])
    release = open_release(store.url)

    def ask(item_id: str, text: str) -> None:
        with pytest.raises(UnknownItem, match=text):
            release.similar(item_id)

    whole = peak(lambda: read_table(store, read_manifest(store, first.release_id), "changes"))
    assert whole > 20_000_000, "negative control: the table as a whole"
    assert peak(lambda: ask("nobody", "never seen")) < 100_000, "no row group can hold it: none is read"
    assert peak(lambda: ask(many[0], "n2-0123456789ab removed")) < 10_000_000, "a row group of it"
    assert peak(lambda: ask(many[-1], "n1-0123456789ab removed")) < 10_000_000, "a row group of it"
