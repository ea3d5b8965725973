"""The masked autoencoder (He et al. 2021, arXiv 2111.06377), and a variant whose decoder sees one token only."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from ..errors import ConfigError
from .backbones.conv import resized
from .backbones.hog import hog
from .backbones.vit import Block, ViT, as_map, initialise_tokens, patchify, positions
from .base import Batch, Latents, Losses, Model, ModelConfig, Step, Taught, full_precision, to_float
from .readout import ReadOut, ReadOutConfig
from .targets import FeatureTarget, TeacherFeatures, check_named
from .targets.features import FeatureLoss
from .teachers import FeatureScale

_BINS = 9
_LEAST_VARIANCE = 1e-6


class MAEConfig(ModelConfig):
    """patch: side of a patch in pixels. width, depth, heads: of the encoder; decoder_width, decoder_depth: likewise.

    mask: the share of patches that the encoder does not see, the same number of every photo. target: what the decoder
    brings back of a patch, its pixels, the histogram of its oriented gradients (MaskFeat, arXiv 2112.09133), or what a
    teacher says of it, {kind: features, teacher: ...} (EVA, arXiv 2211.07636): the teacher's cells are enlarged to the
    patches, and one without a layout says the same of all.
    normalise: the pixels of each patch are scaled to mean 0 and variance 1. decoder: `masked` is the MAE. With `cls`
    the encoder sees the whole photo, the decoder its one token alone, and all patches count: a narrow autoencoder,
    whose latents are that token. read_out: of the map of tokens, or of the one.
    """

    kind: Literal["mae"] = "mae"
    patch: int = Field(default=4, ge=2)
    width: int = Field(default=64, ge=4)
    depth: int = Field(default=3, ge=1)
    heads: int = Field(default=4, ge=1)
    decoder_width: int = Field(default=32, ge=4)
    decoder_depth: int = Field(default=1, ge=1)
    mask: float = Field(default=0.75, gt=0, lt=1)
    target: Literal["pixels", "hog"] | FeatureTarget = "pixels"
    normalise: bool = True
    decoder: Literal["masked", "cls"] = "masked"
    read_out: ReadOutConfig = ReadOutConfig()

    @model_validator(mode="after")
    def _has_a_teacher(self) -> MAEConfig:
        if isinstance(self.target, FeatureTarget):
            if self.target.encoder is not None:
                raise ValueError("a mae takes features of a teacher; name target.teacher in place of target.encoder")
            check_named(self.target)
        return self

    def taught_by(self) -> str | ModelConfig | None:
        """Return the teacher whose features are the target."""
        return self.target.teacher if isinstance(self.target, FeatureTarget) else None

    def taught(self, teacher: Taught) -> ModelConfig:
        """Return the config with the teacher as it was found."""
        if not isinstance(self.target, FeatureTarget):
            return self
        return self.model_copy(update={"target": self.target.taught(teacher)})


class MAE(Model):
    """A transformer over the patches that are seen, and a smaller one that fills in the others from them."""

    def __init__(self, config: MAEConfig, image_size: int) -> None:
        super().__init__()
        self.config = config
        self.image_size = image_size
        self.encoder = ViT(image_size, patch=config.patch, width=config.width, depth=config.depth, heads=config.heads)
        grid = self.encoder.grid
        self.num_masked = number_masked(grid * grid, config.mask)
        outputs = _BINS if config.target == "hog" else 3 * config.patch**2
        self.teacher: TeacherFeatures | None = None
        self.scale: FeatureScale | None = None
        if isinstance(config.target, FeatureTarget):
            self.teacher = TeacherFeatures(config.target)
            self.scale = FeatureScale(config.target.scale, self.teacher.channels, self.teacher.size)
            outputs, self.num_features = self.teacher.channels, self.scale.numbers
            self.prepares = self.scale.needs_fit
        self.decoder = Decoder(grid, config.width, config.decoder_width, config.decoder_depth, config.heads, outputs)
        self.read_out = ReadOut(config.read_out, config.width, 1 if config.decoder == "cls" else grid)
        self.latent_dim = self.read_out.latent_dim
        self.fits = self.read_out.needs_fit

    def forward(self, batch: Batch, step: Step) -> Losses:
        """Return the squared error of what was masked (`cls`: of all), a mean over numbers, patches and photos."""
        pictures = to_float(batch.images)
        tokens = self.encoder.tokens(pictures)
        number = tokens.shape[1]
        if self.config.decoder == "cls":
            masked = torch.ones(len(tokens), number, dtype=torch.bool, device=tokens.device)
            outputs = self.decoder.from_whole(self.encoder(tokens))
        else:
            order = random_order(len(tokens), number, tokens.device)
            seen = order[:, : number - self.num_masked]
            masked = torch.ones(len(tokens), number, dtype=torch.bool, device=tokens.device).scatter(
                1, seen, value=False
            )
            outputs = self.decoder(self.encoder(rows(tokens, seen)), order)
        if self.teacher is None:
            total = masked_error(outputs, self.targets(pictures), masked)
        else:
            asked = self.teacher.config
            total = asked.weight * masked_error(outputs, self.said(batch), masked, asked.loss)
        return Losses(total, {"reconstruction": total.detach()})

    def said(self, batch: Batch) -> Tensor:
        """Return what the teacher says of every patch, float32 [B, N, channels]."""
        assert self.scale is not None  # noqa: S101 - asked only where there is a teacher
        return resized(self.scale(batch.features), self.encoder.grid).flatten(2).transpose(1, 2)

    def prepare(self, batches: Iterable[Batch]) -> None:
        """Set the scale of the teacher's features."""
        if self.scale is not None:
            self.scale.fit(batches)

    def targets(self, pictures: Tensor) -> Tensor:
        """Return what of the photo the decoder is to bring back, float32 [B, N, numbers a patch]."""
        if self.config.target == "hog":
            with torch.no_grad():
                return hog(pictures, self.config.patch, _BINS).flatten(2).transpose(1, 2)
        patches = patchify(pictures.float(), self.config.patch)
        if not self.config.normalise:
            return patches
        centred = patches - patches.mean(dim=2, keepdim=True)
        return centred * (patches.var(dim=2, keepdim=True) + _LEAST_VARIANCE).rsqrt()

    def encode(self, images: Tensor, condition: Tensor | None = None) -> Latents:
        """Return mean, float32 [B, latent_dim], of photos, uint8 [B, 3, H, W]: nothing is masked."""
        return Latents(self.read_out.vectors(self._features(images)))

    def maps(self, pictures: Tensor) -> list[Tensor]:
        """Return every block's map of tokens, float [B, width, g, g], of pictures float [B, 3, H, W] in 0..1."""
        return self.encoder.maps(pictures)

    def fit(self, batches: Iterable[Batch]) -> None:
        """Fit the read-out's components where it has some."""
        self.read_out.fit_batches(batches, lambda images: self.read_out.pooled(self._features(images)))

    def _features(self, images: Tensor) -> Tensor:
        """Return the map that is read out: the patches' [B, width, g, g], or the photo's token [B, width, 1, 1]."""
        found = self.encoder(self.encoder.tokens(to_float(images)))
        return as_map(found[:, :1] if self.config.decoder == "cls" else found[:, 1:])


