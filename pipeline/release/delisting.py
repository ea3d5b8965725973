"""Items that readers must not show from now on, whatever release they have open: `delisted/<hash>.json`.

A refresh takes an item out when its catalogue no longer has it; a tombstone masks it until then, from the next
`refresh()` of each reader on. Files are written once, so a listing alone tells whether anything has changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import ConfigError, IntegrityError, NotFound
from ..keys import SHORT, digest_of
from ..storage import Store
from .holds import OWNER
from .manifest import document_bytes

DELISTED = "delisted/"
_MOST = 10_000  # items of one file


class Tombstone(BaseModel):
    """Items that somebody has delisted, and why."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    items: tuple[Annotated[str, Field(min_length=1)], ...] = Field(min_length=1, max_length=_MOST)
    owner: str = Field(pattern=OWNER)
    reason: str
    created: datetime


@dataclass(frozen=True, slots=True)
class Delisted:
    """All delisted items of a store. why: by item_id, a few words; files: the names they were read from."""

    why: Mapping[str, str] = field(default_factory=dict)
    files: frozenset[str] = frozenset()


def delist(store: Store, items: Sequence[str], *, owner: str, reason: str) -> list[str]:
    """Mask items for every reader, and return those that were not masked before.

    Raises ConfigError for no items or an owner that is none.
    """
    if not items or "" in items:
        raise ConfigError("name at least one item_id to delist, and no empty text")
    known = read_delisted(store).why
    new = [item for item in dict.fromkeys(items) if item not in known]
    for start in range(0, len(new), _MOST):
        _write(store, new[start : start + _MOST], owner, reason)
    return new


def relist(store: Store, items: Sequence[str]) -> list[str]:
    """Let readers show delisted items again, and return those that had been masked."""
    wanted, found = set(items), set[str]()
    for name, stone in _read(store):
        inside = wanted.intersection(stone.items)
        if inside:
            rest = [item for item in stone.items if item not in inside]
            if rest:  # first: none of them is shown in between
                _write(store, rest, stone.owner, stone.reason)
            store.delete(name)
            found |= inside
    return sorted(found)


def read_delisted(store: Store, known: Delisted | None = None) -> Delisted:
    """Return what is delisted; `known` itself where its files are still those of the store.

    Raises IntegrityError for a file that cannot be understood: it may mask items that must not be shown.
    """
    names = frozenset(entry.name for entry in store.list(DELISTED))
    if known is not None and names == known.files:
        return known
    why: dict[str, str] = {}
    for _, stone in _read(store):
        said = f"by {stone.owner} on {stone.created:%Y-%m-%d}" + (f": {stone.reason}" if stone.reason else "")
        why.update((item, said) for item in stone.items)
    return Delisted(why, names)


def _write(store: Store, items: Sequence[str], owner: str, reason: str) -> None:
    try:
        stone = Tombstone(items=tuple(items), owner=owner, reason=reason, created=datetime.now(UTC))
    except ValidationError as error:
        raise ConfigError(f"{owner!r} is no owner; use letters, digits, '.', '_', '@', '+' and '-'") from error
    data = document_bytes(stone)
    store.put_if_absent(f"{DELISTED}{digest_of(data)[:SHORT]}.json", data)


def _read(store: Store) -> Iterator[tuple[str, Tombstone]]:
    for entry in list(store.list(DELISTED)):
        with suppress(NotFound):  # relisted since
            data = store.get(entry.name)
            try:
                stone = Tombstone.model_validate_json(data)
            except ValidationError as error:
                raise IntegrityError(
                    f"{entry.name} cannot be understood, and may name items that must not be shown; upgrade "
                    f"visual-codebooks if a newer version wrote it, else delete it ({error})"
                ) from error
            yield entry.name, stone
