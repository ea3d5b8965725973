"""Semantic IDs, a second release and variances over HTTP, held to the reader and to what was written."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import numpy as np
import pyarrow as pa
import pytest

pytest.importorskip("starlette")

from jobs.__main__ import main
from pipeline.index import IndexConfig, LatentArrays
from pipeline.reader import open_release
from pipeline.release import delist
from pipeline.serving import ServeConfig, application
from pipeline.storage import Store, open_store

LEVELS, EPOCH = (4, 3), 7
Answered = tuple[int, Any]


@pytest.fixture(autouse=True)
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


def asked(store: Store, *requests: tuple[Any, ...], before: Callable[[Any], Any] | None = None, **changes: Any) -> Any:
    """Return (status, JSON) of each request (path, {query}, body or nothing) to a running application.

    before: awaited with the service first.
    """

    async def ask(app: Any, path: str, query: dict[str, Any], body: Any = None) -> Answered:
        data = b"" if body is None else json.dumps(body).encode()
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": "http", "root_path": "",
            "method": "GET" if body is None else "POST", "path": path, "raw_path": quote(path).encode(),
            "query_string": urlencode(query).encode(), "headers": [(b"content-type", b"application/json")],
            "server": ("test", 80), "client": ("test", 1),
        }  # fmt: skip
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.request", "body": data, "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        await app(scope, receive, send)
        return sent[0]["status"], json.loads(b"".join(each.get("body", b"") for each in sent[1:]))

    async def run() -> list[Answered]:
        app = application(ServeConfig(**{"store_url": store.url, "poll_s": 3600, **changes}))
        async with app.router.lifespan_context(app):
            if before is not None:
                await before(app.state.service)
            return [await ask(app, *request) for request in requests]

    return asyncio.run(run())


def pairs(rows: Any) -> list[tuple[str, float]]:
    return [(row["item_id"], row["score"]) for row in rows]


def ids_of(near: Any) -> list[tuple[str, float]]:
    return [(each.item_id, each.score) for each in near]


def some_sids(maker: Any, item_ids: list[str]) -> tuple[dict[str, tuple[int, ...]], Callable[[Any], Any]]:
    """Return codes and suffix of each item, and what puts them into a release, as a refresh writes them."""
    generator, seen, given = np.random.default_rng(3), dict[tuple[int, ...], int](), {}
    for item_id in item_ids:
        codes = tuple(int(generator.integers(size)) for size in LEVELS)
        given[item_id] = (*codes, seen.get(codes, 0))
        seen[codes] = seen.get(codes, 0) + 1
    rows = sorted(given.items(), key=lambda pair: pair[1])
    table = pa.table({
        "item_id": [item_id for item_id, _ in rows],
        "codes": pa.array([sid[:-1] for _, sid in rows], pa.list_(pa.int16(), len(LEVELS))),
        "suffix": pa.array([sid[-1] for _, sid in rows], pa.int32()),
    })  # fmt: skip
    fact = {"semantic_ids": {"levels": list(LEVELS), "epoch": EPOCH}}
    files = {"semantic_ids": (maker.table_bytes(table), ".parquet", len(table))}
    return given, lambda fields: {**fields, "files": {**fields["files"], **files}, "inputs": fact}


def test_semantic_ids_are_those_that_were_written(store: Store, maker: Any) -> None:
    photos = maker.some_photos(40)
    given, change = some_sids(maker, sorted({photo.item_id for photo in photos}))
    maker.make_release(store, photos, change=change)
    first = given["sku-005"][0]
    behind = sorted((sid, item_id) for item_id, sid in given.items() if sid[0] == first)
    prefixes: list[tuple[int, ...]] = [(), (first,), given["sku-005"][:2]]
    got = asked(
        store,
        ("/sids/sku-005", {}),
        *(("/sids", {"prefix": ",".join(map(str, prefix)), "limit": 1000}) for prefix in prefixes),
        ("/sids", {"prefix": str(first), "limit": 2}),
        ("/sids/nobody", {}),
        *(("/sids", {"prefix": prefix}) for prefix in ("9", "1,2,0", "1,", "-1", "a", "1" * 10)),
        ("/similar/sku-005", {"k": 40, "where": json.dumps({"sid_prefix": [first]})}),
        ("/search", {}, {"vectors": [[1.0] * 6], "k": 40, "where": {"sid_prefix": [first], "category": "Hats"}}),
        ("/baskets", {}, {"item_ids": ["sku-005"], "k": 40, "where": {"sid_prefix": [first]}}),
    )
    assert [status for status, _ in got] == [200] * 5 + [404] + [422] * 6 + [200] * 3
    (_, one), *lists = got[:4]
    a, b, suffix = given["sku-005"]
    assert one == {**one, "codes": [a, b], "suffix": suffix, "token": f"<a_{a}><b_{b}><c_{suffix}>", "sid_epoch": EPOCH}
    release = open_release(store.url)
    for prefix, (_, told) in zip(prefixes, lists, strict=True):
        expected = sorted((sid, item_id) for item_id, sid in given.items() if sid[: len(prefix)] == prefix)
        assert [((*row["codes"], row["suffix"]), row["item_id"]) for row in told["sids"]] == expected
        assert [row["item_id"] for row in told["sids"]] == release.items(prefix)
        assert (told["items"], told["sid_epoch"], told["levels"]) == (len(expected), EPOCH, list(LEVELS))
        # Negative control: their order is not that of item_id.
        assert len(prefix) == 2 or [item_id for _, item_id in expected] != sorted(item_id for _, item_id in expected)
    assert [row["item_id"] for row in got[4][1]["sids"]] == [item_id for _, item_id in behind[:2]]
    assert got[4][1]["items"] == len(behind) > 2
    errors = [told["error"] for _, told in got[6:12]]
    assert "code 9 of level 1 is not one of 0 to 3" in errors[0]
    assert "up to 2 whole numbers" in errors[1]
    assert all("whole numbers with commas" in error for error in errors[2:])
    others = {item_id for _, item_id in behind} - {"sku-005"}
    assert {row["item_id"] for row in got[12][1]["neighbours"]} == others
    assert got[13][1]["answers"][0]
    assert {row["item_id"] for row in got[13][1]["answers"][0]} < {*others, "sku-005"}
    assert {row["item_id"] for row in got[14][1]["neighbours"]} == others
    delist(store, [behind[0][1]], owner="shop", reason="sold out")
    ((_, told), (status, gone)) = asked(store, ("/sids", {"prefix": str(first)}), (f"/sids/{behind[0][1]}", {}))
    assert [row["item_id"] for row in told["sids"]] == [item_id for _, item_id in behind[1:]]
    assert (told["items"], status, "delisted" in gone["error"]) == (len(behind) - 1, 404, True)


def test_a_release_without_semantic_ids_says_so(store: Store, maker: Any) -> None:
    maker.make_release(store, maker.some_photos(9))
    prefix = {"sid_prefix": [1]}
    got = asked(
        store,
        ("/sids", {}),
        ("/sids/sku-001", {}),
        ("/similar/sku-001", {"where": json.dumps(prefix)}),
        ("/search", {}, {"vectors": [[1.0] * 6], "where": prefix}),
        ("/baskets", {}, {"item_ids": ["sku-001"], "where": prefix}),
    )
    assert [status for status, _ in got] == [404, 404, 422, 422, 422]
    assert all("semantic_ids" in told["error"] and "refresh" in told["error"] for _, told in got)


def test_two_releases_answer_beside_each_other(store: Store, maker: Any) -> None:
    maker.make_release(store, maker.some_photos(40), run="first")
    later = [replace(photo, stock=None) for photo in maker.some_photos(39, seed=5)]
    maker.make_release(store, later, run="second", channel="canary", model_id="cd" * 32)
    requests = [
        ("/similar/sku-003", {"k": 6, "beside": "true"}),
        ("/similar/sku-003", {"k": 6}),
        ("/similar/sku-039", {"k": 6, "beside": "true"}),
        ("/similar/sku-003", {"beside": "yes"}),
        ("/readyz", {}),
    ]
    first, second = open_release(store.url), open_release(store.url, channel="canary")
    for name in ("canary", second.release_id):
        both, alone, only, wrong, ready = asked(store, *requests, beside=name, expect_model=maker.MODEL)
        assert (both[1]["release_id"], both[1]["model_id"]) == (first.release_id, maker.MODEL)
        assert pairs(both[1]["neighbours"]) == ids_of(first.similar("sku-003", 6))
        beside = both[1]["beside"]
        assert (beside["release_id"], beside["model_id"], beside["error"]) == (second.release_id, "cd" * 32, None)
        assert pairs(beside["neighbours"]) == ids_of(second.similar("sku-003", 6))
        assert pairs(beside["neighbours"]) != pairs(both[1]["neighbours"]), "negative control: they differ"
        assert "beside" not in alone[1]
        assert pairs(only[1]["neighbours"]) == ids_of(first.similar("sku-039", 6)), "the second lacks the item"
        assert only[1]["beside"]["neighbours"] is None
        assert "sku-039" in only[1]["beside"]["error"]
        assert (wrong[0], "'yes'" in wrong[1]["error"]) == (422, True)
        assert ready[1]["beside"] == {"release_id": second.release_id, "model_id": "cd" * 32, "problem": None}


def test_the_second_release_follows_its_channel_and_never_stops_the_first(store: Store, maker: Any) -> None:
    maker.make_release(store, maker.some_photos(20), run="first")
    request = ("/similar/sku-003", {"beside": "true"})
    none, missing, ready, still = (
        asked(store, request)[0],
        *asked(store, request, ("/readyz", {}), ("/similar/sku-003", {}), beside="canary"),
    )
    assert (none[0], "--beside RELEASE_OR_CHANNEL" in none[1]["error"]) == (422, True)
    assert (missing[0], ready[0], still[0]) == (503, 200, 200)
    for told in (missing[1]["error"], ready[1]["beside"]["problem"]):
        assert "--beside is 'canary', which is neither a channel that has a release (there are: stable)" in told

    async def moved(service: Any) -> None:
        for run in ("second", "third"):
            maker.make_release(store, maker.some_photos(20, seed=2), run=run, channel="canary")
            await service.second.look()
        assert 'workers{release_id="first-' in service.counts.text()
        assert "swaps_total 0" in service.counts.text()

    ((_, told),) = asked(store, request, before=moved, beside="canary")
    assert (told["release_id"], told["beside"]["release_id"]) == ("first-0123456789ab", "third-0123456789ab")


def test_a_name_that_is_no_release_and_no_channel_is_refused(store: Store, maker: Any, capsys: Any) -> None:
    maker.make_release(store, maker.some_photos(5))
    assert main(["serve", f"store={store.url}", "--beside", "a b"]) == 2
    assert "--beside is 'a b'" in capsys.readouterr().err


def test_variances_are_taken_where_the_metric_compares_them(store: Store, maker: Any) -> None:
    generator = np.random.default_rng(8)
    photos = [
        replace(photo, log_var=generator.normal(-2, 1, maker.DIM).astype(np.float32)) for photo in maker.some_photos(30)
    ]
    maker.make_release(store, photos, index=IndexConfig(metric="kl"))
    maker.make_release(store, maker.some_photos(9), run="plain", channel="plain")
    mean, log_var = generator.normal(size=(3, maker.DIM)).round(3), generator.normal(-2, 1, (3, maker.DIM)).round(3)
    both = {"vectors": mean.tolist(), "log_vars": log_var.tolist(), "k": 5}
    got = asked(
        store,
        ("/search", {}, both),
        ("/search", {}, {"vectors": both["vectors"]}),
        ("/search", {}, {**both, "log_vars": both["log_vars"][:2]}),
        ("/search", {}, {**both, "log_vars": [[1.0] * 5] * 3}),
        ("/search", {}, {**both, "log_vars": [[1e300] * 6] * 3}),
    )
    assert [status for status, _ in got] == [200, 422, 422, 422, 422]
    release = open_release(store.url)
    queries = LatentArrays(mean.astype(np.float32), log_var.astype(np.float32))
    answers = [pairs(rows) for rows in got[0][1]["answers"]]
    assert answers == [ids_of(near) for near in release.search(queries, 5)]
    flat = LatentArrays(queries.mean, np.zeros_like(queries.mean))
    assert answers != [ids_of(near) for near in release.search(flat, 5)], "negative control: variances count"
    errors = [told["error"] for _, told in got[1:]]
    for error, part in zip(
        errors, ('"log_vars": [[...]]', "3 vectors and 2 log_vars", "log_var 0 has 5", "finite"), strict=True
    ):
        assert part in error
    ((status, told),) = asked(store, ("/search", {}, both), channel="plain")
    assert (status, "leave them out" in told["error"]) == (422, True)


def test_the_openapi_document_tells_of_them(store: Store, maker: Any) -> None:
    maker.make_release(store, maker.some_photos(5))
    ((_, document),) = asked(store, ("/openapi.json", {}))
    paths = document["paths"]
    assert {"/sids", "/sids/{item_id}"} <= set(paths)
    answer = paths["/similar/{item_id}"]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
    assert "beside" in answer["properties"]
    assert "beside" not in answer["required"]
    assert "log_vars" in document["components"]["schemas"]["VectorSearch"]["properties"]
