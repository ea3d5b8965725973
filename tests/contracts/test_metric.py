"""What every metric under every mask promises; the oracle of each is a loop from its definition, in float64."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
import pytest

from pipeline.errors import ConfigError, InputError, IntegrityError
from pipeline.index import (
    MASKED,
    METRICS,
    IndexConfig,
    LatentArrays,
    Metric,
    build_index,
    fitted_metric,
    metric_named,
    nearest_exact,
    open_index,
)

Side = tuple[np.ndarray, np.ndarray]  # means and deviations [d] of one photo
Oracle = Callable[[Side, Side], float]


def l2(query: Side, item: Side) -> float:
    return -float(np.linalg.norm(query[0] - item[0]))


def cosine(query: Side, item: Side) -> float:
    lengths = np.linalg.norm(query[0]) * np.linalg.norm(item[0])
    return float(np.dot(query[0], item[0]) / lengths) if lengths else 0.0


def kl(query: Side, item: Side) -> float:
    (m, s), (n, t) = query, item
    return -float(np.sum(np.log(t / s) + (s**2 + (m - n) ** 2) / (2 * t**2) - 0.5))


def reverse_kl(query: Side, item: Side) -> float:
    return kl(item, query)


def jeffreys(query: Side, item: Side) -> float:
    return kl(query, item) + kl(item, query)


def w2(query: Side, item: Side) -> float:
    return -float(np.sqrt(np.sum((query[0] - item[0]) ** 2) + np.sum((query[1] - item[1]) ** 2)))


ORACLES: dict[str, Oracle] = {
    "l2": l2,
    "cosine": cosine,
    "kl": kl,
    "reverse_kl": reverse_kl,
    "jeffreys": jeffreys,
    "w2": w2,
}
# Those of codes have latents of their own: tests/unit/test_code_metrics.py.
NAMES = sorted(f"{name}/{mask}" for name in METRICS for mask in MASKED[name])


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def config_of(name: str, **others: object) -> IndexConfig:
    metric, mask = name.split("/")
    return IndexConfig(metric=metric, mask=mask, **others)


def metric_of(name: str, items: LatentArrays) -> Metric:
    return fitted_metric(*name.split("/"), items)


def plain(name: str) -> str:
    return name.split("/")[0]


@pytest.fixture(scope="module")
def items() -> LatentArrays:
    generator = np.random.default_rng(1)
    # Lengths from 0.1 to 10 and a common offset, so that cosine, L2 and inner product rank differently.
    mean = generator.normal(0.3, 1.0, (400, 12)) * generator.uniform(0.1, 10.0, (400, 1))
    return LatentArrays(mean=mean.astype(np.float32), log_var=log_vars(400, 3))


@pytest.fixture(scope="module")
def queries() -> LatentArrays:
    mean = np.random.default_rng(2).normal(size=(40, 12)).astype(np.float32)
    return LatentArrays(mean=mean, log_var=log_vars(40, 4))


def log_vars(count: int, seed: int) -> np.ndarray:
    """Some latents surer than others in every photo, and some far below the floor of sigma = 0.01."""
    generator = np.random.default_rng(seed)
    values = generator.normal(np.linspace(-5.0, 1.0, 12), 1.0, (count, 12))
    values[::7, 2] = -30.0
    return values.astype(np.float32)


def oracle_of(
    name: str, queries: LatentArrays, items: LatentArrays, catalogue: LatentArrays | None = None
) -> np.ndarray:
    """Return the scores pair by pair; catalogue: whose mean variances choose the latents of `catalogue_median`."""
    metric, mask = name.split("/")
    deviations = [sigmas(side) for side in (queries, items)]
    fixed = below(np.mean(sigmas(catalogue or items) ** 2, axis=0)) if mask == "catalogue_median" else None
    scores = np.empty((len(queries), len(items)))
    for row, (m, s) in enumerate(zip(queries.mean.astype(np.float64), deviations[0], strict=True)):
        kept = below(s) if mask == "query_median" else np.ones(len(m), bool) if fixed is None else fixed
        for column, (n, t) in enumerate(zip(items.mean.astype(np.float64), deviations[1], strict=True)):
            scores[row, column] = ORACLES[metric]((m[kept], s[kept]), (n[kept], t[kept]))
    return scores


def sigmas(latents: LatentArrays) -> np.ndarray:
    return np.maximum(np.exp(0.5 * latents.log_var.astype(np.float64)), 0.01)


def below(values: np.ndarray) -> np.ndarray:
    middle = float(np.median(values))
    found = np.array([value < middle for value in values])
    return found if found.any() else np.array([value <= middle for value in values])


@pytest.fixture(scope="module")
def truths(queries: LatentArrays, items: LatentArrays) -> Callable[[str], np.ndarray]:
    """Call with a name: the oracle's scores of `queries` and `items`, which take longer than what they judge."""

    @functools.cache
    def of(name: str) -> np.ndarray:
        scores = oracle_of(name, queries, items)
        scores.setflags(write=False)
        return scores

    return of


