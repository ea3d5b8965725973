"""What `choose` answers: a row a candidate, who is on the front of quality and speed, and who wins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..evaluation.folds import FOLD_MEASURES, GroupMean, group_difference, group_mean
from ..evaluation.quality import Difference
from ..evaluation.views_found import VIEW_MEASURES
from .choosing import Measured, Photos

_TITLES = {
    "knn": "k-NN %",
    "precision_at_10": "P@10 %",
    "map_at_r": "MAP@R %",
    "item_found": "other photo found %",
    "view_found": "view found %",
}


@dataclass(frozen=True, slots=True)
class Row:
    """A candidate's line. measures: by name with their intervals over groups; behind: the winner's lead, in shares.

    front: no other candidate is both better and faster.
    """

    measured: Measured
    measures: Mapping[str, GroupMean]
    behind: Difference | None
    front: bool
    winner: bool


@dataclass(frozen=True, slots=True)
class Choice:
    """Every candidate, best first. judged_by: the measure that decides."""

    rows: Sequence[Row]
    judged_by: str
    photos: Photos

    @property
    def winner(self) -> Measured:
        """Return the candidate with the highest mean."""
        return next(row.measured for row in self.rows if row.winner)


def choose_among(measured: Sequence[Measured], photos: Photos) -> Choice:
    """Return candidates compared: the highest mean of the first measure there is wins, of equals the faster.

    k-NN where there are categories, else whether another photo of the item is found, else whether a view is. behind is
    drawn over groups, of the photos that both were asked (`folds.group_difference`); a candidate whose interval
    reaches 0 is not told apart from the winner, and may be the better choice for its speed.
    """
    names = [name for name in (*FOLD_MEASURES, *VIEW_MEASURES) if _known(measured, name)]
    judged_by = names[0]
    means = {each.name: _means(each, names, photos) for each in measured}
    order = sorted(measured, key=lambda each: (-means[each.name][judged_by].mean, -each.photos_per_s))
    rows = []
    for each in order:
        own = means[each.name][judged_by].mean
        beaten = any(
            means[other.name][judged_by].mean >= own
            and other.photos_per_s >= each.photos_per_s
            and (means[other.name][judged_by].mean, other.photos_per_s) != (own, each.photos_per_s)
            for other in measured
        )
        behind = None if each is order[0] else _behind(order[0], each, judged_by, photos)
        rows.append(Row(each, means[each.name], behind, not beaten, each is order[0]))
    return Choice(rows, judged_by, photos)


def choice_text(choice: Choice) -> str:
    """Return the table for people."""
    names = list(choice.rows[0].measures)
    heads = ["", "model", *(_TITLES[name] for name in names), "behind the first", "photos/s", "numbers", "bytes",
             "licence", "fit CPU s", "seeds"]  # fmt: skip
    table = [heads]
    for row in choice.rows:
        each = row.measured
        table.append(
            [
                f"{'*' if row.winner else ' '}{'P' if row.front else ' '}",
                each.name,
                *(_interval(row.measures[name]) for name in names),
                "-" if row.behind is None else _difference(row.behind),
                f"{each.photos_per_s:,.0f}",
                str(each.dims),
                f"{each.bytes:,}",
                ", ".join(each.licences) or "-",
                f"{each.fit_cpu_s:.1f}",
                ",".join(map(str, each.seeds)),
            ]
        )
    widths = [max(len(line[at]) for line in table) for at in range(len(heads))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table]
    photos = choice.photos
    first = choice.rows[0].measures[choice.judged_by]
    folds, judged = int(photos.folds.max()) + 1, _TITLES[choice.judged_by].removesuffix(" %")
    said = f"{first.photos:,} photos, each asked once, in {folds} folds of {first.groups:,} values of {photos.by}"
    notes = [
        f"{said}; 95 % intervals by drawing these.",
        f"*: highest {judged}; P: no other is both better and faster.",
        "photos/s: encoded by one CPU, decoding left out; fit CPU s: of one fold; bytes: of one photo's latents.",
    ]
    near = [row.measured.name for row in choice.rows if row.behind is not None and row.behind.low <= 0]
    if near:
        notes.append(f"Not told apart from the first by more than chance: {', '.join(near)}.")
    return "\n".join([*lines, "", *notes])


def choice_details(choice: Choice) -> dict[str, Any]:
    """Return the table as plain values for JSON; shares, not percent."""
    return {
        "judged_by": choice.judged_by,
        "winner": choice.winner.name,
        "by": choice.photos.by,
        "folds": int(choice.photos.folds.max()) + 1,
        "candidates": [
            {
                "name": row.measured.name,
                "kind": row.measured.kind,
                **{name: asdict(value) for name, value in row.measures.items()},
                "behind": None if row.behind is None else row.behind._asdict(),
                "front": row.front,
                "winner": row.winner,
                "photos_per_s": row.measured.photos_per_s,
                "numbers": row.measured.dims,
                "bytes": row.measured.bytes,
                "licences": list(row.measured.licences),
                "fit_cpu_s": row.measured.fit_cpu_s,
                "seeds": {str(seed): dict(means) for seed, means in row.measured.by_seed.items()},
            }
            for row in choice.rows
        ],
    }


def _known(measured: Sequence[Measured], name: str) -> bool:
    return all(name in each.values and not np.isnan(each.values[name]).all() for each in measured)


def _means(each: Measured, names: Sequence[str], photos: Photos) -> dict[str, GroupMean]:
    return {name: group_mean(each.values[name], photos.groups) for name in names}


def _behind(first: Measured, other: Measured, name: str, photos: Photos) -> Difference:
    one, two = first.values[name], other.values[name]
    # A model may refuse a photo that another takes; only those that both were asked are pairs.
    both = np.where(np.isnan(one) | np.isnan(two), np.nan, 0.0)
    return group_difference(one + both, two + both, photos.groups)


def _interval(found: GroupMean) -> str:
    return f"{100 * found.mean:.1f} ({100 * found.low:.1f}-{100 * found.high:.1f})"


def _difference(found: Difference) -> str:
    return f"{100 * found.mean:.1f} ({100 * found.low:+.1f} to {100 * found.high:+.1f})"
