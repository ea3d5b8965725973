"""`choose` on a small rendered catalogue: real stages, fold by fold, in this process; what is kept, and leaks."""

from __future__ import annotations

import json
import os
import re
import signal
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from jobs.__main__ import main
from jobs.choosing import candidates_asked
from jobs.command import Arguments
from jobs.config import load_config
from pipeline.encoding import run_shards_here
from pipeline.errors import NotFound
from pipeline.evaluation.folds import group_difference
from pipeline.images.render import render_catalogue
from pipeline.models import build_model
from pipeline.models.descriptor import DescriptorConfig
from pipeline.models.pretrained import PretrainedConfig
from pipeline.quality import choosing
from pipeline.quality.choice_report import choose_among
from pipeline.quality.choosing import Measured, Photos, licences_of, photos_per_s
from pipeline.storage import Body, Files, Store, open_store

CANDIDATES = {
    "four": {"model": {"kind": "descriptor", "read_out": {"dims": 4}}},
    "pixels": {"model": {"kind": "descriptor", "features": "pixels", "read_out": {"dims": 8}}, "images": {"size": 20}},
    "vae": {
        "model": {"kind": "vae", "latent_dim": 4, "channels": [4], "hidden": [8, 8]},
        "train": {"epochs": 1, "batch_size": 16, "split_by": "a column of another catalogue"},
    },
    "both": {"model": {"kind": "fusion", "members": ["four", "gradients"], "weights": [2, 1]}},
    "gradients": {"model": {"kind": "descriptor", "cell": 8, "block": 1, "read_out": {"dims": 3}}},
}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shop")
    render_catalogue(folder, items=44, seed=0, size=(32, 40))
    config = {
        "store": str(folder / "store"),
        "catalogue": {
            "source": str(folder / "catalogue.csv"),
            "item_id": "item_id",
            "image": "image",
            "category": "category",
        },
        "images": {"size": 16},
        "model": {"kind": "descriptor", "read_out": {"dims": 4}},
        "choose": {"folds": 2, "candidates": CANDIDATES},
    }
    (folder / "shop.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.fixture
def all_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Photos are worked on in this process: forks for nothing but safety cost a fifth of a second each."""
    monkeypatch.setattr("jobs.computing.run_shards_apart", run_shards_here)


def choose(shop: Path, capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> dict[str, Any]:
    assert main(["choose", "--config", str(shop / "shop.yaml"), "--json", *words]) == code
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


@pytest.mark.slow
@pytest.mark.usefixtures("all_here")
def test_candidates_are_measured_by_folds_found_again_and_the_best_is_written(
    shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = shop / "won.yaml"
    found = choose(shop, capsys, "--candidates", "four,pixels,vae,both", "--seeds", "0,1", "--write", str(target))
    choice = found["choice"]
    rows = {row["name"]: row for row in choice["candidates"]}
    assert set(rows) == {"four", "pixels", "vae", "both", "gradients"}  # a fusion's member comes along
    assert {name: row["numbers"] for name, row in rows.items()} == {
        "four": 4, "pixels": 8, "vae": 4, "both": 7, "gradients": 3,
    }  # fmt: skip
    assert rows["vae"]["bytes"] == 32  # mean and log-variance
    assert (list(rows["vae"]["seeds"]), list(rows["four"]["seeds"])) == (["0", "1"], ["0"])
    asked = {row["knn"]["photos"] for row in rows.values()}
    assert len(asked) == 1  # every photo once, the same of all
    assert rows[choice["winner"]]["knn"]["mean"] == max(row["knn"]["mean"] for row in rows.values())
    assert any(row["front"] for row in rows.values())
    # Nothing but results is on the store, and no bundle that a night could take for its own.
    store = shop / "store"
    assert not (store / "models").exists()
    assert not (store / "pixels").exists()
    kept = sorted((store / "choices").glob("*.json"))
    assert len(kept) == 2 * (4 + 2)
    before = {path: path.stat().st_mtime_ns for path in kept}
    again = choose(shop, capsys, "--candidates", "vae,both,pixels,four", "--seeds", "0,1")["choice"]
    assert {row["name"]: row["knn"] for row in again["candidates"]} == {n: row["knn"] for n, row in rows.items()}
    assert {path: path.stat().st_mtime_ns for path in (store / "choices").glob("*.json")} == before
    assert main(["plan", "--config", str(target)]) == 0
    assert yaml.safe_load(target.read_text())["model"]["kind"] == rows[choice["winner"]]["kind"]
    assert "exists and is not overwritten" in choose(shop, capsys, "--write", str(target), code=2)["error"]


@pytest.mark.slow
def test_a_photo_that_kills_its_process_is_left_out_by_name_and_the_rest_is_asked(
    shop: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    us = os.getpid()

    class Deadly(Files):
        def fetch(self, uri: str, **wanted: Any) -> Body:
            if uri.endswith("sku-00007-0.jpg"):
                assert os.getpid() != us, "the command's own process would have died"
                signal.raise_signal(signal.SIGSEGV)
            return super().fetch(uri, **wanted)

    monkeypatch.setattr("jobs.choose.photo_files", lambda _: Deadly())
    found = choose(shop, capsys, "--candidates", "four,gradients", "images.size=24")["choice"]
    assert [row["knn"]["photos"] for row in found["candidates"]] == [53, 53]  # 54 can be asked
    said = [record.getMessage() for record in caplog.records if "quarantined" in record.getMessage()]
    assert len(said) == 1  # of two candidates in two folds, all of one pixels part
    assert re.search(r"sku-00007-0\.jpg is quarantined: crashed: .*SIGSEGV", said[0])
    monkeypatch.setattr("jobs.computing.run_shards_apart", run_shards_here)  # as it was done before
    told = choose(shop, capsys, "--candidates", "four,gradients", "images.size=40", code=1)
    assert "own process would have died" in told["error"]


@pytest.mark.slow
@pytest.mark.usefixtures("all_here")
def test_without_categories_items_and_views_are_found_again(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    choice = choose(shop, capsys, "--candidates", "four,pixels", "--by", "colour", "catalogue.category=null")["choice"]
    assert (choice["judged_by"], choice["by"]) == ("item_found", "colour")
    for row in choice["candidates"]:
        assert row["view_found"]["photos"] > row["item_found"]["photos"] > 0  # few items have a second photo
        assert 0 < row["view_found"]["mean"] <= 1
        assert "knn" not in row


def test_without_names_the_configs_own_model_stands_beside_gradients() -> None:
    def names(*overrides: str, preset: str = "vae_clothing") -> dict[str, Any]:
        given = ("store=/s", "catalogue.source=/c.parquet", "train.split_by=maker", *overrides)
        arguments = Arguments(config=preset, overrides=given, options=Namespace(candidates=None))
        return candidates_asked(arguments, load_config(arguments))

    found = names()
    assert list(found) == ["vae", "gradients", "gradients_views"]
    settings = found["gradients"].candidate.settings
    assert (settings.model.kind, settings.images.size, settings.train.epochs) == ("descriptor", 64, 20)
    assert "choose" not in found["vae"].values
    # A model that is compared anyway is compared once.
    assert list(names(preset="descriptor_clothing")) == ["descriptor", "gradients_views"]
    asked = Namespace(candidates="vae_hog_clothing,descriptor_fashion_mnist")
    given = Arguments(config="vae_clothing", overrides=("store=/s", "catalogue.source=/c.parquet"), options=asked)
    mixed = candidates_asked(given, load_config(given))
    assert [each.candidate.settings.images.size for each in mixed.values()] == [64, 28]
    assert {each.candidate.settings.train.split_by for each in mixed.values()} == {"sender_id"}  # of the config alone


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--candidates", "four"], 2, "there is one candidate, four; name at least two"),
        (["--candidates", "four,no_such_preset"], 2, "'no_such_preset' is neither a file nor a preset"),
        (
            ["--candidates", "four,pixels", "--by", "colour2"],
            2,
            "--by is 'colour2', and the catalogue has no such",
        ),
        (["--candidates", "four,pixels", "--folds", "1"], 2, "greater than or equal to 2"),
        (["--candidates", "four,pixels", "--folds", "99"], 3, "groups"),
    ],
)
def test_what_cannot_be_chosen_among_is_said(
    shop: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int, says: str
) -> None:
    assert says in choose(shop, capsys, *words, code=code)["error"]


def photos_of(count: int) -> Photos:
    names = [str(number) for number in range(count)]
    return Photos(names, names, names, names, [f"g{number % 10}" for number in range(count)], np.arange(count) % 2, "g")


def measured(name: str, knn: np.ndarray, speed: float) -> Measured:
    return Measured(name, "vae", (0,), {"knn": knn}, {0: {"knn": 1.0}}, 4, 16, speed, 1.0, ())


def test_the_front_holds_whom_none_beats_at_both_and_the_lead_is_paired() -> None:
    dice = np.random.default_rng(0)
    good = (dice.random(60) < 0.8).astype(float)
    poor = good * (dice.random(60) < 0.6)
    every = [measured("slow", good, 10), measured("poor", poor, 100), measured("beaten", poor, 50)]
    choice = choose_among(every, photos_of(60))
    assert [row.measured.name for row in choice.rows] == ["slow", "poor", "beaten"]
    assert [row.front for row in choice.rows] == [True, True, False]
    assert choice.winner.name == "slow"
    assert choice.rows[1].behind == group_difference(good, poor, photos_of(60).groups)


def test_a_student_is_of_its_teachers_licence(monkeypatch: pytest.MonkeyPatch) -> None:
    network = PretrainedConfig(weights="net.pth", recipe="efficientnet_lite0", licence="Apache-2.0")

    def stored(_: Store, model_id: str) -> tuple[PretrainedConfig, dict[str, int]]:
        if model_id != "a" * 64:
            raise NotFound(f"there is no {model_id}")
        return network, {"size": 16}

    monkeypatch.setattr(choosing, "stored_config", stored)
    student, store = {"kind": "ridge", "teacher": "a" * 64}, open_store("memory://choose-licences")
    fused = {"kind": "fusion", "parts": [{"model": student}, {"model": {"kind": "descriptor"}}]}
    assert licences_of(student, store) == licences_of(fused, store) == ["Apache-2.0"]
    assert licences_of(student) == licences_of({**student, "teacher": "b" * 64}, store) == []


def test_licences_are_those_of_all_parts_and_speed_is_of_the_sizes_seen() -> None:
    parts = {"members": [{"model": {"licence": "Apache-2.0"}}, {"model": {"licence": "MIT"}}], "licence": None}
    assert licences_of({"kind": "fusion", **parts, "teacher": {"licence": "MIT"}}) == ["Apache-2.0", "MIT"]
    model = build_model(DescriptorConfig.model_validate({"read_out": {"dims": None}}), image_size=16).eval()
    threads = torch.get_num_threads()
    assert photos_per_s(model, [16]) > 100
    assert torch.get_num_threads() == threads
