"""Directions to read latents along: those in which photos differ most, plainly or against views of one photo."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..images.augment import ViewsConfig, two_views
from .base import Batch

_CHUNK = 4096  # rows held in float64 at a time
_PAIRS = 2  # pairs of views of each photo
_BASIS = 256  # principal components among which relevant ones are looked for
_RIDGE = 0.1  # of the mean variance between views, added to every direction's


@dataclass(frozen=True, slots=True)
class ViewScatter:
    """How views of photos differ: covariances float64 [D, D]. within: of one photo's views; total: of all of them."""

    within: Tensor
    total: Tensor


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
    return variances.flip(0)[:number].clamp_min(0.0), _signed(directions)


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


def relevant_components(rows: Tensor, views: ViewScatter, number: int) -> Tensor:
    """Return directions float64 [number, D] in which photos differ most compared with views of one photo.

    The generalised eigenvectors v of total v = lambda (within + ridge) v, scaled so that views of one photo have
    variance 1 along each, largest lambda first: Fisher's discriminant with every photo a class of its own. Relevant
    component analysis (Bar-Hillel et al. 2005, JMLR 6) with views as its chunklets, and learned whitening (Radenovic et
    al. 2017, arXiv 1711.02512) with views as its matching pairs. Looked for among the first 256 principal
    components of rows [n, D], at least `number` of them; the ridge is a tenth of the mean variance between views.
    """
    _, axes = principal_components(rows, max(number, min(_BASIS, len(rows) - 1, rows.shape[1])))
    within, total = (axes @ scatter @ axes.T for scatter in (views.within, views.total))
    eye = torch.eye(len(axes), dtype=torch.float64, device=axes.device)
    # Views that are all alike leave nothing to compare with: then these are the principal components.
    ridge = (_RIDGE * within.diagonal().mean()).clamp_min(torch.finfo(torch.float64).tiny ** 0.5)
    root = torch.linalg.cholesky(within + ridge * eye)
    inner = torch.linalg.solve_triangular(root, total, upper=False)
    inner = torch.linalg.solve_triangular(root, inner.T, upper=False)
    _, directions = _largest((inner + inner.T) / 2.0, number)
    return _signed(torch.linalg.solve_triangular(root.T, directions.T, upper=True).T @ axes)


def rows_and_views(
    batches: Iterable[Batch], pooled: Callable[[Tensor], Tensor], changes: ViewsConfig | None
) -> tuple[Tensor, ViewScatter | None]:
    """Return the rows [n, D] that `pooled` makes of the batches' photos and, where changes are named, how views differ.

    Four views of each photo, drawn from a seed of their own; the global generators stay as they were.
    """
    rows: list[Tensor] = []
    sums: _Sums | None = None
    for number, batch in enumerate(batches):
        rows.append(pooled(batch.images))
        if changes is not None:
            sums = sums or _Sums(rows[0])
            sums.add(_views(batch.images, pooled, changes, seed=number))
    return torch.cat(rows), sums.scatter() if sums else None


class _Sums:
    """Adds up outer products of views; row: one as they come, [.., D]."""

    def __init__(self, row: Tensor) -> None:
        width = row.shape[1]
        self._within, self._squares = torch.zeros(2, width, width, dtype=torch.float64, device=row.device)
        self._mean = torch.zeros(width, dtype=torch.float64, device=row.device)
        self._photos = self._views = 0

    def add(self, views: Tensor) -> None:
        """Add the views [v, n, D] of n photos."""
        number, photos, width = views.shape
        apart = (views - views.mean(dim=0)).reshape(-1, width)
        self._within += apart.T @ apart / (number - 1)
        flat = views.reshape(-1, width)
        self._squares += flat.T @ flat
        self._mean += flat.sum(dim=0)
        self._photos += photos
        self._views += number * photos

    def scatter(self) -> ViewScatter:
        """Return the covariances of all that was added."""
        mean = self._mean / self._views
        return ViewScatter(self._within / self._photos, self._squares / self._views - torch.outer(mean, mean))


def _views(images: Tensor, pooled: Callable[[Tensor], Tensor], changes: ViewsConfig, *, seed: int) -> Tensor:
    """Return pooled views of photos, float64 [2 * _PAIRS, n, D]."""
    devices = [images.device] if images.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        pairs = [two_views(images, changes) for _ in range(_PAIRS)]
    found = [pooled(view).double() for pair in pairs for view in pair.chunk(2)]
    return torch.stack(found)


def _largest(symmetric: Tensor, number: int) -> tuple[Tensor, Tensor]:
    values, columns = torch.linalg.eigh(symmetric)
    return values.flip(0)[:number].clamp_min(0.0), _signed(columns.T.flip(0)[:number])


def _signed(directions: Tensor) -> Tensor:
    largest = directions.gather(1, directions.abs().argmax(dim=1, keepdim=True))
    return directions * largest.sign()
