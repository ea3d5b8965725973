"""Waiting for a cluster's nodes, and the paths that only one of them could read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

import pipeline.nodes
from jobs.config import Config, config_values
from pipeline.errors import ConfigError, Unavailable
from pipeline.nodes import (
    ClusterConfig,
    Node,
    joined_address,
    living,
    local_places,
    refuse_local_places,
    wait_for_nodes,
)

HEAD = Node("10.0.0.1", 0.0, 0.0)


class Clock:
    """Time that passes by sleeping alone."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(pipeline.nodes, "time", self)

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def workers(number: int) -> list[Node]:
    return [Node(f"10.0.0.{n + 2}", 4.0, 1.0) for n in range(number)]


def test_nodes_are_waited_for_and_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, told = Clock(monkeypatch), list[str]()

    def look() -> list[Node]:
        return [HEAD, *workers(int(clock.now // 40))]

    wait_for_nodes(ClusterConfig(min_nodes=2, wait_s=300), look, told.append)
    assert clock.now == 80
    assert len(told) == 3  # at 0, 30 and 60 s
    assert told[0] == (
        "cluster: there are 0 of the 2 nodes that cluster.min_nodes asks for (10.0.0.1 (takes no work)); waiting up to "
        "300 s more (cluster.wait_s)"
    )
    assert (
        "1 of the 2 nodes that cluster.min_nodes asks for (10.0.0.1 (takes no work), 10.0.0.2 (4 CPUs, 1 GPUs))"
        in told[2]
    )


def test_nodes_that_never_come_are_a_reason_to_try_again(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    with pytest.raises(Unavailable, match=r"after 7 s \(cluster.wait_s\) the cluster has 1 of the 3 nodes"):
        wait_for_nodes(ClusterConfig(min_nodes=3, wait_s=7), lambda: workers(1), lambda _: None)
    assert clock.now == 7


def test_dead_nodes_do_not_count() -> None:
    seen = [
        {"Alive": alive, "NodeManagerAddress": name, "Resources": {"CPU": 2.0}}
        for name, alive in (("b", True), ("a", False))
    ]
    assert living(seen) == [Node("b", 2.0, 0.0)]


@pytest.mark.parametrize("address", ["http://head:8265", "ray://head:10001", "https://head"])
def test_an_address_that_no_process_joins_by_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="codebooks submit --address"):
        joined_address(address)


def test_addresses() -> None:
    assert [joined_address(each) for each in (None, "", "local", "auto", "10.0.0.1:6379")] == [
        None, None, None, "auto", "10.0.0.1:6379",
    ]  # fmt: skip


def config(**sections: Any) -> Mapping[str, Any]:
    whole = {"store": {"url": "s3://b/p"}, "catalogue": {"source": "s3://b/c"}, "model": {"kind": "vae"}, **sections}
    return config_values(Config.model_validate(whole))


@pytest.mark.parametrize(
    ("sections", "keys"),
    [
        ({}, []),
        ({"store": {"url": "/data/store"}}, ["store.url"]),
        ({"store": {"url": "file:///data/store"}}, ["store.url"]),
        ({"store": {"url": "memory://x"}}, ["store.url"]),
        ({"catalogue": {"source": "photos"}}, ["catalogue.source"]),
        ({"catalogue": {"source": "s3://b", "allowed_prefixes": ["/p/", "s3://b/"]}}, ["catalogue.allowed_prefixes"]),
        ({"model": {"kind": "pretrained"}}, ["model.weights"]),
        ({"model": {"kind": "pretrained", "weights": "s3://b/r18.pth"}}, []),
        ({"model": {"kind": "distilled", "teacher": {"kind": "pretrained"}}}, ["model.teacher.weights"]),
        ({"store": {"url": "/mnt/nfs/s"}, "cluster": {"shared_folders": ["/mnt/nfs"]}}, []),
        ({"store": {"url": "file:///mnt/nfs/s"}, "cluster": {"shared_folders": ["/mnt/nfs/"]}}, []),
        ({"store": {"url": "/mnt/nfs2/s"}, "cluster": {"shared_folders": ["/mnt/nfs"]}}, ["store.url"]),
        ({"store": {"url": "/mnt/nfs/../s"}, "cluster": {"shared_folders": ["/mnt/nfs"]}}, ["store.url"]),
    ],
)  # fmt: skip
def test_paths_of_one_machine_are_found(sections: dict[str, Any], keys: list[str]) -> None:
    found = local_places(config(**sections))
    assert sorted({place.key for place in found}) == keys
    refuse_local_places(found, ["10.0.0.1"])
    if found:
        with pytest.raises(ConfigError, match="object store"):
            refuse_local_places(found, ["10.0.0.1", "10.0.0.2"])
        with pytest.raises(ConfigError, match="shall have 2 nodes"):
            refuse_local_places(found, ["10.0.0.1"], min_nodes=2)


def test_new_settings_at_their_default_are_in_no_frozen_config() -> None:
    """A run that an earlier version began goes on."""
    assert config()["cluster"] == {"address": None, "num_cpus": None, "object_store_memory_mb": 512}
    assert config(cluster={"wait_s": 5})["cluster"]["wait_s"] == 5
