"""How many photos may fail before the night is stopped: below, each is a row of the quarantine; above, it is no photo's
fault."""

from __future__ import annotations

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

        Unavailable: too many gave no answer. ClientRefused: too many of one bucket, or all that were asked of it, or
        too many of a web host measured by the whole catalogue, were refused. InputError: too many have bad addresses or
        no version.
        """
        failed = list(failed)
        silent = [photo for photo in failed if photo.reason == "unreachable"]
        if len(silent) > self._most(self._photos):
            raise Unavailable(
                f"{len(silent):,} of {self._photos:,} photos gave no answer, {self._allowed()}, so it is the fault of "
                f"the store or the network: {_first(silent)}. Nothing is published; run the same command again"
            )
        refused = [photo for photo in failed if photo.reason == "forbidden"]
        for home, count in Counter(photo.home for photo in refused).items():
            if self._is_refused(home, count, (asked or {}).get(home)):
                raise self._refusal(home, [photo for photo in refused if photo.home == home])
        for reason, what in _OF_THE_CATALOGUE.items():
            bad = [photo for photo in failed if photo.reason == reason]
            if len(bad) > self._most(self._photos):
                raise InputError(f"{len(bad):,} of {self._photos:,} photos {what}, {self._allowed()}: {_first(bad)}")

    def _most(self, photos: int) -> int:
        return max(LEAST - 1, int(self._share * photos)) if self._share else 0

    def _allowed(self) -> str:
        return f"more than catalogue.max_unreachable allows ({self._share:g} of them, and {LEAST - 1} always)"

    def _is_refused(self, home: str, count: int, asked: int | None) -> bool:
        if home.startswith(("https://", "http://")):  # one supplier's host may refuse us for ever
            return count > self._most(self._photos)
        return count > self._most(self._by_home.get(home, 0)) or (count == asked and count >= LEAST)

    def _refusal(self, home: str, refused: list[Failed]) -> CodebooksError:
        there = self._by_home.get(home, 0)
        web = home.startswith("https://")
        remedy = "let the host know this machine, or sign the addresses" if web else "give the credentials that right"
        return ClientRefused(
            f"access to {len(refused):,} photos of {home or 'this machine'} was refused, of {there:,} of the catalogue "
            f"there, so it is who asks and not the photos: {_first(refused)}. Nothing is published; {remedy} and run "
            "the same command again, or raise catalogue.max_unreachable"
        )


def homes_of(uris: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return what `storage.home_of` says of each URI."""
    found = pc.struct_field(pc.extract_regex(uris, HOME), "home")
    return pc.if_else(pc.starts_with(uris, "file:"), "", pc.fill_null(found, ""))


def _first(failed: list[Failed]) -> str:
    shown = "; ".join(photo.detail for photo in failed[:_SHOWN])
    return shown + (f"; and {len(failed) - _SHOWN:,} more" if len(failed) > _SHOWN else "")
