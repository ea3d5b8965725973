"""What autoencoders with one vector a photo have in common: networks, target, input, and the way to a picture."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from ..errors import ConfigError
from ..losses import mse
from ..losses.precision import widened
from .backbones import ConvEncoder, Decoder, Encoder, Network, Norm, begin_near_zero, build_networks, initialise
from .backbones.cellwise import CellwiseDecoder, CellwiseEncoder
from .backbones.dense import CellEncoder
from .base import Batch, Latents, Model, to_float, to_grey
from .frozen import FrozenEncoder
from .seen import FeaturesSeen, Front, SeeingConfig
from .targets import PixelTarget, Target, TargetConfig, build_target

_FLATTEST = 1.0 / 255  # a photo of one colour has no spread to divide by
_MIDDLE, _SPREAD = 0.5, 0.25  # what a normalised picture becomes where nobody knows its photo


class BottleneckConfig(SeeingConfig):
    """latent_dim: numbers a photo becomes. network: `conv`; or `fc`, `fc_conv`, `fcn`, which are for small pictures.

    channels: width of each stage of `conv` and `fcn`, every stage halves the picture's side. hidden: width of the
    encoder's last and the decoder's first layer in `fc`, `fc_conv` and `fcn`. norm: `none`, `group`, or `batch`, which
    needs statistics over all workers. grey: brightness alone goes in and comes out. target: what is reconstructed.
    per_image_normalisation: every photo less its own mean, divided by its own spread, goes in and comes out; only with
    the target `pixels` and its loss `mse`. sees: `pixels`, or the features of a teacher, which are then the target too,
    and of the fields above only latent_dim and target count: see FeaturesSeen.
    """

    of_pixels: ClassVar[tuple[str, ...]] = ("network", "channels", "hidden", "norm", "grey")

    latent_dim: int = Field(32, ge=1)
    network: Network = "conv"
    channels: tuple[int, ...] = Field((16, 32, 64), min_length=1)
    hidden: tuple[int, int] = (400, 400)
    norm: Norm = "none"
    grey: bool = False
    target: TargetConfig = PixelTarget()
    per_image_normalisation: bool = False

    @model_validator(mode="after")
    def _normalises_what_it_can(self) -> BottleneckConfig:
        if not self.per_image_normalisation:
            return self
        target = self.target
        if not isinstance(target, PixelTarget) or target.loss != "mse" or target.perceptual is not None:
            raise ValueError(
                "per_image_normalisation makes values that are no brightness in 0..1, and the target is "
                f"{target.model_dump(mode='json')}; set target: {{kind: pixels, loss: mse}} or leave it off"
            )
        return self

    @model_validator(mode="after")
    def _widths_are_positive(self) -> BottleneckConfig:
        if min(self.channels) < 1 or min(self.hidden) < 1:
            raise ValueError(f"channels are {self.channels} and hidden {self.hidden}; every width is at least 1")
        return self


class Bottleneck(Model):
    """Encoder, `heads` vectors of latent_dim numbers, decoder. A condition is an embedding float [B, condition_dim].

    All that the decoder knows of a photo passes through the latents: there are no skip connections, with which
    reconstructions look better and latents hold less.
    """

    def __init__(
        self,
        config: BottleneckConfig,
        image_size: int,
        held: Sequence[Model] = (),
        *,
        heads: int,
        condition_dim: int = 0,
    ) -> None:
        super().__init__()
        self.latent_dim = config.latent_dim
        self.grey = config.grey
        self.normalised = config.per_image_normalisation
        target = build_target(config.target, image_size, grey=config.grey)
        self.target = NormalisedPixels(target) if self.normalised else target
        self.front = Front(config.sees, self.target, image_size, held)
        self.image_size = self.front.image_size
        self.num_features, self.reads, self.prepares = self.front.num_features, self.front.reads, self.front.prepares
        self.encoder: Encoder | CellwiseEncoder
        self.decoder: Decoder | CellwiseDecoder
        if isinstance(config.sees, FeaturesSeen):
            shape = (target.channels, target.size)
            self.encoder = CellwiseEncoder(*shape, config.sees.hidden)
            self.decoder = CellwiseDecoder(*shape, config.sees.hidden)
        else:
            self.encoder, self.decoder = build_networks(
                config.network,
                image_size,
                channels=config.channels,
                hidden=config.hidden,
                norm=config.norm,
                in_channels=1 if config.grey else 3,
                out_channels=target.channels,
                out_size=target.size,
            )
        features = math.prod(self.encoder.shape) + condition_dim
        self.to_latents = nn.Linear(features, heads * config.latent_dim)
        cells = math.prod(self.decoder.in_shape)
        self.from_latents = nn.Sequential(nn.Linear(config.latent_dim + condition_dim, cells), nn.SiLU())
        initialise(self)
        if not isinstance(config.target, PixelTarget):
            begin_near_zero(self.decoder.output_layers())

    def encode(self, images: Tensor, condition: Tensor | None = None) -> Latents:
        """Return the latents of photos, uint8 [B, 3, H, W], float32 [B, latent_dim]; without noise or dropout."""
        return self._encoded(self.front.of_photos(images), condition)

    @abstractmethod
    def _encoded(self, inputs: Tensor, condition: Tensor | None) -> Latents:
        """Return the latents of what `Front` makes of photos."""

    def decode(self, latents: Latents, condition: Tensor | None = None) -> Tensor:
        """Return the pictures of `latents.mean`, float [B, 3, H, W] in 0..1. Raises NotReconstructing.

        With per-image normalisation nobody knows the photo's own mean and spread: the picture has middling ones.
        """
        return self.target.picture(self._still_outputs(latents.mean, condition))

    def reconstruct(self, images: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return photos, uint8 [B, 3, H, W], as decoded from their latents, float [B, 3, H, W] in 0..1.

        With per-image normalisation they get each photo's own mean and spread back. Raises NotReconstructing.
        """
        latents = self.encode(images, condition)
        if not self.normalised:
            return self.decode(latents, condition)
        mean, spread = self._brightness(to_float(images))
        made = self._still_outputs(latents.mean, condition) * spread + mean
        return made.clamp(0.0, 1.0).expand(-1, 3, -1, -1)

    def maps(self, pictures: Tensor) -> list[Tensor]:
        """Return the encoder's maps, finest first. Raises ConfigError where the network has none."""
        if isinstance(self.encoder, ConvEncoder | CellEncoder):
            return self.encoder.maps(self._seen(pictures))
        raise ConfigError(
            "a model of features, or of the network fc or fc_conv, has no feature maps; name one of network conv or fcn"
        )

    def use_frozen(self, frozen: FrozenEncoder) -> None:
        """Hand the frozen encoder to the target."""
        self.target.use_frozen(frozen)

    def use_bundles(self, found: Sequence[Model]) -> None:
        """Take over the teacher whose features the model sees."""
        self.front.use_bundles(found)

    def prepare(self, batches: Iterable[Batch]) -> None:
        """Set the scale of the teacher's features."""
        self.front.prepare(batches)

    def encode_batch(self, batch: Batch) -> Latents:
        """Return `encode` of the photos, by their features where the model sees these."""
        return self._encoded(self.front.inputs(batch), batch.condition)

    def embedding(self, condition: Tensor | None, rows: int) -> Tensor | None:
        """Return the embedding of `rows` conditions, float [B, condition_dim]; None: the model has none."""
        return None

    def _seen(self, pictures: Tensor) -> Tensor:
        """Return what the encoder sees of pictures float [B, 3, H, W]: [B, 3 or 1, H, W]."""
        if self.normalised:
            return self._normalise(pictures)
        return to_grey(pictures) if self.grey else pictures

    def _normalise(self, pictures: Tensor) -> Tensor:
        mean, spread = self._brightness(pictures)
        return ((to_grey(pictures) if self.grey else pictures) - mean) / spread

    def _brightness(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Return each photo's mean and standard deviation, float [B, 1, 1, 1]; over all channels, to keep colours."""
        flat = (to_grey(pictures) if self.grey else pictures).flatten(1)
        mean, spread = flat.mean(1), flat.std(1, correction=0).clamp(min=_FLATTEST)
        return mean[:, None, None, None], spread[:, None, None, None]

    def _features(self, inputs: Tensor) -> Tensor:
        """Return the encoder's features, flattened, [B, n], of pictures float [B, 3, H, W] or a teacher's maps."""
        features: Tensor = self.encoder(inputs if self.front.of_features else self._seen(inputs))
        return features.flatten(1)

    def _heads(self, features: Tensor, embedding: Tensor | None) -> Tensor:
        """Return float32 [B, heads * latent_dim]."""
        result: Tensor = self.to_latents(_beside(features, embedding))
        return widened(result)

    def _outputs(self, z: Tensor, embedding: Tensor | None) -> Tensor:
        """Return the decoder's outputs for the target, float32 [B, channels, size, size]."""
        outputs: Tensor = self.decoder(self.from_latents(_beside(z, embedding)).unflatten(1, self.decoder.in_shape))
        return outputs

    def _loss(self, outputs: Tensor, batch: Batch, inputs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the target's loss [] and its parts."""
        return self.target.loss(
            outputs, self._normalise(inputs) if self.normalised else self.front.wanted(batch, inputs)
        )

    def _still_outputs(self, z: Tensor, condition: Tensor | None) -> Tensor:
        with still(self.decoder):
            return self._outputs(z, self.embedding(condition, z.shape[0]))


class NormalisedPixels(Target):
    """The squared error of pictures without mean and spread; the outputs are such pictures, not logits."""

    def __init__(self, pixels: Target) -> None:
        super().__init__()
        self.channels, self.size = pixels.channels, pixels.size

    def loss(self, outputs: Tensor, pictures: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the squared error to normalised pictures [B, 3 or 1, H, W]; part `reconstruction`."""
        total = mse(outputs, pictures)
        return total, {"reconstruction": total.detach()}

    def picture(self, outputs: Tensor) -> Tensor:
        """Return pictures of middling mean and spread, float [B, 3, H, W] in 0..1."""
        return (outputs * _SPREAD + _MIDDLE).clamp(0.0, 1.0).expand(-1, 3, -1, -1)


@contextmanager
def still(network: nn.Module) -> Iterator[None]:
    """Run a network in evaluation mode: no dropout, and batch normalisation by what it has learnt, not by the batch."""
    training = network.training
    if training:
        network.eval()
    try:
        yield
    finally:
        if training:
            network.train()


def _beside(values: Tensor, embedding: Tensor | None) -> Tensor:
    return values if embedding is None else torch.cat([values, embedding.to(values.dtype)], dim=1)
