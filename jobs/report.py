"""Show a release beside its parent, or two releases, as one page for people or as data."""

from __future__ import annotations

import argparse
import re

from jobs.command import Arguments, Outcome
from jobs.place import load_light
from pipeline.errors import ConfigError
from pipeline.quality.release_page import FORMS, Asked, new_place, report_of, report_text, written
from pipeline.release import check_store


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `report`."""
    parser.add_argument(
        "releases",
        metavar="RELEASE",
        nargs="*",
        help="by default the channel's current one beside its parent; of two the later beside the earlier",
    )
    parser.add_argument("--channel", metavar="NAME", help="the channel; by default that of the config, or `stable`")
    parser.add_argument("--to", metavar="FILE", help=f"write it: {', '.join(FORMS)}, or a folder with both and tables")
    parser.add_argument("--category", metavar="COLUMN", help="what items are told apart by; by default the run's own")
    parser.add_argument("--price", metavar="N", type=float, help="what an hour costs, to count the stages by")


def run(arguments: Arguments) -> Outcome:
    """Show a release's verdict, changes, neighbours, pictures and measures beside another release's."""
    options = arguments.options
    settings = [word for word in options.releases if re.match(r"[a-z_.]+=", word)]  # they follow the releases
    arguments = arguments.with_overrides(*settings)
    releases = [word for word in options.releases if word not in settings]
    if len(releases) > 2:
        raise ConfigError(f"{len(releases)} releases are named, {', '.join(releases)}; a report is of one or two")
    config = load_light(arguments)
    if options.price is not None and not options.price >= 0:
        raise ConfigError(f"--price is {options.price}; give what an hour costs, 0 or more")
    target = None if options.to is None else new_place(options.to)
    store = config.store.open()
    check_store(store)
    asked = Asked(options.channel or config.publish.channel, options.category, options.price)
    first, second = [*releases, None, None][:2]
    found = report_of(store, first, second, asked)
    files = [] if target is None else written(found, target)
    details = {"report": found.plain(), "files": [str(path) for path in files]}
    text = report_text(found) + "".join(f"\n{path}: {path.stat().st_size:,} bytes" for path in files)
    return Outcome(release=found.release, reason="reported", details=details, text=text)
