"""`codebooks doctor`: each check says ok, warn or fail, how to mend it, and the exit code fits the worst."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.__main__ import main
from pipeline import machine
from pipeline.errors import ConfigError, Unavailable
from pipeline.storage import LocalStore, Store, open_store

CATALOGUE = "item_id,image,category\na,a.jpg,Shoes\nb,b.jpg,Hats\n"


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CODEBOOKS__STORE", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "catalogue.csv").write_text(CATALOGUE)
    path = tmp_path / "night.yaml"
    path.write_text(
        f"store: {tmp_path / 'store'}\n"
        f"catalogue: {{source: {tmp_path / 'catalogue.csv'}, category: category}}\n"
        "model: {kind: vae}\n"
    )
    return path


def examined(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, dict[str, Any]], str]:
    """Return the exit code, the checks by name and the text."""
    code = main(["doctor", "--json", *words])
    taken = capsys.readouterr()
    found = json.loads(taken.out)
    assert {"run", "release", "published", "reason"} <= set(found)
    assert found.get("exit_code", 0) == code
    return code, {check["name"]: check for check in found["checks"]}, taken.err


def levels(checks: dict[str, dict[str, Any]]) -> dict[str, str]:
    return {name: check["level"] for name, check in checks.items()}


def test_all_is_well(capsys: pytest.CaptureFixture[str], config: Path, tmp_path: Path) -> None:
    code, checks, text = examined(capsys, "--config", str(config))
    assert code == 0, text
    found = levels(checks)
    assert "fail" not in found.values()
    for name in ("python", "packages", "faiss", "config", "store", "channel", "catalogue"):
        assert found[name] == "ok", checks[name]
    assert "whole config valid" in checks["config"]["text"]
    assert "csv, columns item_id, image, category" in checks["catalogue"]["text"]
    assert [path.name for path in (tmp_path / "store").rglob("*") if path.is_file()] == []  # leaves nothing behind


def test_without_a_config_it_looks_at_the_machine(capsys: pytest.CaptureFixture[str]) -> None:
    code, checks, text = examined(capsys)
    assert code == 0
    assert checks["config"]["level"] == "warn"
    assert "-> name one" in text
    assert "store" not in checks


def test_it_shows_the_current_release(capsys: pytest.CaptureFixture[str], config: Path, tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    store.put("store.json", b'{"format": 1}')
    entry = {
        "number": 1, "release_id": "night-a", "manifest_sha256": "0" * 64, "run": "night", "attempt": 1,
        "reason": "publish", "created": "2026-11-21T00:00:00Z",
    }  # fmt: skip
    store.put("channels/stable/000000000001.json", json.dumps(entry).encode())
    _, checks, _ = examined(capsys, "--config", str(config))
    assert "night-a (number 1)" in checks["channel"]["text"]


def test_a_wrong_config_is_2_and_the_rest_is_still_checked(capsys: pytest.CaptureFixture[str], config: Path) -> None:
    code, checks, text = examined(capsys, "--config", str(config), "train.epoch=3")
    assert code == 2
    assert "did you mean 'train.epochs'?" in checks["config"]["text"]
    assert checks["store"]["level"] == "ok"
    assert checks["catalogue"]["level"] == "ok"
    assert "1 failed" in text


def test_a_catalogue_that_is_not_there_is_3(capsys: pytest.CaptureFixture[str], config: Path, tmp_path: Path) -> None:
    code, checks, _ = examined(capsys, "--config", str(config), f"catalogue.source={tmp_path / 'none.csv'}")
    assert (code, checks["catalogue"]["level"]) == (3, "fail")
    code, checks, _ = examined(capsys, "--config", str(config), "catalogue.image=picture")
    assert (code, checks["catalogue"]["level"]) == (3, "fail")
    assert "'picture'" in checks["catalogue"]["text"]


def test_a_store_that_cannot_be_written_is_3(capsys: pytest.CaptureFixture[str], config: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    code, checks, _ = examined(capsys, "--config", str(config), f"store={tmp_path / 'file'}")
    assert (code, checks["store"]["level"]) == (3, "fail"), checks["store"]


def test_a_store_that_is_away_is_6(
    capsys: pytest.CaptureFixture[str], config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(self: Store, name: str, data: bytes) -> bool:
        raise Unavailable(f"{name}: 503; try again")

    monkeypatch.setattr(LocalStore, "put_if_absent", away)
    code, checks, _ = examined(capsys, "--config", str(config))
    assert (code, checks["store"]["level"]) == (6, "fail")
    code, _, _ = examined(capsys, "--config", str(config), "train.epoch=3")
    assert code == 2  # the config must be mended first


def test_a_store_that_ignores_write_once_is_2(
    capsys: pytest.CaptureFixture[str], config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overwrites(self: Store, name: str, data: bytes) -> bool:
        self.put(name, data)
        return True

    monkeypatch.setattr(LocalStore, "put_if_absent", overwrites)
    code, checks, _ = examined(capsys, "--config", str(config))
    assert (code, checks["store"]["level"]) == (2, "fail")
    assert "honours conditional writes" in checks["store"]["text"]


def test_a_newer_store_is_3(capsys: pytest.CaptureFixture[str], config: Path, tmp_path: Path) -> None:
    open_store(str(tmp_path / "store")).put("store.json", b'{"format": 2}')
    code, checks, text = examined(capsys, "--config", str(config))
    assert code == 3
    assert "upgrade visual-codebooks" in text
    assert "fail" in levels(checks).values()


def test_no_faiss_or_two_is_2(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def two() -> Any:
        raise ConfigError("2 FAISS wheels are installed (faiss-cpu, faiss-gpu-cuvs)")

    monkeypatch.setattr(machine, "load_faiss", two)
    code, checks, _ = examined(capsys)
    assert (code, checks["faiss"]["level"]) == (2, "fail")


def test_packages_that_are_missing_or_old(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name == "ray":
            raise importlib.metadata.PackageNotFoundError(name)
        return "0.4.2" if name == "s3fs" else real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: REQUIRES)
    code, checks, _ = examined(capsys)
    assert code == 2
    assert checks["packages"]["text"] == "s3fs is 0.4.2, needed is 2025.5"
    assert checks["packages [run]"]["level"] == "warn"
    assert checks["packages [run]"]["text"] == "ray is missing"


REQUIRES = [
    "numpy>=2",
    "s3fs>=2025.5",
    "aiobotocore[boto3]>=2.22",
    'ray[default,data,train]>=2.60; extra == "run"',
    'torch>=2.13; extra == "run"',
    'ruff>=99; extra == "dev"',
]


def test_little_memory_and_disk_are_warnings(
    capsys: pytest.CaptureFixture[str], config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 2**30

    monkeypatch.setattr(machine, "_available_memory", lambda: 2**30)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage)
    code, checks, text = examined(capsys, "--config", str(config))
    assert code == 0
    found = levels(checks)
    assert (found["memory"], found["disk (store)"], found["disk (temporary files)"]) == ("warn", "warn", "warn")
    assert "lower encode.actors" in text


@pytest.mark.s3
def test_a_store_on_s3(capsys: pytest.CaptureFixture[str], config: Path, s3_server: Any) -> None:
    bucket = s3_server.make_bucket(f"doctor-{uuid.uuid4().hex[:8]}")
    code, checks, text = examined(capsys, "--config", str(config), f"store={bucket}/visual")
    assert code == 0, text
    assert checks["store"]["level"] == "ok"
    code, checks, _ = examined(capsys, "--config", str(config), "store=s3://no-such-bucket-here/visual")
    assert code == 3
    assert checks["store"]["level"] == "fail"


def test_every_line_of_text_begins_with_its_level(capsys: pytest.CaptureFixture[str]) -> None:
    _, checks, text = examined(capsys)

    def lines() -> Iterator[str]:
        yield from (line for line in text.splitlines()[:-1] if not line.startswith("       ->"))

    assert [line.split()[0] for line in lines()] == [check["level"] for check in checks.values()]


def test_nothing_is_tried_while_something_is_wrong(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, checks, _ = examined(capsys, "--try", f"store={tmp_path / 'store'}", "catalogue.source=/nowhere.csv")
    assert code in (2, 3)
    assert checks["try"]["level"] == "warn"
    assert "nothing was tried" in checks["try"]["text"]
