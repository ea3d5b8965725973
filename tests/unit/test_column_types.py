"""Every Arrow type in every role: carried from the table to the reader's answer with its value, or refused at the door.

The way is the real one: read_photos, the plan's Parquet, the items table, the diff and changes of the next night, and
what a reader finds. Only what lies between, fetching and encoding, is left out.
"""

from __future__ import annotations

import datetime as dt
import decimal
import io
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from pipeline.catalogue import CatalogueConfig, catalogue_notes, changes_between, compare, photos, read_photos
from pipeline.catalogue.columns import choose_columns
from pipeline.catalogue.difference import differs
from pipeline.catalogue.embedded import EmbeddedPhotos
from pipeline.catalogue.rows import photo_rows
from pipeline.column_types import FAMILIES
from pipeline.errors import ConfigError, InputError
from pipeline.index import ItemTable
from pipeline.index.where import matching_rows
from pipeline.schema import attribute_fields, items_schema, quarantine_schema
from pipeline.storage import Files

D = decimal.Decimal
DAY, LATER, LAST = dt.date(2020, 2, 29), dt.date(2021, 1, 1), dt.date(2022, 1, 1)
NOON, EVENING, NIGHT = dt.time(12), dt.time(18, 30, 5), dt.time(23)
THEN, NOW, SOON = (dt.datetime.combine(day, NOON) for day in (DAY, LATER, LAST))
UUIDS = [uuid.UUID(int=number) for number in (1, 2, 3)]
# What each role may be: k(ey), i(mage), c(ategory), a(ttribute), v(ersion).
ROLES = {"k": "key", "i": "image", "c": "category", "a": "attribute", "v": "version"}


@dataclass(frozen=True)
class Kind:
    """One Arrow type. cells: three different values as a table has them; roles: where it is carried; read: what a
    reader shows of the cells where that is something else; texts: of a key or version, where that is not str(cell)."""

    name: str
    type: Any
    cells: list[Any]
    roles: str
    read: list[Any] | None = None
    texts: list[str] | None = None
    made: Any = None

    def column(self, cells: list[Any]) -> pa.Array:
        return self.made(cells) if self.made else pa.array(cells, self.type)


def in_dictionary(index: Any, values: Any) -> Any:
    return lambda cells: pa.array(cells, values).dictionary_encode().cast(pa.dictionary(index, values))


def run_ends(values: Any) -> Any:
    return lambda cells: pc.run_end_encode(pa.array(cells, values))


def extension(kind: Any, *, of: Any = lambda cell: cell) -> Any:
    def make(cells: list[Any]) -> pa.Array:
        held = pa.array([None if cell is None else of(cell) for cell in cells], kind.storage_type)
        return pa.ExtensionArray.from_storage(kind, held)

    return make


def plain(name: str, kind: Any, cells: list[Any], roles: str = "cav", **more: Any) -> Kind:
    return Kind(name, kind, cells, roles, **more)


INTEGERS = [pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()]
TEXTS = [pa.string(), pa.large_string(), pa.string_view()]
BYTES = [pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(2)]
DECIMALS = [pa.decimal32(5, 2), pa.decimal64(9, 2), pa.decimal128(20, 2), pa.decimal256(50, 2)]
LISTS = [pa.list_, pa.large_list, pa.list_view, pa.large_list_view, lambda kind: pa.list_(kind, 1)]
MOMENTS = [THEN, NOW, SOON]
ZURICH = [moment.replace(tzinfo=dt.timezone(dt.timedelta(hours=5, minutes=30))) for moment in MOMENTS]
HF = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
HF_DICT = pa.struct([("bytes", pa.dictionary(pa.int32(), pa.binary())), ("path", pa.string())])


