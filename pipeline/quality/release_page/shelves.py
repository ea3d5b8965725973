"""Semantic IDs as shelves: the items whose IDs begin with the same code, in pictures."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa

from ...index.vector_lists import list_rows
from ...report.night import PictureShelf
from .subject import Subject, sampled

_LARGEST, _DRAWN = 6, 4
_ITEMS = 6
_COUNTED = 100  # items of a shelf whose categories are counted


def shelves(subject: Subject) -> list[PictureShelf]:
    """Return the largest shelves of the first level's codes and some drawn ones; none without semantic IDs."""
    ids = subject.told.ids
    if ids is None or not ids.num_rows:
        return []
    # Of a million IDs the first code alone is looked at.
    width = len(ids["codes"][0])
    first = list_rows(ids["codes"], width)[:, 0]
    codes, counts = np.unique(first, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    rest = order[_LARGEST:]
    chosen = [*order[:_LARGEST].tolist(), *(int(rest[place]) for place in sampled(subject.draw(11), len(rest), _DRAWN))]
    return [_shelf(subject, ids, first, int(codes[place]), int(counts[place])) for place in chosen]


def _shelf(subject: Subject, ids: pa.Table, first: np.ndarray, code: int, count: int) -> PictureShelf:
    rows = np.flatnonzero(first == code)
    drawn = rows[sampled(subject.draw(12, code), len(rows), _COUNTED)]
    keys = [ids["item_id"][int(row)].as_py() for row in drawn]
    numbers = [number for key in keys if (number := subject.now.number(key)) is not None]
    labels = [subject.now.attribute(number, subject.category) for number in numbers]
    common = Counter(label for label in labels if label).most_common(3)
    words = ", ".join(f"{label} {share / len(labels):.0%}" for label, share in common)
    shown = sampled(subject.draw(13, code), len(numbers), _ITEMS)
    cards = subject.album.cards(subject.now, [numbers[place] for place in shown], [labels[place] for place in shown])
    return PictureShelf(f"<a_{code}>", count, words, cards)
