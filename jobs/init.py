"""Write a commented config from what a catalogue looks like."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import yaml

from jobs.command import Arguments, Outcome
from jobs.model_choice import model_lines
from pipeline.catalogue import CatalogueConfig
from pipeline.catalogue.first_rows import Sample, read_sample
from pipeline.errors import ConfigError, InputError
from pipeline.storage import Files

_KEYS = ("item_id", "sku", "product_id", "article_id", "item", "id", "asin", "ean", "gtin", "key", "product")
_IMAGES = (
    "image",
    "image_url",
    "image_uri",
    "image_path",
    "images",
    "photo",
    "photos",
    "picture",
    "img",
    "url",
    "path",
)
_CATEGORIES = ("category", "product_type", "class", "label", "type", "department", "group", "section", "kind")
_PHOTO = re.compile(r"\.(jpe?g|png|webp|gif|bmp|tiff?|avif)(\?.*)?$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Guess:
    """Which column means what. rows: `photo` where a key repeats; sources: hosts of https photos."""

    item_id: str
    image: str
    category: str | None
    rows: str
    https_prefixes: tuple[str, ...]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `init`."""
    parser.add_argument(
        "source", help="a table (Parquet, CSV, JSON lines), a folder of photos or of tables, a tar shard"
    )
    parser.add_argument(
        "--output", metavar="FILE", default="codebooks.yaml", help="what to write (default codebooks.yaml)"
    )
    parser.add_argument("--store", metavar="URL", default="codebooks-store", help="s3://BUCKET/PREFIX or a folder")
    parser.add_argument("--item-id", metavar="COLUMN", help="the column of keys, where the guess is wrong")
    parser.add_argument("--image", metavar="COLUMN", help="the column of photos, where the guess is wrong")
    parser.add_argument("--category", metavar="COLUMN", help="the column of categories, where the guess is wrong")


def run(arguments: Arguments) -> Outcome:
    """Look at the first rows of a catalogue, guess what the columns mean and write a config to start from."""
    options = arguments.options
    output = Path(options.output).expanduser()
    if output.exists():
        raise ConfigError(f"{str(output)!r} exists and is not overwritten; name another file with --output")
    sample = read_sample(CatalogueConfig(source=options.source), Files())
    guess = None if sample.rows is None else guess_columns(sample.rows, sample.first, options)
    text = config_text(sample, guess, source=options.source, store=options.store)
    try:
        with output.open("x", encoding="utf-8") as handle:
            handle.write(text)
    except OSError as error:
        raise ConfigError(f"{str(output)!r} cannot be written: {error}; name another file with --output") from error
    found = {"format": sample.format} if guess is None else {"format": sample.format, **_as_dict(guess)}
    shown = ", ".join(f"{name} {value}" for name, value in found.items() if value)
    return Outcome(
        reason="written",
        details={"config": str(output), "guess": found},
        text=f"wrote {output} ({shown}).\nRead it, then run: codebooks plan --config {output}",
    )


def guess_columns(rows: pa.Table, where: str, options: argparse.Namespace) -> Guess:
    """Return which columns of a table hold keys, photos and categories; options override the guess.

    Raises InputError that lists the columns when there is nothing like a key or a photo, or a named column is missing.
    """
    for column in filter(None, (options.item_id, options.image, options.category)):
        if column not in rows.column_names:
            raise InputError(f"{where} has no column {column!r}; columns: {_listed(rows)}")
    image = options.image or _best((name for name in rows.column_names if _holds_photos(rows[name])), _IMAGES)
    if image is None:
        raise InputError(
            f"no column of {where} looks like photos (URIs ending in .jpg and the like, or bytes); name it with "
            f"--image COLUMN. Columns: {_listed(rows)}"
        )
    keys = [name for name in rows.column_names if name != image and _may_be_key(rows[name])]
    # A column of a usual name may repeat its keys, one row a photo; any other one must not.
    named = [name for name in keys if _plain(name) in _KEYS and _varies(rows[name])]
    unique = [name for name in keys if _is_unique(rows[name])]
    item_id = options.item_id or _best(named or unique, _KEYS)
    if item_id is None:
        raise InputError(
            f"no column of {where} looks like a key of items (text or whole numbers, no nulls); name it with "
            f"--item-id COLUMN. Columns: {_listed(rows)}"
        )
    others = [name for name in rows.column_names if name not in (image, item_id)]
    category = options.category or _best((name for name in others if _may_be_category(rows[name])), _CATEGORIES)
    return Guess(
        item_id=item_id,
        image=image,
        category=category,
        rows="item" if _is_unique(rows[item_id]) else "photo",
        https_prefixes=tuple(_https_prefixes(rows[image])),
    )


