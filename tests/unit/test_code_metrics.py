"""Metrics of VQ codes against loops from their definition, scikit-learn's weights, and a release asked end to end."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from jobs.__main__ import main
from pipeline.errors import ConfigError, InputError, IntegrityError
from pipeline.images import ImagesConfig
from pipeline.index import IndexConfig, LatentArrays, build_index, fitted_metric, nearest_exact, open_index
from pipeline.models import ModelConfig
from pipeline.models.autoencoder import AutoencoderConfig
from pipeline.models.quantizers import EMAConfig
from pipeline.models.vqvae import VQVAEConfig
from pipeline.models.vqvae2 import VQVAE2Config
from pipeline.planning.resolution import check_metric, compared_codes
from pipeline.reader import open_release
from pipeline.serving.current import _warmed
from pipeline.storage import Store, open_store

NAMES = ("codes", "codes_hamming")


@pytest.fixture(autouse=True)
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path.as_uri())


def latents_of(codes: np.ndarray) -> LatentArrays:
    return LatentArrays(mean=np.zeros((len(codes), 3), np.float32), codes=codes.astype(np.int32))


@pytest.fixture
def catalogue() -> LatentArrays:
    """Codes 0..11 of 16 cells, some of them in most photos and others in few; equal photos, and 3 in no photo."""
    generator = np.random.default_rng(0)
    share = np.linspace(1, 8, 12) ** 2
    share[3] = 0
    codes = generator.choice(12, (300, 16), p=share / share.sum())
    codes[7], codes[20] = codes[8], 5
    return latents_of(codes)


@pytest.fixture
def queries() -> LatentArrays:
    """Other photos; one has a code that no photo of the catalogue has, one only such."""
    codes = np.random.default_rng(1).integers(0, 12, (20, 16))
    codes[0, :5], codes[1] = 40, 3
    return latents_of(codes)


def weights_of(catalogue: LatentArrays) -> dict[int, float]:
    with_code = Counter(code for row in catalogue.codes.tolist() for code in set(row))
    return {code: math.log((1 + len(catalogue)) / (1 + held)) + 1 for code, held in with_code.items()}


def codes_oracle(left: list[int], right: list[int], idf: dict[int, float]) -> float:
    bags = [{code: n * idf[code] for code, n in Counter(side).items() if code in idf} for side in (left, right)]
    lengths = [math.sqrt(sum(value**2 for value in bag.values())) for bag in bags]
    product = sum(value * bags[1].get(code, 0.0) for code, value in bags[0].items())
    return product / (lengths[0] * lengths[1]) if all(lengths) else 0.0


def oracle_of(name: str, queries: LatentArrays, catalogue: LatentArrays) -> np.ndarray:
    idf, scores = weights_of(catalogue), np.empty((len(queries), len(catalogue)))
    for row, left in enumerate(queries.codes.tolist()):
        for column, right in enumerate(catalogue.codes.tolist()):
            if name == "codes":
                scores[row, column] = codes_oracle(left, right, idf)
            else:
                scores[row, column] = sum(a == b for a, b in zip(left, right, strict=True)) / len(left)
    return scores


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_those_of_the_definition(name: str, queries: LatentArrays, catalogue: LatentArrays) -> None:
    metric, truth = fitted_metric(name, "none", catalogue), oracle_of(name, queries, catalogue)
    np.testing.assert_allclose(metric.exact(queries, catalogue), truth, rtol=1e-12, atol=1e-12)
    features = metric.query_features(queries) @ metric.item_features(catalogue).T
    np.testing.assert_allclose(metric.score(features, queries), truth, atol=1e-6)
    ids, scores = nearest_exact(metric, catalogue, queries, 10)
    order = np.argsort(-np.round(truth, 12), axis=1, kind="stable")[:, :10]
    np.testing.assert_allclose(scores, np.take_along_axis(truth, order, axis=1), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(np.take_along_axis(truth, ids, axis=1), scores, rtol=1e-12, atol=1e-12)


def test_weights_are_those_of_scikit_learn(catalogue: LatentArrays) -> None:
    from sklearn.feature_extraction.text import TfidfTransformer

    counts = np.stack([np.bincount(row, minlength=12) for row in catalogue.codes])
    expected = TfidfTransformer().fit_transform(counts).toarray()
    features = fitted_metric("codes", "none", catalogue).item_features(catalogue)
    np.testing.assert_allclose(features, expected, atol=1e-6)
    unweighted = counts / np.linalg.norm(counts, axis=1, keepdims=True)
    assert np.abs(features - unweighted).max() > 0.05, "without idf it is another metric"
    assert np.abs(features - TfidfTransformer(norm=None).fit_transform(counts).toarray()).max() > 0.5


def test_only_hamming_sees_where_a_code_is(catalogue: LatentArrays) -> None:
    turned = latents_of(catalogue.codes[:, ::-1])
    bags, cells = (fitted_metric(name, "none", catalogue) for name in NAMES)
    np.testing.assert_allclose(np.diag(bags.exact(turned, catalogue)), 1.0, rtol=1e-12)
    assert np.diag(cells.exact(turned, catalogue)).mean() < 0.5


@pytest.mark.parametrize(
    ("name", "kind"), [(name, kind) for name in NAMES for kind in ("flat", "hnsw")] + [("codes", "flat_codes")]
)
def test_an_index_answers_by_codes_and_by_its_own_rows(
    name: str, kind: str, queries: LatentArrays, catalogue: LatentArrays
) -> None:
    built = build_index(catalogue, IndexConfig(metric=name, kind=kind, target_recall=0.5))
    metric, beside = built.index.metric.name, built.features
    index = open_index(built.data, metric, features=beside, parameters=built.parameters)
    own, truth = np.arange(0, 300, 30), oracle_of(name, catalogue.take(np.arange(0, 300, 30)), catalogue)
    for asked, expected in ((catalogue.take(own), truth), (index.latents(own), truth)):
        hits = index.search(asked, 10)
        np.testing.assert_allclose(hits.scores, np.take_along_axis(expected, hits.ids, axis=1), atol=1e-6)
        if kind == "flat":
            np.testing.assert_allclose(hits.scores, -np.sort(-expected, axis=1)[:, :10], atol=1e-6)
    hits = index.search(queries, 300)
    np.testing.assert_allclose(hits.scores, -np.sort(-oracle_of(name, queries, catalogue), axis=1), atol=1e-6)


def test_baskets_ask_with_the_best_one_query(catalogue: LatentArrays) -> None:
    basket, weights = catalogue.take([1, 2, 50]), np.array([1.0, 2.0, 0.5])
    for name in NAMES:
        metric = fitted_metric(name, "none", catalogue)
        middle = metric.barycentre(basket, weights)
        reached = float(weights @ metric.exact(middle, basket)[0])
        every = weights @ metric.exact(catalogue, basket).T
        assert reached >= every.max() - 1e-6, "no photo is nearer to all of them together"


def test_what_does_not_fit_is_refused(catalogue: LatentArrays) -> None:
    with pytest.raises(InputError, match="'codes' needs codes, which these latents do not have"):
        build_index(LatentArrays(mean=catalogue.mean), IndexConfig(metric="codes"))
    wide = latents_of(np.full((2, 16), 511))
    with pytest.raises(ConfigError, match=r"16 cells x 512 codes = 8,192 features a photo, 4,096 are the most"):
        build_index(wide, IndexConfig(metric="codes_hamming"))
    with pytest.raises(ConfigError, match=r"would hold 5,000 codes a photo, 4,096"):
        build_index(latents_of(np.full((2, 16), 4999)), IndexConfig(metric="codes"))
    with pytest.raises(ValueError, match="mask query_median does not go with metric codes; one of none"):
        IndexConfig(metric="codes", mask="query_median")
    built = {name: build_index(catalogue, IndexConfig(metric=name)) for name in NAMES}
    for name in NAMES:
        with pytest.raises(ConfigError, match="compares codes, which the queries lack"):
            built[name].index.search(LatentArrays(mean=catalogue.mean[:1]), 3)
    with pytest.raises(ConfigError, match="photos of 4 codes do not fit an index of 16"):
        built["codes_hamming"].index.search(latents_of(np.zeros((1, 4))), 3)
    with pytest.raises(IntegrityError, match=r"no index_parameters.photos_with_code"):
        open_index(built["codes"].data, "codes", parameters={})
    with pytest.raises(IntegrityError, match="holds 12 features a row, 'codes_hamming:16x12' has 192"):
        open_index(built["codes"].data, "codes_hamming:16x12")


@pytest.mark.parametrize("name", NAMES)
def test_a_catalogue_without_photos(name: str) -> None:
    empty = LatentArrays(np.empty((0, 0), np.float32), codes=np.empty((0, 0), np.int32))
    built = build_index(empty, IndexConfig(metric=name))
    assert open_index(built.data, built.index.metric.name, parameters=built.parameters).rows == 0


def test_planning_refuses_a_model_without_such_codes(store: Store) -> None:
    def asked(model: ModelConfig, name: str) -> Any:
        return SimpleNamespace(model=model, index=IndexConfig(metric=name), images=ImagesConfig(size=16))

    vq = VQVAEConfig(channels=(8, 8), quantizer=EMAConfig(num_codes=16, code_dim=4))
    cells = compared_codes(asked(vq, "codes_hamming"), store, None) // 16
    assert compared_codes(asked(vq, "codes"), store, None) == 16
    assert cells > 1
    assert compared_codes(asked(vq, "cosine"), store, None) == 0
    for name in NAMES:
        with pytest.raises(ConfigError, match="'autoencoder' yields none; take metric cosine or l2, or a model with"):
            check_metric(asked(AutoencoderConfig(latent_dim=4), name), store, None)
    two = VQVAE2Config(channels=(8, 8), top_quantizer=EMAConfig(num_codes=8), bottom_quantizer=EMAConfig(num_codes=16))
    with pytest.raises(ConfigError, match=r"counts the codes of one codebook, and this model .* has 2"):
        check_metric(asked(two, "codes"), store, None)
    with pytest.raises(ConfigError, match="cells x 8,192 codes"):
        check_metric(
            asked(VQVAEConfig(channels=(8, 8), quantizer=EMAConfig(num_codes=8192)), "codes_hamming"), store, None
        )


def test_old_configs_keep_their_bytes() -> None:
    assert '"metric":"cosine"' in IndexConfig().model_dump_json()
    assert set(IndexConfig(metric="codes").model_dump()) == set(IndexConfig().model_dump())


def best(scores: np.ndarray, photos: list[Any], left_out: str, k: int) -> list[tuple[str, float]]:
    """Return (item_id, score) of the k nearest by scores [n] of photos, one an item."""
    found = [(photo.item_id, score) for photo, score in zip(photos, scores, strict=True) if photo.item_id != left_out]
    return sorted(found, key=lambda pair: (-pair[1], pair[0]))[:k]


@pytest.mark.slow
def test_releases_answer_by_their_codes(store: Store, maker: Any, capsys: pytest.CaptureFixture[str]) -> None:
    made = maker.make_vq_release(store, index=IndexConfig(metric="codes"))
    model = {"model_id": open_release(store.url).model_id, "model_kind": "vqvae"}
    hamming = IndexConfig(metric="codes_hamming")
    maker.make_release(store, made.photos, run="cells", index=hamming, channel="cells", **model)
    held = latents_of(np.stack([photo.codes for photo in made.photos]))
    for name, channel in zip(NAMES, ("stable", "cells"), strict=True):
        release = open_release(store.url, channel=channel)
        for item in ("sku-003", maker.STRANGE):
            row = next(number for number, photo in enumerate(made.photos) if photo.item_id == item)
            truth = np.round(oracle_of(name, held.take([row]), held)[0], 6)
            expected = best(truth, made.photos, item, 7)
            found = release.similar(item, k=7)
            assert [near.item_id for near in found] == [item_id for item_id, _ in expected]
            np.testing.assert_allclose([near.score for near in found], [score for _, score in expected], atol=1e-6)
        asked = release._now().encoder()(maker.picture())
        truth = oracle_of(name, LatentArrays(asked.mean, codes=asked.codes), held)[0]
        found = release.similar_photo(maker.picture(), k=5)
        np.testing.assert_allclose([near.score for near in found], -np.sort(-truth)[:5], atol=1e-6)
        assert len(release.similar_to_many(["sku-001", "sku-004"], k=5, fusion="barycentre")) == 5
        assert _warmed(release), "a service asks it once each way before it serves"
    capsys.readouterr()
    assert main(["compare-metrics", f"store={store.url}", "--category", "category", "--json"]) == 0
    scores = {row["metric"]: row for row in json.loads(capsys.readouterr().out)["scores"]}
    assert [*scores] == ["l2", "cosine", *NAMES]
    assert scores["codes"]["own"]
    assert scores["codes"]["churn"] == 0.0
    assert scores["codes"]["precision"][0] > 0.9 > scores["cosine"]["precision"][0], "means know no category"
