"""`codebooks recommend`: customers' events to tables, held to plain loops over the same release."""

from __future__ import annotations

import datetime as dt
import itertools
import json
import math
import pickle
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.__main__ import main
from pipeline import mapping
from pipeline.index import GroupHits
from pipeline.index.latents import LatentArrays
from pipeline.mapping import Scratch
from pipeline.reader import Release, open_release
from pipeline.recommending import EventTable, RecommendConfig, baskets, dealing, fellows, fusing, lists, offering
from pipeline.recommending.tables import SUMMARY
from pipeline.storage import Files, Store, open_store

Rows = list[tuple[Any, ...]]


@pytest.fixture(autouse=True)
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


def write_events(path: Path, rows: Rows, *names: str) -> Path:
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(names)
    pq.write_table(pa.table({name: list(column) for name, column in zip(names, columns, strict=True)}), path)
    return path


def some_events(customers: int, items: int, *, seed: int = 0, most: int = 6) -> Rows:
    """Return (customer, item, weight, time), in no order, some of them twice."""
    rng = np.random.default_rng(seed)
    start = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    rows = [
        (
            f"c{who:03d}",
            f"sku-{item:03d}",
            float(rng.integers(1, 9)) / 4,
            start + dt.timedelta(days=int(rng.integers(300))),
        )
        for who in range(customers)
        for item in rng.integers(items, size=rng.integers(1, most + 1))
    ]
    return [rows[place] for place in rng.permutation(len(rows))]


def asked(capsys: pytest.CaptureFixture[str], *words: str, expect: int = 0) -> tuple[dict[str, Any], str]:
    code = main(["recommend", *words, "--json"])
    taken = capsys.readouterr()
    assert code == expect, taken.err
    return json.loads(taken.out), taken.err


def table_of(found: dict[str, Any], name: str) -> dict[str, list[tuple[str, float]]]:
    """Return who -> [(what, score)] of a written table, having checked its order and ranks."""
    files = [file for file in found["files"] if file["table"] == name]
    table = pa.concat_tables(pq.read_table(Path(found["place"]) / file["name"]) for file in files)
    answers: dict[str, list[tuple[str, float]]] = defaultdict(list)
    for who, rank, what, score in zip(*(column.to_pylist() for column in table.columns), strict=True):
        answers[who].append((what, score))
        assert rank == len(answers[who])
    assert list(answers) == sorted(answers)
    assert found["rows"][name] == table.num_rows
    return dict(answers)


def shares_of(events: Rows, half_life_days: float) -> dict[str, dict[str, float]]:
    """Return customer -> item -> share, by plain loops."""
    newest: dict[str, dt.datetime] = {}
    for customer, _, _, moment in events:
        newest[customer] = max(moment, newest.get(customer, moment))
    sums: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for customer, item, weight, moment in events:
        age = (newest[customer] - moment) / dt.timedelta(days=1)
        sums[customer][item] += weight * 0.5 ** (age / half_life_days)
    return {
        customer: {item: value / sum(held.values()) for item, value in sorted(held.items())}
        for customer, held in sums.items()
    }


def check(found: list[tuple[str, float]], expected: list[tuple[str, float]]) -> None:
    assert [score for _, score in found] == pytest.approx([score for _, score in expected], rel=1e-9)
    by_score = dict(expected)
    assert all(score == pytest.approx(by_score[what], rel=1e-9) for what, score in found)


def test_ranges_that_travel_write_the_same_files(
    maker: Any, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    maker.make_release(store, maker.some_photos(60, most=2))
    path = write_events(tmp_path / "events.parquet", some_events(40, 60), "customer", "item", "weight", "time")
    words = [f"store={store.url}", "--events", str(path), "--top", "4", "--out"]
    here, _ = asked(capsys, *words, str(tmp_path / "here"))
    counts: list[int] = []

    def in_turn(bound: Any, tasks: Any, **_: Any) -> Iterator[Any]:
        for task in tasks:
            yield pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(bound))(pickle.loads(pickle.dumps(task)))))

    def of_run(store: Store, run: str, tasks: int) -> Scratch:
        counts.append(tasks)
        return Scratch(store, f"runs/{run}/scratch/here/")

    for name, value in (("_in_turn", in_turn), ("_PACKED", 64), ("_connected", lambda: None)):
        monkeypatch.setattr(mapping, name, value)
    monkeypatch.setattr(Scratch, "of_run", of_run)
    monkeypatch.setattr(lists, "_BLOCK", 8)
    monkeypatch.setattr(lists, "_RANGE", 24)
    monkeypatch.setattr(dealing.deal, "__kwdefaults__", {"bucket_rows": 40})
    monkeypatch.setattr(fellows.fellows, "__kwdefaults__", {"shard": 300})
    there, _ = asked(capsys, *words, str(tmp_path / "there"))
    assert {**there, "place": ""} == {**here, "place": ""}
    assert [file["sha256"] for file in there["files"]] == [file["sha256"] for file in here["files"]]
    assert len(counts) == 3
    assert min(counts) > 1
    assert list(store.list("runs/")) == []


