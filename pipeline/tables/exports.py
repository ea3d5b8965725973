"""A release's tables in the forms that other tools read, of the items that it shows; nothing in them is pickled."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from ..errors import ConfigError
from .library_exports import LIBRARIES, write_by_library
from .shown import Exported, shown_vectors, vector_matrix


def _npy(array: np.ndarray) -> Iterator[bytes]:
    sink = io.BytesIO()
    np.save(sink, array, allow_pickle=False)
    yield sink.getvalue()


def _item_ids(release: Exported) -> Iterator[bytes]:
    for item_id in release.item_ids():
        yield json.dumps(item_id, ensure_ascii=False).encode() + b"\n"


def _points(release: Exported) -> Iterator[bytes]:
    """Yield one JSON object a line, a point as Qdrant's `upsert` takes it; the key is in the payload."""
    matrix = vector_matrix(shown_vectors(release))
    for number, item_id in enumerate(release.item_ids()):
        point = {
            "id": number,
            "vector": matrix[number].tolist(),
            "payload": {"item_id": item_id, **release.attributes(item_id)},
        }
        yield json.dumps(point, ensure_ascii=False, default=str).encode() + b"\n"


def _matrix(release: Exported) -> Iterator[bytes]:
    sids = release.sids()
    return _npy(sids.matrix(sids.numbers(release.item_ids())))


def _ordered(release: Exported) -> Iterator[bytes]:
    sids = release.sids()
    return _npy(sids.ordered(sids.numbers(release.item_ids())))


EXPORTS: Mapping[str, Callable[[Exported], Iterator[bytes]]] = {
    "item-ids": _item_ids,
    "vectors-npy": lambda release: _npy(vector_matrix(shown_vectors(release))),
    "sids-npy": _matrix,
    "sids-sorted-npy": _ordered,
    "sids-json": lambda release: iter([release.sids().words(release.item_ids()).encode()]),
    "qdrant-jsonl": _points,
}

FORMS = (*EXPORTS, *LIBRARIES)


def export(release: Exported, form: str, path: Path) -> int:
    """Write one of FORMS to a file, for `lance` a folder, and return its bytes; it is there whole or not at all.

    Raises ConfigError for a file that is there already, a folder that is not, a table that the release has not or a
    library that is not installed.
    """
    if path.exists():
        raise ConfigError(f"{path} is there already; name another file, or delete it first")
    if not path.parent.is_dir():
        raise ConfigError(f"{path.parent} is no folder; make it first, or name another file")
    begun = path.with_name(path.name + ".part")
    if begun.exists():
        raise ConfigError(f"{begun} is there: another export writes it, or was stopped; delete it first")
    try:
        if form in LIBRARIES:
            write_by_library(form, release, begun)
        else:
            with begun.open("xb") as file:
                for piece in EXPORTS[form](release):
                    file.write(piece)
        begun.rename(path)
    except FileExistsError as error:
        raise ConfigError(f"{begun} is there: another export writes it; wait for it, or name another file") from error
    except BaseException:
        _delete(begun)
        raise
    return sum(file.stat().st_size for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file())


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
