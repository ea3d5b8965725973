"""From features to the vector that is compared between photos: maps pooled, all in fewer components where asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator
from torch import Tensor, nn

from ..errors import ConfigError, InputError
from ..images.augment import ViewsConfig
from .base import Batch, full_precision
from .components import ViewScatter, principal_components, relevant_components, rows_and_views

_MOST_COMPARED = 4096  # numbers a photo whose views are compared: some 128 MB a covariance
_LEAST_POSITIVE = 1e-6  # of a generalised mean, as its authors clamp
_LEAST_VARIANCE = 1e-6  # of the largest: whitening does not blow up what is only rounding


class ReductionConfig(BaseModel):
    """dims: that many principal components of a photo's vector, fitted on training photos; None keeps all numbers.

    whiten: every component is scaled to variance 1, so none outweighs the others. invariant_to: changes that the vector
    is to overlook; in place of the principal components come those in which photos differ most compared with such views
    of one photo (`components.relevant_components`): what contrastive learning looks for, in closed form.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    dims: int | None = Field(default=None, ge=1)
    whiten: bool = False
    invariant_to: ViewsConfig | None = None

    @model_validator(mode="after")
    def _one_scale(self) -> ReductionConfig:
        if self.whiten and self.invariant_to is not None:
            raise ValueError("whiten and invariant_to are two scales for the same components; name one of them")
        return self


class ReadOutConfig(ReductionConfig):
    """pool: `global` is the mean over the map; `map` keeps the layout, averaged to at most `cells` cells a side.

    `cls` takes the class token of a transformer that others trained. within: what becomes of a cell, or of the whole
    map: its mean, its largest number, or `gem`, the generalised mean of its positive numbers (Radenovic et al. 2017,
    arXiv 1711.02512) with the exponent `power`. See ReductionConfig for the other fields, which are about the pooled
    vector.
    """

    pool: Literal["global", "map", "cls"] = "global"
    cells: int = Field(default=4, ge=1)
    within: Literal["mean", "gem", "max"] = "mean"
    power: float = Field(default=3.0, gt=0, le=100)

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Fields that came later: keys and stored configs of those who do not use them stay as they were.
        values: dict[str, Any] = dump(self)
        if self.within == "mean":
            del values["within"]
        if self.within != "gem":
            del values["power"]
        return values


