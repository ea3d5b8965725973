"""Nights as a scheduler runs them, in this process instead of on Ray: samples, and what is done anew."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

import jobs.computing
import jobs.context
import jobs.demo
from jobs.__main__ import main
from jobs.command import Arguments
from jobs.config import load_config
from pipeline.encoding import make_worker
from pipeline.errors import ConfigError
from pipeline.models import bundle
from pipeline.models.bundle import find_bundle
from pipeline.planning import Asked, Plan
from pipeline.release import promote, read_head, read_manifest, rollback
from pipeline.storage import Store, open_store
from pipeline.training import TrainJob
from pipeline.training.ranks import Ranks
from pipeline.training.worker import NO_LINE

pytestmark = pytest.mark.slow

ITEMS = 12


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Let the stages of Ray run here; the train keys of what is trained are listed as it happens."""
    keys: list[str] = []

    def train_job(job: TrainJob, *, progress: Any) -> str:
        keys.append(job.train_key)
        job.run_rank(Ranks(), line=NO_LINE, first_here=True)
        return str(find_bundle(job.store, job.train_key))

    def run_shards(shards: list[Any], job: Any, *, on_result: Callable[..., None], **_watched: Any) -> list[Any]:
        worker = make_worker(job)
        results = [worker(shard) for shard in shards]
        for number, result in enumerate(results):
            on_result(result, number + 1, len(results))
        return results

    monkeypatch.setattr(jobs.computing, "train_job", train_job)
    monkeypatch.setattr(jobs.computing, "run_shards", run_shards)
    for module in (jobs.context, jobs.demo):
        monkeypatch.setattr(module, "ray_session", lambda *_, **__: nullcontext())
    # No night here is asked by photo, and the export takes longer than all the rest.
    monkeypatch.setattr(bundle, "export_encoder", lambda *_, **__: b"an encoder")
    return keys


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    for number in range(ITEMS):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 20, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    rows = "".join(f"item-{number},{number}.png\n" for number in range(ITEMS))
    (tmp_path / "catalogue.csv").write_text("item_id,image\n" + rows)
    return tmp_path


