"""A release's tables in the forms that other tools read: one file each, and nothing in them is pickled."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from ..errors import ConfigError
from ..index.sids import SidTable


class Exported(Protocol):
    """What an export reads of an open release; `reader.Release` is one."""

    def item_ids(self) -> list[str]: ...
    def attributes(self, item_id: Any) -> dict[str, Any]: ...
    def sids(self) -> SidTable: ...
    def table(self, role: str) -> pa.Table: ...


def vector_matrix(release: Exported) -> np.ndarray:
    """Return the table `vectors` as float32 [items, d], items in the order of item_id."""
    column = release.table("vectors")["vector"]
    flat = [chunk.flatten().to_numpy() for chunk in column.chunks]
    width = column.type.list_size
    return np.concatenate([np.empty(0, np.float32), *flat]).reshape(-1, width)


def _npy(array: np.ndarray) -> Iterator[bytes]:
    sink = io.BytesIO()
    np.save(sink, array, allow_pickle=False)
    yield sink.getvalue()


def _item_ids(release: Exported) -> Iterator[bytes]:
    for item_id in release.item_ids():
        yield json.dumps(item_id, ensure_ascii=False).encode() + b"\n"


def _points(release: Exported) -> Iterator[bytes]:
    """Yield one JSON object a line, a point as Qdrant's `upsert` takes it; the key is in the payload."""
    matrix = vector_matrix(release)
    for number, item_id in enumerate(release.item_ids()):
        point = {
            "id": number,
            "vector": matrix[number].tolist(),
            "payload": {"item_id": item_id, **release.attributes(item_id)},
        }
        yield json.dumps(point, ensure_ascii=False, default=str).encode() + b"\n"


EXPORTS: Mapping[str, Callable[[Exported], Iterator[bytes]]] = {
    "item-ids": _item_ids,
    "vectors-npy": lambda release: _npy(vector_matrix(release)),
    "sids-npy": lambda release: _npy(release.sids().matrix()),
    "sids-sorted-npy": lambda release: _npy(release.sids().ordered()),
    "sids-json": lambda release: iter([release.sids().words(release.item_ids()).encode()]),
    "qdrant-jsonl": _points,
}


def export(release: Exported, form: str, path: Path) -> int:
    """Write one of EXPORTS to a file and return its bytes; the file is there whole or not at all.

    Raises ConfigError for a file that is there already, a folder that is not, or a table that the release has not.
    """
    if path.exists():
        raise ConfigError(f"{path} is there already; name another file, or delete it first")
    if not path.parent.is_dir():
        raise ConfigError(f"{path.parent} is no folder; make it first, or name another file")
    begun = path.with_name(path.name + ".part")
    size = 0
    try:
        with begun.open("xb") as file:
            for piece in EXPORTS[form](release):
                size += file.write(piece)
        begun.rename(path)
    except FileExistsError as error:
        raise ConfigError(f"{begun} is there: another export writes it, or was stopped; delete it first") from error
    except BaseException:
        begun.unlink(missing_ok=True)
        raise
    return size
