"""Five products as shops export them, in many ways: the same photos, or a refusal that names what is wrong."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.catalogue import CatalogueConfig, read_photos
from pipeline.catalogue.proposal import propose
from pipeline.errors import ConfigError, InputError
from pipeline.storage import Files

HOST = "https://cdn.shop.example/"
PRODUCTS = [
    ("sku-1", "Größe 5, rot", ["photos/1.jpg"]),
    ("sku-2", 'Cable "long"; 1.5 m', ["photos/2 front.jpg", "photos/2 back.jpg"]),
    ("sku-3", "Café | thé", [f"{HOST}w_200,h_300/3.jpg", f"{HOST}w_200,h_300/3;b.jpg"]),
    ("sku-4", "Plain", ["photos/4.jpg"]),
    ("sku-5", "Naïve façade", ["photos/5.jpg", "photos/5,b.jpg", "photos/5c.jpg"]),
]
# The same with one photo each, for feeds that cannot hold more.
FIRST = [(key, title, images[:1]) for key, title, images in PRODUCTS]
# The web's addresses may hold what also stands between them.
WEB = [
    (key, title, [f"{HOST}w_200,h_300;q|1/{image.split('/')[-1].replace(' ', '-')}" for image in images])
    for key, title, images in PRODUCTS
]
NAMES = ["item_id", "title", "image"]


def table(rows: list[list[str]], **style: Any) -> str:
    """Write rows by Python's own writer."""
    out = io.StringIO(newline="")
    csv.writer(out, **{"lineterminator": "\n", **style}).writerows(rows)
    return out.getvalue()


def rows(products: Any = PRODUCTS, join: Callable[[list[str]], str] = json.dumps) -> list[list[str]]:
    return [NAMES, *([key, title, join(images)] for key, title, images in products)]


def one(products: Any = FIRST) -> list[list[str]]:
    return rows(products, lambda images: images[0])


@dataclass(frozen=True)
class Feed:
    """data: the file. settings: what the config has to say. init: whether init finds them out by itself."""

    name: str
    data: bytes
    products: Any = field(default_factory=lambda: PRODUCTS)
    settings: dict[str, Any] = field(default_factory=dict)
    init: bool = True
    file: str = "feed.csv"


def zipped(files: dict[str, str]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


def lines(products: Any = PRODUCTS) -> str:
    found = [{"item_id": key, "title": title, "image": images} for key, title, images in products]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found)


def objects() -> str:
    """Paths as Hugging Face writes photos."""
    found = [{"item_id": k, "title": t, "image": {"bytes": None, "path": images[0]}} for k, t, images in FIRST]
    return "".join(json.dumps(row) + "\n" for row in found)


def parquet(image: Any, cells: list[Any]) -> bytes:
    out = io.BytesIO()
    keys, titles = [p[0] for p in PRODUCTS], [p[1] for p in PRODUCTS]
    pq.write_table(pa.table({"item_id": keys, "title": titles, "image": pa.array(cells, image)}), out)
    return out.getvalue()


PATHS = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
NO_BYTES = pa.struct([("bytes", pa.null()), ("path", pa.string())])
COMMA = table(rows())
SEMICOLON = table(rows(), delimiter=";")
ONE = table(one())
TABS = "".join("\t".join(row) + "\n" for row in one())


