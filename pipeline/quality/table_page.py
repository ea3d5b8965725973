"""The quality table as text for a terminal and as a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..evaluation.factors import FACTORS
from ..evaluation.table import Against, TableRow
from ..report import Cell, QualityData, QualityTable, SpaceLine, render_quality


@dataclass(frozen=True, slots=True)
class QualityFacts:
    """What a table was measured on."""

    run: str
    release: str
    model_id: str
    category: str | None
    split_by: str
    known: int
    asked: int
    rendered: int
    seed: int
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Column:
    """A measure's short name, what it says, its factor (100: per cent) and digits."""

    measure: str
    name: str
    about: str
    scale: float = 100.0
    digits: int = 1

    def shown(self, value: float | None) -> str:
        """Return a value as people read it; a dash where it was not measured."""
        return "–" if value is None else f"{value * self.scale:.{self.digits}f}"


LABELS = (
    Column("knn", "k-NN %", "accuracy of the 10 nearest known photos' majority, cosine, ties to the nearest"),
    Column("knn_weighted", "weighted %", "the same of 20 neighbours, votes weighted by exp(cosine / 0.07)"),
    Column("probe", "probe %", "accuracy of logistic regression fitted on known photos"),
    Column("precision_at_10", "P@10 %", "share of the 10 nearest known photos that are of the photo's category"),
    Column("map_at_r", "MAP@R %", "precision at every fitting rank, as deep as there are fitting photos"),
    Column("ndcg_at_10", "NDCG@10 %", "the first 10, an early one counting more"),
)
SPREAD = (
    Column("effective_rank", "rank", "effective rank of the asked photos' latents: 1 for a line, up to dims", 1, 1),
    Column("effective_rank_centred", "rank, centred", "the same around their mean", 1, 1),
    Column("unit_spread", "spread", "1: directions spread evenly; 0: all photos have one direction", 1, 2),
    Column("rare_recall", "logo %", "of a logo pasted on 1 % of the photos: how many of these find each other"),
    Column("rare_plain_recall", "without %", "the same photos before the logo was pasted"),
    Column("rare_ahead", "logo ahead %", "how often a photo with the logo is nearer than one without; 50: by chance"),
    Column("moved", "moved", "how far a patch of 5 % moves the latents; 1: as far as another photo", 1, 2),
    Column("found", "found %", "patched photos whose own original is the nearest"),
)
PURITY = (
    Column("purity_angle", "purity, angle %", "turned by some 4 degrees"),
    Column("purity_shade", "purity, shade %", "darker or lighter fabric"),
    Column("purity_width", "purity, width %", "narrower or wider"),
    Column("purity_view", "purity, view %", "as it stands, mirrored, from near, and turned by 12 to 24 degrees"),
)
_NUMBERS = {"angle", "shade", "width"}
RENDERED = tuple(
    Column(
        f"factor_{name}",
        f"{name} R²" if name in _NUMBERS else f"{name} %",
        "",
        1.0 if name in _NUMBERS else 100.0,
        2 if name in _NUMBERS else 1,
    )
    for name in FACTORS
)


