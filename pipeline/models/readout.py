"""From a feature map to the vector that is compared between photos: pooled, and where asked in fewer components."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from ..errors import ConfigError, InputError
from ..images.augment import ViewsConfig
from .base import Batch, full_precision
from .components import ViewScatter, principal_components, relevant_components, rows_and_views

_LEAST_VARIANCE = 1e-6  # of the largest: whitening does not blow up what is only rounding


class ReadOutConfig(BaseModel):
    """pool: `global` is the mean over the map; `map` keeps the layout, averaged to at most `cells` cells a side.

    dims: that many principal components of the pooled vector, fitted on training photos when the training is over; None
    keeps all numbers. whiten: every component is scaled to variance 1, so none outweighs the others. invariant_to:
    changes that the vector is to overlook; in place of the principal components come those in which photos differ most
    compared with such views of one photo (`components.relevant_components`), what contrastive learning looks for, in
    closed form.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    pool: Literal["global", "map"] = "global"
    cells: int = Field(default=4, ge=1)
    dims: int | None = Field(default=None, ge=1)
    whiten: bool = False
    invariant_to: ViewsConfig | None = None

    @model_validator(mode="after")
    def _one_scale(self) -> ReadOutConfig:
        if self.whiten and self.invariant_to is not None:
            raise ValueError("whiten and invariant_to are two scales for the same components; name one of them")
        return self


class ReadOut(nn.Module):
    """Maps float [B, channels, grid, grid] to vectors float32 [B, latent_dim]; has no weights to train.

    num_pooled: numbers before the PCA. The buffers mean [num_pooled] and components [latent_dim, num_pooled] are there
    only where a PCA is asked for. Raises ConfigError where dims is more than the map has numbers.
    """

    mean: Tensor
    components: Tensor
    pooling: Tensor

    def __init__(self, config: ReadOutConfig, channels: int, grid: int) -> None:
        super().__init__()
        cells = 1 if config.pool == "global" else min(grid, config.cells)
        self.config = config
        self.num_pooled = channels * cells * cells
        if config.dims is not None and config.dims > self.num_pooled:
            raise ConfigError(
                f"read_out.dims is {config.dims}, but the pooled map has {self.num_pooled} numbers; name at most these"
            )
        self.latent_dim = config.dims or self.num_pooled
        self.register_buffer("pooling", pooling_matrix(grid, cells), persistent=False)
        self.fitted = not self.needs_fit
        if self.needs_fit:
            self.register_buffer("mean", torch.zeros(self.num_pooled))
            self.register_buffer("components", torch.zeros(self.latent_dim, self.num_pooled))

    @property
    def needs_fit(self) -> bool:
        """Whether a PCA belongs to it."""
        return self.config.dims is not None or self.config.whiten or self.config.invariant_to is not None

    def pooled(self, features: Tensor) -> Tensor:
        """Return maps [B, channels, grid, grid] as float32 [B, num_pooled], channel first: what `fit` takes."""
        with full_precision(features.device.type):
            cells = self.pooling @ features.float() @ self.pooling.T
        return cells.flatten(1)

    def vectors(self, features: Tensor) -> Tensor:
        """Return the vectors of maps, float32 [B, latent_dim]. Raises ConfigError before a PCA is fitted."""
        rows = self.pooled(features)
        if not self.needs_fit:
            return rows
        if not self.fitted:
            raise ConfigError(
                "the read-out's PCA is not fitted yet; call the model's fit with training photos, or leave "
                "read_out.dims, read_out.whiten and read_out.invariant_to unset"
            )
        with full_precision(rows.device.type):
            return (rows - self.mean) @ self.components.T

    def forward(self, features: Tensor) -> Tensor:
        """Return `vectors`."""
        return self.vectors(features)

    def fit_batches(self, batches: Iterable[Batch], pooled: Callable[[Tensor], Tensor]) -> None:
        """Set the components by batches of photos; does nothing where none are asked for.

        pooled: photos uint8 [B, 3, H, W] to their pooled vectors, float [B, num_pooled]. Raises InputError as `fit`.
        """
        if self.needs_fit:
            self.fit(*rows_and_views(batches, pooled, self.config.invariant_to))

    def fit(self, rows: Tensor, views: ViewScatter | None = None) -> None:
        """Set the components of pooled vectors, float [n, num_pooled]; does nothing where none are asked for.

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


def pooling_matrix(grid: int, cells: int) -> Tensor:
    """Return P, float32 [cells, grid]: P @ map @ P.T is the map averaged to cells x cells, as adaptive pooling does."""
    matrix = torch.zeros(cells, grid)
    for cell in range(cells):
        start, end = cell * grid // cells, -(-(cell + 1) * grid // cells)
        matrix[cell, start:end] = 1.0 / (end - start)
    return matrix
