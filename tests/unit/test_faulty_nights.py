"""Nights over an object store that answers by rule: nothing short is published, and the same run is right afterwards.

The server is real and so is everything but Ray, whose stages run in this process; tries are short.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import stages_here as HERE
from benchmarks import faulty_store as FAULTY
from jobs.__main__ import main
from pipeline.parts import read_part
from pipeline.release import read_head, read_manifest
from pipeline.release.tables import read_table
from pipeline.storage import Retry, S3Store, StorageOptions, s3

pytestmark = [pytest.mark.s3, pytest.mark.slow]

TESTS = Path(__file__).resolve().parents[1]
PHOTOS = 20
PHOTO = r"/photos/\d+\.png$"


def picture(number: int, version: int = 1) -> bytes:
    pixels = np.random.default_rng((number, version)).integers(0, 256, (20, 20, 3), np.uint8)
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG")
    return sink.getvalue()


class Shop:
    """A catalogue in a bucket with a store beside it, reached through a proxy; straight: past it."""

    def __init__(self, url: str, proxy: Any, port: int, capsys: pytest.CaptureFixture[str]) -> None:
        self.url, self.proxy, self.capsys = url, proxy, capsys
        self.straight = S3Store(url, StorageOptions(endpoint=f"http://127.0.0.1:{port}"))
        self.store = S3Store(f"{url}/store", StorageOptions(endpoint=f"http://127.0.0.1:{port}"))
        for number in range(PHOTOS):
            self.put(number)

    def put(self, number: int, version: int = 1) -> None:
        self.straight.put(f"photos/{number}.png", picture(number, version))

    def night(self, run: str, *rules: Any, photos: int = PHOTOS) -> tuple[int, dict[str, Any]]:
        """Return the exit code and the JSON object of a refresh while these rules hold."""
        rows = "".join(f"item-{n:02},photos/{n}.png\n" for n in range(photos))
        self.straight.put("catalogue.csv", f"item_id,image\n{rows}".encode())
        self.proxy.rules = list(rules)
        self.capsys.readouterr()
        words = ["--run", run, f"store={self.url}/store", f"catalogue.source={self.url}/catalogue.csv", *HERE.SMALL]
        code = main(["refresh", "--json", *words])
        return code, json.loads(self.capsys.readouterr().out)

    def table(self, name: str) -> list[dict[str, Any]]:
        head = read_head(self.store, "stable")
        if head is None:
            return []
        rows: list[dict[str, Any]] = read_table(
            self.store, read_manifest(self.store, head.release_id), name
        ).to_pylist()
        return rows

    def refusals_in_parts(self) -> int:
        parts = [entry.name for entry in self.store.list("pixels/")]
        return sum(stage == "fetch" for name in parts for stage in read_part(self.store, name)["stage"].to_pylist())


@pytest.fixture
def shop(
    s3_server: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> Iterator[Shop]:
    HERE.run_stages_here(monkeypatch)
    monkeypatch.setattr(s3, "Retry", lambda: Retry(attempts=2, first_s=0.01))
    proxy = FAULTY.FaultProxy(s3_server.port)
    name = hashlib.sha256(request.node.name.encode()).hexdigest()[:20]
    url = s3_server.make_bucket(f"nights-{name}")
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
    yield Shop(url, proxy, s3_server.port, capsys)
    proxy.stop()


@pytest.mark.parametrize(
    ("share", "status", "code", "expected", "words"),
    [
        (1.0, 400, "ExpiredToken", 6, "renew"),
        (0.15, 403, "RequestTimeTooSkewed", 6, "NTP"),
        (1.0, 403, "AccessDenied", 3, "access to 20 of 20 photos was refused: 20 of s3://nights-"),
        (1.0, 503, "SlowDown", 6, "20 of 20 photos gave no answer"),
    ],
)
def test_what_is_no_photo_s_fault_publishes_nothing_and_the_same_run_is_whole_afterwards(
    shop: Shop, share: float, status: int, code: str, expected: int, words: str
) -> None:
    failed, answer = shop.night("night-1", FAULTY.Rule("GET", PHOTO, share=share, status=status, code=code))
    assert (failed, answer["published"]) == (expected, False), answer
    assert code in answer["error"]
    assert words in answer["error"]
    assert "None" not in answer["error"]
    assert (shop.table("items"), shop.refusals_in_parts()) == ([], 0)
    assert shop.night("night-1")[0] == 0
    assert (len(shop.table("items")), shop.table("quarantine")) == (PHOTOS, [])


def test_a_photo_replaced_between_plan_and_fetch_and_put_back_is_right_the_next_night(shop: Shop) -> None:
    swap = FAULTY.Rule("GET", r"/photos/7\.png$", before=lambda _target: shop.put(7, version=2))
    assert shop.night("night-1", swap)[0] == 0
    (row,) = shop.table("quarantine")
    assert (row["item_id"], row["stage"], row["reason"]) == ("item-07", "fetch", "changed")
    shop.put(7)  # with the ETag that the first plan saw
    code, answer = shop.night("night-2")
    assert (code, answer["reason"]) == (0, "published")
    digests = {row["item_id"]: row["digest"] for row in shop.table("items")}
    assert digests == {f"item-{n:02}": hashlib.sha256(picture(n)).hexdigest() for n in range(PHOTOS)}
    assert shop.night("night-3")[1]["reason"] == "nothing to do"


def test_one_photo_without_an_answer_stops_no_night_and_one_that_lived_keeps_its_row(shop: Shop) -> None:
    assert shop.night("night-1", photos=PHOTOS - 1)[0] == 0
    lived = {row["item_id"]: row for row in shop.table("items")}
    shop.put(3, version=2)
    dead = FAULTY.Rule("GET", r"/photos/(3|19)\.png$", status=500, code="InternalError")
    code, answer = shop.night("night-2", dead)
    assert (code, answer["counts"]["refused"], answer["counts"]["held"], answer["counts"]["removed"]) == (0, 2, 1, 0)
    assert {row["item_id"]: row for row in shop.table("items")} == lived, "item-03 as it was, item-19 not yet"
    said = shop.table("quarantine")
    assert Counter((row["item_id"], row["reason"]) for row in said) == {
        ("item-03", "unreachable"): 1, ("item-19", "unreachable"): 1
    }  # fmt: skip
    assert all("HTTP 500 InternalError: by rule; 2 tries" in row["detail"] for row in said)
    assert shop.night("night-3")[0] == 0
    digests = {row["item_id"]: row["digest"] for row in shop.table("items")}
    assert (digests["item-03"], len(digests)) == (hashlib.sha256(picture(3, 2)).hexdigest(), PHOTOS)
    assert shop.table("quarantine") == []
