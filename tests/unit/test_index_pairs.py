"""Codes of Gaussians, a word a latent: the divergence from the words by its definition, recall, files, refusals."""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np
import pytest
from pydantic import ValidationError

from pipeline.index import IndexConfig, LatentArrays, build_index, estimate_bytes, fitted_metric, kinds_here, open_index
from pipeline.index import planner as planner_module
from pipeline.index.filling import filling, train
from pipeline.index.kinds import KINDS, candidate_kinds
from pipeline.index.segments import most_rows

ROWS, DIM, K = 2_000, 5, 10
METRICS = [
    ("kl", "query_median"),
    ("reverse_kl", "none"),
    ("jeffreys", "query_median"),
    ("jeffreys", "catalogue_median"),
    ("w2", "query_median"),
]


def gaussians(count: int, *, seed: int = 0) -> LatentArrays:
    """Deviations that differ by latent and by row, as those of encoders do."""
    drawn = np.random.default_rng(seed)
    log_var = np.linspace(-4.0, -0.5, DIM) + 0.4 * drawn.normal(size=(count, DIM))
    mean = drawn.normal(size=(count, DIM)) * np.linspace(1.0, 0.4, DIM)
    return LatentArrays(mean=mean.astype(np.float32), log_var=log_var.astype(np.float32))


def config(metric: str, mask: str = "none", **asked: Any) -> IndexConfig:
    return IndexConfig.model_validate(
        {"kind": "ivf_pairs", "metric": metric, "mask": mask, "threads": 1, "queries": 100, **asked}
    )


@pytest.fixture
def no_scans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner_module, "_SCAN_ROWS", 0)  # else so few rows are scored one by one


def filled(asked: IndexConfig, items: LatentArrays, *, block: int = ROWS) -> Any:
    metric = fitted_metric(asked.metric, asked.mask, items)
    features = metric.item_features(items)
    index = KINDS["ivf_pairs"].make(features.shape[1], faiss.METRIC_INNER_PRODUCT, len(items), asked)
    assert not index.is_trained
    train("ivf_pairs", index, features, metric, asked)
    # As segments have it: what is trained comes from a file.
    index = faiss.deserialize_index(faiss.serialize_index(index))
    filling_it = filling("ivf_pairs", index, metric, asked)
    for start in range(0, len(items), block):
        filling_it.add(features[start : start + block])
    return filling_it.finished()


def kl(q: tuple[Any, Any], x: tuple[Any, Any]) -> Any:
    """By the definition, of each latent: means and variances."""
    return 0.5 * (np.log(x[1] / q[1]) + (q[1] + (q[0] - x[0]) ** 2) / x[1] - 1.0)


def test_what_is_looked_up_is_the_divergence_from_the_words() -> None:
    items, queries = gaussians(ROWS), gaussians(20, seed=1)
    for mask in ("none", "query_median"):
        asked = config("kl", mask)
        index = filled(asked, items)
        lists = faiss.downcast_index(index.index)
        lists.nprobe = lists.nlist
        features = fitted_metric("kl", mask, items).query_features(queries)
        values, rows = getattr(index, "search_numpy", index.search)(features, ROWS)
        assert (np.sort(rows, axis=1) == np.arange(ROWS)).all(), "every row once"
        codes = np.empty((ROWS, DIM), np.int64)
        for cell in range(lists.nlist):
            count = lists.invlists.list_size(cell)
            ids = faiss.rev_swig_ptr(lists.invlists.get_ids(cell), count)
            held = faiss.rev_swig_ptr(lists.invlists.get_codes(cell), count * DIM)
            codes[ids] = held.reshape(count, DIM)
        table = faiss.vector_to_array(lists.pq.centroids).reshape(DIM, 256, 3).astype(np.float64)
        precision, weighted, _ = table[np.arange(DIM), codes].transpose(2, 0, 1)
        words = weighted / precision, 1.0 / precision
        assert np.abs(words[0] - items.mean).mean() < 0.1 * items.mean.std()
        assert queries.log_var is not None
        for at in range(len(queries)):
            log_var = queries.log_var[at].astype(np.float64)
            kept = log_var < np.median(log_var) if mask == "query_median" else np.ones(DIM, bool)
            parts = kl((queries.mean[at].astype(np.float64), np.exp(log_var)), words)[:, kept].sum(axis=1)
            apart = values[at].astype(np.float64) + parts[rows[at]]  # all that is left is of the query alone
            assert np.ptp(apart) < 1e-3


