"""Features of a network that others trained, in a bundle that holds it whole: encoding needs its file no more.

Nothing is downloaded, and nothing of a file is run but an ONNX graph, by onnxruntime.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)
from torch import Tensor, nn

from ..errors import ConfigError, InputError
from ..images import ImagesConfig
from ..keys import digest_of
from ..storage import Files
from .backbones import check_image_size
from .base import Batch, Latents, Losses, Model, ModelConfig, Step, to_float
from .foreign.config import filled, refuse_gaps
from .foreign.network import ForeignNetwork, Seen
from .foreign.onnx_graphs import GraphConfig, graph_of
from .foreign.onnx_network import OnnxNetwork
from .foreign.preprocessing import PreprocessingConfig, Values
from .foreign.recipes import Source
from .foreign.timm_network import TimmNetwork
from .foreign.torchvision_network import TorchvisionNetwork
from .foreign.weights import tensors_of
from .frozen import IMAGENET_MEAN, IMAGENET_STD, FrozenConfig, FrozenEncoder, resnet18_map
from .readout import ReadOut, ReadOutConfig

_OF_RESNET18 = ("layer", "enlarge_to")  # what says something only without a source
_OF_SOURCES = ("recipe", "source", "architecture", "output", "preprocessing", "licence", "sha256", "graph")


class CheckConfig(BaseModel):
    """What `codebooks doctor` holds the network to. vector: what its own library says of the test picture, before any
    PCA: a list of numbers, or the path of a .npy file. tolerance: how far the cosine may be from 1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    vector: str | tuple[float, ...] = Field(min_length=1)
    tolerance: float = Field(default=1e-3, gt=0, lt=1)


