"""The whole way on a rendered catalogue, on this machine, in one folder; ends with neighbours in two spaces."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import yaml
from pydantic import TypeAdapter

from jobs.command import Arguments, Outcome
from jobs.config import Config, load_config
from jobs.options import option
from jobs.pipeline_run import run_config
from jobs.place import load_light
from jobs.ray_session import ray_session
from pipeline.errors import ConfigError
from pipeline.images.render import render_catalogue
from pipeline.models import AnyModelConfig
from pipeline.planning.freezing import How
from pipeline.progress import Progress
from pipeline.quality.side_by_side import side_by_side_lines, side_by_side_page
from pipeline.reader import open_release
from pipeline.runs import default_run_name
from pipeline.settings.model_choice import BEST

_OTHER = "descriptor"  # the channel of the second space
_PAGE = "side-by-side.html"


add_arguments = option("--items", type=int, default=1800, help="items to render (about 1.2 photos each; default 1800)")


def run(arguments: Arguments) -> Outcome:
    """Render a catalogue, refresh it with two models, and show the neighbours of the same items in both spaces."""
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
    with ray_session(config.cluster, busy=max(config.encode.least_actors, config.train.workers)):
        how = How(limit=arguments.limit, retrain=True)
        outcome = run_config(config, name=name, how=how, until="publish", progress=progress)
        progress.note(f"demo: the same photos in a second space, {BEST.title}: {BEST.model}")
        # A sample is published nowhere, so it needs no channel of its own.
        how = replace(how, channel=_OTHER if arguments.limit is None else None)
        other = run_config(second(config), name=f"{name}-{_OTHER}", how=how, until="publish", progress=progress)
    releases = [open_release(config.store.url, release_id=each.release) for each in (outcome, other)]
    page = (folder / releases[0].manifest.file("report").name).resolve()
    both = (folder / _PAGE).resolve()
    manifests = [release.manifest for release in releases]
    text = side_by_side_page(
        config.store.open(), manifests, size=config.images.size, category=config.catalogue.category
    )
    both.write_bytes(text)
    lines = [
        outcome.text,
        *side_by_side_lines(*releases),
        f"look at it: {page.as_uri()}",
        f"both spaces: {both.as_uri()}",
    ]
    details = {**outcome.details, "page": str(page), "side_by_side": str(both), "second_release": other.release}
    return replace(outcome, text="\n".join(lines), details=details)


def second(config: Config) -> Config:
    """Return the demo's config with the model that was measured best, its cells an eighth of a photo's side."""
    values = {**yaml.safe_load(BEST.model), "cell": max(1, config.images.size // 8)}
    return config.model_copy(update={"model": TypeAdapter(AnyModelConfig).validate_python(values)})
