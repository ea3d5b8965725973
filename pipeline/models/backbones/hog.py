"""Histograms of oriented gradients (Dalal and Triggs 2005), one a cell, scaled by the 2 x 2 blocks around it."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import ConfigError
from ...losses.precision import full_precision

FLOOR = 0.02  # of gradients in 0..1: what is left of noise where a photo is flat, which 1e-5 would blow up to length 1
_CLIPPED = 0.2  # of a block of length 1 (Lowe 2004)
_EPSILON = 1e-5  # as in skimage, so that a flat block is zero and no NaN


def hog(pictures: Tensor, cell: int = 4, bins: int = 9, *, floor: float = FLOOR) -> Tensor:
    """Return the histograms of pictures, float32 [B, C, H, W] in 0..1 to [B, bins, H / cell, W / cell].

    A pixel's gradient is that of the channel where it is strongest; its orientation, unsigned in 0..180 degrees, falls
    into one bin. Every cell is divided by the lengths of the blocks that hold it, one to four, and averaged over them,
    so a cell is at most 1 long. floor: added to the lengths, squared, against noise. Not differentiable in the
    orientations. Raises ConfigError when cell does not divide the picture into at least 2 x 2 cells.
    """
    height, width = pictures.shape[-2:]
    if height % cell or width % cell or min(height, width) < 2 * cell:
        raise ConfigError(
            f"cells of {cell} pixels do not divide pictures of {height} x {width} into at least 2 x 2; name a divisor"
        )
    with full_precision(pictures.device.type):
        cells = cell_histograms(pictures, cell, bins)
        blocks = 4.0 * F.avg_pool2d(cells.square().sum(dim=1, keepdim=True), 2, stride=1)
        scale = torch.rsqrt(blocks + floor**2)
        total, number = _over_blocks(scale), _over_blocks(torch.ones_like(scale))
        return cells * (total / number)


def block_histograms(pictures: Tensor, cell: int, block: int, bins: int) -> Tensor:
    """Return the descriptor of Dalal and Triggs (2005) of pictures float [B, C, H, W]: float32 [B, features].

    Overlapping blocks of block x block cells, each brought to length 1, clipped at 0.2 and brought to length 1 again
    (L2-Hys, which one strong edge cannot outweigh): (H // cell - block + 1) * (W // cell - block + 1)
    * block * block * bins numbers, block after block, in each cell after cell, as skimage.feature.hog orders them.
    Pictures in whole numbers, 0..255: equal gradients are then equal, and of equal ones the first channel votes. Raises
    ConfigError for pictures below a block.
    """
    rows, columns = (side // cell - block + 1 for side in pictures.shape[-2:])
    if min(rows, columns) < 1:
        raise ConfigError(
            f"photos of {min(pictures.shape[-2:])} pixels hold no block of {block} x {block} cells of {cell} pixels; "
            "name a smaller cell or block"
        )
    with full_precision(pictures.device.type):
        cells = cell_histograms(pictures, cell, bins)
        places = ((row, column) for row in range(block) for column in range(block))
        shifted = [cells[:, :, row : row + rows, column : column + columns] for row, column in places]
        blocks = torch.stack(shifted, dim=1).permute(0, 3, 4, 1, 2).flatten(3)  # [B, rows, columns, block^2 * bins]
        return _unit(_unit(blocks).clamp_max(_CLIPPED)).flatten(1)


def cell_histograms(pictures: Tensor, cell: int, bins: int) -> Tensor:
    """Return each cell's mean gradient length by orientation, float32 [B, bins, H / cell, W / cell]; not yet scaled."""
    pictures = pictures.float()
    down = F.pad(pictures[..., 2:, :] - pictures[..., :-2, :], (0, 0, 1, 1))  # zero at the border
    right = F.pad(pictures[..., :, 2:] - pictures[..., :, :-2], (1, 1, 0, 0))
    strongest = (down.square() + right.square()).argmax(dim=1, keepdim=True)
    down, right = down.gather(1, strongest), right.gather(1, strongest)
    # Half of the plane is turned over, so that the angle of a gradient and of its opposite are the same bits.
    turned = (down < 0) | ((down == 0) & (right < 0))
    angle = torch.atan2(torch.where(turned, -down, down), torch.where(turned, -right, right))
    chosen = (angle * (bins / math.pi)).long().clamp(0, bins - 1)
    shares = torch.zeros(down.shape[0], bins, *down.shape[2:], device=down.device)
    shares = shares.scatter(1, chosen, _length(down, right))
    return F.avg_pool2d(shares, cell)


def _unit(blocks: Tensor) -> Tensor:
    return blocks / (blocks.square().sum(dim=-1, keepdim=True) + _EPSILON**2).sqrt()


def _length(down: Tensor, right: Tensor) -> Tensor:
    """Return the lengths of gradients. ONNX has no hypot; and where nothing changes, its derivative would be 0 / 0."""
    squares = down.square() + right.square()
    return torch.where(squares > 0, squares.clamp_min(torch.finfo(squares.dtype).tiny).sqrt(), 0.0)


def _over_blocks(values: Tensor) -> Tensor:
    """Return, for every cell, the sum over the blocks that hold it; [B, 1, h - 1, w - 1] to [B, 1, h, w]."""
    return 4.0 * F.avg_pool2d(F.pad(values, (1, 1, 1, 1)), 2, stride=1)
