"""Small releases on a store, written as a refresh writes them, and the brute force that their answers are held to.

Loaded by `conftest.py`; the fixture `maker` is this module.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.images import ImagesConfig
from pipeline.index import IndexConfig, LatentArrays, build_index, gather_latents
from pipeline.keys import digest_of
from pipeline.parts import PartFile, latents_part_name, write_part
from pipeline.reader import Neighbour
from pipeline.release import FileEntry, publish, read_head, write_release
from pipeline.schema import changes_schema, items_schema, latents_schema, quarantine_schema
from pipeline.storage import Store

MODEL, DIM = "ab" * 32, 6
ATTRIBUTES = [pa.field("category", pa.string()), pa.field("price", pa.float64()), pa.field("stock", pa.int64())]
PART_ROWS = 50


@dataclass(frozen=True)
class Photo:
    item_id: str
    uri: str
    view: int
    mean: np.ndarray
    category: str | None = "Shoes"
    price: float | None = 1.0
    stock: int | None = 1
    codes: np.ndarray | None = None
    log_var: np.ndarray | None = None


@dataclass(frozen=True)
class Made:
    """What a test wrote: the photos in items order, and the release's id."""

    photos: list[Photo]
    release_id: str

    def means(self, item_id: str) -> np.ndarray:
        return np.stack([photo.mean for photo in self.photos if photo.item_id == item_id]).astype(np.float64)


def some_photos(items: int, *, seed: int = 0, most: int = 4) -> list[Photo]:
    """Return photos of items sku-000, sku-001, ..., one to `most` each, with attributes that are sometimes null."""
    generator = np.random.default_rng(seed)
    photos = []
    for number in range(items):
        category = ["Shoes", "Hats", None, "Bags"][generator.integers(4)]
        price = None if number % 7 == 0 else float(generator.integers(1, 50))
        centre, stock = generator.normal(size=DIM), int(generator.integers(5))
        for view in range(generator.integers(1, most + 1)):
            mean = (centre + generator.normal(0, 0.7, DIM)).astype(np.float32)
            uri = f"s3://photos/{number}/{view}.jpg"
            photos.append(Photo(f"sku-{number:03d}", uri, view, mean, category, price, stock))
    return photos


def make_release(
    store: Store,
    photos: Sequence[Photo],
    *,
    run: str = "night",
    index: IndexConfig | None = None,
    refused: Sequence[tuple[str, str, str, str]] = (),
    removed: Sequence[str] = (),
    channel: str = "stable",
    change: Callable[[dict[str, Any]], dict[str, Any]] = lambda fields: fields,
    **fields: Any,
) -> Made:
    """Write parts, items and the rest of a release, and publish it.

    refused: (item_id, uri, stage, reason) of photos in quarantine; removed: item_ids. fields: of the manifest, and
    `change` may alter whatever is handed to `write_release`.
    """
    config = index or IndexConfig()
    photos = sorted(photos, key=lambda photo: (photo.item_id, photo.view))
    model = fields.get("model_id", MODEL)
    parts = write_parts(store, photos, model, run)
    items = items_table(photos, [part.name for part in parts])
    nothing = np.empty((0, DIM), np.float32)
    latents = gather_latents(store, items, columns=config.needs) if photos else LatentArrays(nothing, nothing)
    built = build_index(latents, config)
    quarantine, changes = quarantine_table(refused, run), changes_table(removed)
    given: dict[str, Any] = {
        "release_id": f"{run}-0123456789ab",
        "files": {
            "items": (table_bytes(items), ".parquet", items.num_rows),
            "quarantine": (table_bytes(quarantine), ".parquet", quarantine.num_rows),
            "changes": (table_bytes(changes), ".parquet", changes.num_rows),
            **built.files(),
        },
        "release_key": "0123456789ab" + "0" * 52,
        "run": run,
        "attempt": 1,
        "parent": None,
        "model_id": model,
        "model_kind": "vae",
        "latent_dim": DIM,
        "transform_id": "cd" * 8,
        "metric": built.index.metric.name,
        "index_kind": built.kind,
        "index_parameters": built.parameters,
        "parts": tuple(parts),
        "code_version": "test",
        **fields,
    }
    written = write_release(store, **change(given))
    head = read_head(store, channel)
    publish(
        store,
        channel,
        expected_head=0 if head is None else head.number,
        release_id=written.manifest.release_id,
        manifest_sha256=written.manifest_sha256,
        run=run,
        attempt=1,
    )
    return Made(list(photos), written.manifest.release_id)


