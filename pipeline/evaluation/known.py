"""The names of measures as limits may call them, and what is special about some."""

from __future__ import annotations

import re
from difflib import get_close_matches

# Of the counts, the index and the categories: every release has the first, a catalogue with categories the others.
_COUNTED = ("recall", "quarantine_share", "not_finite_share", "removed_share", "items")
_CATEGORY = (
    "category_knn", "category_precision_at_10", "category_map_at_r", "category_ndcg_at_10", "category_probe",
)  # fmt: skip
# As the table of `nightly` has them.
NIGHTLY: tuple[str, ...] = (
    "photo_recall", "photo_recall_at_1", "view_agreement", "lidar", "reconstruction_mse", "reconstruction_worst",
    "reconstruction_best", "effective_rank", "unit_spread", "hub_skew", "hub_robin_hood", "antihub_share",
    "neighbour_churn", "neighbour_displaced", "neighbour_moved", "neighbour_missed", "score_q01", "score_q50",
    "score_q99", "score_q01_shift", "score_q50_shift", "score_q99_shift", "near_duplicate_share", "largest_near_share",
    "identical_share", "largest_identical_group", "largest_identical_share", "rekeyed_share", "coverage", "drift_auc",
    "drift_mmd", "drift_mmd_p", "drift_changed_auc", "drift_changed_mmd", "drift_changed_mmd_p", "code_perplexity",
    "code_nats", "code_nats_worst", "code_nats_best",
    "code_dead_share", "drift_code_use", "drift_code_use_p", *_CATEGORY,
)  # fmt: skip
NAMES = (*_COUNTED, *NIGHTLY)
_SEMANTIC_IDS = re.compile(r"sid_[a-z]+(_\d+)?")  # their number depends on semantic_ids.levels

# In the units of one bundle's space, or between two releases of one: another bundle's value says nothing of it. All
# others say how well a space serves, and are compared between bundles too.
_BOUND = re.compile(r"(neighbour|score|drift|sid)_.*|unit_spread|effective_rank|lidar|code_perplexity|code_nats.*")
# Fall as a catalogue grows: among twice as many products each is harder to find.
_OF_SIZE = re.compile(r"photo_recall(_at_1)?|view_agreement")
# Not there on every night: they want a prior, a parent, one of this bundle, or enough items that are new.
_OCCASIONAL = re.compile(r"(neighbour|drift)_.*|score_.*_shift|rekeyed_share|sid_moves|code_nats.*")


def check_name(measure: str) -> None:
    """Raise ValueError, with a near spelling, for a name that no night measures."""
    if measure in NAMES or _SEMANTIC_IDS.fullmatch(measure):
        return
    near = get_close_matches(measure, NAMES, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(sorted(NAMES))}, and those of semantic IDs"
    raise ValueError(f"{measure!r} is no measure; {hint}")


def bound_to_space(measure: str) -> bool:
    """Return whether a measure's values of two bundles cannot be compared."""
    return _BOUND.fullmatch(measure) is not None


def falls_with_size(measure: str) -> bool:
    """Return whether a measure falls as the catalogue grows, whatever the space is like."""
    return _OF_SIZE.fullmatch(measure) is not None


def occasional(measure: str) -> bool:
    """Return whether a measure is rightly missing on some nights: a first release, another bundle, nothing added."""
    return _OCCASIONAL.fullmatch(measure) is not None
