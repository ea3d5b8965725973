"""Reading a catalogue into one Arrow table of photos, in key order, with every key checked."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import ConfigError, InputError
from ..ordering import as_numpy, keep_rows, positions_in_runs, run_starts, sorted_by, take_rows
from ..schema import PHOTOS
from ..storage import Files
from .config import CatalogueConfig
from .csv import csv_rows, typed
from .folder import folder_rows
from .formats import Located, Place, locate
from .jsonl import jsonl_rows
from .notes import NOTES_KEY, CatalogueNotes, Found
from .parquet import parquet_rows
from .rows import ROW_BITS, ROWS, Tally
from .tar import require_tar_columns, tar_rows

Source = Callable[[Place, CatalogueConfig, Files, Tally], Iterator[pa.Table]]

SOURCES: dict[str, Source] = {
    "parquet": parquet_rows,
    "csv": csv_rows,
    "jsonl": jsonl_rows,
    "folder": folder_rows,
    "tar": tar_rows,
}
_SHOWN = 5
_TEXT_SETTINGS = {
    "encoding": ("csv", "jsonl"),
    "delimiter": ("csv",),
    "quoting": ("csv",),
    "image_separator": ("csv", "jsonl", "parquet"),
}


def read_photos(config: CatalogueConfig, files: Files, *, limit: int | None = None, seed: int = 0) -> pa.Table:
    """Return the photos of a catalogue: columns of schema.PHOTOS, then the attributes, sorted by (item_id, view).

    An item without a photo is one row with the uri "" (`resolve_tokens` refuses it as `no_image`). Tokens are set for
    embedded photos, folders and where catalogue.version names a column; null otherwise. limit: keep that many items,
    those with the smallest hash of (seed, item_id), so that new items leave most of a sample as it is. The schema's
    metadata holds the `CatalogueNotes`. Raises InputError naming rows or keys; ConfigError for settings that the format
    does not have; Unavailable.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"--limit is {limit}; it must be at least 1")
    located = locate(config, files)
    _refuse_foreign_settings(config, located.format)
    tally = Tally(skipped=located.skipped)
    rows = _read_rows(located, config, files, tally)
    if not rows.num_rows:
        raise InputError(_empty(located, config, tally))
    count = int(run_starts(rows.column("row")).sum())
    _refuse_null_keys(rows, located)
    rows = sorted_by(rows, "item_id")
    starts = run_starts(rows.column("item_id"))
    if config.rows == "item":
        _refuse_repeated_keys(rows, starts, located)
    rows = _one_row_without_image(rows, starts, located, tally)
    rows, repeated = _without_repeats(rows, located)
    if located.format in ("folder", "tar"):
        _count_joined(rows, run_starts(rows.column("item_id")), tally)
    before = None
    if limit is not None:
        rows, before = _sample(rows, limit, seed)
    starts = run_starts(rows.column("item_id"))
    without = pc.sum(pc.is_null(rows.column("uri"))).as_py() or 0
    notes = CatalogueNotes(
        format=located.format,
        files=len(located.places),
        rows=count,
        items=int(starts.sum()),
        photos=rows.num_rows - without,
        no_image=without,
        repeated=repeated,
        sampled_from=before,
        skipped=dict(tally.skipped.most_common()),
        skipped_columns=tuple(sorted(tally.skipped_columns)),
        listed=tally.listed,
        counted={what: Found(number=found.number, where=found.where) for what, found in tally.counted.items()},
    )
    return _finished(rows, positions_in_runs(starts), notes)


