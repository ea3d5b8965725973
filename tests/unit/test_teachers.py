"""Teachers: whose features a config names, their scale against numpy, and what a training reads of each photo."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from pipeline.errors import ConfigError, InputError, IntegrityError
from pipeline.images import ImagesConfig
from pipeline.losses import mse
from pipeline.models import AnyModelConfig, Batch, ModelConfig, Step, build_model
from pipeline.models.base import Taught, as_dict
from pipeline.models.frozen import FrozenConfig
from pipeline.models.targets import FeatureTarget, TeacherFeatures
from pipeline.models.targets.features import cosine_error
from pipeline.models.teachers import FeatureScale
from pipeline.schema import latents_schema, pixels_schema
from pipeline.storage import Store, open_store
from pipeline.training import FeatureRows, PartRows, PixelLoader
from pipeline.training.part_cache import FeatureReader, PartCache, PartReader
from pipeline.training.part_rows import inputs_digest

ID = "a" * 64
SIZE, PHOTOS, NUMBERS = 16, 60, 4
ANY: TypeAdapter[ModelConfig] = TypeAdapter(AnyModelConfig)
SEES = {"kind": "features", "teacher": {"kind": "descriptor"}}


def features(number: int = 50, width: int = 8) -> np.ndarray:
    spread = np.linspace(0.1, 3.0, width)
    return (np.random.default_rng(0).normal(size=(number, width)) * spread + 100.0).astype(np.float32)


class TestScale:
    @pytest.mark.parametrize("scale", ["common", "each_number", "each_photo"])
    def test_it_is_what_numpy_makes_of_all_photos_at_once(self, scale: str) -> None:
        rows = features()
        module = FeatureScale(scale, channels=2, cells=2)
        batches = [Batch(torch.empty(0), features=torch.from_numpy(part)) for part in np.split(rows, [7, 20])]
        module.fit(batches)
        found = module(torch.from_numpy(rows)).numpy()
        wide = rows.astype(np.float64)
        if scale == "each_photo":
            cells = wide.reshape(-1, 2, 2, 2)
            centred = cells - cells.mean(axis=1, keepdims=True)
            expected = centred / np.sqrt(cells.var(axis=1, keepdims=True) + 1e-5)
        else:
            variance = wide.var(axis=0)
            spread = np.sqrt(variance.mean() if scale == "common" else variance)
            expected = ((wide - wide.mean(axis=0)) / spread).reshape(-1, 2, 2, 2)
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
        if scale == "common":  # a photo's squares sum up to their number, and numbers keep their shares
            assert np.square(found).sum(axis=(1, 2, 3)).mean() == pytest.approx(8, rel=1e-3)
            assert found.reshape(-1, 8)[:, 7].std() > 10 * found.reshape(-1, 8)[:, 0].std()

    def test_it_goes_round_with_the_state_and_asks_for_what_it_lacks(self) -> None:
        scale, rows = FeatureScale("common", 8, 1), torch.from_numpy(features())
        with pytest.raises(ConfigError, match="prepare"):
            scale(rows)
        with pytest.raises(InputError, match="no photos"):
            scale.fit([])
        with pytest.raises(InputError, match="the same of all photos"):
            scale.fit([Batch(torch.empty(0), features=torch.ones(4, 8))])
        scale.fit([Batch(torch.empty(0), features=rows)])
        twin = FeatureScale("common", 8, 1)
        twin.load_state_dict(scale.state_dict())
        assert torch.equal(twin(rows), scale(rows))
        with pytest.raises(InputError, match=r"\[50, 7\].*\[B, 8\]"):
            scale(rows[:, :7])
        with pytest.raises(InputError, match="the batch has none"):
            scale(None)


class TestConfigs:
    def test_what_was_a_feature_target_before_says_the_same(self) -> None:
        target = FeatureTarget(encoder=FrozenConfig(model_id=ID, layers=(0,)), channels=5, size=8)
        assert set(as_dict(target)) == {"kind", "encoder", "channels", "size", "weight"}
        for kind in ("vae", "vqvae", "autoencoder"):
            assert not {"sees", "parts"} & set(as_dict(ANY.validate_python({"kind": kind})))

    def test_features_that_are_seen_are_the_target(self) -> None:
        config = ANY.validate_python({"kind": "vae", "sees": SEES})
        assert config.target == FeatureTarget()
        assert config.taught_by() == ANY.validate_python({"kind": "descriptor"})
        assert not config.trains_on_pixels
        assert ANY.validate_json(ANY.dump_json(config)) == config
        named = ANY.validate_python({"kind": "vae", "sees": {"kind": "features", "teacher": ID}})
        assert (named.taught_by(), named.bundles()) == (ID, ())

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"kind": "vae", "target": {"kind": "features"}}, "names neither a teacher nor an encoder"),
            ({"kind": "vae", "sees": SEES, "target": {"kind": "pixels"}}, "gives the same features back"),
            ({"kind": "vae", "sees": SEES, "channels": [8]}, "channels: of a network that sees pixels"),
            ({"kind": "vqvae", "sees": SEES, "channels": [8]}, "channels: of a network that sees pixels"),
            ({"kind": "vae", "sees": {"kind": "features", "teacher": "b1"}}, "teacher"),
            ({"kind": "vae", "sees": {"kind": "features", "teacher": {"kind": "vae"}}}, "sees"),
            ({"kind": "vqvae", "parts": 4}, "set codes to parts"),
            ({"kind": "mae", "target": {"kind": "features"}}, "names neither"),
            ({"kind": "distilled", "cosine_weight": 0, "relation_weight": 0}, "nothing to learn"),
        ],
    )  # fmt: skip
    def test_what_does_not_go_together_is_refused(self, values: dict[str, object], message: str) -> None:
        with pytest.raises(ValidationError, match=message):
            ANY.validate_python(values)

    def test_a_teacher_that_is_told_categories_and_shapes_set_by_hand_are_refused(self) -> None:
        told = Taught(ID, ANY.validate_python({"kind": "cvae"}), (ImagesConfig(),), 64, numbers=8, cells=1)
        plain = Taught(ID, ANY.validate_python({"kind": "vae"}), (ImagesConfig(),), 64, numbers=8, cells=2)
        student = ANY.validate_python({"kind": "distilled", "teacher": ID})
        with pytest.raises(ConfigError, match="is a cvae, which is told each photo's category"):
            student.taught(told)
        known = student.taught(plain)
        assert (known.numbers, known.cells) == (8, 2)  # type: ignore[attr-defined]
        with pytest.raises(ConfigError, match="leave them out"):
            known.taught(plain)
        with pytest.raises(ConfigError, match="has no teacher yet"):
            build_model(student, image_size=64)
        target = {"kind": "features", "channels": 8, "size": 1}
        alone = ANY.validate_python({"kind": "vae", "sees": SEES, "target": target})
        with pytest.raises(ConfigError, match="has none yet"):
            build_model(alone, image_size=SIZE)


def test_the_target_is_the_weighted_error_of_scaled_maps() -> None:
    config = FeatureTarget(teacher=ID, channels=3, size=2, weight=2.5)
    outputs, wanted = torch.randn(5, 3, 2, 2), torch.randn(5, 3, 2, 2)
    assert torch.equal(TeacherFeatures(config).loss(outputs, wanted)[0], 2.5 * mse(outputs, wanted))
    cosine = TeacherFeatures(config.model_copy(update={"loss": "cosine"})).loss(outputs, wanted)[0]
    a, b = outputs.double().numpy(), wanted.double().numpy()
    likeness = (a * b).sum(1) / np.sqrt(np.square(a).sum(1) * np.square(b).sum(1))
    assert cosine.item() == pytest.approx(2.5 * (1 - likeness).sum(axis=(1, 2)).mean(), rel=1e-5)
    assert cosine_error(outputs, outputs).item() == pytest.approx(0.0, abs=1e-5)


def photo_parts(store: Store) -> list[PartRows]:
    """Write two pixels parts, the latents of the first in two parts, and return their rows with features.

    A photo's first pixel is its number, and so is its feature.
    """
    made = []
    for part, first in (("0", 0), ("1", 30)):
        rows = np.arange(first, first + 30)
        schema = pixels_schema(SIZE)
        values = {"pixels": [np.full((SIZE, SIZE, 3), row, np.uint8).tobytes() for row in rows]}
        values |= {name: [f"{row}" for row in rows] for name in ("item_id", "uri", "token")}
        pixels = pa.table([pa.array(values.get(f.name, [None] * 30), f.type) for f in schema], schema=schema)
        store.put(f"pixels/t/{part}.parquet", _bytes(pixels))
        for piece in np.split(np.arange(30), [12] if part == "0" else []):
            name = f"latents/{ID}/{part}-{piece[0]}.parquet"
            fields = {"pixels_row": piece, "mean": [np.full(NUMBERS, rows[at], np.float32) for at in piece]}
            fields |= {key: [f"{rows[at]}" for at in piece] for key in ("item_id", "uri", "token", "digest")}
            kind = latents_schema(NUMBERS, log_var=False)
            store.put(name, _bytes(pa.table([pa.array(list(fields[f.name]), f.type) for f in kind], schema=kind)))
            held = np.arange(len(piece)) % 5 == 0
            at = np.arange(len(piece), dtype=np.int32)
            seen = FeatureRows(name, at)
            made.append(PartRows(f"pixels/t/{part}.parquet", piece.astype(np.int32), held_out=held, features=seen))
    return made


def _bytes(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=7)
    return sink.getvalue()


@pytest.fixture(scope="module")
def parts() -> tuple[Store, list[PartRows]]:
    store = open_store("memory://test-teachers")
    return store, photo_parts(store)


def loader(store: Store, parts: list[PartRows], folder: object, *, side: int = SIZE, **kw: int) -> PixelLoader:
    cache = PartCache(store, folder)  # type: ignore[arg-type]
    options = {"batch_size": 8, "rank": 0, "world_size": 1, "seed": 3, "window_parts": 2, **kw}
    return PixelLoader(PartReader(cache, side, features=FeatureReader(cache, NUMBERS)), parts, **options)  # type: ignore[arg-type]


class TestLoader:
    def test_every_photo_comes_with_its_own_features_on_every_rank_and_after_a_resume(
        self, parts: tuple[Store, list[PartRows]], tmp_path: object
    ) -> None:
        for rank in range(2):
            reads = loader(*parts, tmp_path, rank=rank, world_size=2)
            whole = list(reads.batches(0, 2 * reads.steps_per_epoch))
            for batch in [*whole, *reads.validation()]:
                assert batch.features is not None
                assert batch.features.dtype == torch.float32
                assert torch.equal(batch.features[:, 0], batch.images[:, 0, 0, 0].float())
            again = list(reads.batches(2, 4))
            assert all(torch.equal(a.features, b.features) for a, b in zip(again, whole[2:4], strict=True))
        turned = [FeatureRows(p.features.part, p.features.rows[::-1].copy()) for p in parts[1] if p.features]
        shifted = [replace(part, features=seen) for part, seen in zip(parts[1], turned, strict=True)]
        wrong = next(loader(parts[0], shifted, tmp_path).batches(0, 1))
        assert not torch.equal(wrong.features[:, 0], wrong.images[:, 0, 0, 0].float())

    def test_without_pixels_the_same_photos_come_and_no_pixels_part_is_read(
        self, parts: tuple[Store, list[PartRows]], tmp_path: object
    ) -> None:
        seen = [batch.features for batch in loader(*parts, tmp_path).batches(0, 6)]
        gone = [PartRows("pixels/t/gone" + p.part[-9:], p.rows, p.category, p.held_out, p.features) for p in parts[1]]
        blind = list(loader(parts[0], gone, tmp_path, side=0).batches(0, 6))
        assert all(batch.images.shape == (8, 3, 0, 0) for batch in blind)
        assert all(torch.equal(a, b.features) for a, b in zip(seen, blind, strict=True))

    def test_features_of_another_length_or_none_are_refused(
        self, parts: tuple[Store, list[PartRows]], tmp_path: object
    ) -> None:
        store, rows = parts
        cache = PartCache(store, tmp_path)  # type: ignore[arg-type]
        with pytest.raises(IntegrityError, match="expected 5 numbers"):
            FeatureReader(cache, 5).read_into(
                rows[0].features.part, np.zeros(1, np.int32), np.empty((1, 5), np.float32), np.zeros(1, np.int64)
            )
        without = [PartRows(part.part, part.rows) for part in rows]
        with pytest.raises(InputError, match="there are none of the photos of pixels/t/0"):
            next(loader(store, without[:1], tmp_path).batches(0, 1))

    def test_the_digest_of_what_is_trained_on_tells_features_apart_and_is_as_before_without(
        self, parts: tuple[Store, list[PartRows]]
    ) -> None:
        rows = parts[1]
        plain = [PartRows(part.part, part.rows, held_out=part.held_out) for part in rows]
        other = [PartRows(p.part, p.rows, held_out=p.held_out, features=FeatureRows("latents/x", p.rows)) for p in rows]
        assert len({inputs_digest(rows), inputs_digest(plain), inputs_digest(other)}) == 3


def test_what_goes_into_the_encoder_is_what_the_teacher_says_of_the_photos() -> None:
    held = {"model": {"kind": "descriptor", "features": "pixels", "read_out": {"dims": None}}, "transforms": [],
            "image_size": SIZE, "numbers": 3 * SIZE * SIZE, "cells": 1}  # fmt: skip
    config = ANY.validate_python(
        {
            "kind": "autoencoder",
            "sees": {"kind": "features", "teacher": ID, "hidden": [8], "held": held},
            "target": {"kind": "features", "channels": 3 * SIZE * SIZE, "size": 1},
        }
    )
    model = build_model(config, image_size=SIZE)
    photos = torch.randint(0, 256, (9, 3, SIZE, SIZE), dtype=torch.uint8)
    said = model.front.teacher.encode(photos).mean  # type: ignore[union-attr]
    batch = Batch(torch.empty(9, 3, 0, 0, dtype=torch.uint8), features=said)
    model.prepare([batch])
    model.eval()
    torch.testing.assert_close(model.encode(photos).mean, model.encode_batch(batch).mean)
    others = Batch(batch.images, features=said.roll(1, 0))
    assert not torch.allclose(model.encode(photos).mean, model.encode_batch(others).mean)
    assert torch.isfinite(model(batch, Step(0, 1)).total)