def quality_page(
    facts: QualityFacts, rows: Sequence[TableRow], ahead: Mapping[str, str], against: Mapping[str, Against]
) -> bytes:
    """Return the page of a table; arguments as `table.leaders` and `table.against_baselines` return them."""
    chance = ", ".join(
        f"{name} {rows[0].numbers[f'factor_{name}_chance']:.0%}" for name in FACTORS if name not in _NUMBERS
    )
    tables = [
        QualityTable(
            "Rare and local changes, and the use of dimensions",
            "No labels needed. A model that reconstructs pixels pays little for a logo on few photos, and may move "
            "half of its code when a twentieth of a photo changes.",
            _heads(SPREAD),
            _lines(rows, SPREAD, ahead),
        ),
        QualityTable(
            "The same design, shown otherwise",
            "Four rendered photos each of products of one category, colour and pattern, which differ in what the "
            "column names alone: how many of a photo's three nearest neighbours are of its design, under it the 95 % "
            f"interval over designs. By chance {rows[0].numbers['purity_view_chance']:.1%}; 100: always; "
            "low: the nuisance outweighs the design, or the space does not know what tells designs apart.",
            _heads(PURITY),
            _lines(rows, PURITY, ahead),
        ),
        QualityTable(
            "What made a picture",
            f"How well a straight line reads the known factors of {facts.rendered:,} rendered product pictures from "
            f"the latents: accuracy of names, R² of numbers. By guessing: {chance}, R² 0. The pictures are not the "
            "catalogue's.",
            _heads(RENDERED),
            _lines(rows, RENDERED, ahead),
        ),
    ]
    if rows[0].values:
        tables.insert(
            0,
            QualityTable(
                f"By {facts.category}",
                "Under each number its 95 % interval over the asked photos. Green: ahead of every other row by more "
                "than the interval of their difference on the same photos; where nothing is green nobody leads.",
                _heads(LABELS),
                _lines(rows, LABELS, ahead),
            ),
        )
    data = QualityData(
        title=f"Quality of run {facts.run}",
        facts=[
            ("release", facts.release),
            ("model", rows[0].name),
            ("photos", f"{facts.known:,} known and {facts.asked:,} asked, one an item"),
            ("kept apart by", facts.split_by),
            ("seed", str(facts.seed)),
        ],
        verdicts=verdicts(against),
        tables=tables,
        notes=facts.notes,
    )
    return render_quality(data)


def verdicts(against: Mapping[str, Against]) -> list[tuple[str, str, int]]:
    """Return (measure, how far from the best baseline, 1 ahead, -1 behind or 0 neither)."""
    found = []
    for column in LABELS:
        if column.measure in against:
            each = against[column.measure]
            mean, low, high = (value * column.scale for value in each.difference)
            sign = 1 if low > 0 else -1 if high < 0 else 0
            text = f"{mean:+.1f} points ({low:+.1f} to {high:+.1f}) against {each.baseline}"
            found.append((column.name.removesuffix(" %"), text, sign))
    return found


def table_text(rows: Sequence[TableRow], ahead: Mapping[str, str], against: Mapping[str, Against]) -> str:
    """Return the table for a terminal: blocks of columns, behind a number half its interval, * for leaders."""
    blocks = [columns for columns in (LABELS, SPREAD, PURITY, RENDERED) if columns[0].measure in rows[0].numbers]
    parts = []
    for columns in blocks:
        cells = [["space", "dims", *(column.name for column in columns)]]
        for row in rows:
            shown = [
                _plain(row, column) + (" *" if ahead.get(column.measure) == row.name else "") for column in columns
            ]
            cells.append([row.name, f"{row.dims:,}", *shown])
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        for first, *rest in cells:
            aligned = (text.rjust(width) for text, width in zip(rest, widths[1:], strict=True))
            parts.append("  ".join([first.ljust(widths[0]), *aligned]))
        parts.append("")
    if rows[0].values:
        parts.append("± is half the 95 % interval; * is ahead of every other row by more than chance, by pairs")
    words = {1: "ahead", -1: "behind", 0: "even"}
    parts += [f"{rows[0].name}, {name}: {words[sign]}, {text}" for name, text, sign in verdicts(against)]
    return "\n".join(parts)


def _heads(columns: Sequence[Column]) -> list[tuple[str, str]]:
    return [("dims", ""), *((column.name, column.about) for column in columns)]


def _lines(rows: Sequence[TableRow], columns: Sequence[Column], ahead: Mapping[str, str]) -> list[SpaceLine]:
    lines = []
    for row in rows:
        cells = [Cell(f"{row.dims:,}")]
        for column in columns:
            low, high = row.numbers.get(f"{column.measure}_low"), row.numbers.get(f"{column.measure}_high")
            between = "" if low is None or high is None else f"{column.shown(low)} – {column.shown(high)}"
            value = column.shown(row.numbers.get(column.measure))
            cells.append(Cell(value, between, leads=ahead.get(column.measure) == row.name))
        kind, _, digits = row.name.partition(" ") if row.trained else (row.name, "", "")
        lines.append(SpaceLine(kind, digits, row.trained, cells))
    return lines


def _plain(row: TableRow, column: Column) -> str:
    low, high = row.numbers.get(f"{column.measure}_low"), row.numbers.get(f"{column.measure}_high")
    value = column.shown(row.numbers.get(column.measure))
    return value if low is None or high is None else f"{value} ±{column.shown((high - low) / 2)}"
