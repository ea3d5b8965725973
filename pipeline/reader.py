"""Reading releases: product keys in, product keys out. `open_release` is all that a recommender team imports.

Works with the base install and FAISS; neither ray nor torch is needed. Only a query by photo needs the encoder:
onnxruntime and Pillow, the extra `photo`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Unpack

import numpy as np
from numpy.typing import ArrayLike

from .errors import ConfigError
from .forks import FreshLock
from .index import GroupHits, LatentArrays, load_faiss, reciprocal_ranks
from .index.asked import as_rows, basket_shares, checked_k, listed_keys
from .index.contents import Contents, ItemKey
from .index.fetching import fetch_ahead
from .index.following import Following
from .index.fusion import rank_depth, soft_minimum
from .index.latents import Float32
from .index.opened import OpenedRelease
from .index.opening import Opening, Terms
from .index.question import Question, least_of, warm
from .index.seen_recall import RecallCheck, SeenRecall
from .index.thresholds import near_enough
from .release import (
    ChannelEntry,
    Delisted,
    HeldLease,
    Manifest,
    SeenHeads,
    channel_head,
    check_signed,
    check_store,
    read_delisted,
    take_lease,
    trusted_head,
)
from .release.manifest import read_hashed_manifest
from .storage import StorageOptions, Store, open_store
from .storage.cache import FileCache
from .storage.room import asked_bytes

CACHE_VARIABLE = "CODEBOOKS_READER_CACHE_GIB"


@dataclass(frozen=True, slots=True)
class Neighbour:
    """One item of an answer. score: larger is nearer; attributes: of the item's first photo, null is None."""

    item_id: str
    score: float
    attributes: dict[str, Any]


def open_release(
    store_url: str,
    *,
    channel: str = "stable",
    release_id: str | None = None,
    options: StorageOptions | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    cache_gib: float | None = None,
    **opening: Unpack[Opening],
) -> Release:
    """Open the current release of a channel, or the one named by `release_id` (`channel` is then not looked at).

    store_url: s3://bucket/prefix or a local path. expect_model: the model_id that the caller's own vectors come from; a
    release of another model is refused. cache_dir: where files are kept, shared by all processes, those not used for
    longest go first; None: `$XDG_CACHE_HOME/visual-codebooks` or `~/.cache/visual-codebooks`. cache_gib: how much may
    lie there; None: the environment variable CODEBOOKS_READER_CACHE_GIB, else 50 GiB, and a quarter at most of what is
    free for this process.
    lease: hold the open release against expiry, for a day from each `refresh()`, which must be called more often then;
    takes the right to write below `leases/` of the store.
    trusted_keys: public keys (PEM files, or their text), one of which must have signed whatever release is opened, now
    and at each `refresh()`; takes the package cryptography.
    trusted_channel: one of them must also have signed that this release is the channel's head, whose number is never
    lower than what was seen with this `cache_dir` before: nobody else can put an older release there, nor cut the log
    (a release named by its id has no channel).
    progress: told (bytes that are here, bytes in all) while files are fetched, on the threads that fetch them.
    check_one_in: of so many questions one, drawn at random, is answered once more by an exact search on a thread of its
    own, and compared: `recall_seen`. That scores every item that may answer; take a large number for a large release.
    Raises NotFound when there is no such release, IntegrityError when a digest, a row count, the metric or the model
    does not fit, Untrusted (one of these) when no trusted key signed it as it lies there, ConfigError when FAISS is not
    installed as it should be.
    """
    cache = FileCache(cache_dir, max_bytes=asked_bytes(cache_gib, CACHE_VARIABLE))
    store = open_store(store_url, options)
    terms = Terms.of(**opening)  # first: what cannot be is said before anything is fetched
    release = Release(store, cache, terms, channel=channel, release_id=release_id)
    release.open()
    return release


