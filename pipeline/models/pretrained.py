"""Features of a network that others trained, as a baseline: torchvision's ResNet-18, read from a file of its weights.

Nothing is trained and nothing downloaded. The weights become part of the bundle, so encoding needs the file no more.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from ..errors import ConfigError
from .backbones import check_image_size
from .base import Batch, Latents, Losses, Model, ModelConfig, Step, to_float
from .frozen import IMAGENET_MEAN, IMAGENET_STD, FrozenConfig, FrozenEncoder, resnet18_map
from .readout import ReadOut, ReadOutConfig


class PretrainedConfig(ModelConfig):
    """weights: path or URI of the state dict of torchvision's resnet18, .pth or .safetensors.

    By default the file as torchvision names it, in the folder the command is run in. layer: the stage, 1 to 4, whose
    map is read out. enlarge_to: side in pixels to which photos are enlarged first, bilinearly; the network was
    trained on 224, and of 28 pixels only a single cell is left. read_out: how, by default its mean, 512 numbers; `dims`
    gives fewer by a PCA.
    """

    kind: Literal["pretrained"] = "pretrained"
    weights: str = Field(default="resnet18-f37072fd.pth", min_length=1)
    layer: int = Field(default=4, ge=1, le=4)
    enlarge_to: int | None = Field(default=None, ge=32)
    read_out: ReadOutConfig = ReadOutConfig()

    def frozen(self) -> FrozenConfig:
        """Return the network that `use_frozen` takes the weights from."""
        return FrozenConfig(weights=self.weights, layers=(self.layer,))


class Pretrained(Model):
    """A ResNet-18's stages up to a layer, its map read out. Never in training mode: its norms stay as they were."""

    trains: ClassVar[bool] = False
    mean: Tensor
    std: Tensor

    def __init__(self, config: PretrainedConfig, image_size: int) -> None:
        super().__init__()
        check_image_size(image_size)
        self.config = config
        self.image_size = image_size
        self.network = stages_of_resnet18(config.layer)
        self.side = config.enlarge_to or image_size
        if self.side < image_size:
            raise ConfigError(
                f"model.enlarge_to is {self.side}, less than the {image_size} pixels of images.size; name more, or none"
            )
        channels, grid = resnet18_map(config.layer, self.side)
        self.read_out = ReadOut(config.read_out, channels, grid)
        self.latent_dim = self.read_out.latent_dim
        self.fits = self.read_out.needs_fit
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1))
        self.eval().requires_grad_(requires_grad=False)

    def train(self, mode: bool = True) -> Pretrained:  # noqa: FBT001, FBT002 - nn.Module's signature
        """Stay in evaluation mode."""
        return super().train(mode=False)

    def forward(self, batch: Batch, step: Step) -> Losses:
        """Raise ConfigError: there is no loss."""
        raise ConfigError("model.kind pretrained is not trained; its weights come from model.weights")

    def encode(self, images: Tensor, condition: Tensor | None = None) -> Latents:
        """Return mean, float32 [B, latent_dim], of photos, uint8 [B, 3, H, W]."""
        return Latents(self.read_out.vectors(self.maps(to_float(images))[-1]))

    def maps(self, pictures: Tensor) -> list[Tensor]:
        """Return the maps of the stages up to the layer, finest first, of pictures float [B, 3, H, W] in 0..1."""
        values = (pictures - self.mean) / self.std
        if self.side != self.image_size:
            values = F.interpolate(values, size=(self.side, self.side), mode="bilinear")
        found = []
        for name, stage in self.network.named_children():
            values = stage(values)
            if name.startswith("layer"):
                found.append(values)
        return found

    def use_frozen(self, frozen: FrozenEncoder) -> None:
        """Copy the weights of the ResNet-18 that `frozen()` asked for."""
        source: dict[str, Any] = frozen.network.state_dict()
        self.network.load_state_dict({name: source[name] for name in self.network.state_dict()})

    def fit(self, batches: Iterable[Batch]) -> None:
        """Fit the read-out's components where it has some."""
        self.read_out.fit_batches(batches, lambda images: self.read_out.pooled(self.maps(to_float(images))[-1]))


def stages_of_resnet18(layer: int) -> nn.Sequential:
    """Return torchvision's ResNet-18 up to a layer, its tensors named as there."""
    import torchvision

    network = torchvision.models.resnet18(weights=None)
    names = ["conv1", "bn1", "relu", "maxpool", *(f"layer{stage}" for stage in range(1, layer + 1))]
    stages = nn.Sequential()
    for name in names:
        stages.add_module(name, getattr(network, name))
    return stages
