"""The table of kinds: every model, the union of their configurations, and how one is built.

To add a model: its file, one line in MODELS, one member in AnyModelConfig, presets and a golden file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from ..errors import ConfigError
from .autoencoder import Autoencoder, AutoencoderConfig
from .base import Model, ModelConfig
from .cvae import CVAE, CVAEConfig
from .descriptor import Descriptor, DescriptorConfig
from .dino import DINO, DINOConfig
from .distilled import Distilled, DistilledConfig
from .fusion import Fusion, FusionConfig
from .mae import MAE, MAEConfig
from .moco import MoCo, MoCoConfig
from .moco_v3 import MoCoV3, MoCoV3Config
from .pretrained import Pretrained, PretrainedConfig
from .ridge import Ridge, RidgeConfig
from .simclr import SimCLR, SimCLRConfig
from .vae import VAE, VAEConfig
from .vqvae import VQVAE, VQVAEConfig
from .vqvae2 import VQVAE2, VQVAE2Config

MODELS: dict[str, tuple[type[ModelConfig], type[Model]]] = {
    "autoencoder": (AutoencoderConfig, Autoencoder),
    "cvae": (CVAEConfig, CVAE),
    "descriptor": (DescriptorConfig, Descriptor),
    "dino": (DINOConfig, DINO),
    "distilled": (DistilledConfig, Distilled),
    "fusion": (FusionConfig, Fusion),
    "mae": (MAEConfig, MAE),
    "moco": (MoCoConfig, MoCo),
    "moco_v3": (MoCoV3Config, MoCoV3),
    "pretrained": (PretrainedConfig, Pretrained),
    "ridge": (RidgeConfig, Ridge),
    "simclr": (SimCLRConfig, SimCLR),
    "vae": (VAEConfig, VAE),
    "vqvae": (VQVAEConfig, VQVAE),
    "vqvae2": (VQVAE2Config, VQVAE2),
}

AnyModelConfig = Annotated[
    AutoencoderConfig
    | CVAEConfig
    | DescriptorConfig
    | DINOConfig
    | DistilledConfig
    | FusionConfig
    | MAEConfig
    | MoCoConfig
    | MoCoV3Config
    | PretrainedConfig
    | RidgeConfig
    | SimCLRConfig
    | VAEConfig
    | VQVAEConfig
    | VQVAE2Config,
    Field(discriminator="kind"),
]


def build_model(config: ModelConfig, *, image_size: int, labels: Sequence[str] = ()) -> Model:
    """Return a new model on the CPU, in training mode, its weights drawn from torch's global generator.

    image_size: side of the photos in pixels, the first of a model that sees several sizes. labels: the categories that
    a conditional model knows. Raises ConfigError for an unknown kind or a size the model cannot take.
    """
    if config.kind not in MODELS:
        raise ConfigError(f"model.kind is {config.kind!r}; known kinds: {', '.join(sorted(MODELS))}")
    _, model_class = MODELS[config.kind]
    held = [MODELS[values["kind"]][0].model_validate(values) for values in config.holds()]
    given: list[Sequence[object]] = [tuple(labels)] if config.conditional else []
    if held:
        sizes = config.held_sizes(image_size)
        given.append([build_model(each, image_size=size).eval() for each, size in zip(held, sizes, strict=True)])
    return model_class(config, image_size, *given)
