"""Tokens: what says, without reading a photo, whether it is still the photo it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..ordering import as_numpy, joined, take_column, take_rows
from ..schema import PHOTOS, REFUSAL
from ..storage import Files
from .allowed import Judgement, judge
from .config import CatalogueConfig
from .failures import Failure, Failures
from .inventory import inventory_tokens
from .listing import list_tokens
from .notes import NOTES_KEY, catalogue_notes

HEAD_THREADS = 32
_HEAD_BATCH = 8192
# Photos that a listing lacks and that are asked for one by one all the same, in case a URI is spelled in another way
# than the store lists it.
_CONFIRMED = 1000

NO_IMAGE = "the catalogue names no photo for this item"
NO_VERSION = "the column catalogue.version is empty for this photo; fill it, or have photos listed instead"


@dataclass(frozen=True, slots=True)
class TokenCost:
    """Requests that tokens took.

    listed: names listed, those of a folder source too; heads: HEADs of single photos, or GETs of one byte where a host
    refuses those; revalidated: photos asked whether they are still what they were; reads, read_bytes: photos read whole
    because nothing else tells whether they have changed; slowed: seconds that hosts asked to wait, by host. sizes: of
    each photo in bytes, int64 [n], null where neither listings, answers nor the catalogue told it on the way.
    """

    listed: int = 0
    heads: int = 0
    revalidated: int = 0
    reads: int = 0
    read_bytes: int = 0
    slowed: dict[str, float] = field(default_factory=dict)
    sizes: pa.ChunkedArray | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class _Answer:
    """What is known of one photo: a token and perhaps its size in bytes, or the reason why it cannot be used."""

    token: str | None
    reason: str | None = None
    detail: str | None = None
    size: int | None = None


def resolve_tokens(
    photos: pa.Table,
    config: CatalogueConfig,
    files: Files,
    *,
    known: pa.Table | None = None,
    max_bytes: int | None = None,
) -> tuple[pa.Table, TokenCost]:
    """Fill `token` of every photo and add the columns of schema.REFUSAL; return the table and what it cost.

    Photos that lie together are found by listing their folders while that returns at most about four names a photo,
    others by HEADs. https photos are asked for by HEAD, or, where `known` (columns uri, token: the parent's items)
    has an ETag, by a GET with If-None-Match. max_bytes: of one photo; one that is known to be longer is refused, but
    not the `known` one, whose bytes were read by another limit. One that comes with the token "" has no version. What
    cannot be had gets stage `plan`, a reason (see `refusals`) and the token "". Raises what `Failures.ask` does, when
    it is no photo's fault.
    """
    addresses = _addresses(photos)
    refused = _judged(photos, addresses, files)
    open_rows = as_numpy(pc.and_(pc.is_null(photos.column("token")), pc.not_equal(photos.column("uri"), "")))
    open_rows &= as_numpy(pc.is_null(refused.reason))
    asking = np.flatnonzero(open_rows)
    asked = joined(take_column(addresses, asking))
    uris = pc.unique(asked)
    asked_before = _by_address(known, take_column(photos.column("uri"), asking), asked, uris)
    web = pc.starts_with(uris, "https://")
    failures = Failures(files)
    known_tokens = None if asked_before is None else asked_before.filter(pc.invert(web))["token"]
    found, cost = _resolve_stored(uris.filter(pc.invert(web)), files, failures, config.inventory, known_tokens)
    on_web, web_cost = _resolve_web(uris.filter(web), files, asked_before, failures)
    resolved = pa.concat_tables([found, on_web])
    reading = catalogue_notes(photos).listed if NOTES_KEY in (photos.schema.metadata or {}) else 0
    cost = replace(web_cost, listed=cost.listed + reading, heads=cost.heads + web_cost.heads)
    place = np.full(photos.num_rows, -1)
    place[asking] = as_numpy(pc.index_in(asked, value_set=resolved.column("uri")), missing=-1)
    answers = take_rows(resolved, pa.array(place, mask=place < 0))
    empty = pc.equal(photos.column("uri"), "")
    unversioned = pc.and_(pc.fill_null(pc.equal(photos.column("token"), ""), False), pc.invert(empty))
    token = pc.coalesce(photos.column("token"), answers.column("token"))
    size = pc.coalesce(answers.column("size"), _told_sizes(photos))
    too_long = _too_long(photos.column("uri"), token, size, known, max_bytes)
    token = pc.if_else(pc.or_(pc.is_valid(refused.reason), pc.is_valid(too_long)), "", token)
    table = photos.set_column(
        photos.schema.get_field_index("token"), PHOTOS.field("token"), pc.fill_null(token, "").cast(pa.string())
    )
    of_size = pc.if_else(pc.is_valid(too_long), "too_many_bytes", pa.scalar(None, pa.string()))
    reason = pc.coalesce(
        refused.reason, of_size, _said(empty, "no_image", unversioned, "no_version", answers.column("reason"))
    )
    detail = pc.coalesce(
        refused.detail, too_long, _said(empty, NO_IMAGE, unversioned, NO_VERSION, answers.column("detail"))
    )
    stage = pc.if_else(pc.is_valid(reason), "plan", pa.scalar(None, pa.string()))
    for kind, column in zip(REFUSAL, (stage, reason, detail), strict=True):
        table = table.append_column(kind, column.cast(kind.type))
    return table, replace(cost, sizes=size)


def _said(empty: pa.Array, of_empty: str, unversioned: pa.Array, of_unversioned: str, answers: pa.Array) -> pa.Array:
    return pc.if_else(empty, of_empty, pc.if_else(unversioned, of_unversioned, answers))


_RESOLVED = pa.schema(
    [
        pa.field("uri", pa.large_string()),
        pa.field("token", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("detail", pa.string()),
        pa.field("size", pa.int64()),
    ]
)


def _told_sizes(photos: pa.Table) -> pa.ChunkedArray:
    """Return the sizes that reading the catalogue found: of files of a folder and members of tar shards."""
    if "length" not in photos.column_names:
        return pa.chunked_array([pa.nulls(photos.num_rows, pa.int64())])
    line = pc.starts_with(photos.column("uri"), "sha256:")  # its length is that of a line of JSON, in base64
    return pc.if_else(line, pa.scalar(None, pa.int64()), photos.column("length"))


def _too_long(
    uris: pa.ChunkedArray, token: pa.ChunkedArray, size: pa.ChunkedArray, known: pa.Table | None, max_bytes: int | None
) -> pa.ChunkedArray:
    """Return what is said of the photos that are longer than `max_bytes`, null of all others."""
    long = pc.fill_null(pc.greater(size, pa.scalar(max_bytes, pa.int64())), False)
    if known is not None and pc.any(long).as_py():
        before = pc.index_in(uris.cast(pa.large_string()), value_set=known.column("uri").cast(pa.large_string()))
        lived = take_column(known.column("token"), before)
        long = pc.and_not(long, pc.fill_null(pc.equal(lived, token), False))
    numbers = pc.if_else(long, size, pa.scalar(None, pa.int64())).to_pylist() if pc.any(long).as_py() else ()
    said = [None if n is None else f"{n:,} bytes are more than images.max_bytes={max_bytes:,}" for n in numbers]
    return pa.chunked_array([said or pa.nulls(len(uris), pa.string())], pa.string())


def _addresses(photos: pa.Table) -> pa.ChunkedArray:
    """Return where each photo is asked for: its URI, or the whole signed address behind it."""
    addresses = photos.column("uri")
    return pc.coalesce(photos.column("signed_uri"), addresses) if "signed_uri" in photos.column_names else addresses


def _judged(photos: pa.Table, addresses: pa.ChunkedArray, files: Files) -> Judgement:
    """Judge the photos that lie at an address of their own, also those whose tokens are known without asking."""
    if files.places is None:
        none = pa.nulls(len(addresses), pa.string())
        return Judgement(none, none)
    own = pc.and_(pc.is_null(photos.column("source")), pc.not_equal(photos.column("uri"), ""))
    if not pc.all(own).as_py():
        addresses = pc.if_else(own, addresses, pa.scalar(None, pa.string()))
    return judge(addresses, files.places)


def _by_address(known: pa.Table | None, uris: pa.ChunkedArray, addresses: pa.Array, asked: pa.Array) -> pa.Table | None:
    """Return the known tokens by the distinct addresses `asked`, of photos with these URIs and addresses [n]."""
    if known is None or not len(asked):
        return None
    named = take_column(uris, pc.index_in(asked, value_set=addresses)).cast(pa.large_string())
    place = pc.index_in(named, value_set=known.column("uri").cast(pa.large_string()))
    return pa.table({"uri": asked, "token": take_column(known.column("token"), place)})


def _resolve_stored(
    uris: pa.Array, files: Files, failures: Failures, inventory: str | None, known: pa.ChunkedArray | None
) -> tuple[pa.Table, TokenCost]:
    """Resolve photos of stores that list, from an inventory as far as one says; known: the tokens of the parent."""
    if inventory is None or not len(uris):
        return _resolve_listed(uris, files, failures)
    said = inventory_tokens(uris, inventory, files)
    there = pc.is_valid(said.tokens)
    # One that differs may have been replaced once more since.
    moved = pa.scalar(False) if known is None else pc.fill_null(pc.not_equal(said.tokens, known), False)
    told, asked = pc.and_not(there, moved), np.flatnonzero(as_numpy(pc.and_(there, moved)))
    by_inventory = _from_listing(uris.filter(joined(told)), said.tokens.filter(told), said.sizes.filter(told))
    answers = _ask(uris, asked, lambda uri: _head(uri, files, failures))
    rest, cost = _resolve_listed(uris.filter(joined(pc.invert(there))), files, failures)
    return pa.concat_tables([by_inventory, answers, rest]), TokenCost(
        said.listed + cost.listed, cost.heads + len(asked)
    )


def _resolve_listed(uris: pa.Array, files: Files, failures: Failures) -> tuple[pa.Table, TokenCost]:
    listing = list_tokens(uris, files)
    lacking = as_numpy(pc.is_null(listing.tokens))
    unlisted = lacking & ~listing.covered
    gone = np.flatnonzero(lacking & listing.covered)
    heads = np.flatnonzero(unlisted)
    confirmed = gone[:_CONFIRMED]
    answers = _ask(uris, np.concatenate([heads, confirmed]), lambda uri: _head(uri, files, failures))
    asked = len(heads) + len(confirmed)
    if len(gone) > len(confirmed) and pc.count(answers.slice(len(heads)).column("token")).as_py():
        # The store has photos that its listing does not show under these URIs, so the listing proves nothing.
        rest = gone[len(confirmed) :]
        answers = pa.concat_tables([answers, _ask(uris, rest, lambda uri: _head(uri, files, failures))])
        asked += len(rest)
    settled = np.zeros(len(uris), dtype=np.bool_)
    settled[heads] = True
    settled[gone[: asked - len(heads)]] = True
    rest = pa.array(~settled)
    by_listing = _from_listing(uris.filter(rest), listing.tokens.filter(rest), listing.sizes.filter(rest))
    return pa.concat_tables([by_listing, answers]), TokenCost(listing.listed, asked)


def _from_listing(uris: pa.Array, tokens: pa.Array, sizes: pa.Array) -> pa.Table:
    missing = pc.is_null(tokens)
    none = pa.scalar(None, pa.string())
    said = pc.binary_join_element_wise(
        uris.cast(pa.large_string()),
        pa.scalar("is not in the listing of its folder", pa.large_string()),
        pa.scalar(" ", pa.large_string()),
    )
    detail = pc.if_else(missing, said, pa.scalar(None, pa.large_string())).cast(pa.string())
    return pa.table([uris, tokens, pc.if_else(missing, "missing", none), detail, sizes], schema=_RESOLVED)


def _resolve_web(
    uris: pa.Array, files: Files, known: pa.Table | None, failures: Failures
) -> tuple[pa.Table, TokenCost]:
    if not len(uris):
        return _RESOLVED.empty_table(), TokenCost()
    tokens = pa.chunked_array([pa.nulls(len(uris), pa.string())])
    if known is not None and known.num_rows:
        place = pc.index_in(uris, value_set=known.column("uri").cast(pa.large_string()))
        tokens = take_column(known.column("token"), place)
    # A digest comes from a server without ETags, which sends the whole photo either way.
    again = pc.fill_null(pc.match_substring_regex(tokens, "^(etag|modified|sha256):"), False)
    before = dict(zip(uris.filter(again).to_pylist(), tokens.filter(again).to_pylist(), strict=True))
    order = pa.array(_by_turns(uris))  # so that one slow host never has all threads waiting for it
    uris, again = uris.take(order), again.take(order)
    new = _ask(uris, np.flatnonzero(~as_numpy(again)), lambda uri: _first_look(uri, files, failures))
    old = _ask(uris, np.flatnonzero(as_numpy(again)), lambda uri: _revalidate(uri, before[uri], files, failures))
    traffic = files.traffic()
    cost = TokenCost(
        heads=new.num_rows,
        revalidated=old.num_rows,
        reads=sum(host.reads for host in traffic.values()),
        read_bytes=sum(host.bytes_read for host in traffic.values()),
        slowed={name: round(host.paused_s, 1) for name, host in traffic.items() if host.refusals},
    )
    return pa.concat_tables([new, old]), cost


def _by_turns(uris: pa.Array) -> np.ndarray:
    """Return the places of web addresses so that hosts take turns: the first of each, the second of each, ..."""
    hosts = pc.replace_substring_regex(uris, r"^([^/]*//[^/?#]*).*$", r"\1").dictionary_encode().indices
    numbers = as_numpy(hosts)
    grouped = np.argsort(numbers, kind="stable")
    counts = np.bincount(numbers)
    turns = np.empty(len(numbers), dtype=np.int64)
    turns[grouped] = np.arange(len(numbers)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.lexsort((numbers, turns))


def _ask(uris: pa.Array, places: np.ndarray, question: Callable[[str], _Answer]) -> pa.Table:
    """Ask for some photos one by one, on 32 threads, and return their answers as a table (_RESOLVED)."""
    if not len(places):
        return _RESOLVED.empty_table()
    with ThreadPoolExecutor(HEAD_THREADS) as pool:
        return pa.concat_tables(_batches(uris.take(pa.array(places)), question, pool))


def _batches(uris: pa.Array, question: Callable[[str], _Answer], pool: ThreadPoolExecutor) -> Iterator[pa.Table]:
    for start in range(0, len(uris), _HEAD_BATCH):
        batch = uris.slice(start, _HEAD_BATCH)
        answers = list(pool.map(question, batch.to_pylist()))
        columns = [
            batch,
            pa.array([answer.token for answer in answers], pa.string()),
            pa.array([answer.reason for answer in answers], pa.string()),
            pa.array([answer.detail for answer in answers], pa.string()),
            pa.array([answer.size for answer in answers], pa.int64()),
        ]
        yield pa.table(columns, schema=_RESOLVED)


def _head(uri: str, files: Files, failures: Failures) -> _Answer:
    found = failures.ask(uri, lambda: files.stat(uri))
    if isinstance(found, Failure):
        return _answer(found)
    return _Answer(found.token, size=found.size if found.size >= 0 else None)


def _first_look(uri: str, files: Files, failures: Failures) -> _Answer:
    answer = _head(uri, files, failures)
    if answer.reason == "unreadable":  # no ETag: the digest of its bytes is the token
        return _answer(failures.ask(uri, lambda: files.revalidate(uri, None)[1]))
    return answer


def _revalidate(uri: str, token: str, files: Files, failures: Failures) -> _Answer:
    return _answer(failures.ask(uri, lambda: files.revalidate(uri, token)[1]))


def _answer(found: str | Failure) -> _Answer:
    return _Answer(None, found.reason, found.detail) if isinstance(found, Failure) else _Answer(found)
