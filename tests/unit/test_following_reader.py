"""The reader beyond single questions: thresholds, followed channels, recall seen, downloads, the awaited form."""

from __future__ import annotations

import asyncio
import copy
import math
import os
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.async_reader import AsyncRelease, open_release_async
from pipeline.errors import ConfigError, IntegrityError, Unavailable, UnknownItem
from pipeline.index import IndexConfig, build_index
from pipeline.index.segmented import SegmentedIndex
from pipeline.index.thresholds import QUANTILES, least_score, pair_quantiles
from pipeline.reader import open_release
from pipeline.release import read_manifest
from pipeline.storage import Store, open_store
from pipeline.storage.local import LocalStore


@pytest.fixture(autouse=True)
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


def measured(maker: Any, store: Store, metric: str = "l2", run: str = "night", seed: int = 0) -> Any:
    """Publish a release whose manifest has the scores of random pairs, as a refresh writes it."""
    photos = maker.some_photos(30, seed=seed)
    column = pa.chunked_array([[photo.item_id for photo in sorted(photos, key=lambda p: (p.item_id, p.view))]])

    def with_pairs(fields: dict[str, Any]) -> dict[str, Any]:
        index = fields["files"]["index"]
        from pipeline.index.search import open_index

        opened = open_index(index[0], fields["metric"], parameters=fields["index_parameters"])
        return {**fields, "index_parameters": {**fields["index_parameters"], **pair_quantiles(opened, column)}}

    return maker.make_release(store, photos, run=run, index=IndexConfig(metric=metric), change=with_pairs)


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_quantiles_are_those_of_all_pairs_of_items(maker: Any, store: Store, metric: str) -> None:
    made = measured(maker, store, metric)
    ids = sorted({photo.item_id for photo in made.photos})
    scores = sorted(
        float(maker.pair_scores(metric, made.means(one), made.means(other)).max())
        for at, one in enumerate(ids)
        for other in ids[at + 1 :]
    )
    assert len(scores) == 435
    parameters = read_manifest(store, made.release_id).index_parameters
    for quantile in QUANTILES:  # the oracle: the smallest score that so large a share of all pairs does not exceed
        expected = next(s for s in scores if sum(o <= s for o in scores) / len(scores) >= quantile - 1e-9)
        assert parameters[f"pair_score_q{quantile:g}"] == pytest.approx(expected, abs=1e-6)


def test_thresholds_cut_answers_and_carry_over_by_quantile(maker: Any, store: Store) -> None:
    made = measured(maker, store)
    release = open_release(store.url)
    whole = release.similar("sku-003", 29)
    assert release.similar("sku-003", 29, min_score=whole[4].score) == whole[:5]
    assert release.similar("sku-003", 29, min_score=0.5) == []
    at = {q: float(read_manifest(store, made.release_id).index_parameters[f"pair_score_q{q:g}"]) for q in QUANTILES}
    near = release.similar("sku-003", 29, min_quantile=0.5)
    assert near == [each for each in whole if each.score >= at[0.5]]
    assert 0 < len(near) < len(whole)
    between = math.sqrt(0.1 * 0.01)  # half-way on the logarithm of the share above
    assert least_score({f"pair_score_q{q:g}": s for q, s in at.items()}, "r", None, 1 - between) == pytest.approx(
        (at[0.9] + at[0.99]) / 2
    )
    vectors = made.means("sku-003")[:1]
    (found,) = release.search(vectors, 29, min_quantile=0.5, min_score=-1e9)
    assert found == [each for each in release.search(vectors, 29)[0] if each.score >= at[0.5]]
    for given, said in [
        ({"min_quantile": 0.3}, "from the quantile 0.5 to 0.9999"),
        ({"min_quantile": 1.0}, "from the quantile 0.5 to 0.9999"),
        ({"min_score": float("nan")}, "must be a finite number"),
        ({"min_score": "high"}, "'high'; it must be a finite number"),
    ]:
        with pytest.raises(ConfigError, match=said):
            release.similar("sku-003", **given)
    old = maker.make_release(store, maker.some_photos(5), run="old").release_id
    with pytest.raises(ConfigError, match=f"release {old} has no scores of random pairs in its manifest"):
        open_release(store.url).similar("sku-003", min_quantile=0.9)


def until(true: Callable[[], bool], seconds: float = 200.0) -> None:
    ends = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < ends, "it did not come about"
        time.sleep(0.005)


