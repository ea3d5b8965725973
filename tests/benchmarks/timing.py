"""How long things take: questions one by one, and what pairs of runs that alternate spread over."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import numpy as np

Question = TypeVar("Question")


def alone_ms(ask: Callable[[Question], object], questions: Iterable[Question]) -> list[float]:
    """Return the milliseconds by the clock of each question, asked one after the other."""
    taken = []
    for question in questions:
        began = time.perf_counter()
        ask(question)
        taken.append(1e3 * (time.perf_counter() - began))
    return taken


def quantiles(taken_ms: Sequence[float], digits: int = 2) -> dict[str, float]:
    """Return the median and the 99th percentile of milliseconds."""
    p50, p99 = np.percentile(taken_ms, [50, 99]) if len(taken_ms) else (np.nan, np.nan)
    return {"p50_ms": round(float(p50), digits), "p99_ms": round(float(p99), digits)}


def spread(values: Sequence[float], low: float = 25, high: float = 75, digits: int = 2) -> list[float]:
    """Return the median and two percentiles, by default the ends of the middle half."""
    return [round(float(value), digits) for value in np.percentile(values, [50, low, high])]
