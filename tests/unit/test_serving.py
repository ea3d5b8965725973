"""The application over HTTP, asked by plain ASGI calls: answers, limits, the swap, and what it says of itself."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

pytest.importorskip("starlette")

from prometheus_client.parser import text_string_to_metric_families

from jobs.__main__ import main
from pipeline.reader import Release, open_release
from pipeline.release import asked_manifest, read_manifest, read_signing_keys, sign_heads, sign_release
from pipeline.serving import ServeConfig, application
from pipeline.serving.answers import png
from pipeline.serving.counting import Counts
from pipeline.serving.page import PAGE, PAGE_HEADERS
from pipeline.storage import Store, open_store

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def store(tmp_path: Path, maker: Any) -> Store:
    opened = open_store(str(tmp_path / "store"))
    maker.make_release(opened, maker.some_photos(40), run="first")
    return opened


@dataclass(frozen=True)
class Answered:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """Asks an ASGI application; `parts` are the messages of a request's body."""

    def __init__(self, app: Any) -> None:
        self.app, self.service = app, app.state.service

    async def ask(
        self,
        path: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        *,
        method: str | None = None,
        parts: list[bytes] | None = None,
        **query: Any,
    ) -> Answered:
        given = {"host": "test", **(headers or {})}
        if isinstance(body, dict | list):
            given.setdefault("content-type", "application/json")
            body = json.dumps(body).encode()
        if body is not None:
            given.setdefault("content-length", str(len(body)))
        chunks = parts if parts is not None else [body or b""]
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method or ("GET" if body is None and parts is None else "POST"),
            "path": path,
            "raw_path": quote(path).encode(),
            "root_path": "",
            "scheme": "http",
            "query_string": urlencode(query).encode(),
            "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in given.items()],
            "server": ("test", 80),
            "client": ("test", 1),
        }
        waiting = [
            {"type": "http.request", "body": chunk, "more_body": number + 1 < len(chunks)}
            for number, chunk in enumerate(chunks)
        ]
        sent: list[Any] = []

        async def receive() -> Any:
            return waiting.pop(0) if waiting else {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        await self.app(scope, receive, send)
        start = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        return Answered(sent[0]["status"], start, b"".join(each.get("body", b"") for each in sent[1:]))


@asynccontextmanager
async def serving(store: Store, **changes: Any) -> AsyncIterator[Client]:
    """Yield a client of a running application; it looks at the channel when told, not by itself."""
    app = application(ServeConfig(**{"store_url": store.url, "poll_s": 3600, **changes}))
    async with app.router.lifespan_context(app):
        yield Client(app)


def pairs(rows: Any) -> list[tuple[str, float]]:
    return [(row["item_id"], row["score"]) for row in rows]


def ids_of(near: Any) -> list[tuple[str, float]]:
    return [(each.item_id, each.score) for each in near]


# --- answers


def test_every_address_answers_as_the_reader_does(store: Store, maker: Any) -> None:
    release = open_release(store.url)
    vectors = np.random.default_rng(5).normal(size=(3, maker.DIM)).round(3)
    where = {"category": ["Hats", "Bags"], "price": {"min": 2, "max": 40}}

    async def run() -> None:
        async with serving(store) as client:
            near = await client.ask("/similar/sku-003", k=7, where=json.dumps(where))
            assert near.status == 200
            assert near.json["neighbours"] == [
                {"item_id": each.item_id, "score": each.score, "attributes": each.attributes}
                for each in release.similar("sku-003", 7, where=where)
            ]
            found = await client.ask("/search", {"vectors": vectors.tolist(), "k": 4, "where": where})
            assert [pairs(each) for each in found.json["answers"]] == [
                ids_of(each) for each in release.search(vectors, 4, where=where)
            ]
            basket = ["sku-003", "sku-004", "sku-005"]
            weighed = {"fusion": "barycentre", "weights": [1.0, 2, 0.5]}
            for asked in ({}, {"fusion": "min"}, {"fusion": "soft_min"}, weighed):
                got = await client.ask("/baskets", {"item_ids": basket, "k": 5, **asked})
                assert pairs(got.json["neighbours"]) == ids_of(release.similar_to_many(basket, 5, **asked))
            for each in (near, found, got):
                named = (each.json["release_id"], each.json["model_id"])
                assert named == (release.release_id, release.model_id)
                assert named == (each.headers["x-release-id"], each.headers["x-model-id"])
            item = (await client.ask("/items/sku-003")).json
            assert item["attributes"] == release.attributes("sku-003")
            assert item["photos"][0] == {"uri": "s3://photos/3/0.jpg", "view": 0, "kept": False}
            listed = (await client.ask("/items", prefix="sku-00", limit=4)).json
            assert (listed["items"], listed["item_ids"]) == (40, [f"sku-00{n}" for n in range(4)])
            assert (await client.ask("/items", prefix="sku-039")).json["item_ids"] == ["sku-039"]

    asyncio.run(run())


def test_a_photo_is_answered_as_by_the_reader(store: Store, maker: Any) -> None:
    pytest.importorskip("onnxruntime")
    maker.write_encoder(store, maker.MODEL, maker.DIM)
    maker.make_release(store, maker.some_photos(40), run="photos", **maker.listed(store, maker.MODEL))
    data, release = maker.picture(), open_release(store.url)
    kind = {"content-type": "image/png"}

    async def run() -> None:
        async with serving(store) as client:
            assert (await client.ask("/readyz")).json["photos"] is True
            got = await client.ask("/search", data, kind, k=5, where='{"category": "Hats"}')
            near = release.similar_photo(data, 5, where={"category": "Hats"})
            assert [pairs(each) for each in got.json["answers"]] == [ids_of(near)]
            for wrong, status, name in (
                (b"<html>", 422, "not_an_image"),
                (data[:90], 422, "truncated"),
                (b"", 422, "empty"),
            ):
                refused = await client.ask("/search", wrong, kind)
                assert (refused.status, name in refused.json["error"]) == (status, True), refused.body
        async with serving(store, max_pixels=599) as client:  # the picture has 30 x 20
            refused = await client.ask("/search", data, kind)
            assert (refused.status, "30 x 20" in refused.json["error"]) == (413, True)

    asyncio.run(run())


def test_similar_is_the_brute_force_of_its_definition(store: Store, maker: Any) -> None:
    made = maker.make_release(store, maker.some_photos(60, seed=8), run="second")

    async def run() -> Any:
        async with serving(store) as client:
            return (await client.ask("/similar/sku-010", k=9)).json["neighbours"]

    rows = asyncio.run(run())
    expected = maker.brute_force(made, "cosine", made.means("sku-010"), 9, left_out=["sku-010"])
    assert [row["item_id"] for row in rows] == [item_id for item_id, _ in expected]
    np.testing.assert_allclose([row["score"] for row in rows], [score for _, score in expected], atol=1e-6)


def test_a_key_may_hold_anything(tmp_path: Path, maker: Any) -> None:
    store = open_store(str(tmp_path / "keys"))
    keys = ["a/b", "a b?c=1#d", "Größe 42", "..", "a/", "%2F"]
    photos = [
        maker.Photo(key, f"u/{n}", 0, np.eye(maker.DIM, dtype=np.float32)[n % maker.DIM] + n)
        for n, key in enumerate(keys)
    ]
    maker.make_release(store, photos)

    async def run() -> None:
        async with serving(store) as client:
            for key in keys:
                got = await client.ask(f"/similar/{key}", k=3)
                assert (got.status, got.json["item_id"]) == (200, key), got.body
                assert key not in [row["item_id"] for row in got.json["neighbours"]]

    asyncio.run(run())


# --- what is refused


BAD = [
    # path, body, headers, query, status, what the text names
    ("/similar/nobody", None, {}, {}, 404, ["nobody", "never seen"]),
    ("/similar/sku-001", None, {}, {"k": "0"}, 422, ["k is '0'", "whole number"]),
    ("/similar/sku-001", None, {}, {"k": "1e3"}, 422, ["1e3"]),
    ("/similar/sku-001", None, {}, {"k": "1001"}, 422, ["1,001", "1,000", "--max-k"]),
    ("/similar/sku-001", None, {}, {"kk": "1"}, 422, ["'kk'", "known: k, where"]),
    ("/similar/sku-001", None, {}, {"where": "{"}, 422, ["'{'", "percent-encoded"]),
    ("/similar/sku-001", None, {}, {"where": '{"colour": 1}'}, 422, ["colour", "category, price, stock"]),
    ("/search", {"vectors": [[1.0] * 5]}, {}, {}, 422, ["vector 0 has 5", "have 6"]),
    ("/search", {"vectors": []}, {}, {}, 422, ["vectors"]),
    ("/search", {"vectors": [[1.0] * 6], "kk": 1}, {}, {}, 422, ["kk", "k, where, min_score, min_quantile, vectors"]),
    ("/search", {"vectors": [["1"] * 6]}, {}, {}, 422, ["vectors.0.0", "more"]),
    ("/search", {"vectors": [[1e300] * 6]}, {}, {}, 422, ["finite"]),
    ("/search", {"vectors": [[1.0] * 6] * 1001}, {}, {}, 422, ["1,001", "--max-vectors"]),
    ("/search", {"vectors": [[1.0] * 6] * 30, "k": 700}, {}, {}, 422, ["21,000", "20,000", "--max-rows"]),
    ("/search", {"vectors": [[1.0] * 6]}, {}, {"k": 3}, 422, ["k belongs to a photo"]),
    ("/search", b"{", {"content-type": "application/json"}, {}, 422, ["VectorSearch", "EOF"]),
    ("/search", b"[" * 100_000, {"content-type": "application/json"}, {}, 422, ["recursion"]),
    ("/search", b"--x", {"content-type": "multipart/form-data; boundary=x"}, {}, 415, ["multipart", "--data-binary"]),
    ("/search", b"<html>", {"content-type": "image/jpeg"}, {}, 501, ["cannot be asked by photo"]),
    ("/baskets", {"item_ids": []}, {}, {}, 422, ["item_ids"]),
    ("/baskets", {"item_ids": ["sku-001"] * 101}, {}, {}, 422, ["101", "--max-basket"]),
    ("/baskets", {"item_ids": ["sku-001"], "weights": [1.0, 2.0]}, {}, {}, 422, ["weights are [1.0, 2.0]"]),
    ("/baskets", {"item_ids": ["sku-001", "gone"]}, {}, {}, 404, ["gone"]),
    ("/releases", None, {}, {"limit": "1001"}, 422, ["1001"]),
    ("/photos/sku-001", None, {}, {}, 404, ["no pixels of item 'sku-001'"]),
    ("/nothing", None, {}, {}, 404, ["/openapi.json"]),
    ("/search", None, {}, {}, 405, ["Method Not Allowed"]),
]


def test_what_cannot_be_answered_is_refused_with_the_value_and_the_remedy(store: Store) -> None:
    async def run() -> None:
        async with serving(store) as client:
            for path, body, headers, query, status, names in BAD:
                got = await client.ask(path, body, headers, **query)
                shown = f"{path} {query}: {got.body[:300]!r}"
                assert (got.status, got.json["status"]) == (status, status), shown
                assert all(name in got.json["error"] for name in names), shown
                assert got.json["release_id"] == got.headers["x-release-id"] == "first-0123456789ab"

    asyncio.run(run())


def test_another_release_or_model_than_expected_is_a_409(store: Store, maker: Any) -> None:
    right = {"release_id": "first-0123456789ab", "model_id": maker.MODEL}

    async def run() -> None:
        async with serving(store) as client:
            for name, value in right.items():
                header = f"Expect-{name.replace('_', '-')}"
                assert (await client.ask("/similar/sku-001", **{name: value})).status == 200
                assert (await client.ask("/similar/sku-001", headers={header: value})).status == 200
                for got in (
                    await client.ask("/similar/sku-001", **{name: "other"}),
                    await client.ask("/similar/sku-001", headers={header: "other"}),
                    await client.ask("/baskets", {"item_ids": ["sku-001"]}, {header: "other"}),
                ):
                    assert got.status == 409
                    assert "other" in got.json["error"]
                    assert value in got.json["error"]

    asyncio.run(run())


def test_a_token_guards_what_tells_of_the_catalogue(store: Store) -> None:
    secret = "0123456789abcdef"

    async def run() -> None:
        async with serving(store, token=secret) as client:
            for path in ("/similar/sku-001", "/releases", "/metrics", "/items"):
                for headers in ({}, {"authorization": "Bearer no"}, {"authorization": f"Basic {secret}"}):
                    got = await client.ask(path, headers=headers)
                    assert (got.status, got.headers["www-authenticate"]) == (401, "Bearer"), path
                    assert secret not in got.body.decode()
                assert (await client.ask(path, headers={"authorization": f"Bearer {secret}"})).status == 200
            for path in ("/", "/healthz", "/readyz", "/openapi.json"):
                assert (await client.ask(path)).status == 200
            wild = await client.ask("/items", headers={"authorization": "Bearer \xff\xfe"})
            assert wild.status == 401

    asyncio.run(run())


def test_bodies_and_photos_have_a_limit(store: Store) -> None:
    kind = {"content-type": "application/json"}

    async def run() -> None:
        async with serving(store, max_body=1000) as client:
            for got in (
                await client.ask("/search", b" " * 1001, kind),
                await client.ask("/search", headers=kind, parts=[b" " * 600, b" " * 600, b" " * 10**6]),  # no length
            ):
                assert got.status == 413
                assert "1,000 are taken at most" in got.json["error"]
                assert "--max-body" in got.json["error"]
            assert client.service.door._places == 66  # none is lost

    asyncio.run(run())


def held(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """Make every `similar` wait; return (begun, go)."""
    begun, go, real = threading.Event(), threading.Event(), Release.similar

    def waiting(self: Release, *args: Any, **kwargs: Any) -> Any:
        begun.set()
        assert go.wait(60)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Release, "similar", waiting)
    return begun, go


async def until(seen: Any) -> None:
    for _ in range(6000):
        if seen():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("waited for a minute")


def test_a_full_queue_is_a_429_and_nobody_else_waits(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go = held(monkeypatch)

    async def run() -> None:
        async with serving(store, threads=1, queue=1, timeout_s=60) as client:
            first = [asyncio.create_task(client.ask("/similar/sku-001")) for _ in range(2)]
            await until(lambda: begun.is_set() and client.service.door._places == 0)
            refused = await client.ask("/similar/sku-001")
            assert (refused.status, refused.headers["retry-after"]) == (429, "1")
            assert "1 searches are under way and 1 requests wait" in refused.json["error"]
            assert (await client.ask("/healthz")).status == 200  # needs no thread
            go.set()
            assert [(await each).status for each in first] == [200, 200]
            assert (await client.ask("/similar/sku-001")).status == 200
            text = (await client.ask("/metrics")).body.decode()
            assert "codebooks_serve_refused_busy_total 1\n" in text

    asyncio.run(run())


def test_time_is_over_with_a_503_and_the_place_is_free_when_the_work_has_ended(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, go = held(monkeypatch)

    async def run() -> None:
        async with serving(store, threads=1, queue=0, timeout_s=0.1) as client:
            late = await client.ask("/similar/sku-001")
            assert (late.status, late.headers["retry-after"]) == (503, "1")
            assert "after 0.1 seconds" in late.json["error"]
            assert (await client.ask("/similar/sku-001")).status == 429  # its thread is still at it
            go.set()
            await until(lambda: client.service.door._places == 1)

    asyncio.run(run())


# --- moving from release to release


@pytest.mark.slow
def test_no_request_fails_during_a_swap_and_each_is_of_one_release(store: Store, maker: Any) -> None:
    nights = {f"night{n}": maker.some_photos(40, seed=n + 1) for n in range(4)}

    async def run() -> tuple[list[Answered], list[str]]:
        async with serving(store, threads=4, queue=1000, timeout_s=60) as client:
            answers: list[Answered] = []
            going = True

            async def ask(first: int) -> None:
                number = first
                while going:
                    answers.append(await client.ask(f"/similar/sku-{number % 40:03d}", k=5))
                    number += 1

            askers = [asyncio.create_task(ask(n * 7)) for n in range(6)]
            seen = [client.service.current.served.release.release_id]
            for run, photos in nights.items():
                await asyncio.to_thread(maker.make_release, store, photos, run=run)
                await client.service.current.look()
                seen.append(client.service.current.served.release.release_id)
                await asyncio.sleep(0.02)
            going = False
            await asyncio.gather(*askers)
            return answers, seen

    answers, seen = asyncio.run(run())
    assert seen == [f"{run}-0123456789ab" for run in ("first", *nights)]
    assert {got.status for got in answers} == {200}
    said = {(got.json["release_id"], got.json["item_id"]): pairs(got.json["neighbours"]) for got in answers}
    assert {release_id for release_id, _ in said} == set(seen)
    opened = {each: open_release(store.url, release_id=each) for each in seen}
    for (release_id, item_id), near in said.items():
        assert near == ids_of(opened[release_id].similar(item_id, 5))
    # Negative control: the check would see answers of another release.
    first = {item_id: ids_of(opened[seen[0]].similar(item_id, 5)) for _, item_id in said}
    assert all(near != first[item_id] for (release_id, item_id), near in said.items() if release_id != seen[0])


def test_a_damaged_release_is_not_taken_and_the_service_goes_on(store: Store, maker: Any) -> None:
    async def run() -> None:
        async with serving(store) as client:
            made = maker.make_release(store, maker.some_photos(40, seed=3), run="damaged")
            folder = Path(store.url) / "releases" / made.release_id
            (index,) = folder.glob("index-*.faiss")
            data = bytearray(index.read_bytes())
            data[len(data) // 2] ^= 1
            index.chmod(0o644)
            index.write_bytes(data)
            await client.service.current.look()
            ready = await client.ask("/readyz")
            assert (ready.status, ready.json["release_id"]) == (200, "first-0123456789ab")
            assert "sha256" in ready.json["problem"]
            assert (await client.ask("/similar/sku-001")).status == 200
            maker.make_release(store, maker.some_photos(40, seed=4), run="good")
            await client.service.current.look()
            ready = await client.ask("/readyz")
            assert (ready.json["release_id"], ready.json["problem"]) == ("good-0123456789ab", None)
            text = (await client.ask("/metrics")).body.decode()
            assert "codebooks_serve_poll_failures_total 1\n" in text
            assert "codebooks_serve_swaps_total 1\n" in text
            created = read_manifest(store, "good-0123456789ab").created.timestamp()
            assert f"codebooks_serve_release_created_timestamp_seconds {created:.3f}\n" in text

    asyncio.run(run())


def test_a_release_of_another_model_is_not_taken_where_one_is_expected(store: Store, maker: Any) -> None:
    async def run() -> None:
        async with serving(store, expect_model=maker.MODEL) as client:
            maker.make_release(store, maker.some_photos(40), run="other", model_id="cd" * 32)
            await client.service.current.look()
            ready = (await client.ask("/readyz")).json
            assert ready["model_id"] == maker.MODEL
            assert "cd" * 32 in ready["problem"]

    asyncio.run(run())


def test_a_service_waits_for_the_first_release_and_says_so(tmp_path: Path, maker: Any) -> None:
    store = open_store(str(tmp_path / "empty"))

    async def run() -> None:
        async with serving(store, poll_s=0.05) as client:
            assert (await client.ask("/healthz")).status == 200
            for path in ("/readyz", "/similar/sku-001"):
                got = await client.ask(path)
                assert (got.status, got.json["release_id"]) == (503, None)
                assert "channel 'stable'" in got.json["error"]
            await asyncio.to_thread(maker.make_release, store, maker.some_photos(9))
            await until(lambda: client.service.current.served is not None)
            assert (await client.ask("/readyz")).status == 200

    asyncio.run(run())


# --- what it says of itself


def test_the_openapi_document_covers_every_address(store: Store) -> None:
    async def run() -> tuple[Any, set[tuple[str, str]]]:
        async with serving(store, max_k=77) as client:
            served = {
                (route.path.replace(":path", ""), method)
                for route in client.app.routes
                for method in route.methods - {"HEAD"}
            }
            return (await client.ask("/openapi.json")).json, served

    document, served = asyncio.run(run())
    told = {(path, method.upper()) for path, methods in document["paths"].items() for method in methods}
    assert told == served
    assert len(told) == 14
    named = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document)))
    assert named == set(document["components"]["schemas"])
    (k,) = [each for each in document["paths"]["/similar/{item_id}"]["get"]["parameters"] if each["name"] == "k"]
    assert k["schema"]["maximum"] == 77


def test_counts_of_all_processes_are_one_answer_that_prometheus_reads(tmp_path: Path) -> None:
    counts = Counts(["/a", "/b"], tmp_path)
    counts.answered("/a", 200, 0.004)
    counts.answered("/a", 418, 0.3)  # no status of ours: counts as its hundred's first
    counts.set("requests_in_flight", 3)
    counts.name_release("r-1", "m")
    (own,) = tmp_path.glob("*.counts")
    counts._mine.flush()
    dead = 2**22 + 1  # above any process id of Linux
    (tmp_path / f"{dead}.counts").write_bytes(own.read_bytes())
    (tmp_path / f"{dead}.release").write_text('["r-0", "m"]')
    families = {family.name: family for family in text_string_to_metric_families(counts.text())}
    requests = {
        (each.labels["route"], each.labels["status"]): each.value
        for each in families["codebooks_serve_requests"].samples
    }
    assert requests == {("/a", "200"): 2.0, ("/a", "400"): 2.0}
    seconds = {
        (each.name, each.labels.get("le")): each.value for each in families["codebooks_serve_request_seconds"].samples
    }
    name = "codebooks_serve_request_seconds"
    assert [seconds[f"{name}_bucket", le] for le in ("0.002", "0.005", "0.2", "0.5", "+Inf")] == [0, 2, 2, 4, 4]
    assert seconds[f"{name}_sum", None] == pytest.approx(0.608)
    assert families["codebooks_serve_requests_in_flight"].samples[0].value == 3  # of those that live
    (worker,) = families["codebooks_serve_workers"].samples
    assert (worker.labels["release_id"], worker.value) == ("r-1", 1)


def test_the_page_runs_its_own_script_and_asks_for_nothing_elsewhere() -> None:
    text = PAGE.decode()
    assert not re.findall(r"""(?:src|href)=["'](?!#|data:)""", text)
    assert "http:" not in text
    assert "https:" not in text
    policy = PAGE_HEADERS["Content-Security-Policy"]
    assert "unsafe" not in policy
    assert policy.count("'sha256-") == 2
    assert " style=" not in text  # the policy would drop it
    assert not re.findall(r"\son\w+=", text)


def test_kept_pixels_are_answered_as_a_picture(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (5, 7, 3), np.uint8)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png(pixels)))), pixels)
    monkeypatch.setattr(Release, "pixels", lambda self, item_id: pixels)

    async def run() -> None:
        async with serving(store) as client:
            got = await client.ask("/photos/sku-001")
            assert (got.headers["content-type"], got.body) == ("image/png", png(pixels))

    asyncio.run(run())


