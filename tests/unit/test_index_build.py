"""Building: recall against brute force, tuning, determinism, memory, sizes."""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np
import pytest
from pydantic import ValidationError

from pipeline.errors import ConfigError, InputError
from pipeline.index import IndexConfig, LatentArrays, build_index, estimate_bytes, open_index
from pipeline.index import build as build_module


def latents(count: int, dim: int = 16, *, seed: int = 0) -> LatentArrays:
    return LatentArrays(mean=np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32))


def brute_recall(built: Any, vectors: np.ndarray, rows: np.ndarray, k: int, metric: str) -> float:
    """Recall by definition: other rows only, by row number (random vectors have no ties)."""
    wide = vectors.astype(np.float64)
    if metric == "cosine":
        wide /= np.linalg.norm(wide, axis=1, keepdims=True)
    shares = []
    for row in rows:
        distances = np.linalg.norm(wide - wide[row], axis=1)
        distances[row] = np.inf
        truth = set(np.argsort(distances)[:k].tolist())
        found = built.index.search(LatentArrays(mean=vectors[row : row + 1]), k + 1).ids[0].tolist()
        shares.append(len(truth & set([other for other in found if other != row][:k])) / k)
    return float(np.mean(shares))


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_flat_has_recall_one_and_its_bytes_open_with_plain_faiss(metric: str) -> None:
    data = latents(700)
    built = build_index(data, IndexConfig(metric=metric))
    assert built.recall == 1.0
    plain = faiss.deserialize_index(np.frombuffer(built.data, np.uint8))
    assert (type(plain).__name__, plain.ntotal, plain.d) == (f"IndexFlat{'L2' if metric == 'l2' else 'IP'}", 700, 16)
    np.testing.assert_array_equal(plain.reconstruct_n(0, 700), built.index.features)


@pytest.mark.parametrize("metric", ["l2", "cosine"])
@pytest.mark.slow
def test_hnsw_is_tuned_to_the_target_and_recall_is_honest(metric: str) -> None:
    data = latents(5_000)
    config = IndexConfig(metric=metric, kind="hnsw", m=4, ef_construction=12, target_recall=0.9, queries=600)
    built = build_index(data, config)
    assert built.parameters["ef_search"] > 11, "this graph is poor enough to need tuning"
    assert built.parameters["chosen"] == "it was asked for"
    assert "tuned_rows" not in built.parameters, "a later night of auto looks at all kinds"
    assert built.recall == pytest.approx(0.9, abs=0.03), "held-out queries, least ef_search that reaches the target"
    rows = np.random.default_rng(5).permutation(5_000)[:300]
    assert brute_recall(built, data.mean, rows, 10, metric) == pytest.approx(built.recall, abs=0.03)
    reopened = faiss.deserialize_index(np.frombuffer(built.data, np.uint8))
    assert reopened.hnsw.efSearch == built.parameters["ef_search"], "the file carries the tuned value"


def test_tuning_gives_up_at_its_limit_and_says_what_it_reached() -> None:
    config = IndexConfig(kind="hnsw", m=2, ef_construction=8, target_recall=0.9, max_ef_search=16, queries=200)
    with pytest.raises(ConfigError, match=r"kind 'hnsw' reaches .* 0\.9 .*\n.*ef_search 16: recall 0\.[0-8]"):
        build_index(latents(5_000), config)


def test_a_graph_of_few_rows_is_written_and_tuned_but_not_walked() -> None:
    """They are scored one by one in as little time. Negative control: what the graph finds by itself."""
    data, asked = latents(3_000), latents(100, seed=7)
    config = IndexConfig(kind="hnsw", m=2, ef_construction=8, target_recall=1.0, max_ef_search=16, queries=200)
    built = build_index(data, config)
    assert (built.parameters["ef_search"], built.recall, built.recall_low) == (16, 1.0, 1.0)
    truth = built.index.exactly().search(asked, 10).ids
    np.testing.assert_array_equal(built.index.search(asked, 10).ids, truth)
    with built.index.planner.as_set():
        walked = built.index.search(asked, 10).ids
    assert np.mean([len(np.intersect1d(*pair)) / 10 for pair in zip(walked, truth, strict=True)]) < 0.9


