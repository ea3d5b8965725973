"""Which photos a catalogue may name: those in its own bucket or folder and under catalogue.allowed_prefixes."""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import ConfigError, InputError, NotAllowed
from ..ordering import as_numpy
from ..storage import Files, Places, StorageOptions
from ..storage.local import local_path
from ..storage.names import MAX_NAME_BYTES, check_name
from ..storage.places import LOCAL, WEB, folder, real_path
from ..storage.urls import SCHEMES, scheme_of, split_uri
from .cells import what_is_wrong
from .config import CatalogueConfig
from .difference import named_in
from .formats import absolute_source, parent_folder
from .limits import LEAST

NOT_ALLOWED = "not_allowed"
_SHOWN = 5
_PART_BYTES = 255  # of a file's or folder's name, as Linux has it
_PATH_BYTES = 4095
_READ = "s3://, https://, local paths, or paths relative to the table"
# What is looked at one by one: parts `.` and `..`, escaped ones too, a host after a user, a password or a port.
_ODD = r"(^|[/\\])\.{1,2}([/\\?#]|$)|%2[eE]|%5[cC]|%25|\\|@"
_ADD = re.compile(r"to allow it add '([^']+)' to ")


@dataclass(frozen=True, slots=True)
class Judgement:
    """Why URIs are not asked for. reason (`not_allowed`, `bad_uri`), detail: text [n], null for what is allowed."""

    reason: pa.Array
    detail: pa.Array


def places_of(config: CatalogueConfig) -> Places:
    """Return where the photos of a catalogue may lie: beside its source, and under what it allows."""
    return Places((own_place(config.source), *config.allowed_prefixes, *config.https_prefixes))


def catalogue_files(config: CatalogueConfig, options: StorageOptions | None = None) -> Files:
    """Return what reads a catalogue and its photos, those only that it may name. options: how else S3 is reached."""
    return Files(config.storage or options, places_of(config), host_connections=config.host_connections)


def own_place(source: str) -> str:
    """Return the place of a source's own photos: its bucket, the folder it is or lies in, its folder on a web host."""
    uri = absolute_source(source)
    scheme = scheme_of(uri)
    if scheme in LOCAL:
        path = local_path(uri)
        return folder(str(path if path.is_dir() else path.parent))
    if scheme in WEB:
        return parent_folder(uri)
    return f"{scheme}://{uri.removeprefix(f'{scheme}://').partition('/')[0]}/"


def judge(uris: pa.ChunkedArray, places: Places) -> Judgement:
    """Return which of these URIs may not be asked for, and why; a null is allowed.

    What begins with a place and holds nothing odd costs a comparison of texts; a local file whose folder is allowed is
    looked at once, for it may be a link that leads out.
    """
    begins = [folder(prefix) for prefix in places.prefixes if scheme_of(prefix) not in LOCAL]
    local = _Folders(places)
    reasons: dict[int, str] = {}  # by place: few, and two lists of nothing would be as long as the catalogue
    details: dict[int, str] = {}
    start = 0
    for chunk in uris.chunks:
        for place in np.flatnonzero(~_plain(chunk, begins)).tolist():
            uri = chunk[place].as_py()
            try:
                _check(uri, places, local)
            except NotAllowed as error:
                reasons[start + place], details[start + place] = NOT_ALLOWED, str(error)
            except (ConfigError, InputError) as error:
                reasons[start + place], details[start + place] = "bad_uri", str(error)
        start += len(chunk)
    return Judgement(_sparse(reasons, len(uris)), _sparse(details, len(uris)))


def _plain(uris: pa.Array, begins: list[str]) -> np.ndarray:
    """Return which URIs are allowed as they stand, bool [n]: in one of the places, and nothing odd in them."""
    found = pa.array(np.zeros(len(uris), dtype=np.bool_))
    for begin in begins:
        found = pc.or_(found, pc.starts_with(uris, begin))
    found = pc.and_(found, pc.invert(pc.match_substring_regex(uris, _ODD)))
    found = pc.and_(found, pc.less_equal(pc.binary_length(uris), MAX_NAME_BYTES))
    return as_numpy(found, missing=True)


