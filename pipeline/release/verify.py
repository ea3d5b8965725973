"""Checking a release: every file and part that its manifest names, its bundle, tables beside it, byte for byte."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import ConfigError, IntegrityError, NotFound
from ..keys import digest_of
from ..ordering import ranks
from ..parts import PartFile, read_whole
from ..storage import Store
from .beside import listed_beside
from .manifest import FileEntry, Manifest, read_hashed_manifest
from .signatures import signed_problems
from .signing_keys import TrustedKey
from .weights import bundle_problems

_AT_ONCE = 4  # files that are read and hashed at a time


@dataclass(frozen=True, slots=True)
class ReleaseCheck:
    """What a check of a release found.

    files (those of the bundle and the tables beside the release too), parts, bytes: how many were read; problems: one
    sentence each; listed: files that were not read, only looked up.
    """

    release_id: str
    files: int
    parts: int
    bytes: int
    problems: tuple[str, ...]
    listed: int = 0

    def require(self) -> None:
        """Raise IntegrityError with all problems, when there are any."""
        if self.problems:
            lines = "\n".join(f"  {problem}" for problem in self.problems)
            raise IntegrityError(
                f"release {self.release_id!r} is not whole; roll back to another one (`codebooks rollback`):\n{lines}"
            )


def verify_release(
    store: Store,
    release_id: str,
    *,
    expect_sha256: str | None = None,
    trusted: Sequence[TrustedKey] = (),
    share: float = 1.0,
    seed: int = 0,
) -> ReleaseCheck:
    """Read every file and part of a release and compare bytes, sha256 and rows with its manifest.

    Also checks that each row of items names a part of the manifest and a row inside it (and a row of a segment which no
    other row names, where the index is made of segments), that the bundle's weights make the model_id, and the tables
    beside the release against the document that lists them. trusted: keys of which one at least must have signed the
    manifest. share: only so many of its files and parts, drawn by the seed, one at least; the others' presence and size
    are then looked up. Problems are returned, all of them; only a missing or unreadable manifest is raised (NotFound,
    IntegrityError, InputError).
    """
    manifest, digest = read_hashed_manifest(store, release_id, expect_sha256=expect_sha256)
    found = dict(listed_beside(store, release_id))
    files = [*(entry for entries in manifest.files.values() for entry in entries), *manifest.bundle_files()]
    files += [entry for entries in found.values() if not isinstance(entries, str) for entry in entries]
    named: list[FileEntry | PartFile] = [*files, *manifest.parts]
    chosen = _drawn(len(named), share, seed)
    problems = list(_listing_problems(store, [entry for entry, read in zip(named, chosen, strict=True) if not read]))
    size = 0
    read = [entry for entry, wanted in zip(named, chosen, strict=True) if wanted]
    # Several at once, since most of it is waiting; few, since each is held whole.
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for start in range(0, len(read), _AT_ONCE):
            for entry_size, wrong in pool.map(partial(_examined, store), read[start : start + _AT_ONCE]):
                size += entry_size
                problems.extend(wrong)
    problems.extend(said for said in found.values() if isinstance(said, str))
    if trusted:
        problems.extend(signed_problems(store, manifest, digest, trusted))
    if share >= 1.0:
        problems.extend(bundle_problems(store, manifest))
    if not problems and share >= 1.0:
        problems.extend(_reference_problems(store, manifest))
        problems.extend(_segment_problems(store, manifest) if manifest.segmented else ())
    examined = sum(chosen[: len(files)].tolist())
    return ReleaseCheck(release_id, examined, len(read) - examined, size, tuple(problems), len(named) - len(read))


def _drawn(count: int, share: float, seed: int) -> npt.NDArray[np.bool_]:
    """Return which of so many files are read."""
    if not 0.0 < share <= 1.0:
        raise ConfigError(f"the share to read is {share!r}; give one above 0 and at most 1, for example 0.05")
    chosen = np.zeros(count, np.bool_)
    chosen[np.random.default_rng(seed).permutation(count)[: max(1, math.ceil(share * count))]] = True
    return chosen


def _examined(store: Store, entry: FileEntry | PartFile) -> tuple[int, list[str]]:
    try:
        data = store.get(entry.name)
    except NotFound:
        return 0, [f"{entry.name} is missing"]
    return len(data), list(_file_problems(entry, data))


def _listing_problems(store: Store, entries: Sequence[FileEntry | PartFile]) -> Iterator[str]:
    """Yield what listings say of files that are not read."""
    folders = sorted({entry.name.rpartition("/")[0] + "/" for entry in entries})
    sizes = {found.name: found.size for folder in folders for found in store.list(folder)}
    for entry in entries:
        if entry.name not in sizes:
            yield f"{entry.name} is missing"
        elif sizes[entry.name] != entry.bytes:
            yield f"{entry.name} has {sizes[entry.name]:,} bytes, the manifest says {entry.bytes:,}"


def _file_problems(entry: FileEntry | PartFile, data: bytes) -> Iterator[str]:
    if len(data) != entry.bytes:
        yield f"{entry.name} has {len(data):,} bytes, the manifest says {entry.bytes:,}"
    digest = digest_of(data)
    if digest != entry.sha256:
        yield f"{entry.name} has the sha256 {digest}, the manifest says {entry.sha256}"
    # What is damaged is not opened: Arrow has no one error for it.
    if digest != entry.sha256 or entry.rows is None or not entry.name.endswith(".parquet"):
        return
    try:
        rows = pq.read_metadata(io.BytesIO(data)).num_rows
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # a damaged footer is any of them
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


def _segment_problems(store: Store, manifest: Manifest) -> Iterator[str]:
    """Yield what is wrong between the rows of items and the rows of segments that they name, each by one."""
    taken = {entry.name: np.zeros(entry.rows or 0, np.bool_) for entry in manifest.files_of("index")}
    for entry in manifest.files_of("items"):
        with store.open(entry.name) as handle:
            items = read_whole(handle, ["index_segment", "index_row"], dictionaries=["index_segment"])
        codes, names = ranks(items["index_segment"])
        rows = items["index_row"].to_numpy()
        for number, name in enumerate(names):
            mine = rows[codes == number]
            if name not in taken:
                yield f"items names the segment {name}, which the manifest does not list"
            elif mine.min() < 0 or mine.max() >= len(taken[name]):
                yield f"items names the rows {mine.min()} to {mine.max()} of {name}, which has {len(taken[name]):,}"
            elif len(np.unique(mine)) < len(mine) or taken[name][mine].any():
                yield f"two rows of items name one row of {name}"
            else:
                taken[name][mine] = True
    for name, rows_taken in sorted(taken.items()):
        if not rows_taken.any():
            yield f"the manifest lists the segment {name}, which items does not name"
