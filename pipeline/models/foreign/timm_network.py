"""timm's architectures (PyTorch Image Models, Apache-2.0): convolutional ones, vision towers of CLIP and DINO."""

from __future__ import annotations

import inspect
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import ConfigError
from .layouts import as_timm_takes
from .network import ForeignNetwork, Seen, from_tokens, near
from .weights import load_exactly, tensors_of

OUTPUTS = "pooled, head, features, layers.N"
_LAYER = re.compile(r"^layers\.(\d+)$")


class TimmNetwork(ForeignNetwork):
    """One of timm's networks. output: `pooled`, what timm's own pooling makes of the features; `head`, what the last
    layer says, of CLIP the joint space with texts; `features` before the pooling; `layers.N`, the N-th stage or block.

    Raises ConfigError for a network, size or output that timm does not know, or without timm.
    """

    def __init__(self, architecture: str, output: str, size: int) -> None:
        super().__init__()
        self.architecture, self.output, self.size = architecture, output, size
        layer = _LAYER.match(output)
        if layer is None and output not in ("pooled", "head", "features"):
            raise ConfigError(f"model.output is {output!r}; a network of timm has {OUTPUTS}")
        self.layer = None if layer is None else int(layer[1])
        self.network = created(architecture, size, headless=output != "head")
        self.network.eval()
        if self.layer is not None:
            self._check_layer(self.layer)

    def seen(self, values: Tensor) -> Seen:
        """Return what the network says at its output."""
        network: Any = self.network
        if self.layer is not None:
            return self._intermediates(values, [self.layer])[0]
        if self.output == "features":
            return self._features(network.forward_features(values))
        return Seen(vector=network(values))

    def blank(self, side: int) -> Seen:
        """Return what it says of a black picture. Raises ConfigError for a side that it cannot take."""
        try:
            return super().blank(side)
        except (AssertionError, RuntimeError) as error:
            raise _wrong_size(side, self.architecture, error) from error

    def all_maps(self, values: Tensor) -> list[Tensor]:
        """Return the map of every stage, or block of a transformer, up to the output."""
        layers = None if self.layer is None else list(range(self.layer + 1))
        found = self._intermediates(values, layers)
        return [seen.maps for seen in found if seen.maps is not None]

    def take(self, data: bytes, source: str) -> None:
        """Take the weights: timm's own names, or those that timm knows to turn into its own."""
        tensors = tensors_of(data, source)
        tensors = as_timm_takes(tensors, self.network, self.architecture, source)
        loaded = self._loaded(tensors, source)
        self.network.load_state_dict(loaded.state_dict())

    def _loaded(self, tensors: dict[str, Tensor], source: str) -> nn.Module:
        """Return the network with a file's tensors, every one of which has its place.

        Whole first; then without the classifier, which a file may lack, or have of another number of classes.
        """
        headless = self.output != "head"
        classifiers = tuple(f"{name}." for name in _classifiers(self.architecture))
        body = {name: value for name, value in tensors.items() if not name.startswith(classifiers)}
        network: Any = self._accepted(tensors, headless=False)
        if network is not None:
            if headless:
                network.reset_classifier(0)
        elif headless:
            network = self._accepted(body, headless=True)
        if network is None:
            network = created(self.architecture, self.size, headless=headless)
            optional = set(tensors) - set(body) if headless else set[str]()
            what = f"timm's {self.architecture} of {self.size} pixels"
            load_exactly(network, tensors, optional=optional, what=what, source=source)
        found: nn.Module = network
        return found

    def _accepted(self, tensors: dict[str, Tensor], *, headless: bool) -> Any:
        """Return the network with tensors that timm's own loading takes, None where it takes them not."""
        if not tensors:
            return None
        try:
            return created(self.architecture, self.size, headless=headless, tensors=tensors)
        except Exception:  # noqa: BLE001 - its filters raise all kinds; `load_exactly` tells what is wrong
            return None

    def _features(self, found: Tensor) -> Seen:
        if found.ndim == 3:
            return from_tokens(found, getattr(self.network, "num_prefix_tokens", 0), self.output)
        if found.ndim == 4:
            last = getattr(self.network, "output_fmt", "NCHW") == "NHWC"
            return Seen(maps=found.permute(0, 3, 1, 2) if last else found)
        return Seen(vector=found)

    def _intermediates(self, values: Tensor, layers: list[int] | None) -> list[Seen]:
        network: Any = self.network
        if not hasattr(network, "forward_intermediates"):
            raise ConfigError(f"timm's {self.architecture} shows no inner layers; name the output pooled or features")
        known = inspect.signature(network.forward_intermediates).parameters
        wanted = {"return_prefix_tokens": True, "norm": True, "stop_early": True}
        options = {name: value for name, value in wanted.items() if name in known}
        found = network.forward_intermediates(values, indices=layers, intermediates_only=True, **options)
        seen = []
        for entry in found:
            maps, prefixes = entry if isinstance(entry, tuple) else (entry, None)
            seen.append(Seen(maps, prefixes[:, 0] if prefixes is not None and prefixes.shape[1] else None))
        return seen

    def _check_layer(self, layer: int) -> None:
        try:
            with torch.no_grad():
                self._intermediates(torch.zeros(1, 3, self.size, self.size), [layer])
        except (AssertionError, IndexError, ValueError) as error:
            raise ConfigError(
                f"model.output is {self.output!r}, which timm's {self.architecture} does not have ({error}); name an "
                "earlier layer, counted from layers.0"
            ) from error


