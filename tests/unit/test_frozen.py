"""Frozen encoders: torchvision's own features, files that do not fit, and no trace in the model that uses them."""

from __future__ import annotations

import copy
import io
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torchvision
from pydantic import ValidationError
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor

from pipeline.errors import ConfigError, InputError, NotFound
from pipeline.models import frozen_loading
from pipeline.models.base import Batch, Latents, Losses, Model, Step
from pipeline.models.frozen import FrozenConfig, FrozenEncoder, resnet18_map
from pipeline.models.frozen_loading import BundleFeatures, load_frozen
from pipeline.storage import MemoryStore, open_store

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """Return a ResNet-18 whose batch normalisation has statistics of its own."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    made = torchvision.models.resnet18(weights=None)
    for layer in made.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 1.5)
    return made.eval()


@pytest.fixture(scope="module")
def folder(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("weights")
    torch.save(network.state_dict(), place / "resnet18.pth")
    safetensors.torch.save_file(network.state_dict(), place / "resnet18.safetensors")
    return place


def load(weights: Path | str, layers: tuple[int, ...] = (0, 1)) -> FrozenEncoder:
    return load_frozen(FrozenConfig(weights=str(weights), layers=layers), open_store("memory://frozen-unused"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18.pth", "resnet18.safetensors"])
def test_the_maps_are_torchvisions_before_pooling(network: nn.Module, folder: Path, name: str) -> None:
    names = ["relu", "layer1", "layer2", "layer3", "layer4"]
    extractor = create_feature_extractor(network, return_nodes=names)
    pictures = torch.rand(2, 3, 37, 37)
    state = torch.get_rng_state()
    encoder = load(folder / name, (0, 1, 2, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    with torch.no_grad():
        expected = extractor((pictures - MEAN) / STD)
        found = encoder.maps(pictures)
    for layer, key in enumerate(names):
        torch.testing.assert_close(found[layer], expected[key], rtol=1e-5, atol=1e-5)
    raw = extractor(pictures)  # the control: without ImageNet's normalisation
    assert (found[4] - raw["layer4"]).abs().max() > 1e-2


@pytest.mark.parametrize("size", [28, 33, 64])
def test_channels_and_sides_are_known_without_the_file(folder: Path, size: int) -> None:
    encoder = load(folder / "resnet18.pth", (0, 1, 2, 3, 4))
    with torch.no_grad():
        shapes = [tuple(found.shape) for found in encoder.maps(torch.rand(1, 3, size, size))]
    known = [resnet18_map(layer, size) for layer in range(5)]
    assert shapes == [(1, channels, side, side) for channels, side in known]


def test_only_the_chosen_layers_come_and_in_float32(folder: Path) -> None:
    encoder = load(folder / "resnet18.pth", (2, 0))
    with torch.autocast("cpu", torch.bfloat16):
        found = encoder.maps(torch.rand(1, 3, 32, 32))
    assert [tuple(layer.shape[1:]) for layer in found] == [(128, 4, 4), (64, 16, 16)]
    assert {layer.dtype for layer in found} == {torch.float32}


def test_gradients_reach_the_pictures_and_nothing_else_changes(folder: Path) -> None:
    encoder = load(folder / "resnet18.pth")
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    encoder.train()
    pictures = torch.rand(2, 3, 32, 32, requires_grad=True)
    sum(layer.square().mean() for layer in encoder.maps(pictures)).backward()
    assert pictures.grad is not None
    assert pictures.grad.abs().max() > 0
    assert all(weight.grad is None and not weight.requires_grad for weight in encoder.parameters())
    assert not any(module.training for module in encoder.modules())
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, before[name]), name  # also the running statistics


def test_a_photo_has_the_same_features_whatever_is_beside_it(folder: Path, network: nn.Module) -> None:
    encoder = load(folder / "resnet18.pth").train()
    photos = torch.rand(4, 3, 32, 32)
    alone, beside = encoder.maps(photos[:1])[1], encoder.maps(photos)[1][:1]
    torch.testing.assert_close(beside, alone, rtol=1e-5, atol=1e-5)
    leaking = create_feature_extractor(copy.deepcopy(network).train(), return_nodes=["layer1"]).train()
    alone, beside = leaking(photos[:1])["layer1"], leaking(photos)["layer1"][:1]
    assert (alone - beside).abs().max() > 0.1  # the control: batch normalisation in training mode


def test_weights_come_from_any_store_and_old_files_lack_counters(network: nn.Module) -> None:
    state = {
        name: value for name, value in network.state_dict().items() if "num_batches" not in name and "fc." not in name
    }
    written = io.BytesIO()
    torch.save(state, written)
    MemoryStore("memory://frozen-weights").put("nets/old.pth", written.getvalue())
    assert load("memory://frozen-weights/nets/old.pth").maps(torch.rand(1, 3, 28, 28))[0].shape == (1, 64, 14, 14)


class Planted:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("this must never run",))


@pytest.mark.slow
def test_files_that_do_not_fit_are_refused(
    folder: Path, network: nn.Module, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(NotFound):
        load(folder / "missing.pth")
    deeper = torchvision.models.resnet34(weights=None)
    torch.save(deeper.state_dict(), folder / "deeper.pth")
    with pytest.raises(InputError, match=r"(?s)does not hold a ResNet-18.*layer1\.2\.bn1\.bias"):
        load(folder / "deeper.pth")
    torch.save({**network.state_dict(), "conv1.weight": torch.zeros(64, 3, 3, 3)}, folder / "stem.pth")
    with pytest.raises(InputError, match=r"conv1\.weight: \(64, 3, 3, 3\) in the file, \(64, 3, 7, 7\) expected"):
        load(folder / "stem.pth")
    torch.save({"state_dict": network.state_dict(), "epoch": 3}, folder / "nested.pth")
    with pytest.raises(InputError, match="not names and tensors"):
        load(folder / "nested.pth")
    torch.save({"conv1.weight": Planted()}, folder / "planted.pth")
    (folder / "text.pth").write_bytes(b"<html>not found</html>")
    (folder / "text.safetensors").write_bytes(b"no tensors here")
    for name in ("planted.pth", "text.pth", "text.safetensors"):
        with pytest.raises(InputError, match="without running code"):
            load(folder / name)
    assert "never run" not in capsys.readouterr().out


def test_configurations_name_one_source_and_layers_that_exist() -> None:
    for wrong in ({}, {"weights": "a.pth", "model_id": "0" * 64}, {"weights": "a.pth", "layers": (5,)}):
        with pytest.raises(ValidationError):
            FrozenConfig(**wrong)
    with pytest.raises(ValidationError):
        FrozenConfig(model_id="0" * 64, layers=(-1,))


class Small(Model):
    """A model with two maps, to look through."""

    image_size = 16
    latent_dim = 2

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, 2, 1)
        self.second = nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, 2, 1))

    def maps(self, pictures: Tensor) -> list[Tensor]:
        first = self.first(pictures)
        return [first, self.second(first)]

    def forward(self, batch: Batch, step: Step) -> Losses:
        raise NotImplementedError

    def encode(self, images: Tensor, condition: Tensor | None = None) -> Latents:
        raise NotImplementedError


def test_a_bundle_is_looked_through_by_its_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    model, asked = Small(), "a" * 64

    def load_small(store: object, model_id: str) -> object:
        assert (store, model_id) == ("the store", asked)
        return type("Bundle", (), {"model": model})

    monkeypatch.setattr(frozen_loading, "load_bundle", load_small)
    encoder = load_frozen(FrozenConfig(model_id=asked, layers=(1,)), "the store")
    pictures = torch.rand(2, 3, 16, 16)
    assert torch.equal(encoder.maps(pictures)[0], model.maps(pictures)[1])
    assert not model.training
    with pytest.raises(ConfigError, match="16 pixels and these are 32"):
        encoder.maps(torch.rand(2, 3, 32, 32))
    with pytest.raises(ConfigError, match="maps 0 to 1"):
        BundleFeatures(model, (2,)).maps(pictures)


def test_copies_of_a_user_share_the_encoder(folder: Path) -> None:
    encoder = load(folder / "resnet18.pth")
    assert copy.deepcopy({"held": (encoder,)})["held"][0] is encoder
