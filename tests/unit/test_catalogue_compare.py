"""compare() against a plain dictionary comparison, and its rules one by one."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.catalogue import Difference, compare
from pipeline.schema import ITEMS, PHOTOS, QUARANTINE, REFUSAL, plan_schema

COLOUR = pa.field("colour", pa.string())
COUNTS = ("added", "changed", "same", "refused", "removed", "relabelled")

Row = dict[str, Any]


def photo(item_id: str, uri: str, token: str | None, view: int = 0, reason: str | None = None, **labels: Any) -> Row:
    refusal = {
        name: None if reason is None else value
        for name, value in (("stage", "plan"), ("reason", reason), ("detail", "why"))
    }
    return {"item_id": item_id, "uri": uri, "view": view, "token": token, **refusal, **labels}


def item(item_id: str, uri: str, token: str, view: int = 0, row: int = 0, **labels: Any) -> Row:
    place = {"latents_part": "latents/p", "latents_row": row, "pixels_part": "pixels/p", "pixels_row": row}
    return {"item_id": item_id, "uri": uri, "view": view, "token": token, "digest": f"d-{token}", **place, **labels}


def refusal(item_id: str, uri: str, token: str, stage: str = "decode") -> Row:
    reasons = {"decode": "broken", "fetch": "forbidden", "plan": "missing"}  # kept, asked again, asked again
    said = {"reason": reasons[stage], "detail": f"d-{stage}", "first_seen": "run"}
    return {"item_id": item_id, "uri": uri, "token": token, "stage": stage, **said}


def photos_table(rows: list[Row], *labels: pa.Field) -> pa.Table:
    table = pa.Table.from_pylist(rows, schema=pa.schema([*PHOTOS, *labels, *REFUSAL]))
    return table.sort_by([("item_id", "ascending"), ("view", "ascending")])


def items_table(rows: list[Row], *labels: pa.Field) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=pa.schema([*ITEMS, *labels]))


def quarantine_table(rows: list[Row]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=QUARANTINE)


def by_key(table: pa.Table) -> dict[tuple[str, str], Row]:
    return {(row["item_id"], row["uri"]): row for row in table.to_pylist()}


def statuses(difference: Difference) -> dict[tuple[str, str], str]:
    return {key: row["status"] for key, row in by_key(difference.rows).items()}


def expected_rows(
    photos: list[Row], items: list[Row], refused: list[Row]
) -> tuple[list[Row], set[tuple[str, str]], set[tuple[str, str]]]:
    """The rules of compare(), row by row, with dictionaries: (rows, removed, relabelled)."""
    living = {(row["item_id"], row["uri"]): row for row in items}
    sick = {(row["item_id"], row["uri"]): row for row in refused}
    named = {(row["item_id"], row["uri"]) for row in photos}
    gone = {key: row for key, row in living.items() if key not in named}
    gone_bytes = {(row["item_id"], row["view"]): key for key, row in gone.items() if key[1].startswith("sha256:")}
    made, relabelled = [], set()
    for row in photos:
        key = (row["item_id"], row["uri"])
        out = {**row, "shard": None, "retried": False}
        out.update(dict.fromkeys(("digest", "latents_part", "latents_row", "pixels_part", "pixels_row")))
        before, ill = living.get(key), sick.get(key)
        swapped = gone_bytes.get((row["item_id"], row["view"])) if row["uri"].startswith("sha256:") else None
        held = row["reason"] == "unreachable" and before is not None
        if row["reason"] is not None and not held:
            out["status"] = "refused"
        elif before is not None and (held or before["token"] == row["token"]):
            out |= {"status": "same", "token": before["token"]}
            out.update(
                {name: before[name] for name in ("digest", "latents_part", "latents_row", "pixels_part", "pixels_row")}
            )
            if (before["view"], before["colour"]) != (row["view"], row["colour"]):
                relabelled.add(key)
        elif before is not None:
            out["status"] = "changed"
        elif swapped is not None:
            out["status"] = "changed"
            gone.pop(swapped, None)
        elif ill is not None and ill["stage"] == "decode" and ill["token"] == row["token"]:
            out.update(status="refused", **{name: ill[name] for name in ("stage", "reason", "detail")})
        else:
            out["status"] = "added"
            out["retried"] = ill is not None and ill["stage"] != "decode"
        made.append(out)
    return made, set(gone), relabelled


KEYS = st.sampled_from(["a", "b", "b1", "1:b", "é", "c"])
URIS = st.sampled_from(["u1", "u2", "1u", "sha256:1", "sha256:2", "sha256:3", "", "b:u1"])
TOKENS = st.sampled_from(["t1", "t2"])
COLOURS = st.sampled_from(["red", None])
NAMES = st.lists(st.tuples(KEYS, URIS, TOKENS, COLOURS), max_size=14, unique_by=lambda name: name[:2])


@st.composite
def tonight(draw: st.DrawFn) -> list[Row]:
    rows, views = [], dict[str, int]()
    for key, uri, token, colour in draw(NAMES):
        reason = "no_image" if uri == "" else draw(st.sampled_from([None, None, None, "missing", "unreachable"]))
        rows.append(photo(key, uri, "" if reason else token, views.get(key, 0), reason, colour=colour))
        views[key] = views.get(key, 0) + 1
    return rows


@st.composite
def parent(draw: st.DrawFn) -> tuple[list[Row], list[Row]]:
    items: list[Row] = []
    refused: list[Row] = []
    views = dict[str, int]()
    for number, (key, uri, token, colour) in enumerate(draw(NAMES)):
        if uri == "" or draw(st.integers(0, 3)) == 0:
            refused.append(refusal(key, uri, token, draw(st.sampled_from(["decode", "fetch", "plan"]))))
        else:
            items.append(item(key, uri, token, views.get(key, 0), number, colour=colour))
            views[key] = views.get(key, 0) + 1
    return items, refused


@settings(derandomize=True, max_examples=150, database=None)
@given(tonight(), parent(), st.integers(1, 4))
@pytest.mark.slow
def test_against_dictionaries(now: list[Row], before: tuple[list[Row], list[Row]], slice_rows: int) -> None:
    items, refused = before
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.catalogue.difference.SLICE_ROWS", slice_rows)
        found = compare(photos_table(now, COLOUR), items_table(items, COLOUR), quarantine_table(refused))
    found.rows.validate(full=True)
    assert found.rows.schema.equals(plan_schema([COLOUR]))
    made, removed, relabelled = expected_rows(now, items, refused)
    assert by_key(found.rows) == {
        (row["item_id"], row["uri"]): {**row, "source": None, "offset": None, "length": None, "signed_uri": None}
        for row in made
    }
    assert {tuple(row.values()) for row in found.removed.to_pylist()} == removed
    assert {tuple(row.values()) for row in found.relabelled.to_pylist()} == relabelled
    counts = dict.fromkeys(COUNTS, 0) | {"removed": len(removed), "relabelled": len(relabelled)}
    counts["held"] = 0
    for row in made:
        counts[row["status"]] += 1
        counts["held"] += row["status"] == "same" and row["reason"] == "unreachable"
    assert found.counts == counts


def test_without_a_parent_everything_is_added() -> None:
    found = compare(photos_table([photo("a", "u", "t"), photo("b", "", "", reason="no_image")]), None, None)
    assert statuses(found) == {("a", "u"): "added", ("b", ""): "refused"}
    assert found.counts == {"added": 1, "changed": 0, "same": 0, "refused": 1, "removed": 0, "relabelled": 0, "held": 0}
    assert found.removed.num_rows == 0


def test_photos_that_were_never_resolved_may_be_compared_too() -> None:
    table = photos_table([photo("a", "u", "t")]).drop_columns(REFUSAL.names)
    assert compare(table, None, None).counts["added"] == 1


def test_changed_bytes_at_the_same_place_are_one_change() -> None:
    before = items_table([item("a", "sha256:1", "sha256:1", 0), item("a", "sha256:2", "sha256:2", 1)])
    now = photos_table([photo("a", "sha256:9", "sha256:9", 0), photo("a", "sha256:2", "sha256:2", 1)])
    found = compare(now, before, None)
    assert statuses(found) == {("a", "sha256:9"): "changed", ("a", "sha256:2"): "same"}
    assert found.counts == {"added": 0, "changed": 1, "same": 1, "refused": 0, "removed": 0, "relabelled": 0, "held": 0}


def test_embedded_photos_that_swap_places_are_the_same() -> None:
    before = items_table([item("a", "sha256:1", "sha256:1", 0), item("a", "sha256:2", "sha256:2", 1)])
    now = photos_table([photo("a", "sha256:2", "sha256:2", 0), photo("a", "sha256:1", "sha256:1", 1)])
    found = compare(now, before, None)
    assert found.counts["same"] == found.counts["relabelled"] == 2
    assert compare(now, before, None, relabel=False).counts["relabelled"] == 0


def test_a_photo_that_lived_and_is_missing_now_is_refused_not_removed() -> None:
    found = compare(photos_table([photo("a", "u", "", reason="missing")]), items_table([item("a", "u", "t")]), None)
    assert (found.counts["refused"], found.counts["removed"]) == (1, 0)
    assert by_key(found.rows)["a", "u"]["latents_part"] is None


def test_a_photo_that_lived_and_does_not_answer_keeps_its_row() -> None:
    """Neither with its token nor without is it known to be gone; a missing one is, and a new one never lived."""
    before = items_table([item("a", "u", "t1", row=7), item("b", "u", "t1"), item("d", "u", "t1")])
    now = [photo("a", "u", "", reason="unreachable"), photo("b", "u", "", reason="missing")]
    now += [photo("c", "u", "", reason="unreachable"), photo("d", "u", "", reason="unreachable", view=3)]
    found = compare(photos_table(now), before, None)
    assert [(row["status"], row["token"], row["latents_row"], row["reason"]) for row in found.rows.to_pylist()] == [
        ("same", "t1", 7, "unreachable"),
        ("refused", "", None, "missing"),
        ("refused", "", None, "unreachable"),
        ("same", "t1", 0, "unreachable"),
    ]
    assert found.removed.num_rows == 0
    assert found.relabelled["item_id"].to_pylist() == ["d"]
    assert (found.counts["same"], found.counts["refused"], found.counts["held"]) == (2, 2, 2)


def test_refusals_of_the_parent() -> None:
    names = ["decode-same", "decode-other", "fetch", "plan"]
    before = [
        refusal("a", "decode-same", "t"), refusal("a", "decode-other", "old"), refusal("a", "fetch", "t", "fetch"),
        refusal("a", "plan", "", "plan"), refusal("a", "delisted", "t"),
    ]  # fmt: skip
    found = compare(photos_table([photo("a", name, "t") for name in names]), None, quarantine_table(before))
    rows = by_key(found.rows)
    assert [rows["a", name]["status"] for name in names] == ["refused", "added", "added", "added"]
    assert [rows["a", name]["retried"] for name in names] == [False, False, True, True]
    assert rows["a", "decode-same"]["reason"] == "broken"
    assert rows["a", "fetch"]["reason"] is None
    assert found.counts["removed"] == 0


@pytest.mark.parametrize(
    ("now", "before", "differs"),
    [
        (pa.array([1.5]), pa.array([1.5]), False),
        (pa.array([float("nan")]), pa.array([float("nan")]), False),
        (pa.array([float("nan")]), pa.array([1.0]), True),
        (pa.array([None], pa.float64()), pa.array([float("nan")]), True),
        (pa.array([42]), pa.array(["42"]), False),  # a CSV column that holds numbers tonight and held text before
        (pa.array(["L"]), pa.array([42]), True),
        (pa.array(["x"]), None, True),
        (None, pa.array(["x"]), True),
        (pa.array([None], pa.string()), None, False),
    ],
    ids=str,
)
def test_labels_that_differ(now: pa.Array | None, before: pa.Array | None, differs: bool) -> None:
    tonight_, parent_ = photos_table([photo("a", "u", "t")]), items_table([item("a", "u", "t")])
    if now is not None:
        tonight_ = tonight_.append_column("label", now)
    if before is not None:
        parent_ = parent_.append_column("label", before)
    assert compare(tonight_, parent_, None).counts["relabelled"] == int(differs)


def test_an_unsorted_parent_is_sorted_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.catalogue.difference.SLICE_ROWS", 2)
    keys = [f"{row:02}" for row in range(20)]
    before = items_table([item(key, "u", "t", row=row) for row, key in enumerate(reversed(keys))])
    found = compare(photos_table([photo(key, "u", "t") for key in keys]), before, None)
    assert found.rows["latents_row"].to_pylist() == list(range(19, -1, -1))


def test_keys_that_read_the_same_when_joined_stay_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    now, before = photos_table([photo("b", "1u", "t")]), items_table([item("b1", "u", "t")])
    assert compare(now, before, None).counts["same"] == 0

    def joined(table: pa.Table) -> pa.ChunkedArray:  # the known wrong way
        return pc.binary_join_element_wise(table["item_id"], table["uri"], "")

    monkeypatch.setattr("pipeline.catalogue.difference.pair_keys", joined)
    assert compare(now, before, None).counts["same"] == 1