def test_negative_control_recall_that_counts_the_query_itself() -> None:
    data = latents(5_000)
    config = IndexConfig(kind="hnsw", m=2, ef_construction=8, target_recall=0.02, max_ef_search=1, queries=200, k=1)
    built = build_index(data, config)
    asked = data.take(np.arange(200))
    itself = np.mean(built.index.search(asked, 1).ids[:, 0] == np.arange(200))
    assert itself > built.recall + 0.1, "finding oneself is easier than finding one's neighbour"


def test_copies_of_one_photo_do_not_lower_recall() -> None:
    one = latents(30)
    copies = LatentArrays(mean=np.repeat(one.mean, 40, axis=0))  # 39 equal neighbours each, any 10 are right
    assert build_index(copies, IndexConfig(metric="l2")).recall == 1.0


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
@pytest.mark.slow
def test_the_same_latents_give_the_same_bytes(kind: str) -> None:
    data = latents(3_000)
    once, again, other = (
        build_index(data, IndexConfig(kind=kind, ef_construction=40, threads=threads)) for threads in (1, 1, 2)
    )
    assert once.data == again.data == other.data
    assert once.recall == again.recall == other.recall
    times = tuple(f"{kind}.{name}" for name in ("qps", "p50_ms", "p99_ms", "build_s"))
    first, second = (
        {name: value for name, value in built.parameters.items() if name not in times} for built in (once, again)
    )
    assert first == second


def test_rows_are_added_in_fixed_blocks_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    data = latents(1_000)
    whole = build_index(data, IndexConfig(kind="hnsw", ef_construction=40)).data
    monkeypatch.setattr(build_module, "ADD_BLOCK", 300)
    split = build_index(data, IndexConfig(kind="hnsw", ef_construction=40))
    np.testing.assert_allclose(split.index.features, open_index(whole, "cosine").features)
    assert split.data != whole, "the block size is part of the bytes, so it must not vary"


@pytest.mark.parametrize(("kind", "rows"), [("flat", 5_000), ("hnsw", 5_000), ("hnsw", 300)])
def test_the_memory_estimate_fits(kind: str, rows: int) -> None:
    config = IndexConfig(kind=kind, m=12, ef_construction=20, target_recall=0.1)
    assert len(build_index(latents(rows), config).data) == pytest.approx(estimate_bytes(rows, 16, config), rel=0.05)


def test_an_index_above_the_memory_budget_is_refused_before_it_is_built() -> None:
    with pytest.raises(ConfigError, match=r"hnsw index of 100000 rows .* index\.memory_gib allows 0.001"):
        build_index(latents(100_000), IndexConfig(kind="hnsw", memory_gib=0.001))


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_hardly_any_photos(kind: str, count: int) -> None:
    built = build_index(latents(count), IndexConfig(kind=kind))
    assert built.recall == 1.0
    ids, scores = open_index(built.data, "cosine").search(latents(3), 4)
    assert ids.shape == scores.shape == (3, 4)
    assert ((ids >= 0).sum(axis=1) == min(count, 4)).all()
    assert np.isneginf(scores[ids < 0]).all()


def test_no_photos_at_all_from_gathering_no_rows() -> None:
    built = build_index(LatentArrays(mean=np.empty((0, 0), np.float32)), IndexConfig())
    assert built.index.rows == 0


def test_latents_that_are_not_finite_are_refused_with_their_row() -> None:
    data = latents(10)
    data.mean[7, 3] = np.nan
    with pytest.raises(InputError, match=r"1 of 10 .* row 7"):
        build_index(data, IndexConfig())


def test_a_diverged_model_with_infinite_latents_is_refused_under_cosine_too() -> None:
    data = latents(10)
    data.mean[2, 0] = np.inf
    with pytest.raises(InputError, match="row 2"):
        build_index(data, IndexConfig(metric="cosine"))


def test_the_config_refuses_what_cannot_be() -> None:
    for wrong in ({"metric": "euclid"}, {"kind": "ivf"}, {"target_recall": 1.1}, {"m": 1}, {"ef": 3}):
        with pytest.raises(ValidationError):
            IndexConfig(**wrong)
