"""From features to the vector that is compared between photos: maps pooled, and where asked all reduced by a PCA."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from ..errors import ConfigError, InputError
from .base import full_precision

_CHUNK = 4096  # rows held in float64 at a time
_LEAST_VARIANCE = 1e-6  # of the largest: whitening does not blow up what is only rounding


class ReductionConfig(BaseModel):
    """dims: that many principal components of a photo's vector, fitted on training photos; None keeps all numbers.

    whiten: every component is scaled to variance 1, so none outweighs the others.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dims: int | None = Field(default=None, ge=1)
    whiten: bool = False


class ReadOutConfig(ReductionConfig):
    """pool: `global` is the mean over the map; `map` keeps the layout, averaged to at most `cells` cells a side.

    dims: that many principal components of the pooled vector, fitted on training photos when the training is over; None
    keeps all numbers. whiten: every component is scaled to variance 1, so none outweighs the others.
    """

    pool: Literal["global", "map"] = "global"
    cells: int = Field(default=4, ge=1)


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
        self.latent_dim = config.dims or num_given
        self.fitted = not self.needs_fit
        if self.needs_fit:
            self.register_buffer("mean", torch.zeros(num_given))
            self.register_buffer("components", torch.zeros(self.latent_dim, num_given))

    @property
    def needs_fit(self) -> bool:
        """Whether a PCA belongs to it."""
        return self.config.dims is not None or self.config.whiten

    def reduced(self, rows: Tensor) -> Tensor:
        """Return rows float [B, num_given] as float32 [B, latent_dim]. Raises ConfigError before a PCA is fitted."""
        rows = rows.float()
        if not self.needs_fit:
            return rows
        if not self.fitted:
            raise ConfigError(
                "the read-out's PCA is not fitted yet; call the model's fit with training photos, or leave "
                "read_out.dims and read_out.whiten unset"
            )
        with full_precision(rows.device.type):
            return (rows - self.mean) @ self.components.T

    def forward(self, rows: Tensor) -> Tensor:
        """Return `reduced`."""
        return self.reduced(rows)

    def fit(self, rows: Tensor) -> None:
        """Set the PCA of vectors, float [n, num_given]; does nothing where none is asked for.

        Computed in float64, the largest number of every component positive, so that a repeated fit has the same bits
        on one machine. Raises InputError when there are too few rows.
        """
        if not self.needs_fit:
            return
        if len(rows) <= self.latent_dim:
            raise InputError(
                f"{len(rows)} photos cannot fit {self.latent_dim} principal components; set read_out.dims below "
                f"{max(len(rows), 2)}, or train on more photos"
            )
        variances, directions = principal_components(rows, self.latent_dim)
        if self.config.whiten:
            least = _LEAST_VARIANCE * variances[0].clamp_min(torch.finfo(torch.float32).tiny)
            directions = directions * variances.clamp_min(least).rsqrt()[:, None]
        self.mean.copy_(rows.double().mean(dim=0))
        self.components.copy_(directions)
        self.fitted = True

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *rest)
        # Not a buffer: a graph that is exported must not branch on a value.
        self.fitted = not self.needs_fit or bool(self.components.any())


class ReadOut(Reduction):
    """Maps float [B, channels, grid, grid] to vectors float32 [B, latent_dim]: pooled, then a Reduction."""

    pooling: Tensor

    def __init__(self, config: ReadOutConfig, channels: int, grid: int) -> None:
        cells = 1 if config.pool == "global" else min(grid, config.cells)
        super().__init__(config, channels * cells * cells)
        self.register_buffer("pooling", pooling_matrix(grid, cells), persistent=False)

    def pooled(self, features: Tensor) -> Tensor:
        """Return maps [B, channels, grid, grid] as float32 [B, num_given], channel first: what `fit` takes."""
        with full_precision(features.device.type):
            cells = self.pooling @ features.float() @ self.pooling.T
        return cells.flatten(1)

    def vectors(self, features: Tensor) -> Tensor:
        """Return the vectors of maps, float32 [B, latent_dim]. Raises ConfigError before a PCA is fitted."""
        return self.reduced(self.pooled(features))

    def forward(self, features: Tensor) -> Tensor:
        """Return `vectors`."""
        return self.vectors(features)


def principal_components(rows: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Return variances [number], largest first, and directions [number, D] of rows [n, D]; float64, signs fixed.

    number: below n. The largest number of each direction, by size, is positive. Memory: the smaller of D * D and n * n,
    and a few thousand rows or columns, in float64.
    """
    mean = rows.double().mean(dim=0)
    number_of_rows, width = rows.shape
    if number_of_rows >= width:
        scatter = torch.zeros(width, width, dtype=torch.float64, device=rows.device)
        for start in range(0, number_of_rows, _CHUNK):
            centred = rows[start : start + _CHUNK].double() - mean
            scatter += centred.T @ centred
        variances, columns = torch.linalg.eigh(scatter / max(number_of_rows - 1, 1))
        directions = columns.T.flip(0)[:number]
    else:
        variances, directions = _of_wide(rows, mean, number)
    largest = directions.gather(1, directions.abs().argmax(dim=1, keepdim=True))
    return variances.flip(0)[:number].clamp_min(0.0), directions * largest.sign()


def _of_wide(rows: Tensor, mean: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Return variances [n], largest last, and directions [number, D], largest first, of fewer rows than columns.

    By the products of rows with each other, n * n of them, in place of D * D (Turk and Pentland 1991, Eigenfaces).
    """
    places = [slice(start, start + _CHUNK) for start in range(0, rows.shape[1], _CHUNK)]
    products = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows.device)
    for place in places:
        centred = rows[:, place].double() - mean[place]
        products += centred @ centred.T
    variances, columns = torch.linalg.eigh(products / (len(rows) - 1))
    weights = columns.flip(1)[:, :number]
    mixed = torch.cat([(rows[:, place].double() - mean[place]).T @ weights for place in places])
    # Scaled to length 1; and, where there is no variance left and `mixed` is only rounding, still at right angles.
    return variances, torch.linalg.qr(mixed).Q.T


def pooling_matrix(grid: int, cells: int) -> Tensor:
    """Return P, float32 [cells, grid]: P @ map @ P.T is the map averaged to cells x cells, as adaptive pooling does."""
    matrix = torch.zeros(cells, grid)
    for cell in range(cells):
        start, end = cell * grid // cells, -(-(cell + 1) * grid // cells)
        matrix[cell, start:end] = 1.0 / (end - start)
    return matrix
