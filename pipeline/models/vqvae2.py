"""VQ-VAE-2 (Razavi et al. 2019, arXiv 1906.00446), of two levels: a coarse map of codes, and a finer one given it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ..errors import InputError
from ..losses.precision import widened
from .backbones import ConvDecoder, ConvEncoder, begin_near_zero, initialise, map_sizes
from .base import Batch, Latents, Losses, Model, Step, to_float
from .frozen import FrozenEncoder
from .quantizers import EMAConfig, Quantised, QuantizerConfig, build_quantizer
from .seen import Front, GivingConfig
from .targets import PixelTarget, TargetConfig, build_target
from .vqvae import CodeMap, dimensions


class VQVAE2Config(GivingConfig):
    """channels: width of each stage, every stage halves the picture's side and rounds down.

    The last stage's map is the top, the one before it the bottom: three turn 64 pixels into 8 x 8 and 16 x 16 codes,
    28 pixels into 3 x 3 and 7 x 7. top_quantizer, bottom_quantizer: how each level's vectors become codes; its code_dim
    (of `fsq`: how many levels it has) is what the level's width is projected to. latent_cells: `Latents.mean` is each
    map of codes averaged to at most this many cells a side, cells^2 * code_dim numbers a level. target: what the
    decoder brings back.
    """

    kind: Literal["vqvae2"] = "vqvae2"
    channels: tuple[Annotated[int, Field(ge=1)], ...] = Field((16, 32, 64), min_length=2)
    latent_cells: int = Field(4, ge=1)
    top_quantizer: QuantizerConfig = EMAConfig()
    bottom_quantizer: QuantizerConfig = EMAConfig()
    target: TargetConfig = PixelTarget(loss="mse")


class VQVAE2(Model):
    """Encoder of two maps, a quantizer for each, and a decoder that sees the codes of both.

    The top, of few cells, is quantised first; its codes are decoded to the bottom's size and the bottom's vectors are
    made of features beside them, so that the bottom need not say again what the top has said (section 3.1 and
    algorithm 1 of the paper). The decoder sees the bottom's values beside the top's, enlarged by one learned layer.

    What is compared between photos (`Latents.mean`) is, as of a VQ-VAE's grid, made of the codes' vectors alone: the
    top's map averaged to few cells, then the bottom's, each flattened channel first. Codes are the top's, row-major,
    then the bottom's; `num_top_codes` and `split` tell them apart. A number is a row of its own level's codebook.
    """

    def __init__(self, config: VQVAE2Config, image_size: int) -> None:
        super().__init__()
        self.config = config
        self.image_size = image_size
        self.target = build_target(config.target, image_size)
        self.front = Front("pixels", self.target, image_size)
        self.num_features, self.prepares = self.front.num_features, self.front.prepares
        self.encoder = ConvEncoder(image_size, config.channels)
        *_, bottom_grid, top_grid = map_sizes(image_size, len(config.channels))
        *_, width, top_width = config.channels
        self.decoder = ConvDecoder(
            image_size, config.channels[:-1], out_channels=self.target.channels, out_size=self.target.size
        )
        top_dim, bottom_dim = dimensions(config.top_quantizer), dimensions(config.bottom_quantizer)
        odd = bottom_grid - 2 * top_grid  # a row and column that halving had dropped
        self.top = CodeMap(top_width, top_grid, top_dim, min(top_grid, config.latent_cells))
        self.from_top = nn.Sequential(
            nn.Conv2d(top_dim, top_width, 3, padding=1),
            nn.SiLU(),
            nn.ConvTranspose2d(top_width, width, 4, 2, 1, output_padding=odd),
            nn.SiLU(),
        )
        self.beside_top = nn.Sequential(nn.Conv2d(2 * width, width, 1), nn.SiLU())
        self.bottom = CodeMap(width, bottom_grid, bottom_dim, min(bottom_grid, config.latent_cells))
        self.enlarge_top = nn.ConvTranspose2d(top_dim, top_dim, 4, 2, 1, output_padding=odd)
        self.from_vectors = nn.Sequential(nn.Conv2d(top_dim + bottom_dim, width, 3, padding=1), nn.SiLU())
        # Drawn before the quantizers, whose weights `initialise` must leave alone.
        initialise(self)
        if not isinstance(config.target, PixelTarget):
            begin_near_zero(self.decoder.output_layers())
        self.top_quantizer = build_quantizer(config.top_quantizer)
        self.bottom_quantizer = build_quantizer(config.bottom_quantizer)
        self.latent_dim = self.top.latent_dim + self.bottom.latent_dim
        self.num_latent_codes = self.top.number + self.bottom.number

    @property
    def num_top_codes(self) -> int:
        """Return how many of a photo's codes, the first ones, are the top's: gt * gt."""
        return self.top.number

    def split(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Return the top's codes, [B, gt, gt], and the bottom's, [B, gb, gb], of a photo's codes int [B, gt² + gb²].

        Raises InputError for another number of codes.
        """
        if codes.dim() != 2 or codes.shape[1] != self.num_latent_codes:
            raise InputError(
                f"codes are {list(codes.shape)}; this model's are [B, {self.num_latent_codes}], of a photo first "
                f"{self.top.number} of the top and then {self.bottom.number} of the bottom"
            )
        top, bottom = codes[:, : self.top.number], codes[:, self.top.number :]
        return top.reshape(-1, *self.top.shape[:2]), bottom.reshape(-1, *self.bottom.shape[:2])

    def prepare(self, batches: Iterable[Batch]) -> None:
        """Set the scale of the teacher's features."""
        self.front.prepare(batches)

    def code_levels(self, codes: Tensor) -> dict[str, Tensor]:
        """Return the codes of each codebook, `top` and `bottom`; see `split`."""
        return dict(zip(("top", "bottom"), self.split(codes), strict=True))

    def forward(self, batch: Batch, step: Step) -> Losses:
        """Return the target's loss and both quantizers'; means over photos.

        The parts are the target's, `top_quantizer` and `bottom_quantizer`, each as VQVAE's `quantizer`. The bottom's
        commitment reaches the top's vectors too, through what the bottom is told of them.
        """
        pictures = to_float(batch.images)
        features, top_vectors = self._encoded(pictures)
        top: Quantised = self.top_quantizer(top_vectors)
        bottom: Quantised = self.bottom_quantizer(self._bottom_vectors(features, top.passed))
        error, parts = self.target.loss(self._outputs(top.passed, bottom.passed), self.front.wanted(batch, pictures))
        parts = {**parts, "top_quantizer": top.loss.detach(), "bottom_quantizer": bottom.loss.detach()}
        return Losses(error + top.loss + bottom.loss, parts)

    def encode(self, images: Tensor, condition: Tensor | None = None) -> Latents:
        """Return mean, float32 [B, latent_dim], and codes, int64 [B, gt² + gb²], of photos, uint8 [B, 3, H, W].

        The top comes first in both.
        """
        features, top_vectors = self._encoded(to_float(images))
        top_codes = self.top_quantizer.nearest(top_vectors.flatten(0, -2)).view(-1, *self.top.shape[:2])
        top = self.top_quantizer.lookup(top_codes)
        bottom_vectors = self._bottom_vectors(features, top)
        bottom_codes = self.bottom_quantizer.nearest(bottom_vectors.flatten(0, -2)).view(-1, *self.bottom.shape[:2])
        bottom = self.bottom_quantizer.lookup(bottom_codes)
        mean = torch.cat([self.top.summary(top), self.bottom.summary(bottom)], dim=1)
        return Latents(mean, codes=torch.cat([top_codes.flatten(1), bottom_codes.flatten(1)], dim=1))

    def decode(self, latents: Latents, condition: Tensor | None = None) -> Tensor:
        """Return the pictures of `latents.codes`, float [B, 3, H, W] in 0..1; the mean holds too little.

        Raises InputError when the latents have no codes or another number of them, NotReconstructing for a target
        other than pixels.
        """
        if latents.codes is None:
            raise InputError(
                "a VQ-VAE-2 decodes codes, and these latents have none; pass the latents that encode returned"
            )
        top, bottom = self.split(latents.codes)
        return self.target.picture(self._outputs(self.top_quantizer.lookup(top), self.bottom_quantizer.lookup(bottom)))

    def maps(self, pictures: Tensor) -> list[Tensor]:
        """Return the map after every stage of the encoder, finest first, of pictures float [B, 3, H, W]."""
        return self.encoder.maps(pictures)

    def use_frozen(self, frozen: FrozenEncoder) -> None:
        """Give the target the encoder it looks through."""
        self.target.use_frozen(frozen)

    def after_step(self) -> None:
        """Move both codebooks; every rank must call it."""
        self.top_quantizer.update()
        self.bottom_quantizer.update()

    def scalars(self) -> dict[str, float]:
        """Return both codebooks' measures since the last call, over all ranks; every rank must call it.

        Named `top/codebook/...` and `bottom/codebook/...`; see CodebookMeasures.collect.
        """
        levels = {"top": self.top_quantizer.scalars(), "bottom": self.bottom_quantizer.scalars()}
        return {f"{level}/{name}": value for level, found in levels.items() for name, value in found.items()}

    def _encoded(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Return the bottom's features, [B, width, gb, gb], and the top's vectors, float32 [B, gt, gt, top_dim]."""
        *_, features, top_features = self.encoder.maps(pictures)
        return features, widened(self.top.vectors(top_features))

    def _bottom_vectors(self, features: Tensor, top: Tensor) -> Tensor:
        """Return the bottom's vectors, float32 [B, gb, gb, bottom_dim].

        features: [B, width, gb, gb], before anything is known of the top; top: its values, [B, gt, gt, top_dim].
        """
        told: Tensor = self.from_top(top.permute(0, 3, 1, 2))
        return widened(self.bottom.vectors(self.beside_top(torch.cat([features, told.to(features.dtype)], dim=1))))

    def _outputs(self, top: Tensor, bottom: Tensor) -> Tensor:
        """Return what the decoder makes of both levels' values, float [B, channels, size, size] of the target.

        top: [B, gt, gt, top_dim]; bottom: [B, gb, gb, bottom_dim].
        """
        enlarged: Tensor = self.enlarge_top(top.permute(0, 3, 1, 2))
        beside = bottom.permute(0, 3, 1, 2).to(enlarged.dtype)
        outputs: Tensor = self.decoder(self.from_vectors(torch.cat([enlarged, beside], dim=1)))
        return outputs
