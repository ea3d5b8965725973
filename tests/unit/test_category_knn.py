"""Category k-NN: photos of the query's own item have no vote."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from pipeline.evaluation import label_knn
from pipeline.evaluation.category import category_answers


def category_knn(items: pa.Table, vectors: np.ndarray, category: str, *, seed: int) -> float | None:
    answers = category_answers(items, vectors, category, seed=seed)
    return float(answers["category_knn"].values.mean()) if answers else None


def test_other_photos_of_the_same_item_do_not_vote() -> None:
    """Every item has two equal photos and a category of its own pair; its neighbours are of the other category."""
    dice = np.random.default_rng(0)
    vectors = np.repeat(dice.normal(size=(40, 8)), 2, axis=0)
    category = np.repeat(dice.choice(["a", "b"], size=40), 2)
    ids = [f"i{number // 2:02d}" for number in range(80)]
    items = pa.table({"item_id": pa.chunked_array([ids[:31], ids[31:]]), "category": category})
    assert category_knn(items, vectors, "category", seed=0) == label_knn(vectors[::2], category[::2], seed=0)
    # Negative control: with all photos every item has its twin nearest, which a majority of one neighbour shows.
    assert label_knn(vectors, category, k=1, seed=0) == 1.0
    assert label_knn(vectors[::2], category[::2], k=1, seed=0) < 0.8


def test_items_without_a_category_take_no_part_and_too_few_give_none() -> None:
    items = pa.table({"item_id": ["a", "b", "c"], "category": ["x", None, "x"]})
    vectors = np.eye(3, dtype=np.float32)
    assert category_knn(items, vectors, "category", seed=0) == 1.0
    assert category_knn(items.slice(0, 2), vectors[:2], "category", seed=0) is None
    assert category_knn(items.slice(0, 0), vectors[:0], "category", seed=0) is None
