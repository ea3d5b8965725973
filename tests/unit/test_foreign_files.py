"""Files that are no pretrained network, or another one: clear errors, and nothing of a file is run."""

from __future__ import annotations

import io
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import safetensors.torch
import torch
from onnx import TensorProto, helper
from pydantic import ValidationError

import foreign_files as FILES
from pipeline.errors import ConfigError, InputError, NotFound
from pipeline.models.examining import given_vector
from pipeline.models.foreign.onnx_graphs import graph_of
from pipeline.models.foreign.weights import tensors_of
from pipeline.storage import Files

loaded, parsed, graph_file = FILES.loaded, FILES.parsed, FILES.graph_file
VIT = {"source": "timm", "architecture": "test_vit", "output": "pooled"}


def vit(path: Path, **values: Any) -> Any:
    return loaded(parsed(**{**VIT, "weights": str(path), **values}))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vit") / "vit.pth"
    torch.save(FILES.random_timm("test_vit", img_size=FILES.SIZE, num_classes=1000).state_dict(), path)
    return path


class Trap:
    """Pickled, it writes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_no_code_of_a_file_is_run(tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    torch.save({"w": torch.zeros(1), "trap": Trap(sprung)}, tmp_path / "a.pth")
    (tmp_path / "b.pth").write_bytes(pickle.dumps(Trap(sprung)))
    torch.save(torch.nn.Linear(2, 2), tmp_path / "c.pth")  # a whole module, not its tensors
    for name in ("a.pth", "b.pth", "c.pth"):
        with pytest.raises(InputError, match=r"pickled Python objects or code.*state dict"):
            vit(tmp_path / name)
        with pytest.raises(InputError, match=r"pickled Python objects or code"):  # what a plan asks, before all else
            parsed(**{**VIT, "weights": str(tmp_path / name)}).described(Files())
    assert not sprung.exists()
    pickle.loads((tmp_path / "b.pth").read_bytes())  # the trap works where code is run
    assert sprung.exists()


def test_files_that_are_no_weights_or_are_cut_short(whole: Path, tmp_path: Path) -> None:
    data = whole.read_bytes()
    (tmp_path / "cut.pth").write_bytes(data[: len(data) // 2])
    (tmp_path / "text.pth").write_bytes(b"not found: 404\n" * 9)
    (tmp_path / "empty.pth").write_bytes(b"")
    tensors = safetensors.torch.save({"w": torch.zeros(50)})
    (tmp_path / "cut.safetensors").write_bytes(tensors[:-20])
    for name in ("cut.pth", "text.pth", "empty.pth", "cut.safetensors"):
        with pytest.raises(InputError, match=rf"{name} \([\d,]+ bytes\) holds no tensors.*state dict"):
            vit(tmp_path / name)
    torch.save({"epoch": 3, "optimizer": {}}, tmp_path / "other.pth")
    with pytest.raises(InputError, match="'epoch' is a int"):
        vit(tmp_path / "other.pth")
    with pytest.raises(NotFound, match=r"none\.pth"):
        vit(tmp_path / "none.pth")


def test_bytes_that_are_cut_or_changed_anywhere_are_read_or_refused_by_name(tmp_path: Path) -> None:
    tensors = {"a.weight": torch.arange(6.0).reshape(2, 3), "n": torch.tensor(3)}
    old, new = io.BytesIO(), io.BytesIO()
    torch.save(tensors, old, _use_new_zipfile_serialization=False)
    torch.save(tensors, new)
    vector = io.BytesIO()
    np.save(vector, np.arange(5.0))
    graph_file(tmp_path / "g.onnx")

    def check(data: bytes) -> Any:
        (tmp_path / "v.npy").write_bytes(data)
        return given_vector(str(tmp_path / "v.npy"), Files())

    readers: dict[str, tuple[bytes, Callable[[bytes], Any]]] = {
        "old.pth": (old.getvalue(), lambda data: tensors_of(data, "old.pth")),
        "new.pth": (new.getvalue(), lambda data: tensors_of(data, "new.pth")),
        "a.safetensors": (safetensors.torch.save(tensors), lambda data: tensors_of(data, "a.safetensors")),
        "v.npy": (vector.getvalue(), check),
        "g.onnx": ((tmp_path / "g.onnx").read_bytes(), lambda data: graph_of(data, "g.onnx", "vector", FILES.SIZE)),
    }
    drawn = np.random.default_rng(0)
    for name, (whole, reads) in readers.items():
        texts = []
        changed = [whole[:length] for length in range(0, len(whole), 1 if name == "old.pth" else 41)]
        for at in drawn.integers(0, len(whole), 100):
            changed.append(whole[:at] + bytes([int(drawn.integers(256))]) + whole[at + 1 :])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # numbers that a changed byte has made huge
            for data in changed:
                try:
                    reads(data)
                except (InputError, ConfigError) as error:  # whatever else is raised fails the test
                    texts.append(str(error))
        assert len(texts) > 20
        assert all(name in text for text in texts)
    with pytest.raises(IndexError):  # known wrong: what was thought to be all that the old format's reader raises
        torch.load(io.BytesIO(old.getvalue()[:1]), weights_only=True)


@pytest.mark.slow
def test_weights_of_another_architecture_are_named_by_their_first_tensors(whole: Path, tmp_path: Path) -> None:
    resnet = FILES.random_timm("test_resnet")
    torch.save(resnet.state_dict(), tmp_path / "r.pth")
    with pytest.raises(InputError, match=r"(?s)does not hold timm's test_vit of 32 pixels: .*\ncls_token: missing in"):
        vit(tmp_path / "r.pth")
    some = torch.load(whole, weights_only=True)
    del some["blocks.1.attn.qkv.weight"]
    torch.save(some, tmp_path / "holes.pth")
    with pytest.raises(InputError, match=r"(?s)1 of \d+ tensors differ\nblocks\.1\.attn\.qkv\.weight: missing"):
        vit(tmp_path / "holes.pth")
    torch.save({**some, "blocks.1.attn.qkv.weight": torch.zeros(3, 3)}, tmp_path / "shape.pth")
    with pytest.raises(InputError, match=r"qkv\.weight: \(3, 3\) in the file, \(192, 64\) expected"):
        vit(tmp_path / "shape.pth")
    with pytest.raises(InputError, match=r"(?s)torchvision's resnet18: .*conv1\.weight: missing in the file"):
        vit(whole, source="torchvision", architecture="resnet18", output="layer1", preprocessing=FILES.PLAIN)


@pytest.mark.slow
def test_layers_and_sizes_that_do_not_exist(whole: Path) -> None:
    for output, wrong in (("layers.99", "earlier layer"), ("blocks.1", "pooled, head, features, layers.N")):
        with pytest.raises(ConfigError, match=wrong):
            vit(whole, output=output)
    with pytest.raises(ConfigError, match=r"preprocessing\.size is 33"):
        vit(whole, preprocessing={**FILES.PLAIN, "size": 33})
    with pytest.raises(ConfigError, match="output 'layer1' has no class token"):
        vit(whole, source="torchvision", architecture="resnet18", output="layer1", read_out={"pool": "cls"})
    for source, name, near in (("timm", "test_vitt", "test_vit"), ("torchvision", "resnet19", "resnet18")):
        with pytest.raises(ConfigError, match=rf"'{name}'.*{near}"):
            vit(whole, source=source, architecture=name)
    with pytest.raises(ConfigError, match=r"'layer9'.*layer4"):
        vit(whole, source="torchvision", architecture="resnet18", output="layer9")


def test_what_is_missing_is_asked_for_by_name() -> None:
    with pytest.raises(ValidationError, match=r"needs to be told: licence \(of the weights.*efficientnet_lite0"):
        parsed(weights="a.onnx", output="x", licence="")
    with pytest.raises(ValidationError, match=r"architecture.*output.*licence"):
        parsed(source="torchvision", weights="a.pth", licence="")
    with pytest.raises(ValidationError, match=r"preprocessing\.size, preprocessing\.fit.*preprocessing\.std"):
        parsed(weights="a.onnx", output="x", preprocessing="")
    with pytest.raises(ValidationError, match=r"preprocessing\.mean"):
        parsed(weights="a.onnx", output="x", preprocessing={"size": 224, "fit": "crop", "resample": "box", "std": 1})
    with pytest.raises(ValidationError, match=r"weights is missing.*dinov2_vits14_pretrain"):
        parsed(recipe="dinov2_vits14", licence="", preprocessing="")
    with pytest.raises(ValidationError, match=r"'dinov9'.*dinov2_vits14"):
        parsed(recipe="dinov9", weights="a.pth")
    with pytest.raises(ValidationError, match="neither a recipe nor a source"):
        parsed(weights="a.pth")
    with pytest.raises(ValidationError, match="nothing can be divided by 0"):
        parsed(weights="a.onnx", output="x", preprocessing={**FILES.PLAIN, "std": 0})
    with pytest.raises(ValidationError, match="layer is of ResNet-18 files"):
        parsed(weights="a.onnx", output="x", layer=2)


def test_a_recipe_tells_everything_and_the_config_has_the_last_word() -> None:
    config = parsed(
        recipe="efficientnet_lite0", weights="l.pth", licence="", preprocessing={"fit": "pad", "crop_share": None}
    )
    assert config.preprocessing.size == 224
    assert config.preprocessing.fit == "pad"
    assert config.preprocessing.mean == (127, 127, 127)
    assert (config.source, config.architecture, config.licence) == ("timm", "tf_efficientnet_lite0", "Apache-2.0")
    assert parsed(recipe="dinov2_vits14", weights="d.pth", licence="").read_out.pool == "cls"
    again = type(config).model_validate(config.model_dump(mode="json"))
    assert again == config


# --- ONNX


def onnx_of(path: Path, **values: Any) -> Any:
    return loaded(parsed(weights=str(path), **{"output": "vector", **values}))


def test_onnx_files_that_are_none_or_cut_short(tmp_path: Path) -> None:
    graph_file(tmp_path / "g.onnx")
    data = (tmp_path / "g.onnx").read_bytes()
    for name, content in (("cut", data[:-40]), ("half", data[: len(data) // 2]), ("text", b"<html>" * 20), ("no", b"")):
        (tmp_path / f"{name}.onnx").write_bytes(content)
        with pytest.raises(InputError, match=rf"{name}\.onnx .*ONNX"):
            onnx_of(tmp_path / f"{name}.onnx")


def test_onnx_graphs_that_cannot_be_used(tmp_path: Path) -> None:
    graph_file(tmp_path / "g.onnx")
    with pytest.raises(ConfigError, match=r"'vectr'.*its outputs: vector; known: .*maps"):
        onnx_of(tmp_path / "g.onnx", output="vectr")
    with pytest.raises(ConfigError, match=r"size is 48, but .* takes pictures of 32 x 32"):
        onnx_of(tmp_path / "g.onnx", preprocessing={**FILES.PLAIN, "size": 48})
    model = onnx.load(str(tmp_path / "g.onnx"))
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL
    model.graph.initializer[0].external_data.add(key="location", value="/etc/hostname")
    (tmp_path / "outside.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match="keeps its tensor 'w' in another file"):
        onnx_of(tmp_path / "outside.onnx")
    two = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 32, 32]) for name in ("x", "y")]
    out = helper.make_tensor_value_info("vector", TensorProto.FLOAT, [1, 3, 32, 32])
    graph = helper.make_graph([helper.make_node("Add", ["x", "y"], ["vector"])], "g", two, [out])
    both = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    (tmp_path / "two.onnx").write_bytes(both.SerializeToString())
    with pytest.raises(InputError, match="picture tower alone"):
        onnx_of(tmp_path / "two.onnx")


def test_a_file_of_another_digest_is_refused(tmp_path: Path) -> None:
    graph_file(tmp_path / "g.onnx")
    with pytest.raises(InputError, match=r"model\.sha256 is a{64}, but .* has [0-9a-f]{64}"):
        onnx_of(tmp_path / "g.onnx", sha256="a" * 64)


def test_weights_before_they_are_there_are_an_error(tmp_path: Path) -> None:
    graph_file(tmp_path / "g.onnx")
    model = onnx_of(tmp_path / "g.onnx")
    model.network.graph.zero_()
    model.network.config = model.network.config.model_copy(update={"sha256": "0" * 64})
    with pytest.raises(InputError, match="no weights yet"):
        model.encode(torch.zeros(1, 3, FILES.SIZE, FILES.SIZE, dtype=torch.uint8))
    assert np.isfinite(onnx_of(tmp_path / "g.onnx").encode(FILES.photos()).mean.numpy()).all()