# --- hostile requests

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
_WHERE = st.dictionaries(st.sampled_from(["category", "price", "stock", "no"]), _JSON, max_size=3)
_VECTORS = st.lists(st.lists(st.floats(), min_size=6, max_size=6), max_size=3)
_IDS = st.lists(st.sampled_from(["sku-001", "sku-002"]) | st.text(), max_size=4)
_BODIES = (
    _JSON
    | st.fixed_dictionaries({"vectors": _VECTORS}, optional={"k": _JSON, "where": _WHERE})
    | st.fixed_dictionaries(
        {"item_ids": _IDS},
        optional={"k": st.integers(), "where": _WHERE,
                  "fusion": st.sampled_from(["rrf", "min", "soft_min", "barycentre", ""]),
                  "weights": st.lists(st.floats(), max_size=4)},
    )
)  # fmt: skip
_TYPES = st.sampled_from(["application/json", "image/png", "application/octet-stream", "text/plain", ""])
_QUERY = st.dictionaries(
    st.sampled_from(["k", "where", "prefix", "limit", "category", "release_id", "beside"]), st.text()
)
_PATHS = st.sampled_from(["/search", "/baskets", "/similar/sku-001", "/items", "/releases", "/sids"]) | st.text().map(
    lambda text: f"/similar/{text}"
)


