"""How errors of starting Ray reach a scheduler."""

from __future__ import annotations

import os

import pytest
import ray

from jobs.ray_session import ray_session
from pipeline.errors import ConfigError, Unavailable
from pipeline.nodes import ClusterConfig


def test_a_machine_too_busy_to_start_ray_is_a_reason_to_try_again(monkeypatch: pytest.MonkeyPatch) -> None:
    words = "The current node timed out during startup. This could happen because some of the raylet failed to startup"

    def init(**_: object) -> None:
        raise Exception(words)  # noqa: TRY002 - this is what Ray raises

    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # other tests of this process may have connected
    monkeypatch.setattr(ray, "init", init)
    with (
        pytest.raises(Unavailable, match="did not start on this machine in time"),
        ray_session(ClusterConfig(), busy=2),
    ):
        pass


@pytest.mark.parametrize(
    ("cause", "kind", "says"),
    [
        (
            RuntimeError("No node info found matching attributes: '' when trying"),
            ConfigError,
            "codebooks submit --address",
        ),
        (RuntimeError("RpcError: Unauthenticated: InvalidAuthToken: Invalid"), ConfigError, "wants a token"),
        (RuntimeError("RpcError: deadline exceeded"), Unavailable, "no Ray cluster answers at '10.0.0.1:6379'"),
        (None, Unavailable, "no Ray cluster answers"),
    ],
)
def test_why_a_cluster_was_not_joined(
    monkeypatch: pytest.MonkeyPatch, cause: Exception | None, kind: type[Exception], says: str
) -> None:
    def init(**_: object) -> None:
        raise ConnectionError("Failed to connect to Ray cluster at 10.0.0.1:6379") from cause

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(kind, match=says), ray_session(ClusterConfig(address="10.0.0.1:6379"), busy=2):
        pass


def test_a_token_that_is_refused_on_standard_error_alone_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """As Ray 2.60 does: a line a second, then the error of a cluster that is not there."""

    def init(**_: object) -> None:
        os.write(2, b"gcs_client.cc:210: Unauthenticated: RPC error: InvalidAuthToken: missing or incorrect\n" * 15)
        raise ConnectionError("Failed to connect to Ray cluster at 10.0.0.1:6379")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(ConfigError, match="wants a token"), ray_session(ClusterConfig(address="10.0.0.1:6379"), busy=2):
        pass
    assert "gcs_client" not in capfd.readouterr().err


def test_any_other_error_of_starting_stays_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: object) -> None:
        raise RuntimeError("no such thing")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # other tests of this process may have connected
    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(RuntimeError, match="no such thing"), ray_session(ClusterConfig(), busy=2):
        pass


def test_a_process_that_is_connected_already_keeps_its_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "init", lambda **_: called.append("init"))
    monkeypatch.setattr(ray, "shutdown", lambda: called.append("shutdown"))
    with ray_session(ClusterConfig(), busy=2):
        pass
    assert not called


@pytest.mark.parametrize(("named", "joined"), [(None, "local"), ("10.0.0.1:6379", "10.0.0.1:6379")])
def test_a_cluster_that_nobody_named_is_never_joined(
    monkeypatch: pytest.MonkeyPatch, named: str | None, joined: str
) -> None:
    """Ray by itself joins any cluster that somebody has started on this machine."""
    given: list[dict[str, object]] = []
    here = {"Alive": True, "NodeManagerAddress": "10.0.0.1", "Resources": {"CPU": 2.0}}
    monkeypatch.setattr(ray, "nodes", lambda: [here])
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **settings: given.append(settings))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    with ray_session(ClusterConfig(address=named), busy=2):
        pass
    assert given[0]["address"] == joined
    assert ("num_cpus" in given[0]) == (named is None)
