"""Show how a channel's counts, measures and verdicts went from release to release."""

from __future__ import annotations

from jobs.command import Arguments, Outcome
from jobs.options import CHANNEL, option, takes
from jobs.place import open_place
from pipeline.errors import ConfigError
from pipeline.quality.trends import FORMS, trends, trends_file, trends_text
from pipeline.release import history, none_yet_text
from pipeline.storage.new_files import new_file, write_new

_TERMINAL, _WHOLE = 8, 30


add_arguments = takes(
    CHANNEL,
    option("--last", metavar="N", type=int, help=f"only the newest N (default {_WHOLE}, on a terminal {_TERMINAL})"),
    option("--to", metavar="FILE", help=f"write a file too, {', '.join(FORMS)}; it must not be there yet"),
)


def run(arguments: Arguments) -> Outcome:
    """Read the channel's log and what the releases in it measured."""
    options = arguments.options
    if options.last is not None and options.last < 1:
        raise ConfigError(f"--last is {options.last}; ask for at least 1 release")
    target = None if options.to is None else new_file(options.to, FORMS)
    place = open_place(arguments)
    store, channel = place.store, place.channel
    whole = arguments.json or target is not None
    found = trends(history(store, channel, last=options.last or (_WHOLE if whole else _TERMINAL)))
    details = {"channel": channel, "left_out": found.left_out, "releases": found.rows(), "file": None}
    if not found.columns:
        return Outcome(reason="no releases", details=details, text=none_yet_text(store, channel))
    text = trends_text(found)
    if target is not None:
        text = f"{target}: {write_new(target, trends_file(found, target.suffix.lower())):,} bytes, {channel}"
        details["file"] = str(target)
    return Outcome(release=found.columns[-1].release, reason="told", details=details, text=text)