def _sparse(texts: dict[int, str], rows: int) -> pa.Array:
    """Return a column of these texts at their places, ascending, and of nulls."""
    mask = np.zeros(rows, dtype=np.bool_)
    mask[list(texts)] = True
    return pc.replace_with_mask(pa.nulls(rows, pa.string()), pa.array(mask), pa.array(texts.values(), pa.string()))


def prefixes_to_add(details: pa.ChunkedArray | pa.Array) -> dict[str, int]:
    """Return the prefixes that the details of `not_allowed` photos name, with the number of photos, most first."""
    found = (_ADD.search(detail or "") for detail in details.to_pylist())
    return dict(Counter(match[1] for match in found if match).most_common())


def lacking_prefixes(photos: pa.Table, config: CatalogueConfig) -> tuple[str, ...]:
    """Return the prefixes that these photos (columns uri, signed_uri, source) would need beside those of the config."""
    own = photos.filter(pc.is_null(photos.column("source")))
    addresses = pc.coalesce(own.column("signed_uri"), own.column("uri")).drop_null()
    distinct = pa.chunked_array([pc.unique(addresses.cast(pa.large_string()))])
    return tuple(sorted(prefixes_to_add(judge(distinct, places_of(config)).detail)))


def check_living(rows: pa.Table, items: pa.Table | None, share: float) -> None:
    """Raise NotAllowed where more photos of the parent release than this share may no longer be named.

    rows: a plan's; items: the parent's. Single ones are quarantined; many would be delisted by a setting, no shop.
    """
    outside = rows.filter(pc.fill_null(pc.equal(rows.column("reason"), NOT_ALLOWED), False))
    if items is None or not outside.num_rows:
        return
    living = outside.filter(pa.array(named_in(outside, items)))
    if living.num_rows > max(LEAST - 1, int(share * rows.num_rows)):
        prefixes = ", ".join(list(prefixes_to_add(living.column("detail")))[:_SHOWN])
        raise NotAllowed(
            f"{living.num_rows:,} photos of the current release lie outside of what the catalogue may name, so this "
            f"run would delist them; to keep them add to catalogue.allowed_prefixes: {prefixes}. To delist them all "
            f"the same raise catalogue.max_unreachable (now {share:g})"
        )


class _Folders:
    """Local folders, each followed through its links once."""

    def __init__(self, places: Places) -> None:
        self._roots = [folder(real_path(prefix)) for prefix in places.prefixes if scheme_of(prefix) in LOCAL]
        self._inside: dict[str, bool] = {}

    def holds(self, uri: str) -> bool:
        """Return whether a path without links of its own lies in an allowed folder."""
        above, _, name = uri.rpartition("/")
        if above not in self._inside:
            real = folder(real_path(above or "/"))
            self._inside[above] = any(real.startswith(root) for root in self._roots)
        return self._inside[above] and name not in {"", ".", ".."} and not Path(uri).is_symlink()


def _check(uri: str, places: Places, local: _Folders) -> None:
    wrong = what_is_wrong(uri)
    if wrong is not None:
        raise InputError(wrong)
    scheme = scheme_of(uri)
    _check_lengths(uri, scheme)
    if scheme == "" and not uri.startswith("data:"):
        if uri.startswith("/") and not uri.startswith("/~") and "\0" not in uri and local.holds(uri):
            return
    elif scheme in {"http", ""} or scheme not in {*SCHEMES, *WEB}:
        advice = "; data: URIs are read from JSON lines, one a row; in Parquet use a binary column"
        raise InputError(f"{uri[:200]!r} cannot be read: photos are read from {_READ}{advice if not scheme else ''}")
    places.check(uri)


def _check_lengths(uri: str, scheme: str) -> None:
    """Raise InputError for a name that no disk or bucket can hold: some answer it with an error of their own."""
    if scheme in SCHEMES and scheme not in LOCAL:
        if len(uri.encode()) > MAX_NAME_BYTES:
            check_name(split_uri(uri)[1])
    elif scheme in LOCAL and (len(uri) > _PART_BYTES or not uri.isascii()):
        longest = max(len(os.fsencode(part)) for part in uri.split("/"))
        if longest > _PART_BYTES or len(os.fsencode(uri)) > _PATH_BYTES:
            raise InputError(
                f"{uri[:200]!r} is too long for a disk, which holds names of {_PART_BYTES} bytes in paths of "
                f"{_PATH_BYTES:,}; shorten it"
            )
