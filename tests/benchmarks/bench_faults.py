"""Nights over a real object store that answers by rule: what is published, what is refused, and right after repair.

SeaweedFS (signatures are checked) behind a proxy, and 60 photos. Each case runs `refresh` while a rule holds, then the
same run name, or the next night, without it. --here: the stages of Ray run in this process, on a descriptor.

    python tests/benchmarks/bench_faults.py --json results/faults.json [--only expired,skew,denied,swap,dead] [--here]
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from faulty_store import FaultProxy, Rule, behind_proxy, sign_in
from nights_here import answered, quick_stages
from options import NEEDED, Options, names_of
from PIL import Image
from record import kept, made_on, write

from pipeline.parts import read_part
from pipeline.release import read_head, read_manifest
from pipeline.release.tables import read_table
from pipeline.storage import S3Store, StorageOptions, Store

PHOTOS = 60
SMALL = [
    "model.kind=vae", "model.latent_dim=8", "images.size=32", "train.epochs=1", "train.batch_size=32",
    "encode.actors=1", "train.validation=0",
]  # fmt: skip
_PHOTO = r"/photos/\d+\.png$"


def picture(number: int, version: int) -> bytes:
    pixels = np.random.default_rng((number, version)).integers(0, 256, (32, 32, 3), np.uint8)
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG")
    return sink.getvalue()


@dataclass
class Shop:
    """A catalogue in a bucket, and a store beside it. straight: past the proxy."""

    proxy: FaultProxy
    straight: Store
    url: str
    name: str
    here: Any = None

    def put(self, version: int, numbers: range | None = None) -> None:
        for number in numbers or range(PHOTOS):
            self.straight.put(f"{self.name}/photos/{number}.png", picture(number, version))

    def list_photos(self, count: int) -> None:
        rows = "".join(f"item-{n:02},photos/{n}.png\n" for n in range(count))
        self.straight.put(f"{self.name}/catalogue.csv", f"item_id,image\n{rows}".encode())

    def refresh(self, run: str, *rules: Rule) -> dict[str, Any]:
        self.proxy.rules = list(rules)
        began = time.monotonic()
        place = f"{self.url}/{self.name}"
        words = ["refresh", "--json", "--run", run, f"store={place}/store", f"catalogue.source={place}/catalogue.csv"]
        code, answer = self._answer(words)
        return {
            "run": run, "exit": code, "reason": answer["reason"], "published": answer["published"],
            "error": answer.get("error", "")[:400], "seconds": round(time.monotonic() - began, 1),
            **self._released(), "refusals_in_parts": self._frozen(),
        }  # fmt: skip

    def _answer(self, words: list[str]) -> tuple[int, dict[str, Any]]:
        """Return the exit code and the JSON object of a command line."""
        if self.here is None:
            command = [sys.executable, "-m", "jobs", *words, *SMALL]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
            return done.returncode, json.loads(done.stdout)
        return answered([*words, *self.here.SMALL])

    def _store(self) -> Store:
        return S3Store(f"{self.url}/{self.name}/store", self.straight.options)

    def _released(self) -> dict[str, Any]:
        head = read_head(self._store(), "stable")
        if head is None:
            return {"photos": None, "quarantine": {}}
        manifest = read_manifest(self._store(), head.release_id)
        refused = read_table(self._store(), manifest, "quarantine")
        return {"photos": manifest.counts["photos"], "quarantine": dict(Counter(refused["reason"].to_pylist()))}

    def digests(self) -> dict[str, str]:
        """Return the digest of each living photo's bytes, by item, as the release says."""
        head = read_head(self._store(), "stable")
        assert head is not None
        items = read_table(self._store(), read_manifest(self._store(), head.release_id), "items")
        return dict(zip(items["item_id"].to_pylist(), items["digest"].to_pylist(), strict=True))

    def _frozen(self) -> int:
        """Return how many refused fetches lie in pixels parts; a part is written once, so there should be none."""
        parts = [entry.name for entry in self._store().list("pixels/")]
        return sum(read_part(self._store(), name, ["stage"])["stage"].to_pylist().count("fetch") for name in parts)


def expired(shop: Shop) -> Iterator[dict[str, Any]]:
    shop.put(1)
    yield shop.refresh("night-1", Rule("GET", _PHOTO, status=400, code="ExpiredToken"))
    yield shop.refresh("night-1")


def skew(shop: Shop) -> Iterator[dict[str, Any]]:
    shop.put(1)
    yield shop.refresh("night-1", Rule("GET", _PHOTO, share=0.15, status=403, code="RequestTimeTooSkewed"))
    yield shop.refresh("night-1")


def denied(shop: Shop) -> Iterator[dict[str, Any]]:
    shop.put(1)
    yield shop.refresh("night-1", Rule("GET", _PHOTO, status=403, code="AccessDenied"))
    yield shop.refresh("night-1")


def swap(shop: Shop) -> Iterator[dict[str, Any]]:
    """Photo 7 is replaced when it is fetched, and put back after the night: its token is again what the plan saw."""
    shop.put(1)
    key = f"{shop.name}/photos/7.png"
    rule = Rule("GET", r"/photos/7\.png$", before=lambda _target: shop.straight.put(key, picture(7, 2)))
    first = shop.refresh("night-1", rule)
    yield first | {"item_07_lives": "item-07" in shop.digests()}
    shop.straight.put(key, picture(7, 1))
    second = shop.refresh("night-2")
    right = shop.digests().get("item-07") == hashlib.sha256(picture(7, 1)).hexdigest()
    yield second | {"item_07_has_its_bytes": right}


def dead(shop: Shop) -> Iterator[dict[str, Any]]:
    """A new photo that answers 500 for ever is refused; one that lived and changed keeps yesterday's row."""
    shop.put(1)
    shop.list_photos(PHOTOS - 1)
    yield shop.refresh("night-1")
    shop.list_photos(PHOTOS)
    shop.put(2, range(3, 4))
    before = shop.digests()["item-03"]
    rule = Rule("GET", r"/photos/(3|59)\.png$", status=500, code="InternalError")
    second = shop.refresh("night-2", rule)
    yield second | {"item_03_is_yesterdays": shop.digests().get("item-03") == before}
    third = shop.refresh("night-3")
    yield third | {"item_03_is_tonights": shop.digests()["item-03"] == hashlib.sha256(picture(3, 2)).hexdigest()}


CASES: dict[str, Callable[[Shop], Iterator[dict[str, Any]]]] = {
    "expired": expired, "skew": skew, "denied": denied, "swap": swap, "dead": dead,
}  # fmt: skip


def main() -> None:
    arguments = Options(__doc__, json=NEEDED, only=",".join(CASES), here=False).parse_args()
    names = names_of(arguments.only, CASES, "cases")
    sign_in()
    found: dict[str, Any] = kept(arguments.json, {})
    here = quick_stages() if arguments.here else None
    with (
        tempfile.TemporaryDirectory(prefix="faults-") as work,
        behind_proxy(Path(work) / "weed", "bench-faults") as (server, proxy),
    ):
        os.environ["AWS_ENDPOINT_URL"] = proxy.endpoint
        straight = S3Store(server.url, StorageOptions(endpoint=f"http://127.0.0.1:{server.port}"))
        for name in names:
            shop = Shop(proxy, straight, server.url, name, here)
            shop.list_photos(PHOTOS)
            found[name] = []
            for night in CASES[name](shop):
                print(name, json.dumps(night), flush=True)
                found[name].append(night)
            write(arguments.json, found | made_on(""))


if __name__ == "__main__":
    main()
