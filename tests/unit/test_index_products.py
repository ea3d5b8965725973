"""Many queries scored together by matrix products answer as each of them alone, to the row."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipeline.index import (
    METRICS,
    IndexConfig,
    LatentArrays,
    SearchIndex,
    build_index,
    exact,
    nearest_exact,
    planner,
    products,
)
from pipeline.index.metric import Metric

K = 10


def drawn(count: int, dim: int, seed: int, *, length: float = 1.0) -> LatentArrays:
    generator = np.random.default_rng(seed)
    mean, log_var = generator.normal(size=(2, count, dim))
    return LatentArrays(mean=(length * mean).astype(np.float32), log_var=log_var.astype(np.float32))


def with_copies(count: int, dim: int) -> LatentArrays:
    """Rows among which one is there 200 times, and fifty are there twice; and one that is all zero."""
    items = drawn(count, dim, 0)
    copied = np.random.default_rng(1).permutation(count)
    for ones, of in ((copied[:200], copied[:1]), (copied[200:250], copied[250:300])):
        for held in (items.mean, items.log_var):
            assert held is not None
            held[ones] = held[of]
    items.mean[copied[300]] = 0.0
    return items


def flat(metric: str, items: LatentArrays) -> SearchIndex:
    return build_index(items, IndexConfig(kind="flat", metric=metric, threads=1, queries=1)).index


def alone(index: SearchIndex, queries: LatentArrays, allowed: np.ndarray | None) -> np.ndarray:
    return np.concatenate(
        [index.search(queries.take(np.s_[at : at + 1]), K, allowed=allowed).ids for at in range(len(queries))]
    )


@pytest.mark.parametrize("metric", ["cosine", "l2", "w2", "kl"])
def test_together_as_alone_and_as_the_truth(metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies at the edge of an answer come in the order of their rows, under any filter, in any block."""
    monkeypatch.setattr(products, "BLOCK", 500)
    monkeypatch.setattr(products, "_FEWEST", 30)
    for module in (planner, exact):
        monkeypatch.setattr(module, "TOGETHER", 64)
    items = with_copies(3000, 12)
    index, queries = flat(metric, items), items.take(np.arange(0, 3000, 30))
    generator = np.random.default_rng(2)
    for allowed in (None, *(np.sort(generator.permutation(3000)[:count]) for count in (1500, 150, 12, 3))):
        found = index.search(queries, K, allowed=allowed)
        np.testing.assert_array_equal(found.ids, alone(index, queries, allowed))
        rows = np.arange(3000) if allowed is None else allowed
        every = METRICS[metric].exact(queries, items.take(rows))
        truth = np.stack([np.lexsort((np.arange(len(rows)), -own))[:K] for own in every])
        scores, there = np.take_along_axis(every, truth, axis=1), truth.shape[1]
        np.testing.assert_array_equal(nearest_exact(METRICS[metric], items.take(rows), queries, K)[0], truth)
        np.testing.assert_array_equal(found.ids[:, :there], rows[truth])
        np.testing.assert_allclose(found.scores[:, :there], scores, rtol=1e-5, atol=1e-5)
        assert (found.ids[:, there:] == -1).all()


def trusting(metric: Metric) -> Metric:
    """The known wrong way: whatever lies behind what the products found is taken to be further."""
    return replace(metric, rounding=lambda values, queries, features: np.full(len(values), -np.inf))


def test_products_alone_put_copies_in_any_order() -> None:
    """Negative control of the test above."""
    items = with_copies(3000, 12)
    index, queries = flat("cosine", items), items.take(np.arange(64) * 40)
    copies = np.flatnonzero((items.mean == items.mean[np.random.default_rng(1).permutation(3000)[0]]).all(axis=1))
    queries = items.take(np.concatenate([copies[:32], np.arange(32)]))
    wrong = SearchIndex(index._index, trusting(METRICS["cosine"]))
    np.testing.assert_array_equal(index.search(queries, K).ids, alone(index, queries, None))
    assert (wrong.search(queries, K).ids != alone(index, queries, None)).any()


def test_features_that_overflow_answer_as_alone() -> None:
    """Products of them are not numbers; FAISS, asked for each alone, leaves such rows out."""
    items = drawn(400, 6, 3)
    items.mean[[5, 50, 399]] = 1e25  # whose squares float32 does not hold
    index, queries = flat("kl", items), items.take(np.arange(6, 40))
    np.testing.assert_array_equal(index.search(queries, K).ids, alone(index, queries, None))


def test_few_queries_are_faisss_and_many_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    items = drawn(5000, 8, 4)
    index, asked, searched = flat("cosine", items), list[int](), planner._searched
    monkeypatch.setattr(planner, "_searched", lambda *each: (asked.append(len(each[1])), searched(*each))[1])
    for count in (1, planner.MULTIPLIED - 1, planner.MULTIPLIED, 500):
        index.search(items.take(np.arange(count)), K)
    assert asked == [1, planner.MULTIPLIED - 1]


@pytest.mark.parametrize("metric", METRICS)
def test_ties_go_to_the_lower_row_whatever_is_copied(metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catalogues of few different photos, of few numbers: the truth and an exact index both, by definition."""
    monkeypatch.setattr(products, "BLOCK", 37)
    monkeypatch.setattr(products, "_FEWEST", 5)
    generator, known = np.random.default_rng(5), METRICS[metric]
    for _ in range(12):
        count, dim, k = (int(generator.integers(*ends)) for ends in ((1, 300), (1, 6), (1, 30)))
        different = max(1, count // int(generator.integers(1, 40)))
        ones = generator.normal(size=(2, different, dim)).round(1)[:, generator.integers(different, size=count)]
        items = LatentArrays(mean=ones[0].astype(np.float32), log_var=ones[1].astype(np.float32))
        rows = generator.integers(count, size=12)
        queries, own = items.take(rows), flat(metric, items)
        for scores, found in (
            (known.exact(queries, items), nearest_exact(known, items, queries, k)[0]),
            (known.exact(queries, own.latents(np.arange(count))), own.search(queries, min(k, count)).ids),
        ):
            truth = np.stack([np.lexsort((np.arange(count), -each))[:k] for each in scores])
            np.testing.assert_array_equal(found, truth)