def kinds() -> Iterator[Kind]:
    for kind in INTEGERS:
        yield plain(str(kind), kind, [1, 2, 3], "kcav")
    yield plain("uint64 above 2^63", pa.uint64(), [2**63, 2**64 - 1, 3], "kcav")
    yield plain("int64 at its end", pa.int64(), [-(2**63), 2**63 - 1, 3], "kcav")
    floats = [str(cell) for cell in (0.5, 1.25, -2)]
    yield plain("halffloat", pa.float16(), [0.5, 1.25, -2.0], texts=floats)
    yield plain("float", pa.float32(), [0.5, 1.25, -2.0], texts=floats)
    yield plain("double", pa.float64(), [0.1, 1.25, -2.0], texts=["0.1", "1.25", "-2"])
    for kind in DECIMALS:
        yield plain(str(kind), kind, [D("1.50"), D("-2.00"), D("3.25")])
    for kind in (pa.decimal32(5), pa.decimal64(9), pa.decimal128(38), pa.decimal256(60)):
        yield plain(f"{kind} whole", kind, [D(1), D(-2), D(3)], "kcav")
    yield plain("bool", pa.bool_(), [True, False, True], texts=["true", "false", "true"])
    for kind in TEXTS:
        yield plain(str(kind), kind, ["a", "b", "é"], "kicav")
    for kind in TEXTS[:2]:
        yield plain(f"dictionary of {kind}", kind, ["a", "b", "é"], "kicav", made=in_dictionary(pa.int8(), kind))
    yield plain("date32", pa.date32(), [DAY, LATER, LAST])
    yield plain("date64", pa.date64(), [DAY, LATER, LAST])
    for kind in (pa.time32("s"), pa.time32("ms"), pa.time64("us"), pa.time64("ns")):
        digits = {"s": 3, "ms": 3, "us": 6, "ns": 9}[kind.unit]
        texts = [f"{cell}.{'0' * digits}" for cell in (NOON, EVENING, NIGHT)]
        yield plain(str(kind), kind, [NOON, EVENING, NIGHT], "av", texts=texts)
    for unit in ("s", "ms", "us", "ns"):
        digits = {"s": 3, "ms": 3, "us": 6, "ns": 9}[unit]
        texts = [f"{cell}.{'0' * digits}" for cell in MOMENTS]
        yield plain(f"timestamp[{unit}]", pa.timestamp(unit), MOMENTS, "av", texts=texts)
        zoned = pa.timestamp(unit, "+05:30")
        yield plain(f"timestamp[{unit}, tz]", zoned, ZURICH, "av", texts=[f"{text}+0530" for text in texts])
        lengths = [dt.timedelta(seconds=number) for number in (1, 2, 90_000)]
        scale = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
        counts = [str(int(cell.total_seconds()) * scale) for cell in lengths]
        yield plain(f"duration[{unit}]", pa.duration(unit), lengths, "av", texts=counts)
    yield plain(
        "uuid", pa.uuid(), UUIDS, "kcav", read=[str(cell) for cell in UUIDS], made=extension(pa.uuid(), of=bytes_of)
    )
    yield plain("json", pa.json_(), ["{}", "[1]", "2"], made=extension(pa.json_()))
    yield plain(
        "bool8", pa.bool8(), [True, False, True], texts=["true", "false", "true"], made=extension(pa.bool8(), of=int)
    )
    for index, kind in ((pa.int64(), pa.int32()), (pa.uint32(), pa.int64())):
        yield plain(f"dictionary[{index}] of {kind}", kind, [1, 2, 3], "kcav", made=in_dictionary(index, kind))
    yield plain(
        "dictionary of double",
        pa.float64(),
        [0.5, 1.25, -2.0],
        texts=floats,
        made=in_dictionary(pa.int32(), pa.float64()),
    )
    yield plain("dictionary of date", pa.date32(), [DAY, LATER, LAST], made=in_dictionary(pa.int32(), pa.date32()))
    yield plain("run ends of text", pa.string(), ["a", "b", "é"], "kicav", made=run_ends(pa.string()))
    yield plain("run ends of numbers", pa.int32(), [1, 2, 3], "kcav", made=run_ends(pa.int32()))
    for kind in BYTES:
        yield plain(str(kind), kind, [b"aa", b"bb", b"cc"], "i")
        yield plain(
            f"dictionary of {kind}", kind, [b"aa", b"bb", b"cc"], "i", made=in_dictionary(pa.int32(), pa.binary())
        )
    for layout in LISTS:
        yield plain(f"{layout.__name__} of text", layout(pa.string()), [["a"], ["b"], ["c"]], "i")
        yield plain(f"{layout.__name__} of numbers", layout(pa.int32()), [[1], [2], [3]], "")
    yield plain("list of dictionary", pa.list_(pa.dictionary(pa.int32(), pa.string())), [["a"], ["b"], ["c"]], "i")
    yield plain("list of bytes", pa.list_(pa.binary()), [[b"a"], [b"b"], [b"c"]], "")
    for kind in (HF, HF_DICT):
        yield plain(str(kind), kind, [{"bytes": bytes(2 * [at]), "path": "p"} for at in b"abc"], "i")
    yield plain("struct", pa.struct([("x", pa.int32())]), [{"x": 1}, {"x": 2}, {"x": 3}], "")
    yield plain("map", pa.map_(pa.string(), pa.int32()), [[("x", 1)], [("y", 2)], [("z", 3)]], "")
    yield plain("interval", pa.month_day_nano_interval(), [(1, 2, 3), (4, 5, 6), (7, 8, 9)], "")
    yield plain("union", None, [1, 2, 3], "", made=union)
    yield plain("a zone that is none", pa.timestamp("us", "Mars/Phobos"), [1, 2, 3], "")
    yield plain("decimal of hundreds", pa.decimal128(5, -2), [D(100), D(200), D(300)], "")
    tensor = pa.fixed_shape_tensor(pa.int8(), [1])
    yield plain("tensor", tensor, [[1], [2], [3]], "", made=extension(tensor))
    yield plain("opaque", pa.opaque(pa.int8(), "x", "y"), [1, 2, 3], "", made=extension(pa.opaque(pa.int8(), "x", "y")))