@pytest.fixture
def command(shop: Path, trained: list[str], capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """Run a command on the shop and return its JSON object; expect: its exit code."""

    def run(name: str, *words: str, expect: int = 0) -> dict[str, Any]:
        given = ["model.kind=descriptor", "images.size=16", "model.read_out={dims: 4}", "train.validation=0"]
        if any(word.startswith("model.kind") for word in words):
            given = given[1:2]
        settings = [f"store={shop / 'store'}", f"catalogue.source={shop / 'catalogue.csv'}", *given]
        capsys.readouterr()
        code = main([name, "--json", *settings, *words])
        out, err = capsys.readouterr()
        assert code == expect, f"exit {code}\n{out}\n{err}"
        return dict(json.loads(out))

    return run


@pytest.fixture
def store(shop: Path) -> Store:
    return open_store(str(shop / "store"))


def items_live(store: Store, channel: str = "stable") -> int:
    head = read_head(store, channel)
    return 0 if head is None else read_manifest(store, head.release_id).counts["items"]


def test_a_sample_ends_evaluated_and_the_channel_keeps_every_item(
    command: Callable[..., dict[str, Any]], store: Store, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = command("refresh", "--run", "night-1")
    sampled = command("refresh", "--run", "try", "--limit", "5")
    assert (sampled["published"], sampled["reason"], sampled["counts"]["items"]) == (False, "evaluated", 5)
    assert sampled["counts"]["removed"] == 0, "it is compared with nothing"
    assert items_live(store) == ITEMS
    manifest = read_manifest(store, sampled["release"])
    assert manifest.sample is not None
    assert manifest.sample.model_dump() == {"limit": 5, "seed": 0}
    assert read_manifest(store, first["release"]).sample is None
    # Other ways to the same channel: its name, a setting of the environment, the whole run's retry.
    for words in (["--channel", "stable"], ["--channel", "stable", "publish.channel=other"]):
        refused = command("refresh", "--run", "way", "--limit", "5", *words, expect=2)
        assert "sample" in refused["error"]
        assert "--channel sample" in refused["error"]
    monkeypatch.setenv("CODEBOOKS__PUBLISH__CHANNEL", "canary")
    assert command("refresh", "--run", "env", "--limit", "5")["reason"] == "evaluated"
    monkeypatch.delenv("CODEBOOKS__PUBLISH__CHANNEL")
    retried = command("refresh", "--run", "try", expect=2)
    assert "limit: the run has 5, now nothing" in retried["error"]
    with pytest.raises(ConfigError, match="is a sample of its catalogue"):
        rollback(store, "stable", to=sampled["release"])
    assert items_live(store) == ITEMS
    assert items_live(store, "canary") == 0
    night = command("refresh", "--run", "night-2")
    assert (night["reason"], night["release"]) == ("nothing to do", first["release"])


def test_a_sample_has_a_channel_of_its_own_and_is_promoted_nowhere(
    command: Callable[..., dict[str, Any]], store: Store
) -> None:
    small = command("refresh", "--run", "a", "--limit", "5", "--channel", "sample")
    assert small["published"]
    assert (items_live(store, "sample"), items_live(store)) == (5, 0)
    assert command("refresh", "--run", "b", "--limit", "5", "--channel", "sample")["reason"] == "nothing to do"
    larger = command("refresh", "--run", "c", "--limit", "8", "--channel", "sample")
    assert (larger["published"], items_live(store, "sample")) == (True, 8)
    assert rollback(store, "sample").release_id == small["release"]
    with pytest.raises(ConfigError, match="'stable' is empty"):
        promote(store, "sample", "stable")
    command("refresh", "--run", "night")
    with pytest.raises(ConfigError, match="readers would lose every item that was not drawn"):
        promote(store, "sample", "stable")
    assert items_live(store) == ITEMS


def test_a_training_of_a_sample_answers_no_night(command: Callable[..., dict[str, Any]], trained: list[str]) -> None:
    keys = [
        command(name, "--run", f"{name}-{limit}", "--limit", str(limit))["plan"]["train_key"]
        for name, limit in (("train", 5), ("train", 6), ("encode", 5), ("index", 5), ("evaluate", 5))
    ]
    assert keys[2:] == [keys[0]] * 3, "one sample, one training"
    whole = command("refresh", "--run", "night")
    assert len({*keys, whole["plan"]["train_key"]}) == 3
    assert trained == [keys[0], keys[1], whole["plan"]["train_key"]]
    other = command("train", "--run", "seeded", "--limit", "5", "train.seed=1")
    assert other["plan"]["train_key"] not in {*keys, whole["plan"]["train_key"]}


def test_a_plan_of_an_earlier_version_that_took_a_sample_for_the_catalogue_is_not_gone_on_with(
    command: Callable[..., dict[str, Any]], store: Store
) -> None:
    command("train", "--run", "old", "--limit", "5")
    plan = Plan.from_bytes(store.get("runs/old/plan.parquet"))
    former = Plan(plan.rows, plan.summary.model_copy(update={"sample": None, "channel": "stable"}))
    store.delete("runs/old/plan.parquet")
    store.put("runs/old/plan.parquet", former.to_bytes())
    refused = command("refresh", "--run", "old", "--limit", "5", expect=2)
    assert "start a run of another name" in refused["error"]


def test_a_changed_setting_costs_nothing_until_it_is_meant(
    command: Callable[..., dict[str, Any]], store: Store, trained: list[str]
) -> None:
    tiny = ["model.kind=vae", "model.latent_dim=4", "model.channels=[4, 8]", "train.epochs=1", "train.batch_size=6"]
    first = command("refresh", "--run", "night-1", *tiny)
    changed = [*tiny, "train.learning_rate=0.002"]
    before = sorted(entry.name for entry in store.list(""))
    refused = command("refresh", "--run", "night-2", *changed, expect=2)
    for said in ("TRAINS A NEW MODEL", "train.learning_rate: 0.001 in the parent's bundle, now 0.002", "--retrain",
                 f"about {ITEMS} photos", "train about", "by the rate of run night-1"):  # fmt: skip
        assert said in refused["error"]
    assert sorted(entry.name for entry in store.list("")) == before, "it leaves no trace"
    assert len(trained) == 1
    planned = command("plan", *changed)
    assert [setting["name"] for setting in planned["plan"]["renewal"]["changed"]] == ["train.learning_rate"]
    assert (planned["plan"]["renewal"]["trains"], planned["plan"]["renewal"]["photos"]) == (True, ITEMS)
    # Put right under the same name it is a night like any other; meant, it is said.
    assert command("refresh", "--run", "night-2", *tiny)["reason"] == "nothing to do"
    meant = command("refresh", "--run", "night-3", "--retrain", *changed)
    assert meant["published"]
    assert meant["model_id"] != first["model_id"]
    assert command("refresh", "--run", "night-3", *changed)["reason"] == "this run has already published"
    assert command("refresh", "--run", "night-1", *tiny)["reason"] == "this run has already published"
    unattended = command("refresh", "--run", "night-4", "train.when=missing", *tiny)
    assert (unattended["published"], unattended["model_id"]) == (True, first["model_id"])
    assert len(trained) == 2, "the first bundle is still there; only its latents are made again"


@pytest.mark.parametrize(
    ("changed", "name"), [("images.size=24", "images.size"), ("model.read_out={dims: 3}", "model.read_out.dims")]
)
def test_every_setting_that_does_all_anew_is_named(
    command: Callable[..., dict[str, Any]], changed: str, name: str
) -> None:
    command("refresh", "--run", "night-1")
    given = [changed, *(["model.kind=descriptor"] if name.startswith("model") else [])]
    refused = command("refresh", "--run", "night-2", *given, "train.validation=0", expect=2)
    assert f"{name}: " in refused["error"]


def test_a_transform_of_another_version_is_said_too(
    command: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch, trained: list[str]
) -> None:
    command("refresh", "--run", "night-1")
    monkeypatch.setattr("pipeline.images.config.TRANSFORM_VERSION", 99)
    refused = command("refresh", "--run", "night-2", expect=2)
    assert "THIS NIGHT ENCODES EVERY PHOTO ANEW" in refused["error"]
    assert "transform: " in refused["error"]
    assert command("refresh", "--run", "night-2", "--retrain")["published"]
    assert len(trained) == 1


def test_an_attempt_that_was_meant_is_gone_on_with_by_a_retry_without_the_word(
    command: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    command("refresh", "--run", "night-1")
    given = ["model.kind=descriptor", "model.read_out={dims: 3}", "train.validation=0"]

    def dies(*_: Any, **__: Any) -> None:
        raise RuntimeError("the node is gone")

    with monkeypatch.context() as patched:
        patched.setattr(jobs.computing, "train_job", dies)
        command("refresh", "--run", "night-2", "--retrain", *given, expect=1)
    assert command("refresh", "--run", "night-2", *given)["published"]


def test_more_hardware_is_nothing_to_do(
    command: Callable[..., dict[str, Any]], store: Store, trained: list[str]
) -> None:
    tiny = ["model.kind=vae", "model.latent_dim=4", "model.channels=[4, 8]", "train.epochs=1", "train.batch_size=6"]
    tiny.append("index.kind=flat")  # `auto` chooses by what the memory holds
    command("refresh", "--run", "night-1", *tiny)
    more = ["train.workers=2", "train.threads=2", "train.compile=true", "train.window_parts=9", "train.accumulate=3"]
    wider = ["index.threads=2", "index.memory_gib=1"]
    for number, setting in enumerate([*more, *wider]):
        night = command("refresh", "--run", f"more-{number}", *tiny, setting)
        assert night["reason"] == "nothing to do", setting
    assert len(trained) == 1


def test_a_store_of_an_earlier_version_is_not_trained_anew_on_more_hardware(
    command: Callable[..., dict[str, Any]], store: Store, trained: list[str]
) -> None:
    """The former key held the hardware, and only the parent's run tells with which one it was made."""
    tiny = ["model.kind=vae", "model.latent_dim=4", "model.channels=[4, 8]", "train.epochs=1", "train.batch_size=6"]
    first = command("refresh", "--run", "night-1", "train.threads=2", *tiny)
    key = first["plan"]["train_key"]
    settings = yaml.safe_load(store.get("runs/night-1/config.yaml"))
    words = (*tiny, "images.size=16", "store=x", f"catalogue.source={settings['catalogue']['source']}")
    former = Asked.of(load_config(Arguments(overrides=(*words, "train.threads=2")), {}), None).former_train_key()
    assert former != key
    store.delete(f"models/by-key/{key}.json")
    store.put(f"models/by-key/{former}.json", json.dumps({"model_id": first["model_id"]}).encode())
    assert command("plan", "train.threads=2", *tiny)["plan"]["model_id"] == first["model_id"]
    assert command("plan", "train.threads=3", *tiny)["plan"]["model_id"] is None, "nothing tells whose bundle it is"
    manifest = f"releases/{first['release']}/manifest.json"
    text = store.get(manifest).decode().replace(key, former)
    store.delete(manifest)
    store.put(manifest, text.encode())
    assert command("plan", "train.threads=3", *tiny)["plan"]["model_id"] == first["model_id"]
    assert command("plan", "train.threads=3", *tiny, "train.epochs=2")["plan"]["model_id"] is None
    assert command("train", "--run", "again", "train.threads=3", *tiny)["model_id"] == first["model_id"]
    assert find_bundle(store, key) == first["model_id"], "from now on its key of today answers"
    assert len(trained) == 1


def test_the_demo_shows_the_same_items_in_two_spaces(
    tmp_path: Path, trained: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--items", "64", f"store={tmp_path}", "images.size=32", "train.epochs=1", "train.batch_size=16"]
    assert main(["demo", "--json", "--run", "d", *small]) == 0
    out, err = capsys.readouterr()
    answer = json.loads(out)
    store = open_store(str(tmp_path))
    heads = [read_head(store, channel) for channel in ("stable", "descriptor")]
    kinds = [read_manifest(store, head.release_id).model_kind for head in heads if head is not None]
    assert kinds == ["vae", "descriptor"]
    assert (answer["release"], answer["second_release"]) == tuple(head.release_id for head in heads if head)
    lines = err[err.index("vae, 32 numbers a photo") :].splitlines()
    assert "descriptor, 64 numbers a photo" in lines[0]
    assert all(line.count("sku-") == 2 for line in lines[2:7]), "a neighbour of each space a line"
    page = Path(answer["side_by_side"]).read_text()
    assert page.count('alt="query vae ') == page.count('alt="query descriptor ') == 8
    # The photos are decoded once: the second model reads the pixels of the first.
    assert len(list(store.list("pixels/"))) == 1
