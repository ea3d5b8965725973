"""Where Gloo listens: at the address by which Ray knows a machine, whatever its name resolves to."""

from __future__ import annotations

import os
from collections.abc import Iterator
from unittest import mock

import psutil
import pytest
import ray

from pipeline.training.rendezvous import listen_at_ray_address, torch_config


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    with mock.patch.dict(os.environ):
        os.environ.pop("GLOO_SOCKET_IFNAME", None)
        yield


def named(monkeypatch: pytest.MonkeyPatch, address: str) -> str | None:
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: address)
    listen_at_ray_address()
    return os.environ.get("GLOO_SOCKET_IFNAME")


def test_the_interface_is_that_of_the_address_in_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    interfaces = {each.address: name for name, held in psutil.net_if_addrs().items() for each in held}
    assert named(monkeypatch, "127.0.0.1") == interfaces["127.0.0.1"]


def test_an_address_of_no_interface_names_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert named(monkeypatch, "192.0.2.1") is None  # of a documentation's network, RFC 5737


def test_what_somebody_has_named_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "ib0")
    assert named(monkeypatch, "127.0.0.1") == "ib0"


def test_workers_are_told_before_they_meet() -> None:
    """Ray's own backend asks worker 0 for its address next: by then each has been told."""
    asked: list[object] = []

    class Workers:
        def execute(self, function: object, **_: object) -> None:
            asked.append(function)

        def execute_single(self, *_: object) -> None:
            raise StopAsyncIteration

    config = torch_config("gloo")
    assert config.backend == "gloo"
    with pytest.raises(StopAsyncIteration):
        config.backend_cls().on_start(Workers(), config)
    assert asked == [listen_at_ray_address]
