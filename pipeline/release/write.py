"""Writing a release: its files under content names, then, last, the manifest that makes them one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

from ..errors import IntegrityError
from ..keys import SHORT, digest_of
from ..parts import PartFile
from ..storage import Store
from .format import claim_store
from .manifest import ROTATED, SPACE, FileEntry, Manifest, manifest_name, read_hashed_manifest, release_folder


class ReleaseFile(NamedTuple):
    """One file to write. suffix: with its dot (`.parquet`); rows: of a table or index, else None."""

    data: bytes
    suffix: str
    rows: int | None = None


class WrittenRelease(NamedTuple):
    """A release that is on the store; manifest_sha256 is what the channel's entry must carry."""

    manifest: Manifest
    manifest_sha256: str


def write_release(
    store: Store,
    *,
    release_id: str,
    files: Mapping[str, ReleaseFile | tuple[bytes, str, int | None] | Iterator[ReleaseFile]],
    segments: Mapping[str, Sequence[FileEntry]] | None = None,
    **fields: Any,
) -> WrittenRelease:
    """Write a release's files and then its manifest; when another attempt was first, return that one's release.

    files: by role, several as an iterator in the order of their rows, each of which is written before the next is asked
    for. segments: the files of an index that is made of some, by role, which are on the store already. The manifest is
    of the oldest format that can say what is in it. fields: every other field of `Manifest`;
    `created` is now unless given. Raises IntegrityError when a part or a bundle's file that the manifest would name is
    no longer on the store.
    """
    claim_store(store)
    found = _find_release(store, release_id)
    if found is not None:
        return found
    entries = {role: tuple(_write_files(store, release_id, role, held)) for role, held in sorted(files.items())}
    fields.setdefault("created", datetime.now(UTC))
    several = any(len(written) > 1 for written in entries.values())
    entries |= {role: tuple(shared) for role, shared in (segments or {}).items()}
    lowest: Literal[1, 2, 3, 4] = ROTATED if SPACE in entries else 3 if segments else 2 if several else 1
    manifest = Manifest(release_id=release_id, format=lowest, files=entries, **fields)
    written = [entry for role in entries.values() for entry in role]
    check_listed(store, [*manifest.parts, *manifest.bundle_files(), *written])
    data = manifest.to_bytes()
    if store.put_if_absent(manifest_name(release_id), data):
        return WrittenRelease(manifest, digest_of(data))
    return WrittenRelease(*read_hashed_manifest(store, release_id))


def _find_release(store: Store, release_id: str) -> WrittenRelease | None:
    if not store.exists(manifest_name(release_id)):
        return None
    return WrittenRelease(*read_hashed_manifest(store, release_id))


def _write_files(
    store: Store, release_id: str, role: str, held: tuple[Any, ...] | Iterator[ReleaseFile]
) -> Iterator[FileEntry]:
    for file in [ReleaseFile(*held)] if isinstance(held, tuple) else held:
        yield _write_file(store, release_id, role, file)


def _write_file(store: Store, release_id: str, role: str, file: ReleaseFile) -> FileEntry:
    digest = digest_of(file.data)
    name = f"{release_folder(release_id)}{role}-{digest[:SHORT]}{file.suffix}"
    # A taken name holds these same bytes: the name carries their digest, and names are written whole.
    store.put_if_absent(name, file.data)
    return FileEntry(name=name, bytes=len(file.data), sha256=digest, rows=file.rows)


def check_listed(store: Store, wanted: Iterable[PartFile | FileEntry]) -> None:
    """Raise IntegrityError when a file is gone or has another size, just before a manifest or a log would name it.

    Expiry deletes parts that no release names, so a run that took longer than half the grace period may have lost some.
    """
    sizes = {entry.name: entry.bytes for entry in wanted}
    folders = sorted({name.rpartition("/")[0] + "/" for name in sizes})
    listed = {entry.name: entry.size for folder in folders for entry in store.list(folder)}
    gone = sorted(name for name in sizes if name not in listed)
    if gone:
        raise IntegrityError(
            f"{len(gone)} of {len(sizes)} files are no longer on {store.url}, first {gone[0]!r}: expiry or someone "
            "else deleted them; run again under a new name"
        )
    for name, size in sorted(sizes.items()):
        if listed[name] != size:
            raise IntegrityError(f"{name} has {listed[name]:,} bytes, expected {size:,}; delete it and run again")
