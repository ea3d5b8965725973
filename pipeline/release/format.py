"""The store's own format, so that an old version of this library refuses a store that it would misread."""

from __future__ import annotations

import json

from ..errors import NotFound
from ..storage import Store
from .manifest import check_format, read_document

STORE_NAME = "store.json"
FORMAT = 1  # of the store's layout: names and channels, not the manifests, each of which has its own


def claim_store(store: Store) -> None:
    """Write `store.json` when this is the store's first writer, else check it; every command that writes begins here.

    Raises InputError when a newer version of this library has the store.
    """
    if not check_store(store) and not store.put_if_absent(STORE_NAME, json.dumps({"format": FORMAT}).encode()):
        check_store(store)  # another first writer was quicker, perhaps a newer version


def check_store(store: Store) -> bool:
    """Return whether `store.json` is there; every reader begins here. Raises InputError on a newer format."""
    try:
        data = store.get(STORE_NAME)
    except NotFound:
        return False
    name = f"{STORE_NAME} on {store.url}"
    check_format(read_document(data, name), name, newest=FORMAT)
    return True
