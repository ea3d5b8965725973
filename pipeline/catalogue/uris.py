"""From what a table's cells say to absolute URIs of photos."""

from __future__ import annotations

import hashlib
import posixpath
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .addresses import plain_addresses
from .cells import UNREADABLE
from .config import CatalogueConfig
from .identity import identities

_ABSOLUTE = rf"^([A-Za-z][A-Za-z0-9+.\-]*://|/|data:|{UNREADABLE})"
_DOTS = r"(^|/)\.{1,2}(/|$)"
_NO_PATH = rf"^(https://|{UNREADABLE})"


@dataclass(frozen=True, slots=True)
class Uris:
    """Photos' URIs, text [n]. identity: which photo each is, as it is published; signed: the whole address where that
    holds more than the identity, a credential, else null."""

    identity: pa.Array
    signed: pa.Array


def absolute_uris(cells: pa.Array, base: str, config: CatalogueConfig) -> Uris:
    """Return the cells (text without nulls) as absolute URIs; a relative one starts at `base`.

    Whether they may be asked for is judged later, row by row (`allowed`). A `data:` URI, which is read from JSON lines
    only, is named by a digest: it may hold megabytes.
    """
    cells = plain_addresses(cells)
    absolute = pc.match_substring_regex(cells, _ABSOLUTE)
    joined = pc.binary_join_element_wise(pa.scalar(base), cells, pa.scalar(""))
    uris = _without_dots(_without_data(pc.if_else(absolute, cells, joined)))
    named = identities(uris, config.uri_identity)
    longer = pc.not_equal(named, uris)
    # Not if_else, which keeps room for all texts, also where every one is null.
    return Uris(named, pc.replace_with_mask(pa.nulls(len(uris), pa.string()), longer, uris.filter(longer)))


def shown_rows(rows: np.ndarray, bad: np.ndarray, file: str) -> str:
    """Return the first few bad rows of a file in words, counted from 1, with how many there are."""
    found = np.unique(rows[bad])
    first = ", ".join(str(row + 1) for row in found[:5])
    more = f" and {len(found) - 5} more" if len(found) > 5 else ""
    return f"row(s) {first}{more} of {file}"


def _without_data(uris: pa.Array) -> pa.Array:
    data = pc.starts_with(uris, "data:")
    if not pc.any(data).as_py():
        return uris
    named = [f"data:sha256-{hashlib.sha256(uri.encode()).hexdigest()}" for uri in uris.filter(data).to_pylist()]
    return pc.replace_with_mask(uris, data, pa.array(named, pa.string()))


def _without_dots(uris: pa.Array) -> pa.Array:
    """Resolve `.` and `..` in paths, so that one photo has one URI; one that leads out of its bucket stays as it is."""
    if not pc.any(pc.match_substring(uris, "/.")).as_py():  # they are absolute, so that every such part begins so
        return uris
    dotted = pc.and_(pc.match_substring_regex(uris, _DOTS), pc.invert(pc.match_substring_regex(uris, _NO_PATH)))
    if not pc.any(dotted).as_py():
        return uris
    resolved = []
    for uri in uris.filter(dotted).to_pylist():
        root, path = _split_root(uri)
        clean = posixpath.normpath(path)
        resolved.append(uri if clean.startswith("..") else root + clean)
    return pc.replace_with_mask(uris, dotted, pa.array(resolved, pa.string()))


def _split_root(uri: str) -> tuple[str, str]:
    if "://" not in uri:
        return "/", uri.lstrip("/")
    scheme, rest = uri.split("://", 1)
    root, _, path = rest.partition("/")
    return f"{scheme}://{root}/", path.lstrip("/")