FEEDS = [
    Feed("comma", COMMA.encode()),
    Feed("semicolon", SEMICOLON.encode()),
    Feed("tabs without quotes", TABS.encode(), FIRST, file="feed.tsv"),
    Feed("tabs, all in quotes", table(rows(), delimiter="\t", quoting=csv.QUOTE_ALL).encode(), file="feed.tsv"),
    Feed("Unicode text of a workbook", b"\xff\xfe" + TABS.encode("utf-16-le"), FIRST, file="feed.txt"),
    Feed("tabs in a .csv", table(rows(), delimiter="\t").encode()),
    Feed("bars", table(rows(), delimiter="|").encode()),
    Feed("caret", table(rows(), delimiter="^").encode(), settings={"delimiter": "^"}, init=False),
    Feed("section sign", table(rows(), delimiter="§").encode(), settings={"delimiter": "§"}, init=False),
    Feed(
        "two bars",
        table(rows(), delimiter="\x1f").replace("\x1f", "||").encode(),
        settings={"delimiter": "||"},
        init=False,
    ),
    Feed("a tab as the shell gives it", TABS.encode(), FIRST, {"delimiter": "\\t", "quoting": "none"}),
    Feed("all in quotes", table(rows(), quoting=csv.QUOTE_ALL).encode()),
    Feed("CRLF", table(rows(), lineterminator="\r\n").encode()),
    Feed("CR only", table(rows(), lineterminator="\r").encode()),
    Feed("no line break at the end", COMMA.rstrip("\n").encode()),
    Feed("UTF-8 with a mark", b"\xef\xbb\xbf" + COMMA.encode()),
    Feed("UTF-8 with a mark, named so", b"\xef\xbb\xbf" + COMMA.encode(), settings={"encoding": "utf-8-sig"}),
    Feed("UTF-16, little first", b"\xff\xfe" + SEMICOLON.encode("utf-16-le")),
    Feed("UTF-16, big first", b"\xfe\xff" + SEMICOLON.encode("utf-16-be")),
    Feed("UTF-16 without a mark", SEMICOLON.encode("utf-16-le")),
    Feed("UTF-16, big, without a mark", SEMICOLON.encode("utf-16-be"), settings={"encoding": "utf-16"}),
    Feed("cp1252", SEMICOLON.encode("cp1252"), settings={"encoding": "cp1252"}),
    Feed("latin-1, CRLF", COMMA.replace("\n", "\r\n").encode("latin-1"), settings={"encoding": "latin-1"}),
    Feed("sep line", b"sep=;\r\n" + SEMICOLON.encode()),
    Feed("sep line in quotes, against the count", b'"sep=|"\n' + table(rows(), delimiter="|").encode()),
    Feed("sep line of a tab", b"sep=\t\n" + table(rows(), delimiter="\t").encode()),
    Feed("blank first lines", b"\n  \r\n" + COMMA.encode()),
    Feed("blank lines between and after", COMMA.replace("\n", "\n\n").encode() + b"\n \n"),
    Feed("empty rows of a workbook", SEMICOLON.encode() + b';;\n;"";\n;\n  ;;\n'),
    Feed("names and cells padded", TABS.replace("\t", " \t\u00a0").replace("\n", "  \n").encode(), FIRST, file="f.tsv"),
    Feed("spaces before quotes", table(rows(), quoting=csv.QUOTE_ALL).replace('","', '", "').encode()),
    Feed("spaces before quotes, not in the header", COMMA.replace(',"', ', "').encode()),
    Feed("a delimiter at every end", "".join(f"{line};\n" for line in SEMICOLON.splitlines()).encode()),
    Feed(
        "a delimiter at the end of all but the header",
        SEMICOLON.replace("\n", ";\n").replace(";\n", "\n", 1).encode(),
    ),
    Feed("an index without a name", table([["", *NAMES], *([str(n), *r] for n, r in enumerate(rows()[1:]))]).encode()),
    Feed("gzip", gzip.compress(COMMA.encode()), file="feed.csv.gz"),
    Feed("gzip under another name", gzip.compress(COMMA.encode())),
    Feed("zip of one file", zipped({"__MACOSX/x": "", "feed.csv": COMMA}), file="feed.csv.zip"),
    Feed("addresses in lines", table(rows(join="\n".join)).encode(), settings={"image_separator": "\n"}),
    Feed("addresses after commas", table(rows(WEB, ",".join)).encode(), WEB, {"image_separator": ","}),
    Feed("addresses after commas and spaces", table(rows(WEB, ", ".join)).encode(), WEB, {"image_separator": ","}),
    Feed("addresses after semicolons", table(rows(WEB, ";".join)).encode(), WEB, {"image_separator": ";"}),
    Feed("addresses after spaces", table(rows(WEB, " ".join)).encode(), WEB, {"image_separator": " "}),
    Feed(
        "addresses after commas, in Parquet",
        parquet(pa.string(), [",".join(p[2]) for p in WEB]),
        WEB,
        {"image_separator": ","},
        file="feed.parquet",
    ),
    Feed("addresses without a scheme", COMMA.replace("https://cdn", "//cdn").encode()),
    Feed("addresses in capitals", COMMA.replace("https://cdn", "HTTPS://CDN").encode()),
    Feed("addresses between bars", table(rows(join="|".join)).encode(), settings={"image_separator": "|"}),
    Feed("addresses between bars, spaced", table(rows(join=" | ".join)).encode(), settings={"image_separator": "|"}),
    Feed("JSON lines", lines().encode(), file="feed.jsonl"),
    Feed("JSON lines with a mark, CRLF", b"\xef\xbb\xbf" + lines().replace("\n", "\r\n").encode(), file="feed.jsonl"),
    Feed("JSON lines in UTF-16", lines().encode("utf-16"), file="feed.ndjson"),
    Feed("JSON lines in cp1252", lines().encode("cp1252"), settings={"encoding": "cp1252"}, file="feed.jsonl"),
    Feed("JSON lines of objects", objects().encode(), FIRST, file="feed.jsonl"),
    Feed("Parquet of lists", parquet(pa.list_(pa.string()), [p[2] for p in PRODUCTS]), file="feed.parquet"),
    Feed("Parquet of paths", parquet(PATHS, [{"path": p[2][0]} for p in PRODUCTS]), FIRST, file="feed.parquet"),
    Feed("Parquet without bytes", parquet(NO_BYTES, [{"path": p[2][0]} for p in PRODUCTS]), FIRST, file="feed.parquet"),
]


