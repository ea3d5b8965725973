"""Bundles expire with the releases that are of them: what keeps one, and that no run goes on with half of one."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.errors import CodebooksError, Conflict, Unavailable
from pipeline.keys import digest_of
from pipeline.models import shelves
from pipeline.models.bundle import BUNDLES, find_bundle
from pipeline.release import Policy, expire, publish, read_head, undelete, write_release
from pipeline.release import expiry as expiry_room
from pipeline.release import holds as holds_room
from pipeline.release import roots as roots_room
from pipeline.release.holds import SWEEPS, Sweep
from pipeline.release.manifest import document_bytes

DAYS = timedelta(days=1)
ALL = Policy(keep=1, keep_days=0, max_share=1.0, bundles_days=20)
KEYS = [digest_of(word) for word in (b"first", b"second", b"third")]


@pytest.fixture
def store(expiring: Any) -> Iterator[Any]:
    made = expiring.ClockStore("memory://bundles")
    yield made
    made.before = lambda call, name: None


def trained(store: Any, key: str, **facts: Any) -> str:
    """Save what a training for this key gives, always the same."""
    module = torch.nn.Linear(2, 1)
    with torch.no_grad():
        module.weight.fill_(int(key[:4], 16))
        module.bias.zero_()
    facts = {"format": 1, "key": key, **facts}
    return BUNDLES.save(store, module, facts, train_key=key, derived={"encoder.onnx": lambda _: b"onnx" * 9})


def files_of(model: str) -> set[str]:
    return {f"models/{model}/{file}" for file in ("config.json", "weights.safetensors", "encoder.onnx")}


def released(store: Any, run: str, model: str) -> None:
    head = read_head(store, "stable")
    written = write_release(
        store, release_id=f"{run}-{digest_of(run.encode())[:12]}", files={"items": (run.encode(), ".parquet", 1)},
        parts=(), release_key="0" * 64, run=run, attempt=1, parent=None, model_id=model, model_kind="vae", latent_dim=3,
        transform_id="t", metric="l2", index_kind="flat", code_version="0",
    )  # fmt: skip
    publish(
        store, "stable", expected_head=head.number if head else 0, release_id=written.manifest.release_id,
        manifest_sha256=written.manifest_sha256, run=run, attempt=1,
    )  # fmt: skip


def verdicts(store: Any) -> dict[str, tuple[bool, str]]:
    return {one.entry.name: (one.keep, one.reason) for one in expire(store, ALL).judged}


def test_a_bundle_goes_with_its_last_release_and_its_key_then_answers_nothing(store: Any) -> None:
    teacher, old, new = trained(store, KEYS[0]), trained(store, KEYS[1]), "0" * 64
    new = trained(store, KEYS[2], teacher=teacher)
    store.put(f"models/{old}/sids-0123456789ab.safetensors", b"codes")
    store.put("models/notes.txt", b"mine")
    released(store, "one", old)
    store.pass_days(5)
    released(store, "two", new)
    said = verdicts(store)
    assert said[f"models/{old}/config.json"][0]  # release one is younger than the grace
    store.pass_days(16)
    said = verdicts(store)
    gone = {*files_of(old), f"models/{old}/sids-0123456789ab.safetensors", f"models/by-key/{KEYS[1]}.json"}
    assert {name for name, (keep, _) in said.items() if not keep and name.startswith("models/")} == gone
    assert said[f"models/{old}/config.json"][1] == "bundle that no kept release is of"
    assert said[f"models/{teacher}/config.json"] == (True, f"bundle {new[:12]} was made of it")
    assert said[f"models/{new}/weights.safetensors"][1].startswith("named by two-")
    assert said["models/notes.txt"] == (True, "unknown file")
    expire(store, ALL, yes=True)
    assert find_bundle(store, KEYS[1]) == old
    assert undelete(store).files >= len(gone)
    expire(store, ALL, yes=True)
    store.pass_days(8)
    expire(store, ALL, yes=True)
    assert not store.names() & gone
    assert find_bundle(store, KEYS[1]) is None
    assert trained(store, KEYS[1]) == old == find_bundle(store, KEYS[1])
    assert files_of(old) <= store.names()


def test_a_bundle_without_a_release_lives_its_days_and_as_long_as_a_run_may_find_it(
    expiring: Any, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = trained(store, KEYS[0])
    store.pass_days(19)
    assert verdicts(store)[f"models/{model}/config.json"] == (
        True, "bundle younger than 20 days (no kept release is of it)"
    )  # fmt: skip
    store.pass_days(2)
    assert not verdicts(store)[f"models/{model}/config.json"][0]
    expiring.begin(store, "tonight")  # without a plan yet
    assert verdicts(store)[f"models/{model}/config.json"] == (True, "run tonight may be at work and may find this")
    store.put("runs/tonight/plan.parquet", expiring.plan([], parent=None, model=model))
    assert verdicts(store)[f"models/{model}/config.json"] == (True, "the plan of run tonight may be at work")
    with monkeypatch.context() as ignoring:  # the negative control
        ignoring.setattr(roots_room, "read_runs", lambda entries: {})
        assert not verdicts(store)[f"models/{model}/config.json"][0]
    store.put("runs/tonight/plan.parquet", expiring.plan([], parent=None, model="1" * 64))
    assert not verdicts(store)[f"models/{model}/config.json"][0]


def test_nobody_goes_on_with_a_bundle_that_a_sweep_is_deleting(store: Any) -> None:
    model = trained(store, KEYS[0])
    store.pass_days(30)
    expire(store, ALL, yes=True)
    (mark,) = (entry.name for entry in store.list("expiry/marks/"))
    said = json.loads(store.get(mark))
    sweep = Sweep(holder="h", mark=mark, listed=said["listed"], sha256=said["sha256"], releases=())
    store.put(f"{SWEEPS}000000000001.json", document_bytes(sweep))
    with pytest.raises(Unavailable, match=f"models/{model}/config.json is on the list .* deleting now; try again"):
        find_bundle(store, KEYS[0])
    store.delete(f"{SWEEPS}000000000001.json")
    assert find_bundle(store, KEYS[0]) == model
    # A bundle that somebody took away by hand: its key answers nothing, and what is trained then answers it.
    store.delete(f"models/{model}/config.json")
    assert find_bundle(store, KEYS[0]) is None
    assert trained(store, KEYS[0], other=1) == find_bundle(store, KEYS[0]) != model


class World:
    """Runs that find or train bundles and publish releases of them, and two sweepers, on one store."""

    def __init__(self, expiring: Any, store: Any, seed: int) -> None:
        self.expiring, self.store, self.rng = expiring, store, np.random.default_rng(seed)
        self.using: dict[str, tuple[str, Any]] = {}
        self.dirty, self.lost, self.swept, self.found = True, "", 0, 0
        released(store, "zero", trained(store, KEYS[0]))
        self.turns = expiring.Turns(store, self.rng, self.between)
        pause: Callable[[str, str], None] = store.before

        def before(call: str, name: str) -> None:
            self.dirty |= call == "delete"
            self.swept += call == "delete" and name.startswith("models/")
            if call != "delete":
                pause(call, name)

        store.before = before
        for worker in range(2):
            self.turns.add(lambda worker=worker: self.work(worker))
        for _ in range(2):
            self.turns.add(self.expires)

    def between(self) -> None:
        if self.rng.random() < 0.02:
            self.store.pass_days(float(self.rng.choice([0.01, 0.1, 0.3])))
        if self.dirty and not self.lost:
            self.dirty = False
            for run, (model, since) in self.using.items():
                gone = files_of(model) - self.store.names()
                if gone and self.store.now - since < 0.5 * DAYS:  # one that slept longer counts as dead
                    self.lost = f"{run} has lost {min(gone)}"

    def work(self, worker: int) -> None:
        for number in range(1000):
            run, store = f"w{worker}-{number}", self.store
            since = store.now
            self.expiring.begin(store, run)
            try:
                key = KEYS[int(self.rng.integers(3))]
                found = find_bundle(store, key)
                self.found += found is not None
                model = found or trained(store, key)
                self.using[run], self.dirty = (model, since), True
                store.put(f"runs/{run}/plan.parquet", self.expiring.plan([], parent=None, model=model))
                for _ in range(int(self.rng.integers(40))):
                    store.stat("store.json")
                released(store, run, model)
            except CodebooksError:
                pass
            self.using.pop(run, None)
            self.expiring.end(store, run)

    def expires(self) -> None:
        while True:
            with contextlib.suppress(Conflict, Unavailable):
                expire(self.store, Policy(keep=1, keep_days=0, max_share=1.0, bundles_days=0), yes=True)


class Serial:
    """In place of a pool: the deletions of a sweep come one after the other, so that others come between."""

    def __init__(self, _: int) -> None: ...

    def __enter__(self) -> Serial:
        return self

    def __exit__(self, *_: object) -> None: ...

    def map(self, function: Callable[[Any], Any], values: Any) -> list[Any]:
        return [function(value) for value in values]


def lived(expiring: Any, monkeypatch: pytest.MonkeyPatch, seed: int, steps: int = 2000) -> World:
    store = expiring.ClockStore("memory://bundles")
    monkeypatch.setattr(expiry_room, "grace_of", lambda policy, runs: 0.5 * DAYS)
    monkeypatch.setattr(expiry_room, "ThreadPoolExecutor", Serial)
    monkeypatch.setattr(expiry_room, "elapsed", lambda: float(store.now.timestamp()))
    monkeypatch.setattr(holds_room, "_APPEND_S", 90 * 86_400.0)
    world = World(expiring, store, seed)
    world.turns.run(steps)
    assert world.turns.errors == [], world.turns.errors
    return world


@pytest.mark.slow
def test_no_run_loses_the_bundle_that_it_found(expiring: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    world = lived(expiring, monkeypatch, 6)
    assert world.lost == ""
    assert world.swept > 0
    assert world.found > 0


@pytest.mark.slow
def test_the_check_catches_runs_that_do_not_look_for_sweeps(expiring: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelves, "check_names_not_swept", lambda store, names: None)
    assert any(lived(expiring, monkeypatch, seed).lost for seed in (11, 3, 5, 9, 18))