def bytes_of(cell: uuid.UUID) -> bytes:
    return cell.bytes


def union(cells: list[Any]) -> pa.Array:
    return pa.UnionArray.from_sparse(pa.array([0] * len(cells), pa.int8()), [pa.array(cells)])


KINDS = {kind.name: kind for kind in kinds()}
CELLS = [(kind, role) for kind in KINDS.values() for role in ROLES]


@pytest.fixture(autouse=True)
def in_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """Tables that no file format can hold are read from `TABLE`; all others really are Parquet."""

    def source(place: Any, config: CatalogueConfig, files: Files, tally: Any) -> Iterator[pa.Table]:
        columns = choose_columns(TABLE[0].schema, config, place.uri)
        tally.skipped_columns.update(columns.skipped)
        yield photo_rows(TABLE[0].select(columns.read), columns, place, config, first_row=0)

    monkeypatch.setitem(photos.SOURCES, "jsonl", source)
    (tmp_path / "memory.jsonl").touch()


TABLE: list[pa.Table] = []


def catalogue(folder: Any, table: pa.Table, **settings: Any) -> pa.Table:
    TABLE[:] = [table]
    path = folder / "memory.jsonl"
    try:
        pq.write_table(table, folder / "c.parquet")
        pq.read_schema(folder / "c.parquet")
        path = folder / "c.parquet"
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid, OSError):
        pass
    return read_photos(CatalogueConfig(source=str(path), **settings), Files())


def night(folder: Any, kind: Kind, role: str, cells: list[Any]) -> pa.Table:
    """Return the photos of a catalogue of three items, in which one column plays the role."""
    columns: dict[str, Any] = {"item_id": ["a", "b", "c"], "image": [b"1", b"2", b"3"]}
    settings: dict[str, Any] = {}
    if role == "k":
        columns["item_id"] = kind.column(cells)
    elif role == "i":
        columns["image"] = kind.column(cells)
    else:
        columns["x"] = kind.column(cells)
        settings = {"c": {"category": "x"}, "a": {"attributes": ("x",)}, "v": {"version": "x", "attributes": ()}}[role]
        if role == "v":
            columns["image"] = ["1.jpg", "2.jpg", "3.jpg"]
    return catalogue(folder, pa.table(columns), **settings)


def released(found: pa.Table, parent: pa.Table | None = None) -> pa.Table:
    """Return the items table of a release in which every photo lives, read from its Parquet."""
    if found["token"].null_count:
        found = found.set_column(found.schema.get_field_index("token"), "token", pa.array(["t"] * found.num_rows))
    rows = compare(found, parent, None).rows
    rows = stored(rows)
    places = {
        "digest": pa.array(["d"] * rows.num_rows),
        "latents_part": pa.array(["p"] * rows.num_rows),
        "latents_row": pa.array(range(rows.num_rows), pa.int32()),
    }
    schema = items_schema(attribute_fields(rows.schema))
    return stored(pa.table([places.get(name, rows[name]) for name in schema.names], schema=schema))


