"""Tokens of photos that lie together, from listings of their folders."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import (
    ClientRefused,
    ClientStale,
    ConfigError,
    Forbidden,
    InputError,
    Misconfigured,
    NotFound,
    SignatureRefused,
    Unavailable,
)
from ..ordering import take_rows
from ..storage import Files

# A listing may return this many names a wanted photo, and so many more, before it is given up for HEADs.
NAMES_PER_PHOTO = 4
NAMES_MORE = 1000
_LIST_THREADS = 16
_RANGE = 20_000  # wanted photos of one range of a folder, at least: 20 requests and more
_FEW_FOLDERS = 64
_MANY_FOLDERS = 100_000
_FLUSH = 65_536
_LAST_PART = r"[^/]+/?$"
_ROOT = r"^([A-Za-z][A-Za-z0-9+.\-]*://[^/]*)?/$"


@dataclass(frozen=True, slots=True)
class Listing:
    """What listings say of photos. tokens: text, null where a photo was not listed; sizes: int64, bytes, null with
    them; covered: bool [n], whether the folder of each photo was listed to its end; listed: names that the listings
    returned."""

    tokens: pa.ChunkedArray
    sizes: pa.ChunkedArray
    covered: np.ndarray
    listed: int


@dataclass(frozen=True, slots=True)
class _Range:
    """A folder, or a stretch of its names that one thread lists. group: the folder's place; wanted: photos in it;
    after, until: URIs between which its names lie, the last one among them; "": from the beginning, to the end."""

    folder: str
    group: int
    wanted: int
    after: str = ""
    until: str = ""


@dataclass(frozen=True, slots=True)
class _Listed:
    names: pa.Table
    complete: bool
    listed: int


_NAMES = pa.schema([pa.field("uri", pa.large_string()), pa.field("token", pa.string()), pa.field("size", pa.int64())])


def list_tokens(uris: pa.Array, files: Files) -> Listing:
    """List the folders of these distinct URIs (large_string, of stores that list). Raises ClientRefused, ClientStale,
    Misconfigured.

    Folders with few wanted photos each are listed by the folder above them, those with many in ranges at once. A
    listing that returns more than 4 names a wanted photo and 1,000 more is stopped; so is one that may not be made.
    Their photos are then not `covered`.
    """
    if not len(uris):
        return _nothing(0)
    folders = _grouped(pc.replace_substring_regex(uris, r"[^/]*$", ""))
    counted = pc.value_counts(folders)
    distinct, counts = counted.field("values"), counted.field("counts").to_numpy()
    if len(distinct) > _most_folders(len(uris)):
        return _nothing(len(uris))
    wanted, group = _merged(distinct.to_pylist(), counts)
    folder_of = pc.index_in(folders, value_set=distinct).to_numpy(zero_copy_only=False)
    ranges = _ranges(uris, group[folder_of], wanted)
    with ThreadPoolExecutor(_LIST_THREADS) as pool:
        found = list(pool.map(lambda part: _list(part, files), ranges))
    names = pa.concat_tables(folder.names for folder in found)
    place = pc.index_in(uris, value_set=names.column("uri"))
    said = take_rows(names.select(["token", "size"]), place)
    complete = np.ones(len(wanted), dtype=np.bool_)
    for part, listed in zip(ranges, found, strict=True):
        complete[part.group] &= listed.complete
    return Listing(
        tokens=said.column("token"),
        sizes=said.column("size"),
        covered=complete[group[folder_of]],
        listed=sum(folder.listed for folder in found),
    )


def _nothing(photos: int) -> Listing:
    tokens, sizes = (pa.chunked_array([pa.nulls(photos, kind)]) for kind in (pa.string(), pa.int64()))
    return Listing(tokens, sizes, covered=np.zeros(photos, dtype=np.bool_), listed=0)


def _most_folders(photos: int) -> int:
    return max(_FEW_FOLDERS, min(photos // NAMES_PER_PHOTO, _MANY_FOLDERS))


def _grouped(folders: pa.Array) -> pa.Array:
    """Replace folders by those above them until a listing of each is worth its request."""
    while pc.count_distinct(folders).as_py() > _most_folders(len(folders)):
        # On a disk asking for one file costs no more than its part of a listing.
        remote = pc.match_substring(folders, "://")
        above = pc.replace_substring_regex(folders, _LAST_PART, "")
        movable = pc.and_(remote, pc.invert(pc.match_substring_regex(folders, _ROOT)))
        if not pc.any(movable).as_py():
            break
        folders = pc.if_else(movable, above, folders)
    return folders


def _merged(folders: list[str], counts: np.ndarray) -> tuple[dict[str, int], np.ndarray]:
    """Leave out folders that lie in others; return the wanted photos of each one listed, and each folder's place."""
    wanted: dict[str, int] = {}
    group = np.empty(len(folders), dtype=np.int64)
    last = None
    for number in sorted(range(len(folders)), key=lambda place: folders[place]):
        folder = folders[number]
        if last is None or not folder.startswith(last):
            last = folder
            wanted[folder] = 0
        wanted[last] += int(counts[number])
        group[number] = len(wanted) - 1
    return wanted, group


def _ranges(uris: pa.Array, groups: np.ndarray, wanted: dict[str, int]) -> list[_Range]:
    """Return what is listed: folders, and of a long one on S3 stretches between wanted photos, of as many each.

    A listing gives 1,000 names a request, one after the other; the wanted photos tell where it can be cut.
    """
    ranges: list[_Range] = []
    for group, (folder, count) in enumerate(wanted.items()):
        pieces = min(_LIST_THREADS, count // _RANGE) if folder.startswith("s3://") else 1
        if pieces < 2:
            ranges.append(_Range(folder, group, count))
            continue
        members = uris.filter(pa.array(groups == group))
        places = np.asarray(pc.sort_indices(members))[np.arange(1, pieces) * count // pieces]
        cuts = ["", *members.take(pa.array(places)).to_pylist(), ""]
        each = -(-count // pieces)
        ranges += [_Range(folder, group, each, after, until) for after, until in itertools.pairwise(cuts)]
    return ranges


def _list(part: _Range, files: Files) -> _Listed:
    tables: list[pa.Table] = [_NAMES.empty_table()]
    uris: list[str] = []
    tokens: list[str] = []
    sizes: list[int] = []
    listed = 0
    complete = True
    try:
        for uri, entry in files.list(part.folder, after=part.after) if part.after else files.list(part.folder):
            if part.until and uri > part.until:
                break
            listed += 1
            if listed > NAMES_PER_PHOTO * part.wanted + NAMES_MORE:
                complete = False
                break
            uris.append(uri)
            tokens.append(entry.token)
            sizes.append(entry.size)
            if len(uris) == _FLUSH:
                tables.append(_names(uris, tokens, sizes))
                uris, tokens, sizes = [], [], []
    except NotFound:
        pass  # no such folder or bucket: its photos are missing, which is what an empty listing says
    except SignatureRefused:
        complete = False  # perhaps a folder whose name something on the way spells otherwise; HEADs will tell
    except (ClientRefused, ClientStale, Misconfigured):
        raise
    except (Forbidden, InputError, ConfigError, Unavailable):
        complete = False  # a key that may read its photos need not be allowed to list them, and HEADs may be answered
    tables.append(_names(uris, tokens, sizes))
    return _Listed(pa.concat_tables(tables), complete, listed)


def _names(uris: list[str], tokens: list[str], sizes: list[int]) -> pa.Table:
    columns = zip((uris, tokens, sizes), _NAMES, strict=True)
    return pa.table([pa.array(values, field.type) for values, field in columns], schema=_NAMES)
