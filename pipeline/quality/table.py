"""The quality table of a release's model: beside other bundles of the store and beside baselines that cost nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from ..errors import ConfigError
from ..evaluation.quality import FACTOR_ITEMS, LABEL_MEASURES, factor_photos
from ..evaluation.spaces import Space, baseline_spaces, has_umap, model_space, word_space
from ..evaluation.table import Against, TablePhotos, TableRow, against_baselines, leaders, table_row
from ..models import Bundle, load_bundle
from ..planning import NightSettings, Plan
from ..release import read_manifest
from ..release.tables import read_table
from ..runs import open_run
from ..storage import Files, Store
from .pictures import Pictures
from .table_page import QualityFacts, quality_page, table_text
from .table_sample import LEAST, PHOTOS, sample_photos

FORMAT = 1
_ID = 64  # hex digits of a model_id
_ENOUGH = 8  # of which this many may name it


@dataclass(frozen=True, slots=True)
class TableOptions:
    """What the command line asks of the table. beside: model_ids, or their first digits."""

    beside: tuple[str, ...] = ()
    photos: int = PHOTOS
    baselines: bool = True


def asked_table(
    *, table: bool, beside: Sequence[str], photos: int | None, without_baselines: bool
) -> TableOptions | None:
    """Return what a command line asks of the table, None for no table; ConfigError for options that do not fit."""
    if not table:
        given = {"--beside": beside, "--photos": photos, "--without-baselines": without_baselines}
        idle = [name for name, value in given.items() if value]
        if idle:
            raise ConfigError(f"{', '.join(idle)} without --table says nothing; add --table, or leave it out")
        return None
    asked = PHOTOS if photos is None else photos
    if asked < LEAST:
        raise ConfigError(f"--photos is {asked}; a quality table takes at least {LEAST}")
    return TableOptions(tuple(beside), asked, not without_baselines)


@dataclass(frozen=True, slots=True)
class WrittenTable:
    """What the command answers: fields of the JSON object, and text."""

    details: Mapping[str, Any]
    text: str


def named_bundles(store: Store, config: NightSettings, options: TableOptions) -> list[Bundle]:
    """Return the bundles beside the run's own. Raises ConfigError for unknown ones."""
    found: dict[str, Bundle] = {}
    for word in options.beside:
        bundle = load_bundle(store, _model_id(store, word))
        found.setdefault(bundle.model_id, bundle)
    return list(found.values())


def write_quality(
    store: Store,
    config: NightSettings,
    *,
    run: str,
    release: str,
    options: TableOptions,
    note: Callable[[str], None],
    files: Files | None = None,
) -> WrittenTable:
    """Measure the table of a release and write `runs/<run>/quality.json` and `quality.html`.

    files: reads the photos whose pixels are not kept. Photos are shown to every model as made from the largest of the
    sizes that the release's model sees. Raises ConfigError as `named_bundles`, InputError where the release has too few
    photos whose pixels can be had.
    """
    beside = named_bundles(store, config, options)
    manifest = read_manifest(store, release)
    own = load_bundle(store, manifest.model_id)
    items: pa.Table = read_table(store, manifest, "items")
    pictures = _pictures(store, config, own, run, files)
    sampled = sample_photos(store, config, items, photos=options.photos, pictures=pictures)
    seed, count = config.train.seed, len(sampled.pixels)
    note(f"table: {count:,} photos, {int(sampled.asked.sum()):,} of them asked")
    rendered = factor_photos(pictures.images, count=max(200, min(FACTOR_ITEMS, count)), seed=seed)
    photos = TablePhotos(sampled.pixels, sampled.asked, sampled.labels, sampled.groups, rendered)
    rows = []
    bundles = [own, *(bundle for bundle in beside if bundle.model_id != own.model_id)]
    for space, model_id in _spaces(bundles, photos, options, seed):
        note(f"table: {space.name}")
        rows.append(table_row(space, photos, seed=seed, model_id=model_id))
    facts = QualityFacts(
        run=run,
        release=release,
        model_id=own.model_id,
        category=config.catalogue.category,
        split_by=sampled.split_by,
        known=count - int(sampled.asked.sum()),
        asked=int(sampled.asked.sum()),
        rendered=len(rendered.pixels),
        seed=seed,
        notes=tuple(_notes([own, *beside], config, options)),
    )
    ahead = leaders(rows, seed=seed)
    against = against_baselines(rows[0], rows, seed=seed)
    document = _document(facts, rows, ahead, against)
    store.put(f"runs/{run}/quality.json", json.dumps(document, indent=1, allow_nan=False).encode())
    page = f"runs/{run}/quality.html"
    store.put(page, quality_page(facts, rows, ahead, against))
    text = f"{table_text(rows, ahead, against)}\n  the page: {page} of {store.url}"
    return WrittenTable({"quality": document, "quality_page": page}, text)


