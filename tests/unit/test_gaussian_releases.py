"""Releases whose metric compares Gaussians: opened, asked, refused where variances are missing, and compared."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from jobs.__main__ import main
from pipeline.errors import ConfigError, InputError, IntegrityError
from pipeline.evaluation.metric_table import metric_scores
from pipeline.images import ImagesConfig
from pipeline.index import IndexConfig, LatentArrays, fitted_metric
from pipeline.models.autoencoder import AutoencoderConfig
from pipeline.models.vae import VAEConfig
from pipeline.planning.resolution import check_metric
from pipeline.reader import open_release
from pipeline.serving.current import _warmed
from pipeline.storage import Store, open_store

KINDS = [("kl", "none"), ("reverse_kl", "query_median"), ("jeffreys", "catalogue_median"), ("w2", "none")]


@pytest.fixture(autouse=True)
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


def sure_photos(maker: Any, items: int = 60) -> list[Any]:
    generator = np.random.default_rng(8)
    return [
        maker.Photo(**{
            **{name: getattr(photo, name) for name in ("item_id", "uri", "view", "mean", "category", "price", "stock")},
            "log_var": generator.normal(np.linspace(-6, 0, maker.DIM), 1.0).astype(np.float32),
        })
        for photo in maker.some_photos(items)
    ]  # fmt: skip


def latents_of(photos: list[Any]) -> LatentArrays:
    return LatentArrays(np.stack([photo.mean for photo in photos]), np.stack([photo.log_var for photo in photos]))


def best(scores: np.ndarray, photos: list[Any], left_out: set[str], k: int) -> list[tuple[str, float]]:
    """Return (item_id, score) of the k nearest by photos' scores [q, n]: the best pair counts."""
    found: dict[str, float] = {}
    for photo, score in zip(photos, scores.max(axis=0), strict=True):
        found[photo.item_id] = max(score, found.get(photo.item_id, -np.inf))
    kept = {item_id: score for item_id, score in found.items() if item_id not in left_out}
    return sorted(kept.items(), key=lambda pair: (-pair[1], pair[0]))[:k]


@pytest.mark.parametrize(("metric", "mask"), KINDS)
def test_a_release_answers_by_its_metric(store: Store, maker: Any, metric: str, mask: str) -> None:
    photos = sure_photos(maker)
    made = maker.make_release(store, photos, index=IndexConfig(metric=metric, mask=mask))
    latents, photos = latents_of(made.photos), made.photos
    exact = fitted_metric(metric, mask, latents)
    release = open_release(store.url)
    assert release.manifest.metric == exact.name
    for item in ("sku-003", "sku-017"):
        rows = [row for row, photo in enumerate(photos) if photo.item_id == item]
        expected = best(exact.exact(latents.take(rows), latents), photos, {item}, 7)
        found = release.similar(item, k=7)
        assert [near.item_id for near in found] == [name for name, _ in expected]
        np.testing.assert_allclose([near.score for near in found], [score for _, score in expected], rtol=1e-4)
    assert not _warmed(release), "a service asks it by vector once before it serves; there is no encoder"
    asked = latents.take([5])
    expected = best(exact.exact(asked, latents), photos, set(), 5)
    assert [near.item_id for near in release.search(asked, k=5)[0]] == [name for name, _ in expected]
    basket = ["sku-001", "sku-002"]
    rows = [row for row, photo in enumerate(photos) if photo.item_id in basket]
    counts = {item: sum(photo.item_id == item for photo in photos) for item in basket}
    middle = exact.barycentre(latents.take(rows), np.array([1 / counts[photos[row].item_id] for row in rows]))
    expected = best(exact.exact(middle, latents), photos, set(basket), 5)
    found = release.similar_to_many(basket, k=5, fusion="barycentre")
    assert [near.item_id for near in found] == [name for name, _ in expected]
    if mask != "catalogue_median" and metric != "w2":
        with pytest.raises(ConfigError, match="log_var, which the queries lack"):
            release.search(asked.mean)


def test_an_index_that_is_not_of_its_metric_is_refused(store: Store, maker: Any) -> None:
    """KL and its reverse are both inner products, of other terms; so are two masks."""
    for run, name in (("a", "reverse_kl"), ("b", "kl/query_median"), ("c", "kl/catalogue_median:6:e0")):
        change = {"metric": name, "run": run}
        maker.make_release(store, sure_photos(maker), index=IndexConfig(metric="kl"), channel=run, **change)
        with pytest.raises(IntegrityError, match="features that are not those of"):
            open_release(store.url, channel=run)
    maker.make_release(store, sure_photos(maker), index=IndexConfig(metric="kl"), channel="d", run="d", metric="emd")
    with pytest.raises(InputError, match=r"unknown metric 'emd'.*upgrade visual-codebooks"):
        open_release(store.url, channel="d")


