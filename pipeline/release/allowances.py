"""What a person let pass once, beside the entry of a channel's log that it let through.

A document of its own, as versions before it read the log: they take an entry with one more field for a damaged one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import IntegrityError
from ..keys import DIGEST, SHORT
from ..storage import Store
from .manifest import RELEASE_ID, document_bytes

_ALLOWED = re.compile(r"/\d{12}\.allowed-([0-9a-f]+)\.json$")


class Allowance(BaseModel):
    """allowed: by gate, the reason of whoever let it pass. run, attempt: that asked to publish the release."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    release_id: str = Field(pattern=RELEASE_ID)
    manifest_sha256: str = Field(pattern=DIGEST)
    run: str
    attempt: int
    allowed: dict[str, str]
    created: datetime


def write_allowance(
    store: Store, entry_name: str, *, release_id: str, manifest_sha256: str, run: str, attempt: int,
    allowed: Mapping[str, str],
) -> None:  # fmt: skip
    """Write what is allowed, if anything, before the entry that it lets through: whoever reads that entry finds it.

    An entry that is lost to another run leaves it behind, where it says nothing: it names its manifest.
    """
    if not allowed:
        return
    document = Allowance(
        release_id=release_id,
        manifest_sha256=manifest_sha256,
        run=run,
        attempt=attempt,
        allowed=dict(allowed),
        created=datetime.now(UTC),
    )
    store.put_if_absent(_name(entry_name, manifest_sha256), document_bytes(document))


def read_allowances(store: Store, entries: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Return, by the names of a channel's entries, the reasons by gate of what the release of each was let through for.

    entries: the sha256 of its manifest by the name of each. What let a release onto the channel holds for every later
    entry of it, as a rollback's. One listing; releases that passed their gates are left out. Raises IntegrityError for
    a damaged document.
    """
    folders = {name.rpartition("/")[0] + "/" for name in entries}
    there = [entry.name for folder in folders for entry in store.list(folder)]
    by_digest = {match.group(1): name for name in sorted(there) if (match := _ALLOWED.search(name))}
    found = {name: by_digest.get(digest[:SHORT]) for name, digest in entries.items()}
    return {name: _read(store, document) for name, document in found.items() if document is not None}


def _read(store: Store, name: str) -> dict[str, str]:
    try:
        return Allowance.model_validate_json(store.get(name)).allowed
    except ValidationError as error:
        raise IntegrityError(f"{name} does not say what was allowed ({error}); restore it or delete it") from error


def _name(entry_name: str, manifest_sha256: str) -> str:
    return f"{entry_name.removesuffix('.json')}.allowed-{manifest_sha256[:SHORT]}.json"
