"""Files of other projects in names and tensors that timm takes, where it takes them not, or not as they were meant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import InputError

# Of a file of the `efficientnet_pytorch` family: what comes first in a block, what there is without expansion.
_EXPANDED = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"}
_EXPANDED |= {
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
    "_se_reduce": "se.conv_reduce",
    "_se_expand": "se.conv_expand",
}
_PLAIN = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_PLAIN |= {"_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand"}
_ENDS = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}

_OFFSET = 0.1  # of a cell: what DINOv2 adds to the side that it wants, so that a quotient never rounds below it


def as_timm_takes(tensors: dict[str, Tensor], network: nn.Module, architecture: str, source: str) -> dict[str, Tensor]:
    """Return a file's tensors as timm's loading takes them; network: the architecture they are for.

    Of three families; all other files are returned as they are. Raises InputError for biases that the architecture has
    no place for.
    """
    if "_conv_stem.weight" in tensors:
        return _of_efficientnet_pytorch(tensors, network)
    if "storage_tokens" in tensors:
        return _of_dinov3(tensors, network, architecture, source)
    # As published: timm's own files of it have no token for masked patches.
    if {"mask_token", "pos_embed", "blocks.0.ls1.gamma"} <= tensors.keys() and "register_tokens" not in tensors:
        return _of_dinov2(tensors, network)
    return tensors


def _of_efficientnet_pytorch(tensors: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Return tensors of the `efficientnet_pytorch` family, whose blocks are counted through, by timm's names."""
    stages: Any = getattr(network, "blocks", ())
    places = [(stage, place) for stage, blocks in enumerate(stages) for place in range(len(blocks))]
    renamed = {}
    for name, value in tensors.items():
        part, _, rest = name.partition(".")
        now = name
        if part == "_blocks":
            number, inner, kind = rest.split(".", 2)
            if int(number) < len(places):
                stage, place = places[int(number)]
                table = _EXPANDED if hasattr(stages[stage][place], "conv_pwl") else _PLAIN
                now = f"blocks.{stage}.{place}.{table.get(inner, inner)}.{kind}"
        elif part in _ENDS:
            now = f"{_ENDS[part]}.{rest}"
        renamed[now] = value
    return renamed


def _of_dinov2(tensors: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Return a DINOv2 file (Oquab et al. 2023, arXiv 2304.07193) with positions of the network's size.

    As its authors bring those of 518 pixels to another size where there are no registers: bicubic, without
    antialiasing, by a factor of (cells + 0.1) to cells; timm would antialias, and take the plain quotient.
    """
    patch_embed: Any = getattr(network, "patch_embed", None)
    positions = tensors["pos_embed"]
    side, wanted = round((positions.shape[1] - 1) ** 0.5), getattr(patch_embed, "grid_size", None)
    if positions.ndim != 3 or side**2 != positions.shape[1] - 1 or wanted is None or tuple(wanted) == (side, side):
        return dict(tensors)
    grid = positions[:, 1:].float().transpose(1, 2).reshape(1, -1, side, side)
    factors = tuple((cells + _OFFSET) / side for cells in wanted)
    resized = F.interpolate(grid, scale_factor=factors, mode="bicubic")
    return {**tensors, "pos_embed": torch.cat([positions[:, :1].float(), resized.flatten(2).transpose(1, 2)], dim=1)}


def _of_dinov3(tensors: Mapping[str, Tensor], network: nn.Module, architecture: str, source: str) -> dict[str, Tensor]:
    """Return a DINOv3 file (Simeoni et al. 2025, arXiv 2508.10104) without biases that are masked or zero in vain.

    Its attention has biases, of which a mask takes those of the keys; published ones are zero, and timm has each
    architecture with and without (`_qkvb`). Told to do without, timm would drop them whatever they are.
    """
    found, places = dict(tensors), network.state_dict()
    for name in [name for name in tensors if name.endswith("attn.qkv.bias")]:
        if name in places or name.replace("qkv.bias", "q_bias") in places:
            continue
        bias = found.pop(name)
        mask = tensors.get(f"{name}_mask", torch.ones_like(bias))
        if (bias * mask != 0).any():
            raise InputError(
                f"{source} has biases in {name} that are not zero, and timm's {architecture} has no place for them; "
                f"name the architecture {architecture.split('.')[0]}_qkvb"
            )
    return found
