"""A release's item vectors in the files of libraries that are not installed with this one, written by themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ..errors import ConfigError
from .shown import Exported, shown_vectors, vector_matrix

_ROWS = 1 << 16  # of a batch


@dataclass(frozen=True, slots=True)
class Library:
    """module: what is imported when it is asked for; package: what is installed for it; write: of the module, the table
    `vectors`, how these compare (`cosine` or `l2`) and where to, a file or a folder."""

    module: str
    package: str
    write: Callable[[Any, pa.Table, str, Path], None]


def write_by_library(form: str, release: Exported, path: Path) -> None:
    """Write one of LIBRARIES' forms. Raises ConfigError without its library or the release's table `vectors`."""
    library = LIBRARIES[form]
    table = shown_vectors(release)  # what is not there is said before what is not installed
    try:
        module = import_module(library.module)
    except ImportError as error:
        raise ConfigError(
            f"the form {form} is written by the package {library.package}, which cannot be imported ({error}); run "
            f"`pip install {library.package}`, or take another form"
        ) from error
    library.write(module, table, "cosine" if release.manifest.metric == "cosine" else "l2", path)


def _lance(lance: Any, table: pa.Table, _: str, path: Path) -> None:
    """Write a Lance dataset, a folder, of the columns item_id and vector."""
    lance.write_dataset(table.replace_schema_metadata(None), str(path), mode="create")


def _hnswlib(hnswlib: Any, table: pa.Table, space: str, path: Path) -> None:
    """Write an index whose labels are the numbers of the items, from 0 in the order of item_id (`item-ids`)."""
    matrix = vector_matrix(table)
    index = hnswlib.Index(space=space, dim=matrix.shape[1])
    index.init_index(max_elements=max(1, len(matrix)), M=16, ef_construction=200, random_seed=0)
    for start in range(0, len(matrix), _ROWS):
        block = matrix[start : start + _ROWS]
        index.add_items(block, np.arange(start, start + len(block)))
    index.save_index(str(path))


def _tfrecord(tfrecord: Any, table: pa.Table, _: str, path: Path) -> None:
    """Write one `tf.train.Example` an item: item_id, bytes; vector, floats."""
    writer = tfrecord.TFRecordWriter(str(path))
    try:
        for batch in table.to_batches(max_chunksize=_ROWS):
            vectors = batch["vector"].flatten().to_numpy().reshape(len(batch), -1)
            for item_id, vector in zip(batch["item_id"].to_pylist(), vectors, strict=True):
                writer.write({"item_id": (item_id.encode(), "byte"), "vector": (vector, "float")})
    finally:
        writer.close()


LIBRARIES: Mapping[str, Library] = {
    "lance": Library("lance", "pylance", _lance),
    "hnswlib": Library("hnswlib", "hnswlib", _hnswlib),
    "tfrecord": Library("tfrecord.writer", "tfrecord", _tfrecord),
}
