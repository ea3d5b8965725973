"""Offer customers items of a release, by what they have had: tables of a file of events."""

from __future__ import annotations

import importlib
from contextlib import nullcontext

from jobs.asking import open_asked
from jobs.command import Arguments, Outcome
from jobs.options import CHANNEL, RELEASE, takes
from jobs.place import LightConfig
from jobs.sources import read_config
from pipeline.nodes import ClusterConfig
from pipeline.recommending import EventTable, add_options, recommend, settings_of
from pipeline.recommending.telling import details_of, told
from pipeline.storage import Files, open_store

add_arguments = takes(add_options, CHANNEL, RELEASE)


class _WithCluster(LightConfig):
    cluster: ClusterConfig = ClusterConfig()


def run(arguments: Arguments) -> Outcome:
    """Write customer -> items, customer -> customers and item -> items; the same question again finds them."""
    options, place = arguments.options, read_config(arguments, _WithCluster)
    config, store = settings_of(options), place.store
    events = EventTable(Files(store.options()), options.events, config)
    out = None if options.out is None else open_store(options.out, store.options())
    ray = importlib.import_module("jobs.ray_session") if options.on == "ray" else None  # a base install has no Ray
    with ray.ray_session(place.cluster, busy=0, settings={"store": {"url": store.url}}) if ray else nullcontext():
        done = recommend(open_asked(arguments).opened, events, config, store.open(), out)
    reason = "nothing to do" if done.done_before else "written"
    return Outcome(release=done.summary.release_id, reason=reason, details=details_of(done), text=told(done))
