"""The training config: what it refuses, and what it lends to the train key."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from pipeline.keys import canonical_json, portable
from pipeline.training import TrainConfig, train_period


def test_only_what_is_learned_is_in_the_key():
    base = TrainConfig().key_values()
    idle = {
        "checkpoint_every_s": 1, "keep_checkpoints": 5, "max_failures": 0, "when": "always", "workers": 2, "threads": 2,
        "compile": True, "window_parts": 1, "accumulate": 2, "cache_gib": 5,
        "least_workers": 1, "gpus_per_worker": 1, "start_timeout_s": 60, "load_threads": 4,
        # These say something only beside a setting that is not there.
        "milestones": (3, 5), "gamma": 0.5, "best_by": "validation/mse",
    }  # fmt: skip
    for name, value in idle.items():
        assert TrainConfig(**{name: value}).key_values() == base, name
    changed = {
        "epochs": 3, "batch_size": 64, "optimiser": "sgd", "learning_rate": 0.5, "weight_decay": 0.1, "warmup": 0.3,
        "schedule": "constant", "grad_clip": 1.0, "precision": "bf16", "ema_decay": 0.9, "validation": 0.2,
        "split_by": "brand", "keep": "best", "balance": True, "augment": "light", "init_from": "0" * 64,
        "supervision": "category", "photos": 500_000,
    }  # fmt: skip
    for name, value in changed.items():
        assert TrainConfig(**{name: value}).key_values() != base, name
    beside = {"milestones": "schedule", "gamma": "schedule", "best_by": "keep"}
    values = {"schedule": "milestones", "keep": "best"}
    for name, of in beside.items():
        other = {of: values[of]}
        assert TrainConfig(**other, **{name: idle[name]}).key_values() != TrainConfig(**other).key_values(), name
    # A new field has to take sides here.
    assert {*idle, *changed, "version", "seed"} == set(TrainConfig.model_fields)
    assert TrainConfig(validation=0, split_by="brand").key_values() == TrainConfig(validation=0).key_values()
    canonical_json(portable(base))


def test_of_a_model_without_steps_only_what_it_is_fitted_on_is_in_the_key():
    base = TrainConfig().key_values(by_steps=False)
    for values in ({"epochs": 3}, {"batch_size": 64}, {"learning_rate": 0.5}, {"precision": "bf16"}, {"keep": "best"}):
        assert TrainConfig(**values).key_values(by_steps=False) == base, values
    for values in ({"validation": 0.2}, {"split_by": "brand"}):
        assert TrainConfig(**values).key_values(by_steps=False) != base, values


def test_a_checkpoint_is_gone_on_from_on_the_same_hardware_only():
    base = TrainConfig().continued_values()
    for values in ({"workers": 2}, {"threads": 2}, {"window_parts": 1}, {"accumulate": 2}, {"compile": True}):
        assert TrainConfig(**values).continued_values() != base, values


def test_what_came_later_is_not_in_what_is_frozen_where_it_is_not_used():
    later = {"supervision", "photos", "least_workers", "gpus_per_worker", "start_timeout_s", "load_threads"}
    assert not later & set(TrainConfig().model_dump())
    used = TrainConfig(photos=None, least_workers=1, gpus_per_worker=1, start_timeout_s=60, load_threads=2)
    assert later & set(used.model_dump()) == later - {"supervision"}
    assert TrainConfig.model_validate(used.model_dump()) == used
    assert "photos" not in TrainConfig(photos=None).key_values(by_steps=False)


def test_when_counts_as_set_only_where_it_is_written_down():
    assert not TrainConfig().when_is_set
    assert TrainConfig(when="missing").when_is_set
    assert TrainConfig(when={"older_than": "30d"}).when_is_set


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batch_size": 100, "workers": 3}, "try 99 or 102"),
        ({"batch_size": 2, "workers": 3}, "try 3"),
        ({"batch_size": 256, "workers": 4, "least_workers": 2}, "each of 2 to 4 workers; try 252 or 264"),
        ({"workers": 2, "least_workers": 3}, "least_workers 3 is more than workers 2"),
        ({"gpus_per_worker": 2}, "0 or 1"),
        ({"photos": 0}, "greater than or equal to 1"),
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