@pytest.mark.parametrize("spare", [64, 0])
def test_a_customer_is_offered_what_fusion_of_the_basket_answers(
    maker: Any, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    spare: int,
) -> None:  # fmt: skip
    monkeypatch.setattr(offering, "_SPARE", spare)  # 0: the lists are too short for many, who are asked for apart
    monkeypatch.setattr(dealing.deal, "__kwdefaults__", {"bucket_rows": 40})
    maker.make_release(store, maker.some_photos(130, most=2))
    events = some_events(60, 130)
    path = write_events(tmp_path / "events.parquet", events, "customer", "item", "weight", "time")
    found, text = asked(capsys, f"store={store.url}", "--events", str(path), "--top", "5", "--half-life", "30d")
    release = open_release(store.url)
    offered = table_of(found, "customer_items")
    shares = shares_of(events, 30)
    assert set(offered) == set(shares)
    for customer, held in shares.items():
        near = release.similar_to_many(list(held), k=5, weights=list(held.values()))
        check(offered[customer], [(found.item_id, found.score) for found in near])
        assert not {item for item, _ in offered[customer]} & set(held)
    near_items = table_of(found, "item_items")
    assert list(near_items) == release.item_ids()
    for item_id in release.item_ids()[::7]:
        assert near_items[item_id] == [(near.item_id, near.score) for near in release.similar(item_id, k=5)]
    assert found["counts"]["repeated"] == len(events) - sum(len(held) for held in shares.values()) > 0
    assert "repeat a customer and an item" in text


def test_customers_are_compared_by_the_cosine_of_what_they_stand_for(
    maker: Any, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fellows.fellows, "__kwdefaults__", {"shard": 300})  # several, and pairs across them
    maker.make_release(store, maker.some_photos(90, most=1))
    events = some_events(50, 90, seed=3)
    path = write_events(tmp_path / "events.parquet", events, "customer", "item", "weight", "time")
    found, _ = asked(capsys, f"store={store.url}", "--events", str(path), "--top", "7")
    release, profiles = open_release(store.url), {}
    for customer, held in shares_of(events, 90).items():
        profile: dict[str, float] = defaultdict(float)
        for item, share in held.items():
            profile[item] += share
            for rank, near in enumerate(release.similar(item, k=10), start=1):
                profile[near.item_id] += share / (1 + rank)
        length = math.sqrt(sum(value * value for value in profile.values()))
        profiles[customer] = {item: value / length for item, value in profile.items()}
    answers = table_of(found, "customer_customers")
    for customer, own in profiles.items():
        cosines = {
            other: sum(value * held.get(item, 0.0) for item, value in own.items())
            for other, held in profiles.items()
            if other != customer
        }
        expected = sorted(((o, c) for o, c in cosines.items() if c > 0), key=lambda pair: (-pair[1], pair[0]))
        check(answers[customer], expected[:7])


def two_tastes(maker: Any) -> list[Any]:
    """Return 40 items on either side, and 40 in the middle between them: of three categories."""
    rng = np.random.default_rng(0)
    sides = {"a": (1.0, 0.0), "b": (0.0, 1.0), "m": (0.7, 0.7)}
    return [
        maker.Photo(
            f"{name}-{n:02d}", f"u/{name}{n}", 0, np.float32(np.append(side, [0] * 4) + rng.normal(0, 0.05, 6)), name
        )
        for name, side in sides.items()
        for n in range(40)
    ]


