"""Files of other projects in names and tensors that timm takes, where it takes them not, or not as they were meant."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
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

# Names of `transformers` by patterns, in order, and what its authors called them.
_OF_CLIP = (
    (r"^vision_model\.embeddings\.patch_embedding\.", "visual.conv1."),
    (r"^vision_model\.embeddings\.position_embedding\.weight$", "visual.positional_embedding"),
    (r"^vision_model\.embeddings\.", "visual."),
    (r"^vision_model\.pre_layrnorm\.", "visual.ln_pre."),
    (r"^vision_model\.post_layernorm\.", "visual.ln_post."),
    (r"^vision_model\.encoder\.layers\.", "visual.transformer.resblocks."),
    (r"\.layer_norm(\d)\.", r".ln_\1."),
    (r"\.self_attn\.([qkv])_proj\.", r".attn.\1."),
    (r"\.self_attn\.", ".attn."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
)
_OF_DINO = (
    (r"^embeddings\.patch_embeddings\.(projection\.)?", "patch_embed.proj."),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.", ""),
    (r"^(encoder\.)?layer\.", "blocks."),
    (r"^layernorm\.", "norm."),
    (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
    (r"\.attention\.(output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.attention\.(attention\.)?(q|k|v)(uery|ey|alue|_proj)\.", r".attn.\2."),
    (r"\.mlp\.weights_in\.", ".mlp.w12."),
    (r"\.mlp\.weights_out\.", ".mlp.w3."),
)
_PLAIN_MLP = ((r"\.mlp\.up_proj\.", ".mlp.fc1."), (r"\.mlp\.down_proj\.", ".mlp.fc2."))
_GATED_MLP = (
    (r"\.mlp\.gate_proj\.", ".mlp.w1."),
    (r"\.mlp\.up_proj\.", ".mlp.w2."),
    (r"\.mlp\.down_proj\.", ".mlp.w3."),
)
_BLOCKS_IN_CHUNKS = re.compile(r"^blocks\.\d+\.(?=\d+\.)")  # how trainings of DINO keep them, counted through
_OFFSET = 0.1  # of a cell: what DINOv2 adds to the side that it wants, so that a quotient never rounds below it


def as_timm_takes(tensors: dict[str, Tensor], network: nn.Module, architecture: str, source: str) -> dict[str, Tensor]:
    """Return a file's tensors as timm's loading takes them; network: the architecture they are for.

    Of these families, also as `transformers` and trainings of DINO name them; all other files are returned as they are.
    Raises InputError for biases that the architecture has no place for.
    """
    tensors = _as_published(tensors)
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


def _as_published(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a file of `transformers`, or of a training of DINO, by the names under which CLIP and DINO were published.

    What is beside the encoder of photos is left out: texts, the heads of trainings and classifiers.
    """
    if "backbone.cls_token" in tensors:
        own = {name.removeprefix("backbone."): v for name, v in tensors.items() if name.startswith("backbone.")}
        return {_BLOCKS_IN_CHUNKS.sub("blocks.", name): value for name, value in own.items()}
    if "vision_model.pre_layrnorm.weight" in tensors:
        own = {name: v for name, v in tensors.items() if name.startswith("vision_model.")}
        own.pop("vision_model.embeddings.position_ids", None)
        found = _joined(_renamed(own, _OF_CLIP), "in_proj_")
        if "visual_projection.weight" in tensors:
            found["visual.proj"] = tensors["visual_projection.weight"].T
        return found
    first = next((name for name in tensors if name.endswith("embeddings.cls_token")), None)
    if first is None or not any("layer_scale1.lambda1" in name for name in tensors):
        return tensors
    prefix = first.removesuffix("embeddings.cls_token")
    mlp = _GATED_MLP if any(".mlp.gate_proj." in name for name in tensors) else _PLAIN_MLP
    own = {name.removeprefix(prefix): v for name, v in tensors.items() if name.startswith(prefix)}
    kept = ("embeddings.", "encoder.", "layer.", "layernorm.", "norm.")
    found = _joined(_renamed({name: v for name, v in own.items() if name.startswith(kept)}, (*_OF_DINO, *mlp)), "qkv.")
    if "pos_embed" not in found and "register_tokens" in found:
        found["storage_tokens"] = found.pop("register_tokens")
    return found


def _renamed(tensors: Mapping[str, Tensor], patterns: Sequence[tuple[str, str]]) -> dict[str, Tensor]:
    """Return tensors with every pattern of a name replaced."""
    found = {}
    for name, value in tensors.items():
        now = name
        for pattern, instead in patterns:
            now = re.sub(pattern, instead, now)
        found[now] = value
    return found


def _joined(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Return tensors with the three lines of each attention, `.attn.q.` and so on, one below the other as `name`.

    Keys without a bias beside queries with one get zeros, which change nothing.
    """
    found = {}
    for own, value in tensors.items():
        before, line, kind = own.rpartition(".attn.")[0], *own.rpartition(".attn.")[2].partition(".")[::2]
        if line not in ("q", "k", "v") or not before:
            found[own] = value
        elif line == "q":
            parts = [tensors.get(f"{before}.attn.{each}.{kind}", torch.zeros_like(value)) for each in "qkv"]
            found[f"{before}.attn.{name}{kind}"] = torch.cat(parts)
    return found


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
