"""Small questions put to a store itself: its clock, whether it keeps what is written once, and shows what it holds."""

from __future__ import annotations

import uuid
from datetime import datetime

from ..errors import ConfigError
from .base import Store


def store_clock(store: Store, name: str) -> datetime:
    """Return the store's clock (UTC; S3 counts whole seconds) by writing a few bytes at `name`, under `runs/`."""
    store.put(name, b"clock\n")
    return store.stat(name).modified


def check_write_once(store: Store, name: str) -> None:
    """Raise ConfigError when the store overwrites what was written once; `name` is a free name, deleted at the end.

    Some S3-compatible servers answer 200 to a conditional PUT and ignore the condition, which nothing else would show.
    """
    first, second = uuid.uuid4().bytes, uuid.uuid4().bytes
    try:
        answers = (store.put_if_absent(name, first), store.put_if_absent(name, second))
        if answers != (True, False) or store.get(name) != first:
            raise ConfigError(
                f"{store.url} overwrites names that exist although asked not to (If-None-Match: *), so two runs could "
                "both publish; use a store that honours conditional writes"
            )
    finally:
        store.delete(name)


def check_shows_writes(store: Store, folder: str) -> None:
    """Raise ConfigError when a listing or a read does not show what was just written or deleted below `folder`.

    folder: a free name that ends with `/`; nothing is left below it.
    """
    name = f"{folder}shown"
    try:
        store.put(name, b"first")
        listed = [entry.name for entry in store.list(folder)]
        store.put(name, b"second")
        read = store.get(name)
    finally:
        store.delete(name)
    problem = ""
    if listed != [name]:
        problem = "its listing does not show what was just written"
    elif read != b"second":
        problem = "it does not return what was just written"
    elif store.exists(name):
        problem = "it still has what was deleted"
    if problem:
        raise ConfigError(f"{store.url}: {problem}; use a store that is strongly consistent, as S3 is")
