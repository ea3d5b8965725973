"""Show a release beside its parent, or two releases, as one page for people or as data."""

from __future__ import annotations

from jobs.command import Arguments, Outcome
from jobs.options import CHANNEL, option, takes
from jobs.place import open_place
from pipeline.errors import ConfigError
from pipeline.quality.release_page import FORMS, Asked, new_place, report_of, report_text, written

add_arguments = takes(
    option(
        "releases",
        metavar="RELEASE",
        nargs="*",
        help="by default the channel's current one beside its parent; of two the later beside the earlier",
    ),
    CHANNEL,
    option("--to", metavar="FILE", help=f"write it: {', '.join(FORMS)}, or a folder with both and tables"),
    option("--category", metavar="COLUMN", help="what items are told apart by; by default the run's own"),
    option("--price", metavar="N", type=float, help="what an hour costs, to count the stages by"),
)


def run(arguments: Arguments) -> Outcome:
    """Show a release's verdict, changes, neighbours, pictures and measures beside another release's."""
    options = arguments.options
    arguments, releases = arguments.settings_apart(options.releases)
    if len(releases) > 2:
        raise ConfigError(f"{len(releases)} releases are named, {', '.join(releases)}; a report is of one or two")
    if options.price is not None and not options.price >= 0:
        raise ConfigError(f"--price is {options.price}; give what an hour costs, 0 or more")
    target = None if options.to is None else new_place(options.to)
    place = open_place(arguments)
    asked = Asked(place.channel, options.category, options.price)
    first, second = [*releases, None, None][:2]
    found = report_of(place.store, first, second, asked)
    files = [] if target is None else written(found, target)
    details = {"report": found.plain(), "files": [str(path) for path in files]}
    text = report_text(found) + "".join(f"\n{path}: {path.stat().st_size:,} bytes" for path in files)
    return Outcome(release=found.release, reason="reported", details=details, text=text)
