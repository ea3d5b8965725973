"""Weights kept beside those that are trained: their moving average, and those of the best epoch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from .validation import Validation

# What a measure's name ends in when more of it is better; of every other one less is.
_MORE_IS_BETTER = ("ssim", "active_units", "used_codes", "perplexity")


class MovingAverage:
    """The moving average of a model's parameters (Polyak and Juditsky 1992, with exponential weights).

    Buffers are not averaged, the model's own are used: codebooks and batch norms are moving averages already. decay:
    share of the average that stays at a step; at step n it is at most (1 + n) / (10 + n), so that the weights a
    training began with are soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        self._average = {name: parameter.detach().clone() for name, parameter in _parameters(model).items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights after optimiser step `step`, counted from 0."""
        fresh = 1.0 - min(self._decay, (1 + step) / (10 + step))
        for name, parameter in _parameters(model).items():
            self._average[name].lerp_(parameter, fresh)

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Give the model the averaged weights."""
        for name, parameter in _parameters(model).items():
            parameter.copy_(self._average[name])

    @contextmanager
    def in_place_of(self, model: nn.Module) -> Iterator[None]:
        """Let the model have the averaged weights for a while; afterwards it has its own again, to the bit."""
        own = {name: parameter.detach().clone() for name, parameter in _parameters(model).items()}
        self.copy_to(model)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, parameter in _parameters(model).items():
                    parameter.copy_(own[name])

    def state(self) -> dict[str, Tensor]:
        """Return what a checkpoint keeps."""
        return dict(self._average)

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from the state of a checkpoint."""
        for name, average in self._average.items():
            average.copy_(state[name])


class BestWeights:
    """The weights of the epoch that was best by a validation measure; of equal ones the earlier.

    by: the measure's name; more of it is better where it ends in `ssim`, `active_units`, `used_codes` or `perplexity`,
    else less.
    """

    def __init__(self, by: str) -> None:
        self._by = by
        self._sign = 1.0 if by.endswith(_MORE_IS_BETTER) else -1.0
        self._value: float | None = None
        self._weights: dict[str, Tensor] = {}
        self.step = 0
        self.validation = Validation()

    def check(self, measures: Mapping[str, float]) -> None:
        """Raise ConfigError, which names the measures there are, unless the wanted one is among them."""
        if self._by not in measures:
            known = ", ".join(sorted(measures)) or "none, since no photo is held out; raise train.validation"
            raise ConfigError(f"train.best_by is {self._by!r}, not a measure of this model; its measures: {known}")

    def offer(self, model: nn.Module, step: int, validation: Validation) -> None:
        """Keep a copy of the model's weights, on the CPU, if what they measure after `step` steps is best so far."""
        self.check(validation.measures)
        value = validation.measures[self._by]
        if self._value is None or self._sign * value > self._sign * self._value:
            self._value, self.step, self.validation = value, step, validation
            self._weights = {name: tensor.detach().to("cpu", copy=True) for name, tensor in model.state_dict().items()}

    def copy_to(self, model: nn.Module) -> None:
        """Give the model the best weights; before the first offer it keeps its own."""
        if self._value is not None:
            model.load_state_dict(self._weights)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        said = self.validation.state()
        return {"value": self._value, "step": self.step, "validation": said, "weights": self._weights}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from the state of a checkpoint."""
        self._value, self.step, self._weights = state["value"], state["step"], dict(state["weights"])
        self.validation = Validation(**state["validation"])


def _parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
