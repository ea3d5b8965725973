"""How many photos may fail before the night is stopped: below, each is a row of the quarantine; above, it is no photo's
fault."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from ..errors import ClientRefused, CodebooksError, InputError, Unavailable
from ..storage.urls import HOME

LEAST = 10  # fewer photos than these are never more than single ones
_SHOWN = 3
# What the catalogue's own text may lack of single photos.
_OF_THE_CATALOGUE = {
    "bad_uri": "have addresses that nothing is read from",
    "no_version": "have no version",
}


@dataclass(frozen=True, slots=True)
class Failed:
    """One photo that cannot be had tonight and could be yesterday, or was not known. home: its bucket or host, see
    `storage.home_of`."""

    home: str
    uri: str
    reason: str
    detail: str


class FailureLimits:
    """The limits of one catalogue. uris: of all its photos; share: `catalogue.max_unreachable`, 0 for not one."""

    def __init__(self, uris: pa.ChunkedArray, share: float) -> None:
        self._share = share
        self._photos = len(uris)
        counted = pc.value_counts(homes_of(uris)).to_pylist() if len(uris) else []
        self._by_home: dict[str, int] = {entry["values"]: entry["counts"] for entry in counted}

    def check(self, failed: Iterable[Failed], *, asked: Mapping[str, int] | None = None) -> None:
        """Raise when so many photos failed that the fault is not theirs.

        asked: photos fetched by bucket or host, at the end.

        Unavailable: too many gave no answer. ClientRefused: too many were refused, or all that were asked of a bucket
        of which more live than may fail. InputError: too many have bad addresses or no version. Too many are more than
        the share of all photos of the catalogue, wherever they lie.
        """
        failed = list(failed)
        silent = [photo for photo in failed if photo.reason == "unreachable"]
        if len(silent) > self._most(self._photos):
            raise Unavailable(
                f"{len(silent):,} of {self._photos:,} photos gave no answer, {self._allowed()}, so it is the fault of "
                f"the store or the network: {_first(silent)}. Nothing is published; run the same command again"
            )
        refused = [photo for photo in failed if photo.reason == "forbidden"]
        counts = Counter(photo.home for photo in refused)
        closed = [home for home, count in counts.items() if self._is_closed(home, count, (asked or {}).get(home))]
        if closed or len(refused) > self._most(self._photos):
            raise self._refusal(refused, closed)
        for reason, what in _OF_THE_CATALOGUE.items():
            bad = [photo for photo in failed if photo.reason == reason]
            if len(bad) > self._most(self._photos):
                raise InputError(f"{len(bad):,} of {self._photos:,} photos {what}, {self._allowed()}: {_first(bad)}")

    def _most(self, photos: int) -> int:
        return max(LEAST - 1, int(self._share * photos + 1e-9)) if self._share else 0

    def _allowed(self) -> str:
        return f"more than catalogue.max_unreachable allows ({self._share:g} of them, and {LEAST - 1} always)"

    def _is_closed(self, home: str, count: int, asked: int | None) -> bool:
        """Return whether a bucket or disk refused all that was asked of it, and holds more than single photos.

        All credentials of ours are behind such a refusal, also of what else of it lives and was not asked for tonight.
        A web host's are not: one supplier's may refuse us for ever.
        """
        if home.startswith(("https://", "http://")) or self._by_home.get(home, 0) <= self._most(self._photos):
            return False
        return count == asked and count >= LEAST

    def _refusal(self, refused: list[Failed], closed: list[str]) -> CodebooksError:
        counts = Counter(photo.home for photo in refused if photo.home in closed or not closed)
        there = self._by_home.get
        told = [
            f"{count:,} of {home or 'this machine'} ({there(home, 0):,} of the catalogue's photos are there)"
            for home, count in counts.most_common(_SHOWN)
        ]
        more = f" and of {len(counts) - _SHOWN:,} more places" if len(counts) > _SHOWN else ""
        web = all(home.startswith("https://") for home in counts)
        remedy = "let the host know this machine, or sign the addresses" if web else "give the credentials that right"
        return ClientRefused(
            f"access to {counts.total():,} of {self._photos:,} photos was refused: {', '.join(told)}{more}; "
            f"{self._why(len(refused))}: {_first([photo for photo in refused if photo.home in counts])}. Nothing is "
            f"published. If they shall stay, {remedy} and run the same command again; if a supplier has closed the "
            "place for good, take its rows out of the catalogue, or set catalogue.max_unreachable to "
            f"{self._share_for(len(refused), closed):g} or more, and its photos are quarantined"
        )

    def _why(self, total: int) -> str:
        if total > self._most(self._photos):
            return f"{total / self._photos:.2%} of all photos, {self._allowed()}"
        return "that is all that were asked for there, so it is who asks and not the photos"

    def _share_for(self, refused: int, closed: list[str]) -> float:
        """Return the least share, rounded up to four digits, by which these photos alone stop no night."""
        most = max(refused, *(self._by_home[home] for home in closed), 0)
        return min(1.0, math.ceil(most / self._photos * 1e4) / 1e4)


def homes_of(uris: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return what `storage.home_of` says of each URI."""
    found = pc.struct_field(pc.extract_regex(uris, HOME), "home")
    return pc.if_else(pc.starts_with(uris, "file:"), "", pc.fill_null(found, ""))


def _first(failed: list[Failed]) -> str:
    shown = "; ".join(photo.detail for photo in failed[:_SHOWN])
    return shown + (f"; and {len(failed) - _SHOWN:,} more" if len(failed) > _SHOWN else "")
