"""The whole way on a rendered catalogue, on this machine, in one folder; ends with neighbours in two spaces."""

from __future__ import annotations

from collections.abc import Iterator
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
from pipeline.quality.side_by_side import side_by_side_page
from pipeline.reader import Neighbour, Release, open_release
from pipeline.runs import default_run_name
from pipeline.settings.model_choice import BEST

_SHOWN = 3
_OTHER = "descriptor"  # the channel of the second space
_WIDTH = 46  # of one space's column
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
    lines = [outcome.text, *side_by_side(*releases), f"look at it: {page.as_uri()}", f"both spaces: {both.as_uri()}"]
    details = {**outcome.details, "page": str(page), "side_by_side": str(both), "second_release": other.release}
    return replace(outcome, text="\n".join(lines), details=details)


def second(config: Config) -> Config:
    """Return the demo's config with the model that was measured best, its cells an eighth of a photo's side."""
    values = {**yaml.safe_load(BEST.model), "cell": max(1, config.images.size // 8)}
    return config.model_copy(update={"model": TypeAdapter(AnyModelConfig).validate_python(values)})


def side_by_side(left: Release, right: Release) -> Iterator[str]:
    """Yield the five nearest items of three items, with what they are, in two spaces, for people."""
    ids = left.item_ids()
    yield f"  {_space(left):<{_WIDTH}}{_space(right)}"
    for item_id in ids[:: max(1, len(ids) // _SHOWN)][:_SHOWN]:
        yield f"{item_id}  {_kind(left.attributes(item_id))}"
        pairs = zip(left.similar(item_id, k=5), right.similar(item_id, k=5), strict=False)
        yield from (f"  {_line(one):<{_WIDTH}}{_line(other)}" for one, other in pairs)
    measured = [release.manifest.measures.get("category_precision_at_10") for release in (left, right)]
    if None not in measured:
        yield (
            "of a photo's ten nearest are of its own category: "
            f"{measured[0]:.0%} with {left.manifest.model_kind}, {measured[1]:.0%} with {right.manifest.model_kind}"
        )


def _space(release: Release) -> str:
    return f"{release.manifest.model_kind}, {release.manifest.latent_dim} numbers a photo"


def _line(near: Neighbour) -> str:
    return f"{near.score:6.3f}  {near.item_id}  {_kind(near.attributes)}"


def _kind(attributes: dict[str, object]) -> str:
    return " ".join(str(attributes[name]) for name in ("colour", "pattern", "category") if name in attributes)