@pytest.fixture
def truth(name: str, truths: Callable[[str], np.ndarray]) -> np.ndarray:
    return truths(name)


def near(found: np.ndarray, expected: np.ndarray, digits: float = 1e-5) -> None:
    """Assert equal scores, up to what float32 latents and features leave of their digits."""
    np.testing.assert_allclose(found, expected, rtol=digits, atol=2e-6)


def nearest(truth: np.ndarray, k: int = 10) -> np.ndarray:
    return np.argsort(-truth, axis=1, kind="stable")[:, :k]


def test_every_metric_has_an_oracle() -> None:
    assert sorted(ORACLES) == sorted(METRICS)


def test_exact_scores_are_those_of_the_definition(
    name: str, queries: LatentArrays, items: LatentArrays, truth: np.ndarray
) -> None:
    np.testing.assert_allclose(metric_of(name, items).exact(queries, items), truth, rtol=1e-12, atol=1e-12)


def test_flat_search_is_exact(name: str, queries: LatentArrays, items: LatentArrays, truth: np.ndarray) -> None:
    index = build_index(items, config_of(name)).index
    ids, scores = index.search(queries, 10)
    order = nearest(truth)
    np.testing.assert_array_equal(ids, order)
    near(scores, np.take_along_axis(truth, order, axis=1))
    assert (np.diff(scores, axis=1) <= 0).all(), "larger is nearer, nearest first"


@pytest.mark.usefixtures("walked")
def test_graph_search_finds_most_and_scores_all_of_it_right(
    name: str, queries: LatentArrays, items: LatentArrays, truth: np.ndarray
) -> None:
    if metric_of(name, items).cancels:
        with pytest.raises(ValueError, match="kind hnsw does not go with metric"):
            config_of(name, kind="hnsw")
        return
    index = build_index(items, config_of(name, kind="hnsw", target_recall=1.0)).index
    ids, scores = index.search(queries, 10)
    order = nearest(truth)
    found = np.mean([len(np.intersect1d(*pair)) for pair in zip(ids, order, strict=True)]) / 10
    assert found >= 0.98, "queries from outside the catalogue may miss a row or two"
    near(scores, np.take_along_axis(truth, ids, axis=1))
    assert (np.diff(scores, axis=1) <= 0).all()


def test_numpy_truth_is_that_of_the_definition(
    name: str, queries: LatentArrays, items: LatentArrays, truth: np.ndarray
) -> None:
    ids, scores = nearest_exact(metric_of(name, items), items, queries, 10)
    np.testing.assert_array_equal(ids, nearest(truth))
    np.testing.assert_allclose(scores, -np.sort(-truth, axis=1)[:, :10], rtol=1e-12, atol=1e-12)


def test_faiss_values_map_to_scores(name: str, queries: LatentArrays, items: LatentArrays, truth: np.ndarray) -> None:
    metric = metric_of(name, items)
    left, right = metric.query_features(queries).astype(np.float64), metric.item_features(items).astype(np.float64)
    if metric.geometry == "inner_product":
        values = left @ right.T
    else:
        values = np.sum((left[:, None] - right[None]) ** 2, axis=-1)
    np.testing.assert_allclose(metric.score(values, queries), truth, rtol=1e-5, atol=1e-3 if metric.cancels else 1e-6)