@pytest.mark.slow
def test_nothing_that_is_sent_makes_the_service_fail(store: Store, maker: Any) -> None:
    loop = asyncio.new_event_loop()
    app = application(ServeConfig(store_url=store.url, poll_s=3600))
    context = app.router.lifespan_context(app)
    loop.run_until_complete(context.__aenter__())
    client = Client(app)

    @settings(max_examples=150, suppress_health_check=list(HealthCheck))
    @given(_PATHS, _BODIES | st.binary(), _TYPES, _QUERY, _WHERE)
    def check(path: str, body: Any, kind: str, query: dict[str, str], where: Any) -> None:
        given = {**query, **({"where": json.dumps(where)} if where else {})}
        given = {name: value.encode(errors="replace").decode() for name, value in given.items()}
        path = path.encode(errors="replace").decode()
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        method = "POST" if path in ("/search", "/baskets") else "GET"
        got = loop.run_until_complete(client.ask(path, data, {"content-type": kind}, method=method, **given))
        assert got.status < 500 or got.status == 501, got.body
        assert got.json["release_id"] == "first-0123456789ab"

    try:
        check()
    finally:
        loop.run_until_complete(context.__aexit__(None, None, None))
        loop.close()


# --- the command


def started(store: Store, log: Path, *options: str) -> tuple[subprocess.Popen[bytes], str]:
    """Return `codebooks serve` on a free port, and its address."""
    command = [sys.executable, "-m", "jobs", "serve", f"store={store.url}", "--port", "0", *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with log.open("wb") as told:
        server = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=told)
    while server.poll() is None:
        if found := re.search(r"on (http://\S+)/ with", log.read_text()):
            return server, found[1]
        time.sleep(0.05)
    raise AssertionError(log.read_text())


