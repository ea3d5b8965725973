"""A pretrained network as the backbone of a model that is trained: its last blocks learn on, the others stay."""

from __future__ import annotations

import re
from typing import Any

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator
from torch import Tensor, nn

from ..errors import ConfigError
from .foreign.network import ForeignNetwork
from .pretrained import Pretrained, PretrainedConfig
from .readout import ReadOutConfig

# What libraries call a block: `blocks.11`, `blocks.6.0`, `layer4.1`, `stages.3.blocks.2`, `features.7.0`.
_BLOCK = re.compile(r"^network\.((?:trunk\.)?[A-Za-z_]+\.?\d+(?:\.(?:[a-z]+\.)?\d+)?)\.")


class BackboneConfig(PretrainedConfig):
    """A pretrained network, as of kind `pretrained`, of a torchvision or timm file; an ONNX file cannot learn.

    train_last: how many of its last blocks learn on, with what comes after them. Its norms keep the statistics that
    they were trained with, whatever the batch. Take a learning rate a tenth or less of what a new network gets
    (train.learning_rate 1e-4 for AdamW). read_out.pool: `cls` for a transformer's class token.
    """

    train_last: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _can_learn(self) -> BackboneConfig:
        if self.source is None or self.source == "onnx":
            raise ValueError(
                f"backbone: {self.weights} cannot be trained on; name a recipe, or a source (torchvision, timm), of a "
                ".pth or .safetensors file"
            )
        if self.read_out != ReadOutConfig(pool=self.read_out.pool):
            raise ValueError("backbone.read_out names more than pool; name the rest in model.read_out")
        return self

    @model_serializer(mode="wrap")
    def _with_blocks(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = dump(self)
        return {name: value for name, value in values.items() if name not in ("layer", "enlarge_to")}


class TunedBackbone(nn.Module):
    """Pictures float [B, 3, size, size] in 0..1 to the map that a pretrained network shows, [B, C, h, h]."""

    def __init__(self, config: BackboneConfig, image_size: int) -> None:
        super().__init__()
        self.inner = Pretrained(config, image_size)
        channels, side = self.inner.shape
        self.shape = (channels, side, side)
        network = self.inner.network
        assert isinstance(network, ForeignNetwork)  # noqa: S101 - a config of a backbone has a source
        learning = last_blocks(network, config.train_last)
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(name in learning)

    def forward(self, pictures: Tensor) -> Tensor:
        """Return the map."""
        return self.inner.seen(pictures)

    def maps(self, pictures: Tensor) -> list[Tensor]:
        """Return the maps up to it, finest first."""
        return self.inner.maps(pictures)


def last_blocks(network: ForeignNetwork, count: int) -> set[str]:
    """Return the names of the parameters of a network's last blocks and of all that comes after them.

    Raises ConfigError where it has fewer blocks.
    """
    names = [name for name, _ in network.named_parameters()]
    blocks = [found[1] if (found := _BLOCK.match(name)) else None for name in names]
    order = list(dict.fromkeys(block for block in blocks if block is not None))
    if count > len(order):
        raise ConfigError(
            f"model.backbone.train_last is {count}, but the network has {len(order)} blocks"
            f"{': ' + ', '.join(order[-4:]) if order else ''}; name at most these"
        )
    begin = blocks.index(order[-count])
    return set(names[begin:])