def expected(products: Any, base: Path) -> list[tuple[str, str, int, str]]:
    return [
        (key, image if "//" in image else f"{base}/{image}", view, title)
        for key, title, images in products
        for view, image in enumerate(images)
    ]


def found(config: CatalogueConfig) -> list[tuple[str, str, int, str]]:
    photos = read_photos(config, Files())
    return list(zip(*(photos[name].to_pylist() for name in ("item_id", "uri", "view", "title")), strict=True))


@pytest.mark.parametrize("feed", FEEDS, ids=lambda feed: feed.name)
def test_one_catalogue_exported_in_many_ways(tmp_path: Path, feed: Feed) -> None:
    source = tmp_path / feed.file
    source.write_bytes(feed.data)
    config = CatalogueConfig(source=str(source), allowed_prefixes=(HOST,), **feed.settings)
    assert found(config) == expected(feed.products, tmp_path)
    if feed.init:
        proposal = propose(str(source))
        assert found(proposal.config) == expected(feed.products, tmp_path)
        assert proposal.tried.examples[0] == expected(feed.products, tmp_path)[0][:2]


REFUSED = [
    Feed(
        "cp1252 unsaid", SEMICOLON.encode("cp1252"), ["line 2", "byte", "0xf6", "catalogue.encoding", "'sku-1;Größe 5,"]
    ),
    Feed(
        "cp1252 unsaid, in JSON lines",
        lines().encode("cp1252"),
        ["row(s) 1, 3, 5 of ", "is no UTF-8", "catalogue.encoding"],
        file="feed.jsonl",
    ),
    Feed(
        "half a character of UTF-16",
        b"\xff\xfe" + SEMICOLON.encode("utf-16-le")[:-1],
        ["line 6", "byte 740", "utf-16-le", "trunc"],
    ),
    Feed("a row too long", COMMA.encode() + b"sku-6,x,a.jpg,more\n", ["line 7 has 4", "'sku-6,x,a.jpg,more'"]),
    Feed("a row too short", COMMA.encode() + b"sku-6,x\n", ["line 7 has 2", "3 columns", "delimited by ','"]),
    Feed(
        "a quote never closed",
        ONE.replace("Plain", '"Plain').encode(),
        ["line 5", "'Plain,photos/4.jpg'", "not closed up to the end"],
    ),
    Feed(
        "a quote closed rows later",
        b'item_id,title,image\na,"one,1.jpg\nb,two,2.jpg\nc,three",3.jpg\n',
        ["lines 2 to 4 are one row", "catalogue.quoting: none"],
    ),
    Feed(
        "a quote closed amid another cell",
        b'item_id,title,image\na,"one,1.jpg\nb,"two",2.jpg\n',
        ["line 2", "closed amid a cell on line 3", "'one,1.jpg'"],
    ),
    Feed("two columns of one name", b"item_id,image,image\na,1,2\n", ["more than one column named 'image'"]),
    Feed("two files in a zip", zipped({"a.csv": COMMA, "b.csv": COMMA}), ["zip archive of 2 files", "a.csv"]),
    Feed("a damaged zip", zipped({"a.csv": COMMA}).replace(b"PK\x05\x06", b"PK\x05\x07"), ["is damaged"]),
    Feed("a zip with wrong places", zipped({"a.csv": COMMA}).replace(b"a.csv", b"", 1), ["unpack"]),
    Feed(
        "a row too long beside a byte of another encoding",
        ONE.encode() + b"k,\xe9t\xe9,a.jpg,more\n",
        ["line 7: byte 230 (0xe9) is no UTF-8", "'k,été,a.jpg,mo'"],
    ),
    Feed("a workbook", zipped({"xl/workbook.xml": "<x/>", "x": ""}), ["Excel workbook", "CSV UTF-8"]),
    Feed("a workbook by name", b"PK", ["is a workbook", "CSV UTF-8"], file="feed.xlsx"),
    Feed("a login page", b"\n<!DOCTYPE html><html>", ["web page", "needs no login"]),
    Feed("XML", b"\xef\xbb\xbf<?xml version='1.0'?><rss/>", ["is XML"]),
    Feed("Parquet under another name", parquet(pa.string(), ["a"] * 5), ["Parquet", "catalogue.format: parquet"]),
    Feed("zstandard", b"\x28\xb5\x2f\xfd....", ["packed by zstandard"]),
    Feed(
        "a JSON list", f"[{lines().strip().replace(chr(10), ',')}]".encode(), ["JSON list", "one a line"], file="f.json"
    ),
    Feed("no byte", b"", ["is empty"]),
    Feed("blank lines only", b"\n\r\n \n", ["holds empty lines only"]),
    Feed("a sep line only", b"sep=;\n", ["no more than a sep= line"]),
    Feed("a header only", b"item_id,title,image\n", ["a header and no rows"]),
]


@pytest.mark.parametrize("name", ["encoding", "delimiter", "quoting", "image_separator"])
def test_settings_of_text_are_refused_where_there_is_none(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    value = "none" if name == "quoting" else "utf-8" if name == "encoding" else ";"
    with pytest.raises(ConfigError, match=f"catalogue.{name} is '{value}'.*read as folder"):
        read_photos(CatalogueConfig(source=str(tmp_path), **{name: value}), Files())


@pytest.mark.parametrize("feed", REFUSED, ids=lambda feed: feed.name)
def test_feeds_that_cannot_be_read_are_refused_by_name(tmp_path: Path, feed: Feed) -> None:
    source = tmp_path / feed.file
    source.write_bytes(feed.data)
    with pytest.raises(InputError) as caught:
        found(CatalogueConfig(source=str(source), **feed.settings))
    for part in (str(source), *feed.products):
        assert part in str(caught.value)