def over_http(url: str) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


@pytest.mark.slow
def test_two_spawned_processes_answer_count_together_and_end_on_sigterm(store: Store, tmp_path: Path) -> None:
    server, address = started(store, tmp_path / "log", "--workers", "2", "--poll-s", "0.1")
    try:
        near = [(each.item_id, each.score) for each in open_release(store.url).similar("sku-003", 4)]
        for _ in range(12):
            status, answer = over_http(f"{address}/similar/sku-003?k=4")
            assert (status, pairs(answer["neighbours"])) == (200, near)
        assert over_http(f"{address}/similar/sku-003?k=0")[0] == 422
        for _ in range(600):  # the second process may still be starting
            with urllib.request.urlopen(f"{address}/metrics", timeout=60) as answer:
                text = answer.read().decode()
            if '0123456789ab",model_id' in text and re.search(r"workers{.*} 2\n", text):
                break
            time.sleep(0.1)
        assert re.search(r"workers{.*} 2\n", text)
        assert 'requests_total{route="/similar/{item_id}",status="200"} 12\n' in text  # of both
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--port", "70000"], "--port is 70000"),
        (["--channel", "Stable!"], "--channel is 'Stable!'"),
        (["--max-k", "0"], "--max-k is 0"),
        (["--host", "192.0.2.1"], "192.0.2.1:8000 cannot be listened on"),
    ],
)
def test_a_command_line_that_cannot_be_served_is_refused(
    store: Store, capsys: pytest.CaptureFixture[str], options: list[str], text: str
) -> None:
    assert main(["serve", f"store={store.url}", *options]) == 2
    assert text in capsys.readouterr().err


