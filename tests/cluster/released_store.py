"""A store with a release on it, at the address that a cluster's files name, for pods that ask it."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml
from machines import ROOT

sys.path.insert(0, str(ROOT / "tests"))
sys.path.insert(0, str(ROOT / "tests" / "benchmarks"))
from faulty_store import KEY, SECRET, WeedServer

import stages_here
from cluster.manifests import Manifests
from jobs.__main__ import main as codebooks
from pipeline.images.render import render_catalogue
from pipeline.reader import open_release


class Released:
    """SeaweedFS with the bucket of the files' shop.yaml, and a small release; made when they are first asked for."""

    def __init__(self, work: Path, manifests: Manifests, stack: contextlib.ExitStack) -> None:
        self.work = work
        self._stack = stack
        self._variables: dict[str, str] = {}
        self.item = ""
        maps = [document for _, document in manifests.of_kind("ConfigMap") if "shop.yaml" in document.get("data", {})]
        self.store = str(yaml.safe_load(maps[0]["data"]["shop.yaml"])["store"]) if maps else "s3://shop/visual"

    def told(self, spec: dict[str, Any], replaced: list[str]) -> tuple[dict[str, Any], list[str]]:
        """Return a pod's spec with this store's address and keys, and what was replaced."""
        env = [value for value in spec["containers"][0]["env"] if value["name"] not in self.variables()]
        env += [{"name": name, "value": value} for name, value in self.variables().items()]
        spec["containers"][0]["env"] = env
        return spec, [*replaced, "the object store, by SeaweedFS with keys"]

    def variables(self) -> dict[str, str]:
        """Return what names the store to a program; the store is there then."""
        if not self._variables:
            keys = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": "us-east-1"}
            os.environ |= keys
            server = WeedServer(self.work / "weed", self.store.removeprefix("s3://").partition("/")[0])
            self._stack.callback(server.stop)
            self._variables = {**keys, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.port}"}
            os.environ |= self._variables
            self._publish()
        return self._variables

    def _publish(self) -> None:
        """Make a release in this process, without Ray."""
        render_catalogue(self.work / "catalogue", items=100, seed=0)
        words = [
            "refresh", "--run", "2026-11-30", "--json", f"store={self.store}", "images.size=32",
            "model.kind=descriptor", f"catalogue.source={self.work / 'catalogue' / 'catalogue.csv'}",
        ]  # fmt: skip
        with pytest.MonkeyPatch.context() as patch:
            stages_here.run_stages_here(patch)
            if code := codebooks(words):
                raise RuntimeError(f"the release was refused with {code}")
        self.item = str(open_release(self.store, cache_dir=self.work / "cache").item_ids()[0])


def answered(url: str, limit_s: float) -> Any:
    """Return the JSON of an address once it answers with 200, None where it does not in time."""
    until = time.monotonic() + limit_s
    while time.monotonic() < until:
        with contextlib.suppress(OSError, ValueError), urllib.request.urlopen(url, timeout=5) as answer:
            return json.loads(answer.read() or b"null") or True
        time.sleep(0.5)
    return None
