"""What every metric promises, run over METRICS; the oracle of each is written here from its definition, in float64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from pipeline.errors import IntegrityError
from pipeline.index import METRICS, IndexConfig, LatentArrays, build_index, nearest_exact, open_index

Oracle = Callable[[np.ndarray, np.ndarray], np.ndarray]


def l2(queries: np.ndarray, items: np.ndarray) -> np.ndarray:
    return np.array([[-np.linalg.norm(q - x) for x in items] for q in queries])


def cosine(queries: np.ndarray, items: np.ndarray) -> np.ndarray:
    return np.array([[np.dot(q, x) / (np.linalg.norm(q) * np.linalg.norm(x)) for x in items] for q in queries])


ORACLES: dict[str, Oracle] = {"l2": l2, "cosine": cosine}


@pytest.fixture(params=sorted(METRICS))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def items() -> LatentArrays:
    generator = np.random.default_rng(1)
    # Lengths from 0.1 to 10 and a common offset, so that cosine, L2 and inner product rank differently.
    mean = generator.normal(0.3, 1.0, (400, 12)) * generator.uniform(0.1, 10.0, (400, 1))
    return LatentArrays(mean=mean.astype(np.float32))


@pytest.fixture
def queries() -> LatentArrays:
    return LatentArrays(mean=np.random.default_rng(2).normal(size=(40, 12)).astype(np.float32))


def oracle_of(name: str, queries: LatentArrays, items: LatentArrays) -> np.ndarray:
    return ORACLES[name](queries.mean.astype(np.float64), items.mean.astype(np.float64))


def test_every_metric_has_an_oracle() -> None:
    assert sorted(ORACLES) == sorted(METRICS)


def test_exact_scores_are_those_of_the_definition(name: str, queries: LatentArrays, items: LatentArrays) -> None:
    np.testing.assert_allclose(
        METRICS[name].exact(queries, items), oracle_of(name, queries, items), rtol=1e-12, atol=1e-12
    )


def test_flat_search_is_exact(name: str, queries: LatentArrays, items: LatentArrays) -> None:
    index = build_index(items, IndexConfig(metric=name)).index
    truth = oracle_of(name, queries, items)
    ids, scores = index.search(queries, 10)
    order = np.argsort(-truth, axis=1, kind="stable")[:, :10]
    np.testing.assert_array_equal(ids, order)
    np.testing.assert_allclose(scores, np.take_along_axis(truth, order, axis=1), atol=2e-6)
    assert (np.diff(scores, axis=1) <= 0).all(), "larger is nearer, nearest first"


def test_graph_search_finds_most_and_scores_all_of_it_right(
    name: str, queries: LatentArrays, items: LatentArrays
) -> None:
    index = build_index(items, IndexConfig(metric=name, kind="hnsw", target_recall=1.0)).index
    truth = oracle_of(name, queries, items)
    ids, scores = index.search(queries, 10)
    order = np.argsort(-truth, axis=1, kind="stable")[:, :10]
    found = np.mean([len(np.intersect1d(*pair)) for pair in zip(ids, order, strict=True)]) / 10
    assert found >= 0.98, "queries from outside the catalogue may miss a row or two"
    np.testing.assert_allclose(scores, np.take_along_axis(truth, ids, axis=1), atol=2e-6)
    assert (np.diff(scores, axis=1) <= 0).all()


def test_numpy_truth_is_that_of_the_definition(name: str, queries: LatentArrays, items: LatentArrays) -> None:
    truth = oracle_of(name, queries, items)
    ids, scores = nearest_exact(METRICS[name], items, queries, 10)
    np.testing.assert_array_equal(ids, np.argsort(-truth, axis=1, kind="stable")[:, :10])
    np.testing.assert_allclose(scores, -np.sort(-truth, axis=1)[:, :10], atol=1e-12)


def test_faiss_values_map_to_scores(name: str, queries: LatentArrays, items: LatentArrays) -> None:
    metric = METRICS[name]
    left, right = metric.query_features(queries).astype(np.float64), metric.item_features(items).astype(np.float64)
    if metric.geometry == "inner_product":
        values = left @ right.T
    else:
        values = np.sum((left[:, None] - right[None]) ** 2, axis=-1)
    np.testing.assert_allclose(metric.score(values, queries), oracle_of(name, queries, items), atol=1e-6)


def test_nothing_is_nearer_than_itself(name: str, items: LatentArrays) -> None:
    scores = METRICS[name].exact(items, items)
    assert (np.diag(scores)[:, None] >= scores - 1e-12).all()


def test_symmetric_where_it_says_so(name: str, queries: LatentArrays, items: LatentArrays) -> None:
    metric = METRICS[name]
    there, back = metric.exact(queries, items), metric.exact(items, queries).T
    assert np.allclose(there, back, rtol=1e-12, atol=1e-12) == metric.symmetric


def test_features_are_enough_for_exact_scores(name: str, queries: LatentArrays, items: LatentArrays) -> None:
    metric = METRICS[name]
    recovered = metric.recover(metric.item_features(items))
    np.testing.assert_allclose(metric.exact(queries, recovered), oracle_of(name, queries, items), atol=2e-6)


def test_equal_rows_have_equal_scores_to_the_bit(name: str, queries: LatentArrays, items: LatentArrays) -> None:
    metric = METRICS[name]
    doubled = LatentArrays(mean=np.concatenate([items.mean, items.mean[::-1]]))
    scores = metric.exact(queries, doubled)
    np.testing.assert_array_equal(scores[:, :400], scores[:, 400:][:, ::-1])
    alone = metric.pair_scores(queries.take([3]).take(np.s_[:, None]), items.take(np.array([[17]])))
    assert alone[0, 0] == scores[3, 17], "whatever the shapes"


def test_ceiling_is_above_every_row_behind(name: str, items: LatentArrays) -> None:
    # Far from the origin the expanded L2 distance loses digits: the ceiling must allow for them.
    far = LatentArrays(mean=items.mean + np.float32(50.0))
    asked = far.take(np.arange(30))
    index = build_index(far, IndexConfig(metric=name)).index
    truth = oracle_of(name, asked, far)
    hits = index.search_bounded(asked, 20)
    for row in range(30):
        behind = np.setdiff1d(np.arange(400), hits.ids[row])
        assert truth[row, behind].max() <= hits.ceilings[row]


def test_barycentre_is_the_best_single_query(name: str, items: LatentArrays) -> None:
    metric, weights = METRICS[name], np.array([1.0, 2.0, 0.5])
    basket = items.take(np.arange(3))

    def value(query: LatentArrays) -> float:
        scores = oracle_of(name, query, basket)[0]
        # Largest weighted sum of cosines; for l2 the least weighted sum of squared distances.
        return float(np.sum(weights * (scores if name == "cosine" else -(scores**2))))

    centre = metric.barycentre(basket, weights)
    assert centre.mean.shape == (1, 12)
    generator = np.random.default_rng(0)
    scale = np.linalg.norm(centre.mean)
    for _ in range(50):
        moved = centre.mean + generator.normal(0, 0.02 * scale, (1, 12)).astype(np.float32)
        assert value(LatentArrays(mean=moved)) <= value(centre) + 1e-6


def test_zero_vectors_are_no_error(name: str) -> None:
    items = LatentArrays(mean=np.array([[0, 0], [1, 0], [-1, 0]], np.float32))
    scores = METRICS[name].exact(items, items)
    assert np.isfinite(scores).all()
    assert scores[0].tolist() == {"l2": [0.0, -1.0, -1.0], "cosine": [0.0, 0.0, 0.0]}[name]


def test_an_index_of_another_geometry_is_refused(name: str, items: LatentArrays) -> None:
    other = "l2" if METRICS[name].geometry == "inner_product" else "cosine"
    data = build_index(items, IndexConfig(metric=other)).data
    with pytest.raises(IntegrityError, match=name):
        open_index(data, name)
