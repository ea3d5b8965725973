"""From what a table's cells say to absolute URIs of photos."""

from __future__ import annotations

import posixpath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import InputError
from .addresses import plain_addresses
from .config import CatalogueConfig
from .ordering import as_numpy

_ABSOLUTE = r"^([A-Za-z][A-Za-z0-9+.\-]*://|/|data:)"
_DOTS = r"(^|/)\.{1,2}(/|$)"


def absolute_uris(cells: pa.Array, base: str, config: CatalogueConfig, rows: np.ndarray, file: str) -> pa.Array:
    """Return the cells (text without nulls) as absolute URIs; a relative one starts at `base`.

    rows: int64 [n], the row of `file` each cell stands in, counted from 0, for the errors. Raises InputError for a
    URI of a scheme that is not read, an https URI outside catalogue.https_prefixes, and a local path in a table that
    is not local itself (a table from elsewhere must not name files of the machine that reads it).
    """
    if not len(cells):
        return cells
    cells = plain_addresses(cells)
    absolute = pc.match_substring_regex(cells, _ABSOLUTE)
    joined = pc.binary_join_element_wise(pa.scalar(base), cells, pa.scalar(""))
    uris = pc.if_else(absolute, cells, joined)
    uris = _without_dots(uris, rows, file)
    _check(uris, base, config, rows, file)
    return uris


def _check(uris: pa.Array, base: str, config: CatalogueConfig, rows: np.ndarray, file: str) -> None:
    local = pc.starts_with(uris, "/")
    good = _any_prefix(uris, ("s3://", "memory://"))
    on_the_web = pc.starts_with(uris, "https://")
    allowed_web = _any_prefix(uris, config.https_prefixes)
    if "://" not in base or base.startswith("file://"):
        good = pc.or_(good, pc.or_(local, pc.starts_with(uris, "file://")))
    good = pc.or_(good, pc.and_(on_the_web, allowed_web))
    if pc.all(good).as_py():
        return
    bad = pc.invert(good)
    first = uris.filter(bad)[0].as_py()
    if first.startswith("https://"):
        allowed = ", ".join(config.https_prefixes) or "none are configured"
        why = f"add its prefix to catalogue.https_prefixes (now: {allowed})"
    elif first.startswith(("/", "file://")):
        why = f"a table at {base} may not name local files; use URIs relative to the table or s3://"
    elif first.startswith("data:"):
        why = "data: URIs are read from JSON lines only, one a row; in Parquet use a binary column"
    else:
        why = "photos are read from s3://, https://, local paths, or paths relative to the table"
    raise InputError(f"{shown_rows(rows, as_numpy(bad), file)}: the photo {first[:200]!r} cannot be read: {why}")


def shown_rows(rows: np.ndarray, bad: np.ndarray, file: str) -> str:
    """Return the first few bad rows of a file in words, counted from 1, with how many there are."""
    found = np.unique(rows[bad])
    first = ", ".join(str(row + 1) for row in found[:5])
    more = f" and {len(found) - 5} more" if len(found) > 5 else ""
    return f"row(s) {first}{more} of {file}"


def _any_prefix(uris: pa.Array, prefixes: tuple[str, ...]) -> Any:
    found = pa.array(np.zeros(len(uris), dtype=np.bool_))
    for prefix in prefixes:
        found = pc.or_(found, pc.starts_with(uris, prefix))
    return found


def _without_dots(uris: pa.Array, rows: np.ndarray, file: str) -> pa.Array:
    """Resolve `.` and `..` in paths, so that one photo has one URI."""
    dotted = pc.and_(pc.match_substring_regex(uris, _DOTS), pc.invert(pc.starts_with(uris, "https://")))
    if not pc.any(dotted).as_py():
        return uris
    mask = as_numpy(dotted)
    resolved = []
    for uri, row in zip(uris.filter(dotted).to_pylist(), rows[mask], strict=True):
        root, path = _split_root(uri)
        clean = posixpath.normpath(path)
        if clean.startswith(".."):
            raise InputError(f"row {row + 1} of {file}: the photo {uri!r} leads out of {root}; use an absolute URI")
        resolved.append(root + clean)
    return pc.replace_with_mask(uris, dotted, pa.array(resolved, pa.string()))


def _split_root(uri: str) -> tuple[str, str]:
    if "://" not in uri:
        return "/", uri.lstrip("/")
    scheme, rest = uri.split("://", 1)
    root, _, path = rest.partition("/")
    return f"{scheme}://{root}/", path.lstrip("/")
