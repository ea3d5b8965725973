"""Tokens: which requests are made for them, counted, and what is missing or forbidden."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest

from pipeline.catalogue import CatalogueConfig, resolve_tokens
from pipeline.errors import (
    ClientRefused,
    ClientStale,
    CodebooksError,
    Forbidden,
    InputError,
    Misconfigured,
    NotFound,
    Unavailable,
)
from pipeline.schema import PHOTOS, REFUSAL
from pipeline.storage import Entry, Files, Places, open_store

CONFIG = CatalogueConfig(source="memory://tokens/c.csv")


class CountingFiles(Files):
    """Counts names listed and HEADs; refuses to list under `closed`."""

    def __init__(self, *, closed: str = "\0") -> None:
        super().__init__()
        self.listed: Counter[str] = Counter()
        self.heads: list[str] = []
        self._closed = closed

    def list(self, uri_prefix: str, *, after: str = "") -> Iterator[tuple[str, Entry]]:
        if uri_prefix.startswith(self._closed):
            raise Forbidden(f"{uri_prefix}: ListBucket denied")
        for pair in super().list(uri_prefix):
            self.listed[uri_prefix] += 1
            yield pair

    def stat(self, uri: str) -> Entry:
        self.heads.append(uri)
        return super().stat(uri)


def photos(uris: list[str], tokens: list[str | None] | None = None) -> pa.Table:
    rows = [
        {"item_id": f"{number:05}", "uri": uri, "view": 0, "token": tokens[number] if tokens else None}
        for number, uri in enumerate(uris)
    ]
    return pa.Table.from_pylist(rows, schema=pa.schema([*PHOTOS, pa.field("colour", pa.string())]))


def space(name: str, keys: list[str]) -> str:
    store = open_store(f"memory://{name}")
    for key in keys:
        store.put(key, key.encode())
    return f"memory://{name}"


def check(table: pa.Table, files: Files) -> None:
    """Every token is what a HEAD says, every refusal one that a HEAD finds."""
    assert table.column_names == [*PHOTOS.names, "colour", *REFUSAL.names]
    for row in table.to_pylist():
        try:
            expected = Files.stat(files, row["uri"]).token
            assert row["reason"] is None
        except NotFound:
            expected = ""
            assert (row["stage"], row["reason"]) == ("plan", "missing")
            assert row["uri"] in row["detail"] or "not there" in row["detail"]
        assert row["token"] == expected


def test_photos_in_few_folders_are_listed() -> None:
    keys = [f"img/{folder}/{number}.jpg" for folder in "abc" for number in range(50)]
    root = space("tokens-few", keys)
    files = CountingFiles()
    table, cost = resolve_tokens(photos([f"{root}/{key}" for key in keys]), CONFIG, files)
    check(table, files)
    assert files.heads == []
    assert (cost.listed, cost.heads) == (150, 0)
    assert sorted(files.listed) == [f"{root}/img/{folder}/" for folder in "abc"]


def test_a_folder_in_another_is_listed_once() -> None:
    keys = [*(f"img/{number}.jpg" for number in range(20)), *(f"img/sub/{number}.jpg" for number in range(20))]
    root = space("tokens-nested", keys)
    files = CountingFiles()
    table, cost = resolve_tokens(photos([f"{root}/{key}" for key in keys]), CONFIG, files)
    check(table, files)
    assert cost.listed == 40


def test_a_crowded_folder_is_given_up_for_heads() -> None:
    keys = [f"img/{number:05}.jpg" for number in range(2000)]
    root = space("tokens-crowded", keys)
    wanted = keys[-100:]  # the listing would find them last
    files = CountingFiles()
    table, cost = resolve_tokens(photos([f"{root}/{key}" for key in wanted]), CONFIG, files)
    check(table, files)
    assert sum(files.listed.values()) == cost.listed == 4 * 100 + 1000 + 1
    assert sorted(files.heads) == [f"{root}/{key}" for key in wanted]
    assert cost.heads == 100


def test_what_a_stopped_listing_found_is_used() -> None:
    keys = [f"img/{number:05}.jpg" for number in range(3000)]
    root = space("tokens-partly", keys)
    wanted = keys[::30]
    files = CountingFiles()
    table, cost = resolve_tokens(photos([f"{root}/{key}" for key in wanted]), CONFIG, files)
    check(table, files)
    assert cost.listed == 1401
    assert cost.heads == sum(int(key[4:9]) >= 1400 for key in wanted)


def test_one_folder_an_item_is_listed_from_above() -> None:
    keys = [f"img/{number:04}/front.jpg" for number in range(300)]
    root = space("tokens-items", keys)
    files = CountingFiles()
    table, cost = resolve_tokens(photos([f"{root}/{key}" for key in keys]), CONFIG, files)
    check(table, files)
    assert list(files.listed) == [f"{root}/img/"]
    assert (cost.listed, cost.heads) == (300, 0)


def test_folders_that_may_not_be_listed_are_asked_photo_by_photo() -> None:
    keys = [f"img/{number}.jpg" for number in range(30)]
    root = space("tokens-closed", keys)
    files = CountingFiles(closed=root)
    table, cost = resolve_tokens(photos([f"{root}/{key}" for key in [*keys, "img/gone.jpg"]]), CONFIG, files)
    check(table, files)
    assert (cost.listed, cost.heads) == (0, 31)


def test_missing_photos_are_confirmed_but_not_by_the_thousand() -> None:
    keys = [f"img/{number:05}.jpg" for number in range(200)]
    root = space("tokens-missing", keys)
    files = CountingFiles()
    gone = [f"img/gone-{number:05}.jpg" for number in range(1500)]
    table, cost = resolve_tokens(photos([f"{root}/{key}" for key in [*keys, *gone]]), CONFIG, files)
    check(table, files)
    assert (cost.listed, cost.heads) == (200, 1000)
    assert table["reason"].to_pylist().count("missing") == 1500


def test_a_listing_that_spells_uris_otherwise_proves_nothing() -> None:
    class Odd(CountingFiles):
        def list(self, uri_prefix: str, *, after: str = "") -> Iterator[tuple[str, Entry]]:
            for uri, entry in super().list(uri_prefix):
                yield uri.replace(".jpg", ".JPG"), entry

    keys = [f"img/{number:05}.jpg" for number in range(1500)]
    root = space("tokens-odd", keys)
    files = Odd()
    table, cost = resolve_tokens(photos([f"{root}/{key}" for key in keys]), CONFIG, files)
    check(table, files)
    assert cost.heads == 1500


def test_shared_photos_are_asked_for_once_and_set_tokens_stay() -> None:
    root = space("tokens-shared", ["a.jpg", *(f"{number}" for number in range(2000))])
    files = CountingFiles()
    uris = [f"{root}/a.jpg"] * 3 + [f"{root}/never-asked.jpg", "", "sha256:1"]
    table, cost = resolve_tokens(photos(uris, [None, None, None, "version:7", None, "sha256:1"]), CONFIG, files)
    token = Files().stat(f"{root}/a.jpg").token
    assert table["token"].to_pylist() == [token] * 3 + ["version:7", "", "sha256:1"]
    assert cost.heads == len(files.heads) == 1
    assert table["reason"].to_pylist() == [None] * 4 + ["no_image", None]
    assert table["detail"].to_pylist()[4] == "the catalogue names no photo for this item"


def test_nothing_to_ask_asks_nothing() -> None:
    files = CountingFiles(closed="")
    table, cost = resolve_tokens(photos(["memory://x/a"], ["version:1"]), CONFIG, files)
    assert (cost.listed, cost.heads, cost.revalidated) == (0, 0, 0)
    assert files.heads == []
    assert table["stage"].null_count == 1


def test_heads_run_side_by_side_and_forbidden_ones_are_refused() -> None:
    barrier = threading.Barrier(32, timeout=100)

    class Slow(CountingFiles):
        def stat(self, uri: str) -> Entry:
            if uri not in self.heads:
                self.heads.append(uri)
                barrier.wait()  # passes only when 32 are asked at once; a refusal is asked about once more
            if uri.endswith("7.jpg"):
                raise Forbidden(f"{uri}: HTTP 403")
            return super(CountingFiles, self).stat(uri)

    keys = [f"{number:02}.jpg" for number in range(64)]
    root = space("tokens-slow", keys)
    table, _ = resolve_tokens(photos([f"{root}/{key}" for key in keys]), CONFIG, Slow(closed=root))
    reasons = dict(zip(keys, table["reason"].to_pylist(), strict=True))
    assert {key for key, reason in reasons.items() if reason == "forbidden"} == {key for key in keys if key[1] == "7"}


def test_a_photo_that_does_not_answer_is_refused_and_a_bucket_that_does_not_stops_the_plan() -> None:
    class Failing(CountingFiles):
        """Answers no HEAD of names with an `x`; lists nothing at all where `away`."""

        away = False

        def list(self, uri_prefix: str, *, after: str = "") -> Iterator[tuple[str, Entry]]:
            if self.away:
                raise Unavailable(f"{uri_prefix}: HTTP 503")
            return super().list(uri_prefix)

        def stat(self, uri: str) -> Entry:
            if "x" in uri.rpartition("/")[2]:
                raise Unavailable(f"{uri}: HTTP 503 SlowDown; 8 tries in 60.0 s")
            return super().stat(uri)

    keys = ["a.jpg", *(f"x{number:02}.jpg" for number in range(30))]
    root = space("tokens-failing", keys)
    asked = photos([f"{root}/{key}" for key in keys])
    table, _ = resolve_tokens(asked, CONFIG, Failing(closed=root))
    assert table["reason"].to_pylist() == [None] + ["unreachable"] * 30
    assert table["token"].to_pylist()[1:] == [""] * 30
    assert table["detail"][1].as_py() == f"{root}/x00.jpg: HTTP 503 SlowDown; 8 tries in 60.0 s"
    away = Failing()
    away.away = True
    with pytest.raises(Unavailable, match=rf"{root}: no answer to \d+ photos in a row, nor to a listing; .*SlowDown"):
        resolve_tokens(asked.slice(1), CONFIG, away)


@pytest.mark.parametrize("fault", [ClientStale, ClientRefused, Misconfigured])
def test_what_is_wrong_with_who_asks_stops_the_plan(fault: type[CodebooksError]) -> None:
    class Failing(CountingFiles):
        def stat(self, uri: str) -> Entry:
            raise fault("RequestTimeTooSkewed")

    root = space(f"tokens-{fault.__name__}", ["a.jpg"])
    with pytest.raises(fault, match="RequestTimeTooSkewed"):
        resolve_tokens(photos([f"{root}/a.jpg"]), CONFIG, Failing(closed=root))


class Web(Files):
    """Answers https without a network: `a` has an ETag, `b` has none, `c` is gone."""

    def __init__(self) -> None:
        super().__init__(places=Places(("https://cdn.example/",)))
        self.asked: list[tuple[str, Any]] = []

    def stat(self, uri: str) -> Entry:
        self.asked.append(("HEAD", uri[-1]))
        if uri.endswith("b"):
            raise InputError(f"{uri}: the server gives no ETag")
        if uri.endswith("c"):
            raise NotFound(f"{uri} is not there (HTTP 404)")
        return Entry(uri, 1, 'etag:"new"', Files().stat(__file__).modified)

    def revalidate(self, uri: str, token: str | None) -> Any:
        self.asked.append((token, uri[-1]))
        now = "sha256:beef" if uri.endswith("b") else 'etag:"new"'
        return ("same" if now == token else "changed"), now


def test_https_photos_are_asked_for_or_revalidated() -> None:
    uris = [f"https://cdn.example/{name}" for name in "abc"]
    web = Web()
    table, cost = resolve_tokens(photos(uris), CONFIG, web)
    assert table["token"].to_pylist() == ['etag:"new"', "sha256:beef", ""]
    assert table["reason"].to_pylist() == [None, None, "missing"]
    assert (cost.heads, cost.revalidated) == (3, 0)
    known = pa.table({"uri": uris, "token": ['etag:"new"', "sha256:beef", "version:1"]})
    web = Web()
    table, cost = resolve_tokens(photos(uris), CONFIG, web, known=known)
    assert table["token"].to_pylist() == ['etag:"new"', "sha256:beef", ""]
    assert sorted(web.asked, key=str) == sorted([("HEAD", "c"), ('etag:"new"', "a"), ("sha256:beef", "b")], key=str)
    assert (cost.heads, cost.revalidated) == (1, 2)
