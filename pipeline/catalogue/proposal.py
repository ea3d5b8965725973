"""A commented config for a catalogue, guessed from its first rows and tried on them."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import yaml

from ..settings.model_choice import model_lines
from ..storage import Files
from .allowed import lacking_prefixes
from .config import CatalogueConfig
from .first_rows import Sample, Tried, propose_reading, read_sample, settle
from .guessing import Guess, guess_columns, holds_bytes, listed

TEXTS = ("encoding", "quoting", "image_separator")


@dataclass(frozen=True, slots=True)
class Proposal:
    """What a catalogue seems to be. guess: of its columns, None where it has none; tried: what its first rows gave."""

    config: CatalogueConfig
    sample: Sample
    guess: Guess | None
    tried: Tried

    def tried_lines(self) -> list[str]:
        """Return what came of the first rows, in words."""
        tried = self.tried
        rows = len(pc.unique(tried.photos["row"]))
        without = f", {tried.without:,} of them without a photo" if tried.without else ""
        return [
            f"Tried on its first {rows:,} rows: {tried.items:,} items{without}; the first photos:",
            *(_one_line(f"  {item_id}  {uri}") for item_id, uri in tried.examples),
            *(_one_line(f"  {found.number:,} {what}: {found.where}") for what, found in tried.counted.items()),
        ]

    def found(self) -> dict[str, Any]:
        """Return the settings that are no defaults, by name."""
        found = {"format": self.sample.format, **{name: getattr(self.config, name) for name in TEXTS}}
        if self.guess is not None:
            found |= {name: getattr(self.config, name) for name in ("item_id", "image", "category", "rows")}
        elif self.config.item_id != "item_id":
            found["item_id"] = self.config.item_id
        return {name: value for name, value in found.items() if value not in (None, "auto")}

    def text(self, *, store: str) -> str:
        """Return the config file: every choice with what it means and what else could stand there."""
        config = self.config
        lines = [
            f"# A config for `codebooks refresh --config FILE`, guessed from {self.sample.first}.",
            "# Settings that are not here have defaults; `codebooks doctor --config FILE` checks them all.",
            "",
            "# Where everything is written: s3://BUCKET/PREFIX, or a folder of this machine.",
            f"store: {_yaml(store)}",
            "",
            "catalogue:",
            f"  source: {_yaml(config.source)}",
            f"  format: {self.sample.format}",
            *_lines_of_text(config),
        ]
        if self.guess is None or self.sample.rows is None:
            lines += _lines_without_columns(self.sample, config)
        else:
            lines += _lines_of_columns(self.sample.rows, config)
        lines += _lines_of_places(config)
        lines += [f"  # {line}" for line in self.tried_lines()]
        lines += [
            "",
            "images:",
            "  size: 64  # photos are scaled to 64 x 64; larger sees more detail and costs its square in time",
            "  fit: pad  # pad (nothing is lost), crop (the middle square) or stretch",
            "",
            *model_lines(),
            "",
            "train:",
            "  validation: 0.05  # share of items that are held out of what is fitted or trained",
            "  # A channel's first refresh trains, later ones keep that model. `when` lets them do all anew unasked:",
            "  # missing (where a setting has changed), {older_than: 30d}, or always. Without it they want --retrain.",
            "  # when: {older_than: 30d}",
            "",
            "index:",
            "  metric: cosine  # or l2",
            "  # flat is exact: 5 ms a query at 60,000 photos, 88 at a million. auto is flat while that is little;",
            "  # then it builds what fits memory_gib and takes the fastest that finds 0.98 of what flat does.",
            "  kind: auto",
            "",
            "# A release that fails one of these is not published; yesterday's stays live.",
            "gates:",
            "  min_recall: 0.95  # of the index, against exact search",
            "  max_quarantine: 0.2  # share of photos that could not be used",
            "  max_not_finite: 0.05  # share of photos to which the model gives no finite latents",
            "  max_removed: 0.5  # share of yesterday's photos that are gone",
            "",
            "publish:",
            "  channel: stable",
        ]
        return "\n".join(lines) + "\n"


def propose(
    source: str, *, item_id: str | None = None, image: str | None = None, category: str | None = None
) -> Proposal:
    """Return a catalogue's config, guessed from its first rows and tried on them.

    item_id, image, category: the columns where the guess is known to be wrong. Raises InputError when none is found.
    """
    config = propose_reading(CatalogueConfig(source=source), Files())
    sample = read_sample(config, Files())
    guess = None
    if sample.rows is not None:
        guess = guess_columns(sample.rows, sample.first, item_id=item_id, image=image, category=category)
        config = config.model_copy(
            update={
                "item_id": guess.item_id,
                "image": guess.image,
                "category": guess.category,
                "attributes": guess.attributes,
                "image_separator": guess.separator,
                "rows": guess.rows,
            }
        )
    elif sample.format == "folder":
        config = config.model_copy(update={"item_id": "name", "category": "category"})
    config, tried = settle(CatalogueConfig.model_validate(config.model_dump()), Files())
    config = config.model_copy(update={"allowed_prefixes": lacking_prefixes(tried.photos, config)})
    return Proposal(config, sample, guess, tried)


def _lines_of_text(config: CatalogueConfig) -> list[str]:
    lines = []
    if config.encoding != "auto":
        lines.append(f"  encoding: {config.encoding}  # the file is not in UTF-8; check that the examples read well")
    if config.quoting != "auto":
        lines.append(
            f"  quoting: {config.quoting}  # none: quotes are text and each line is a row; minimal: cells in quotes"
        )
    return lines


def _lines_without_columns(sample: Sample, config: CatalogueConfig) -> list[str]:
    if sample.format == "folder":
        return [
            "  # Photos lie as FOLDER/<category>/<name>.jpg; the name without its suffix is the item's key.",
            f"  item_id: {config.item_id}  # name, path (names repeat in several folders), folder (with rows: photo)",
            "  category: category",
        ]
    if config.item_id == "name":
        return ["  item_id: name  # the whole name of a photo is its item's key; key: the name up to its first dot"]
    return ["  # Tar shards: the name of a photo in the shard, up to its first dot, is the item's key."]


def _lines_of_places(config: CatalogueConfig) -> list[str]:
    if not config.allowed_prefixes:
        return ["  # allowed_prefixes: [PLACE, ...]  # photos come from beside the source only, and from such places"]
    return [
        "  # The first rows name photos in these places too. Only what is listed here is ever read: strike out what is",
        "  # not the shop's.",
        f"  allowed_prefixes: [{', '.join(_yaml(prefix) for prefix in config.allowed_prefixes)}]",
    ]


def _lines_of_columns(rows: pa.Table, config: CatalogueConfig) -> list[str]:
    lines = [
        f"  # Columns: {_one_line(listed(rows))}",
        f"  item_id: {_yaml(config.item_id)}  # the key of an item, for example {_example(rows[config.item_id])}",
        f"  image: {_yaml(config.image)}  # {_image_comment(rows[config.image])}",
    ]
    if config.image_separator is not None:
        lines.append(f"  image_separator: {json.dumps(config.image_separator)}  # between the addresses in one cell")
    lines.append(
        f"  rows: {config.rows}  # "
        + ("each key stands once" if config.rows == "item" else "a key stands once for each of its photos")
    )
    if config.category is None:
        lines.append("  # category: COLUMN  # none found; with one, reports show how well categories hold together")
    else:
        lines.append(f"  category: {_yaml(config.category)}  # for example {_example(rows[config.category])}")
    if config.attributes is None:
        lines.append("  # attributes: [COLUMN, ...]  # kept for filters; by default every other column of plain values")
    else:
        names = ", ".join(_yaml(name) for name in config.attributes)
        lines.append(f"  attributes: [{names}]  # others stand twice, or have names that releases use themselves")
    return lines


def _image_comment(column: pa.ChunkedArray) -> str:
    if holds_bytes(column.type):
        return "the photos themselves, as bytes"
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        return "lists of URIs, absolute or relative to the table"
    return f"URIs, absolute or relative to the table, for example {_example(column)}"


def _example(column: pa.ChunkedArray) -> str:
    value = next((value for value in column.to_pylist() if value not in (None, "")), "")
    text = re.sub(r"\s+", " ", str(value))
    return text if len(text) <= 60 else text[:59] + "…"


def _yaml(text: str) -> str:
    if not text.isprintable():
        return json.dumps(text)
    return yaml.safe_dump(text, width=10_000, allow_unicode=True).removesuffix("\n...\n").rstrip("\n")


def _one_line(text: str) -> str:
    return re.sub(r"[\r\n\x85\u2028\u2029]+", " ", text)