def test_a_model_without_variances_is_refused_before_the_night(store: Store) -> None:
    plain, sure = AutoencoderConfig(latent_dim=4), VAEConfig(latent_dim=4)
    for model, index in ((plain, {"metric": "l2"}), (sure, {"metric": "kl"}), (sure, {"mask": "catalogue_median"})):
        check_metric(night(model, index), store, None)
    for index in ({"metric": "kl"}, {"metric": "cosine", "mask": "catalogue_median"}):
        with pytest.raises(ConfigError, match="'autoencoder' yields means alone; take metric l2 or cosine"):
            check_metric(night(plain, index), store, None)


def night(model: Any, index: dict[str, Any]) -> Any:
    return SimpleNamespace(model=model, index=IndexConfig(**index), images=ImagesConfig(size=16))


def test_metrics_side_by_side(store: Store, maker: Any, capsys: pytest.CaptureFixture[str]) -> None:
    maker.make_release(store, sure_photos(maker, 90), index=IndexConfig(metric="kl", mask="query_median"))
    assert main(["compare-metrics", f"store={store.url}", "--category", "category", "--json"]) == 0
    details = json.loads(capsys.readouterr().out)
    rows = {(row["metric"], row["mask"]): row for row in details["scores"]}
    assert len(rows) == 17
    assert [key for key, row in rows.items() if row["own"]] == [("kl", "query_median")]
    assert rows["kl", "query_median"]["churn"] == 0.0
    assert rows["kl", "none"]["churn"] > 0.0
    assert all(row["knn"][1] <= row["knn"][0] <= row["knn"][2] for row in rows.values())
    assert main(["compare-metrics", f"store={store.url}"]) == 0
    text = capsys.readouterr().err
    assert "* kl         query_median" in text
    assert main(["compare-metrics", f"store={store.url}", "--category", "colour"]) != 0
    assert "no column 'colour'; one of item_id" in capsys.readouterr().err


def test_means_alone_are_compared_without_masks(store: Store, maker: Any, capsys: pytest.CaptureFixture[str]) -> None:
    maker.make_release(store, maker.some_photos(40))
    assert main(["compare-metrics", f"store={store.url}", "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)["scores"]
    assert [(row["metric"], row["mask"], row["knn"]) for row in scores] == [
        ("l2", "none", None),
        ("cosine", "none", None),
    ]


def test_measures_are_those_of_a_loop() -> None:
    generator = np.random.default_rng(1)
    labels = generator.integers(0, 3, 120)
    mean = (generator.normal(size=(120, 5)) + labels[:, None]).astype(np.float32)
    latents = LatentArrays(mean, generator.normal(-2, 1.5, (120, 5)).astype(np.float32))
    own = fitted_metric("l2", "none", latents)
    rows = np.flatnonzero(generator.random(120) < 0.8)
    for score in metric_scores(latents, own, rows, labels[rows]):
        exact = fitted_metric(score.metric, score.mask, latents).exact(latents, latents)
        np.fill_diagonal(exact, -np.inf)
        near = np.argsort(-exact, axis=1, kind="stable")[:, :10]
        before = np.argsort(-own.exact(latents, latents) + np.diag(np.full(120, np.inf)), axis=1, kind="stable")[:, :10]
        shared = np.mean([len(set(a) & set(b)) for a, b in zip(near.tolist(), before.tolist(), strict=True)]) / 10
        assert score.churn == pytest.approx(1 - shared, abs=1e-9)
        votes, precisions, averages = [], [], []
        for row in rows:
            order = np.argsort(-exact[row, rows], kind="stable")[:-1]
            fits = labels[rows][order] == labels[row]
            first = labels[rows][order][:10].tolist()
            votes.append(max(dict.fromkeys(first), key=first.count) == labels[row])
            precisions.append(fits[:10].mean())
            total = int(np.sum(labels[rows] == labels[row])) - 1
            hits = [rank for rank in range(total) if fits[rank]]
            averages.append(sum(fits[: rank + 1].mean() for rank in hits) / total)
        for told, values in ((score.knn, votes), (score.precision, precisions), (score.map_at_r, averages)):
            assert told is not None
            assert told[0] == pytest.approx(np.mean(values))
