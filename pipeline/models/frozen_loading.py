"""Frozen encoders brought from where they lie: a file of a ResNet-18's weights, or a bundle of the store."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..storage import Files, Store
from .base import Model
from .bundle import load_bundle
from .foreign.weights import load_exactly, tensors_of
from .frozen import IMAGENET_MEAN, IMAGENET_STD, FrozenConfig, FrozenEncoder
from .pretrained import Pretrained


class ResNet18(FrozenEncoder):
    """Stem and stages of a ResNet-18 (He et al. 2015, arXiv 1512.03385) before its average pooling."""

    mean: Tensor
    std: Tensor

    def __init__(self, tensors: dict[str, Tensor], layers: tuple[int, ...], source: str) -> None:
        import torchvision

        with torch.random.fork_rng(devices=[]):
            network = torchvision.models.resnet18(weights=None)
        network.fc = nn.Identity()
        classifier = {name for name in tensors if name.startswith("fc.")}
        load_exactly(network, tensors, optional=classifier, what="a ResNet-18 of torchvision", source=source)
        super().__init__(network, layers)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1))

    def _all(self, pictures: Tensor) -> list[Tensor]:
        network: Any = self.network
        values = network.relu(network.bn1(network.conv1((pictures - self.mean) / self.std)))
        found = [values]
        values = network.maxpool(values)
        for stage in (network.layer1, network.layer2, network.layer3, network.layer4)[: max(self.layers)]:
            values = stage(values)
            found.append(values)
        return found


class BundleFeatures(FrozenEncoder):
    """The encoder of a finished model of this project."""

    def __init__(self, model: Model, layers: tuple[int, ...]) -> None:
        super().__init__(model, layers)
        self.image_size = model.image_size

    def _all(self, pictures: Tensor) -> list[Tensor]:
        if pictures.shape[-1] != self.image_size and not isinstance(self.network, Pretrained):
            raise ConfigError(
                f"the frozen encoder is of photos of {self.image_size} pixels and these are {pictures.shape[-1]}; "
                f"set images.size to {self.image_size}, or name another bundle"
            )
        model: Any = self.network
        found: list[Tensor] = model.maps(pictures)
        return found


def load_frozen(config: FrozenConfig, store: Store, files: Files | None = None) -> FrozenEncoder:
    """Return the frozen encoder of a configuration, on the CPU; torch's random generator stays as it is.

    store: holds the bundles. files: reads the weights, by default as the store is reached. Raises NotFound,
    Forbidden, Unavailable, InputError where the weights are not those of a ResNet-18, ConfigError for a missing map.
    """
    if config.model_id is not None:
        return BundleFeatures(load_bundle(store, config.model_id).model, config.layers)
    assert config.weights is not None  # noqa: S101 - the configuration has exactly one of the two
    data = (files or Files(store.options)).read(config.weights)
    return ResNet18(tensors_of(data, config.weights, of_training=False), config.layers, config.weights)
