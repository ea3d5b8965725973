"""Show a release beside its parent, or two releases, as one page for people or as data."""

from __future__ import annotations

import argparse

from jobs.command import Arguments, Outcome
from jobs.place import load_light
from pipeline.errors import ConfigError
from pipeline.quality.release_page import FORMS, Asked, report_of, report_text, written
from pipeline.release import check_store


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `report`."""
    parser.add_argument("release", metavar="A", nargs="?", help="the release; by default the channel's current one")
    parser.add_argument(
        "other", metavar="B", nargs="?", help="another one: the later of the two is shown beside the earlier"
    )
    parser.add_argument("--channel", metavar="NAME", help="the channel; by default that of the config, or `stable`")
    parser.add_argument("--to", metavar="FILE", help=f"write it: {', '.join(FORMS)}, or a folder with both and tables")
    parser.add_argument("--category", metavar="COLUMN", help="what items are told apart by; by default the run's own")
    parser.add_argument("--price", metavar="N", type=float, help="what an hour costs, to count the stages by")


def run(arguments: Arguments) -> Outcome:
    """Show a release's verdict, changes, neighbours, pictures and measures beside another release's."""
    config, options = load_light(arguments), arguments.options
    if options.price is not None and not options.price >= 0:
        raise ConfigError(f"--price is {options.price}; give what an hour costs, 0 or more")
    store = config.store.open()
    check_store(store)
    asked = Asked(options.channel or config.publish.channel, options.category, options.price)
    found = report_of(store, options.release, options.other, asked)
    files = [] if options.to is None else written(found, options.to)
    details = {"report": found.plain(), "files": [str(path) for path in files]}
    text = report_text(found) + "".join(f"\n{path}: {path.stat().st_size:,} bytes" for path in files)
    return Outcome(release=found.release, reason="reported", details=details, text=text)
