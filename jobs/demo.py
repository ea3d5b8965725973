"""The whole way on a rendered catalogue, on this machine, in one folder; ends with neighbours and a page."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from jobs.command import Arguments, Outcome
from jobs.config import load_config
from jobs.pipeline_run import How, run_config
from jobs.place import load_light
from jobs.progress import Progress
from pipeline.errors import ConfigError
from pipeline.images.render import render_catalogue
from pipeline.reader import Release, open_release
from pipeline.runs import default_run_name

_SHOWN = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the demo's own options."""
    parser.add_argument("--items", type=int, default=1800, help="items to render (about 1.2 photos each; default 1800)")


def run(arguments: Arguments) -> Outcome:
    """Render a catalogue, refresh, and show the neighbours of three items."""
    arguments = arguments.with_preset("demo").with_overrides("store=demo-store")
    folder = Path(load_light(arguments).store.url)
    if "://" in str(load_light(arguments).store.url):
        raise ConfigError(f"the demo works in a local folder, not in {folder}; leave store= out or name a folder")
    items = arguments.options.items
    progress = Progress()
    catalogue = folder / "catalogue" / f"{items}-items"
    if not (catalogue / "catalogue.csv").exists():
        progress.note(f"demo: rendering {items:,} products into {catalogue}")
        render_catalogue(catalogue, items=items, seed=0)
    config = load_config(arguments.with_overrides(f"catalogue.source={catalogue / 'catalogue.csv'}"))
    name = arguments.run or default_run_name()
    how = How(limit=arguments.limit, retrain=True)
    outcome = run_config(config, name=name, how=how, until="publish", progress=progress)
    release = open_release(config.store.url, release_id=outcome.release)
    page = (folder / release.manifest.files["report"].name).resolve()
    text = "\n".join([outcome.text, *neighbour_lines(release), f"look at it: {page.as_uri()}"])
    return replace(outcome, text=text, details={**outcome.details, "page": str(page)})


def neighbour_lines(release: Release) -> Sequence[str]:
    """Return the five nearest items of three items with what they are, for people."""
    ids = release.item_ids()
    lines = []
    for item_id in ids[:: max(1, len(ids) // _SHOWN)][:_SHOWN]:
        lines.append(f"{item_id}  {_kind(release.attributes(item_id))}")
        lines.extend(
            f"  {near.score:6.3f}  {near.item_id}  {_kind(near.attributes)}" for near in release.similar(item_id, k=5)
        )
    return lines


def _kind(attributes: dict[str, object]) -> str:
    return " ".join(str(attributes[name]) for name in ("colour", "pattern", "category") if name in attributes)
