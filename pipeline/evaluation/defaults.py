"""The limits by name that hold where a config states none; honest nights pass them (`make bench-bad-nights`)."""

from __future__ import annotations

from .gates import GATES, GatesConfig, Limits

# Mostly against the parent, so that a catalogue is judged by what it was: one may hold many identical photos.
NIGHTLY = Limits(
    min={"code_perplexity": 1.5},
    max={"neighbour_moved": 0.01, "rekeyed_share": 0.05, "drift_auc": 0.75, "drift_changed_auc": 0.85},
    max_drop={"photo_recall": 0.05, "category_knn": 0.05, "coverage": 0.02},
    max_rise={
        "quarantine_share": 0.02,
        "removed_share": 0.22,
        "largest_identical_share": 0.03,
        "antihub_share": 0.1,
        "code_dead_share": 0.25,
    },
)

# What a new bundle must do as well as the one that it is to replace.
PROMOTE = Limits(
    min={"code_perplexity": 1.5},
    max_drop={"photo_recall": 0.02, "recall": 0.02, "category_knn": 0.02, "coverage": 0.02},
    max_rise={"antihub_share": 0.05},
)


def nightly_defaults(config: GatesConfig) -> Limits:
    """Return the default limits beside a config: where one of the five first gates was set, its measure has none.

    Whoever has chosen `max_removed` has said how much may go, and is not refused by another number.
    """
    set_by_hand = {
        gate.measure for gate in GATES if getattr(config, gate.field) != GatesConfig.model_fields[gate.field].default
    }
    kept = {kind: {name: limit for name, limit in held.items() if name not in set_by_hand} for kind, held in NIGHTLY}
    return Limits(**kept)
