"""Which bundles of a store must stay: those of kept releases and runs at work, what these were made of, young ones."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from ..errors import NotFound
from ..keys import DIGEST
from ..storage import Entry, Store

_FILE = re.compile(rf"models/({DIGEST.strip('^$')})/.+")
POINTER = re.compile(r"models/by-key/[^/]+\.json")
CONFIG = re.compile(rf"models/{DIGEST.strip('^$')}/config\.json")
_IDS = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Bundles:
    """kept: by model_id, why a bundle must stay; every: why all must, None where not. newest: when anything of a bundle
    was written last; pointers: the model_id that each file below `models/by-key/` names, of those that can be read."""

    kept: Mapping[str, str]
    every: str | None
    newest: Mapping[str, datetime]
    pointers: Mapping[str, str]

    def owner(self, name: str) -> str | None:
        """Return the model_id of the bundle that a file is of or points to; None for any other file."""
        found = _FILE.fullmatch(name)
        return self.pointers.get(name) if found is None else found.group(1)

    def reason(self, model: str) -> str | None:
        """Return why a bundle must stay whatever its age, None where nothing needs it."""
        return self.kept.get(model) or self.every


def read_bundles(store: Store, entries: Sequence[Entry], needed: Mapping[str, str], every: str | None) -> Bundles:
    """Return the bundles of a listing. needed: by model_id, why they must stay; what their configs name stays too.

    A teacher's or a part's model_id stands in the config of who was made of it; anything there that reads as the id of
    a bundle counts.
    """
    pointers, newest = dict[str, str](), dict[str, datetime]()
    for entry in entries:
        found = _FILE.fullmatch(entry.name)
        model = found.group(1) if found else None
        if POINTER.fullmatch(entry.name) and (model := _named(store, entry.name)):
            pointers[entry.name] = model
        if model is not None:
            newest[model] = max(entry.modified, newest.get(model, entry.modified))
    kept, todo = {}, list(needed.items())
    while todo:
        model, why = todo.pop()
        if model not in kept:
            kept[model] = why
            named = _ids_in(store, model) & newest.keys()
            todo += [(other, f"bundle {model[:12]} was made of it") for other in sorted(named - kept.keys())]
    return Bundles(kept, every, newest, pointers)


def _named(store: Store, name: str) -> str | None:
    try:
        found = json.loads(store.get(name))["model_id"]
    except (NotFound, ValueError, LookupError, TypeError):  # unknown: it stays
        return None
    return found if isinstance(found, str) and re.fullmatch(DIGEST, found) else None


def _ids_in(store: Store, model: str) -> set[str]:
    try:
        return set(_IDS.findall(store.get(f"models/{model}/config.json").decode(errors="replace")))
    except NotFound:
        return set()