def _read_rows(located: Located, config: CatalogueConfig, files: Files, tally: Tally) -> pa.Table:
    read = SOURCES[located.format]
    batches = [batch for place in located.places for batch in read(place, config, files, tally)]
    if not batches:
        return ROWS.empty_table()
    try:
        rows = pa.concat_tables(batches, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise InputError(_mixed(batches, located, error)) from error
    if located.format == "tar":
        require_tar_columns(rows.column_names[len(ROWS) :], config)
    for number, field in enumerate(rows.schema):
        if pa.types.is_null(field.type):
            rows = rows.set_column(number, field.name, rows.column(number).cast(pa.string()))
        elif located.format == "csv" and field.name not in ROWS.names:
            rows = rows.set_column(number, field.name, typed(rows.column(number)))
    return rows


def _mixed(batches: list[pa.Table], located: Located, error: Exception) -> str:
    """Say which column is of two types, and in which files or lines it is which."""
    advice = "give it one type, or leave it out of catalogue.attributes"
    names = dict.fromkeys(name for batch in batches for name in batch.column_names if name not in ROWS.names)
    for name in names:
        having = [batch for batch in batches if name in batch.column_names and batch.num_rows]
        for batch in having[1:]:
            pair = [having[0].select([name]), batch.select([name])]
            try:
                pa.concat_tables(pair, promote_options="permissive")
            except (pa.ArrowInvalid, pa.ArrowTypeError) as clash:
                one, other = (
                    f"{of[name].type} from {_places(of.slice(0, 1), located)} on" for of in (having[0], batch)
                )
                return f"{_file(located)}the column {name!r} holds different types: {one}, {other} ({clash}); {advice}"
    return f"a column of the catalogue holds different types in different files or lines ({error}); {advice}"


def _refuse_foreign_settings(config: CatalogueConfig, kind: str) -> None:
    """Raise ConfigError for what only text has: elsewhere it would be passed over in silence."""
    for name, kinds in _TEXT_SETTINGS.items():
        value = getattr(config, name)
        if value not in (None, "auto") and kind not in kinds:
            raise ConfigError(
                f"catalogue.{name} is {value!r}, but {config.source} is read as {kind}, which has none; take it away"
            )


def _empty(located: Located, config: CatalogueConfig, tally: Tally) -> str:
    passed = f"; passed over: {dict(tally.skipped.most_common(5))}" if tally.skipped else ""
    what = {"csv": "a header and no rows", "parquet": "no rows", "jsonl": "no rows"}.get(located.format, "no photos")
    return f"catalogue.source {config.source} holds {what}{passed}; an empty catalogue would delist every item"


def _refuse_null_keys(rows: pa.Table, located: Located) -> None:
    missing = as_numpy(pc.is_null(rows.column("item_id")))
    if missing.any():
        bad = keep_rows(rows, missing)
        count = len(pc.unique(bad.column("row")))
        raise InputError(
            f"{_file(located)}{count} row(s) have a null or empty key: {_places(bad, located)}; give each a key or "
            "drop the row"
        )


def _refuse_repeated_keys(rows: pa.Table, starts: np.ndarray, located: Located) -> None:
    """Rows: sorted by key. A key whose photos come from two rows is there twice."""
    numbers = as_numpy(rows.column("row"))
    again = ~starts
    again[1:] &= numbers[1:] != numbers[:-1]
    if not again.any():
        return
    run = np.cumsum(starts) - 1
    guilty = np.unique(run[again])
    shown = []
    for number in guilty[:_SHOWN]:
        first = int(np.searchsorted(run, number))
        last = int(np.searchsorted(run, number, side="right"))
        shown.append(f"{rows.column('item_id')[first].as_py()!r} ({_places(rows.slice(first, last - first), located)})")
    more = f" and {len(guilty) - _SHOWN} more" if len(guilty) > _SHOWN else ""
    raise InputError(
        f"{_file(located)}{len(guilty)} key(s) are there more than once: {'; '.join(shown)}{more}. Keep one row a key, "
        f"or set catalogue.rows: photo if each row is one photo of its item{_folder_advice(located)}"
    )


def _folder_advice(located: Located) -> str:
    return ", or catalogue.item_id: path if names repeat in several folders" if located.format == "folder" else ""


def _one_row_without_image(rows: pa.Table, starts: np.ndarray, located: Located, tally: Tally) -> pa.Table:
    """Keep a row with a null uri only where its item has no photo at all, and once; count the others."""
    missing = as_numpy(pc.is_null(rows.column("uri")))
    if not missing.any():
        return rows
    run = np.cumsum(starts) - 1
    with_photo = np.zeros(int(run[-1]) + 1, dtype=np.bool_)
    with_photo[run[~missing]] = True
    kept = ~missing | (starts & ~with_photo[run])
    if not kept.all():
        left_out = keep_rows(rows, ~kept)
        where = f"{left_out.column('item_id')[0].as_py()!r} in {_places(left_out.slice(0, 1), located)}"
        tally.count("rows without a photo, beside others of the same item", left_out.num_rows, where)
    return keep_rows(rows, kept)


def _count_joined(rows: pa.Table, starts: np.ndarray, tally: Tally) -> None:
    """Count the photos of folders and tar shards that became one item with others by their names."""
    joined = np.flatnonzero(~starts)
    if len(joined):
        first = rows.slice(int(joined[0]) - 1, 2)
        item_id, uris = first.column("item_id")[0].as_py(), " and ".join(first.column("uri").to_pylist())
        tally.count("photos that their names join to another of their item", len(joined), f"{item_id!r} has {uris}")


def _without_repeats(rows: pa.Table, located: Located) -> tuple[pa.Table, int]:
    """Drop a photo that one row's list names twice; raise InputError when two rows name one photo of an item."""
    starts = run_starts(rows.column("item_id"))
    several = ~starts
    several[:-1] |= ~starts[1:]
    places = np.flatnonzero(several)
    if not len(places):
        return rows, 0
    pairs = pa.table(
        {
            "run": pa.array((np.cumsum(starts) - 1)[places]),
            "uri": rows.column("uri").filter(pa.array(several)),
            "place": pa.array(places),
        }
    )
    order = pc.sort_indices(pairs, sort_keys=[("run", "ascending"), ("uri", "ascending"), ("place", "ascending")])
    pairs = take_rows(pairs, order)
    again = ~(run_starts(pairs.column("run")) | run_starts(pairs.column("uri")))
    if not again.any():
        return rows, 0
    place = as_numpy(pairs.column("place"))
    numbers = as_numpy(rows.column("row"))
    clash = again.copy()
    clash[1:] &= numbers[place[1:]] != numbers[place[:-1]]
    if clash.any():
        _refuse_repeated_photos(rows, place, np.flatnonzero(clash), located)
    keep = np.ones(rows.num_rows, dtype=np.bool_)
    keep[place[again]] = False
    return keep_rows(rows, keep), int(again.sum())


def _refuse_repeated_photos(rows: pa.Table, place: np.ndarray, clash: np.ndarray, located: Located) -> None:
    shown = []
    for number in clash[:_SHOWN]:
        pair = take_rows(rows, np.sort(place[number - 1 : number + 1]))
        item_id, uri = pair.column("item_id")[0].as_py(), pair.column("uri")[0].as_py()
        shown.append(f"{item_id!r} names {uri} in {_places(pair, located)}")
    more = f" and {len(clash) - _SHOWN} more" if len(clash) > _SHOWN else ""
    raise InputError(
        f"{_file(located)}{len(clash)} photo(s) are named more than once by their item: {'; '.join(shown)}{more}. Keep "
        "one row a photo"
    )


def _file(located: Located) -> str:
    """Return how an error begins that names rows: by their file, where `_places` has but one to name."""
    return f"{located.places[0].uri}: " if len(located.places) == 1 else ""


def _places(rows: pa.Table, located: Located) -> str:
    """Say in words where rows stand: by number, counted from 1, in tables; by name in folders and tar shards."""
    if located.format in ("folder", "tar"):
        names = rows.column("uri").slice(0, _SHOWN).to_pylist()
        return _listed([name or "no photo" for name in names], rows.num_rows)
    found = np.unique(as_numpy(rows.column("row")))
    shown = []
    for number in found[:_SHOWN]:
        file = "" if len(located.places) == 1 else f" of {located.places[number >> ROW_BITS].uri}"
        shown.append(f"row {(number & ((1 << ROW_BITS) - 1)) + 1}{file}")
    return _listed(shown, len(found))


def _listed(shown: list[str], count: int) -> str:
    return ", ".join(shown) + (f" and {count - len(shown)} more" if count > len(shown) else "")


def _sample(rows: pa.Table, limit: int, seed: int) -> tuple[pa.Table, int]:
    """Keep the `limit` items with the smallest hash of (seed, item_id); return also how many items there were."""
    keys = rows.column("item_id")
    starts = run_starts(keys)
    items = int(starts.sum())
    if items <= limit:
        return rows, items
    salt = f"{seed}:".encode()
    hashes = np.empty(items, dtype=np.uint64)
    filled = 0
    for chunk in keys.filter(pa.array(starts)).chunks:
        for key in chunk.to_pylist():
            hashes[filled] = int.from_bytes(hashlib.blake2b(salt + key.encode(), digest_size=8).digest(), "big")
            filled += 1
    chosen = np.zeros(items, dtype=np.bool_)
    chosen[np.argsort(hashes, kind="stable")[:limit]] = True
    return keep_rows(rows, chosen[np.cumsum(starts) - 1]), items


def _finished(rows: pa.Table, views: np.ndarray, notes: CatalogueNotes) -> pa.Table:
    made = {
        name: rows.column(name) if name in rows.column_names else pa.chunked_array([pa.array(views, pa.int32())])
        for name in PHOTOS.names
    }
    uri = made["uri"]
    made["uri"] = pc.fill_null(uri, "") if uri.null_count else uri
    attributes = [field for field in rows.schema if field.name not in ROWS.names]
    schema = pa.schema([*PHOTOS, *attributes], metadata={NOTES_KEY: notes.model_dump_json().encode()})
    columns = [*made.values(), *(rows.column(field.name) for field in attributes)]
    return pa.Table.from_arrays(columns, schema=schema)
