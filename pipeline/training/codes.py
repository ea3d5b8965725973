"""Codes of latents parts, and the loader that hands them to the loop for training a prior."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import InputError
from ..models.base import Batch
from ..parts import part_columns, read_part
from ..storage import Store
from .part_rows import PartRows
from .rows_loader import RowsLoader


@dataclass(frozen=True, slots=True)
class Codes:
    """Codes of photos, int32 [n, h, w]; their condition rows, int32 [n] or None; which are held out, bool [n] or None.

    In memory as a whole: 64 codes a photo are 256 bytes, so a million photos are 256 MB.
    """

    codes: NDArray[np.int32]
    category: NDArray[np.int32] | None = None
    held_out: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        """Return the number of photos."""
        return len(self.codes)

    @property
    def grid(self) -> tuple[int, int]:
        """Return rows and columns of a photo's codes."""
        return self.codes.shape[1], self.codes.shape[2]

    def side(self, *, held_out: bool) -> Codes:
        """Return the held-out photos alone, or the others alone, as photos that are not held out."""
        at = (np.zeros(len(self), np.bool_) if self.held_out is None else self.held_out) == held_out
        return Codes(self.codes[at], None if self.category is None else self.category[at])


def read_codes(store: Store, parts: Sequence[PartRows]) -> Codes:
    """Return the codes of rows of latents parts, in the order given, a photo's h * w codes as a square grid.

    Where one part has categories or held-out rows and another has not, the other's rows have no category (0) and are
    not held out. Raises InputError for latents without codes, for parts of different grids and for no photo at all;
    NotFound, IntegrityError as `parts.read_part`.
    """
    if not any(len(part.rows) for part in parts):
        raise InputError("there are no photos whose codes a prior could learn; encode some with a VQ model first")
    grids = [_grids(store, part) for part in parts]
    if len({grid.shape[1] for grid in grids}) > 1:
        sizes = {part.part: grid.shape[1:] for part, grid in zip(parts, grids, strict=True)}
        raise InputError(f"latents parts have codes of different grids: {sizes}; take those of one model")

    def joined(name: str, dtype: type[np.generic]) -> NDArray[np.generic] | None:
        values = [getattr(part, name) for part in parts]
        if all(value is None for value in values):
            return None
        filled = [
            np.zeros(len(part.rows), dtype) if value is None else value
            for part, value in zip(parts, values, strict=True)
        ]
        return np.concatenate(filled).astype(dtype)

    return Codes(np.concatenate(grids), joined("category", np.int32), joined("held_out", np.bool_))  # type: ignore[arg-type]


def grid_of(number: int) -> tuple[int, int]:
    """Return rows and columns of a photo's `number` codes. Raises InputError unless they fill a square."""
    side = math.isqrt(number)
    if side * side != number or number == 0:
        raise InputError(
            f"{number} codes a photo do not fill a square; a prior reads h x h grids or single codes. The codes of two "
            "levels (vqvae2) are not read by priors yet: take those of a vqvae"
        )
    return side, side


class CodesLoader(RowsLoader):
    """One rank's batches of codes, for the loop; see RowsLoader.

    Raises InputError when there are fewer photos than ranks.
    """

    def __init__(self, codes: Codes, *, batch_size: int, rank: int, world_size: int, seed: int) -> None:
        train, held_out = codes.side(held_out=False), codes.side(held_out=True)
        if len(train) < world_size:
            raise InputError(
                f"codes of {len(train)} photos cannot feed {world_size} training workers ({len(held_out)} are "
                "held out); add photos, lower train.validation or train.workers"
            )
        super().__init__(
            (len(train), lambda rows: _batch(train, rows)),
            (len(held_out), lambda rows: _batch(held_out, rows)),
            batch_size=batch_size,
            rank=rank,
            world_size=world_size,
            seed=seed,
        )


def _batch(codes: Codes, rows: NDArray[np.int64]) -> Batch:
    """Return a batch without pixels: images [B, 3, 0, 0], codes int64 [B, h, w]."""
    condition = None if codes.category is None else torch.from_numpy(codes.category[rows].astype(np.int64))
    images = torch.empty(len(rows), 3, 0, 0, dtype=torch.uint8)
    return Batch(images, condition, torch.from_numpy(codes.codes[rows].astype(np.int64)))


def _grids(store: Store, part: PartRows) -> NDArray[np.int32]:
    """Return codes int32 [n, h, w] of the wanted rows of a part."""
    if "codes" not in part_columns(store, part.part):
        raise InputError(f"{part.part} holds latents without codes; a prior needs those of a VQ model")
    column = read_part(store, part.part, ["codes"]).column("codes").combine_chunks()
    number = column.type.list_size
    if len(part.rows) and (part.rows.min() < 0 or part.rows.max() >= len(column)):
        raise InputError(f"{part.part} has {len(column)} rows; row {int(part.rows.max())} was asked for")
    values = np.asarray(column.flatten().to_numpy(zero_copy_only=False), np.int32).reshape(len(column), number)
    return values[part.rows].reshape(-1, *grid_of(number))
