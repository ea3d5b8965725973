"""Beginning a training with the convolutions of another model, for example a VAE with those of an autoencoder."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import ConfigError
from .base import Model

_CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
_NORMS = (nn.GroupNorm, _BatchNorm)  # what a convolution learnt, it learnt together with its normalisation


def copy_convolutions(model: Model, source: Model) -> list[str]:
    """Copy into `model` every convolution, and normalisation, that `source` has under its name and shape.

    Everything else keeps its fresh weights: the layers to and from the latents belong to one model's latents. Returns
    the names of the tensors, in the model's order. Raises ConfigError when no convolution fits.
    """
    learnt = source.state_dict()
    fitting: list[str] = []
    convolutions = 0
    for prefix, layer in model.named_modules():
        if not isinstance(layer, _CONVOLUTIONS + _NORMS):
            continue
        names = {name: f"{prefix}.{name}" for name in layer.state_dict()}
        if any(
            full not in learnt or learnt[full].shape != layer.state_dict()[name].shape for name, full in names.items()
        ):
            continue
        with torch.no_grad():
            for name, full in names.items():
                layer.state_dict()[name].copy_(learnt[full])
        fitting += names.values()
        convolutions += isinstance(layer, _CONVOLUTIONS)
    if not convolutions:
        raise ConfigError(
            f"no convolution of the {type(source).__name__} fits this {type(model).__name__}: train both with the same "
            "network and channels, or leave train.init_from out"
        )
    return fitting