class Release(Contents):
    """An open release; every method may be called from several threads at once, also during `refresh`.

    A query runs on the release that was current when it began. Its vectors come from the index, which stores what it
    searches (see `Metric.recover`), so queries by item read nothing from the store; `latents` reads the parts.

    Wherever an item_id is asked for, text, integers and UUIDs will do (see `index.items.stored_item_id`). A `Release`
    goes on answering in a forked child. Pickled (to Spark, Ray or another process) it is what it was opened with, never
    a credential, and the release that it was on, which is opened there at the first question; `refresh` moves on.
    """

    def __init__(
        self, store: Store, cache: FileCache, terms: Terms, *, channel: str, release_id: str | None = None
    ) -> None:
        """Use `open_release`."""
        self._store, self._cache, self._terms = store, cache, terms
        self.channel = channel if release_id is None else None  # None: pinned to one release
        # Id and sha256 of the manifest, each None as long as it is not known.
        self._wanted: tuple[str | None, str | None] = (release_id, None)
        self._number = 0  # the highest of the channel's entries that was followed
        self._opening = FreshLock()
        self._opened: OpenedRelease | None = None
        self._delisted: Delisted | None = None
        self._lease: HeldLease | None = None
        self._check = None if terms.check_one_in is None else RecallCheck(terms.check_one_in)

    def open(self) -> None:
        """Open the release now, where that has not been done; every question does it too. Errors as `open_release`."""
        self._now()

    def __getstate__(self) -> dict[str, Any]:
        return {
            name: value
            for name, value in self.__dict__.items()
            if name not in ("_opening", "_opened", "_delisted", "_lease", "_check")
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _opening=FreshLock(), _opened=None, _delisted=None, _lease=None)
        self._check = None if self._terms.check_one_in is None else RecallCheck(self._terms.check_one_in)

    def __copy__(self) -> Release:
        copied = Release.__new__(Release)
        copied.__setstate__(self.__getstate__())
        # What is open never changes, so both may use it.
        copied._opened, copied._delisted, copied._check = self._opened, self._delisted, self._check
        return copied

    def __deepcopy__(self, memo: dict[int, Any]) -> Release:
        return self.__copy__()

    @property
    def manifest(self) -> Manifest:
        """The manifest of the release that queries now run on."""
        return self._now().manifest

    @property
    def release_id(self) -> str:
        """The id of the release that queries now run on."""
        return self._now().manifest.release_id

    @property
    def model_id(self) -> str:
        """The model whose latents the release holds."""
        return self._now().manifest.model_id

    @property
    def opened(self) -> OpenedRelease:
        """The files of the release that queries now run on, for rooms of this library; `refresh` leaves them be."""
        return self._now()

    @property
    def recall_seen(self) -> SeenRecall | None:
        """What `check_one_in` has seen since the release was opened, over all it moved to; None where it was not given.

        A copy counts into the same numbers; a pickle begins anew.
        """
        return None if self._check is None else self._check.seen

    def similar(
        self,
        item_id: ItemKey,
        k: int = 10,
        *,
        where: Mapping[str, Any] | None = None,
        min_score: float | None = None,
        min_quantile: float | None = None,
    ) -> list[Neighbour]:
        """Return the k items nearest to an item, nearest first, never the item itself; ties by item_id.

        All photos of the item ask, and an item's score is its best pair of photos. where: {attribute: value}, a list
        means any, {"min": a, "max": b} a range with both ends; nulls never match. min_score: only items of at least
        this score; min_quantile: only items nearer than this share of random pairs of items (0.999: than 999 of 1,000),
        which, unlike a score, means the same with every model. Fewer than k come back only when there are no more.
        Raises UnknownItem, saying whether the item is quarantined, delisted or was never seen, and ConfigError for an
        unknown attribute, and for a quantile that the release has not measured.
        """
        opened = self._now()
        item = opened.find(item_id)
        least = least_of(opened, min_score, min_quantile)
        return self._named(opened, Question.alone(opened.vectors([item]), k, where, [item]), least)[0]

    def similar_to_many(
        self,
        item_ids: Iterable[ItemKey],
        k: int = 10,
        *,
        fusion: str = "rrf",
        weights: Sequence[float] | None = None,
        where: Mapping[str, Any] | None = None,
    ) -> list[Neighbour]:
        """Return the k items nearest to several items together, none of these among them.

        fusion: `rrf` asks for each item apart (max(100, 10 k) neighbours) and sums weight / (5 + rank), which serves
        mixed baskets; `min` takes an item's best score to any of them; `soft_min` among the same neighbours as `rrf` a
        soft minimum of their distances, see `soft_minimum`; `barycentre` asks once with the weighted middle of the
        items (each the middle of its photos), for items of one kind. weights: one positive number an item; `min` takes
        none. Scores are rank sums for `rrf`, logarithms for `soft_min`, else the metric's. Raises UnknownItem,
        ConfigError.
        """
        opened = self._now()
        basket = listed_keys(item_ids)
        shares = basket_shares(basket, fusion, weights)
        items = [opened.find(item_id) for item_id in basket]
        counts = [len(opened.items.rows_of(item)) for item in items]
        vectors = opened.vectors(items)
        if fusion in ("rrf", "soft_min"):
            owners = np.repeat(np.arange(len(items)), counts)
            answers = self._answers(opened, Question(vectors, owners, rank_depth(checked_k(k)), where, items))
            if fusion == "rrf":
                return _neighbours(opened, reciprocal_ranks(answers, shares, k))
            named = np.unique(np.concatenate([answer.groups for answer in answers]))
            scores = opened.scores(vectors, owners, named.tolist()) if len(named) else np.empty((len(items), 0))
            return _neighbours(opened, soft_minimum(answers, named, scores, shares, k))
        if fusion == "barycentre":
            vectors = opened.index.metric.barycentre(vectors, np.repeat(shares / counts, counts))
        return self._named(opened, Question.alone(vectors, k, where, items))[0]

    def search(
        self,
        vectors: ArrayLike | LatentArrays,
        k: int = 10,
        *,
        where: Mapping[str, Any] | None = None,
        min_score: float | None = None,
        min_quantile: float | None = None,
    ) -> list[list[Neighbour]]:
        """Return the k nearest items of every vector, one list a vector.

        vectors: float [q, d], rows of latents of the release's own model; one vector [d] counts as [1, d]. A metric
        that compares variances (see the manifest) wants `LatentArrays` with log_var. Vectors of another model give
        meaningless answers where the dimension happens to fit: pass `expect_model` to `open_release`. The rest as
        in `similar`. Raises ConfigError for another dimension or values that are not finite.
        """
        queries = vectors if isinstance(vectors, LatentArrays) else LatentArrays(mean=as_rows(vectors))
        opened = self._now()
        least = least_of(opened, min_score, min_quantile)
        return self._named(opened, Question(queries, np.arange(len(queries)), k, where), least)

    def warm(self) -> None:
        """Ask for the neighbours of the first item, as it is stored, so that no question is the first."""
        warm(self._now())

    def similar_photo(
        self,
        data: bytes,
        k: int = 10,
        *,
        where: Mapping[str, Any] | None = None,
        category: Any = None,
        max_pixels: int | None = None,
        min_score: float | None = None,
        min_quantile: float | None = None,
    ) -> list[Neighbour]:
        """Return the k items nearest to a photo, given as the bytes of its file; the rest as in `encode_photo`.

        where, min_score, min_quantile: as in `similar`.
        """
        opened = self._now()
        vectors = opened.encoder()(data, category, max_pixels=max_pixels)
        least = least_of(opened, min_score, min_quantile)
        return self._named(opened, Question.alone(vectors, k, where), least)[0]

    def encode_photo(self, data: bytes, *, category: Any = None, max_pixels: int | None = None) -> Float32:
        """Return the mean of a photo's latents, float32 [1, d], by the release's own encoder (ONNX, on the CPU).

        category: what the photo shows, as in the catalogue's column; a model that is told categories encodes with it.
        None (not known) and a category that the model never met are encoded too; other models do not look at it.
        max_pixels: width x height at most, for photos of strangers; None: the limit that the bundle has of its own.
        Raises PhotoRefused for bytes that are no usable photo, ConfigError when onnxruntime or Pillow is missing,
        IntegrityError when the stored encoder is gone or not the one that the manifest lists.
        """
        return self._now().encoder()(data, category, max_pixels=max_pixels).mean

    def refresh(self) -> bool:
        """Move to the channel's head and return whether it had moved; a pinned release never moves.

        The new release is fetched, checked and asked once before anybody else is answered by it. Items that were
        delisted since are shown no more, also where nothing moves. Queries under way finish on the release they began
        on. On any error this release stays open as it is.
        """
        with self._opening:
            if self._opened is not None:
                self._delisted = read_delisted(self._store, self._delisted)
                self._opened.mask(self._delisted)
            if self._lease is not None:
                self._lease.renew_when_due()
            if self.channel is None:
                return False
            head = self._head(self.channel)
            if head.release_id == self._wanted[0]:
                return False
            self._open(head.release_id, head.manifest_sha256)
            return True

    def follow(
        self,
        every_s: float = 60.0,
        *,
        on_swap: Callable[[Release], None] | None = None,
        on_error: Callable[[Exception], None] | None = None,
    ) -> Following:
        """Call `refresh` about every so many seconds on a thread of its own, until the returned object is stopped.

        A look that fails is logged, and this release stays open. Raises ConfigError where the release is pinned.
        """
        if self.channel is None:
            raise ConfigError(
                f"release {self.release_id} was opened by its id and never moves; open a channel to follow"
            )
        return Following(self, every_s, on_swap=on_swap, on_error=on_error)

    def _answers(self, opened: OpenedRelease, asked: Question) -> list[GroupHits]:
        answers = asked.answers(opened)
        if self._check is not None:
            self._check.observe(answers, partial(asked.exactly, opened))
        return answers

    def _named(self, opened: OpenedRelease, asked: Question, least: float | None = None) -> list[list[Neighbour]]:
        return [_neighbours(opened, near_enough(answer, least)) for answer in self._answers(opened, asked)]

    def _now(self) -> OpenedRelease:
        """Return the open release, opening it first where this object has just come out of a pickle."""
        opened = self._opened
        if opened is not None:
            return opened
        with self._opening:
            if self._opened is None:
                release_id, digest = self._wanted
                if release_id is None:
                    head = self._head(str(self.channel))
                    release_id, digest = head.release_id, head.manifest_sha256
                return self._open(release_id, digest)
            return self._opened

    def _open(self, release_id: str, digest: str | None) -> OpenedRelease:
        load_faiss()
        check_store(self._store)
        manifest, found = read_hashed_manifest(self._store, release_id, expect_sha256=digest)
        if self._terms.trusted:
            check_signed(self._store, manifest, found, self._terms.trusted)
        # Before its files are fetched, so that none of them can go meanwhile.
        lease = take_lease(self._store, release_id, owner="reader") if self._terms.lease else None
        try:
            fetch_ahead(self._store, self._cache, manifest, self._terms.progress)
            opened = OpenedRelease(self._store, self._cache, manifest, self._terms.expect_model)
            self._delisted = read_delisted(self._store, self._delisted)
        except BaseException:
            if lease is not None:
                lease.close()
            raise
        opened.mask(self._delisted)
        if self._opened is not None:
            warm(opened)
        self._wanted = (release_id, found)
        self._opened = opened  # one reference: a query sees the old release or the new one, whole
        before, self._lease = self._lease, lease
        if before is not None:
            before.close()
        return opened

    def _head(self, channel: str) -> ChannelEntry:
        if self._terms.trusted_channel:
            seen = SeenHeads(self._cache.folder)
            head = trusted_head(self._store, channel, self._terms.trusted, seen, least=self._number)
        else:
            head = channel_head(self._store, channel)
        self._number = head.number
        return head


def _neighbours(opened: OpenedRelease, answer: GroupHits) -> list[Neighbour]:
    return [Neighbour(*found) for found in opened.named(answer)]