def _pictures(store: Store, config: NightSettings, own: Bundle, run: str, files: Files | None) -> Pictures:
    """Return where photos come from, in the largest of the sizes that a model sees."""
    number = max(range(len(own.transforms)), key=lambda at: own.transforms[at].size)
    frozen = open_run(store, run).read_frozen("plan.parquet")
    return Pictures(
        store,
        own.transforms[number].under(config.images),
        number,
        files,
        config.catalogue,
        None if frozen is None else Plan.from_bytes(frozen).rows,
    )


def _spaces(
    bundles: Sequence[Bundle], photos: TablePhotos, options: TableOptions, seed: int
) -> Iterator[tuple[Space, str | None]]:
    """Yield every space and the model_id of a bundle's; the run's own first."""
    for bundle in bundles:
        name, model = f"{bundle.config.kind} {bundle.model_id[:8]}", bundle.model
        yield model_space(name, model), bundle.model_id
        if model.num_latent_codes > 1:
            yield word_space(f"words of {name}", model, photos.known_pixels), bundle.model_id
    if options.baselines:
        for space in baseline_spaces(photos.known_pixels, seed=seed, untrained=bundles[0].config):
            yield space, None


def _notes(bundles: Sequence[Bundle], config: NightSettings, options: TableOptions) -> Iterator[str]:
    """Yield what a reader has to know of this table."""
    own, held = bundles[0], config.train.validation
    seen = f"all but the {held:.0%} that were held out for validation, which are among the asked" if held else "all"
    yield (
        f"The baselines are fitted on the known photos alone. The trained models saw {seen} of the catalogue's photos, "
        "asked ones too, while they were trained without labels."
    )
    yield (
        "The intervals say how much other photos would move a number, not another training. One of no width "
        "(100.0 – 100.0) means that all these photos came out alike, not that none could be otherwise."
    )
    if own.config.conditional:
        yield "The model is conditional and encodes these photos without their category, unlike in the release."
    sizes = sorted({images.size for bundle in bundles for images in bundle.transforms})
    if len(sizes) > 1:
        yield (
            f"The models see photos of {', '.join(map(str, sizes))} pixels. All are shown the largest that this "
            "release's model sees, made smaller or larger to their own size."
        )
    if config.catalogue.category is None:
        yield "catalogue.category is not set, so nothing is measured by labels."
    if not options.baselines:
        yield "The baselines were left out (--without-baselines)."
    elif not has_umap():
        yield "UMAP is left out: umap-learn is not installed (pip install 'visual-codebooks[viz]')."
    if options.baselines and own.config.kind == "pretrained":
        yield "There is no row of random weights: the model's weights come from a file."


def _document(
    facts: QualityFacts, rows: Sequence[TableRow], ahead: Mapping[str, str], against: Mapping[str, Against]
) -> dict[str, Any]:
    """Return quality.json: plain values, no NaN."""
    return {
        "format": FORMAT,
        "run": facts.run,
        "release": facts.release,
        "model_id": facts.model_id,
        "photos": {"known": facts.known, "asked": facts.asked, "rendered": facts.rendered},
        "split_by": facts.split_by,
        "category": facts.category,
        "seed": facts.seed,
        "rows": [
            {"name": row.name, "model_id": row.model_id, "baseline": not row.trained, "dims": row.dims, **row.numbers}
            for row in rows
        ],
        "ahead_of_all": {name: ahead.get(name) for name in LABEL_MEASURES if rows[0].values},
        "against_best_baseline": {
            name: {"baseline": each.baseline, **each.difference._asdict()} for name, each in against.items()
        },
        "notes": list(facts.notes),
    }


def _model_id(store: Store, word: str) -> str:
    """Return the one model_id that begins with a word."""
    there = sorted({entry.name.split("/")[1] for entry in store.list("models/") if entry.name.endswith("/config.json")})
    found = [model_id for model_id in there if model_id.startswith(word)] if len(word) >= _ENOUGH else []
    if len(found) == 1:
        return found[0]
    known = ", ".join(model_id[:12] for model_id in there[:10]) or "none"
    problem = f"{len(found)} models begin with it" if found else "there is no such model"
    raise ConfigError(
        f"--beside {word}: {problem} on {store.url}; give a model_id, or at least its first {_ENOUGH} of {_ID} digits. "
        f"The store has: {known}{', ...' if len(there) > 10 else ''}"
    )
