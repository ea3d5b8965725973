"""Gates: each limit, its side, its switch, and what is said of a refusal."""

from __future__ import annotations

import math

import pytest
from pydantic import ValidationError

from pipeline.errors import InputError
from pipeline.evaluation import GATES, GatesConfig, GateVerdict, check_gates
from pipeline.evaluation.gates import Limits

GOOD = {"recall": 0.99, "quarantine_share": 0.01, "not_finite_share": 0.001, "removed_share": 0.02, "items": 500.0}


def verdict(name: str, measures: dict[str, float], **limits: float | None) -> GateVerdict:
    return next(found for found in check_gates(measures, GatesConfig(**limits)) if found.name == name)


def test_good_measures_pass_every_gate() -> None:
    verdicts = check_gates(GOOD, GatesConfig())
    assert [found.name for found in verdicts] == [gate.field for gate in GATES]
    assert {*GatesConfig.model_fields} - {gate.field for gate in GATES} == {*Limits.model_fields, "promote"}
    assert all(found.passed for found in verdicts)


@pytest.mark.parametrize(
    ("name", "measure", "limit", "bad"),
    [
        ("min_recall", "recall", 0.9, 0.8999),
        ("max_quarantine", "quarantine_share", 0.1, 0.1001),
        ("max_not_finite", "not_finite_share", 0.05, 0.0501),
        ("max_removed", "removed_share", 0.3, 0.3001),
        ("min_items", "items", 100, 99.0),
    ],
)
def test_each_gate_refuses_beyond_its_limit_only(name: str, measure: str, limit: float, bad: float) -> None:
    assert verdict(name, {**GOOD, measure: limit}, **{name: limit}).passed, "the limit itself passes"
    refused = verdict(name, {**GOOD, measure: bad}, **{name: limit})
    assert refused == GateVerdict(name=name, value=bad, limit=limit, passed=False)
    off = verdict(name, {**GOOD, measure: bad}, **{name: None})
    assert off.passed
    assert off.limit is None


@pytest.mark.parametrize("gate", GATES, ids=lambda gate: gate.field)
def test_nan_never_passes(gate: object) -> None:
    assert not verdict(gate.field, {**GOOD, gate.measure: math.nan}).passed


def test_a_gate_without_a_value_is_an_error_unless_it_is_off() -> None:
    measures = {name: value for name, value in GOOD.items() if name != "recall"}
    with pytest.raises(InputError, match=r"min_recall.*'recall'.*gates\.min_recall=null"):
        check_gates(measures, GatesConfig())
    assert math.isnan(verdict("min_recall", measures, min_recall=None).value)


def test_limits_are_checked_when_the_config_is_read() -> None:
    for wrong in ({"min_recall": 1.2}, {"max_removed": -0.1}, {"max_quarantined": 0.1}):
        with pytest.raises(ValidationError):
            GatesConfig(**wrong)
