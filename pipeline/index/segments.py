"""Segments: write-once files of an index of up to `index.segment_rows` photos, which many releases share.

    indexes/<model_id>/<segment_key>.faiss   FAISS, row n is the nth photo of its key
    indexes/<model_id>/<segment_key>.npy     beside an index of codes, the exact features, row by row

The key names what was asked: the space (metric, kind, trained parts) and the latents, in order. Whoever writes a name
first decides, as with parts.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ..errors import IntegrityError
from ..keys import key_of
from ..ordering import as_numpy, ranks
from ..release import FileEntry, Manifest
from ..release.manifest import SEGMENTS
from ..schema import SEGMENT_PLACE
from ..storage import Store
from .config import IndexConfig
from .faiss_module import faiss_threads, load_faiss
from .features_file import SUFFIX, Source
from .filling import Filling, filling
from .fitted import Fitted
from .gather import gather_latents
from .kinds import KINDS, kinds_for
from .search import SearchIndex, open_index
from .segmented import SegmentedIndex

_PIECE = 32 << 20
_ADDED = 1 << 14  # rows added at a time
_AT_ONCE = 4  # segments that are fetched and opened at a time
TASK_BYTES = 600 << 20  # of a builder beside its own segment: its process, and one part of latents
MOST_BYTES = 4 << 30  # of a file of a segment: what one PUT takes, with some room
_ROWS = ("item_id", "latents_part", "latents_row")


@dataclass(frozen=True, slots=True)
class Segment:
    """One segment as a manifest lists it. features: the file beside an index of codes, None where there is none."""

    index: FileEntry
    features: FileEntry | None = None

    @property
    def rows(self) -> int:
        """How many rows it holds, dead ones among them."""
        return int(self.index.rows or 0)

    @property
    def size(self) -> int:
        """Bytes of its index file."""
        return self.index.bytes


def segments_of(manifest: Manifest) -> tuple[Segment, ...]:
    """Return the segments that a manifest lists, in its order. Raises IntegrityError where files lack their pair."""
    indexes = manifest.files_of("index")
    if "features" not in manifest.files:
        return tuple(Segment(entry) for entry in indexes)
    beside = manifest.files_of("features")
    if [entry.name.rpartition(".")[0] for entry in beside] != [entry.name.rpartition(".")[0] for entry in indexes]:
        raise IntegrityError(
            f"release {manifest.release_id} lists {len(beside)} files of features that are not those of its "
            f"{len(indexes)} segments; roll the channel back"
        )
    return tuple(Segment(*pair) for pair in zip(indexes, beside, strict=True))


def most_rows(width: int, config: IndexConfig) -> int:
    """Return how many rows of `width` features a segment has at most, by the config and by what one PUT takes."""
    names = kinds_for(config) if config.kind == "auto" else (config.kind,)
    widest = max(KINDS[name].row_bytes(width, config.segment_rows, config) for name in names)
    return max(1, min(config.segment_rows, int(MOST_BYTES / max(4.0 * width, widest))))


@dataclass(frozen=True, slots=True)
class SegmentTask:
    """One segment to write. rows: item_id, latents_part, latents_row of its photos, in the order of the segment;
    fitted: the space that it belongs to."""

    store: Store
    model_id: str
    rows: pa.Table
    fitted: Fitted
    config: IndexConfig

    @property
    def name(self) -> str:
        """The segment's name on the store, without suffix."""
        return f"{SEGMENTS}{self.model_id}/{self._key()}"

    def _key(self) -> str:
        codes, names = ranks(self.rows["latents_part"])
        asked = hashlib.sha256(codes.astype("<i8").tobytes())
        asked.update(as_numpy(self.rows["latents_row"]).astype("<i4").tobytes())
        return key_of([1, self.model_id, self.fitted.space, names, asked.hexdigest()])


def in_order_of_parts(items: pa.Table, rows: np.ndarray) -> np.ndarray:
    """Return rows of items so that each part of latents is read once, one after the other, when they are gathered."""
    codes, _ = ranks(items["latents_part"])
    places = as_numpy(items["latents_row"]).astype(np.int64)
    order: np.ndarray = rows[np.lexsort((places[rows], codes[rows]))]
    return order


def build_segment(task: SegmentTask) -> Segment:
    """Build a segment from the store's latents and write it; where it is there already, return that one.

    Held are the segment, as FAISS holds it, and one part of latents. Raises IntegrityError for parts that do not hold
    what items says.
    """
    kind, rows = KINDS[task.fitted.kind], task.rows.num_rows
    wanted = [task.name + suffix for suffix in (".faiss", *((SUFFIX,) if kind.lossy else ()))]
    if all(task.store.exists(name) for name in wanted):  # of an attempt that was broken off, or another run's
        return Segment(*(_found(task.store, name, rows) for name in wanted))
    with faiss_threads(task.config.threads), tempfile.TemporaryDirectory(prefix="segment-") as folder:
        index_path, features_path = Path(folder) / "index", Path(folder) / "features"
        _fill(task, index_path, features_path if kind.lossy else None)
        # The features first: where an index lies, so do they.
        beside = _kept(task.store, task.name + SUFFIX, features_path, rows) if kind.lossy else None
        return Segment(_kept(task.store, task.name + ".faiss", index_path, rows), beside)


