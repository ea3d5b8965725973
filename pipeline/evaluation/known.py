"""The names of measures as limits may call them, and what is special about some."""

from __future__ import annotations

import re
from difflib import get_close_matches

# Of the counts and of the index; the first five are those of the gates that every release has.
_COUNTED = ("recall", "quarantine_share", "not_finite_share", "removed_share", "items")
_CATEGORY = (
    "category_knn", "category_precision_at_10", "category_map_at_r", "category_ndcg_at_10", "category_probe",
)  # fmt: skip
NIGHTLY: tuple[str, ...] = (
    "photo_recall", "view_agreement", "neighbour_moved", "neighbour_displaced", "hubness", "robin_hood",
    "antihub_share", "effective_rank", "unit_spread", "lidar", "identical_share", "largest_identical_group",
    "near_duplicate_share", "drift_mmd_p", "drift_auc", "coverage", "reassigned_share",
)  # fmt: skip
_NAMES = (*_COUNTED, *_CATEGORY, *NIGHTLY)
# Families whose members depend on the model and the config.
_FAMILIES = re.compile(r"(sid|score|code|codes|reconstruction|likelihood|drift|coverage|knn)_[a-z0-9_]+")

# What is measured in the units of one bundle's space: another bundle's numbers say nothing of these. All others say
# how well a space serves, and are compared between bundles too.
_SPACE_BOUND = re.compile(
    r"neighbour_(moved|displaced)|score_.*|drift_.*|unit_spread|effective_rank|lidar|code_.*|codes_.*|sid_.*"
    r"|likelihood_.*"
)


def check_name(measure: str) -> None:
    """Raise ValueError, with a near spelling, for a name that no night measures."""
    if measure in _NAMES or _FAMILIES.fullmatch(measure):
        return
    near = get_close_matches(measure, _NAMES, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(sorted(_NAMES))}, and sid_... and others"
    raise ValueError(f"{measure!r} is no measure; {hint}")


def bound_to_space(measure: str) -> bool:
    """Return whether a measure's values of two bundles cannot be compared."""
    return _SPACE_BOUND.fullmatch(measure) is not None
