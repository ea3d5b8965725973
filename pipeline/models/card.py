"""The model card: what a person should know of a bundle before using it, as Markdown."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from .conditions import FIRST_CATEGORY

_PACKAGES = ("visual-codebooks", "torch", "numpy", "safetensors", "onnx", "onnxscript", "onnxruntime")

_NOT_TOLD = [
    "Encodes product photos for similarity search. Trained on one catalogue's own photos without labels: it knows",
]
_TOLD = [
    "Encodes product photos for similarity search. Trained on one catalogue's own photos and their categories, which",
    "its encoder is told too: a query by photo names the category where it is known; none, or one that the model never",
    "met, is allowed. It knows",
]
_OF_OTHERS = [
    "Encodes product photos for similarity search, by a network that others trained: its file and licence stand under",
    "Model. The latents of two models cannot be compared.",
]
_OF_OWN = [
    "what differs among them, and says little about photos of another kind. The latents of two models cannot be",
    "compared.",
]


def write_card(model_id: str, facts: Mapping[str, Any], numbers: int, train_key: str, card: Mapping[str, Any]) -> str:
    """Return the card's text.

    facts: what config.json holds. numbers: how many numbers the tensors hold. card: what the training has to say; a
    mapping becomes a section of its own (for example `train`, `measures`), anything else a line.
    """
    lines = [f"# Model {model_id[:12]}: {facts['model']['kind']}", ""]
    of_others = facts["model"].get("source") is not None or facts["model"].get("backbone") is not None
    lines += [
        *(_OF_OTHERS if of_others else [*(_TOLD if "labels" in facts else _NOT_TOLD), *_OF_OWN]),
        "",
        "## Bundle",
        "",
        *_table({"model_id": model_id, "train_key": train_key, "numbers in the tensors": numbers}),
    ]
    plain = {name: value for name, value in card.items() if not isinstance(value, Mapping)}
    sections: dict[str, Mapping[str, Any]] = {
        "model": facts["model"],
        **(
            {"categories": {str(row): name for row, name in enumerate(facts["labels"], start=FIRST_CATEGORY)}}
            if "labels" in facts
            else {}
        ),
        **_images(facts["images"]),
        **({"training data": plain} if plain else {}),
        **{name: value for name, value in card.items() if isinstance(value, Mapping)},
        "versions": _versions(),
    }
    for title, values in sections.items():
        lines += ["", f"## {title[:1].upper()}{title[1:]}", "", *_table(values)]
    return "\n".join(lines) + "\n"


def _images(images: Mapping[str, Any] | list[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Return a section for each size that the model sees."""
    if isinstance(images, Mapping):
        return {"images": images}
    return {f"images {number}": each for number, each in enumerate(images, start=1)}


def _table(values: Mapping[str, Any]) -> list[str]:
    rows = [f"| {name} | {_text(value)} |" for name, value in values.items()]
    return ["| name | value |", "|---|---|", *rows]


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value).replace("|", "\\|").replace("\n", " ")


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed as a package"
    return found