def _fill(task: SegmentTask, index_path: Path, features_path: Path | None) -> None:
    faiss, metric, rows = load_faiss(), task.fitted.metric, task.rows
    filled: Filling | None = None
    with open(os.devnull if features_path is None else features_path, "wb") as beside:  # noqa: PTH123 - either
        for start, stop in _runs(rows["latents_part"]):
            latents = gather_latents(task.store, rows.slice(start, stop - start), columns=metric.needs, threads=1)
            features = task.fitted.features(latents)
            if filled is None:
                index = task.fitted.empty_index(features.shape[1], task.config)
                filled = filling(task.fitted.kind, index, metric, task.config)
                shape = (rows.num_rows, features.shape[1])
                if features_path is not None:
                    np.lib.format.write_array_header_1_0(
                        beside, {"descr": "<f4", "fortran_order": False, "shape": shape}
                    )
            for place in range(0, len(features), _ADDED):
                filled.add(features[place : place + _ADDED])
            if features_path is not None:
                beside.write(np.ascontiguousarray(features, "<f4").data)
    faiss.write_index(None if filled is None else filled.finished(), str(index_path))


def _runs(parts: pa.ChunkedArray) -> list[tuple[int, int]]:
    codes, _ = ranks(parts)
    edges = [0, *(np.flatnonzero(np.diff(codes)) + 1).tolist(), len(codes)]
    return list(pairwise(edges))


def _kept(store: Store, name: str, path: Path, rows: int) -> FileEntry:
    """Return the entry of a file that is on the store now: this one, or what another attempt wrote before."""
    with path.open("rb") as file, closing(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)) as held:
        digest = hashlib.sha256()
        with memoryview(held) as view:
            for start in range(0, len(view), _PIECE):
                digest.update(view[start : start + _PIECE])
            if store.put_if_absent(name, view):
                return FileEntry(name=name, bytes=len(view), sha256=digest.hexdigest(), rows=rows)
    return _found(store, name, rows)


def _found(store: Store, name: str, rows: int) -> FileEntry:
    size, digest = store.stat(name).size, hashlib.sha256()
    for start in range(0, size, _PIECE):
        digest.update(store.get(name, start=start, end=min(size, start + _PIECE)))
    return FileEntry(name=name, bytes=size, sha256=digest.hexdigest(), rows=rows)


def index_of(
    manifest: Manifest, fetch: Callable[[FileEntry], Source], columns: Callable[[Sequence[str]], pa.Table]
) -> SearchIndex:
    """Return a release's index: of one file, or of segments with the place in them that items gives each row.

    fetch: an entry -> its local path, which is mapped, or its bytes. columns: names -> these columns of items. Errors
    as `open_segments` and `open_index`.
    """
    if manifest.segmented:
        segments = segments_of(manifest)
        places = places_in(columns(SEGMENT_PLACE.names), segments, manifest.release_id)
        return open_segments(segments, fetch, manifest.metric, manifest.index_parameters, places)
    beside = fetch(manifest.file("features")) if "features" in manifest.files else None
    return open_index(
        fetch(manifest.file("index")), manifest.metric, features=beside, parameters=manifest.index_parameters
    )


def open_segments(
    segments: Sequence[Segment],
    fetch: Callable[[FileEntry], Source],
    metric: str,
    parameters: Mapping[str, Any],
    places: tuple[np.ndarray, np.ndarray],
) -> SegmentedIndex:
    """Return the index of some segments, each mapped; several are fetched at a time.

    fetch: as for `index_of`. parameters: as in the manifest; what was tuned is set on each segment. places: of
    each row of items its segment's number and the row in it. Raises IntegrityError for a segment of other rows than it
    is listed with, and what `open_index` raises.
    """

    def opened(segment: Segment) -> SearchIndex:
        beside = None if segment.features is None else fetch(segment.features)
        index = open_index(fetch(segment.index), metric, features=beside, parameters=parameters)
        if index.rows != segment.rows:
            raise IntegrityError(
                f"{segment.index.name} has {index.rows:,} rows, the manifest says {segment.rows:,}; roll the channel "
                "back"
            )
        return index

    with ThreadPoolExecutor(min(_AT_ONCE, len(segments)), thread_name_prefix="segments") as pool:
        found = list(pool.map(opened, segments))
    index = SegmentedIndex(found, *places)
    for name in ("nprobe", "ef_search"):
        if name in parameters:
            index.planner.set_effort(name, int(parameters[name]))
    return index


def places_in(items: pa.Table, segments: Sequence[Segment], release: str) -> tuple[np.ndarray, np.ndarray]:
    """Return of each row of items its segment's number and the row in it, both int32 [n].

    items: columns index_segment, index_row. Raises IntegrityError for a segment that the manifest does not list.
    """
    known = {segment.index.name: number for number, segment in enumerate(segments)}
    codes, names = ranks(items["index_segment"])
    strangers = [name for name in names if name not in known]
    if strangers or (len(codes) and codes.min() < 0):
        raise IntegrityError(
            f"items of {release} names the segment {strangers[0] if strangers else None!r}, its manifest does not; "
            "roll the channel back"
        )
    numbers = np.array([known[name] for name in names], np.int32)
    return numbers[codes] if len(names) else codes.astype(np.int32), as_numpy(items["index_row"]).astype(np.int32)
