"""Is a pretrained network shown photos as it was trained on them? Its vector of a test picture beside a given one."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import ConfigError, InputError
from ..findings import Finding
from ..images import ImagesConfig, decode
from ..images.probe import probe_picture
from ..storage import Files
from .base import to_float
from .foreign.preprocessing import PreprocessingConfig, Values
from .foreign.recipes import RECIPES
from .pretrained import Pretrained, PretrainedConfig

NAME = "pretrained"
_PICTURE = "codebooks pretrained picture FILE.png"
Vector = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Likeness:
    """How near two vectors are. apart: the length of their difference, as a share of the given one's."""

    cosine: float
    apart: float


def examine(config: PretrainedConfig, files: Files) -> Iterator[Finding]:
    """Yield what came of encoding the test picture and of the comparison with the config's own vector.

    Where they differ it tries other ways of preprocessing and names the one that comes nearest. Raises what reading
    the file raises.
    """
    described = config.described(files)
    model = Pretrained(described, described.preprocessing.size if described.preprocessing else 224)
    model.use_file(files.read(config.weights), config.weights)
    vector = probe_vector(model)
    what = f"{config.weights}: {len(vector)} numbers of the test picture, licence {config.licence}"
    if not np.isfinite(vector).all():
        yield Finding("fail", NAME, f"{what}; not all of them are finite", "give another file", InputError.exit_code)
        return
    if config.check is None:
        mend = f"have its own library encode `{_PICTURE}` and name the numbers: model.check.vector"
        yield Finding("warn", NAME, f"{what}; nothing to compare with, so its preprocessing is not checked", mend)
        return
    wanted = given_vector(config.check.vector, files)
    if len(wanted) != len(vector):
        mend = "give the vector of the same output and pooling, or mend model.output and model.read_out"
        text = f"{what}; model.check.vector has {len(wanted)}"
        yield Finding("fail", NAME, text, mend, ConfigError.exit_code)
        return
    found = likeness(vector, wanted)
    shown = f"cosine {found.cosine:.6f}, apart by {found.apart:.2%}"
    if found.apart <= config.check.tolerance:
        yield Finding("ok", NAME, f"{what}; as model.check.vector: {shown}")
        return
    text = f"{what}; not as model.check.vector: {shown}, allowed {config.check.tolerance:.2%}"
    yield Finding("fail", NAME, text, _mend(model, wanted), ConfigError.exit_code)


def probe_vector(model: Pretrained) -> Vector:
    """Return what a network says of the test picture, pooled, before any PCA, float32 [d]."""
    assert model.config.preprocessing is not None  # noqa: S101 - of a network with a source
    return _vector(model, model.config.preprocessing)


def given_vector(vector: str | tuple[float, ...], files: Files) -> Vector:
    """Return the numbers of a list or a .npy file, float32 [d]. Raises InputError for another file."""
    if not isinstance(vector, str):
        return np.array(vector, dtype=np.float32)
    data = files.read(vector)
    try:
        found = np.load(io.BytesIO(data), allow_pickle=False)
        return np.asarray(found, dtype=np.float32).reshape(-1)
    except MemoryError:
        raise
    except Exception as error:  # NumPy's header is read by Python's tokenizer, which has errors of its own
        raise InputError(
            f"model.check.vector: {vector} is no .npy file of numbers ({error}); numpy.save writes one"
        ) from error


def likeness(found: Vector, wanted: Vector) -> Likeness:
    """Return how near a vector is to the one that is wanted."""
    first, second = found.astype(np.float64), wanted.astype(np.float64)
    lengths = max(float(np.linalg.norm(first) * np.linalg.norm(second)), 1e-30)
    apart = float(np.linalg.norm(first - second)) / max(float(np.linalg.norm(second)), 1e-30)
    return Likeness(float(first @ second) / lengths, apart)


def _mend(model: Pretrained, wanted: Vector) -> str:
    """Return which one change of the preprocessing comes nearest to the wanted vector, in words."""
    own = model.config.preprocessing
    assert own is not None  # noqa: S101 - of a network with a source
    before = likeness(_vector(model, own), wanted).apart
    best, change = before, dict[str, Any]()
    for values in _changes(own):
        other = PreprocessingConfig.model_validate({**own.model_dump(), **values})
        apart = likeness(_vector(model, other), wanted).apart
        if apart < best:
            best, change = apart, values
    if best > before / 2:
        return (
            "no other preprocessing that was tried comes near: are these the same weights, model.output and "
            "model.read_out.pool, of the same test picture?"
        )
    named = ", ".join(f"model.preprocessing.{name}={_shown(value)}" for name, value in change.items())
    return f"with {named} they are apart by {best:.2%}: that is probably what is wrong"


def _changes(own: PreprocessingConfig) -> Iterator[dict[str, Any]]:
    """Yield what people get wrong, one thing at a time."""
    yield {"channels": "bgr" if own.channels == "rgb" else "rgb"}
    for resample in ("bilinear", "bicubic", "lanczos", "box", "nearest"):
        if resample != own.resample and (own.antialias or resample not in ("box", "lanczos")):
            yield {"resample": resample}
    if own.resample not in ("box", "lanczos"):
        yield {"antialias": not own.antialias}
    for fit, share in (("pad", None), ("stretch", None), ("crop", None), ("crop", 0.875), ("crop", 1.0), ("crop", 0.9)):
        if (fit, share) != (own.fit, own.crop_share):
            yield {"fit": fit, "crop_share": share}
    zero_to_one: dict[str, Any] = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
    names = ("mean", "std", "value_range")
    known = [{name: row.preprocessing.get(name, 1) for name in names} for row in RECIPES.values()]
    plain = [{**zero_to_one, "value_range": white} for white in (1, 255)]
    current = {name: getattr(own, name) for name in names}
    tried: list[dict[str, Any]] = [current]
    for values in chain(known, plain):
        if values not in tried:
            tried.append(values)
            yield values


def _vector(model: Pretrained, preprocessing: PreprocessingConfig) -> Vector:
    """Return the pooled vector of the test picture by some preprocessing of the network's own size."""
    pixels = decode(probe_picture(), preprocessing.transform(ImagesConfig()))
    picture = to_float(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None])
    own = model.values
    try:
        model.values = Values(preprocessing)
        with torch.no_grad():
            found: Vector = model.read_out.pooled(model.seen(picture))[0].numpy()
    finally:
        model.values = own
    return found


def _shown(value: Any) -> str:
    return f"[{', '.join(f'{number:g}' for number in value)}]" if isinstance(value, tuple) else str(value)
