"""What a prior is used for: every photo judged, pictures drawn, the numbers that say how much it has learned."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ..errors import ConfigError, InputError, NotReconstructing
from ..evaluation.drawing import Drawn, draw_alone, draw_samples, pictures_of
from ..evaluation.drawn_realism import drawn_realism
from ..evaluation.likelihood import code_likelihood, item_nats, outlier_scores, outlier_table
from ..images.grid import picture_grid
from ..models import Bundle
from ..models.priors import Prior
from ..models.priors.stored import StoredPrior
from ..ordering import ranks
from ..planning import ReleasePhotos
from ..release import Manifest
from ..release.tables import write_table
from ..runs import Run
from ..storage import Store
from ..training import Codes, read_codes

_SHOWN = 10  # of the least likely photos
_SIDE = 56  # pixels that a drawn picture is at least shown with


@dataclass(frozen=True, slots=True)
class Sampling:
    """How many pictures to draw and how; category: the only one to draw, None for all."""

    number: int
    temperature: float
    top_k: int | None
    category: str | None


@dataclass(frozen=True, slots=True)
class Sheets:
    """Codes of pictures from the prior and as many with every cell drawn alone, and how they are laid out.

    rows: the categories of the rows, none where all pictures are of one kind; columns: pictures a row, None for a
    square.
    """

    drawn: Drawn
    alone: Drawn
    rows: tuple[str, ...]
    columns: int | None


def check_category(sampling: Sampling, labels: Sequence[str], *, by_category: bool) -> None:
    """Refuse what cannot be drawn before anything is trained for it.

    labels: the categories that a prior `by_category` knows. Raises ConfigError.
    """
    if sampling.number < 1:
        raise ConfigError(f"--samples is {sampling.number}; draw at least 1")
    if sampling.category is None:
        return
    if not by_category:
        raise ConfigError(
            f"--category {sampling.category!r} needs a prior that is told categories; add prior.by_category=true"
        )
    if sampling.category not in labels:
        raise ConfigError(f"--category is {sampling.category!r}; the photos have: {', '.join(labels)}")


def write_results(
    store: Store,
    run: Run,
    stored: StoredPrior,
    bundle: Bundle,
    manifest: Manifest,
    photos: ReleasePhotos,
    sampling: Sampling,
    *,
    seed: int,
) -> dict[str, Any]:
    """Write the outliers and pictures of a run and return what its result says of them and of the prior."""
    prior = stored.prior
    codes = read_codes(store, photos.code_rows(prior.labels))
    files = {"outliers": f"{run.folder}outliers.parquet"}
    outliers = judged(prior, codes, photos)
    store.put(files["outliers"], write_table(outliers))
    sheets = draw_sheets(prior, codes, sampling, seed=seed)
    files |= write_pictures(store, run, bundle, sheets)
    like_photos, realism = realism_measures(prior, bundle, codes, photos, sampling, seed=seed)
    return {
        "prior_id": stored.prior_id,
        "model_id": manifest.model_id,
        "kind": prior.settings.kind,
        "by_category": prior.settings.by_category,
        "counts": {
            "photos": len(codes),
            "items": int(pc.count_distinct(photos.items["item_id"]).as_py()),
            "held_out": int(photos.held_out.sum()),
            "samples": len(sheets.drawn.codes),
        },
        "measures": {
            **held_out_measures(prior, codes),
            "nats_per_code/samples": sheets.drawn.nats_per_code,
            "nats_per_code/independent": sheets.alone.nats_per_code,
            **like_photos,
        },
        "realism": realism,
        "sample_rows": list(sheets.rows),
        "files": files,
        "outliers": outliers.slice(0, _SHOWN).to_pylist(),
    }


def judged(prior: Prior, codes: Codes, photos: ReleasePhotos) -> pa.Table:
    """Return the table of outliers (schema.outliers_schema) of all photos, in their own categories if it is told them.

    Scores are relative to all photos; without any where their nats have no spread, as in a catalogue of equal photos.
    """
    nats = item_nats(prior, codes.codes, condition=_told(prior, codes.category))
    try:
        scores = outlier_scores(nats)
    except InputError:
        scores = None
    items, cells = photos.items, math.prod(prior.grid)
    return outlier_table(items["item_id"], items["uri"], nats, scores, cells=cells, categories=photos.categories())


def held_out_measures(prior: Prior, codes: Codes) -> dict[str, float]:
    """Return the nats per code of held-out photos by the prior and by what knows less; none where none is held out."""
    train, held_out = codes.side(held_out=False), codes.side(held_out=True)
    if not len(held_out) or not len(train):
        return {}
    told = _told(prior, held_out.category)
    return code_likelihood(prior, train.codes, held_out.codes, condition=told).measures()


def realism_measures(
    prior: Prior, bundle: Bundle, codes: Codes, photos: ReleasePhotos, sampling: Sampling, *, seed: int
) -> tuple[dict[str, float], dict[str, Any]]:
    """Return how like photos drawn pictures are, by name, and what was compared: `photos` of each set, `components`.

    Of the prior as a whole, as its nats are: `sampling.number` and `sampling.category` say what the sheet shows and
    change nothing here, temperature and top_k do. Where it cannot be measured there are no measures, and `left_out`
    says why.
    """
    held_out = one_an_item(photos, seed=seed)
    told = _told(prior, codes.category)
    try:
        found = drawn_realism(
            prior,
            bundle.model,
            codes.side(held_out=False).codes,
            codes.codes[held_out],
            condition=None if told is None else told[held_out],
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            seed=seed,
        )
    except (InputError, NotReconstructing) as error:  # nats and outliers are good all the same
        return {}, {"left_out": str(error)}
    return found.measures(), {"photos": found.held_out.photos, "components": found.held_out.components}


def one_an_item(photos: ReleasePhotos, *, seed: int) -> NDArray[np.int64]:
    """Return the rows of the held-out photos, of an item of several a seeded one, in ascending order.

    Two views of an item are each other's nearest, which no drawn picture could be: photos would seem easy to tell.
    """
    rows = np.random.default_rng(seed).permutation(np.flatnonzero(photos.held_out))
    items, _ = ranks(photos.items["item_id"])
    _, first = np.unique(items[rows], return_index=True)
    return np.sort(rows[first]).astype(np.int64)


def draw_sheets(prior: Prior, codes: Codes, sampling: Sampling, *, seed: int) -> Sheets:
    """Draw what a run shows: of a prior `by_category` one row a category, `sampling.number` being the limit of all."""
    number, named = sampling.number, sampling.category
    rows = prior.labels[:number] if named is None else ()
    columns = number // len(rows) if rows else None
    categories: list[str | None] | None = None if named is None else [named] * number
    if columns is not None:
        categories, number = [name for name in rows for _ in range(columns)], len(rows) * columns
    drawn = draw_samples(
        prior, number, categories=categories, temperature=sampling.temperature, top_k=sampling.top_k, seed=seed
    )
    alone = draw_alone(prior, number, codes.side(held_out=False).codes, categories=categories, seed=seed)
    return Sheets(drawn, alone, rows, columns)


def write_pictures(store: Store, run: Run, bundle: Bundle, sheets: Sheets) -> dict[str, str]:
    """Write both sheets as PNG files and return their names, none for a model that draws no pictures."""
    files = {}
    scale = max(1, _SIDE // bundle.image_size)
    try:
        for name, end, some in (("samples", "", sheets.drawn), ("independent", "-independent", sheets.alone)):
            pictures = pictures_of(bundle.model, some.codes)
            store.put(f"{run.folder}samples{end}.png", picture_grid(pictures, columns=sheets.columns, scale=scale))
            files[name] = f"{run.folder}samples{end}.png"
    except NotReconstructing:  # its decoder brings back features; the prior and its outliers are good all the same
        return {}
    return files


def described(result: Mapping[str, Any]) -> list[str]:
    """Return a result as lines for people."""
    counts, measures, files = result["counts"], result["measures"], result["files"]
    values = {name.removeprefix("nats_per_code/"): f"{value:.3f}" for name, value in measures.items()}
    known = ", ".join(
        f"{name} {values[name]}" for name in ("prior", "position", "unigram", "uniform") if name in values
    )
    lines = [
        f"prior {result['prior_id'][:12]} ({result['kind']}) knows the codes of model {result['model_id'][:12]}",
        f"nats per code of {counts['held_out']:,} held-out photos, fewer is better: {known}"
        if known
        else "no photo is held out, so nothing says how well it knows others; raise prior.train.validation",
        f"of drawn pictures: from the prior {values['samples']}, every cell alone {values['independent']}",
        *_described_realism(result),
        f"least likely of {counts['photos']:,} photos ({files['outliers']} has all):",
    ]
    lines += [
        f"  {'' if row['outlier_score'] is None else format(row['outlier_score'], '8.2f')}  {row['nats_per_code']:7.3f}"
        f"  {row['item_id']}  {row['category'] or ''}  {row['uri']}".rstrip()
        for row in result["outliers"]
    ]
    if "samples" in files:
        of = f", one row a category: {', '.join(result['sample_rows'])}" if result["sample_rows"] else ""
        lines.append(f"pictures: {files['samples']}, every cell alone: {files['independent']}{of}")
    else:
        lines.append("the model's decoder draws no pictures, so there are none")
    return lines


def _described_realism(result: Mapping[str, Any]) -> list[str]:
    """Return the line of `realism_measures`, none for a result written before they were measured."""
    realism, measures = result.get("realism"), result["measures"]
    if realism is None:
        return []
    if "left_out" in realism:
        return [f"how like photos drawn pictures are was not measured: {realism['left_out']}"]
    names = {"samples": "from the prior", "independent": "every cell alone", "held_out": "other held-out photos"}
    values = [f"{of} {measures[f'frechet/{key}']:.3f}, {measures[f'one_nn/{key}']:.3f}" for key, of in names.items()]
    return [
        f"against {realism['photos']:,} held-out photos (Fréchet distance; 1-NN accuracy, 0.5 cannot be told apart): "
        + "; ".join(values)
    ]


def _told(prior: Prior, category: NDArray[np.int32] | None) -> NDArray[np.int32] | None:
    return category if prior.settings.by_category else None
