"""A photo as a query: decoded and encoded by the release's own encoder, on the CPU, without torch."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa

from ..errors import ConfigError, InputError, IntegrityError, NotFound
from ..images import ImagesConfig, decode_each
from ..release import FileEntry, Manifest
from ..storage import Store
from ..storage.cache import FileCache
from .latents import LatentArrays
from .space import Space

_CONDITION = "condition"  # the second input of a conditional model's encoder
_NONE, _UNKNOWN, _FIRST = 0, 1, 2  # rows of its table: no category, one without a label, the first label


class PhotoEncoder:
    """The ONNX encoder of one bundle; safe to use from several threads."""

    def __init__(
        self, store: Store, cache: FileCache, manifest: Manifest, *, codes: bool = False, space: Space | None = None
    ) -> None:
        """Read the encoder and how photos are decoded for it, through the cache where the manifest has their digests.

        codes: whether a photo's codes are computed too, where the model has them. space: that the release is rotated
        into, and photos with it.
        Raises ConfigError when onnxruntime is not installed, IntegrityError when the bundle is not whole or its bytes
        are not those of the manifest.
        """
        try:
            import onnxruntime
        except ImportError as error:
            raise ConfigError(
                "a query by photo needs the encoder, and onnxruntime is not installed; run "
                "`pip install 'visual-codebooks[photo]'`"
            ) from error
        self._space = space
        folder = f"models/{manifest.model_id}"
        written = _read(store, cache, f"{folder}/config.json", manifest.bundle_config)
        network = _read(store, cache, f"{folder}/encoder.onnx", manifest.encoder)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors only: hints on graph optimisation are not the caller's concern
        try:
            config: dict[str, Any] = json.loads(written)
            images = config["images"] if isinstance(config["images"], list) else [config["images"]]
            self._images = [ImagesConfig.model_validate(each) for each in images]
            self._session = onnxruntime.InferenceSession(network, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has a dozen types of its own for what it cannot load
            raise IntegrityError(
                f"the encoder in {folder} on {store.url} cannot be loaded ({str(error)[:300]}): it is damaged or "
                "made by a newer version; query by item_id or by vector, or open another release"
            ) from error
        inputs = [given.name for given in self._session.get_inputs()]
        self._conditional = _CONDITION in inputs
        self._inputs = [name for name in inputs if name != _CONDITION]  # one for each of self._images
        self._labels = {label: _FIRST + number for number, label in enumerate(config.get("labels", ()))}
        names = [output.name for output in self._session.get_outputs()]
        self._outputs = ["mean" if "mean" in names else names[0], *(["log_var"] if "log_var" in names else [])]
        self._kept = ["mean", *self._outputs[1:]]
        if codes and "codes" in names:
            self._outputs, self._kept = [*self._outputs, "codes"], [*self._kept, "codes"]

    def __call__(self, data: bytes, category: Any = None, *, max_pixels: int | None = None) -> LatentArrays:
        """Return a photo's latents [1], with log_var where the model has it; data: the bytes of its file.

        category: the photo's, as the catalogue would have it, for the encoder of a conditional model; None and one that
        the model never met are allowed, and other encoders do not look at it.
        max_pixels: width x height at most, where that is less than the bundle's own limit.
        Raises PhotoRefused for bytes that are no usable photo, ConfigError when Pillow is not installed.
        """
        images = self._images
        if max_pixels is not None:
            images = [each.model_copy(update={"max_pixels": min(each.max_pixels, max_pixels)}) for each in images]
        try:
            pixels = decode_each(data, *images)
        except ImportError as error:
            raise ConfigError(
                "a query by photo needs Pillow to decode it, which is not installed; run "
                "`pip install 'visual-codebooks[photo]'`"
            ) from error
        batches = [np.ascontiguousarray(seen.transpose(2, 0, 1)[None]) for seen in pixels]  # uint8 [1, 3, size, size]
        given = dict(zip(self._inputs, batches, strict=True))
        if self._conditional:
            given[_CONDITION] = np.array([self._row(category)], np.int64)
        made = dict(zip(self._kept, self._session.run(self._outputs, given), strict=True))
        kinds = {name: np.int32 if name == "codes" else np.float32 for name in made}
        found = LatentArrays(**{name: values.astype(kinds[name], copy=False) for name, values in made.items()})
        return found if self._space is None else self._space.rotated(found)

    def _row(self, category: Any) -> int:
        """Return the row of the model's table of categories, as `models.conditions.condition_of` does with torch."""
        text = _text(category)
        return _NONE if text is None else self._labels.get(text, _UNKNOWN)


def _text(category: Any) -> str | None:
    """Return a category as the text that stands in the model's labels. Raises InputError for what is no scalar."""
    if category is None or isinstance(category, str):
        return category
    try:
        text: str | None = pa.array([category]).cast(pa.string())[0].as_py()
    except OverflowError:  # a number that no column can hold is one that the model never met
        return str(category)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        raise InputError(f"the category {category!r} is no text, number, truth value or date ({error})") from error
    return text


def _read(store: Store, cache: FileCache, name: str, entry: FileEntry | None) -> bytes:
    """Return a file of the bundle; entry: what the manifest says of it, None in releases from before it did."""
    if entry is not None:
        return cache.fetch(store, name, size=entry.bytes, sha256=entry.sha256).read_bytes()
    try:
        return store.get(name)
    except NotFound as error:
        raise IntegrityError(
            f"{name.rpartition('/')[0]} on {store.url} is not whole ({error}): the model has expired or was damaged; "
            "query by item_id or by vector, or open a newer release"
        ) from error
