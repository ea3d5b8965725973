"""Models that are told the photos' categories: from the bundle and its ONNX file to shards, keys and latents parts."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pytest
import torch
from PIL import Image

from pipeline.catalogue import compare
from pipeline.encoding import Encoder, PhotoDecoder, ShardWorker, assign_shards, build_shards, compact, split_done
from pipeline.errors import CodebooksError, InputError, PhotoRefused
from pipeline.images import ImagesConfig
from pipeline.index.photo import _FIRST, _NONE, _UNKNOWN
from pipeline.models import Bundle, Model, build_model, export, load_bundle, save_bundle
from pipeline.models.conditions import FIRST_CATEGORY, NO_CATEGORY, UNKNOWN_CATEGORY, condition_of
from pipeline.models.cvae import CVAEConfig
from pipeline.models.reconstruct import reconstruct
from pipeline.parts import PartFile, part_key, read_part, write_part
from pipeline.schema import PHOTOS, items_schema, latents_schema, plan_schema
from pipeline.storage import Store, open_store

SIZE = 16
TRANSFORM = "0123456789abcdef"
CONFIG = CVAEConfig(latent_dim=4, channels=(4, 8), condition_dim=6)
LABELS = ("Bags", "Hats", "Shoes")
CATEGORIES = ["Hats", None, "Shoes", "Scarves", "Bags", "Hats", None]
ROWS = [3, 0, 4, 1, 2, 3, 0]  # none is row 0, `Scarves` has no label and is row 1


def loud(labels: tuple[str, ...] = LABELS) -> Model:
    """A model whose latents depend much on the category: as it starts, an embedding's effect is small."""
    torch.manual_seed(0)
    model = build_model(CONFIG, image_size=SIZE, labels=labels).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    return model


@pytest.fixture(scope="module")
def bundle() -> tuple[Store, Bundle, Model]:
    store, model = open_store("memory://conditions-bundle"), loud()
    model_id = save_bundle(store, model, CONFIG, {"size": SIZE}, train_key="ab" * 32, card={}, labels=LABELS)
    return store, load_bundle(store, model_id), model


@pytest.fixture
def store(request: pytest.FixtureRequest) -> Store:
    return open_store(f"memory://conditions-{request.node.name}")


def pixels(count: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, SIZE, SIZE, 3), np.uint8)


def means(model: Model, photos: np.ndarray, rows: list[int] | None) -> np.ndarray:
    """The oracle: one photo at a time."""
    found = []
    for number, photo in enumerate(photos):
        image = torch.from_numpy(photo).permute(2, 0, 1)[None].contiguous()
        condition = None if rows is None else torch.tensor([rows[number]])
        with torch.inference_mode():
            found.append(model.encode(image, condition).mean[0].numpy())
    return np.stack(found)


def test_rows_of_the_table_are_the_same_with_and_without_torch() -> None:
    assert condition_of(LABELS, CATEGORIES).tolist() == ROWS
    assert (_NONE, _UNKNOWN, _FIRST) == (NO_CATEGORY, UNKNOWN_CATEGORY, FIRST_CATEGORY)


@pytest.mark.slow
def test_a_bundle_keeps_its_labels(bundle: tuple[Store, Bundle, Model]) -> None:
    store, loaded, model = bundle
    assert loaded.labels == loaded.model.labels == LABELS
    facts = json.loads(store.get(f"models/{loaded.model_id}/config.json"))
    assert facts["labels"] == list(LABELS)
    np.testing.assert_array_equal(means(loaded.model, pixels(7), ROWS), means(model, pixels(7), ROWS))
    card = store.get(f"models/{loaded.model_id}/card.md").decode()
    assert "| 4 | Shoes |" in card
    assert "without labels" not in card


def test_the_order_of_labels_is_part_of_the_models_id(monkeypatch: pytest.MonkeyPatch, store: Store) -> None:
    monkeypatch.setattr("pipeline.models.bundle.export_encoder", lambda model, **_: b"an encoder")
    ids = {
        save_bundle(store, loud(labels), CONFIG, {"size": SIZE}, train_key=key * 64, card={}, labels=labels)
        for key, labels in (("a", LABELS), ("b", LABELS[::-1]), ("c", LABELS))
    }
    assert len(ids) == 2


def test_a_conditional_bundle_without_labels_is_refused(monkeypatch: pytest.MonkeyPatch, store: Store) -> None:
    monkeypatch.setattr("pipeline.models.bundle.export_encoder", lambda model, **_: b"an encoder")
    monkeypatch.setattr("pipeline.models.shelves.content_id", lambda config, tensors: "m")
    save_bundle(store, loud(), CONFIG, {"size": SIZE}, train_key="a" * 64, card={}, labels=LABELS)
    facts = json.loads(store.get("models/m/config.json"))
    for labels in (None, "Bags", [1, 2, 3]):
        store.put("models/m/config.json", json.dumps({**facts, "labels": labels}).encode())
        with pytest.raises(InputError, match="without its list of labels"):
            load_bundle(store, "m")


