"""Kinds that store codes: exact answers after all, under every filter, from files as a reader opens them."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.errors import ConfigError, InputError, IntegrityError
from pipeline.index import (
    KINDS,
    METRICS,
    BuiltIndex,
    Grouping,
    IndexConfig,
    LatentArrays,
    SearchIndex,
    build_index,
    check_readable,
    estimate_bytes,
    kinds_here,
    nearest_groups,
    open_index,
)
from pipeline.index import kinds as kinds_module
from pipeline.index.features_file import features_bytes, read_features
from pipeline.index.filters import RowFilter
from pipeline.reader import open_release
from pipeline.release import verify_release
from pipeline.storage import open_store

ROWS, DIM, K = 12_000, 15, 10
HERE = kinds_here(IndexConfig())
LOSSY = [name for name in HERE if KINDS[name].lossy]


def falling(count: int, dim: int = DIM, *, seed: int = 0) -> LatentArrays:
    """Latents whose spectrum falls, as those of models do, and of an odd dimension."""
    drawn = np.random.default_rng(seed).normal(size=(count, dim)) * np.geomspace(1.0, 0.03, dim)
    return LatentArrays(mean=drawn.astype(np.float32))


def brute(queries: LatentArrays, items: LatentArrays, allowed: NDArray[np.int64], k: int) -> NDArray[np.int64]:
    """The nearest allowed rows under l2 by definition."""
    apart = np.linalg.norm(queries.mean[:, None].astype(np.float64) - items.mean[None, allowed], axis=-1)
    return allowed[np.argsort(apart, axis=1, kind="stable")[:, :k]]


@pytest.fixture(scope="module")
def items() -> LatentArrays:
    return falling(ROWS)


@pytest.fixture(scope="module")
def made(items: LatentArrays) -> dict[str, BuiltIndex]:
    asked = {"metric": "l2", "ef_construction": 60, "queries": 300, "threads": 1, "target_recall": 0.97}
    return {name: build_index(items, IndexConfig(kind=name, **asked)) for name in HERE}


@pytest.fixture(params=HERE)
def index(request: pytest.FixtureRequest, made: dict[str, BuiltIndex]) -> SearchIndex:
    return made[request.param].index


@pytest.mark.parametrize("share", [1.0, 0.5, 0.05, 0.01, 0.001, 1 / ROWS])
def test_every_filter_gives_k_rows_that_it_allows_with_exact_scores(
    index: SearchIndex, items: LatentArrays, share: float
) -> None:
    allowed = np.sort(np.random.default_rng(3).permutation(ROWS)[: max(1, round(share * ROWS))]).astype(np.int64)
    queries = falling(40, seed=9)
    ids, scores = index.search(queries, K, allowed=allowed)
    there = min(K, len(allowed))
    assert (ids[:, :there] >= 0).all(), "no short answer"
    assert (ids[:, there:] == -1).all()
    assert np.isin(ids[:, :there], allowed).all(), "no excluded row"
    apart = np.linalg.norm(queries.mean[:, None].astype(np.float64) - items.mean[ids[:, :there]], axis=-1)
    np.testing.assert_allclose(-scores[:, :there], apart, atol=1e-12)
    truth = brute(queries, items, allowed, K)
    overlap = np.mean([len(np.intersect1d(a, b)) / there for a, b in zip(ids[:, :there], truth, strict=True)])
    exact = share < 0.5  # few rows are scored one by one
    assert overlap == 1.0 if exact else overlap >= 0.95


@pytest.mark.parametrize("kind", ["ivf_sq8", "ivf_pq"])
def test_rows_far_from_the_query_are_found_by_looking_further(
    made: dict[str, BuiltIndex], items: LatentArrays, kind: str
) -> None:
    built = made[kind]
    index = open_index(built.data, "l2", features=built.features, parameters=built.parameters)
    index.planner.set_effort("nprobe", 1)
    allowed = np.flatnonzero(items.mean[:, 0] < 0)  # half of the rows, all on one side
    queries = LatentArrays(mean=falling(20, seed=9).mean + np.eye(1, DIM, dtype=np.float32) * 6.0)  # on the other
    raw = faiss.deserialize_index(np.frombuffer(built.data, np.uint8))
    mask = RowFilter.of_rows(allowed, ROWS)
    parameters = faiss.SearchParametersPreTransform(
        index_params=faiss.SearchParametersIVF(sel=mask.selector(), nprobe=2)
    )
    _, alone = getattr(raw, "search_numpy", raw.search)(queries.mean, K, params=parameters)
    assert (alone < 0).any(), "negative control: the cells near the query hold too few"
    ids, _ = index.search(queries, K, allowed=mask)
    assert (ids >= 0).all()
    assert np.isin(ids, allowed).all()


@pytest.mark.slow
@pytest.mark.parametrize("kind", LOSSY)
def test_the_codes_alone_lose_what_their_exact_features_find(
    made: dict[str, BuiltIndex], items: LatentArrays, kind: str
) -> None:
    built = made[kind]
    queries, everything = falling(200, seed=9), np.arange(ROWS)
    truth = brute(queries, items, everything, K)
    raw = faiss.deserialize_index(np.frombuffer(built.data, np.uint8))
    values, codes = raw.search(queries.mean, K)
    ids, scores = built.index.search(queries, K)

    def overlap(found: NDArray[np.int64]) -> float:
        return float(np.mean([len(np.intersect1d(a, b)) / K for a, b in zip(found, truth, strict=True)]))

    assert overlap(ids) >= 0.95
    assert overlap(ids) > overlap(codes), "negative control"
    same = codes == ids
    assert not np.allclose(-scores[same], np.sqrt(values[same]), atol=1e-6), "negative control: the codes' own scores"
    assert built.recall == pytest.approx(overlap(ids), abs=0.02), "what it reports is so"


@pytest.mark.parametrize("kind", HERE)
def test_a_mapped_file_answers_as_its_bytes_do(made: dict[str, BuiltIndex], kind: str, tmp_path: Path) -> None:
    built = made[kind]
    for role, (data, suffix, rows) in built.files().items():
        (tmp_path / f"{role}{suffix}").write_bytes(data)
        assert rows == ROWS
    beside = tmp_path / "features.npy" if KINDS[kind].lossy else None
    index = open_index(tmp_path / "index.faiss", "l2", features=beside, parameters=built.parameters)
    queries = falling(50, seed=9)
    for mine, theirs in zip(index.search(queries, K), built.index.search(queries, K), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    if KINDS[kind].lossy:
        assert isinstance(index.features, np.memmap), "paged in, not read"
        assert not index.features.flags.writeable


@pytest.mark.parametrize("kind", HERE)
def test_the_table_says_what_the_files_take(made: dict[str, BuiltIndex], kind: str) -> None:
    config = IndexConfig(kind=kind, metric="l2")
    assert len(made[kind].data) == pytest.approx(estimate_bytes(ROWS, DIM, config), rel=0.12)


@pytest.mark.slow
def test_the_same_latents_give_the_same_files(made: dict[str, BuiltIndex], items: LatentArrays) -> None:
    asked = {"metric": "l2", "queries": 300, "threads": 1, "target_recall": 0.97}
    again = build_index(items, IndexConfig(kind="ivf_sq8", **asked))
    assert again.data == made["ivf_sq8"].data
    assert again.features == made["ivf_sq8"].features
    other = build_index(items, IndexConfig(kind="ivf_sq8", seed=1, **asked))
    assert other.data != again.data, "the rotation is drawn by the seed"


@pytest.mark.parametrize("kind", LOSSY)
@pytest.mark.parametrize("count", [0, 1, 2, 5, 40])
def test_hardly_any_photos(kind: str, count: int) -> None:
    data = falling(count)
    built = build_index(data, IndexConfig(kind=kind, metric="l2", threads=1))
    index = open_index(built.data, "l2", features=built.features, parameters=built.parameters)
    ids, scores = index.search(falling(3, seed=1), 4)
    assert ((ids >= 0).sum(axis=1) == min(count, 4)).all()
    assert np.isneginf(scores[ids < 0]).all()


@pytest.mark.parametrize("kind", [name for name in HERE if name != "flat"])
@pytest.mark.slow
def test_groups_of_copies_are_ranked_whole(kind: str) -> None:
    """Photos that are equal to the last bit: ties go by group, however many copies stand before them."""
    one = falling(120, seed=4).mean
    numbers = np.random.default_rng(0).permutation(np.repeat(np.arange(120), 50))
    index = build_index(
        LatentArrays(mean=one[numbers // 2 * 2]), IndexConfig(kind=kind, metric="l2", ef_construction=40, threads=1)
    ).index
    answers = nearest_groups(index, LatentArrays(mean=one[:20:2]), np.arange(10), 4, Grouping(numbers.astype(np.int64)))
    for place, answer in enumerate(answers):
        assert answer.groups[:2].tolist() == [
            4 * (place // 2) + 2 * (place % 2),
            4 * (place // 2) + 2 * (place % 2) + 1,
        ]
        np.testing.assert_allclose(answer.scores[:2], 0.0)


def test_features_of_another_index_are_refused(made: dict[str, BuiltIndex], items: LatentArrays) -> None:
    built = made["flat_codes"]
    with pytest.raises(IntegrityError, match=r"12,000 rows x 15 features.*11,999 x 15"):
        open_index(built.data, "l2", features=features_bytes(items.mean[:-1]))
    with pytest.raises(IntegrityError, match="pass the file of features"):
        open_index(built.data, "l2")
    for wrong in (b"", b"\x93NUMPY nonsense", features_bytes(items.mean)[:-5]):
        with pytest.raises(IntegrityError, match="not a file of features"):
            read_features(wrong)


@pytest.mark.parametrize("rows", [0, 1, 12_345])
def test_features_are_read_as_numpy_reads_them_but_without_pythons_parser(
    rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = np.random.default_rng(rows).normal(size=(rows, 7)).astype(np.float32)
    data = features_bytes(given)
    (tmp_path / "f.npy").write_bytes(data)
    np.testing.assert_array_equal(np.load(tmp_path / "f.npy"), given)  # anybody can read it

    def parse(*_: object, **__: object) -> None:
        raise SystemError("AST constructor recursion depth mismatch (before=39, after=36)")

    monkeypatch.setattr(ast, "parse", parse)
    with pytest.raises(SystemError):
        np.load(tmp_path / "f.npy")
    for source in (data, memoryview(data), tmp_path / "f.npy", str(tmp_path / "f.npy")):
        found = read_features(source)
        np.testing.assert_array_equal(found, given)
        assert found.dtype == np.float32
        assert not found.flags.writeable
    with pytest.raises(IntegrityError, match="cannot be read"):
        read_features(tmp_path / "absent.npy")


def test_what_this_faiss_or_this_version_cannot_read_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"kind 'hyper'.*upgrade visual-codebooks"):
        check_readable("hyper", "r-0123456789ab")
    monkeypatch.setattr(kinds_module, "faiss_version", lambda: (1, 14))
    check_readable("ivf_pq", "r-0123456789ab")
    with pytest.raises(ConfigError, match=r"'flat_eden4', which FAISS reads from 1\.15 on"):
        check_readable("flat_eden4", "r-0123456789ab")


def test_an_index_of_codes_is_not_the_metric_of_another(made: dict[str, BuiltIndex]) -> None:
    built = made["flat_codes"]
    assert METRICS["cosine"].geometry != METRICS["l2"].geometry
    with pytest.raises(IntegrityError, match="do not belong together"):
        open_index(built.data, "cosine", features=built.features)


@pytest.mark.parametrize("kind", ["flat_codes", "ivf_pq"])
def test_a_release_of_codes_is_read_checked_and_verified(maker: Any, tmp_path: Path, kind: str) -> None:
    photos = maker.some_photos(60)
    exact, store = open_store(str(tmp_path / "exact")), open_store(str(tmp_path / "codes"))
    maker.make_release(exact, photos, index=IndexConfig(metric="l2"))
    made = maker.make_release(store, photos, index=IndexConfig(kind=kind, metric="l2", threads=1))
    assert verify_release(store, made.release_id).problems == ()
    opened = [open_release(each.url, cache_dir=tmp_path / "cache") for each in (exact, store)]
    assert opened[1].manifest.index_kind == kind
    assert "features" in opened[1].manifest.files
    for item_id in ("sku-001", "sku-030"):
        for where in (None, {"category": "Shoes"}):
            near = [[(n.item_id, n.score) for n in each.similar(item_id, k=5, where=where)] for each in opened]
            assert near[0] == near[1], "the same items at the same scores to the last bit"
    newer = maker.make_release(
        store, photos, run="n2", index=IndexConfig(kind=kind, metric="l2", threads=1),
        change=lambda fields: {**fields, "index_kind": "of-tomorrow"},
    )  # fmt: skip
    with pytest.raises(InputError, match=r"kind 'of-tomorrow'"):
        open_release(store.url, release_id=newer.release_id, cache_dir=tmp_path / "cache")
