"""Files as CLIP, open_clip, DINOv2, DINOv3 and SigLIP write them, of tiny random networks, against the papers' forward
passes written out here in plain torch; no file of theirs is at hand. Architectures are timm's own, made narrow."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor

import foreign_files as FILES
from pipeline.errors import InputError

PLAIN, loaded, normalised, parsed, photos = FILES.PLAIN, FILES.loaded, FILES.normalised, FILES.parsed, FILES.photos
WIDTH, HEADS, DEPTH = 32, 2, 2
Tensors = dict[str, Tensor]
ONE: dict[str, Any] = {"rtol": 0, "atol": 1e-5}


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """timm's architectures with all that sets them apart but their size."""
    torch.set_num_threads(1)
    small = functools.partial(timm.create_model, embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS)
    monkeypatch.setattr(timm, "create_model", small)


def said(path: Path, tensors: Any, architecture: str, size: int, output: str, pool: str) -> Tensor:
    """What our model of a file says of two photos."""
    torch.save(tensors, path / "file.pth")
    config = parsed(
        source="timm", architecture=architecture, weights=str(path / "file.pth"), output=output,
        preprocessing={**PLAIN, "size": size}, read_out={"pool": pool},
    )  # fmt: skip
    mean: Tensor = loaded(config).encode(photos(2, size)).mean
    return mean


def random(shapes: dict[str, tuple[int, ...]]) -> Tensors:
    """Tensors of these shapes; norms near 1 and layer scales far from what a new network has."""
    dice = torch.Generator().manual_seed(5)
    found = {}
    for name, shape in shapes.items():
        values = torch.randn(shape, generator=dice)
        is_norm = name.endswith("weight") and len(shape) == 1
        found[name] = 1 + 0.1 * values if is_norm else 0.5 * values if len(shape) == 1 else 0.2 * values
    return found


# --- the forward passes, in the words of their papers


def by_head(x: Tensor) -> Tensor:
    """Tokens [B, N, W] as [B, heads, N, W / heads]."""
    return x.reshape(*x.shape[:2], HEADS, -1).transpose(1, 2)


