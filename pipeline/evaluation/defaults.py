"""The limits by name that hold where a config states none; chosen so that honest nights pass (`make bench-bad-nights`)."""

from __future__ import annotations

from .gates import GATES, GatesConfig, Limits

# Against the parent, so that a catalogue is judged by what it was: some hold many identical photos, and all is well.
NIGHTLY = Limits(
    max_drop={"photo_recall": 0.05},
    max_rise={"quarantine_share": 0.02, "removed_share": 0.2, "reassigned_share": 0.02, "identical_share": 0.03},
)

# What a new bundle must do as well as that which it is to replace.
PROMOTE = Limits(max_drop={"photo_recall": 0.02, "recall": 0.02})


def nightly_defaults(config: GatesConfig) -> Limits:
    """Return the default limits beside a config: where one of the five first gates was set, its measure has none.

    Whoever has chosen `max_removed` has said how much may go, and is not refused by another number.
    """
    set_by_hand = {
        gate.measure for gate in GATES if getattr(config, gate.field) != GatesConfig.model_fields[gate.field].default
    }
    kept = {kind: {name: limit for name, limit in held.items() if name not in set_by_hand} for kind, held in NIGHTLY}
    return Limits(**kept)
