"""Fusion: members' latents against NumPy and scikit-learn, through the worker, and without its members afterwards."""

from __future__ import annotations

import io
import uuid
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import TypeAdapter, ValidationError
from sklearn.decomposition import PCA

from jobs.command import Arguments
from jobs.config import load_config
from pipeline.errors import ConfigError, NotFound
from pipeline.images import ImagesConfig
from pipeline.models import AnyModelConfig, Batch, ModelConfig, Step, build_model, load_bundle, save_bundle, train_key
from pipeline.models.bundle import resolved_config
from pipeline.models.export import export_encoder, run_encoder
from pipeline.planning import make_plan
from pipeline.schema import pixels_schema
from pipeline.storage import Files, Store, open_store
from pipeline.training import PartRows, TrainConfig
from pipeline.training.ranks import Ranks
from pipeline.training.worker import TrainJob, run_rank

SIZE, PHOTOS, IMAGES = 16, 90, {"size": 16}
VAE = {"kind": "vae", "latent_dim": 5, "channels": [4, 8]}
VQVAE = {"kind": "vqvae", "channels": [4, 8]}
HOG = {"kind": "descriptor", "cell": 4, "read_out": {"dims": 7}}


@pytest.fixture(autouse=True)
def _apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr("pipeline.storage.cache.tempfile.gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr("pipeline.models.bundle.export_encoder", lambda model, **options: b"not exported here")


@pytest.fixture
def store() -> Store:
    return open_store(f"memory://{uuid.uuid4().hex}")


def parsed(**values: object) -> ModelConfig:
    config: ModelConfig = TypeAdapter(AnyModelConfig).validate_python(values)
    return config


def photos(count: int = PHOTOS, seed: int = 0) -> torch.Tensor:
    """Return photos uint8 [count, 3, 16, 16] of coloured rectangles on white with a little noise."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.full((count, 3, SIZE, SIZE), 245.0)
    for image in images:
        top, left, height, width = torch.randint(2, 9, (4,), generator=generator).tolist()
        image[:, top : top + height, left : left + width] = 200 * torch.rand(3, 1, 1, generator=generator)
    return (images + 5 * torch.rand(images.shape, generator=generator)).to(torch.uint8)


def filled(store: Store) -> tuple[PartRows, ...]:
    schema = pixels_schema(SIZE)
    stored = photos().permute(0, 2, 3, 1).contiguous().numpy()
    columns = {"pixels": pa.array([row.tobytes() for row in stored], schema.field("pixels").type)}
    columns |= {name: pa.array([f"{row}" for row in range(PHOTOS)]) for name in ("item_id", "uri", "token")}
    table = pa.table([columns.get(at.name, pa.nulls(PHOTOS, at.type)) for at in schema], schema=schema)
    sink = io.BytesIO()
    pq.write_table(table, sink)
    store.put("pixels/t/0.parquet", sink.getvalue())
    return (PartRows("pixels/t/0.parquet", np.arange(PHOTOS, dtype=np.int32)),)


def key_of(config: ModelConfig) -> str:
    return train_key(config, IMAGES, {}, 0, 1)


def trained(store: Store, config: ModelConfig) -> str:
    """Return the model_id of a job that one worker does."""
    train = TrainConfig(epochs=1, batch_size=30)
    job = TrainJob(store, filled(store), config, IMAGES, train, "runs/night", key_of(config))
    model_id = run_rank(job, Ranks())
    assert model_id is not None
    return model_id


def fusion(store: Store, *members: dict[str, object], **options: object) -> tuple[ModelConfig, list[str]]:
    """Return the config of a fusion of members that are trained first, and their model_ids."""
    ids = [trained(store, parsed(**member)) for member in members]
    return parsed(kind="fusion", members=ids, **options), ids


def latents(store: Store, model_id: str, images: torch.Tensor | None = None) -> NDArray[np.float64]:
    with torch.no_grad():
        model = load_bundle(store, model_id).model
        return model.encode(photos() if images is None else images).mean.double().numpy()


def remove(store: Store, model_id: str) -> None:
    for entry in list(store.list(f"models/{model_id}/")):
        store.delete(entry.name)


def joined(
    members: list[NDArray[np.float64]], scale: str, weights: list[float], *, centre: bool
) -> NDArray[np.float64]:
    """Return what a fusion makes of its members' latents, written down a second time."""
    shares = np.sqrt(np.array(weights) / np.sum(weights))
    columns = []
    for rows, share in zip(members, shares, strict=True):
        shifted = rows - rows.mean(axis=0) * centre
        lengths = np.linalg.norm(shifted, axis=1, keepdims=True)
        columns.append(share * shifted / (lengths if scale == "each_photo" else lengths.mean()))
    return np.hstack(columns)


def cosines(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    found: NDArray[np.float64] = unit @ unit.T
    return found


@pytest.mark.parametrize(
    ("scale", "centre", "weights", "read_out"),
    [
        ("each_photo", True, None, {}),
        ("each_photo", False, [1.0, 3.0], {"dims": 6}),
        ("mean_norm", True, [2.0, 1.0], {"dims": 5, "whiten": True}),
        ("mean_norm", False, None, {}),
    ],
)
@pytest.mark.slow
def test_fused_vectors_are_numpys(
    store: Store, scale: str, centre: bool, weights: list[float] | None, read_out: dict[str, object]
) -> None:
    config, ids = fusion(store, VAE, HOG, scale=scale, centre=centre, weights=weights, read_out=read_out)
    model_id = trained(store, config)
    found = latents(store, model_id)
    members = [latents(store, member) for member in ids]
    wanted = joined(members, scale, weights or [1.0, 1.0], centre=centre)
    if read_out:
        wanted = PCA(read_out["dims"], whiten=bool(read_out.get("whiten"))).fit_transform(wanted)
        wanted *= np.sign((found * wanted).sum(axis=0))
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() < 1e-3 * np.abs(wanted).max()
    exported = run_encoder(export_encoder(load_bundle(store, model_id).model), photos(5, seed=1).numpy())["mean"]
    np.testing.assert_allclose(exported, latents(store, model_id, photos(5, seed=1)), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("centre", [True, False])
def test_the_cosine_is_the_weighted_mean_of_the_members_cosines(store: Store, centre: bool) -> None:
    weights = [1.0, 3.0, 0.5]
    config, ids = fusion(store, VAE, HOG, VQVAE, weights=weights, centre=centre)
    found = cosines(latents(store, trained(store, config)))
    members = [latents(store, member) for member in ids]
    each = [cosines(rows - rows.mean(axis=0) * centre) for rows in members]
    np.testing.assert_allclose(found, np.average(each, axis=0, weights=weights), rtol=0, atol=1e-5)
    # Negative control: side by side without scales, the member with the largest numbers is all there is.
    loud = [rows * factor for rows, factor in zip(members, (1.0, 1000.0, 1.0), strict=True)]
    unscaled = cosines(np.hstack([rows - rows.mean(axis=0) * centre for rows in loud]))
    assert np.abs(unscaled - each[1]).max() < 1e-3
    assert np.abs(found - each[1]).max() > 0.05


def test_a_fusion_outlives_its_members_and_may_be_a_member(store: Store) -> None:
    config, ids = fusion(store, VAE, HOG, read_out={"dims": 6})
    model_id = trained(store, config)
    before = latents(store, model_id)
    whole = parsed(kind="fusion", members=[model_id, trained(store, parsed(**VQVAE))], read_out={"dims": 8})
    whole_id = trained(store, whole)
    outer = latents(store, whole_id)
    for member in ids:
        remove(store, member)
    assert np.array_equal(latents(store, model_id), before)
    remove(store, model_id)
    assert np.array_equal(latents(store, whole_id), outer)
    with pytest.raises(NotFound, match=f"no bundle {ids[0]}"):
        resolved_config(store, config, IMAGES)
    stored = load_bundle(store, whole_id).config
    assert [part.model["kind"] for part in stored.parts] == ["fusion", "vqvae"]


def test_the_train_key_is_of_what_was_asked(store: Store) -> None:
    config, ids = fusion(store, VAE, HOG)
    resolved = resolved_config(store, config, IMAGES)
    assert resolved.bundles() == config.bundles() == tuple(ids)
    assert [part.model["kind"] for part in resolved.parts] == ["vae", "descriptor"]
    model_id = trained(store, config)
    assert load_bundle(store, model_id).config == resolved
    assert f'"{model_id}"' in store.get(f"models/by-key/{key_of(config)}.json").decode()
    assert key_of(resolved) != key_of(config)  # so a key that were made afterwards would be another


def test_members_that_see_photos_alike_leave_the_bundles_bytes_as_they_were(store: Store) -> None:
    config, ids = fusion(store, VAE, HOG)
    own = resolved_config(store, config, {**IMAGES, "max_bytes": 99})  # limits are no way to see photos
    assert own.model_dump(mode="json") == {
        "kind": "fusion", "members": ids, "weights": None, "scale": "each_photo", "centre": True,
        "read_out": {"dims": None, "whiten": False, "invariant_to": None},
        "parts": [{"model": load_bundle(store, each).config.model_dump(mode="json")} for each in ids],
    }  # fmt: skip
    assert own.transforms(ImagesConfig(size=SIZE)) == (ImagesConfig(size=SIZE),)
    other = resolved_config(store, config, {"size": 32})
    assert [part.images[0]["size"] for part in other.parts] == [SIZE, SIZE], "not the run's, but their own"
    assert [images.size for images in other.transforms(ImagesConfig(size=32, max_bytes=7))] == [SIZE]
    assert other.transforms(ImagesConfig(size=32, max_bytes=7))[0].max_bytes == 7


def test_what_cannot_be_fused_is_refused(store: Store) -> None:
    ids = [trained(store, parsed(**VAE)), trained(store, parsed(**HOG))]
    with pytest.raises(NotFound, match=f"no bundle {'0' * 64}"):
        resolved_config(store, parsed(kind="fusion", members=[*ids, "0" * 64]), IMAGES)
    with pytest.raises(ConfigError, match=r"members is empty.*model\.members=\["):
        resolved_config(store, parsed(kind="fusion"), IMAGES)
    with pytest.raises(ConfigError, match="built of its members"):
        build_model(parsed(kind="fusion", members=ids), image_size=16)
    with pytest.raises(ConfigError, match="parts is filled in by the training"):
        resolved_config(store, parsed(kind="fusion", members=ids, parts=[{"model": VAE}] * 2), IMAGES)
    told = parsed(kind="cvae", latent_dim=3, channels=[4, 8])
    model = build_model(told, image_size=16, labels=("a",))
    conditional = save_bundle(store, model, told, IMAGES, train_key="c" * 64, card={}, labels=("a",))
    with pytest.raises(ConfigError, match=f"{conditional} is a cvae, which is told"):
        resolved_config(store, parsed(kind="fusion", members=[ids[0], conditional]), IMAGES)
    unfitted = build_model(resolved_config(store, parsed(kind="fusion", members=ids), IMAGES), image_size=16)
    with pytest.raises(ConfigError, match="not fitted"):
        unfitted.encode(photos(2))
    with pytest.raises(ConfigError, match="train its members"):
        unfitted(Batch(photos(2)), Step(0, 1))


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"members": ["a" * 64]}, "at least two"),
        ({"members": ["a" * 64, "a" * 64]}, "each once"),
        ({"members": ["a" * 64, "vae"]}, "'vae', which is no model_id"),
        ({"members": ["a" * 64, "b" * 64], "weights": [1]}, "1 weights for 2 members"),
        ({"members": ["a" * 64, "b" * 64], "weights": [1, 0]}, "above 0"),
    ],
)
def test_wrong_configs_are_refused(values: dict[str, object], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        parsed(kind="fusion", **values)


def test_a_plan_needs_the_members_only_until_there_is_a_bundle(tmp_path: Path) -> None:
    Image.new("RGB", (20, 20), (200, 0, 0)).save(tmp_path / "0.png")
    (tmp_path / "catalogue.csv").write_text("item_id,image\na,0.png\n")
    store = open_store(str(tmp_path / "store"))
    given = (f"store={tmp_path / 'store'}", f"catalogue.source={tmp_path / 'catalogue.csv'}", "images.size=16")
    ids = [trained(store, parsed(**VAE)), trained(store, parsed(**HOG))]
    config = load_config(Arguments(overrides=(*given, "model.kind=fusion", f"model.members=[{', '.join(ids)}]")))
    plan = make_plan(config, store, Files(), run="night", limit=None)
    assert plan.summary.model_id is None
    images = config.images.model_dump(mode="json")
    job = TrainJob(store, filled(store), config.model, images, config.train, "runs/a", plan.summary.train_key)
    model_id = run_rank(job, Ranks())
    remove(store, ids[0])
    assert make_plan(config, store, Files(), run="later", limit=None).summary.model_id == model_id
    other = config.model_copy(update={"model": config.model.model_copy(update={"scale": "mean_norm"})})
    with pytest.raises(NotFound, match=f"no bundle {ids[0]}"):
        make_plan(other, store, Files(), run="other", limit=None)
