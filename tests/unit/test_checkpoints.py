"""Checkpoints: whole or ignored, pruned, and refused by another training."""

from __future__ import annotations

import json
import random
import uuid

import numpy as np
import pytest
import torch

from pipeline.errors import ConfigError, IntegrityError
from pipeline.storage import Store, open_store
from pipeline.training.checkpoints import Checkpoints
from pipeline.training.ranks import Ranks, random_state, restore_random, seed_rank

FOLDER = "runs/night/checkpoints/0123456789ab"


@pytest.fixture
def store() -> Store:
    return open_store(f"memory://{uuid.uuid4().hex}")


def checkpoints(store: Store, *, keep: int = 2, ranks: Ranks | None = None, **identity: object) -> Checkpoints:
    return Checkpoints(store, FOLDER, ranks or Ranks(), identity={"epochs": 3, **identity}, keep=keep)


def state(value: float) -> dict[str, object]:
    return {"model": {"w": torch.full((2,), value)}, "optimiser": {"state": {0: {"step": torch.tensor(value)}}}}


def steps_on(store: Store) -> list[str]:
    return sorted({entry.name.split("/")[4] for entry in store.list(f"{FOLDER}/")})


def test_the_newest_complete_one_is_found_and_loaded(store):
    saved = checkpoints(store)
    assert saved.newest() is None
    for step in (5, 10):
        saved.save(step, state(step))
    assert checkpoints(store).newest() == 10
    assert checkpoints(store).load(10)["model"]["w"].tolist() == [10.0, 10.0]
    names = [entry.name.removeprefix(f"{FOLDER}/") for entry in store.list(f"{FOLDER}/000000010/")]
    assert names == ["000000010/complete.json", "000000010/model.pt", "000000010/rank-0.pt"]


def test_a_half_written_one_is_ignored(store):
    checkpoints(store).save(5, state(5))
    checkpoints(store).save(10, state(10))
    store.delete(f"{FOLDER}/000000010/complete.json")
    assert checkpoints(store).newest() == 5


def test_older_ones_are_pruned_half_written_ones_too(store):
    saved = checkpoints(store, keep=2)
    store.put(f"{FOLDER}/000000001/model.pt", b"half")
    for step in (2, 3, 4, 5):
        saved.save(step, state(step))
    assert steps_on(store) == ["000000004", "000000005"]
    # One that a newer attempt is just writing is not touched by an older attempt's pruning.
    store.put(f"{FOLDER}/000000009/model.pt", b"half")
    saved.save(6, state(6))
    assert steps_on(store) == ["000000005", "000000006", "000000009"]


def test_a_zombie_deletes_nothing_that_a_newer_attempt_may_load(store, monkeypatch):
    live = {"attempt": 1}
    zombie = Checkpoints(store, FOLDER, Ranks(), identity={"epochs": 3}, keep=1, may_prune=lambda: live["attempt"] == 1)
    for step in (2, 3):
        zombie.save(step, state(step))
    assert steps_on(store) == ["000000003"]  # the live attempt prunes
    live["attempt"] = 2
    newcomer = checkpoints(store, keep=1)
    chosen = newcomer.newest()
    for step in (4, 5):
        zombie.save(step, state(step))
    assert newcomer.load(chosen)["model"]["w"].tolist() == [3.0, 3.0]
    assert steps_on(store) == ["000000003", "000000004", "000000005"]
    newcomer.save(6, state(6))
    assert steps_on(store) == ["000000006"]


def test_a_zombie_whose_deletes_are_late_takes_nothing_from_a_newer_attempt(store, monkeypatch):
    """The takeover falls between the zombie's check and its deletes, which land long after."""
    chosen: list[int | None] = []

    def check() -> bool:
        chosen.append(checkpoints(store).newest())  # the newcomer's choice, at the last moment that the check allows
        return True

    zombie = Checkpoints(store, FOLDER, Ranks(), identity={"epochs": 3}, keep=1, may_prune=check)
    delete, late = store.delete, []
    monkeypatch.setattr(store, "delete", late.append)
    for step in (2, 3, 4):
        zombie.save(step, state(step))
    assert chosen == [3, 4]  # at step 2 there is nothing to delete
    monkeypatch.setattr(store, "delete", delete)
    for name in late:
        delete(name)
    assert checkpoints(store).load(4)["model"]["w"].tolist() == [4.0, 4.0]


