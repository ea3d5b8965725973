"""The presets: every one loads and says what it is, every kind of model has one, and seed 001's is its command."""

from __future__ import annotations

import re

import pytest
import yaml

from jobs.command import Arguments
from jobs.config import Config, load_config
from jobs.sources import PRESETS, preset_names
from pipeline.errors import ConfigError
from pipeline.models import MODELS, build_model, save_bundle
from pipeline.models.base import Taught
from pipeline.models.bundle import resolved_config
from pipeline.models.targets import FeatureTarget, HogTarget, PixelTarget
from pipeline.models.vqvae2 import VQVAE2
from pipeline.storage import open_store

FASHION = [name for name in preset_names() if name.endswith("_fashion_mnist")]
CLOTHING = [name for name in preset_names() if name.endswith("_clothing")]


def loaded(name: str, *overrides: str) -> Config:
    given = ("store=/s", "catalogue.source=/c.parquet", *overrides)
    return load_config(Arguments(config=name, overrides=given), {})


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_begins_with_its_command_and_where_its_numbers_are(name: str) -> None:
    command, measured, *_ = (PRESETS / f"{name}.yaml").read_text().splitlines()
    if name == "demo":
        assert command == "# codebooks demo"
    else:
        assert re.match(rf"# codebooks (refresh|train) --config {name} store=STORE catalogue\.source=PATH/\S+", command)
    assert re.fullmatch(r"# Measured.*see tests/benchmarks/README\.md\.", measured)


def with_members(name: str) -> Config:
    """Return a fusion's preset with two members, small ones for the same photos, and the model config it becomes."""
    store, images = open_store(f"memory://preset-{name}"), loaded(name).images
    members = []
    for number, kind in enumerate(("autoencoder", "vae")):
        member = MODELS[kind][0].model_validate({"kind": kind, "latent_dim": 40, "channels": [4, 8]})
        built = build_model(member, image_size=images.size)
        members.append(save_bundle(store, built, member, images, train_key=f"{number}" * 64, card={}))
    config = loaded(name, f"model.members=[{', '.join(members)}]")
    return config.model_copy(update={"model": resolved_config(store, config.model, images.model_dump(mode="json"))})


def with_teacher(name: str) -> Config:
    """Return a preset with a small teacher in place of the network that it describes, whose file is not here."""
    config = loaded(name)
    assert not isinstance(config.model.taught_by(), str), "a preset cannot know a model_id"
    small = MODELS["descriptor"][0].model_validate({"kind": "descriptor", "read_out": {"dims": 64}})
    found = Taught("a" * 64, small, (config.images,), config.images.size, numbers=64, cells=1)
    return config.model_copy(update={"model": config.model.taught(found)})


@pytest.mark.usefixtures("no_onnx")
@pytest.mark.parametrize("name", preset_names())
def test_a_preset_builds_its_model(name: str) -> None:
    config = with_members(name) if name.startswith("fusion") else loaded(name)
    if config.model.taught_by() is not None:
        config = with_teacher(name)
    model = build_model(config.model, image_size=config.images.size, labels=("boot", "shirt"))
    assert model.latent_dim >= 1
    assert config.index.metric == "cosine"
    assert config.catalogue.category == "category"


@pytest.mark.parametrize("name", [name for name in preset_names() if name.startswith("fusion")])
def test_a_fusion_says_that_its_members_are_missing(name: str) -> None:
    config, store = loaded(name), open_store("memory://preset-without-members")
    with pytest.raises(ConfigError, match=r"model\.members is empty.*model\.members=\[MODEL_ID, MODEL_ID\]"):
        resolved_config(store, config.model, config.images.model_dump(mode="json"))


def test_every_kind_of_model_has_presets_for_both_catalogues() -> None:
    for names in (FASHION, CLOTHING):
        assert {loaded(name).model.kind for name in names} == set(MODELS)
    quantizers = {loaded(name).model.quantizer.kind for name in FASHION if loaded(name).model.kind == "vqvae"}
    assert quantizers == {"ema", "gradient", "fsq", "simvq"}
    targets = {type(getattr(loaded(name).model, "target", None)) for name in FASHION} - {type(None), str}
    assert targets == {PixelTarget, HogTarget, FeatureTarget}