class Decoder(nn.Module):
    """Tokens of the encoder to what every patch shall be, float [B, grid * grid, outputs]."""

    places: Tensor

    def __init__(self, grid: int, encoder_width: int, width: int, depth: int, heads: int, outputs: int) -> None:
        super().__init__()
        self.embed = nn.Linear(encoder_width, width)
        self.unknown = nn.Parameter(torch.empty(1, 1, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, outputs))
        self.register_buffer("places", positions(grid, width), persistent=False)
        initialise_tokens(self)

    def forward(self, tokens: Tensor, order: Tensor) -> Tensor:
        """Return the outputs in the patches' own order.

        tokens: [B, 1 + n, encoder's width], the photo's and those of the first n patches of `order`, int64 [B, N].
        """
        values = self.embed(tokens)
        unknown = self._unknown(values, order.shape[1] - values.shape[1] + 1)
        patches = rows(torch.cat([values[:, 1:], unknown], dim=1), order.argsort(dim=1))
        return self._outputs(values[:, :1], patches)

    def from_whole(self, tokens: Tensor) -> Tensor:
        """Return the outputs from the photo's token, the first of `tokens`, alone."""
        values = self.embed(tokens[:, :1])
        return self._outputs(values, self._unknown(values, len(self.places)))

    def _unknown(self, values: Tensor, number: int) -> Tensor:
        return self.unknown.expand(len(values), number, -1).to(values.dtype)

    def _outputs(self, whole: Tensor, patches: Tensor) -> Tensor:
        values = self.blocks(torch.cat([whole, patches + self.places], dim=1))
        return cast("Tensor", self.head(values[:, 1:]))


def number_masked(number: int, share: float) -> int:
    """Return how many of so many patches are masked. Raises ConfigError where none or all would be."""
    masked = round(number * share)
    if not 0 < masked < number:
        raise ConfigError(
            f"model.mask is {share}, which masks {masked} of {number} patches; some must be seen, some not"
        )
    return masked


def random_order(photos: int, number: int, device: torch.device) -> Tensor:
    """Return a random order of the patches of every photo, int64 [photos, number]."""
    return torch.rand(photos, number, device=device).argsort(dim=1, stable=True)


def rows(tokens: Tensor, chosen: Tensor) -> Tensor:
    """Return the tokens [B, n, width] that `chosen`, int64 [B, n], names among [B, N, width]."""
    return tokens.gather(1, chosen[:, :, None].expand(-1, -1, tokens.shape[2]))


def masked_error(outputs: Tensor, targets: Tensor, masked: Tensor, loss: FeatureLoss = "mse") -> Tensor:
    """Return the error [] over the patches where `masked`, bool [B, N], the same number of every photo.

    A mean over patches of the squared error, itself a mean over numbers, or of 1 - cosine.
    """
    with full_precision(outputs.device.type):
        if loss == "cosine":
            errors = 1.0 - F.cosine_similarity(outputs.float(), targets, dim=2)
        else:
            errors = (outputs.float() - targets).square().mean(dim=2)
        return (errors * masked).sum() / masked.sum()
