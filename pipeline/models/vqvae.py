"""The vector-quantised autoencoder (van den Oord et al. 2017, arXiv 1711.00937), of a grid of codes or of one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, Literal

from pydantic import Field, model_validator
from torch import Tensor, nn

from ..errors import ConfigError, InputError
from ..losses.precision import widened
from .backbones import ConvDecoder, ConvEncoder, begin_near_zero, initialise
from .backbones.cellwise import CellwiseDecoder, CellwiseEncoder
from .base import Batch, Latents, Losses, Model, Step, full_precision
from .frozen import FrozenEncoder
from .quantizers import EMAConfig, Quantised, QuantizerConfig, build_quantizer
from .readout import pooling_matrix
from .seen import FeaturesSeen, Front, SeeingConfig
from .targets import PixelTarget, TargetConfig, build_target

Codes = Literal["grid", "single", "parts"]


class VQVAEConfig(SeeingConfig):
    """channels: width of each stage, every stage halves the picture's side, so three turn 64 pixels into 8 x 8 cells.

    codes: one for each cell (`grid`), one for the whole photo (`single`), or one for each of `parts` linear views of it
    (`parts`), which say unlike things of the photo and share a codebook. quantizer: how vectors become codes; its
    code_dim (of `fsq`: how many levels it has) is what the encoder's width is projected to. latent_cells, of a grid:
    `Latents.mean` is the map of codes averaged to at most this many cells a side, latent_cells^2 * code_dim numbers.
    target: what the decoder brings back. sees: `pixels`, or the features of a teacher, which are then the target too
    and whose cells are the grid; channels say nothing then: see FeaturesSeen.
    """

    quiet: ClassVar[frozenset[str]] = frozenset({"sees", "parts"})
    of_pixels: ClassVar[tuple[str, ...]] = ("channels",)

    kind: Literal["vqvae"] = "vqvae"
    channels: tuple[int, ...] = Field((16, 32, 64), min_length=1)
    codes: Codes = "grid"
    latent_cells: int = Field(4, ge=1)
    quantizer: QuantizerConfig = EMAConfig()
    target: TargetConfig = PixelTarget(loss="mse")
    parts: int = Field(16, ge=1)

    @model_validator(mode="after")
    def _has_parts(self) -> VQVAEConfig:
        if self.codes != "parts" and self.parts != type(self).model_fields["parts"].default:
            raise ValueError(
                f"parts is {self.parts}, and codes is {self.codes}; set codes to parts, or leave parts out"
            )
        return self


class VQVAE(Model):
    """Encoder, nearest codes, decoder.

    What is compared between photos (`Latents.mean`) is made of the codes' vectors alone. Of a single code it is the
    vector. Of a grid it keeps the layout: the quantised map [code_dim, g, g], averaged to p x p cells with p = min(g,
    latent_cells), flattened channel first. The full map would cost an index 16 times the memory; one average over the
    photo would forget where things are. Of parts it is their vectors side by side.
    """

    def __init__(self, config: VQVAEConfig, image_size: int, held: Sequence[Model] = ()) -> None:
        super().__init__()
        self.config = config
        self.target = build_target(config.target, image_size)
        self.front = Front(config.sees, self.target, image_size, held)
        self.image_size = self.front.image_size
        self.num_features, self.reads, self.prepares = self.front.num_features, self.front.reads, self.front.prepares
        self.encoder: ConvEncoder | CellwiseEncoder
        self.decoder: ConvDecoder | CellwiseDecoder
        shape = (self.target.channels, self.target.size)
        if isinstance(config.sees, FeaturesSeen):
            self.encoder = CellwiseEncoder(*shape, config.sees.hidden)
            self.decoder = CellwiseDecoder(*shape, config.sees.hidden)
            width = config.sees.hidden[-1]
        else:
            self.encoder = ConvEncoder(image_size, config.channels)
            self.decoder = ConvDecoder(image_size, config.channels, out_channels=shape[0], out_size=shape[1])
            width = config.channels[-1]
        grid = self.encoder.grid
        # Drawn before the quantizer, whose weights `initialise` must leave alone.
        code_dim = dimensions(config.quantizer)
        self.layout: GridCodes | WholeCodes
        if config.codes == "grid":
            self.layout = GridCodes(width, grid, code_dim, min(grid, config.latent_cells))
        elif config.codes == "single":
            self.layout = SingleCode(width, grid, code_dim)
        else:
            self.layout = PartCodes(width, grid, code_dim, config.parts)
        initialise(self)
        if not isinstance(config.target, PixelTarget):
            begin_near_zero(self.decoder.output_layers())
        self.quantizer = build_quantizer(config.quantizer)
        self.latent_dim = self.layout.latent_dim
        self.num_latent_codes = self.layout.number

    def forward(self, batch: Batch, step: Step) -> Losses:
        """Return the target's loss and the quantizer's; the parts are the target's and `quantizer`, means over photos.

        `quantizer` is beta * commitment, with the codebook's term where a gradient moves the codebook, or 0 (`fsq`).
        """
        inputs = self.front.inputs(batch)
        quantised: Quantised = self.quantizer(self._vectors(inputs))
        error, parts = self.target.loss(self._outputs(quantised.passed), self.front.wanted(batch, inputs))
        return Losses(error + quantised.loss, {**parts, "quantizer": quantised.loss.detach()})

    def encode(self, images: Tensor, condition: Tensor | None = None) -> Latents:
        """Return mean, float32 [B, latent_dim], and codes, int64 [B, number of codes], of photos, uint8 [B, 3, H, W].

        Codes of a grid are row-major.
        """
        return self._encoded(self.front.of_photos(images))

    def encode_batch(self, batch: Batch) -> Latents:
        """Return `encode` of the photos, by their features where the model sees these."""
        return self._encoded(self.front.inputs(batch))

    def code_levels(self, codes: Tensor) -> Mapping[str, Tensor]:
        """Return the codes by part, of codes int [B, parts]: the same number says unlike things of two parts."""
        if self.config.codes != "parts":
            return {"": codes}
        return {f"part_{number:02d}": codes[:, number : number + 1] for number in range(self.num_latent_codes)}

    def use_bundles(self, found: Sequence[Model]) -> None:
        """Take over the teacher whose features the model sees."""
        self.front.use_bundles(found)

    def prepare(self, batches: Iterable[Batch]) -> None:
        """Set the scale of the teacher's features."""
        self.front.prepare(batches)

    def _encoded(self, inputs: Tensor) -> Latents:
        vectors = self._vectors(inputs)
        codes = self.quantizer.nearest(vectors.flatten(0, -2)).view(-1, self.num_latent_codes)
        return Latents(self.layout.summary(self._values(codes)), codes=codes)

    def decode(self, latents: Latents, condition: Tensor | None = None) -> Tensor:
        """Return the pictures of `latents.codes`, float [B, 3, H, W] in 0..1; the mean of a grid holds too little.

        Raises InputError when the latents have no codes, NotReconstructing for a target other than pixels.
        """
        if latents.codes is None:
            raise InputError(
                "a VQ-VAE decodes codes, and these latents have none; pass the latents that encode returned"
            )
        return self.target.picture(self._outputs(self._values(latents.codes)))

    def maps(self, pictures: Tensor) -> list[Tensor]:
        """Return the map after every stage of the encoder, finest first, of pictures float [B, 3, H, W].

        Raises ConfigError of a model that sees features.
        """
        if isinstance(self.encoder, CellwiseEncoder):
            raise ConfigError("a model of features has no feature maps; name one that sees pixels")
        return self.encoder.maps(pictures)

    def use_frozen(self, frozen: FrozenEncoder) -> None:
        """Give the target the encoder it looks through."""
        self.target.use_frozen(frozen)

    def after_step(self) -> None:
        """Move the codebook; every rank must call it."""
        self.quantizer.update()

    def scalars(self) -> dict[str, float]:
        """Return the codebook's measures since the last call, over all ranks; see CodebookMeasures.collect."""
        return self.quantizer.scalars()

    def _vectors(self, inputs: Tensor) -> Tensor:
        """Return what is quantised, float32 [B, g, g, code_dim], [B, code_dim] or [B, parts, code_dim]."""
        vectors: Tensor = self.layout.vectors(self.encoder(inputs))
        return widened(vectors)

    def _values(self, codes: Tensor) -> Tensor:
        """Return the vectors of codes [B, g * g] or [B, 1], shaped as those of `_vectors`."""
        return self.quantizer.lookup(codes).view(-1, *self.layout.shape)

    def _outputs(self, values: Tensor) -> Tensor:
        """Return what the decoder makes of quantised vectors, float [B, channels, size, size] of the target."""
        outputs: Tensor = self.decoder(self.layout.features(values))
        return outputs