def attention(x: Tensor, qkv: Tensor, bias: Tensor, turn: Callable[[Tensor], Tensor] = lambda x: x) -> Tensor:
    """Multi-head self-attention of tokens [B, N, W] without its last projection (Vaswani et al. 2017)."""
    q, k, v = map(by_head, (x @ qkv.T + bias).chunk(3, dim=2))
    weights = (turn(q) @ turn(k).transpose(2, 3) / math.sqrt(WIDTH // HEADS)).softmax(dim=3)
    return (weights @ v).transpose(1, 2).flatten(2)


def norm(x: Tensor, of: Tensors, name: str, eps: float) -> Tensor:
    return F.layer_norm(x, (x.shape[-1],), of[f"{name}.weight"], of[f"{name}.bias"], eps)


def line(x: Tensor, of: Tensors, name: str) -> Tensor:
    return x @ of[f"{name}.weight"].T + of[f"{name}.bias"]


def patches(x: Tensor, weight: Tensor) -> Tensor:
    """Tokens [B, N, W] of pictures cut into patches, row by row, without a bias."""
    side = weight.shape[-1]
    cut = x.unfold(2, side, side).unfold(3, side, side).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
    found: Tensor = cut @ weight.flatten(1).T
    return found


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def clip(x: Tensor, of: Tensors, act: Callable[[Tensor], Tensor]) -> Tensor:
    """Radford et al. 2021, its image encoder: a norm before and after, the class token into the joint space."""
    x = patches(x, of["visual.conv1.weight"])
    x = torch.cat([of["visual.class_embedding"].expand(len(x), 1, -1), x], dim=1) + of["visual.positional_embedding"]
    x = norm(x, of, "visual.ln_pre", 1e-5)
    for number in range(DEPTH):
        own = f"visual.transformer.resblocks.{number}"
        seen = attention(
            norm(x, of, f"{own}.ln_1", 1e-5), of[f"{own}.attn.in_proj_weight"], of[f"{own}.attn.in_proj_bias"]
        )
        x = x + line(seen, of, f"{own}.attn.out_proj")
        x = x + line(act(line(norm(x, of, f"{own}.ln_2", 1e-5), of, f"{own}.mlp.c_fc")), of, f"{own}.mlp.c_proj")
    return norm(x[:, 0], of, "visual.ln_post", 1e-5) @ of["visual.proj"]


def blocks(
    x: Tensor, of: Tensors, eps: float, prefix: str = "", turn: Callable[[Tensor], Tensor] = lambda x: x, *,
    scaled: bool = True, biases: Callable[[Tensor], Tensor] = lambda bias: bias,
) -> Tensor:  # fmt: skip
    """Pre-norm blocks (Dosovitskiy et al. 2021), with layer scale (Touvron et al. 2021) where the file has it."""
    for number in range(DEPTH):
        own = f"{prefix}blocks.{number}"
        scales = [of.get(f"{own}.ls{each}.gamma") if scaled else None for each in (1, 2)]
        seen = attention(
            norm(x, of, f"{own}.norm1", eps), of[f"{own}.attn.qkv.weight"], biases(of[f"{own}.attn.qkv.bias"]), turn
        )
        seen = line(seen, of, f"{own}.attn.proj")
        x = x + (seen if scales[0] is None else seen * scales[0])
        seen = line(F.gelu(line(norm(x, of, f"{own}.norm2", eps), of, f"{own}.mlp.fc1")), of, f"{own}.mlp.fc2")
        x = x + (seen if scales[1] is None else seen * scales[1])
    return norm(x, of, f"{prefix}norm", eps)


def block_shapes(prefix: str = "", *, scaled: bool = True) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for number in range(DEPTH):
        own = f"{prefix}blocks.{number}"
        for name in ("norm1", "norm2"):
            shapes |= {f"{own}.{name}.weight": (WIDTH,), f"{own}.{name}.bias": (WIDTH,)}
        lines = {"attn.qkv": (3, 1), "attn.proj": (1, 1), "mlp.fc1": (4, 1), "mlp.fc2": (1, 4)}
        for name, (out, into) in lines.items():
            shapes |= {f"{own}.{name}.weight": (out * WIDTH, into * WIDTH), f"{own}.{name}.bias": (out * WIDTH,)}
        if scaled:
            shapes |= {f"{own}.ls1.gamma": (WIDTH,), f"{own}.ls2.gamma": (WIDTH,)}
    return shapes | {f"{prefix}norm.weight": (WIDTH,), f"{prefix}norm.bias": (WIDTH,)}


def dinov2(x: Tensor, of: Tensors, positions: Tensor, *, scaled: bool = True) -> Tensor:
    """Oquab et al. 2023; registers (Darcet et al. 2023) come after the class token and have no position."""
    x = patches(x, of["patch_embed.proj.weight"]) + of["patch_embed.proj.bias"]
    x = torch.cat([of["cls_token"].expand(len(x), -1, -1), x], dim=1) + positions
    if "register_tokens" in of:
        x = torch.cat([x[:, :1], of["register_tokens"].expand(len(x), -1, -1), x[:, 1:]], dim=1)
    return blocks(x, of, 1e-6, scaled=scaled)[:, 0]


def rope(side: int, prefixes: int) -> Callable[[Tensor], Tensor]:
    """Siméoni et al. 2025: patches' places between -1 and 1, as angles of periods from 1 to 100, halves turned."""
    depth = WIDTH // HEADS
    periods = 100.0 ** (2 * torch.arange(depth // 4) / (depth // 2))
    places = 2 * (torch.arange(side) + 0.5) / side - 1
    pairs = torch.stack(torch.meshgrid(places, places, indexing="ij"), dim=2).flatten(0, 1)
    angles = (2 * math.pi * pairs[:, :, None] / periods).flatten(1).repeat(1, 2)  # [N, depth]

    def turn(q: Tensor) -> Tensor:
        first, rest = q[:, :, :prefixes], q[:, :, prefixes:]
        low, high = rest.chunk(2, dim=3)
        return torch.cat([first, rest * angles.cos() + torch.cat([-high, low], dim=3) * angles.sin()], dim=2)

    return turn


# --- CLIP and open_clip


def clip_file(side: int = 2) -> Tensors:
    """A whole CLIP, of which the image encoder counts; weights in half precision, as OpenAI published them."""
    wide = {"visual.class_embedding": (WIDTH,), "visual.conv1.weight": (WIDTH, 3, 16, 16), "visual.proj": (WIDTH, 512)}
    shapes: dict[str, tuple[int, ...]] = {**wide, "visual.positional_embedding": (side**2 + 1, WIDTH)}
    for name in ("visual.ln_pre", "visual.ln_post", "ln_final"):
        shapes |= {f"{name}.weight": (WIDTH,), f"{name}.bias": (WIDTH,)}
    for number in range(DEPTH):
        for own in (f"visual.transformer.resblocks.{number}", f"transformer.resblocks.{number}"):
            shapes |= {f"{own}.attn.in_proj_weight": (3 * WIDTH, WIDTH), f"{own}.attn.in_proj_bias": (3 * WIDTH,)}
            for name, (out, into) in {"attn.out_proj": (1, 1), "mlp.c_fc": (4, 1), "mlp.c_proj": (1, 4)}.items():
                shapes |= {f"{own}.{name}.weight": (out * WIDTH, into * WIDTH), f"{own}.{name}.bias": (out * WIDTH,)}
            for name in ("ln_1", "ln_2"):
                shapes |= {f"{own}.{name}.weight": (WIDTH,), f"{own}.{name}.bias": (WIDTH,)}
    texts = {"token_embedding.weight": (9, WIDTH), "positional_embedding": (7, WIDTH), "text_projection": (WIDTH, 512)}
    return random(shapes | texts | {"logit_scale": ()})


@torch.no_grad()
def test_openais_clip_with_its_quick_gelu(tmp_path: Path) -> None:
    tensors = {name: value.half() if value.ndim else value for name, value in clip_file().items()}
    numbers = {name: torch.tensor(224) for name in ("input_resolution", "context_length", "vocab_size")}
    found = said(tmp_path, tensors | numbers, "vit_base_patch16_clip_quickgelu_224", 32, "head", "global")
    whole = {name: value.float() for name, value in tensors.items()}
    torch.testing.assert_close(found, clip(normalised(photos(2)), whole, quick_gelu), **ONE)
    assert (found - clip(normalised(photos(2)), whole, F.gelu)).abs().max() > 1e-3


@torch.no_grad()
def test_open_clips_own_towers_as_trainings_keep_them(tmp_path: Path) -> None:
    tensors = clip_file()
    kept = {"epoch": 32, "name": "run", "state_dict": {f"module.{name}": value for name, value in tensors.items()}}
    found = said(tmp_path, kept, "vit_base_patch16_clip_224.laion2b", 32, "head", "global")
    torch.testing.assert_close(found, clip(normalised(photos(2)), tensors, F.gelu), **ONE)
    assert (found - clip(normalised(photos(2)), tensors, quick_gelu)).abs().max() > 1e-3


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:Warning")
def test_clip_as_torchscript_is_refused_with_the_way_out(tmp_path: Path) -> None:
    """OpenAI's own download is an archive with code in it."""
    traced: Any = torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2))  # type: ignore[no-untyped-call]
    traced.save(str(tmp_path / "file.pth"))
    config = parsed(source="timm", architecture="vit_base_patch16_clip_224", weights=str(tmp_path / "file.pth"),
                    output="head")  # fmt: skip
    with pytest.raises(InputError, match=r"TorchScript.*state_dict"):
        loaded(config)


# --- SigLIP


@torch.no_grad()
def test_siglip_pools_by_attention(tmp_path: Path) -> None:
    """As open_clip saves it, with a tower of timm's beside one of texts (Zhai et al. 2023; Lee et al. 2019)."""
    own = "visual.trunk."
    shapes = block_shapes(own, scaled=False)
    shapes |= {f"{own}patch_embed.proj.weight": (WIDTH, 3, 16, 16), f"{own}patch_embed.proj.bias": (WIDTH,)}
    shapes |= {f"{own}pos_embed": (1, 4, WIDTH), f"{own}attn_pool.latent": (1, 1, WIDTH)}
    lines = {"q": (1, 1), "kv": (2, 1), "proj": (1, 1), "mlp.fc1": (4, 1), "mlp.fc2": (1, 4)}
    for name, (out, into) in lines.items():
        shapes |= {f"{own}attn_pool.{name}.weight": (out * WIDTH, into * WIDTH)}
        shapes |= {f"{own}attn_pool.{name}.bias": (out * WIDTH,)}
    shapes |= {f"{own}attn_pool.norm.weight": (WIDTH,), f"{own}attn_pool.norm.bias": (WIDTH,)}
    of = random(shapes | {"text.token_embedding.weight": (9, WIDTH), "logit_scale": (), "logit_bias": ()})
    found = said(tmp_path, of, "vit_base_patch16_siglip_224", 32, "pooled", "global")

    x = patches(normalised(photos(2)), of[f"{own}patch_embed.proj.weight"]) + of[f"{own}patch_embed.proj.bias"]
    x = blocks(x + of[f"{own}pos_embed"], of, 1e-6, own)
    pool = f"{own}attn_pool"
    q = line(of[f"{pool}.latent"].expand(2, -1, -1), of, f"{pool}.q")
    k, v = line(x, of, f"{pool}.kv").chunk(2, dim=2)
    q, k, v = map(by_head, (q, k, v))
    seen = (q @ k.transpose(2, 3) / math.sqrt(WIDTH // HEADS)).softmax(dim=3) @ v
    seen = line(seen.transpose(1, 2).flatten(2), of, f"{pool}.proj")
    inner = F.gelu(line(norm(seen, of, f"{pool}.norm", 1e-6), of, f"{pool}.mlp.fc1"))
    wanted = (seen + line(inner, of, f"{pool}.mlp.fc2"))[:, 0]
    torch.testing.assert_close(found, wanted, **ONE)
    assert (found - x.mean(dim=1)).abs().max() > 1e-3


# --- DINOv2 and DINOv3


def dinov2_file(side: int, registers: int) -> Tensors:
    shapes = {"cls_token": (1, 1, WIDTH), "pos_embed": (1, 1 + side**2, WIDTH), "mask_token": (1, WIDTH)}
    shapes |= {"patch_embed.proj.weight": (WIDTH, 3, 14, 14), "patch_embed.proj.bias": (WIDTH,)} | block_shapes()
    return random(shapes | ({"register_tokens": (1, registers, WIDTH)} if registers else {}))


@pytest.mark.parametrize(("registers", "side"), [(0, 2), (0, 5), (4, 2), (4, 5)])
@torch.no_grad()
def test_dinov2_at_its_own_size_and_another(registers: int, side: int, tmp_path: Path) -> None:
    """Files hold positions of 518 pixels. Another size takes them by bicubic interpolation: as published, those without
    registers by a factor a tenth of a cell too large and without antialiasing, those with registers plainly."""
    of = dinov2_file(side, registers)
    name = "vit_small_patch14_reg4_dinov2" if registers else "vit_small_patch14_dinov2"
    found = said(tmp_path, of, name, 28, "features", "cls")
    grid = of["pos_embed"][:, 1:].transpose(1, 2).reshape(1, WIDTH, side, side)
    plainly = F.interpolate(grid, size=(2, 2), mode="bicubic", antialias=True)
    published = plainly if registers else F.interpolate(grid, scale_factor=2.1 / side, mode="bicubic")
    if side == 2:
        plainly = published = grid
    ways = [torch.cat([of["pos_embed"][:, :1], way.flatten(2).transpose(1, 2)], 1) for way in (published, plainly)]
    x = normalised(photos(2, 28))
    torch.testing.assert_close(found, dinov2(x, of, ways[0]), **ONE)
    assert (found - dinov2(x, of, ways[0], scaled=False)).abs().max() > 1e-3
    if side != 2 and not registers:
        assert (found - dinov2(x, of, ways[1])).abs().max() > 1e-3


def dinov3_file() -> Tensors:
    shapes = {"cls_token": (1, 1, WIDTH), "storage_tokens": (1, 4, WIDTH), "mask_token": (1, WIDTH)}
    shapes |= {"patch_embed.proj.weight": (WIDTH, 3, 16, 16), "patch_embed.proj.bias": (WIDTH,)} | block_shapes()
    of = random(shapes | {"rope_embed.periods": (WIDTH // HEADS // 4,)})
    for number in range(DEPTH):
        of[f"blocks.{number}.attn.qkv.bias_mask"] = torch.ones(3 * WIDTH)
        of[f"blocks.{number}.attn.qkv.bias_mask"][WIDTH : 2 * WIDTH] = 0
    return of


def dinov3(x: Tensor, of: Tensors, *, turned: bool = True, scaled: bool = True) -> Tensor:
    x = patches(x, of["patch_embed.proj.weight"]) + of["patch_embed.proj.bias"]
    x = torch.cat([of["cls_token"].expand(len(x), -1, -1), of["storage_tokens"].expand(len(x), -1, -1), x], dim=1)
    mask = of["blocks.0.attn.qkv.bias_mask"]
    turn = rope(2, 5) if turned else lambda q: q
    return blocks(x, of, 1e-5, turn=turn, scaled=scaled, biases=lambda bias: bias * mask)[:, 0]


@pytest.mark.parametrize("biased", [True, False])
@torch.no_grad()
def test_dinov3_turns_its_patches_and_masks_its_keys_biases(
    biased: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Published ones of a distillation have biases that are all zero, and timm has architectures with and without."""
    of = dinov3_file()
    if not biased:
        of |= {name: torch.zeros_like(value) for name, value in of.items() if name.endswith("qkv.bias")}
    name = "vit_small_patch16_dinov3_qkvb" if biased else "vit_small_patch16_dinov3"
    found = said(tmp_path, of, name, 32, "features", "cls")
    x = normalised(photos(2))
    torch.testing.assert_close(found, dinov3(x, of), **ONE)
    assert (found - dinov3(x, of, turned=False)).abs().max() > 1e-3
    assert (found - dinov3(x, of, scaled=False)).abs().max() > 1e-3
    assert capsys.readouterr().out == ""  # where --json prints its one object


def test_biases_that_an_architecture_has_no_place_for_are_not_dropped(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"blocks\.0\.attn\.qkv\.bias.*vit_small_patch16_dinov3_qkvb"):
        said(tmp_path, dinov3_file(), "vit_small_patch16_dinov3", 32, "features", "cls")


# --- the same networks as `transformers` and trainings keep them


def split(of: Tensors, name: str, into: str, lines: tuple[str, str, str], *, keys: bool = True) -> Tensors:
    """The three lines of an attention, each by itself; keys: with the keys' bias."""
    found: Tensors = {}
    for kind in ("weight", "bias"):
        parts = of[f"{name}{kind}"].chunk(3)
        found |= {f"{into}.{line}.{kind}": part.clone() for line, part in zip(lines, parts, strict=True)}
    if not keys:
        del found[f"{into}.{lines[1]}.bias"]
    return found


@torch.no_grad()
def test_clip_of_transformers(tmp_path: Path) -> None:
    of, theirs = clip_file(), "vision_model"
    held = {"class_embedding": "visual.class_embedding", "patch_embedding.weight": "visual.conv1.weight",
            "position_embedding.weight": "visual.positional_embedding"}  # fmt: skip
    file = {f"{theirs}.embeddings.{name}": of[own] for name, own in held.items()}
    file |= {f"{theirs}.embeddings.position_ids": torch.arange(5)[None], "logit_scale": of["logit_scale"]}
    file["visual_projection.weight"] = of["visual.proj"].T.contiguous()
    pairs = {"pre_layrnorm": "visual.ln_pre", "post_layernorm": "visual.ln_post"}
    for number in range(DEPTH):
        layer, own = f"encoder.layers.{number}", f"visual.transformer.resblocks.{number}"
        pairs |= {f"{layer}.layer_norm1": f"{own}.ln_1", f"{layer}.layer_norm2": f"{own}.ln_2",
                  f"{layer}.mlp.fc1": f"{own}.mlp.c_fc", f"{layer}.mlp.fc2": f"{own}.mlp.c_proj",
                  f"{layer}.self_attn.out_proj": f"{own}.attn.out_proj"}  # fmt: skip
        file |= split(of, f"{own}.attn.in_proj_", f"{theirs}.{layer}.self_attn", ("q_proj", "k_proj", "v_proj"))
        file[f"text_model.{layer}.layer_norm1.weight"] = of[f"{own}.ln_1.weight"]
    for name, own in pairs.items():
        file |= {f"{theirs}.{name}.{kind}": of[f"{own}.{kind}"] for kind in ("weight", "bias")}
    found = said(tmp_path, file, "vit_base_patch16_clip_quickgelu_224.openai", 32, "head", "global")
    torch.testing.assert_close(found, clip(normalised(photos(2)), of, quick_gelu), **ONE)


def dino_of_transformers(of: Tensors, *, third: bool) -> Tensors:
    """A DINO file as `transformers` names it; third: version 3, whose keys have no bias."""
    file = {f"embeddings.{name}": of[name] for name in ("cls_token", "mask_token")}
    layers, dense = ("layer", "attention.o_proj") if third else ("encoder.layer", "attention.output.dense")
    pairs = {"embeddings.patch_embeddings" + ("" if third else ".projection"): "patch_embed.proj",
             "norm" if third else "layernorm": "norm"}  # fmt: skip
    if third:
        file["embeddings.register_tokens"] = of["storage_tokens"]
    else:
        file["embeddings.position_embeddings"] = of["pos_embed"]
    for number in range(DEPTH):
        layer, own = f"{layers}.{number}", f"blocks.{number}"
        fc1, fc2 = ("up_proj", "down_proj") if third else ("fc1", "fc2")
        pairs |= {f"{layer}.norm1": f"{own}.norm1", f"{layer}.norm2": f"{own}.norm2",
                  f"{layer}.{dense}": f"{own}.attn.proj",
                  f"{layer}.mlp.{fc1}": f"{own}.mlp.fc1", f"{layer}.mlp.{fc2}": f"{own}.mlp.fc2"}  # fmt: skip
        file |= {f"{layer}.layer_scale{each}.lambda1": of[f"{own}.ls{each}.gamma"] for each in (1, 2)}
        lines = ("q_proj", "k_proj", "v_proj") if third else ("query", "key", "value")
        into = f"{layer}.attention" + ("" if third else ".attention")
        file |= split(of, f"{own}.attn.qkv.", into, lines, keys=not third)
    for name, own in pairs.items():
        file |= {f"{name}.{kind}": of[f"{own}.{kind}"] for kind in ("weight", "bias")}
    return file


@torch.no_grad()
def test_dino_of_transformers_and_of_trainings(tmp_path: Path) -> None:
    of, x = dinov2_file(5, 0), normalised(photos(2, 28))
    grid = F.interpolate(
        of["pos_embed"][:, 1:].transpose(1, 2).reshape(1, WIDTH, 5, 5), scale_factor=2.1 / 5, mode="bicubic"
    )
    wanted = dinov2(x, of, torch.cat([of["pos_embed"][:, :1], grid.flatten(2).transpose(1, 2)], 1))
    named = {f"dinov2.{name}": value for name, value in dino_of_transformers(of, third=False).items()}
    named["classifier.weight"] = torch.zeros(3, WIDTH)
    chunked = {f"backbone.{name.replace('blocks.', 'blocks.0.')}": value for name, value in of.items()}
    trained = {"teacher": chunked | {"dino_head.last_layer.weight_g": torch.ones(3, 1)}, "iteration": 7}
    for file in (named, trained):
        found = said(tmp_path, file, "vit_small_patch14_dinov2", 28, "features", "cls")
        torch.testing.assert_close(found, wanted, **ONE)
    third = dinov3_file()
    file = dino_of_transformers(third, third=True)
    found = said(tmp_path, file, "vit_small_patch16_dinov3_qkvb", 32, "features", "cls")
    torch.testing.assert_close(found, dinov3(normalised(photos(2)), third), **ONE)
    with pytest.raises(InputError, match="_qkvb"):
        said(tmp_path, file, "vit_small_patch16_dinov3", 32, "features", "cls")
