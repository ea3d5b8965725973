"""A night's measures keep their values, intervals and examples through a release's table."""

from __future__ import annotations

import math

from pipeline.evaluation.measured import Measured, measured_of, measures_table, whole_catalogue
from pipeline.release.tables import write_table

FOUND = [
    Measured("photo_recall", 0.9, 0.85, 0.95, n=1000, examples=("a", "b")),
    Measured("photo_recall", 0.5, category="Shoes", n=4, examples=("b",)),
    Measured("items", 12.0),
]


def test_a_table_says_what_was_measured() -> None:
    assert measured_of(measures_table(FOUND)) == FOUND
    assert math.isnan(measured_of(measures_table([Measured("drift", math.nan)]))[0].value)


def test_the_same_measures_are_the_same_bytes() -> None:
    assert write_table(measures_table(FOUND)) == write_table(measures_table(list(FOUND)))


def test_gates_and_history_see_the_whole_catalogue_and_no_category() -> None:
    assert whole_catalogue(FOUND) == {
        "photo_recall": 0.9,
        "photo_recall_low": 0.85,
        "photo_recall_high": 0.95,
        "items": 12.0,
    }