def dimensions(config: QuantizerConfig) -> int:
    """Return how many numbers a vector has that this quantizer takes."""
    return len(config.levels) if config.kind == "fsq" else config.code_dim


class CodeMap(nn.Module):
    """A vector for each of a map's g x g cells, and what is compared between photos: the map averaged to fewer."""

    def __init__(self, width: int, grid: int, code_dim: int, cells: int) -> None:
        super().__init__()
        self.shape = (grid, grid, code_dim)
        self.number = grid * grid
        self.latent_dim = cells * cells * code_dim
        self.to_vectors = nn.Conv2d(width, code_dim, 1)
        self.pooling: Tensor
        self.register_buffer("pooling", pooling_matrix(grid, cells), persistent=False)

    def vectors(self, features: Tensor) -> Tensor:
        """Return vectors [B, g, g, code_dim] of a feature map [B, width, g, g]."""
        vectors: Tensor = self.to_vectors(features)
        return vectors.permute(0, 2, 3, 1)

    def summary(self, values: Tensor) -> Tensor:
        """Return what is compared between photos, float32 [B, latent_dim], of values [B, g, g, code_dim]."""
        with full_precision(values.device.type):
            cells = self.pooling @ values.permute(0, 3, 1, 2) @ self.pooling.T  # [B, code_dim, p, p]
        return cells.flatten(1)


