"""Serve the current release of a channel over HTTP, with a page to look at."""

from __future__ import annotations

import importlib

from jobs.command import Arguments, Outcome
from jobs.options import CHANNEL, option, takes
from jobs.place import load_light
from pipeline.serving import add_options, serve, settings_of

add_arguments = takes(
    CHANNEL,
    option("--on", choices=("processes", "ray"), default="processes", help="of this machine, or Ray Serve"),
    add_options,
)


def run(arguments: Arguments) -> Outcome:
    """Serve until a signal comes."""
    config = load_light(arguments)
    channel = arguments.options.channel or config.publish.channel
    settings = settings_of(arguments.options, config.store.url, config.store.options(), channel)
    if arguments.options.on == "ray":
        # By name: it loads Ray, without which a service must still start.
        importlib.import_module("jobs.ray_serving").serve_on_ray(settings, arguments)
    else:
        serve(settings)
    return Outcome(reason="stopped", details={"channel": channel}, text="the service has ended; nothing was under way")