@pytest.mark.slow
def test_the_onnx_encoder_takes_conditions(bundle: tuple[Store, Bundle, Model]) -> None:
    store, loaded, model = bundle
    data = store.get(f"models/{loaded.model_id}/encoder.onnx")
    proto = onnx.load_from_string(data)
    onnx.checker.check_model(proto)
    assert [value.name for value in proto.graph.input] == ["images", "condition"]
    assert proto.graph.input[1].type.tensor_type.elem_type == onnx.TensorProto.INT64
    for count in (1, 7):
        photos = pixels(count)
        for rows in ([0] * count, [1] * count, [2] * count, ROWS[:count]):
            given = np.ascontiguousarray(photos.transpose(0, 3, 1, 2))
            found = export.run_encoder(data, given, np.array(rows, np.int64))["mean"]
            np.testing.assert_allclose(found, means(model, photos, rows), atol=1e-4, rtol=1e-4)
    # Negative control: what the comparison would miss if the file ignored its second input.
    apart = means(model, pixels(7), ROWS) - means(model, pixels(7), None)
    assert np.abs(apart).max() > 0.1


@pytest.mark.slow
def test_an_export_that_ignores_the_condition_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    right = export.run_encoder

    def deaf(data: bytes, images: np.ndarray, condition: np.ndarray) -> dict[str, np.ndarray]:
        return right(data, images, np.zeros_like(condition))

    monkeypatch.setattr(export, "run_encoder", deaf)
    with pytest.raises(CodebooksError, match="differs from torch"):
        export.export_encoder(loud(), conditional=True)


def test_the_encoder_tells_each_photo_its_own_category() -> None:
    """Five batches of three with a padded last one, and rows in another order than the pixels."""
    model, photos = loud(), pixels(20)
    rows = np.random.default_rng(2).permutation(20)[:13]
    condition = np.random.default_rng(3).integers(0, 5, 13)
    encoder = Encoder(model, batch_size=3)
    expected = means(model, photos[rows], condition.tolist())
    np.testing.assert_allclose(encoder(photos, rows, condition).mean, expected, atol=1e-5)
    # Negative control: categories by the pixels' rows instead of the asked ones.
    wrong = means(model, photos[rows], np.resize(condition, 20)[rows].tolist())
    assert np.abs(wrong - expected).max() > 0.1
    np.testing.assert_allclose(encoder(photos, rows).mean, means(model, photos[rows], None), atol=1e-5)


def test_reconstructions_are_told_the_categories() -> None:
    model, photos = loud(), pixels(7)
    told, none = reconstruct(model, photos, CATEGORIES), reconstruct(model, photos)
    assert told.shape == photos.shape
    for row, category in enumerate(CATEGORIES):
        alone = reconstruct(model, photos[row : row + 1], [category])[0]
        assert np.abs(alone.astype(int) - told[row]).max() <= 1
        assert (np.abs(told[row].astype(int) - none[row]).max() <= 1) == (category is None)


def make_plan(categories: list[Any], kind: pa.DataType | None = None, **columns: list[Any]) -> pa.Table:
    """A plan of added photos whose column `department` is told to the model."""
    count = len(categories)
    given = {
        "item_id": [f"i{n}" for n in range(count)], "uri": [f"u{n}" for n in range(count)], "view": [0] * count,
        "token": [f"t{n}" for n in range(count)], "status": ["added"] * count, "retried": [False] * count,
        "department": categories, **columns,
    }  # fmt: skip
    schema = plan_schema([pa.field("department", kind or pa.string())])
    arrays = [pa.array(given.get(field.name, [None] * count), field.type) for field in schema]
    return assign_shards(pa.Table.from_arrays(arrays, schema=schema), image_size=SIZE, transform_id=TRANSFORM)


def build(plan: pa.Table, *, category: str | None = "department", model_id: str | None = "m1") -> list[Any]:
    return build_shards(plan, transform_id=TRANSFORM, model_id=model_id, precision="fp32", category=category)


def test_categories_are_in_the_latents_keys_and_in_no_others() -> None:
    (told,), (plain,) = build(make_plan(CATEGORIES)), build(make_plan(CATEGORIES), category=None)
    assert told.photos["category"].to_pylist() == CATEGORIES
    assert "category" not in plain.photos.column_names
    assert told.pixels_key == plain.pixels_key
    assert told.latents_key != plain.latents_key
    keys = {told.latents_key, plain.latents_key}
    for row in range(7):
        for other in (None, "Gloves", "") if CATEGORIES[row] else ("Gloves", "None", ""):
            changed = [*CATEGORIES[:row], other, *CATEGORIES[row + 1 :]]
            (shard,) = build(make_plan(changed))
            assert shard.pixels_key == plain.pixels_key
            keys.add(shard.latents_key)
    assert len(keys) == 2 + 7 * 3
    (pixels_only,) = build(make_plan(CATEGORIES), model_id=None)
    assert "category" not in pixels_only.photos.column_names