class Reduction(nn.Module):
    """Vectors float [B, num_given] to float32 [B, latent_dim] by a PCA where one is asked for; no weights to train.

    The buffers mean [num_given] and components [latent_dim, num_given] are there only with a PCA. Raises ConfigError
    where dims is more than num_given.
    """

    mean: Tensor
    components: Tensor

    def __init__(self, config: ReductionConfig, num_given: int) -> None:
        super().__init__()
        self.config = config
        self.num_given = num_given
        if config.dims is not None and config.dims > num_given:
            raise ConfigError(
                f"model.read_out.dims is {config.dims}, but a photo has {num_given} numbers to reduce; name at most "
                "these"
            )
        if config.invariant_to is not None and num_given > _MOST_COMPARED:
            raise ConfigError(
                f"model.read_out.invariant_to compares views of {num_given} numbers a photo, more than "
                f"{_MOST_COMPARED}; pool to fewer cells, or leave it unset"
            )
        self.latent_dim = config.dims or num_given
        self.fitted = not self.needs_fit
        if self.needs_fit:
            self.register_buffer("mean", torch.zeros(num_given))
            self.register_buffer("components", torch.zeros(self.latent_dim, num_given))

    @property
    def needs_fit(self) -> bool:
        """Whether a PCA belongs to it."""
        return self.config.dims is not None or self.config.whiten or self.config.invariant_to is not None

    def reduced(self, rows: Tensor) -> Tensor:
        """Return rows float [B, num_given] as float32 [B, latent_dim]. Raises ConfigError before a PCA is fitted."""
        rows = rows.float()
        if not self.needs_fit:
            return rows
        if not self.fitted:
            raise ConfigError(
                "the read-out's PCA is not fitted yet; call the model's fit with training photos, or leave "
                "read_out.dims, read_out.whiten and read_out.invariant_to unset"
            )
        with full_precision(rows.device.type):
            return (rows - self.mean) @ self.components.T

    def forward(self, rows: Tensor) -> Tensor:
        """Return `reduced`."""
        return self.reduced(rows)

    @torch.no_grad()
    def fit_batches(self, batches: Iterable[Batch], given: Callable[[Tensor], Tensor]) -> None:
        """Set the components by batches of photos; does nothing where none are asked for.

        given: photos uint8 [B, 3, H, W] to their vectors, float [B, num_given]. Raises InputError as `fit`.
        """
        if self.needs_fit:
            self.fit(*rows_and_views(batches, given, self.config.invariant_to))

    def fit(self, rows: Tensor, views: ViewScatter | None = None) -> None:
        """Set the components of vectors, float [n, num_given]; does nothing where none are asked for.

        views: how views of a photo differ, which `invariant_to` needs. Computed in float64, the largest number of every
        component positive, so that a repeated fit has the same bits on one machine. Raises InputError when there are
        too few rows.
        """
        if not self.needs_fit:
            return
        if len(rows) <= self.latent_dim:
            raise InputError(
                f"{len(rows)} photos cannot fit {self.latent_dim} principal components; set read_out.dims below "
                f"{max(len(rows), 2)}, or train on more photos"
            )
        self.mean.copy_(rows.double().mean(dim=0))
        self.components.copy_(self._directions(rows, views))
        self.fitted = True

    def _directions(self, rows: Tensor, views: ViewScatter | None) -> Tensor:
        if self.config.invariant_to is not None:
            assert views is not None  # noqa: S101 - fit_batches draws them wherever they are asked for
            return relevant_components(rows, views, self.latent_dim)
        variances, directions = principal_components(rows, self.latent_dim)
        if self.config.whiten:
            least = _LEAST_VARIANCE * variances[0].clamp_min(torch.finfo(torch.float32).tiny)
            directions = directions * variances.clamp_min(least).rsqrt()[:, None]
        return directions

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *rest)
        # Not a buffer: a graph that is exported must not branch on a value.
        self.fitted = not self.needs_fit or bool(self.components.any())


class ReadOut(Reduction):
    """Maps float [B, channels, grid, grid] to vectors float32 [B, latent_dim]: pooled, then a Reduction."""

    pooling: Tensor

    def __init__(self, config: ReadOutConfig, channels: int, grid: int, *, of_token: bool = False) -> None:
        if config.pool == "cls" and not of_token:
            raise ConfigError("model.read_out.pool is cls, but this model has no class token; name global or map")
        cells = min(grid, config.cells) if config.pool == "map" else 1
        super().__init__(config, channels * cells * cells)
        self.cells, self.within, self.power = cells, config.within, config.power
        self.register_buffer("pooling", pooling_matrix(grid, cells), persistent=False)

    def pooled(self, features: Tensor) -> Tensor:
        """Return maps [B, channels, grid, grid] as float32 [B, num_given], channel first: what `fit` takes."""
        features = features.float()
        if self.within == "max":
            return F.adaptive_max_pool2d(features, self.cells).flatten(1)
        with full_precision(features.device.type):
            if self.within == "mean":
                return (self.pooling @ features @ self.pooling.T).flatten(1)
            positive = features.clamp_min(_LEAST_POSITIVE)
            # As shares of the largest: a power of small or large numbers would leave float32.
            most = positive.amax(dim=(2, 3), keepdim=True)
            means = self.pooling @ (positive / most).pow(self.power) @ self.pooling.T
            return (most * means.pow(1 / self.power)).flatten(1)

    def vectors(self, features: Tensor) -> Tensor:
        """Return the vectors of maps, float32 [B, latent_dim]. Raises ConfigError before a PCA is fitted."""
        return self.reduced(self.pooled(features))

    def forward(self, features: Tensor) -> Tensor:
        """Return `vectors`."""
        return self.vectors(features)


def pooling_matrix(grid: int, cells: int) -> Tensor:
    """Return P, float32 [cells, grid]: P @ map @ P.T is the map averaged to cells x cells, as adaptive pooling does."""
    matrix = torch.zeros(cells, grid)
    for cell in range(cells):
        start, end = cell * grid // cells, -(-(cell + 1) * grid // cells)
        matrix[cell, start:end] = 1.0 / (end - start)
    return matrix
