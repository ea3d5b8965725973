"""Limits by name: against published intervals, on drawn nights, by category, across bundles, and in words."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from scipy import stats

from pipeline.errors import ConfigError
from pipeline.evaluation import GatesConfig, GateVerdict, nightly
from pipeline.evaluation.defaults import NIGHTLY, PROMOTE, nightly_defaults
from pipeline.evaluation.gates import KINDS, Limits
from pipeline.evaluation.judging import GROWN, LEAST, NO_PARENT, OTHER_BUNDLE, POOLED, Side, judge, limit_names, side_of
from pipeline.evaluation.known import NAMES, bound_to_space
from pipeline.evaluation.known import NIGHTLY as MEASURED_NIGHTLY
from pipeline.evaluation.margins import margin_of_fall, margin_of_rise, share_of, widening
from pipeline.evaluation.measured import Measured
from pipeline.evaluation.verdicts import (
    Allowed,
    allowed_in,
    one_a_gate,
    refusal_text,
    verdict_of,
    verdicts_table,
    with_allowed,
)
from pipeline.quality.allowing import checked_allowed
from pipeline.quality.gating import gate_names, verdicts_on

# Newcombe 1998, Statistics in Medicine 17, table II: two shares, and the interval of their difference by method 10.
NEWCOMBE = [
    ((56, 70), (48, 80), 0.0524, 0.3339),
    ((9, 10), (3, 10), 0.1705, 0.8090),
    ((6, 7), (2, 7), 0.0582, 0.8062),
    ((5, 56), (0, 29), -0.0381, 0.1926),
    ((0, 10), (0, 20), -0.1611, 0.2775),
    ((0, 10), (0, 10), -0.2775, 0.2775),
    ((10, 10), (0, 20), 0.6791, 1.0000),
    ((10, 10), (0, 10), 0.6075, 1.0000),
]


def judged(
    limits: dict[str, Any], now: list[Measured], parent: list[Measured] | None, **more: Any
) -> list[GateVerdict]:
    before = None if parent is None else Side(parent, more.pop("parent_model", "m"))
    return judge(Limits(**limits), Side(now, "m"), before, **more)


def one(limits: dict[str, Any], now: Measured, parent: Measured | None, **more: Any) -> GateVerdict:
    (verdict,) = judged(limits, [now], None if parent is None else [parent], **more)
    return verdict


@pytest.mark.parametrize(("now", "before", "low", "high"), NEWCOMBE)
def test_margins_of_shares_are_the_published_hybrid_score_intervals(
    now: tuple[int, int], before: tuple[int, int], low: float, high: float
) -> None:
    one, other = share_of("s", *now), share_of("s", *before)
    difference = one.value - other.value
    assert difference - margin_of_rise(other, one) == pytest.approx(low, abs=6e-5)
    assert difference + margin_of_fall(other, one) == pytest.approx(high, abs=6e-5)


def test_an_interval_of_a_share_is_that_of_scipy() -> None:
    for part, whole in ((0, 7), (7, 7), (3, 11), (980, 1000)):
        asked = stats.binomtest(part, whole).proportion_ci(method="wilson")
        found = share_of("s", part, whole)
        assert (found.low, found.high) == pytest.approx((asked.low, asked.high), abs=1e-9)


def test_margins_of_means_are_the_unpooled_interval() -> None:
    draws = np.random.default_rng(0)
    sides = [draws.normal(0, 1, 400), draws.normal(0, 3, 900)]
    z = float(stats.norm.ppf(0.975))
    means = [
        Measured("m", side.mean(), *(side.mean() + s * z * side.std(ddof=1) / len(side) ** 0.5 for s in (-1, 1)))
        for side in sides
    ]
    expected = z * math.sqrt(sum(side.var(ddof=1) / len(side) for side in sides))
    assert margin_of_rise(*means) == pytest.approx(expected, rel=1e-9)
    assert widening(20) == pytest.approx(float(stats.norm.ppf(1 - 0.025 / 20)) / z, rel=1e-9)


def test_drawn_nights_at_the_limit_are_refused_as_seldom_as_the_level_says() -> None:
    """Of nights whose true fall is the limit at most 2.5 % are refused (and some are); without a margin, half."""
    draws = np.random.default_rng(1)
    hits = zip(draws.binomial(1000, 0.97, 1500), draws.binomial(1000, 0.95, 1500), strict=True)
    pairs = [(share_of("photo_recall", int(a), 1000), share_of("photo_recall", int(b), 1000)) for a, b in hits]
    limit = {"max_drop": {"photo_recall": 0.02}}
    refused = np.mean([not one(limit, now, before).passed for before, now in pairs])
    assert 0.01 < refused < 0.04
    bare = [
        not one(limit, Measured("photo_recall", b.value), Measured("photo_recall", a.value)).passed for a, b in pairs
    ]
    assert np.mean(bare) > 0.4


def test_a_fall_beyond_limit_and_margin_is_refused_with_both() -> None:
    before, now = (
        share_of("photo_recall", 980, 1000),
        share_of("photo_recall", 900, 1000, examples=["a", "b", "c", "d"]),
    )
    verdict = one({"max_drop": {"photo_recall": 0.02}}, now, before)
    assert (verdict.name, verdict.passed, verdict.limit, verdict.parent) == ("max_drop.photo_recall", False, 0.02, 0.98)
    assert verdict.margin == pytest.approx(margin_of_fall(before, now))
    words = verdict.words()
    for said in ("gates.max_drop.photo_recall: 0.9", "limit 0.02", "parent 0.98", "fell by 0.08", "worst: a, b, c"):
        assert said in words
    assert "d" not in words.rpartition(": ")[2]
    assert one({"max_drop": {"photo_recall": 0.08}}, now, before).passed
    assert one({"max_rise": {"photo_recall": 0.0}}, now, before).passed  # a fall is no rise
    assert not one({"max_rise": {"photo_recall": 0.0}}, before, now).passed


def test_a_value_at_its_limit_passes_and_absolute_limits_look_at_the_value() -> None:
    counted = Measured("photo_recall", 0.96), Measured("photo_recall", 0.98)
    assert counted[1].value - counted[0].value > 0.02  # in floats
    assert one({"max_drop": {"photo_recall": 0.02}}, *counted).passed
    found = Measured("photo_recall", 0.69, 0.6, 0.78)
    assert not one({"min": {"photo_recall": 0.7}}, found, None).passed
    assert one({"min": {"photo_recall": 0.69}, "max": {}}, found, None).passed
    assert not one({"max": {"identical_share": 0.05}}, Measured("identical_share", 0.0501), None).passed


def test_first_releases_and_other_bundles_have_rules_that_the_verdict_states() -> None:
    bad = Measured("photo_recall", 0.1)
    first = one({"max_drop": {"photo_recall": 0.02}}, bad, None)
    assert (first.passed, first.note, first.parent) == (True, NO_PARENT, None)
    other = {"parent_model": "another"}
    bound = one({"max_rise": {"score_q50": 0.1}}, Measured("score_q50", 9.0), Measured("score_q50", 1.0), **other)
    assert (bound.passed, bound.note) == (True, OTHER_BUNDLE)
    assert not one({"max_rise": {"score_q50": 0.1}}, Measured("score_q50", 9.0), Measured("score_q50", 1.0)).passed
    quality = one({"max_drop": {"photo_recall": 0.02}}, bad, Measured("photo_recall", 0.9), **other)
    assert not quality.passed, "how well a space serves is compared between bundles"
    before = one({"max_drop": {"photo_recall": 0.02}}, bad, Measured("coverage", 1.0))
    assert before.passed
    assert "parent has no value" in str(before.note)


def test_what_was_not_measured_refuses_where_it_was_asked_for() -> None:
    verdict = one({"min": {"photo_recall": 0.7}}, Measured("coverage", 1.0), None)
    assert not verdict.passed
    assert "was not measured" in verdict.words()
    assert judged({}, [Measured("coverage", 1.0)], None, defaults=NIGHTLY)[0].name == "max_drop.coverage"
    # What wants a parent or new items is rightly missing on some nights.
    assert one({"max": {"drift_auc": 0.8}}, Measured("coverage", 1.0), None).passed
    nothing = Measured("drift_auc", math.nan, n=0)
    assert one({"max": {"drift_auc": 0.8}}, nothing, None).passed
    assert not one({"max": {"drift_auc": 0.8}}, Measured("drift_auc", math.nan, n=9), None).passed
    off = one({"max": {"drift_auc": None}}, Measured("drift_auc", 1.0), None)
    assert (off.passed, off.limit, off.value) == (True, None, 1.0)


def of_categories(hits: dict[str, tuple[int, int]]) -> list[Measured]:
    whole = share_of("photo_recall", sum(h for h, _ in hits.values()), sum(n for _, n in hits.values()))
    rows = [share_of("photo_recall", *found) for found in hits.values()]
    return [whole, *(Measured("photo_recall", r.value, r.low, r.high, c, r.n) for c, r in zip(hits, rows, strict=True))]


def test_a_category_that_fell_is_named_though_the_whole_stands() -> None:
    before = of_categories({"Shoes": (97, 100), "Bags": (970, 1000), "Hats": (9, 10), "Belts": (20, 20)})
    now = of_categories(
        {"Shoes": (40, 100), "Bags": (972, 1000), "Hats": (8, 10), "Coats": (0, 100), "Belts": (20, 20)}
    )
    limits = {"max_drop": {"photo_recall": {"limit": 0.06, "by_category": True}}}
    verdicts = judged(limits, now, before)
    assert [v.category for v in verdicts] == [None, "Shoes", "Bags", POOLED]
    assert [v.passed for v in verdicts[1:]] == [False, True, True]
    assert verdicts[3].value == pytest.approx(28 / 30)
    pair = {v.category: v for v in before}["Shoes"], {v.category: v for v in now}["Shoes"]
    assert verdicts[1].margin == pytest.approx(margin_of_fall(*pair) * widening(3))
    assert [v.category for v in one_a_gate(verdicts)] == ["Shoes"] if verdicts[0].passed else [None]


def test_many_categories_are_not_refused_by_chance() -> None:
    """20 categories of 50 whose true recall stays: judged together chance refuses few nights; one by one, many."""
    draws = np.random.default_rng(2)
    together = alone = 0
    for _ in range(80):
        sides = [of_categories({f"c{n}": (int(draws.binomial(50, 0.8)), 50) for n in range(20)}) for _ in range(2)]
        limits = {"max_drop": {"photo_recall": {"limit": 0.0, "by_category": True}}}
        together += any(not v.passed for v in judged(limits, *sides)[1:])
        pairs = zip(sides[0][1:], sides[1][1:], strict=True)
        alone += any(a.value < b.value - margin_of_fall(b, a) for a, b in pairs)
    assert together <= 8
    assert alone > 16
    assert LEAST <= 50


def test_names_are_those_of_the_nightly_table_and_near_spellings_are_offered() -> None:
    said = set(re.findall(r"\b[a-z]+(?:_[a-z0-9]+)+\b|\bcoverage\b|\blidar\b", str(nightly.__doc__)))
    assert set(MEASURED_NIGHTLY) <= said
    for kind in KINDS:
        with pytest.raises(ValidationError, match="did you mean 'photo_recall'"):
            GatesConfig(**{kind: {"photo_recal": 0.1}})
    with pytest.raises(ValidationError, match="0 or more"):
        GatesConfig(max_drop={"photo_recall": -0.1})
    assert GatesConfig(max={"sid_dead_1": 3}).max == {"sid_dead_1": 3}
    assert {name for name in NAMES if bound_to_space(name)}.isdisjoint(PROMOTE.max_drop)


def test_configs_that_state_no_such_limits_dump_as_before() -> None:
    before = {"min_recall": 0.95, "max_quarantine": 0.2, "max_not_finite": 0.05, "max_removed": 0.5, "min_items": 1}
    assert GatesConfig().model_dump(mode="json") == before
    assert list(GatesConfig().model_dump_json()) == list(GatesConfig(**before).model_dump_json())
    stated = GatesConfig(max_drop={"photo_recall": {"limit": 0.02, "by_category": True}}, max={"drift_auc": None})
    again = GatesConfig.model_validate(stated.model_dump(mode="json"))
    assert again == stated
    assert set(stated.model_dump()) - set(before) == {"max_drop", "max"}


def test_defaults_hold_beside_what_is_stated_and_step_back() -> None:
    names = limit_names(GatesConfig(max_drop={"lidar": 1}), NIGHTLY)
    assert {"max_drop.lidar", "max_drop.photo_recall", "max_rise.removed_share"} <= set(names)
    assert "removed_share" not in nightly_defaults(GatesConfig(max_removed=1)).max_rise
    assert "removed_share" in nightly_defaults(GatesConfig(max_quarantine=0.5)).max_rise
    looser = judge(Limits(max_drop={"photo_recall": 0.9}), Side([Measured("photo_recall", 0.3)], "m"),
                   Side([Measured("photo_recall", 0.9)], "m"), defaults=NIGHTLY)  # fmt: skip
    assert [v.limit for v in looser if v.name == "max_drop.photo_recall"] == [0.9]


def test_a_default_limit_judges_no_bare_value_and_a_stated_one_does() -> None:
    """A parent of an older version says how large a measure is, and not on how many things."""
    sides = [Measured("category_knn", 0.3, 0.28, 0.32, n=900)], [Measured("category_knn", 0.9)]
    (default,) = judged({}, *sides, defaults=NIGHTLY)
    assert (default.passed, default.parent, default.margin) == (True, 0.9, None)
    assert not judged({"max_drop": {"category_knn": 0.05}}, *sides)[0].passed
    assert not judged({}, sides[0], [Measured("category_knn", 0.9, n=900)], defaults=NIGHTLY)[0].passed


@pytest.mark.parametrize(("items", "passes"), [(1250.0, False), (1251.0, True), (400.0, False)])
def test_a_grown_catalogue_is_not_refused_for_its_growth(items: float, passes: bool) -> None:
    defaults = Limits(max_drop={"photo_recall": 0.05})
    now = [share_of("photo_recall", 700, 1000), Measured("items", items)]
    parent = [share_of("photo_recall", 900, 1000), Measured("items", 1000.0)]
    (verdict,) = judged({}, now, parent, defaults=defaults)
    assert (verdict.passed, verdict.note == GROWN) == (passes, passes)
    (stated,) = judged({"max_drop": {"photo_recall": 0.05}}, now, parent, defaults=defaults)
    assert not stated.passed


def test_flat_measures_of_older_releases_have_their_intervals() -> None:
    side = side_of({"a": 1.0, "a_low": 0.5, "a_high": 2.0, "b": 3.0}, [Measured("b", 4.0, n=2)], "m")
    assert side.whole() == {"a": Measured("a", 1.0, 0.5, 2.0), "b": Measured("b", 4.0, n=2)}


def test_a_gate_is_let_pass_by_name_with_a_reason() -> None:
    found = [GateVerdict("min_recall", 0.5, 0.9, passed=False), GateVerdict("min_items", 5.0, 1.0, passed=True)]
    allowed = with_allowed(found, [Allowed(("min_recall", "min_items"), "a sale")])
    assert [v.stops for v in allowed] == [False, False]
    assert allowed_in(allowed) == {"min_recall": "a sale"}, "what passes needs nobody's leave"
    assert [verdict_of(row) for row in verdicts_table(allowed).to_pylist()] == list(allowed)
    text = refusal_text(found, what="release r", look_at="page.html", again="the same command")
    assert "--allow min_recall --reason" in text
    assert "min_items" not in text


@pytest.mark.parametrize(
    ("gates", "reason", "said"),
    [
        (None, "why", "without --allow"),
        (["min_recall"], None, "--reason TEXT"),
        (["min_recall"], " ", "--reason TEXT"),
        (["min_recal"], "why", "did you mean 'min_recall'"),
        (["max_drop.photo_recal"], "why", "did you mean 'max_drop.photo_recall'"),
    ],
)
def test_what_cannot_be_allowed_is_a_usage_error(gates: list[str] | None, reason: str | None, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        checked_allowed(gates, reason, gate_names(GatesConfig()))


def test_every_night_is_judged_by_the_first_five_and_by_name() -> None:
    measures = {"recall": 1.0, "quarantine_share": 0.08, "not_finite_share": 0.0, "removed_share": 0.0, "items": 1000.0}
    before = Side([share_of("quarantine_share", 5, 1000)], "m")
    now = side_of(measures, [share_of("quarantine_share", 80, 1000, examples=["x"])], "m")
    refused = [v for v in verdicts_on(measures, now, before, GatesConfig()) if v.stops]
    assert [(v.name, v.examples) for v in refused] == [("max_rise.quarantine_share", ("x",))]
    twelve = side_of(measures, [share_of("quarantine_share", 1, 12)], "m")
    assert not [
        v
        for v in verdicts_on(measures, twelve, Side([share_of("quarantine_share", 0, 11)], "m"), GatesConfig())
        if v.stops
    ]
