"""What a release says of its categories: the same as each measure alone, of first photos, seeded and sampled."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from pipeline.evaluation import category
from pipeline.evaluation.category import category_answers, first_photos
from pipeline.evaluation.knn import label_knn
from pipeline.evaluation.retrieval import interval, retrieve
from pipeline.quality.release_page import category_lines

NAMES = ("category_precision_at_10", "category_map_at_r", "category_ndcg_at_10", "category_probe")


def catalogue(count: int, *, photos: int = 1, classes: int = 5) -> tuple[pa.Table, np.ndarray]:
    rng = np.random.default_rng(0)
    kinds = rng.integers(classes, size=count)
    vectors = rng.normal(size=(classes, 12))[kinds] + rng.normal(size=(count, 12))
    table = pa.table(
        {
            "item_id": [f"i{row // photos:05d}" for row in range(count * photos)],
            "category": np.repeat([f"kind {kind}" for kind in kinds], photos),
        }
    )
    noise = rng.normal(0, 1e-3, (count * photos, 12))
    return table, np.asarray(np.repeat(vectors, photos, axis=0) + noise, np.float32)


def category_measures(items: pa.Table, vectors: np.ndarray, category: str, *, seed: int) -> dict[str, float]:
    """Return the means of what each item is answered for, and their bootstrap intervals."""
    found: dict[str, float] = {}
    for name, answers in category_answers(items, vectors, category, seed=seed).items():
        found[name] = float(answers.values.mean())
        if name != "category_knn":
            found[f"{name}_low"], found[f"{name}_high"] = interval(answers.values, seed=seed)
    return found


def test_measures_are_those_of_each_function() -> None:
    items, vectors = catalogue(600)
    found = category_measures(items, vectors, "category", seed=3)
    labels = items["category"].to_pylist()
    assert found["category_knn"] == label_knn(vectors, np.unique(labels, return_inverse=True)[1], seed=3)
    alone = retrieve(vectors, labels, vectors, labels, gallery_ids=range(600), query_ids=range(600))
    assert found["category_precision_at_10"] == pytest.approx(alone.precision.mean())
    assert found["category_map_at_r"] == pytest.approx(alone.average_precision.mean())
    assert found["category_ndcg_at_10"] == pytest.approx(alone.ndcg.mean())
    assert found["category_probe"] > 0.7
    for name in NAMES:
        assert found[f"{name}_low"] < found[name] < found[f"{name}_high"]
    assert category_measures(items, vectors, "category", seed=3) == found
    assert len(category_lines(found)) == 5
    assert category_lines(found)[2].startswith(f"MAP@R {found['category_map_at_r']:.3f} (")
    assert category_lines({"recall": 1.0}) == []


def test_second_photos_take_no_part() -> None:
    """An item's photos are alike, so with them every measure is better than it is."""
    items, vectors = catalogue(300, photos=2)
    found = category_measures(items, vectors, "category", seed=0)
    rows, _ = first_photos(items, "category")
    assert rows.tolist() == list(range(0, 600, 2))
    alone = category_measures(items.take(pa.array(rows)), vectors[::2], "category", seed=0)
    assert found == alone
    every = items.set_column(0, "item_id", pa.array([f"{row:04d}" for row in range(600)]))
    control = category_measures(every, vectors, "category", seed=0)
    assert control["category_knn"] > found["category_knn"] + 0.02
    assert control["category_precision_at_10"] > found["category_precision_at_10"]


def test_random_latents_are_chance() -> None:
    items, _ = catalogue(2000)
    vectors = np.random.default_rng(1).normal(size=(2000, 8))
    found = category_measures(items, vectors, "category", seed=0)
    for name in ("category_knn", "category_precision_at_10", "category_ndcg_at_10", "category_probe"):
        assert found[name] == pytest.approx(0.2, abs=0.06)


def test_large_catalogues_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(category, "GALLERY", 200)
    monkeypatch.setattr(category, "QUERIES", 50)
    monkeypatch.setattr(category, "PROBED", 150)
    monkeypatch.setattr(category, "KINDS", 2)
    items, vectors = catalogue(900)
    first = category_measures(items, vectors, "category", seed=0)
    assert first == category_measures(items, vectors, "category", seed=0)
    other = category_measures(items, vectors, "category", seed=1)
    assert all(first[name] != other[name] for name in NAMES[:3])
    assert first["category_probe"] * 30 == pytest.approx(round(first["category_probe"] * 30)), "a fifth of 150"


def test_too_little_to_measure_leaves_measures_out() -> None:
    alone = pa.table({"item_id": ["a", "b", "c"], "category": ["x", "y", "z"]})
    assert set(category_measures(alone, np.eye(3), "category", seed=0)) <= {
        "category_knn", "category_probe", "category_probe_low", "category_probe_high",
    }  # fmt: skip
    same = pa.table({"item_id": ["a", "b", "c"], "category": ["x", None, "x"]})
    found = category_measures(same, np.eye(3, dtype=np.float32), "category", seed=0)
    assert "category_probe" not in found
    assert found["category_precision_at_10"] == 1.0
    assert category_measures(same.slice(0, 2), np.eye(2), "category", seed=0) == {}
    assert category_measures(same.slice(0, 0), np.zeros((0, 3)), "category", seed=0) == {}
    numbers = pa.table({"item_id": ["a", "b"], "category": [3, 3]})
    assert category_measures(numbers, np.eye(2), "category", seed=0)["category_map_at_r"] == 1.0