def test_a_token_that_can_be_guessed_is_refused(
    store: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CODEBOOKS_SERVE_TOKEN", "hunter2")
    assert main(["serve", f"store={store.url}"]) == 2
    told = capsys.readouterr().err
    assert "CODEBOOKS_SERVE_TOKEN holds 7 characters" in told
    assert "hunter2" not in told


def test_time_of_a_request_is_counted_from_its_head(store: Store) -> None:
    async def run() -> str:
        async with serving(store) as client:
            began = time.perf_counter()
            await client.ask("/similar/sku-001")
            taken = time.perf_counter() - began
            text = (await client.ask("/metrics")).body.decode()
            counted = float(re.findall(r'seconds_sum{route="/similar/{item_id}"} (\S+)', text)[0])
            assert 0 < counted <= taken
            return text

    assert 'requests_total{route="/similar/{item_id}",status="200"} 1' in asyncio.run(run())


# --- thresholds, the recall that is seen, keys


def test_thresholds_are_those_of_the_reader(store: Store) -> None:
    release = open_release(store.url)
    whole = release.similar("sku-003", 7)
    vectors = [release.latents(["sku-003"])["mean"][0].as_py()]

    async def run() -> None:
        async with serving(store) as client:
            near = await client.ask("/similar/sku-003", k=7, min_score=repr(whole[2].score))
            assert pairs(near.json["neighbours"]) == ids_of(whole[:3])
            found = await client.ask("/search", {"vectors": vectors, "k": 7, "min_score": 0.9})
            assert pairs(found.json["answers"][0]) == ids_of(release.search(vectors, 7, min_score=0.9)[0])
            for query in ({"min_score": "nan"}, {"min_quantile": "high"}):
                refused = await client.ask("/similar/sku-003", **query)
                assert refused.status == 422
                assert "must be a finite number" in refused.json["error"]
            old = await client.ask("/similar/sku-003", min_quantile=0.99)  # this release has measured none
            assert old.status == 422
            assert "no scores of random pairs in its manifest" in old.json["error"]

    asyncio.run(run())


def test_the_recall_that_is_seen_is_told(store: Store) -> None:
    async def run() -> None:
        async with serving(store, check_one_in=1) as client:
            for number in range(3):
                assert (await client.ask(f"/similar/sku-{number:03d}", k=5)).status == 200
                client.service.current.served.release._check.wait()
            told = (await client.ask("/metrics")).body.decode()
            found = {family.name: family.samples[0].value for family in text_string_to_metric_families(told)
                     if "recall" in family.name}  # fmt: skip
            checked, neighbours = found["codebooks_serve_recall_checked"], found["codebooks_serve_recall_neighbours"]
            assert checked >= 3  # the question that warms the release is none of anybody's
            assert found["codebooks_serve_recall_found"] == neighbours == 5 * checked

    asyncio.run(run())


def test_a_service_with_trusted_keys_serves_nothing_unsigned(store: Store, tmp_path: Path) -> None:
    cryptography = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ed25519")
    from cryptography.hazmat.primitives import serialization

    key, form = cryptography.Ed25519PrivateKey.generate(), serialization.Encoding.PEM
    pem = key.public_key().public_bytes(form, serialization.PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "key.pub").write_bytes(pem)
    private = key.private_bytes(form, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (tmp_path / "key.pem").write_bytes(private)

    async def run() -> None:
        async with serving(store, trusted_keys=f"{tmp_path / 'key.pub'}") as client:
            ready = await client.ask("/readyz")
            assert ready.status == 503
            assert "is not signed" in ready.json["error"]
        release, keys = asked_manifest(store, None, "stable").release_id, read_signing_keys([str(tmp_path / "key.pem")])
        sign_release(store, release, keys)
        asked = {"trusted_keys": f"{tmp_path / 'key.pub'}", "trusted_channel": "true"}
        async with serving(store, **asked) as client:
            ready = await client.ask("/readyz")
            assert ready.status == 503
            assert "has signed that release" in ready.json["error"]
        sign_heads(store, release, keys)
        async with serving(store, **asked) as client:
            assert (await client.ask("/readyz")).status == 200

    asyncio.run(run())