class GridCodes(CodeMap):
    """A map of codes that a decoder sees alone."""

    def __init__(self, width: int, grid: int, code_dim: int, cells: int) -> None:
        super().__init__(width, grid, code_dim, cells)
        self.from_vectors = nn.Sequential(nn.Conv2d(code_dim, width, 3, padding=1), nn.SiLU())

    def features(self, values: Tensor) -> Tensor:
        """Return the decoder's map [B, width, g, g] of values [B, g, g, code_dim]."""
        features: Tensor = self.from_vectors(values.permute(0, 3, 1, 2))
        return features


class WholeCodes(nn.Module):
    """One or more vectors for the whole photo: the map, flattened, through a linear layer. shape: of these vectors."""

    def __init__(self, width: int, grid: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape
        self.latent_dim = math.prod(shape)
        self.number = self.latent_dim // shape[-1]
        self.to_vectors = nn.Linear(width * grid * grid, self.latent_dim)
        self.from_vectors = nn.Sequential(
            nn.Linear(self.latent_dim, width * grid * grid), nn.SiLU(), nn.Unflatten(1, (width, grid, grid))
        )

    def vectors(self, features: Tensor) -> Tensor:
        """Return vectors [B, *shape] of a feature map [B, width, g, g]."""
        vectors: Tensor = self.to_vectors(features.flatten(1))
        return vectors.reshape(-1, *self.shape)

    def features(self, values: Tensor) -> Tensor:
        """Return the decoder's map [B, width, g, g] of values [B, *shape]."""
        features: Tensor = self.from_vectors(values.flatten(1))
        return features

    def summary(self, values: Tensor) -> Tensor:
        """Return what is compared between photos: the values themselves, side by side, [B, latent_dim]."""
        return values.flatten(1)


class SingleCode(WholeCodes):
    """One vector for the whole photo."""

    def __init__(self, width: int, grid: int, code_dim: int) -> None:
        super().__init__(width, grid, (code_dim,))


class PartCodes(WholeCodes):
    """A vector for each of some linear views of the photo."""

    def __init__(self, width: int, grid: int, code_dim: int, parts: int) -> None:
        super().__init__(width, grid, (parts, code_dim))
