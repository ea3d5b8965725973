"""Tables that are written beside a release after its manifest, which cannot list them: a document of their own does.

`releases/<id>/recommend-<key>/recommendations.json` lists the files of its folder and ends with the sha256 of itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from ..errors import NotFound
from ..keys import digest_of
from ..storage import Store
from .manifest import PLAIN, FileEntry, release_folder

SUMMARY = "recommendations.json"
_FOLDER = "recommend-"
_WRITTEN = timedelta(hours=1)  # within which the document follows the tables that it lists
_SEAL = re.compile(rb'(.*),\n "sha256": "([0-9a-f]{64})"\n}', re.DOTALL)


def recommend_folder(release: str, key: str) -> str:
    """Return the folder, on a release's own store, of the tables that were asked for by this short key."""
    return f"{release_folder(release)}{_FOLDER}{key}/"


def sealed(text: bytes) -> bytes:
    """Return a JSON object, of one field a line as `indent=1` writes it, with the sha256 of this text as last field."""
    body = text.removesuffix(b"\n}")
    return body + f',\n "sha256": "{digest_of(body)}"\n}}'.encode()


def unsealed(data: bytes, name: str) -> bytes:
    """Return what `sealed` was given; a document of before there were seals as it is. Raises ValueError."""
    found = _SEAL.fullmatch(data)
    if found is None:
        if "sha256" in json.loads(data):
            raise ValueError(f"{name} is not as it was written")
        return data
    body, digest = found.groups()
    if digest_of(body) != digest.decode():
        raise ValueError(f"{name} has the sha256 {digest_of(body)} without its last line, which says {digest.decode()}")
    return body + b"\n}"


def listed_beside(store: Store, release: str) -> Iterator[tuple[str, list[FileEntry] | str]]:
    """Yield (name, files) of each finished document beside a release; (name, problem) where it cannot be right.

    Tables without one, which is written last, are a problem once the newest of them is an hour old.
    """
    folder = release_folder(release)
    newest: dict[str, datetime] = {}
    for entry in store.list(folder + _FOLDER):
        place = entry.name.rpartition("/")[0]
        newest[place] = max(entry.modified, newest.get(place, entry.modified))
        if entry.name == f"{place}/{SUMMARY}":
            newest[place] = datetime.max.replace(tzinfo=UTC)
    for place, modified in newest.items():
        name = f"{place}/{SUMMARY}"
        if modified < datetime.now(UTC) - _WRITTEN:
            yield name, f"{name} is missing, and tables lie there that it lists: run `codebooks recommend` again"
        if modified < datetime.max.replace(tzinfo=UTC):
            continue
        try:
            yield name, _files(store.get(name), name, release)
        except NotFound:  # deleted since
            continue
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            yield name, f"{name} is damaged or not of this release: {error}"


def _files(data: bytes, name: str, release: str) -> list[FileEntry]:
    document = json.loads(unsealed(data, name))
    if document["release_id"] != release:
        raise ValueError(f"it lists tables of {document['release_id']!r:.200}")
    entries = []
    for file in document["files"]:
        if not re.fullmatch(PLAIN, file["name"]):
            raise ValueError(f"it lists {file['name']!r:.200}, and names must stay inside their folder")
        place = name.removesuffix(SUMMARY) + file["name"]
        entries.append(FileEntry(name=place, bytes=file["bytes"], sha256=file["sha256"], rows=file["rows"]))
    return entries
