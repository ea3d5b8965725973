"""List what nothing needs any more; with --yes, mark it and sweep what was marked a grace period ago."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jobs.command import Arguments, Outcome
from jobs.place import load_light
from pipeline.release import Policy, check_store, expire, inventory_bytes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `expire`."""
    known = Policy()
    parser.add_argument("--yes", action="store_true", help="mark, and sweep what is due; without it nothing is deleted")
    parser.add_argument("--inventory", metavar="FILE", default="expire.parquet", help="where to write the list")
    parser.add_argument("--keep", metavar="N", type=int, default=known.keep, help="releases of a channel (default 14)")
    for name, what in (
        ("keep-days", "and those that were current within so many days"),
        ("grace-days", "least age of what is marked, and of a mark that is swept; 7, or twice the longest attempt"),
        ("pixels-days", "how long pixels live"),
        ("checkpoints-days", "how long checkpoints and plans of ended runs live"),
        ("max-share", "share of the store's bytes that goes at most in one go"),
    ):
        default = getattr(known, name.replace("-", "_"))
        parser.add_argument(f"--{name}", metavar="X", type=float, default=default, help=f"{what} (default {default})")


def run(arguments: Arguments) -> Outcome:
    """Write the inventory, and say what was or would be deleted."""
    options = arguments.options
    store = load_light(arguments).store.open()
    check_store(store)
    names = ("keep", "keep_days", "grace_days", "pixels_days", "checkpoints_days", "max_share")
    found = expire(store, Policy(**{name: getattr(options, name) for name in names}), yes=options.yes)
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