@pytest.mark.parametrize("name", FASHION)
def test_fashion_mnist_is_trained_on_whole_unless_pictures_are_logged(name: str) -> None:
    train = loaded(name).train
    assert train.split_by is None
    assert train.validation == (0.05 if name == "seed_001_fashion_mnist" else 0)


@pytest.mark.parametrize("name", CLOTHING)
def test_clothing_photos_are_split_by_contributor(name: str) -> None:
    config = loaded(name)
    assert (config.images.size, config.train.validation, config.train.split_by) == (64, 0.1, "sender_id")
    assert loaded(name, "train.split_by=null").train.split_by is None


def test_codes_lie_as_said() -> None:
    config = loaded("vqvae_fashion_mnist")
    model = build_model(config.model, image_size=config.images.size)
    assert (model.num_latent_codes, config.model.quantizer.num_codes, config.images.size) == (49, 256, 28)
    config = loaded("vqvae_single_fashion_mnist")
    assert build_model(config.model, image_size=config.images.size).num_latent_codes == 1
    for name, cells in (("vqvae2_fashion_mnist", (9, 49)), ("vqvae2_clothing", (64, 256))):
        config = loaded(name)
        two = build_model(config.model, image_size=config.images.size)
        assert isinstance(two, VQVAE2)
        assert (two.num_top_codes, two.num_latent_codes) == (cells[0], sum(cells))
    assert loaded("cvae_clothing").train.balance


def test_seed_001_is_its_command_flag_by_flag() -> None:
    config = loaded("seed_001_fashion_mnist")
    model, train = config.model, config.train
    assert model.kind == "vae"
    assert train.epochs == 30  # --epochs 30
    assert (train.batch_size, train.accumulate, train.workers) == (512, 1, 1)  # --batch-size 512
    assert train.seed == 42  # --seed 42
    assert (model.network, model.hidden) == ("fc_conv", (32, 118))  # --model_type fc_conv
    assert (config.images.size, model.grey) == (28, True)  # --dataset_type fmnist
    assert model.latent_dim == 10  # --latent_space_size 10
    assert train.augment == "none"  # --do_augs False
    assert (train.learning_rate, train.warmup) == (1e-3, 0)  # --lr 1e-3
    assert (train.schedule, train.milestones, train.gamma) == ("milestones", (40, 50), 0.1)  # --m1 40 --m2 50
    assert (train.optimiser, train.weight_decay, train.grad_clip) == ("adam", 0, None)  # --optimizer adam
    assert not model.rebalance  # --do_running_mean False
    assert model.image_weight == 1.0  # --img_loss_weight 1.0
    assert (model.beta, model.kl_warmup, model.free_bits) == (1.0, 0, 0)  # --kl_loss_weight 1.0
    assert isinstance(model.target, PixelTarget)
    assert (model.target.loss, model.target.perceptual) == ("bce", None)  # --image_loss_type bce
    assert model.target.ssim_window == 5  # --ssim_window_size 5
    assert not model.per_image_normalisation  # `no_norm` of --lognumber
    assert train.validation > 0  # --tensorboard_images True


def test_seed_001_says_which_key_every_flag_became() -> None:
    text = (PRESETS / "seed_001_fashion_mnist.yaml").read_text()
    head, body = text.split("catalogue:", maxsplit=1)
    flags = re.findall(r"--([\w-]+)", head.split("python3 train.py")[1].split("# Without")[0])
    assert len(flags) == 20
    # Those without a key are what every training does.
    assert set(flags) - set(re.findall(r"--([\w-]+)", body)) == {"print-freq", "tensorboard"}
    assert yaml.safe_load(text)["train"]["milestones"] == [40, 50]
