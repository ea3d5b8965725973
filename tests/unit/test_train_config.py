"""The training config: what it refuses, and what it lends to the train key."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from pipeline.keys import canonical_json, portable
from pipeline.training import TrainConfig, train_period


def test_only_what_can_change_the_weights_is_in_the_key():
    base = TrainConfig().key_values()
    assert TrainConfig(checkpoint_every_s=1, keep_checkpoints=5, max_failures=0, when="always").key_values() == base
    changed = {
        "epochs": 3, "batch_size": 64, "optimiser": "sgd", "learning_rate": 0.5, "weight_decay": 0.1, "warmup": 0.3,
        "schedule": "constant", "grad_clip": 1.0, "precision": "bf16", "workers": 2, "threads": 2, "window_parts": 1,
        "milestones": (3, 5), "gamma": 0.5, "accumulate": 2, "ema_decay": 0.9, "compile": True, "validation": 0.2,
        "split_by": "brand", "keep": "best", "best_by": "validation/mse", "balance": True, "augment": "light",
        "init_from": "0" * 64,
    }  # fmt: skip
    for name, value in changed.items():
        assert TrainConfig(**{name: value}).key_values() != base, name
    assert set(base) == set(changed)  # a new field has to take sides here
    canonical_json(portable(base))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batch_size": 100, "workers": 3}, "try 99 or 102"),
        ({"batch_size": 2, "workers": 3}, "try 3"),
        ({"optimiser": "lion"}, "adam"),
        ({"learning_rate": 0}, "greater than 0"),
        ({"learning_rate": float("nan")}, "finite"),
        ({"warmup": 1.0}, "less than 1"),
        ({"when": "sometimes"}, "missing"),
        ({"when": {"older_than": "30 days"}}, "for example 30d"),
        ({"epoch": 3}, "Extra inputs"),
    ],
)
def test_values_that_cannot_be_used_are_refused(values, message):
    with pytest.raises(ValidationError, match=message):
        TrainConfig(**values)


def test_when_decides_the_nonce():
    assert train_period(TrainConfig(), run="a", now=0) == ""
    always = TrainConfig(when="always")
    assert train_period(always, run="a", now=0) != train_period(always, run="b", now=0)
    monthly = TrainConfig(when={"older_than": "30d"})
    day = 86_400.0
    periods = [train_period(monthly, run="a", now=now * day) for now in (0, 29.9, 30, 59.9, 60)]
    assert periods == [periods[0], periods[0], periods[2], periods[2], periods[4]]
    assert len(set(periods)) == 3