def test_nothing_is_nearer_than_itself(name: str, items: LatentArrays) -> None:
    scores = metric_of(name, items).exact(items, items)
    assert (np.diag(scores)[:, None] >= scores - 1e-12).all()


def test_symmetric_where_it_says_so(name: str, queries: LatentArrays, items: LatentArrays) -> None:
    metric = metric_of(name, items)
    there, back = metric.exact(queries, items), metric.exact(items, queries).T
    assert np.allclose(there, back, rtol=1e-12, atol=1e-12) == metric.symmetric


def test_features_are_enough_for_exact_scores(
    name: str, queries: LatentArrays, items: LatentArrays, truth: np.ndarray
) -> None:
    metric = metric_of(name, items)
    recovered = metric.recover(metric.item_features(items))
    near(metric.exact(queries, recovered), truth)
    near(metric.exact(recovered, queries), oracle_of(name, items, queries, items))


def test_equal_rows_have_equal_scores_to_the_bit(name: str, queries: LatentArrays, items: LatentArrays) -> None:
    metric = metric_of(name, items)
    doubled = items.take(np.concatenate([np.arange(400), np.arange(400)[::-1]]))
    scores = metric.exact(queries, doubled)
    np.testing.assert_array_equal(scores[:, :400], scores[:, 400:][:, ::-1])
    alone = metric.pair_scores(queries.take([3]).take(np.s_[:, None]), items.take(np.array([[17]])))
    assert alone[0, 0] == scores[3, 17], "whatever the shapes"


def test_ceiling_is_above_every_row_behind(name: str, items: LatentArrays) -> None:
    # Far from the origin the expanded L2 distance loses digits: the ceiling must allow for them.
    far = LatentArrays(mean=items.mean + np.float32(50.0), log_var=items.log_var)
    asked = far.take(np.arange(30))
    index = build_index(far, config_of(name)).index
    # Of an inner product the index knows what float32 features leave of the latents, and bounds its own scores.
    known = index.latents(np.arange(400))
    truth = index.metric.exact(asked, known) if index.metric.cancels else oracle_of(name, asked, far)
    hits = index.search_bounded(asked, 20)
    for row in range(30):
        behind = np.setdiff1d(np.arange(400), hits.ids[row])
        assert truth[row, behind].max() <= hits.ceilings[row]


def test_barycentre_is_the_best_single_query(name: str, items: LatentArrays) -> None:
    if name.endswith("/query_median"):
        pytest.skip("the middle's own variances choose what counts, so the least sum is no question: see the next test")
    metric, weights = metric_of(name, items), np.array([1.0, 2.0, 0.5])
    basket = items.take(np.arange(3))

    def value(query: LatentArrays) -> float:
        scores = oracle_of(name, query, basket, items)[0]
        # The largest weighted sum of scores; of distances the least weighted sum of squares.
        return float(np.sum(weights * (-(scores**2) if plain(name) in ("l2", "w2") else scores)))

    centre = metric.barycentre(basket, weights)
    assert centre.mean.shape == (1, 12)
    middle = LatentArrays(mean=centre.mean, log_var=np.zeros((1, 12), np.float32)) if centre.log_var is None else centre
    generator = np.random.default_rng(0)
    for size in (0.5, 0.02) * 50:
        step = generator.normal(0, size, (2, 1, 12)).astype(np.float32) * generator.integers(0, 2, (2, 1, 12))
        moved = LatentArrays(
            mean=middle.mean + (step[0] * np.exp(0.5 * middle.log_var)).astype(np.float32),
            log_var=(middle.log_var + step[1]).astype(np.float32),
        )
        assert value(moved) <= value(middle) + 1e-6 * (1 + abs(value(middle)))


def test_barycentre_under_a_querys_mask_is_that_of_all_latents(items: LatentArrays) -> None:
    weights, basket = np.array([1.0, 2.0, 0.5]), items.take(np.arange(3))
    for name in ("l2", "kl", "reverse_kl", "jeffreys", "w2"):
        masked = metric_named(f"{name}/query_median").barycentre(basket, weights)
        np.testing.assert_allclose(masked.mean, METRICS[name].barycentre(basket, weights).mean, rtol=1e-6)
        assert masked.log_var is not None