def created(architecture: str, size: int, *, headless: bool, tensors: Mapping[str, Tensor] | None = None) -> Any:
    """Return one of timm's networks, with random weights or with tensors, of which timm then wants every one.

    headless: without its last layer. Raises ConfigError for an unknown name or a size that it cannot take, and what
    timm raises for tensors that are not its own. Nothing is downloaded.
    """
    timm = timm_module()
    options: dict[str, Any] = {"pretrained": tensors is not None}
    if headless:
        options["num_classes"] = 0
    if tensors is not None:
        overlay = {"state_dict": dict(tensors), "source": "", "custom_load": False}
        options["pretrained_cfg_overlay"] = {**overlay, "num_classes": 0} if headless else overlay
    with _quiet(), torch.random.fork_rng(devices=[]):
        try:
            if _takes_size(architecture):
                return timm.create_model(architecture, img_size=size, **options)
            return timm.create_model(architecture, **options)
        except (AssertionError, ValueError) as error:
            if tensors is not None:
                raise
            raise _wrong_size(size, architecture, error) from error


def _wrong_size(size: int, architecture: str, error: Exception) -> ConfigError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return ConfigError(
        f"model.preprocessing.size is {size}, which timm's {architecture} cannot take ({reason}); name the size "
        "that it was trained on, or another multiple of its patches"
    )


def check_architecture(name: str) -> None:
    """Raise ConfigError unless timm knows an architecture of this name, with or without a tag after a point."""
    timm = timm_module()
    if not timm.is_model(name.split(".")[0]):
        known = near(name.split(".")[0], timm.list_models())
        raise ConfigError(f"model.architecture is {name!r}, which timm {timm.__version__} does not know; {known}")


def described(name: str) -> dict[str, Any]:
    """Return timm's own record of an architecture: input_size, mean, std, interpolation, crop_pct, license, ...

    Raises ConfigError for an unknown one.
    """
    check_architecture(name)
    found = timm_module().get_pretrained_cfg(name)
    return {} if found is None else dict(vars(found))


def timm_module() -> Any:
    """Return timm. Raises ConfigError that says how to install it."""
    try:
        import timm
    except ModuleNotFoundError as error:
        raise ConfigError(
            "this pretrained network is one of timm's, which is not installed; run `pip install "
            "'visual-codebooks[backbones]'`, or convert the file to ONNX where timm is (`codebooks pretrained convert`)"
        ) from error
    return timm


def _takes_size(architecture: str) -> bool:
    check_architecture(architecture)
    timm = timm_module()
    found = timm.get_pretrained_cfg(architecture)
    return bool(found is not None and found.fixed_input_size)


def _classifiers(architecture: str) -> tuple[str, ...]:
    found = timm_module().get_pretrained_cfg(architecture)
    names = getattr(found, "classifier", None)
    return (names,) if isinstance(names, str) else tuple(names or ())


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what timm logs and warns of while it builds a network; its errors are raised all the same."""
    logger = logging.getLogger("timm")
    level = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)
