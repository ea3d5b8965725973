"""The factor probe on latents that hold known factors, and on the rendered catalogue's own pictures."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import RidgeCV

from pipeline.errors import InputError
from pipeline.evaluation.baselines import pixel_features, principal_components
from pipeline.evaluation.factors import FACTORS, factor_probe, ridge_r2
from pipeline.evaluation.probe import standardised
from pipeline.images.render import render_catalogue


def test_factors_that_are_in_the_latents_are_read_and_others_are_not() -> None:
    rng = np.random.default_rng(0)
    colour = rng.choice(["red", "green", "blue"], size=800)
    angle, shade, hidden = rng.normal(0, 4, 800), rng.uniform(0.8, 1.1, 800), rng.normal(size=800)
    latents = np.stack([colour == "red", colour == "green", angle / 4, rng.normal(size=800)], axis=1)
    latents[:, 3] += 10 * shade  # half drowned
    scores = factor_probe(
        latents @ np.linalg.qr(rng.normal(size=(4, 4)))[0],
        {"colour": colour.tolist(), "angle": angle.tolist(), "shade": shade, "hidden": hidden},
    )
    found = {score.factor: score for score in scores}
    assert [score.factor for score in scores] == ["colour", "angle", "shade", "hidden"]
    assert found["colour"].score > 0.95
    assert found["colour"].chance == pytest.approx(1 / 3, abs=0.08)
    assert found["angle"].score > 0.99
    signal = (10 * 0.3) ** 2 / 12
    assert found["shade"].score == pytest.approx(signal / (signal + 1), abs=0.08)
    assert found["hidden"].score == pytest.approx(0, abs=0.05)
    assert {score.measure for score in scores[1:]} == {"r2"}


def test_r2_is_scikit_learns_and_is_of_rows_that_were_not_fitted() -> None:
    rng = np.random.default_rng(1)
    known, asked = rng.normal(size=(60, 40)), rng.normal(size=(200, 40))
    weights = rng.normal(size=40)
    noise = rng.normal(0, 6, 260)
    values, truth = known @ weights + noise[:60] + 50, asked @ weights + noise[60:] + 50
    rows, others = standardised(known, asked)
    oracle = RidgeCV(alphas=(0.1, 1.0, 10.0, 100.0, 1000.0)).fit(rows, values)
    found = ridge_r2(known, values, asked, truth)
    assert found == pytest.approx(oracle.score(others, truth), abs=0.02)  # theirs has the asked rows' own mean
    # Negative control: asked of the fitted rows it looks far better.
    assert ridge_r2(known, values, known, values) > found + 0.1


def test_groups_keep_an_items_photos_on_one_side() -> None:
    """Nothing but the item is in the latents: its factor is known only where another of its photos was fitted."""
    rng = np.random.default_rng(2)
    items = np.repeat(np.arange(60), 6)
    latents = rng.normal(size=(60, 80))[items] + rng.normal(0, 0.05, (360, 80))
    size = rng.normal(size=60)[items]
    alone = factor_probe(latents, {"size": size})[0].score
    grouped = factor_probe(latents, {"size": size}, groups=items)[0].score
    assert alone > 0.8, "negative control: photos of one item on both sides"
    assert grouped < 0.2


@pytest.mark.slow
def test_rendered_factors_from_pixels(tmp_path: Path) -> None:
    rendered = render_catalogue(tmp_path, items=400, seed=0, size=(32, 32))
    with rendered.table.open() as handle:
        rows = [row for row in csv.DictReader(handle) if row["item_id"] not in rendered.broken]
    names = [json.loads(row["image"])[0] if row["image"].startswith("[") else row["image"] for row in rows]
    pixels = np.stack([np.asarray(Image.open(tmp_path / name).convert("RGB")) for name in names])
    features = pixel_features(pixels)
    numbers = ("angle", "shade", "width")
    factors = {
        name: [float(row[name]) for row in rows] if name in numbers else [row[name] for row in rows] for name in FACTORS
    }
    found = {
        score.factor: score for score in factor_probe(principal_components(features, 32).project(features), factors)
    }
    assert set(found) == set(FACTORS)
    assert found["category"].score > 0.8
    assert found["colour"].score > found["colour"].chance + 0.2
    assert found["angle"].score > 0.4
    # Negative control: the factors of other items.
    shuffled = {name: values[1:] + values[:1] for name, values in factors.items()}
    wrong = {score.factor: score for score in factor_probe(features[:, ::50], shuffled)}
    assert wrong["category"].score < 0.35
    assert wrong["angle"].score < 0.1


def test_gaps_and_sameness_are_refused() -> None:
    latents = np.random.default_rng(3).normal(size=(20, 3))
    with pytest.raises(InputError, match="neither text nor finite numbers"):
        factor_probe(latents, {"shade": [None, *range(19)]})
    with pytest.raises(InputError, match="neither text nor finite numbers"):
        factor_probe(latents, {"shade": [float("nan"), *range(19)]})
    with pytest.raises(InputError, match="'shade' has 2 values"):
        factor_probe(latents, {"shade": [1, 2]})
    with pytest.raises(InputError, match="all 15 known values are 3"):
        factor_probe(latents, {"shade": [3.0] * 20})
    with pytest.raises(InputError, match="hold 1 label"):
        factor_probe(latents, {"colour": ["red"] * 20})
    with pytest.raises(InputError, match="no matrix"):
        factor_probe(latents[0], {"colour": ["red"]})
