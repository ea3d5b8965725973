"""The door of a Ray cluster where jobs are handed in: its dashboard, with a time limit on every question."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import ray
from ray.job_submission import JobDetails, JobSubmissionClient
from ray.util.state import list_nodes
from ray.util.state.exception import RayStateApiException

from pipeline.errors import CodebooksError, ConfigError, Conflict, NotFound, Unavailable
from pipeline.storage.secrets import masked_for_people
from pipeline.workers import token_refused, use_token_if_any

T = TypeVar("T")

_ANSWER_S = 30.0
_TALKATIVE = (
    "ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk", "ray._private.runtime_env.packaging",
)  # fmt: skip
# Either of them would win over the address that is given to Ray's client.
_ADDRESSES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")


def named_address(given: str | None) -> str:
    """Return where jobs are handed in: as given, else as RAY_API_SERVER_ADDRESS or RAY_ADDRESS says.

    Raises ConfigError where nothing does.
    """
    address = given or next((os.environ[name] for name in _ADDRESSES if os.environ.get(name)), None)
    if address is None:
        raise ConfigError(
            "no cluster is named; write --address http://HEAD:8265 (its dashboard), or --address auto on one of its "
            "hosts, or set RAY_API_SERVER_ADDRESS"
        )
    if address.startswith("ray://"):
        raise ConfigError(
            f"--address {address!r} is of Ray Client, which hands in no jobs; name the dashboard, as http://HEAD:8265"
        )
    return address


class Dashboard:
    """A cluster's jobs and nodes; all raise Unavailable when it does not answer, ConfigError on a wrong token."""

    def __init__(self, address: str) -> None:
        self.address = address
        # Of addresses without a scheme, of folders that are packed, of a log that ends.
        for name in _TALKATIVE:
            logging.getLogger(name).setLevel(logging.ERROR)
        use_token_if_any()
        self.client: JobSubmissionClient = self._asked(lambda: _Client(address))

    def nodes(self) -> list[str]:
        """Return the addresses of the living nodes."""
        server = str(self.client._address)
        # Without Ray's own filter, which takes every dead node for one that it could not tell of, and raises.
        found = self._asked(lambda: list_nodes(address=server, limit=10_000, raise_on_missing_output=False))
        return sorted(str(node.node_ip) for node in found if node.state == "ALIVE")

    def jobs(self) -> list[JobDetails]:
        """Return every job that the cluster knows."""
        return self._asked(self.client.list_jobs)

    def job(self, submission_id: str) -> JobDetails:
        """Return one job. Raises NotFound where the cluster does not know it: its head was started anew."""
        return self._asked(lambda: self.client.get_job_info(submission_id))

    def submit(self, submission_id: str, **settings: Any) -> bool:
        """Hand in a job; returns False where another one has this id by now."""
        try:
            self._asked(lambda: self.client.submit_job(submission_id=submission_id, **settings))
        except Conflict:
            return False
        return True

    def stop(self, submission_id: str) -> None:
        """Ask a job to stop; it has 30 seconds to let go of its run."""
        self._asked(lambda: self.client.stop_job(submission_id))

    def _asked(self, question: Callable[[], T]) -> T:
        """Return what the dashboard answers, and turn what goes wrong into an error of ours."""
        import requests

        try:
            with _naming(self.address):
                return question()
        except ray.exceptions.AuthenticationError as error:
            raise ConfigError(token_refused(self.address, error)) from error
        except (ConnectionError, requests.exceptions.RequestException) as error:
            raise Unavailable(
                f"no Ray dashboard answers at {self.address!r} ({_one_line(error)}); is the head up, is this its "
                "dashboard's port (8265), may this machine reach it?"
            ) from error
        except (RuntimeError, RayStateApiException) as error:
            raise self._meant(error) from error

    def _meant(self, error: Exception) -> CodebooksError:
        """Return what an error of Ray's clients says; it is known by its words alone."""
        said = _one_line(error)
        if isinstance(error, RayStateApiException):
            return Unavailable(f"the Ray dashboard at {self.address!r} does not tell its nodes now: {said}; try again")
        if "already exists" in said:
            return Conflict(said)
        if "status code 404" in said and "does not exist" in said:
            return NotFound(said)
        if "status code 5" in said or "No available agent" in said:
            return Unavailable(f"the Ray dashboard at {self.address!r} cannot do it now: {said}; try again")
        return ConfigError(f"the Ray dashboard at {self.address!r} refuses: {said}")


class _Client(JobSubmissionClient):
    """Ray's client, which by itself waits for ever for a head that has lost its network."""

    def _do_request(self, method: str, endpoint: str, **settings: Any) -> Any:
        return super()._do_request(method, endpoint, **{"timeout": _ANSWER_S, **settings})


@contextmanager
def _naming(address: str) -> Iterator[None]:
    """Make Ray's clients take this address, whatever the environment names."""
    before = {name: os.environ.pop(name, None) for name in _ADDRESSES}
    os.environ[_ADDRESSES[0]] = address
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _one_line(error: Exception) -> str:
    return masked_for_people(" ".join(str(error).split()))[:500]
