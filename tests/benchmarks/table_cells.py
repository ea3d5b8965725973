"""Markdown tables of results: their lines and cells. Imports nothing heavy, so that tables are made in a moment."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from record import Run

Rows = dict[str, list[Run]]


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], *below: str) -> str:
    """Return a Markdown table, and what stands below it."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (heads, *rows)]
    lines.insert(1, "|" + "---|" * len(heads))
    return "\n".join([*lines, *(["", *below] if below else [])])


def shown(runs: Sequence[Mapping[str, Any]], key: str, scale: float = 1.0, digits: int = 1) -> str:
    """Return mean ± standard deviation over seeds; – where there is nothing."""
    values = [run[key] * scale for run in runs if run.get(key) is not None]
    if not values:
        return "–"
    spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):,.{digits}f}{spread}"


def newest_rows(runs: Sequence[Run], catalogue: str, limit: int | None = None) -> Rows:
    """Return the runs of a catalogue by row, in the order of their seeds: what needs no training first, fusions last.

    Of a preset that was measured with several settings only the newest count, which stand last in the file.
    """
    whole = [run for run in runs if run["catalogue"] == catalogue and run["limit"] == limit]
    newest = {run["preset"]: run["digest"] for run in whole}
    rows: Rows = {}
    for run in sorted(whole, key=lambda run: int(run["seed"])):
        if run["digest"] == newest[run["preset"]]:
            rows.setdefault(run["name"], []).append(run)
    first = [name for name, own in rows.items() if own[0]["preset"] == "floors"]
    later = sorted(rows.keys() - set(first), key=lambda name: (name.startswith("fusion"), name))
    return {name: rows[name] for name in [*first, *later]}
