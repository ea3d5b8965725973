"""List what nothing needs any more; with --yes, mark it and sweep what was marked a grace period ago."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from jobs.command import Arguments, Outcome
from jobs.options import Adds, option, takes
from jobs.place import open_place
from pipeline.release import Policy, expire, inventory_bytes

_KNOWN = Policy()
_LIMITS = {
    "keep_days": "and those that were current within so many days",
    "grace_days": "least age of what is marked, and of a mark that is swept; 7, or twice the longest attempt",
    "pixels_days": "how long pixels live",
    "bundles_days": "how long bundles live that no kept release is of",
    "checkpoints_days": "how long checkpoints and plans of ended runs live",
    "max_share": "share of the store's bytes that goes at most in one go",
}


def _limit(name: str, what: str) -> Adds:
    default = getattr(_KNOWN, name)
    return option(
        f"--{name.replace('_', '-')}", metavar="X", type=float, default=default, help=f"{what} (default {default})"
    )


add_arguments = takes(
    option("--yes", action="store_true", help="mark, and sweep what is due; without it nothing is deleted"),
    option("--inventory", metavar="FILE", default="expire.parquet", help="where to write the list"),
    option("--keep", metavar="N", type=int, default=_KNOWN.keep, help="releases of a channel (default 14)"),
    *(_limit(name, what) for name, what in _LIMITS.items()),
)


def run(arguments: Arguments) -> Outcome:
    """Write the inventory, and say what was or would be deleted."""
    options = arguments.options
    store = open_place(arguments).store
    found = expire(store, Policy(**{name: getattr(options, name) for name in ("keep", *_LIMITS)}), yes=options.yes)
    Path(options.inventory).write_bytes(inventory_bytes(found.judged))
    details: dict[str, Any] = {
        name: asdict(getattr(found, name)) for name in ("deletable", "waiting", "marked", "swept")
    }
    text = f"{found.text()}\nevery file with its reason: {options.inventory}"
    if not options.yes:
        text += "\nnothing was deleted or marked; --yes marks, and sweeps what was marked a grace period ago"
    elif found.marked.files:
        text += "\n`codebooks undelete` drops the marks as long as they are not swept"
    details["inventory"], details["grace_s"] = options.inventory, found.grace.total_seconds()
    return Outcome(reason="swept and marked" if options.yes else "listed", details=details, text=text)
