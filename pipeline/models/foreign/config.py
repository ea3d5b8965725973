"""What a config says of a pretrained network: filled in by a recipe or by timm's own record, and checked for gaps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import ConfigError
from .network import near
from .recipes import RECIPES
from .timm_network import described

_NEEDED = ("size", "fit", "resample", "mean", "std")
_FITS = {"center": "crop", "squash": "stretch"}  # timm's words for how photos become square


def filled(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return a model section with what its recipe says where it says nothing. Raises ValueError.

    Without a recipe, an architecture of timm brings what timm knows of it.
    """
    values = dict(given)
    name, weights = values.get("recipe"), values.get("weights")
    if name is not None and (name in RECIPES or "source" not in values):
        _by_recipe(values, str(name))
    elif "source" not in values and isinstance(weights, str) and weights.lower().endswith(".onnx"):
        values["source"] = "onnx"
    if values.get("source") == "timm" and isinstance(values.get("architecture"), str):
        _by_timm(values)
    return values


def _by_recipe(values: dict[str, Any], name: str) -> None:
    if name not in RECIPES:
        raise ValueError(f"recipe is {name!r}; {near(name, list(RECIPES))}. Of another network name source and more")
    recipe = RECIPES[name]
    if not values.get("weights"):
        raise ValueError(f"weights is missing: name the path or URI of {recipe.file}")
    of_onnx = str(values["weights"]).lower().endswith(".onnx")
    values.setdefault("source", "onnx" if of_onnx else recipe.source)
    if not of_onnx:
        values.setdefault("architecture", recipe.architecture)
    for field in ("output", "licence"):
        values.setdefault(field, getattr(recipe, field))
    values["preprocessing"] = {**recipe.preprocessing, **_plain(values.get("preprocessing"))}
    values["read_out"] = {"pool": recipe.pool, **_plain(values.get("read_out"))}


def _by_timm(values: dict[str, Any]) -> None:
    """Fill in what timm's record of an architecture says; asked for only where something is missing."""
    preprocessing = _plain(values.get("preprocessing"))
    if not any(name not in preprocessing for name in _NEEDED) and values.get("licence") and values.get("output"):
        return
    try:
        record = described(values["architecture"])
    except ConfigError as error:
        raise ValueError(str(error)) from error
    values.setdefault("output", "features")
    if record.get("license"):
        values.setdefault("licence", record["license"])
    if record.get("crop_mode") not in _FITS or not record.get("input_size"):
        return
    fit = preprocessing.setdefault("fit", _FITS[record["crop_mode"]])
    if fit == "crop":
        preprocessing.setdefault("crop_share", record["crop_pct"])
    preprocessing.setdefault("size", record["input_size"][-1])
    preprocessing.setdefault("resample", record["interpolation"])
    preprocessing.setdefault("mean", record["mean"])
    preprocessing.setdefault("std", record["std"])
    values["preprocessing"] = preprocessing


def refuse_gaps(values: Mapping[str, Any]) -> None:
    """Raise ValueError that names every setting that is missing of a network with a source. values: `filled` ones."""
    missing = []
    if not values.get("weights"):
        missing.append("weights (path or URI of the file)")
    if values.get("source") != "onnx" and not values.get("architecture"):
        missing.append("architecture (its name in the library)")
    if not values.get("output"):
        missing.append("output (of an ONNX file the name of a value, else a layer)")
    preprocessing = _plain(values.get("preprocessing"))
    missing += [f"preprocessing.{name}" for name in _NEEDED if name not in preprocessing]
    if not str(values.get("licence") or "").strip():
        missing.append("licence (of the weights, for example Apache-2.0)")
    if missing:
        raise ValueError(
            f"{values.get('weights') or 'this network'} needs to be told: {', '.join(missing)}; or name a recipe, one "
            f"of {', '.join(RECIPES)}"
        )


def _plain(section: Any) -> dict[str, Any]:
    if section is None:
        return {}
    return dict(section) if isinstance(section, Mapping) else dict(section.model_dump())
