"""changes_between against a plain dictionary comparison."""

from __future__ import annotations

import random

import pyarrow as pa

from pipeline.catalogue.changes import changes_between
from pipeline.schema import ITEMS, QUARANTINE


def items_table(rows: dict[tuple[str, str], tuple[str, str | None]]) -> pa.Table:
    """rows: (item_id, uri) -> (token, colour)."""
    schema = pa.schema([*ITEMS, pa.field("colour", pa.string())])
    made = [
        {
            "item_id": item, "uri": uri, "view": 0, "token": token, "digest": token, "latents_part": "p",
            "latents_row": number, "pixels_part": "q", "pixels_row": number, "colour": colour,
        }
        for number, ((item, uri), (token, colour)) in enumerate(sorted(rows.items()))
    ]  # fmt: skip
    return pa.Table.from_pylist(made, schema=schema)


def quarantine_table(keys: set[tuple[str, str]]) -> pa.Table:
    made = [
        {"item_id": i, "uri": u, "token": "t", "stage": "decode", "reason": "empty", "detail": "x", "first_seen": "r"}
        for i, u in sorted(keys)
    ]
    return pa.Table.from_pylist(made, schema=QUARANTINE)


def expected(
    now: dict[tuple[str, str], tuple[str, str | None]], before: dict[tuple[str, str], tuple[str, str | None]]
) -> set[tuple[str, str, str]]:
    found = {(*key, "added") for key in now.keys() - before.keys()}
    found |= {(*key, "removed") for key in before.keys() - now.keys()}
    for key in now.keys() & before.keys():
        if now[key][0] != before[key][0]:
            found.add((*key, "changed"))
        elif now[key][1] != before[key][1]:
            found.add((*key, "relabelled"))
    return found


def triples(table: pa.Table) -> set[tuple[str, str, str]]:
    return {(row["item_id"], row["uri"], row["change"]) for row in table.to_pylist()}


def test_against_a_plain_comparison_on_random_tables() -> None:
    dice = random.Random(1)
    for _ in range(50):
        tables = []
        for _ in range(2):
            keys = [(f"i{n // 2}", f"u{n}") for n in range(20) if dice.random() < 0.7]
            tables.append({key: (dice.choice("ab"), dice.choice(["red", "blue", None])) for key in keys})
        now, before = tables
        table = changes_between(items_table(now), quarantine_table(set()), items_table(before), quarantine_table(set()))
        assert triples(table) == expected(now, before)
        order = [(row["item_id"], row["uri"]) for row in table.to_pylist()]
        assert order == sorted(order)


def test_without_a_parent_all_is_added_or_quarantined() -> None:
    table = changes_between(items_table({("a", "u"): ("t", None)}), quarantine_table({("b", "v")}), None, None)
    assert triples(table) == {("a", "u", "added"), ("b", "v", "quarantined")}


def test_a_photo_refused_again_is_no_change_and_a_newly_refused_one_is_two() -> None:
    before = items_table({("a", "u"): ("t", None), ("c", "w"): ("t", None)})
    now = items_table({("c", "w"): ("t", None)})
    table = changes_between(now, quarantine_table({("a", "u"), ("b", "v")}), before, quarantine_table({("b", "v")}))
    assert triples(table) == {("a", "u", "removed"), ("a", "u", "quarantined")}


def test_a_new_attribute_column_relabels_every_photo() -> None:
    plain = items_table({("a", "u"): ("t", "red")})
    table = changes_between(plain, quarantine_table(set()), plain.drop_columns(["colour"]), quarantine_table(set()))
    assert triples(table) == {("a", "u", "relabelled")}