def test_barycentre_of_one_item_is_it(name: str, items: LatentArrays) -> None:
    metric, one = metric_of(name, items), items.take([5])
    np.testing.assert_allclose(
        metric.exact(metric.barycentre(one, np.array([3.0])), one), metric.exact(one, one), atol=1e-5
    )


def test_zero_vectors_are_no_error(name: str) -> None:
    items = LatentArrays(
        mean=np.array([[0, 0], [1, 0], [-1, 0]], np.float32), log_var=np.tile(np.float32([0.0, 1.0]), (3, 1))
    )
    scores = metric_of(name, items).exact(items, items)
    assert np.isfinite(scores).all()
    expected = {
        "cosine": [0.0, 0.0, 0.0],
        "l2": [0.0, -1.0, -1.0],
        "w2": [0.0, -1.0, -1.0],
        "jeffreys": [0.0, -1.0, -1.0],
    }
    assert scores[0].tolist() == expected.get(plain(name), [0.0, -0.5, -0.5])


def test_an_index_of_another_geometry_is_refused(name: str, items: LatentArrays) -> None:
    metric = metric_of(name, items)
    other = "l2" if metric.geometry == "inner_product" else "cosine"
    data = build_index(items, IndexConfig(metric=other)).data
    with pytest.raises(IntegrityError, match=plain(name)):
        open_index(data, metric.name)


def degenerate(case: str) -> LatentArrays:
    generator = np.random.default_rng(11)
    mean, log_var = generator.normal(size=(300, 12)), generator.normal(-4.0, 1.5, (300, 12))
    if case == "all at the floor":
        log_var[:] = -20.0
    elif case == "nearly equal, at the floor and far away":  # where inner products in float32 keep no digit of KL
        mean = 40.0 + generator.normal(0, 1e-3, (300, 12)) + 0.02 * generator.integers(0, 3, (300, 1))
        log_var[:] = -20.0
    elif case == "equal rows":
        mean[50:250], log_var[50:250] = mean[0], log_var[0]
    elif case == "zero vectors":
        mean[::2] = 0.0
        log_var[::2] = 0.0
    return LatentArrays(mean=mean.astype(np.float32), log_var=log_var.astype(np.float32))


CASES = ["all at the floor", "nearly equal, at the floor and far away", "equal rows", "zero vectors"]


@pytest.mark.parametrize("case", CASES)
def test_degenerate_latents_have_all_their_neighbours(name: str, case: str) -> None:
    items = degenerate(case)
    asked = items.take(np.arange(0, 300, 25))
    truth = oracle_of(name, asked, items)
    kth = -np.sort(-truth, axis=1)[:, 9]
    slack = 1e-5 * np.maximum(1.0, np.abs(kth))  # of the latents' own float32
    built = build_index(items, config_of(name))
    for ids in (built.index.search(asked, 10).ids, nearest_exact(built.index.metric, items, asked, 10)[0]):
        assert len({*map(len, map(set, ids.tolist()))}) == 1
        assert (np.take_along_axis(truth, ids, axis=1) >= (kth - slack)[:, None]).all(), "overlap@10 is 1"
    assert built.recall == 1.0


def overlap(left: np.ndarray, right: np.ndarray) -> float:
    return float(np.mean([len(np.intersect1d(*pair)) for pair in zip(left, right, strict=True)]) / left.shape[1])


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("kl/none", "reverse_kl/none"),
        ("reverse_kl/none", "kl/none"),
        ("jeffreys/none", "kl/none"),
        ("w2/none", "l2/none"),
        ("kl/none", "kl/query_median"),
        ("kl/query_median", "kl/catalogue_median"),
        ("l2/query_median", "l2/none"),
    ],
)
def test_the_oracle_tells_it_from_its_like(right: str, wrong: str) -> None:
    generator = np.random.default_rng(3)
    items, asked = (
        LatentArrays(
            mean=generator.normal(0, 0.5, (size, 12)).astype(np.float32),
            log_var=generator.normal(0.0, 1.5, (size, 12)).astype(np.float32),
        )
        for size in (300, 20)
    )
    truth = nearest(oracle_of(right, asked, items))
    assert overlap(build_index(items, config_of(right)).index.search(asked, 10).ids, truth) == 1.0
    assert overlap(build_index(items, config_of(wrong)).index.search(asked, 10).ids, truth) < 0.97