def stored(table: pa.Table) -> pa.Table:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    again = pq.read_table(io.BytesIO(sink.getvalue()))
    assert again.schema == table.schema, "what a plan holds comes back from its file as another type"
    return again


@pytest.mark.parametrize(("kind", "role"), CELLS, ids=[f"{kind.name}-{ROLES[role]}" for kind, role in CELLS])
def test_every_type_in_every_role(tmp_path: Any, kind: Kind, role: str) -> None:
    if role not in kind.roles:
        column = {"k": "item_id", "i": "image"}.get(role, "x")
        with pytest.raises(InputError) as caught:
            night(tmp_path, kind, role, kind.cells)
        text = str(caught.value)
        assert repr(column) in text, text
        assert re.search(r"holds \S.* values", text), text
        assert any(remedy in text for remedy in ("cast", "must name a column of URIs")), text
        return
    found = night(tmp_path, kind, role, kind.cells)
    {"k": carried_key, "i": carried_image, "v": carried_version}.get(role, carried_attribute)(
        tmp_path, kind, role, found
    )


def carried_key(folder: Any, kind: Kind, role: str, found: pa.Table) -> None:
    texts = kind.texts or [str(cell) for cell in kind.cells]
    table = ItemTable(released(found))
    assert table.item_ids() == sorted(texts)
    assert compare(found, released(found), None).counts["same"] == 3


def carried_image(folder: Any, kind: Kind, role: str, found: pa.Table) -> None:
    photo = [cell["bytes"] if isinstance(cell, dict) else cell for cell in kind.cells]
    if not isinstance(photo[0], bytes):
        names = [cell[0] if isinstance(cell, list) else cell for cell in photo]
        assert [uri.rsplit("/", 1)[1] for uri in found["uri"].to_pylist()] == names
        return
    source = found["source"][0].as_py()
    if source.endswith(".parquet"):
        assert EmbeddedPhotos(Files(), "image").read(source, [2, 0, 1, 9]) == [photo[2], photo[0], photo[1], None]


def carried_version(folder: Any, kind: Kind, role: str, found: pa.Table) -> None:
    texts = kind.texts or [str(cell) for cell in kind.cells]
    assert found["token"].to_pylist() == [f"version:{text}" for text in texts]


def allowed(table: ItemTable, where: dict[str, Any]) -> list[int]:
    """Return the rows that a search under `where` may return."""
    made = table.filter(where)
    selector = made.selector()
    return [row for row in range(table.num_rows) if selector.is_member(row)]


def carried_attribute(folder: Any, kind: Kind, role: str, found: pa.Table) -> None:
    items = released(found)
    table = ItemTable(items)
    read = kind.read or kind.cells
    shown = [table.attributes_of(table.find(name))["x"] for name in "abc"]  # type: ignore[arg-type]
    assert shown == read
    assert [type(value) for value in shown] == [type(value) for value in read]
    for value in read:
        rows = [at for at, other in enumerate(read) if other == value]
        assert allowed(table, {"x": value}) == rows
        assert allowed(table, {"x": [value]}) == rows
        if not isinstance(value, bool):
            assert allowed(table, {"x": {"min": value, "max": value}}) == rows
    again = compare(found, items, None, told="x" if role == "c" else None)
    assert again.counts["same"] == 3
    assert again.counts["relabelled"] == 0
    assert again.rows["latents_part"].null_count == 0
    # The next night the first item has what the second had, the second none: both are told of, and only these.
    moved = night(folder, kind, role, [kind.cells[1], None, kind.cells[2]])
    difference = compare(moved, items, None, told="x" if role == "c" else None)
    assert difference.relabelled["item_id"].to_pylist() == ["a", "b"]
    assert difference.rows["latents_part"].null_count == (2 if role == "c" else 0)
    nobody = quarantine_schema().empty_table()
    changes = changes_between(released(moved, items), nobody, items, nobody)
    assert changes.to_pydict() == {
        "item_id": ["a", "b"],
        "uri": found["uri"].to_pylist()[:2],
        "change": ["relabelled"] * 2,
    }
    assert not changes_between(items, nobody, items, nobody).num_rows