class PretrainedConfig(ModelConfig):
    """weights: path or URI of the file: ONNX, or a state dict as .safetensors or .pth.

    recipe: a known network (`foreign/recipes.py`), which sets the fields below where the config does not. Any other
    network is told by them. source: `onnx`, or the library whose architecture the weights are of. output: what is read:
    of an ONNX file the name of an output or inner value; of torchvision a node (`layer4`, `features`, `avgpool`); of
    timm `features`, `pooled`, `head` or `layers.N`. preprocessing: how it is shown photos. licence: that of the
    weights, for the card. read_out: how the output becomes a vector. sha256: the file is refused unless it has this
    digest. check: a vector that `codebooks doctor` compares with.

    Without recipe and source it is torchvision's ResNet-18, shown the run's own pixels: layer: the stage, 1 to 4, whose
    map is read out. enlarge_to: side in pixels to which photos are enlarged first, bilinearly.

    graph: what is known of an ONNX file; it and sha256 are filled in when the bundle is made.
    """

    kind: Literal["pretrained"] = "pretrained"
    weights: str = Field(default="resnet18-f37072fd.pth", min_length=1)
    layer: int = Field(default=4, ge=1, le=4)
    enlarge_to: int | None = Field(default=None, ge=32)
    read_out: ReadOutConfig = ReadOutConfig()
    recipe: str | None = None
    source: Source | None = None
    architecture: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_.]+$")
    output: str | None = Field(default=None, min_length=1)
    preprocessing: PreprocessingConfig | None = None
    licence: str | None = None
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    graph: GraphConfig | None = None
    check: CheckConfig | None = Field(default=None, exclude=True)  # says nothing of the model

    @model_validator(mode="before")
    @classmethod
    def _filled_in(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        values = filled(given)
        if values.get("source") is None:
            named = [name for name in _OF_SOURCES if values.get(name) is not None]
            if named:
                raise ValueError(f"{named[0]} is named, but neither a recipe nor a source (torchvision, timm, onnx)")
            return values
        refuse_gaps(values)
        named = [name for name in _OF_RESNET18 if values.get(name) is not None]
        if named:
            raise ValueError(f"{named[0]} is of ResNet-18 files without a recipe; name output and preprocessing.size")
        return values

    @model_serializer(mode="wrap")
    def _only_what_says_something(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = dump(self)
        left_out = _OF_SOURCES if self.source is None else _OF_RESNET18
        return {name: value for name, value in values.items() if name not in left_out}

    def frozen(self) -> FrozenConfig | None:
        """Return the ResNet-18 that `use_frozen` takes the weights from, None with a source."""
        return FrozenConfig(weights=self.weights, layers=(self.layer,)) if self.source is None else None

    def file(self) -> str | None:
        """Return the file that `use_file` takes the weights from, None without a source."""
        return None if self.source is None else self.weights

    def described(self, files: Files) -> PretrainedConfig:
        """Return the config with the file's digest, and of an ONNX file with what is known of its graph.

        Raises InputError for another file than `sha256` names, or one that cannot be read as what it is said to be.
        """
        if self.source is None:
            return self
        data = files.read(self.weights)
        digest = digest_of(data)
        if self.sha256 not in (None, digest):
            raise InputError(
                f"model.sha256 is {self.sha256}, but {self.weights} ({len(data):,} bytes) has {digest}; give the file "
                "that is meant, or mend the digest"
            )
        graph = None
        if self.source == "onnx":
            assert self.output is not None and self.preprocessing is not None  # noqa: S101, PT018 - validated
            graph = graph_of(data, self.weights, self.output, self.preprocessing.size).config
        else:
            tensors_of(data, self.weights)  # refused here, before a night has fetched a photo for it
        return self.model_copy(update={"sha256": digest, "graph": graph})

    def transforms(self, images: ImagesConfig) -> tuple[ImagesConfig, ...]:
        """Return the network's own preprocessing, with the limits of the run's section; without a source that."""
        return (images if self.preprocessing is None else self.preprocessing.transform(images),)


class Pretrained(Model):
    """A network up to an output, and what it says there, read out. Never in training mode: its norms stay as is."""

    trains: ClassVar[bool] = False

    def __init__(self, config: PretrainedConfig, image_size: int) -> None:
        super().__init__()
        self.config = config
        self.of_token = config.read_out.pool == "cls"
        if config.preprocessing is None:
            check_image_size(image_size)
            self.image_size, self.side = image_size, config.enlarge_to or image_size
            if self.side < image_size:
                raise ConfigError(
                    f"model.enlarge_to is {self.side}, less than the {image_size} pixels of images.size; name more, or "
                    "none"
                )
            self.network: nn.Module = stages_of_resnet18(config.layer)
            channels, grid = resnet18_map(config.layer, self.side)
            self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1))
            self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1))
        else:
            self.image_size = self.side = config.preprocessing.size
            self.values = Values(config.preprocessing)
            network = network_of(config)
            channels, grid = self._shape(network)
            self.network = network
        self.shape = channels, grid  # of what is read out
        self.read_out = ReadOut(config.read_out, channels, grid, of_token=self.of_token)
        self.latent_dim = self.read_out.latent_dim
        self.fits = self.read_out.needs_fit
        self.eval().requires_grad_(requires_grad=False)

    def train(self, mode: bool = True) -> Pretrained:  # noqa: FBT001, FBT002 - nn.Module's signature
        """Stay in evaluation mode."""
        return super().train(mode=False)

    def forward(self, batch: Batch, step: Step) -> Losses:
        """Raise ConfigError: there is no loss."""
        raise ConfigError("model.kind pretrained is not trained; its weights come from model.weights")

    def encode(self, images: Tensor, condition: Tensor | None = None) -> Latents:
        """Return mean, float32 [B, latent_dim], of photos, uint8 [B, 3, H, W]."""
        return Latents(self.read_out.vectors(self.seen(to_float(images))))

    def seen(self, pictures: Tensor) -> Tensor:
        """Return what is read out of pictures float [B, 3, H, W] in 0..1: maps [B, C, h, h]; a vector is one of h = 1.

        Raises ConfigError where the read-out wants what the output does not have.
        """
        if not isinstance(self.network, ForeignNetwork):
            return self.maps(pictures)[-1]
        return self._read(self.network.seen(self.values(pictures)))

    def maps(self, pictures: Tensor) -> list[Tensor]:
        """Return the maps up to the output, finest first, of pictures float [B, 3, H, W] in 0..1 of any size."""
        if isinstance(self.network, ForeignNetwork):
            return self.network.all_maps(self.values(self._sized(pictures)))
        values = self._sized((pictures - self.get_buffer("mean")) / self.get_buffer("std"))
        found = []
        for name, stage in self.network.named_children():
            values = stage(values)
            if name.startswith("layer"):
                found.append(values)
        return found

    def use_frozen(self, frozen: FrozenEncoder) -> None:
        """Copy the ResNet-18's weights."""
        source: dict[str, Any] = frozen.network.state_dict()
        self.network.load_state_dict({name: source[name] for name in self.network.state_dict()})

    def use_file(self, data: bytes, source: str) -> None:
        """Copy the weights of a file. Raises InputError for another network's, or one that cannot be read."""
        assert isinstance(self.network, ForeignNetwork)  # noqa: S101 - who has no source names no file
        self.network.take(data, source)

    def fit(self, batches: Iterable[Batch]) -> None:
        """Fit the read-out's components where it has some."""
        self.read_out.fit_batches(batches, lambda images: self.read_out.pooled(self.seen(to_float(images))))

    def _sized(self, values: Tensor) -> Tensor:
        """Return pictures or values [B, 3, H, W] at the side that the network takes."""
        if values.shape[-1] == self.side:
            return values
        shrinks = values.shape[-1] > self.side
        return F.interpolate(values, size=(self.side, self.side), mode="bilinear", antialias=shrinks)

    def _read(self, found: Seen) -> Tensor:
        """Return what is read out, [B, C, h, h]; a vector is one of h = 1."""
        if self.of_token and found.vector is None:
            raise ConfigError(
                f"model.read_out.pool is cls, but the output {self.config.output!r} has no class token; name global"
            )
        if found.maps is not None and not self.of_token:
            return found.maps
        assert found.vector is not None  # noqa: S101 - an output has one of the two
        return found.vector[:, :, None, None]

    def _shape(self, network: ForeignNetwork) -> tuple[int, int]:
        """Return channels and side of what is read out."""
        with torch.no_grad():
            found = self._read(network.blank(self.side))
        return found.shape[1], found.shape[2]


def network_of(config: PretrainedConfig) -> ForeignNetwork:
    """Return the network of a config with a source, on the CPU, without its weights. Raises ConfigError."""
    assert config.preprocessing is not None and config.output is not None  # noqa: S101, PT018 - validated
    if config.source == "onnx":
        if config.graph is None:
            raise ConfigError(
                "model.graph is filled in when the bundle is made; train this model, then load its bundle"
            )
        return OnnxNetwork(config.graph, config.preprocessing.size)
    assert config.architecture is not None  # noqa: S101 - validated
    kind = TimmNetwork if config.source == "timm" else TorchvisionNetwork
    return kind(config.architecture, config.output, config.preprocessing.size)


def stages_of_resnet18(layer: int) -> nn.Sequential:
    """Return torchvision's ResNet-18 up to a layer, its tensors named as there."""
    import torchvision

    network = torchvision.models.resnet18(weights=None)
    names = ["conv1", "bn1", "relu", "maxpool", *(f"layer{stage}" for stage in range(1, layer + 1))]
    stages = nn.Sequential()
    for name in names:
        stages.add_module(name, getattr(network, name))
    return stages