def test_keys_without_labels_are_what_they_were() -> None:
    photos = pa.table({"item_id": ["a"], "uri": ["u"], "token": ["t"]})
    plain = part_key(1, "m", "fp32", photos, pixels_part="p")
    assert plain == part_key(1, "m", "fp32", photos, pixels_part="p", labels=None)
    assert plain == hashlib.sha256(b'[1,"m","fp32","",[["a","u","t"]],"p"]').hexdigest()
    others = [[None], ["p"], [""]]
    assert len({plain, *(part_key(1, "m", "fp32", photos, pixels_part="p", labels=told) for told in others)}) == 4


@pytest.mark.parametrize(
    ("values", "kind", "texts"),
    [
        ([3, None, 12], pa.int64(), ["3", None, "12"]),
        ([2.5, None, 3.0], pa.float64(), ["2.5", None, "3"]),
        ([True, False, None], pa.bool_(), ["true", "false", None]),
        (["a", None, "b"], pa.large_string(), ["a", None, "b"]),
    ],
)
def test_categories_of_any_type_are_texts(values: list[Any], kind: pa.DataType, texts: list[str | None]) -> None:
    (shard,) = build(make_plan(values, kind))
    assert shard.photos["category"].to_pylist() == texts
    assert shard.photos.schema.field("category").type == pa.string()


def png(photo: np.ndarray) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(photo).save(sink, "PNG")
    return sink.getvalue()


class MemoryReader:
    def __init__(self, photos: dict[str, bytes]) -> None:
        self.photos = photos
        self.asked: list[str] = []

    def read(self, photos: pa.Table) -> list[bytes | PhotoRefused]:
        uris = photos["uri"].to_pylist()
        self.asked += uris
        return [self.photos.get(uri, PhotoRefused("fetch", "missing", "no such object")) for uri in uris]


def worker_of(store: Store, model: Model, photos: np.ndarray, broken: tuple[int, ...] = ()) -> ShardWorker:
    data = {f"u{n}": b"no picture" if n in broken else png(photo) for n, photo in enumerate(photos)}
    decoder = PhotoDecoder(MemoryReader(data), ImagesConfig(size=SIZE))
    return ShardWorker(store, decoder, Encoder(model, batch_size=4))


def held(store: Store, name: str) -> dict[str, list[float]]:
    table = read_part(store, name)
    return dict(zip(table["uri"].to_pylist(), table["mean"].to_pylist(), strict=True))


def test_a_worker_tells_each_photo_its_category_past_refused_ones_and_from_kept_pixels(store: Store) -> None:
    model, photos = loud(), pixels(7)
    (shard,) = build(make_plan(CATEGORIES))
    worker_of(store, model, photos, broken=(0, 3))(shard)
    expected = means(model, photos, ROWS)
    found = held(store, shard.latents_name)
    assert sorted(found) == ["u1", "u2", "u4", "u5", "u6"]
    for uri, mean in found.items():
        np.testing.assert_allclose(mean, expected[int(uri[1:])], atol=1e-5)

    # Two photos got other categories: their latents are cleared, and they alone are encoded, from their pixels.
    carried = {
        "item_id": ["i2", "i5", "i6"], "uri": ["u2", "u5", "u6"], "token": ["t2", "t5", "t6"], "status": ["same"] * 3,
        "latents_part": [None, shard.latents_name, None], "latents_row": [None, 3, None],
        "pixels_part": [shard.pixels_name] * 3, "pixels_row": [2, 5, 6],
    }  # fmt: skip
    plan = make_plan(["Bags", "Hats", "Gloves"], **carried)
    assert plan["shard"].to_pylist() == [0, None, 0]
    (again,) = build(plan)
    assert again.from_pixels == shard.pixels_name
    idle = worker_of(store, model, photos)
    result = idle(again)
    assert idle.decoder.reader.asked == []  # type: ignore[attr-defined]
    assert (result.fetched, result.photos, result.pixels) == (0, 2, None)
    found = held(store, again.latents_name)
    np.testing.assert_allclose(found["u2"], means(model, photos[2:3], [2])[0], atol=1e-5)
    np.testing.assert_allclose(found["u6"], means(model, photos[6:7], [1])[0], atol=1e-5)
    assert np.abs(np.array(found["u2"]) - expected[2]).max() > 0.01
    # What the first shard wrote does not answer for the new categories, and the new part does.
    assert split_done([again], store)[1] == []
    (third,) = build(make_plan(["Shoes", "Hats", None], **carried))
    assert split_done([third], store)[1] == [third]