def test_a_mixed_basket_is_fused_and_its_middle_is_another_taste(
    maker: Any, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    maker.make_release(store, two_tastes(maker))
    rows = [("mixed", f"{name}-{n:02d}") for name in "ab" for n in (1, 2, 3)]
    rows += [("mixed too", f"{name}-{n:02d}") for name in "ab" for n in (21, 22, 23)]
    rows += [("middle", f"m-{n:02d}") for n in range(5)]
    path = write_events(tmp_path / "events.parquet", rows, "customer", "item")
    found, _ = asked(capsys, f"store={store.url}", "--events", str(path))
    offered = [item[0] for item, _ in table_of(found, "customer_items")["mixed"]]
    assert len(offered) == 20
    assert min(offered.count("a"), offered.count("b")) >= 8
    assert "m" not in offered
    assert table_of(found, "customer_customers")["mixed"][0][0] == "mixed too"
    release = open_release(store.url)
    basket = [item for customer, item in rows if customer == "mixed"]
    # The known wrong way: one query in the middle of the basket finds the taste that the customer does not have.
    for middle in (release.similar_to_many(basket, k=20, fusion="barycentre"), centroid(release, basket)):
        assert {near.item_id[0] for near in middle} == {"m"}


def centroid(release: Release, basket: list[str]) -> list[Any]:
    rows = release.opened.vectors([release.opened.find(item) for item in basket])
    return release.search(LatentArrays(mean=rows.mean.mean(axis=0, keepdims=True)), k=20)[0]


def test_what_was_had_is_offered_again_where_asked(
    maker: Any, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    maker.make_release(store, maker.some_photos(30, most=1))
    path = write_events(tmp_path / "e.parquet", [("c", "sku-003"), ("c", "sku-007")], "customer", "item")
    found, _ = asked(capsys, f"store={store.url}", "--events", str(path), "--again", "--top", "4")
    release = open_release(store.url)
    sums: dict[str, float] = defaultdict(float)
    for item in ("sku-003", "sku-007"):
        ranked = [item, *(near.item_id for near in release.similar(item, k=29))]
        for rank, other in enumerate(ranked, start=1):
            sums[other] += 0.5 / (5 + rank)
    expected = sorted(sums.items(), key=lambda pair: (-pair[1], pair[0]))[:4]
    check(table_of(found, "customer_items")["c"], expected)
    assert {"sku-003", "sku-007"} & {item for item, _ in expected}, "one of what was had is among them"


def test_unknown_items_are_counted_and_named(
    maker: Any, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    maker.make_release(store, maker.some_photos(20))
    rows = [("a", "sku-001"), ("a", "gone-1"), ("b", "gone-2"), ("b", "gone-1"), ("c", "sku-002")]
    path = write_events(tmp_path / "e.parquet", rows, "customer", "item")
    found, text = asked(capsys, f"store={store.url}", "--events", str(path))
    counts = found["counts"]
    assert (counts["unknown_events"], counts["unknown_items"], counts["unknown_first"]) == (3, 2, ["gone-1", "gone-2"])
    assert (counts["events"], counts["customers"], counts["customers_without"]) == (5, 2, 1)
    assert "3 events are of 2 items that the release does not hold, for example 'gone-1', 'gone-2'" in text
    assert set(table_of(found, "customer_items")) == {"a", "c"}


def test_the_same_question_finds_its_answer_and_another_needs_another_folder(
    maker: Any, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = maker.make_release(store, maker.some_photos(20))
    path = write_events(tmp_path / "e.parquet", some_events(9, 20), "customer", "item", "weight", "time")
    words = (f"store={store.url}", "--events", str(path))
    first, _ = asked(capsys, *words)
    assert first["place"].startswith(f"{store.url}/releases/{made.release_id}/recommend-")
    assert first["reason"] == "written"
    again, _ = asked(capsys, *words)
    assert (again["reason"], again["files"]) == ("nothing to do", first["files"])
    out = tmp_path / "out"
    elsewhere, _ = asked(capsys, *words, "--out", str(out))
    assert elsewhere["files"] == first["files"], "the same bytes wherever they are written"
    assert sorted(path.name for path in out.iterdir() if path.is_file()) == sorted(
        [SUMMARY, *(file["name"] for file in elsewhere["files"])]
    )
    (out / SUMMARY).unlink()  # as where a process was killed before it was done
    resumed, _ = asked(capsys, *words, "--out", str(out))
    assert (resumed["reason"], resumed["files"]) == ("written", first["files"])
    refused, _ = asked(capsys, *words, "--out", str(out), "--top", "3", expect=2)
    assert "name another one with --out" in refused["error"]


def test_a_folder_and_whole_numbers_and_other_names_of_columns(
    maker: Any, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = [maker.Photo(str(n), f"u/{n}", 0, np.float32(np.arange(6) == n % 6) + n / 99) for n in range(12)]
    maker.make_release(store, photos)
    folder = tmp_path / "events"
    folder.mkdir()
    write_events(folder / "1.parquet", [(7, 3), (8, 4)], "user_id", "sku")
    write_events(folder / "2.parquet", [(7, 5)], "user_id", "sku")
    words = ("--events", str(folder), "--customer", "user_id", "--item", "sku", "--top", "2")
    found, _ = asked(capsys, f"store={store.url}", *words)
    near = open_release(store.url).similar_to_many([3, 5], k=2, weights=[0.5, 0.5])
    check(table_of(found, "customer_items")["7"], [(near.item_id, near.score) for near in near])


NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
WRONG: list[tuple[Rows, tuple[str, ...], tuple[str, ...], int, str]] = [
    ([("a", "sku-001"), (None, "sku-001")], ("customer", "item"), (), 3, "customer of row 1 is None"),
    ([("a", None)], ("customer", "item"), (), 3, "item of row 0 is None"),
    ([("a", "sku-001", -1.0)], ("customer", "item", "weight"), (), 3, "weight of row 0 is -1.0.*above 0"),
    ([("a", "sku-001", 0.0)], ("customer", "item", "weight"), (), 3, "weight of row 0 is 0.0"),
    ([("a", "sku-001", math.nan)], ("customer", "item", "weight"), (), 3, "weight of row 0 is nan"),
    ([("a", "sku-001", None), ("a", "sku-001", 1.0)], ("customer", "item", "weight"), (), 3, "row 0 is None"),
    ([("a", "sku-001", math.inf)], ("customer", "item", "weight"), (), 3, "weight of row 0 is inf"),
    ([("a", "sku-001", "x")], ("customer", "item", "weight"), (), 2, "holds string, but a weight is a number"),
    ([("a", "sku-001", None), ("a", "sku-001", NOW)], ("customer", "item", "time"), (), 3, "time of row 0 is None"),
    ([("a", "sku-001", 17)], ("customer", "item", "time"), (), 2, "holds int64, but a time is a timestamp"),
    ([("a", 1.0)], ("customer", "item"), (), 2, "holds double, which is no key"),
    ([("a", "sku-001")], ("who", "item"), (), 2, "no column 'customer'; it has who, item.*--customer"),
    ([("a", "sku-001")], ("customer", "item"), ("--weight", "w"), 2, "no column 'w'.*--weight"),
    ([("a", "x-1")], ("customer", "item"), (), 3, "none of the 1 events.*'x-1'.*--item"),
    ([], ("customer", "item"), (), 3, "holds no events"),
    ([("a", "sku-001")], ("customer", "item"), ("--half-life", "soon"), 2, "half_life.*90d"),
    ([("a", "sku-001")], ("customer", "item"), ("--top", "0"), 2, "top"),
]


@pytest.mark.parametrize(("rows", "names", "more", "code", "said"), WRONG, ids=[said for *_, said in WRONG])
def test_events_that_cannot_be_are_refused_and_nothing_is_written(
    maker: Any, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: Rows, names: tuple[str, ...],
    more: tuple[str, ...], code: int, said: str,
) -> None:  # fmt: skip
    maker.make_release(store, maker.some_photos(5))
    before = [entry.name for entry in store.list()]
    path = write_events(tmp_path / "e.parquet", rows, *names)
    found, _ = asked(capsys, f"store={store.url}", "--events", str(path), *more, expect=code)
    assert re.search(said, found["error"]), found["error"]
    assert [entry.name for entry in store.list()] == before


def test_no_events_are_no_file_no_parquet_or_no_rows(
    maker: Any, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    maker.make_release(store, maker.some_photos(5))
    (tmp_path / "e.parquet").write_text("customer,item\n")
    empty = pa.table({"customer": pa.array([], pa.string()), "item": pa.array([], pa.string())})
    pq.write_table(empty, tmp_path / "none.parquet")
    odd = pa.array([b"c\xff"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"customer": odd, "item": ["sku-001"]}), tmp_path / "odd.parquet")
    late = pa.array([2**62], pa.timestamp("ms"))
    pq.write_table(pa.table({"customer": ["c"], "item": ["sku-001"], "time": late}), tmp_path / "late.parquet")
    for name, said in (
        ("odd.parquet", "customer of row 0 is b'c\\xff'; it is no UTF-8 text"),
        ("late.parquet", "time holds a time that no microseconds"),
        ("missing.parquet", "neither a file nor a folder"),
        ("e.parquet", "cannot be read as Parquet"),
        ("none.parquet", "holds no events"),
    ):
        found, _ = asked(capsys, f"store={store.url}", "--events", str(tmp_path / name), expect=3)
        assert said in found["error"]


def test_baskets_add_up_trim_and_never_overflow() -> None:
    day = 86_400_000_000
    rows = [
        ("b", 2, 1e308, 0), ("b", 2, 1e308, 0), ("b", 0, 1e308, 0), ("a", 1, 1.0, 10 * day), ("a", 3, 4.0, 0),
        ("a", 0, 1.0, 10 * day), ("b", -1, 1.0, 0), ("c", -1, 1.0, 0), ("d", 1, 1.0, 10**6 * day), ("d", 2, 1.0, 0),
    ]  # fmt: skip
    names = ("customer", "item", "weight", "time_us")
    events = pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)))
    made = baskets.baskets_of(events, 4, half_life_s=10 * 86_400, most_items=2)
    assert made.customers == ["a", "b", "c", "d"]
    assert made.starts.tolist() == [0, 2, 4, 4, 5]
    # a: 1, 2 (four, halved) and 1: the larger and the lower of the equal ones ask. d: the other item is too old.
    assert made.items.tolist() == [0, 3, 0, 2, 1]
    assert made.shares.tolist() == pytest.approx([1 / 3, 2 / 3, 1 / 3, 2 / 3, 1.0])
    assert made.had_by(0).tolist() == [0, 1, 3]
    assert (made.repeated, made.trimmed) == (1, 2)


def test_ties_go_to_the_lower_number_and_ranges_are_whole_customers() -> None:
    answered = fusing.best(np.array([1, 0, 1, 1]), np.array([5, 2, 3, 4]), np.array([1.0, 1.0, 1.0, 2.0]), 2)
    assert (answered.who.tolist(), answered.what.tolist()) == ([0, 1, 1], [2, 4, 3])
    assert answered.places.tolist() == [1, 1, 2]
    generator = np.random.default_rng(0)
    who, scores = np.sort(generator.integers(0, 9, 200)), generator.integers(0, 5, 200).astype(np.float64)
    kept = fusing.near_best(who, scores, 4)
    some, every = (fusing.best(who[rows], rows, scores[rows], 4) for rows in (np.flatnonzero(kept), np.arange(200)))
    assert (some.who.tolist(), some.what.tolist()) == (every.who.tolist(), every.what.tolist())
    assert kept.sum() < 150
    assert baskets.ranges_of(np.array([0, 2, 2, 9, 10]), 3) == [(0, 2), (2, 3), (3, 4)]
    hits = lists._without(GroupHits(np.array([4, 7]), np.array([1.0, 0.5])), 9, 1)
    assert hits.groups.tolist() == [4], "an item that more others tie with than were asked for is not among them"


def test_events_are_dealt_into_buckets_in_order_whatever_the_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.recommending.events._BATCH", 7)
    rows = some_events(40, 30, seed=5)
    path = write_events(tmp_path / "e.parquet", rows, "customer", "item", "weight", "time")
    config = RecommendConfig()
    ids = pa.array([f"sku-{n:03d}" for n in range(25)], pa.large_string())
    dealt = dealing.deal(EventTable(Files(), str(path), config), ids, tmp_path, bucket_rows=20)
    assert len(dealt.buckets) > 4
    found = [row for table in dealt.tables() for row in table.to_pylist()]
    per_bucket = [set(table["customer"].to_pylist()) for table in dealt.tables()]
    assert all(max(a) < min(b) for a, b in itertools.pairwise(per_bucket))
    assert len(found) == len(rows)
    assert dealt.unknown.rows == sum(row[1] >= "sku-025" for row in rows)
    assert [f"sku-{n:03d}" for n in np.flatnonzero(dealt.asked)] == sorted({r[1] for r in rows if r[1] < "sku-025"})
