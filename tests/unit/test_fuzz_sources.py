"""Whatever bytes a catalogue holds, `plan` ends with 0 or 3 and names the file; no traceback, no crash.

hypothesis makes tables and shards of nasty values, breaks some of them, and makes files of nothing but noise. FUZZ=5000
in the environment makes that many inputs of every format instead of the suite's few.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import io
import json
import os
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from jobs.__main__ import main

EXAMPLES = int(os.environ.get("FUZZ", "25"))
FUZZ = settings(
    max_examples=EXAMPLES,
    derandomize="FUZZ" not in os.environ,
    database=None,
    phases=[Phase.generate],  # the files are small: shrinking them would cost more than it tells
    suppress_health_check=list(HealthCheck),
)
ENDS: dict[str, Counter[int]] = {}

# Pieces that have broken readers of tables, more often than letters at random would hit them.
NASTY = st.sampled_from(
    [
        *("", " ", "0", "007", "-1", "1.5", "1e999", "NaN", "null", "true", "9223372036854775808", "2024-13-45"),
        *("2024-01-01", '"', "'", '""', "\n", "\r", "\r\n", "\0", "\t", ",", ";", "|", "\ufeff", "é", "\U0001f600"),
        *(
            "\u2028",
            "a\u0300",
            "[",
            "{",
            '["1.jpg", "2.jpg"]',
            "[1]",
            "../../../etc/passwd",
            "https://x/1.jpg",
            "s3://",
        ),
        *(
            "file:///x",
            "data:image/png;base64,AAAA",
            "data:,",
            "//cdn/1.jpg",
            "memory://m/1",
            "x" * 5000,
            "/",
            ".",
            "..",
        ),
        *("~", "http:", "://", "s3:///", "memory://", "file:", "file://host/x"),
    ]
)
TEXT = st.one_of(NASTY, st.text(max_size=8), st.lists(NASTY, max_size=3).map("".join))
KEYS = st.integers(0, 9999).map(str) | st.integers(0, 9999).map(str) | st.integers(0, 9999).map(str) | TEXT
PHOTOS = st.just("1.jpg") | st.just("1.jpg") | TEXT
NAMES = st.one_of(st.sampled_from(["colour", "size", "item_id", "image", "score", "é", "x.y"]), TEXT)
NUMBERS = st.one_of(st.integers(), st.sampled_from([2**63, -(2**63), 2**64, 10**400, 0]), st.floats())
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXT, st.sampled_from(["\ud800", "\udc00a"])),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXT, inner, max_size=3)),
    max_leaves=5,
)


@st.composite
def broken(draw: st.DrawFn, whole: st.SearchStrategy[bytes]) -> bytes:
    """Return bytes as they are, cut, with a piece exchanged or repeated, or noise."""
    data = draw(whole)
    way = draw(st.sampled_from([*["whole"] * 6, "cut", "changed", "doubled", "noise"]))
    if way == "noise":
        return draw(st.binary(max_size=200))
    if not data or way == "whole":
        return data
    at = draw(st.integers(0, len(data) - 1))
    if way == "cut":
        return data[:at]
    if way == "doubled":
        return data[:at] + data[max(0, at - 20) :]
    piece = draw(st.binary(min_size=1, max_size=4))
    return data[:at] + piece + data[at + len(piece) :]


@st.composite
def delimited(draw: st.DrawFn, delimiter: str) -> bytes:
    names = ["item_id", "image", *draw(st.just(["colour", "size"]) | st.lists(NAMES, max_size=2))]
    rows = draw(st.lists(st.tuples(KEYS, PHOTOS, TEXT, TEXT), max_size=5))
    quoted = draw(st.booleans())
    shown = [[f'"{cell}"' if quoted else cell for cell in row[: len(names)]] for row in rows]
    end = draw(st.sampled_from(["\n", "\r\n", "\r"]))
    text = end.join(delimiter.join(row) for row in [names, *shown])
    encoding = draw(st.sampled_from(["utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1", "cp1252"]))
    return text.encode(encoding, "replace")


@st.composite
def json_lines(draw: st.DrawFn) -> bytes:
    lines = []
    for _ in range(draw(st.integers(0, 5))):
        row: Any = {"item_id": draw(KEYS | KEYS | KEYS | JSON), "image": draw(PHOTOS | PHOTOS | PHOTOS | JSON)}
        row |= draw(st.fixed_dictionaries({"size": NUMBERS, "colour": TEXT}) | st.dictionaries(NAMES, JSON, max_size=2))
        row = draw(st.sampled_from([*[row] * 12, [row], None]))
        lines.append(json.dumps(row, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass"))
    return draw(st.sampled_from([b"\n", b"\n", b"\n", b"\r\n", b"\n\n", b" "])).join(lines)


ARROW: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (pa.string(), TEXT),
    (pa.large_string(), TEXT),
    (pa.int8(), st.integers(-128, 127)),
    (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    (pa.uint64(), st.integers(0, 2**64 - 1)),
    (pa.float16(), st.floats(width=16)),
    (pa.float64(), st.floats()),
    (pa.bool_(), st.booleans()),
    (pa.binary(), st.binary(max_size=8)),
    (pa.binary(2), st.binary(min_size=2, max_size=2)),
    (pa.decimal128(38, 2), st.decimals(-(10**9), 10**9, places=2)),
    (pa.date32(), st.dates()),
    (pa.timestamp("us"), st.datetimes()),
    (pa.timestamp("ms", "UTC"), st.datetimes()),
    (pa.time64("ns"), st.times()),
    (pa.duration("us"), st.timedeltas(dt.timedelta(days=-(10**8)), dt.timedelta(days=10**8))),
    (pa.list_(pa.string()), st.lists(TEXT, max_size=3)),
    (pa.list_(pa.binary()), st.lists(st.binary(max_size=3), max_size=3)),
    (
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
        st.fixed_dictionaries({"bytes": st.binary(max_size=8), "path": TEXT}),
    ),
    (pa.struct([("x", pa.int8())]), st.fixed_dictionaries({"x": st.integers(0, 9)})),
    (pa.null(), st.none()),
]  # fmt: skip


@st.composite
def column(draw: st.DrawFn, rows: int, fitting: st.SearchStrategy[Any] | None = None) -> pa.Array:
    if fitting is not None and draw(st.integers(0, 4)):
        return pa.array(draw(st.lists(fitting, min_size=rows, max_size=rows)), pa.string())
    kind, values = draw(st.sampled_from(ARROW))
    cells = draw(st.lists(st.one_of(values, values, values, st.none()), min_size=rows, max_size=rows))
    made = pa.array(cells, kind)
    flat = pa.types.is_string(kind) or pa.types.is_binary(kind) or pa.types.is_integer(kind)
    if pa.types.is_int64(kind) and draw(st.booleans()):  # moments and days far outside of the calendar
        return made.view(draw(st.sampled_from([pa.timestamp("us"), pa.duration("s"), pa.time64("us")])))
    if pa.types.is_binary(kind) and draw(st.booleans()):  # text that is no UTF-8
        return made.view(pa.string())
    return made.dictionary_encode() if flat and draw(st.booleans()) else made


@st.composite
def parquet(draw: st.DrawFn) -> bytes:
    rows = draw(st.integers(0, 4))
    names = ["item_id", "image", *draw(st.just(["colour", "size"]) | st.lists(NAMES, max_size=3))]
    columns = [draw(column(rows, KEYS)), draw(column(rows, PHOTOS)), *(draw(column(rows)) for _ in names[2:])]
    sink = io.BytesIO()
    pq.write_table(
        pa.Table.from_arrays(columns, names=names),
        sink,
        row_group_size=draw(st.sampled_from([1, 100])),
        compression=draw(st.sampled_from(["none", "snappy", "zstd"])),
        use_dictionary=draw(st.booleans()),
    )
    return sink.getvalue()


MEMBERS = st.one_of(
    st.sampled_from(
        ["a.jpg", "a.0.jpg", "a.1.jpg", "a.json", "a.cls", "b.jpg", "b.txt", "x/a.jpg", "caf\udce9.jpg", "a", "_b.jpg"]
    ),
    st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), min_size=1, max_size=8),
)


@st.composite
def tar(draw: st.DrawFn) -> bytes:
    sink = io.BytesIO()
    kind = draw(st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]))
    with tarfile.open(fileobj=sink, mode="w", format=kind) as shard:
        for name in draw(st.lists(MEMBERS, max_size=5)):
            data = draw(st.binary(max_size=20))
            if name.endswith(".json"):
                data = json.dumps(draw(JSON)).encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            info.type = draw(
                st.sampled_from([tarfile.REGTYPE] * 5 + [tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.FIFOTYPE])
            )
            info.mtime = draw(st.sampled_from([0, 1.5, 2**40]))
            shard.addfile(info, io.BytesIO(data) if info.isreg() else None)
    return sink.getvalue()


FILES = st.one_of(
    st.sampled_from([b"a.jpg", b"b.png", b"x/a.jpg", b"x/y/b.jpg", b".hidden.jpg", b"_x/a.jpg", b"caf\xe9.jpg"]),
    st.text(st.characters(exclude_characters="\0/", exclude_categories=["Cs"]), min_size=1, max_size=8).map(
        lambda name: f"{name}.jpg".encode()
    ),
    st.text(st.characters(exclude_characters="\0/", exclude_categories=["Cs"]), min_size=1, max_size=8).map(str.encode),
    st.integers(0, 99).map(lambda number: b"%d.jpg" % number),
).filter(lambda name: name not in (b".", b".."))

SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "attributes": st.sampled_from(["[]", "[]", "[colour]"]),
        "category": st.just("size"),
        "rows": st.just("photo"),
    },
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("fuzz")
    yield path
    for name, ends in ENDS.items():
        print(f"fuzz {name}: {sum(ends.values())} inputs, exits {dict(sorted(ends.items()))}")


def planned(folder: Path, source: Path, name: str, more: dict[str, str]) -> None:
    """Run `plan` and hold its end against what every night may count on."""
    settings = [f"catalogue.{key}={value}" for key, value in more.items()]
    words = [
        f"store={folder / 'store'}",
        f"catalogue.source={source}",
        "model.kind=descriptor",
        "images.size=32",
        *settings,
    ]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(["plan", "--json", *words])
    ENDS.setdefault(name, Counter())[code] += 1
    assert "Traceback" not in err.getvalue(), err.getvalue()
    assert code in (0, 3), err.getvalue()
    assert out.getvalue().isascii()
    answer = json.loads(out.getvalue())
    assert {"run", "release", "published", "reason"} <= answer.keys()
    if code == 3:
        assert str(source) in answer["error"] or "none of the catalogue's" in answer["error"], answer["error"]


TABLES: dict[str, tuple[str, Callable[[], st.SearchStrategy[bytes]]]] = {
    "parquet": ("c.parquet", parquet),
    "csv": ("c.csv", lambda: delimited(",")),
    "tsv": ("c.tsv", lambda: delimited("\t")),
    "jsonl": ("c.jsonl", json_lines),
    "tar": ("c.tar", tar),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLES)
def test_files_of_any_bytes(folder: Path, name: str) -> None:
    file, make = TABLES[name]
    (folder / name).mkdir()
    (folder / name / "1.jpg").write_bytes(b"no photo")

    @FUZZ
    @given(broken(make()), SETTINGS)
    def run(data: bytes, more: dict[str, str]) -> None:
        path = folder / name / file
        path.write_bytes(data)
        planned(folder, path, name, {} if name == "tar" and "category" in more else more)

    run()


@pytest.mark.slow
def test_folders_of_any_names(folder: Path) -> None:
    @FUZZ
    @given(st.lists(st.tuples(FILES, st.binary(max_size=8)), max_size=5), st.booleans())
    def run(files: list[tuple[bytes, bytes]], photo: bool) -> None:
        source = folder / "photos"
        shutil.rmtree(source, ignore_errors=True)
        source.mkdir()
        for name, data in files:
            path = os.path.join(os.fsencode(source), name)  # noqa: PTH118  a Path holds no bytes
            with contextlib.suppress(FileExistsError, NotADirectoryError, IsADirectoryError):
                os.makedirs(os.path.dirname(path), exist_ok=True)  # noqa: PTH103, PTH120
                with open(path, "wb") as handle:  # noqa: PTH123
                    handle.write(data)
        planned(folder, source, "folder", {"rows": "photo"} if photo else {})

    run()
