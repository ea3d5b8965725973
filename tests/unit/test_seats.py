"""How many actors encode: what the work needs where a cluster grows, what fits where it does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.command import Arguments
from jobs.config import load_config
from pipeline import machine, workers
from pipeline.encoding import EncodeConfig, seats
from pipeline.encoding.seats import Seats, plan_decoders, plan_seats
from pipeline.errors import ConfigError
from pipeline.workers import Room

MANY = 10_000_000


def room(cpus: float, *gpus: float, machines: int = 1, grows: bool = False) -> Room:
    return Room(machines, cpus, gpus, grows=grows)


@pytest.fixture(autouse=True)
def _a_machine_of_64_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seats, "usable_cores", lambda: 64)


@pytest.mark.parametrize(
    ("config", "shards", "cluster", "expected"),
    [
        ({"actors": 2}, 64, room(6), Seats(2, 2, 1.0)),
        ({"actors": 2}, 1, room(6), Seats(1, 1, 1.0)),
        ({"actors": 2}, 64, room(2), Seats(2, 2, 0.5)),
        ({"actors": 4}, 64, room(2), Seats(2, 2, 0.5)),
        ({"actors": 1}, 64, room(1), Seats(1, 1, 0.5)),
        ({"actors": 8, "threads": 4}, 64, room(16), Seats(7, 7, 2.14)),
        ({"actors": 8, "gpus_per_actor": 0.5}, 64, room(16, 2.0), Seats(4, 4, 1.0, 0.5)),
        ({"actors": {"min": 2, "max": 40}}, 64, room(6), Seats(2, 5, 1.0)),
        ({"actors": {"min": 8, "max": 40}}, 64, room(2), Seats(2, 2, 0.5)),
        ({}, 640, room(2), Seats(2, 2, 0.5)),
        ({}, 640, room(16), Seats(16, 16, 0.93)),
        ({"threads": 4}, 640, room(16), Seats(4, 4, 3.75)),
    ],
)
def test_actors_of_one_machine_leave_a_cpu_free(
    config: dict[str, Any], shards: int, cluster: Room, expected: Seats
) -> None:
    found = plan_seats(EncodeConfig(**config), shards, MANY, cluster)
    assert found == expected
    assert found.most * found.cpus <= cluster.cpus - min(1.0, cluster.cpus / 2)


def test_auto_takes_the_cores_that_there_are_not_those_that_ray_was_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seats, "usable_cores", lambda: 2)
    assert plan_seats(EncodeConfig(), 640, MANY, room(3)) == Seats(2, 2, 1.0)
    assert plan_seats(EncodeConfig(), 640, MANY, room(400, machines=100)) == Seats(399, 500, 1.0)


def test_auto_gives_every_actor_enough_to_be_worth_its_start() -> None:
    assert plan_seats(EncodeConfig(), 64, 200, room(16)).most == 1
    assert plan_seats(EncodeConfig(), 64, 3_500, room(16)).most == 4
    grown = [
        plan_seats(EncodeConfig(), 10**5, photos, room(1, grows=True)).least for photos in (200, 60_000, 10**7, 10**9)
    ]
    assert grown == [1, 3, 500, 1_000]


@pytest.mark.parametrize("cpus", [0.0, 1.0, 8.0])
def test_a_cluster_that_grows_is_asked_for_what_the_work_needs(cpus: float) -> None:
    cluster = room(cpus, grows=True)
    assert plan_seats(EncodeConfig(actors=400), 916, MANY, cluster) == Seats(400, 400, 1.0)
    assert plan_seats(EncodeConfig(actors=400), 40, MANY, cluster) == Seats(40, 40, 1.0)
    assert plan_seats(EncodeConfig(actors=4, gpus_per_actor=1), 64, MANY, cluster) == Seats(4, 4, 1.0, 1.0)
    assert plan_seats(EncodeConfig(actors={"min": 2, "max": 40}), 64, MANY, cluster) == Seats(2, 40, 1.0)
    # The control: by what is up there would be one.
    assert plan_seats(EncodeConfig(actors=400), 916, MANY, room(1)).most == 1


def test_several_machines_that_do_not_grow_may_be_joined_by_others() -> None:
    assert plan_seats(EncodeConfig(actors=8), 64, MANY, room(4, machines=2)) == Seats(3, 8, 1.0)
    assert plan_seats(EncodeConfig(actors=8), 64, MANY, Room(0, 0.0)) == Seats(8, 8, 1.0)


def test_a_cluster_without_gpus_is_refused_unless_it_grows() -> None:
    with pytest.raises(ConfigError, match=r"gpus_per_actor is 1 .* 0 GPUs on 1 machines, nor an autoscaler"):
        plan_seats(EncodeConfig(gpus_per_actor=1), 3, MANY, room(8))
    with pytest.raises(ConfigError, match=r"gpus_per_actor is 2"):  # two machines of one GPU have no place for it
        plan_seats(EncodeConfig(gpus_per_actor=2), 3, MANY, room(8, 1.0, 1.0, machines=2))


def test_gpus_per_actor_auto_goes_by_what_is_up() -> None:
    assert plan_seats(EncodeConfig(gpus_per_actor="auto"), 9, MANY, room(8, 4.0)).gpus == 1.0
    assert plan_seats(EncodeConfig(gpus_per_actor="auto"), 9, MANY, room(8)).gpus == 0.0


@pytest.mark.parametrize(
    ("quota", "cores"), [("200000 100000", 2), ("150000 100000", 2), ("max 100000", 64), ("50000 100000", 1), ("", 64)]
)
def test_a_containers_quota_counts_as_its_cores(
    quota: str, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    (tmp_path / "cpu.max").write_text(quota)
    assert machine.usable_cores() == cores


@pytest.mark.parametrize(
    ("types", "grows"),
    [
        ({"ray.head.default": 1}, True),
        ({"headgroup": 1, "cpu": 3}, True),
        ({f"node_{'0a' * 28}": 1, f"node_{'1b' * 28}": 1}, False),
        ({}, False),
    ],
)
def test_an_autoscaler_is_known_by_the_types_it_names(
    types: dict[str, int], grows: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.experimental import internal_kv

    told = json.dumps({"autoscaler_report": {"active_nodes": types, "pending_launches": {}}}).encode()
    monkeypatch.setattr(internal_kv, "_internal_kv_get", lambda _: told)
    monkeypatch.setattr(workers, "_types_of_second_version", set)
    assert workers._grows() is grows
    monkeypatch.setattr(internal_kv, "_internal_kv_get", lambda _: None)  # nobody has written anything
    assert not workers._grows()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("encode.actors=many", r"encode.actors: allowed: 'auto'"),
        ("encode.actors=0", r"encode.actors: .*greater than or equal to 1"),
        ("encode.actors={min: 5, max: 2}", r"min 5 is more than max 2"),
        ("encode.actors={least: 5}", r"encode.actors.least: unknown name"),
        ("encode.gpus_per_actor=-1", r"encode.gpus_per_actor: .*greater than or equal to 0"),
    ],
)
def test_what_is_no_number_of_actors_is_refused_in_plain_words(given: str, words: str) -> None:
    overrides = ("store=/s", "catalogue.source=/c.parquet", "model.kind=vae", given)
    with pytest.raises(ConfigError, match=words):
        load_config(Arguments(overrides=overrides), {})


def test_what_the_config_insists_on_is_what_a_local_cluster_makes_room_for() -> None:
    given: list[Any] = ["auto", 5, {"min": 3, "max": 9}]
    assert [EncodeConfig(actors=actors).least_actors for actors in given] == [1, 5, 3]


@pytest.mark.parametrize(
    ("config", "cluster", "expected"),
    [
        ({}, room(16), None),  # on CPUs one stage does it all
        ({"stages": "one", "gpus_per_actor": 1}, room(16, 1.0), None),
        ({"gpus_per_actor": 1, "actors": 1}, room(16, 1.0), Seats(14, 14, 1.0)),
        ({"gpus_per_actor": 1, "actors": 1, "decoders": 4}, room(16, 1.0), Seats(4, 4, 1.0)),
        ({"stages": "two", "actors": 1, "decoders": {"min": 2, "max": 6}}, room(16), Seats(2, 6, 1.0)),
        ({"stages": "two", "actors": 1}, room(4), Seats(2, 2, 1.0)),
        ({"stages": "two", "actors": 1, "decoders": 8}, room(4), Seats(2, 2, 1.0)),
        ({"stages": "two", "actors": 1}, room(2), Seats(1, 1, 0.5)),
        ({"gpus_per_actor": 1, "actors": 4}, room(2, grows=True), Seats(64, 64, 1.0)),
        ({"gpus_per_actor": 1, "actors": 2}, room(40, 1.0, 1.0, machines=3), Seats(37, 37, 1.0)),
    ],
)
def test_who_decodes_for_the_actors(config: dict[str, Any], cluster: Room, expected: Seats | None) -> None:
    given = EncodeConfig(**config)
    encoders = plan_seats(given, 640, MANY, cluster)
    decoders = plan_decoders(given, encoders, 640, MANY, cluster)
    assert decoders == expected
    if decoders is not None and not cluster.grows:
        assert encoders.least * encoders.cpus + decoders.least * decoders.cpus < cluster.cpus, "a part stays free"