WHERE = pa.table(
    {
        "single": pa.array([0.1, 2.5, None], pa.float32()),
        "small": pa.array([1, 2, 3], pa.int8()),
        "large": pa.array([2**63, 2**64 - 1, 0], pa.uint64()),
        "price": pa.array([D("19.99"), D("5.00"), None], pa.decimal128(10, 2)),
        "day": pa.array([DAY, LATER, LAST], pa.date32()),
        "when": pa.array([THEN, NOW, SOON], pa.timestamp("ms")),
        "there": pa.array([THEN, NOW, SOON], pa.timestamp("ms", "UTC")),
        "clock": pa.array([NOON, EVENING, NIGHT], pa.time32("ms")),
    }
)


@pytest.mark.parametrize(
    ("where", "rows"),
    [
        ({"single": 0.1}, [0]),  # a single 0.1 is not the double 0.1: compared as doubles nothing would be found
        ({"single": [0.1, 2.5]}, [0, 1]),
        ({"single": {"max": 0.1}}, [0]),
        ({"small": 300}, []),
        ({"small": [300, 2]}, [1]),
        ({"small": 2**70}, []),
        ({"small": {"max": 2**70, "min": -(2**70)}}, [0, 1, 2]),
        ({"small": {"min": 1.5}}, [1, 2]),
        ({"small": [1.5, 2.0]}, [1]),
        ({"large": 2**63}, [0]),
        ({"large": {"min": 0.5, "max": float("inf")}}, [0, 1]),
        ({"large": {"max": -0.5}}, []),
        ({"large": {"min": -1, "max": 2**63}}, [0, 2]),
        ({"price": 19.99}, [0]),
        ({"price": ["19.99", 5]}, [0, 1]),
        ({"price": 19.991}, []),
        ({"price": {"max": 10}}, [1]),
        ({"day": "2020-02-29"}, [0]),
        ({"day": [DAY, "2022-01-01"]}, [0, 2]),
        ({"day": {"min": "2020-12-31"}}, [1, 2]),
        ({"when": "2021-01-01T12:00:00"}, [1]),
        ({"when": {"max": DAY}}, []),
        ({"when": {"max": LATER}}, [0]),
        ({"there": "2020-02-29T13:00:00+01:00"}, [0]),
        ({"clock": "18:30:05"}, [1]),
        ({"clock": {"min": NIGHT}}, [2]),
    ],
    ids=str,
)
def test_where_compares_by_value(where: dict[str, Any], rows: list[int]) -> None:
    assert np.flatnonzero(matching_rows(WHERE, where)).tolist() == rows


@pytest.mark.parametrize(
    "where",
    [
        {"small": "1"},
        {"small": True},
        {"small": ["x"]},
        {"price": "dear"},
        {"price": {"min": "x"}},
        {"day": "yesterday"},
        {"when": "2021-01-01T12:00:00Z"},
        {"there": NOW},
        {"day": 5},
        {"clock": "noon"},
        {"single": "\ud800"},
    ],
    ids=str,
)
def test_where_refuses_what_cannot_be_compared(where: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="cannot be compared with"):
        matching_rows(WHERE, where)


def test_nanoseconds_are_cut_and_compared_whole() -> None:
    whole = 1_700_000_000_123_456_789
    columns = {name: pa.array([whole % per], kind) for name, kind, per in NANOSECONDS}
    shown = ItemTable(pa.table({"item_id": ["a"], **columns})).attributes_of(0)
    assert shown["when"] == dt.datetime.fromisoformat("2023-11-14T22:13:20.123456")
    assert shown["clock"] == dt.time(22, 13, 20, 123456)
    assert shown["long"] == dt.timedelta(microseconds=1_700_000_000_123_456)
    assert {type(value) for value in shown.values()} == {dt.datetime, dt.time, dt.timedelta}


NANOSECONDS = [
    ("when", pa.timestamp("ns"), 2**63),
    ("clock", pa.time64("ns"), 86_400 * 10**9),
    ("long", pa.duration("ns"), 2**63),
]