def config_text(sample: Sample, guess: Guess | None, *, source: str, store: str) -> str:
    """Return the config file: every choice with what it means and what else could stand there."""
    lines = [
        f"# A config for `codebooks refresh --config FILE`, guessed from {sample.first}.",
        "# Settings that are not here have defaults; `codebooks doctor --config FILE` checks them all.",
        "",
        "# Where everything is written: s3://BUCKET/PREFIX, or a folder of this machine.",
        f"store: {_yaml(store)}",
        "",
        "catalogue:",
        f"  source: {_yaml(source)}",
        f"  format: {sample.format}",
    ]
    if guess is None or sample.rows is None:
        lines += _lines_without_columns(sample)
    else:
        lines += _lines_of_columns(sample.rows, guess)
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
        "  kind: flat  # exact; hnsw is faster from about a million photos on",
        "",
        "# A release that fails one of these is not published; yesterday's stays live.",
        "gates:",
        "  min_recall: 0.95  # of the index, against exact search",
        "  max_quarantine: 0.2  # share of photos that could not be used",
        "  max_removed: 0.5  # share of yesterday's photos that are gone",
        "",
        "publish:",
        "  channel: stable",
    ]
    return "\n".join(lines) + "\n"


def _lines_without_columns(sample: Sample) -> list[str]:
    if sample.format == "folder":
        return [
            "  # Photos lie as FOLDER/<category>/<name>.jpg; the name without its suffix is the item's key.",
            "  item_id: name  # or path (the path below the source), or folder (one item each, with rows: photo)",
            "  category: category",
        ]
    return ["  # Tar shards: the name of a photo in the shard, without its suffix, is the item's key."]


def _lines_of_columns(rows: pa.Table, guess: Guess) -> list[str]:
    lines = [
        f"  # Columns: {_listed(rows)}",
        f"  item_id: {_yaml(guess.item_id)}  # the key of an item, for example {_example(rows[guess.item_id])}",
        f"  image: {_yaml(guess.image)}  # {_image_comment(rows[guess.image])}",
        f"  rows: {guess.rows}  # "
        + ("each key stands once" if guess.rows == "item" else "a key stands once for each of its photos"),
    ]
    if guess.category is None:
        lines.append("  # category: COLUMN  # none found; with one, reports show how well categories hold together")
    else:
        lines.append(f"  category: {_yaml(guess.category)}  # for example {_example(rows[guess.category])}")
    if guess.https_prefixes:
        lines += [
            "  # Photos on the web are fetched from these places only.",
            f"  https_prefixes: [{', '.join(_yaml(prefix) for prefix in guess.https_prefixes)}]",
        ]
    lines.append("  # attributes: [COLUMN, ...]  # kept for filters; by default every other column of plain values")
    return lines


def _image_comment(column: pa.ChunkedArray) -> str:
    if _is_bytes(column.type):
        return "the photos themselves, as bytes"
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        return "lists of URIs, absolute or relative to the table"
    return f"URIs, absolute or relative to the table, for example {_example(column)}"


def _best(names: Iterator[str] | Sequence[str], known: Sequence[str]) -> str | None:
    return min(names, key=lambda name: _rank(name, known), default=None)


def _rank(name: str, known: Sequence[str]) -> int:
    """Return how early a column's name, or a part of it, stands among the usual ones; smaller is better."""
    plain = _plain(name)
    if plain in known:
        return known.index(plain)
    return len(known) - 1 if any(part in known for part in plain.split("_")) else len(known)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def _varies(column: pa.ChunkedArray) -> bool:
    return len(pc.unique(column)) * 20 >= len(column)


def _holds_photos(column: pa.ChunkedArray) -> bool:
    kind = column.type
    if _is_bytes(kind):
        return True
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        column = pc.list_flatten(column)
        kind = column.type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        return False
    texts = [text for text in column.to_pylist() if text]
    return sum(bool(_PHOTO.search(text) or text.startswith("data:image")) for text in texts) * 2 > len(texts) > 0


def _is_bytes(kind: Any) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _is_bytes(field.type) for field in kind)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _may_be_key(column: pa.ChunkedArray) -> bool:
    kind = column.type
    texts = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    return column.null_count == 0 and bool(texts or pa.types.is_integer(kind))


def _is_unique(column: pa.ChunkedArray) -> bool:
    return len(pc.unique(column)) == len(column)


def _may_be_category(column: pa.ChunkedArray) -> bool:
    kind = column.type
    if pa.types.is_dictionary(kind):
        return True
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_integer(kind)):
        return False
    distinct = len(pc.unique(column))
    return 1 < distinct <= max(2, len(column) // 2) and (pa.types.is_string(kind) or distinct <= 100)


def _https_prefixes(column: pa.ChunkedArray) -> Iterator[str]:
    if _is_bytes(column.type):
        return
    flat = pc.list_flatten(column) if pa.types.is_list(column.type) else column
    hosts = {match[0] for text in flat.to_pylist() if text and (match := re.match(r"https://[^/]+/", text))}
    yield from sorted(hosts)


def _example(column: pa.ChunkedArray) -> str:
    value = next((value for value in column.to_pylist() if value not in (None, "")), "")
    text = re.sub(r"\s+", " ", str(value))
    return text if len(text) <= 60 else text[:59] + "…"


def _listed(rows: pa.Table) -> str:
    return ", ".join(f"{field.name} ({field.type})".replace("\n", " ") for field in rows.schema)


def _yaml(text: str) -> str:
    return yaml.safe_dump(text, width=10_000, allow_unicode=True).removesuffix("\n...\n").rstrip("\n")


def _as_dict(guess: Guess) -> dict[str, Any]:
    return {"item_id": guess.item_id, "image": guess.image, "category": guess.category, "rows": guess.rows}
