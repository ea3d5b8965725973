"""The optimisers by name and the learning rate as a pure function of the step, so a resume needs no schedule state."""

from __future__ import annotations

import math

from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from .config import TrainConfig

_MOMENTUM = 0.9  # of sgd, with Nesterov's form


def build_optimiser(model: nn.Module, config: TrainConfig) -> Optimizer:
    """Return the optimiser of a config. Weight decay spares biases, norms and other one-dimensional parameters."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if config.optimiser == "sgd":
        return SGD(groups, lr=config.learning_rate, momentum=_MOMENTUM, nesterov=True)
    kind = AdamW if config.optimiser == "adamw" else Adam
    return kind(groups, lr=config.learning_rate)


def learning_rate(config: TrainConfig, step: int, total: int, *, steps_per_epoch: int) -> float:
    """Return the learning rate of a step (from 0) of `total`.

    Linear warm-up over the first `warmup` share of the steps, then constant, half a cosine down to 0 (Loshchilov and
    Hutter 2017, equation 5, without restarts), or multiplied by gamma after each of the epochs in `milestones`.
    """
    rising = int(config.warmup * total)
    if step < rising:
        return config.learning_rate * (step + 1) / (rising + 1)
    if config.schedule == "constant":
        return config.learning_rate
    if config.schedule == "milestones":
        passed = sum(step // steps_per_epoch >= milestone for milestone in config.milestones)
        return config.learning_rate * config.gamma**passed
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(total - rising, 1)))


def set_learning_rate(optimiser: Optimizer, value: float) -> None:
    """Set the learning rate of all parameter groups."""
    for group in optimiser.param_groups:
        group["lr"] = value