@pytest.mark.parametrize(
    ("kind", "raw", "why"),
    [
        (pa.timestamp("us"), 2**62, "years 1 to 9999"),
        (pa.timestamp("ms", "UTC"), -(2**62), "years 1 to 9999"),
        (pa.date32(), 2**30, "years 1 to 9999"),
        (pa.time32("ms"), -1, "time of day"),
        (pa.time64("us"), 86_400_000_000, "time of day"),
        (pa.duration("ms"), 2**62, "years 1 to 9999"),
        (pa.string(), b"caf\xe9", "no UTF-8"),
    ],
    ids=str,
)
def test_values_that_nothing_can_hold_name_file_and_row(tmp_path: Any, kind: Any, raw: Any, why: str) -> None:
    good = b"ok" if isinstance(raw, bytes) else 1
    storage = pa.array([good, None, raw], pa.binary() if isinstance(raw, bytes) else None)
    column = storage.view(kind) if isinstance(raw, bytes) else storage.cast(WIDTH[kind.bit_width]).view(kind)
    table = pa.table({"item_id": ["a", "b", "c"], "image": [b"1", b"2", b"3"], "x": column})
    with pytest.raises(InputError, match=rf"row\(s\) 3 of .*c\.parquet: the column 'x' holds .*{why}"):
        catalogue(tmp_path, table)
    assert catalogue(tmp_path, table, attributes=()).num_rows == 3  # nobody asked for the column


WIDTH = {32: pa.int32(), 64: pa.int64()}


def test_columns_that_nobody_asked_for_may_be_anything(tmp_path: Any) -> None:
    names = ["item_id", "image", "size", "x", "x", "status", "tags", "tensor"]
    columns = [["a"], [b"1"], [2], [1], ["2"], ["on"], [["y"]]]
    # Arrow makes no empty array of this extension type from a file, which says of it the order of its axes.
    tensor = pa.FixedShapeTensorArray.from_numpy_ndarray(np.zeros((1, 2, 2), np.float32))
    table = pa.table([*(pa.array(column) for column in columns), tensor], names=names)
    found = catalogue(tmp_path, table, attributes=("size",))
    assert found["size"].to_pylist() == [2]
    with pytest.raises(InputError, match="more than one column named 'x'"):
        catalogue(tmp_path, table)
    left_out = catalogue(tmp_path, table.select(["item_id", "image", "size", "status", "tags", "tensor"]))
    assert catalogue_notes(left_out).skipped_columns == ("status", "tags", "tensor")
    with pytest.raises(InputError, match=r"'tensor'.*fixed_shape_tensor.*allowed are"):
        catalogue(tmp_path, table, attributes=("tensor",))


def test_attributes_of_any_name_are_compared() -> None:
    """`spare_part` is no place of the release's own, and `size_before` no helper of a join."""
    nobody = quarantine_schema().empty_table()
    own = {"item_id": ["a"], "uri": ["u"], "view": [0], "token": ["t"], "latents_part": ["p"]}
    before = pa.table({**own, "spare_part": ["x"], "size": [1], "size_before": [1]})
    for name, value in (("spare_part", "y"), ("size", 2), ("size_before", 2)):
        after = before.set_column(before.schema.get_field_index(name), name, pa.array([value]))
        assert changes_between(after, nobody, before, nobody)["change"].to_pylist() == ["relabelled"], name
    moved = before.set_column(4, "latents_part", pa.array(["q"]))
    assert not changes_between(moved, nobody, before, nobody).num_rows
    lost = before.drop_columns(["size"])
    assert changes_between(lost, nobody, before, nobody)["change"].to_pylist() == ["relabelled"]


@pytest.mark.parametrize(
    ("now", "before", "differ"),
    [
        (pa.array([1], pa.timestamp("ns")), pa.array([0], pa.timestamp("us")), True),
        (pa.array([1000], pa.timestamp("ns")), pa.array([1], pa.timestamp("us")), False),
        (pa.array([D("1.5")], pa.decimal128(5, 1)), pa.array([D("1.50")], pa.decimal128(9, 2)), False),
        (pa.array([5], pa.int8()), pa.array([5], pa.int64()), False),
        (pa.array(["5"]), pa.array([5], pa.int64()), False),
        (pa.array([1], pa.duration("s")), pa.array([1000], pa.duration("ms")), False),
        (pa.array([NOON], pa.time32("ms")), pa.array([NOON], pa.time64("ns")), False),
        (pa.nulls(1), pa.array([5]), True),
        (pa.nulls(1), pa.nulls(1, pa.string()), False),
        (pa.nulls(1), pa.nulls(1), False),
    ],
    ids=str,
)
def test_a_column_whose_type_moves_differs_by_value(now: pa.Array, before: pa.Array, differ: bool) -> None:
    assert differs(pa.chunked_array([now]), pa.chunked_array([before])).to_pylist() == [differ]


def test_the_table_names_every_family_once() -> None:
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)