@pytest.mark.usefixtures("no_scans")
@pytest.mark.parametrize(("metric", "mask"), METRICS)
def test_neighbours_by_words_are_those_by_definition_after_exact_scores(metric: str, mask: str) -> None:
    items, queries = gaussians(ROWS), gaussians(60, seed=1)
    asked = config(metric, mask, target_recall=0.85)
    built = build_index(items, asked)
    index = open_index(built.data, built.index.metric.name, features=built.features, parameters=built.parameters)
    ids, scores = index.search(queries, K)
    truth, exact = index.exactly().search(queries, K)
    assert np.mean([len(np.intersect1d(*pair)) / K for pair in zip(ids, truth, strict=True)]) >= 0.83
    same = ids == truth
    np.testing.assert_array_equal(scores[same], exact[same])
    half = np.arange(0, ROWS, 2)
    ids, _ = index.search(queries, K, allowed=half)
    assert np.isin(ids, half).all()
    assert built.index.rows == ROWS
    assert len(built.data) == pytest.approx(estimate_bytes(ROWS, index.dim, asked), rel=0.05)


def test_negative_control_words_of_the_terms_as_they_lie() -> None:
    """The same bytes a row, found in the terms themselves in the order in which they lie."""
    items, queries = gaussians(ROWS), gaussians(60, seed=1)
    metric = fitted_metric("kl", "query_median", items)
    features, asked = metric.item_features(items), metric.query_features(queries)
    plain = faiss.IndexPQ(features.shape[1], DIM, 8, faiss.METRIC_INNER_PRODUCT)
    plain.pq.cp.min_points_per_centroid = 1
    plain.train(features)
    plain.add(features)
    pairs = filled(config("kl", "query_median"), items)
    faiss.downcast_index(pairs.index).nprobe = faiss.downcast_index(pairs.index).nlist
    truth = np.argsort(-(asked.astype(np.float64) @ features.T), axis=1)[:, :K]

    def recall(index: Any) -> float:
        _, found = getattr(index, "search_numpy", index.search)(asked, 26)
        return float(np.mean([len(np.intersect1d(*pair)) / K for pair in zip(found, truth, strict=True)]))

    assert recall(pairs) > 0.97
    assert recall(plain) < 0.7


def test_files_are_the_same_whatever_the_blocks_and_follow_the_seed() -> None:
    items = gaussians(1_500)
    asked = config("jeffreys")
    whole, pieces, other = (
        faiss.serialize_index(filled(each, items, block=block)).tobytes()
        for each, block in ((asked, 1_500), (asked, 400), (config("jeffreys", seed=1), 1_500))
    )
    assert whole == pieces != other


@pytest.mark.parametrize("count", [0, 1, 5])
def test_hardly_any_photos(count: int) -> None:
    built = build_index(gaussians(count), config("kl"))
    ids, scores = built.index.search(gaussians(2, seed=1), 4)
    assert ((ids >= 0).sum(axis=1) == min(count, 4)).all()
    assert np.isneginf(scores[ids < 0]).all()


def test_equal_and_very_sure_gaussians() -> None:
    one = gaussians(2)
    assert one.log_var is not None
    items = LatentArrays(mean=np.repeat(one.mean, 300, axis=0), log_var=np.repeat(one.log_var - 30.0, 300, axis=0))
    ids, scores = build_index(items, config("kl")).index.search(items.take(np.s_[[0, 599]]), K)
    assert (ids[0] < 300).all()
    assert (ids[1] >= 300).all()
    np.testing.assert_allclose(scores, 0.0, atol=1e-9)


def test_other_metrics_are_refused_and_their_auto_is_as_before() -> None:
    for metric in ("cosine", "l2", "w2", "codes"):
        with pytest.raises(ValidationError, match=r"ivf_pairs does not go with metric .* take kind ivf_sq8 or ivf_pq"):
            config(metric)
    cosine = IndexConfig(kind="auto")
    assert "ivf_pairs" not in kinds_here(cosine)
    assert most_rows(64, cosine) == most_rows(64, IndexConfig(kind="auto", metric="l2")) == 2_000_000
    assert "ivf_pairs" in candidate_kinds(ROWS, 2 * DIM + 1, IndexConfig(kind="auto", metric="kl"))
