"""The machines of a Ray cluster: how many a run waits for, and what each of them must be able to reach."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, field_validator, model_serializer

from .errors import ConfigError, Unavailable
from .storage.local import local_path
from .storage.urls import scheme_of

# Of these there is one a machine, or one a process.
_LOCAL_SCHEMES = ("", "file", "memory")
_LOOK_EVERY_S = 2.0
_TELL_EVERY_S = 30.0
_LATER = ("min_nodes", "wait_s", "shared_folders")
_NONE = object()

Note = Callable[[str], None]


class ClusterConfig(BaseModel):
    """Which Ray cluster computes.

    address: of a running cluster (else RAY_ADDRESS; else one is started on this machine and stopped at the end).
    num_cpus: logical CPUs of a cluster started here; null: this machine's, and at least what the actors need.
    object_store_memory_mb: its shared memory.
    min_nodes: nodes with CPUs for work that a running cluster must have before anything is computed on it; they are
        asked of its autoscaler, where it has one, and waited for. wait_s: for how many seconds.
    shared_folders: local folders that are the same on every node (NFS and the like); of a cluster of several nodes any
        other local path as store, catalogue or weights is refused.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    address: str | None = None
    num_cpus: int | None = Field(default=None, ge=1)
    object_store_memory_mb: int = Field(default=512, ge=80)
    min_nodes: int = Field(default=1, ge=1)
    wait_s: float = Field(default=600.0, ge=0.0)
    shared_folders: tuple[str, ...] = ()

    @field_validator("shared_folders")
    @classmethod
    def _absolute_folders(cls, folders: tuple[str, ...]) -> tuple[str, ...]:
        for folder in folders:
            if not folder.startswith("/"):
                raise ValueError(f"{folder!r} is no absolute path; write the folder as all nodes see it, as /mnt/shop")
        return folders

    @model_serializer(mode="wrap")
    def _as_before(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = dump(self)
        # Runs that an earlier version began go on: what it froze of a config names none of these.
        defaults = {name: ClusterConfig.model_fields[name].default for name in _LATER}
        return {name: value for name, value in values.items() if getattr(self, name) != defaults.get(name, _NONE)}


@dataclass(frozen=True, slots=True)
class Node:
    """A living machine of a cluster. cpus, gpus: those that Ray gives work; a head often has none."""

    name: str
    cpus: float
    gpus: float

    def __str__(self) -> str:
        has = [f"{self.cpus:g} CPUs"] if self.cpus else ["takes no work"]
        return f"{self.name} ({', '.join(has + [f'{self.gpus:g} GPUs'] * bool(self.gpus))})"


@dataclass(frozen=True, slots=True)
class LocalPlace:
    """A setting that names something on the disks of one machine. key: its path in the config."""

    key: str
    value: str


def say(text: str) -> None:
    """Show one line where nobody shows progress."""
    sys.stderr.write(f"{text}\n")


def joined_address(address: str | None) -> str | None:
    """Return the address of the running cluster that is to be joined, None for one of this machine's own.

    Raises ConfigError for an address that only a client of the dashboard or of Ray Client can use.
    """
    if not address or address == "local":
        return None
    if "://" in address:
        raise ConfigError(
            f"cluster.address or RAY_ADDRESS is {address!r}, which no process of the cluster joins by; hand it in "
            "with `codebooks submit --address http://HEAD:8265 COMMAND`, or name the cluster as HEAD:6379, or as "
            "`auto` on one of its own hosts"
        )
    return address


def living(nodes: Sequence[Mapping[str, Any]]) -> list[Node]:
    """Return the living ones of what `ray.nodes()` lists, by name."""
    found = [
        Node(node["NodeManagerAddress"], node["Resources"].get("CPU", 0.0), node["Resources"].get("GPU", 0.0))
        for node in nodes
        if node["Alive"]
    ]
    return sorted(found, key=lambda node: node.name)


def missing(nodes: Sequence[Node], min_nodes: int) -> str | None:
    """Return in words what a cluster lacks of the nodes it shall have, None where it has them."""
    workers = sum(node.cpus > 0 for node in nodes)
    if workers >= min_nodes:
        return None
    there = ", ".join(map(str, nodes)) or "no node at all"
    return f"{workers} of the {min_nodes} nodes that cluster.min_nodes asks for ({there})"


def wait_for_nodes(config: ClusterConfig, look: Callable[[], list[Node]], note: Note) -> None:
    """Return once the cluster has as many nodes as it shall have; says what is missing while it waits.

    look: returns the nodes now. Raises Unavailable after wait_s seconds.
    """
    began, told = time.monotonic(), None
    while lacking := missing(look(), config.min_nodes):
        now = time.monotonic()
        left = config.wait_s - (now - began)
        if left <= 0:
            raise Unavailable(
                f"after {config.wait_s:g} s (cluster.wait_s) the cluster has {lacking}; start the others (`ray start "
                "--address=HEAD:6379` on each, or look at its autoscaler with `ray status`) and run again, or lower "
                "cluster.min_nodes"
            )
        if told is None or now - told >= _TELL_EVERY_S:
            told = now
            note(f"cluster: there are {lacking}; waiting up to {left:,.0f} s more (cluster.wait_s)")
        time.sleep(min(_LOOK_EVERY_S, left))


def local_places(settings: Mapping[str, Any]) -> list[LocalPlace]:
    """Return the settings of a config, as plain values, that name a store, catalogue, photos or weights of one machine.

    Those below `cluster.shared_folders` are none. sections that are absent or no mappings are passed over.
    """
    shared = [f"{folder.rstrip('/')}/" for folder in _at(settings, "cluster").get("shared_folders") or ()]
    return [
        LocalPlace(key, value)
        for key, value in _places(settings)
        if scheme_of(value) in _LOCAL_SCHEMES and not _lies_in(value, shared)
    ]


def refuse_local_places(places: Sequence[LocalPlace], nodes: Sequence[str], min_nodes: int = 1) -> None:
    """Raise ConfigError where a cluster of several nodes would look for one machine's files on each of them.

    nodes: the living ones, by name; min_nodes: those that there shall be.
    """
    if not places or max(len(nodes), min_nodes) < 2:
        return
    has = f"has {len(nodes)} nodes ({', '.join(nodes)})" if len(nodes) > 1 else f"shall have {min_nodes} nodes"
    listed = ", ".join(f"{place.key} ({place.value!r})" for place in places)
    raise ConfigError(
        f"{listed}: on one machine's disks, and the cluster {has}, each with disks of its own; put it on an object "
        "store, as s3://BUCKET/PREFIX, or name the folder in cluster.shared_folders if it is the same on every node"
    )


def _places(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    store = settings.get("store")
    catalogue = _at(settings, "catalogue")
    named = [("store", store), ("store.url", _at(settings, "store").get("url"))]
    named += [("catalogue.source", catalogue.get("source"))]
    prefixes = catalogue.get("allowed_prefixes")
    named += [("catalogue.allowed_prefixes", prefix) for prefix in (prefixes if isinstance(prefixes, list) else ())]
    named += list(_weights(settings.get("model"), "model"))
    yield from ((key, value) for key, value in named if isinstance(value, str))


def _weights(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Yield every file of weights below a section: a teacher's and an input's too."""
    if isinstance(value, Mapping):
        for name, member in value.items():
            if name == "weights":
                yield f"{key}.{name}", member
            else:
                yield from _weights(member, f"{key}.{name}")
    elif isinstance(value, list | tuple):
        for number, member in enumerate(value):
            yield from _weights(member, f"{key}.{number}")


def _at(settings: Mapping[str, Any], section: str) -> Mapping[str, Any]:
    found = settings.get(section)
    return found if isinstance(found, Mapping) else {}


def _lies_in(value: str, folders: Sequence[str]) -> bool:
    if scheme_of(value) == "memory":
        return False
    path = os.path.normpath(local_path(value))
    return any(f"{path}/".startswith(folder) for folder in folders)