def test_w2_is_a_root_and_divergences_are_none() -> None:
    one, other = (
        LatentArrays(mean=np.full((1, 1), at, np.float32), log_var=np.zeros((1, 1), np.float32)) for at in (0, 3)
    )
    found = {name: METRICS[name].exact(one, other).item() for name in METRICS if name != "cosine"}
    assert found == {"l2": -3.0, "w2": -3.0, "kl": -4.5, "reverse_kl": -4.5, "jeffreys": -9.0}


def test_the_floor_is_part_of_the_metric() -> None:
    sure, surer = (
        LatentArrays(mean=np.zeros((1, 2), np.float32), log_var=np.full((1, 2), v, np.float32)) for v in (-20, -90)
    )
    wide = LatentArrays(mean=np.zeros((1, 2), np.float32), log_var=np.zeros((1, 2), np.float32))
    for name in ("kl", "reverse_kl", "jeffreys", "w2"):
        assert METRICS[name].exact(sure, surer).item() == 0.0
        assert METRICS[name].exact(wide, surer).item() == METRICS[name].exact(wide, sure).item()
    # Without it e^90 in place of 1 / 0.01^2, which float32 features could not hold.
    assert math.isclose(METRICS["kl"].exact(wide, surer).item(), -2 * (math.log(0.01) + 0.5e4 - 0.5), rel_tol=1e-12)
    assert np.isfinite(METRICS["kl"].item_features(LatentArrays(wide.mean, np.full((1, 2), 1e30, np.float32)))).all()


def test_masks_are_in_the_name_and_the_name_is_enough(name: str, queries: LatentArrays, items: LatentArrays) -> None:
    built = build_index(items, config_of(name))
    reopened = open_index(built.data, built.index.metric.name)
    np.testing.assert_array_equal(reopened.search(queries, 5).ids, built.index.search(queries, 5).ids)
    assert reopened.latent_dim == 12
    with pytest.raises(ConfigError, match="40, 11"):
        reopened.search(LatentArrays(queries.mean[:, 1:], queries.log_var[:, 1:]), 5)


@pytest.mark.parametrize(
    "wrong", ["kl/", "kl/none", "cosine/query_median", "kl/catalogue_median", "kl/catalogue_median:12:ff", "dot"]
)
def test_unknown_names_are_refused(wrong: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown metric '{wrong}'"):
        metric_named(wrong)


def test_what_a_metric_lacks_is_said(items: LatentArrays) -> None:
    means = LatentArrays(mean=items.mean)
    with pytest.raises(InputError, match="'kl' needs log_var, which these latents do not have"):
        build_index(means, IndexConfig(metric="kl"))
    with pytest.raises(InputError, match="'cosine' with the mask 'catalogue_median' needs log_var"):
        build_index(means, IndexConfig(metric="cosine", mask="catalogue_median"))
    with pytest.raises(ConfigError, match="'kl' compares log_var, which the queries lack"):
        build_index(items, IndexConfig(metric="kl")).index.search(means, 3)
    fixed = build_index(items, IndexConfig(metric="cosine", mask="catalogue_median")).index
    assert fixed.search(means, 3).ids.tolist() == fixed.search(items, 3).ids.tolist(), "fitted, it needs means alone"
    with pytest.raises(ValueError, match="query_median does not go with metric cosine"):
        IndexConfig(metric="cosine", mask="query_median")
    assert "mask" not in IndexConfig(metric="kl").model_dump(), "keys of releases without a mask stay as they were"
    assert IndexConfig(mask="catalogue_median").model_dump()["mask"] == "catalogue_median"


@pytest.mark.parametrize("metric", ["cosine", "kl"])
def test_no_latents_at_all(metric: str) -> None:
    nothing = np.empty((0, 0), np.float32)
    built = build_index(LatentArrays(nothing, nothing), IndexConfig(metric=metric, mask="catalogue_median"))
    assert built.index.rows == 0
    assert open_index(built.data, built.index.metric.name).rows == 0