def test_a_followed_release_moves_by_itself_and_survives_what_fails(
    maker: Any, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    get = LocalStore.get

    def damaged(self: LocalStore, name: str, **limits: Any) -> bytes:
        data = get(self, name, **limits)
        return data[::-1] if "/three" in name and "/index-" in name else data

    first = maker.make_release(store, maker.some_photos(8), run="one").release_id
    release, swaps, errors = open_release(store.url), [], []
    with release.follow(
        0.02, on_swap=lambda moved: swaps.append(moved.release_id), on_error=errors.append
    ) as following:
        until(lambda: following.seen.looks >= 2)
        assert (release.release_id, following.seen.swaps) == (first, 0)
        second = maker.make_release(store, maker.some_photos(8, seed=1), run="two").release_id
        until(lambda: release.release_id == second)
        until(lambda: swaps == [second])
        # A release that is damaged is not taken, and the one before goes on answering.
        monkeypatch.setattr(LocalStore, "get", damaged)
        broken = maker.make_release(store, maker.some_photos(8, seed=2), run="three").release_id
        until(lambda: bool(errors))
        assert isinstance(errors[0], IntegrityError)
        assert read_manifest(store, broken).file("index").name in following.seen.problem
        assert release.release_id == second
        assert release.similar("sku-001", 3)
        monkeypatch.setattr(LocalStore, "get", get)
        until(lambda: release.release_id == broken)
    assert not [each for each in threading.enumerate() if each.name == "follow"]
    with pytest.raises(ConfigError, match="was opened by its id and never moves"):
        open_release(store.url, release_id=first).follow()
    with pytest.raises(ConfigError, match="every_s is 0"):
        release.follow(0)


def test_a_follower_ends_with_its_release_and_goes_on_in_a_child(maker: Any, store: Store) -> None:
    maker.make_release(store, maker.some_photos(8), run="one")
    release = open_release(store.url)
    following = release.follow(0.02)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        ends = time.monotonic() + 200
        while not (moved := release.release_id.startswith("two")) and time.monotonic() < ends:
            time.sleep(0.01)
        os.write(writing, b"1" if moved else b"0")
        os._exit(0)
    maker.make_release(store, maker.some_photos(8, seed=1), run="two")
    assert os.read(reading, 1) == b"1"
    os.waitpid(child, 0)
    del release
    until(lambda: not [each for each in threading.enumerate() if each.name == "follow"])
    following.stop()


def test_the_recall_of_drawn_questions_is_counted(maker: Any, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    maker.make_release(store, maker.some_photos(40), index=IndexConfig(kind="hnsw"))
    release = open_release(store.url, check_one_in=1)
    check = release._check
    for number in range(10):
        release.similar(f"sku-{number:03d}", 5, where={"stock": {"min": 0, "max": 3}})
        check.wait()
    seen = release.recall_seen
    assert (seen.questions, seen.checked, seen.skipped, seen.neighbours, seen.recall) == (10, 10, 0, 50, 1.0)
    # The negative control: an index that answers with the wrong rows is seen to.
    answers = type(release.opened).answers

    def worse(self: Any, *asked: Any, exactly: bool = False) -> Any:
        found = answers(self, *asked, exactly=exactly)
        shifted = [type(each)(each.groups, each.scores - (10.0 if number % 2 else 0.0)) for number, each in
                   enumerate(found)]  # fmt: skip
        return found if exactly else shifted

    monkeypatch.setattr(type(release.opened), "answers", worse)
    moved = copy.copy(release)
    assert moved._check is check
    for turns in (iter([1, 0]), iter([0, 1])):  # the second vector is drawn, then the first
        monkeypatch.setattr(check._draw, "randrange", lambda _, turns=turns: next(turns))
        moved.search([np.zeros(6), np.ones(6)], 4)
        check.wait()
    assert (moved.recall_seen.checked, moved.recall_seen.neighbours, moved.recall_seen.found) == (12, 58, 54)
    fresh = pickle.loads(pickle.dumps(release))
    assert fresh.recall_seen.questions == 0
    assert open_release(store.url).recall_seen is None
    with pytest.raises(ConfigError, match="check_one_in is 0"):
        open_release(store.url, check_one_in=0)


@pytest.mark.usefixtures("walked")
def test_exact_answers_are_those_of_the_definition(maker: Any, store: Store) -> None:
    made = maker.make_release(store, maker.some_photos(40), index=IndexConfig(kind="hnsw", metric="l2"))
    opened = open_release(store.url).opened
    assert not opened.index.planner.all_exact(5)
    assert opened.index.exactly().planner.all_exact(5)
    item = opened.find("sku-007")
    vectors = opened.vectors([item])
    (found,) = opened.answers(vectors, np.zeros(len(vectors), np.int64), 5, None, [item], exactly=True)
    # Of segments too: the same rows, dealt to two of them.
    rows = np.arange(opened.index.rows)
    halves = [build_index(opened.index.latents(rows[side::2]), IndexConfig(kind="hnsw", metric="l2")).index
              for side in (0, 1)]  # fmt: skip
    segmented = SegmentedIndex(halves, (rows % 2).astype(np.int32), (rows // 2).astype(np.int32))
    assert segmented.exactly().planner.all_exact(5)
    assert not segmented.planner.all_exact(5)
    near = segmented.exactly().search(vectors, 5)
    np.testing.assert_array_equal(near.ids, opened.index.exactly().search(vectors, 5).ids)
    expected = maker.brute_force(made, "l2", made.means("sku-007"), 5, left_out=["sku-007"])
    assert [opened.items.item_id(group) for group in found.groups.tolist()] == [item_id for item_id, _ in expected]


def test_files_are_fetched_side_by_side_and_told_of(
    maker: Any, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = maker.make_release(store, maker.some_photos(20))
    manifest = read_manifest(store, made.release_id)
    sizes = {manifest.file(role).name: manifest.file(role).bytes for role in ("items", "index")}
    both, get = threading.Barrier(2, timeout=200), LocalStore.get

    def met(self: LocalStore, name: str, **limits: Any) -> bytes:
        if name in sizes:
            both.wait()  # breaks unless both are asked for at the same time
        return get(self, name, **limits)

    told: list[tuple[int, int]] = []
    monkeypatch.setattr(LocalStore, "get", met)
    open_release(store.url, progress=lambda done, whole: told.append((done, whole)))
    whole = sum(sizes.values())
    assert told[0] == (0, whole)
    assert told[-1] == (whole, whole)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    monkeypatch.setattr(LocalStore, "get", get)
    told.clear()
    again = open_release(store.url, progress=lambda done, whole: told.append((done, whole)))  # all is here
    assert told[-1] == (whole, whole)
    assert pickle.loads(pickle.dumps(again)).similar("sku-001", 3) == again.similar("sku-001", 3)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Let every exact or other answer wait until the event is set; what is under way when the test ends goes on."""
    from pipeline.index.opened import OpenedRelease

    go, answers = threading.Event(), OpenedRelease.answers

    def waiting(self: Any, *asked: Any, **how: Any) -> Any:
        assert go.wait(200)
        return answers(self, *asked, **how)

    monkeypatch.setattr(OpenedRelease, "answers", waiting)
    yield go
    go.set()


def test_awaited_questions_are_the_same_and_bounded(maker: Any, store: Store, slow: threading.Event) -> None:
    made = maker.make_release(store, maker.some_photos(12))

    async def asked() -> None:
        async with await open_release_async(store.url, threads=2, waiting=1) as release:
            tasks = [asyncio.create_task(release.similar(f"sku-{number:03d}", 3)) for number in range(3)]
            await asyncio.sleep(0)  # each task's first step asks
            with pytest.raises(Unavailable, match="2 questions are under way and 1 wait"):
                await release.similar("sku-004", 3)
            threads = [each for each in threading.enumerate() if each.name.startswith("release")]
            assert len(threads) == 2
            tasks[2].cancel()  # it waits for a thread, and never begins
            await asyncio.sleep(0)
            waiting = asyncio.create_task(release.similar("sku-005", 3))
            await asyncio.sleep(0)
            slow.set()
            for number, task in enumerate(tasks[:2]):
                assert await task == release.release.similar(f"sku-{number:03d}", 3)
            assert await waiting == release.release.similar("sku-005", 3)
            with pytest.raises(asyncio.CancelledError):
                await tasks[2]
            assert await release.search(made.means("sku-001"), 3) == release.release.search(made.means("sku-001"), 3)
            many = release.release.similar_to_many(["sku-001", "sku-002"], 3, fusion="min")
            assert await release.similar_to_many(["sku-001", "sku-002"], 3, fusion="min") == many
            assert (await release.latents(["sku-001"])).num_rows == len(made.means("sku-001"))
            assert await release.refresh() is False
            with pytest.raises(UnknownItem):
                await release.similar("sku-999")
            assert release._taken == 0

    asyncio.run(asked())
    with pytest.raises(ConfigError, match="threads is 0"):
        AsyncRelease(open_release(store.url), threads=0)