PHOTO_SIZE = 8


def projection(dim: int) -> np.ndarray:
    return np.random.default_rng(3).normal(size=(3 * PHOTO_SIZE * PHOTO_SIZE, dim)).astype(np.float32)


def write_encoder(store: Store, model_id: str, dim: int) -> None:
    """Write a bundle whose encoder is one matrix over the pixels; `mean` is its second output."""
    import onnx

    helper, kinds = onnx.helper, onnx.TensorProto
    weights = onnx.numpy_helper.from_array(projection(dim), "weights")
    shape = onnx.numpy_helper.from_array(np.array([-1, 3 * PHOTO_SIZE * PHOTO_SIZE]), "shape")
    nodes = [
        helper.make_node("Cast", ["images"], ["float"], to=kinds.FLOAT),
        helper.make_node("Reshape", ["float", "shape"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["mean"]),
        helper.make_node("Neg", ["mean"], ["log_var"]),
    ]
    images = helper.make_tensor_value_info("images", kinds.UINT8, ["batch", 3, PHOTO_SIZE, PHOTO_SIZE])
    outputs = [helper.make_tensor_value_info(name, kinds.FLOAT, ["batch", dim]) for name in ("log_var", "mean")]
    graph = helper.make_graph(nodes, "encoder", [images], outputs, [weights, shape])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    store.put_if_absent(f"models/{model_id}/encoder.onnx", model.SerializeToString())
    config = {"images": ImagesConfig(size=PHOTO_SIZE, fit="crop").model_dump(mode="json"), "model": {"kind": "vae"}}
    store.put_if_absent(f"models/{model_id}/config.json", json.dumps(config).encode())


def listed(store: Store, model_id: str) -> dict[str, FileEntry]:
    """Return the manifest's fields for a bundle that was written by `write_encoder`."""
    names = {"encoder": f"models/{model_id}/encoder.onnx", "bundle_config": f"models/{model_id}/config.json"}
    data = {field: store.get(name) for field, name in names.items()}
    return {
        field: FileEntry(name=name, bytes=len(data[field]), sha256=digest_of(data[field]))
        for field, name in names.items()
    }


def picture() -> bytes:
    from PIL import Image

    pixels = np.random.default_rng(4).integers(0, 255, (20, 30, 3), np.uint8)
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG")
    return sink.getvalue()


VQ_CODES, VQ_SIDE, STRANGE = 16, 4, "sku-odd"


def vq_photos(items: int = 400) -> list[Photo]:
    """Return one photo an item: code 0 around one code inside, of 1..4 on shoes and 5..8 on hats; and one unlike all.

    The last one, of the item STRANGE, has every code once. What the others' 4 x 4 codes say is log 8 nats a photo.
    """
    rng = np.random.default_rng(0)
    photos = []
    for number in range(items):
        shoe = number % 2 == 1
        codes = np.zeros((VQ_SIDE, VQ_SIDE), np.int64)
        codes[1:3] = rng.integers(1, 5) + (0 if shoe else 4)
        mean, category = rng.normal(size=DIM).astype(np.float32), "Shoes" if shoe else "Hats"
        photos.append(
            Photo(f"sku-{number:03d}", f"s3://photos/{number}.jpg", 0, mean, category, codes=codes.reshape(-1))
        )
    strange = rng.permutation(VQ_CODES)
    return [*photos, Photo(STRANGE, "s3://photos/odd.jpg", 0, photos[0].mean, "Shoes", codes=strange)]


def make_vq_release(store: Store, index: IndexConfig | None = None) -> Made:
    """Publish a release of `vq_photos` on `stable`, with the bundle of a VQ model of photos of 16 x 16 pixels."""
    import torch

    from pipeline.models import build_model, save_bundle
    from pipeline.models.quantizers import EMAConfig
    from pipeline.models.vqvae import VQVAEConfig

    config = VQVAEConfig(channels=(8, 8), quantizer=EMAConfig(num_codes=VQ_CODES, code_dim=4))
    torch.manual_seed(0)
    model = build_model(config, image_size=16)
    model_id = save_bundle(store, model, config, {"size": 16}, train_key="0" * 64, card={})
    return make_release(store, vq_photos(), run="vq", index=index, model_id=model_id, model_kind="vqvae")


def write_parts(store: Store, photos: Sequence[Photo], model: str, run: str) -> list[PartFile]:
    parts = []
    for start in range(0, len(photos), PART_ROWS):
        chunk = photos[start : start + PART_ROWS]
        columns = {
            "item_id": [photo.item_id for photo in chunk],
            "uri": [photo.uri for photo in chunk],
            "token": [f"etag:{photo.uri}" for photo in chunk],
            "digest": ["0" * 64] * len(chunk),
            "pixels_row": list(range(len(chunk))),
            "mean": [photo.mean.tolist() for photo in chunk],
        }
        sure = chunk[0].log_var is not None
        if sure:
            columns["log_var"] = [photo.log_var.tolist() for photo in chunk]
        cells = 0 if chunk[0].codes is None else len(chunk[0].codes)
        if cells:
            columns["codes"] = [photo.codes.tolist() for photo in chunk]
        table = pa.table(columns, latents_schema(len(chunk[0].mean), log_var=sure, num_codes=cells))
        parts.append(write_part(store, latents_part_name(model, f"{run}-{start}"), table, f"{run}-{start}"))
    return parts


def items_table(photos: Sequence[Photo], parts: Sequence[str]) -> pa.Table:
    return pa.table(
        {
            "item_id": [photo.item_id for photo in photos],
            "uri": [photo.uri for photo in photos],
            "view": [photo.view for photo in photos],
            "token": [f"etag:{photo.uri}" for photo in photos],
            "digest": ["0" * 64] * len(photos),
            "latents_part": [parts[row // PART_ROWS] for row in range(len(photos))],
            "latents_row": [row % PART_ROWS for row in range(len(photos))],
            "pixels_part": [None] * len(photos),
            "pixels_row": [None] * len(photos),
            **{field.name: [getattr(photo, field.name) for photo in photos] for field in ATTRIBUTES},
        },
        items_schema(ATTRIBUTES),
    )


def quarantine_table(refused: Sequence[tuple[str, str, str, str]], run: str) -> pa.Table:
    names = ("item_id", "uri", "stage", "reason")
    columns: dict[str, list[Any]] = {name: [row[at] for row in refused] for at, name in enumerate(names)}
    columns |= {
        "token": ["t"] * len(refused),
        "detail": ["a sentence"] * len(refused),
        "first_seen": [run] * len(refused),
    }
    schema = quarantine_schema()
    return pa.table({name: columns[name] for name in schema.names}, schema)


def changes_table(removed: Sequence[str]) -> pa.Table:
    uris = [f"u/{item_id}" for item_id in removed]
    return pa.table({"item_id": list(removed), "uri": uris, "change": ["removed"] * len(removed)}, changes_schema())


def table_bytes(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def pair_scores(metric: str, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    if metric == "l2":
        return -np.linalg.norm(left[:, None] - right[None], axis=-1)
    unit = [side / np.linalg.norm(side, axis=1, keepdims=True) for side in (left, right)]
    return unit[0] @ unit[1].T


def brute_force(
    made: Made,
    metric: str,
    query: np.ndarray,
    k: int,
    *,
    left_out: Sequence[str] = (),
    keep: Callable[[Photo], bool] = lambda photo: True,
) -> list[tuple[str, float]]:
    """Return (item_id, score) of the k nearest: best pair of photos per item, ties by item_id; from the definition."""
    first: dict[str, Photo] = {}
    for photo in made.photos:
        first.setdefault(photo.item_id, photo)
    scores = {
        item_id: float(pair_scores(metric, query, made.means(item_id)).max())
        for item_id, photo in first.items()
        if item_id not in left_out and keep(photo)
    }
    return sorted(scores.items(), key=lambda pair: (-round(pair[1], 7), pair[0]))[:k]


def check(answer: Sequence[Neighbour], expected: Sequence[tuple[str, float]]) -> None:
    """Assert that an answer names these items in this order, with these scores."""
    assert [near.item_id for near in answer] == [item_id for item_id, _ in expected]
    np.testing.assert_allclose([near.score for near in answer], [score for _, score in expected], atol=1e-6)