def test_compacted_parts_of_other_categories_have_other_keys(store: Store) -> None:
    """The same photos, relabelled, encoded again and compacted again: the first night's part must not answer."""

    def night(number: int, category: str) -> tuple[pa.Table, dict[str, PartFile]]:
        rows = [{"item_id": f"i{n}", "uri": f"u{n}", "token": "t", "digest": "d", "pixels_row": n} for n in range(4)]
        latents = [{**row, "mean": [float(number)]} for row in rows]
        table = pa.Table.from_pylist(latents, schema=latents_schema(1, log_var=False))
        part = write_part(store, f"latents/m/night{number}.parquet", table, f"night{number}")
        living = [
            {**row, "view": 0, "latents_part": part.name, "latents_row": n, "pixels_part": "p", "department": category}
            for n, row in enumerate(rows[:2])
        ]
        schema = items_schema([pa.field("department", pa.string())])
        return pa.Table.from_pylist(living, schema=schema), {part.name: part}

    def compacted(number: int, category: str, told: str | None) -> float:
        items, parts = night(number, category)
        rules: dict[str, Any] = {"model_id": "m", "precision": "fp32", "below": 0.7, "max_parts": 9}
        after, made = compact(store, items, parts, **rules, category=told)
        assert len(made) == 1
        return float(read_part(store, after["latents_part"][0].as_py())["mean"][0].as_py()[0])

    assert [compacted(1, "Hats", "department"), compacted(2, "Bags", "department")] == [1.0, 2.0]
    # Negative control: without the categories in the key, the second night gets the first night's latents.
    assert [compacted(3, "Hats", None), compacted(4, "Bags", None)] == [3.0, 3.0]


def test_a_bundle_folder_is_all_that_travels(bundle: tuple[Store, Bundle, Model], tmp_path: Path) -> None:
    """Copied to another store, the bundle loads with its labels: nothing else says what the rows mean."""
    store, loaded, model = bundle
    other = open_store(str(tmp_path))
    for file in ("config.json", "weights.safetensors"):
        other.put(f"models/{loaded.model_id}/{file}", store.get(f"models/{loaded.model_id}/{file}"))
    again = load_bundle(other, loaded.model_id)
    condition = condition_of(again.labels, CATEGORIES)
    np.testing.assert_array_equal(means(again.model, pixels(7), condition.tolist()), means(model, pixels(7), ROWS))


@pytest.mark.parametrize(
    ("before", "now", "stale"),
    [
        (pa.array(["a", "b", None, None, "a"]), pa.array(["a", "a", None, "b", None]), [1, 3, 4]),
        (pa.array([3, 4, None, 5, 6]), pa.array(["3", "5", None, "5", "06"]), [1, 4]),  # another type, the same texts
        (pa.array([1.0, 2.5, None, 4.0, 5.0]), pa.array([1, 2, None, 4, 5]), [1]),
        (None, pa.array(["a", "b", None, "c", "d"]), [0, 1, 3, 4]),
    ],
)
def test_carried_latents_are_kept_while_the_told_text_is_the_same(
    before: pa.Array | None, now: pa.Array, stale: list[int]
) -> None:
    places: dict[str, Any] = {
        "item_id": [f"i{n}" for n in range(5)], "uri": [f"u{n}" for n in range(5)], "view": [0] * 5,
        "token": ["t0", "t1", "t2", "t3", "t4"], "digest": ["d"] * 5, "latents_part": ["l"] * 5,
        "latents_row": list(range(5)), "pixels_part": ["p"] * 5, "pixels_row": list(range(5)),
    }  # fmt: skip
    attributes = [] if before is None else [pa.field("department", before.type)]
    parent = pa.Table.from_pydict(
        {**places, **({"department": before} if attributes else {})}, items_schema(attributes)
    )
    photos = pa.Table.from_arrays(
        [pa.array(places[name]) if name in places else pa.nulls(5, PHOTOS.field(name).type) for name in PHOTOS.names]
        + [now],
        schema=pa.schema([*PHOTOS, pa.field("department", now.type)]),
    )
    told = compare(photos, parent, None, told="department")
    assert [n for n, part in enumerate(told.rows["latents_part"].to_pylist()) if part is None] == stale
    assert [n for n, row in enumerate(told.rows["latents_row"].to_pylist()) if row is None] == stale
    assert told.rows["pixels_row"].to_pylist() == list(range(5))
    assert told.rows["status"].to_pylist() == ["same"] * 5
    plain = compare(photos, parent, None)
    assert plain.rows["latents_row"].to_pylist() == list(range(5))
    assert plain.counts == told.counts