def test_another_training_is_refused_with_both_values(store):
    checkpoints(store).save(5, state(5))
    with pytest.raises(ConfigError, match="epochs: 3 there, 4 now") as raised:
        checkpoints(store, epochs=4).load(5)
    assert f"{FOLDER}/000000005/complete.json" in str(raised.value)
    with pytest.raises(ConfigError, match="inputs: None there, 'x' now"):
        checkpoints(store, inputs="x").load(5)
    store.put(f"{FOLDER}/000000005/complete.json", json.dumps({"format": 1}).encode())
    with pytest.raises(ConfigError, match="format: 1 there"):
        checkpoints(store).load(5)


@pytest.mark.parametrize("before", [1, 2, 3])
@pytest.mark.parametrize("after", [1, 2, 3])
def test_fewer_or_more_workers_go_on_each_with_numbers_of_its_own(store, monkeypatch, before, after):
    monkeypatch.setattr(Ranks, "wait_for_all", lambda _: None)
    for rank in reversed(range(before)):  # rank 0 completes it
        seed_rank(7, rank)
        checkpoints(store, ranks=Ranks(rank, before)).save(5, state(5))
    drawn = []
    for rank in range(after):
        assert checkpoints(store, ranks=Ranks(rank, after)).load(5)["model"]["w"].tolist() == [5.0, 5.0]
        drawn.append(torch.rand(3).tolist())
    assert len({tuple(numbers) for numbers in drawn}) == after  # else two ranks would augment alike
    expected = []
    for rank in range(after):
        seed_rank(7, rank)
        expected.append(torch.rand(3).tolist())
    assert (drawn == expected) == (before == after)  # as many as before go on to the same bits


def test_damaged_files_are_named(store):
    checkpoints(store).save(5, state(5))
    whole = store.get(f"{FOLDER}/000000005/model.pt")
    store.put(f"{FOLDER}/000000005/model.pt", whole[: len(whole) // 2])
    with pytest.raises(IntegrityError, match=r"000000005/model\.pt"):
        checkpoints(store).load(5)
    store.delete(f"{FOLDER}/000000005/model.pt")
    with pytest.raises(IntegrityError, match="missing from a complete checkpoint"):
        checkpoints(store).load(5)
    store.put(f"{FOLDER}/000000005/complete.json", b"{")
    with pytest.raises(IntegrityError, match="not a checkpoint note"):
        checkpoints(store).load(5)


class Harmful:
    def __reduce__(self):
        return (print, ("code from a checkpoint ran",))


def test_loading_runs_no_code_from_the_file(store, capsys):
    checkpoints(store).save(5, {"model": Harmful()})
    with pytest.raises(IntegrityError):
        checkpoints(store).load(5)
    assert capsys.readouterr().out == ""


def test_every_random_generator_is_restored(store):
    seed_rank(1, 0)
    checkpoints(store).save(5, state(5))

    def draw() -> list[float]:
        return [torch.randn(()).item(), float(np.random.standard_normal()), random.random(), random.gauss()]

    np.random.standard_normal()  # leaves a second normal behind, which belongs to the state
    middle = random_state(torch.device("cpu"))
    following = draw()
    restore_random(middle, torch.device("cpu"))
    assert draw() == following
    checkpoints(store).load(5)
    np.random.standard_normal()
    assert draw() == following


def test_ranks_draw_different_noise():
    seed_rank(1, 0)
    first = torch.randn(4)
    seed_rank(1, 1)
    assert not torch.equal(first, torch.randn(4))
    seed_rank(1, 0)
    assert torch.equal(first, torch.randn(4))
