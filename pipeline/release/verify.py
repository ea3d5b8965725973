"""Checking a release: every file and part that its manifest names, byte for byte."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import IntegrityError, NotFound
from ..keys import digest_of
from ..ordering import ranks
from ..parts import PartFile, read_whole
from ..storage import Store
from .manifest import FileEntry, Manifest, read_manifest


@dataclass(frozen=True, slots=True)
class ReleaseCheck:
    """What a check of a release found.

    files (those of the bundle too), parts, bytes: how many were read; problems: one sentence each.
    """

    release_id: str
    files: int
    parts: int
    bytes: int
    problems: tuple[str, ...]

    def require(self) -> None:
        """Raise IntegrityError with all problems, when there are any."""
        if self.problems:
            lines = "\n".join(f"  {problem}" for problem in self.problems)
            raise IntegrityError(
                f"release {self.release_id!r} is not whole; roll back to another one (`codebooks rollback`):\n{lines}"
            )


def verify_release(store: Store, release_id: str, *, expect_sha256: str | None = None) -> ReleaseCheck:
    """Read every file and part of a release and compare bytes, sha256 and rows with its manifest.

    Also checks that each row of items names a part of the manifest and a row inside it. Problems are returned, all of
    them; only a missing or unreadable manifest is raised (NotFound, IntegrityError, InputError).
    """
    manifest = read_manifest(store, release_id, expect_sha256=expect_sha256)
    problems: list[str] = []
    size = 0
    files = [*(entry for entries in manifest.files.values() for entry in entries), *manifest.bundle_files()]
    named: list[FileEntry | PartFile] = [*files, *manifest.parts]
    for entry in named:
        try:
            data = store.get(entry.name)
        except NotFound:
            problems.append(f"{entry.name} is missing")
            continue
        size += len(data)
        problems.extend(_file_problems(entry, data))
    if not problems:
        problems.extend(_reference_problems(store, manifest))
    return ReleaseCheck(release_id, len(files), len(manifest.parts), size, tuple(problems))


def _file_problems(entry: FileEntry | PartFile, data: bytes) -> Iterator[str]:
    if len(data) != entry.bytes:
        yield f"{entry.name} has {len(data):,} bytes, the manifest says {entry.bytes:,}"
    digest = digest_of(data)
    if digest != entry.sha256:
        yield f"{entry.name} has the sha256 {digest}, the manifest says {entry.sha256}"
    if entry.rows is None or not entry.name.endswith(".parquet"):
        return
    try:
        rows = pq.read_metadata(io.BytesIO(data)).num_rows
    except pa.ArrowInvalid as error:
        yield f"{entry.name} is not a readable Parquet file: {error}"
        return
    if rows != entry.rows:
        yield f"{entry.name} has {rows:,} rows, the manifest says {entry.rows:,}"


def _reference_problems(store: Store, manifest: Manifest) -> Iterator[str]:
    """Yield what is wrong between the rows of items and the parts they name; columnar, file by file."""
    if "items" not in manifest.files:
        yield "the manifest names no items file"
        return
    rows = {part.name: part.rows for part in manifest.parts}
    named: set[str] = set()
    for entry in manifest.files_of("items"):
        with store.open(entry.name) as handle:
            items = read_whole(handle, ["latents_part", "latents_row"], dictionaries=["latents_part"])
        codes, names = ranks(items["latents_part"])
        place = items["latents_row"].to_numpy()
        order = np.argsort(codes, kind="stable")
        starts = np.searchsorted(codes[order], np.arange(len(names)))
        first, last = (
            reduce.reduceat(place[order], starts) if len(names) else starts for reduce in (np.minimum, np.maximum)
        )
        for part, low, high in zip(names, first.tolist(), last.tolist(), strict=True):
            if part not in rows:
                yield f"items names the part {part}, which the manifest does not list"
            elif low < 0 or high >= rows[part]:
                yield f"items names the rows {low} to {high} of {part}, which has {rows[part]:,}"
        named.update(names)
    for name in sorted(rows.keys() - named):
        yield f"the manifest lists the part {name}, which items does not name"
