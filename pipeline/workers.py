"""The processes that Ray runs for us: whose code they run, what room there is for them, what the loss of one means."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import os
import pickle
import platform
import re
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from .errors import CodebooksError, ConfigError, Unavailable
from .findings import Level
from .nodes import ClusterConfig, Node, Note, living, local_places, missing, refuse_local_places, wait_for_nodes

# What a mistake in code is raised as, here or while Ray unpacks on a worker what was packed on another machine.
_CODE = (ImportError, AttributeError, NameError, SyntaxError, TypeError, NotImplementedError, pickle.PickleError)
# Ray tells some of them as text alone.
_CODE_WORDS = re.compile(
    r"\b(ModuleNotFoundError|ImportError|AttributeError|NameError|SyntaxError|TypeError|PicklingError|UnpicklingError)"
    r"\b|No module named|cannot import name|Can't get attribute|raised in its creation task"
)
_TOKEN_WORDS = re.compile(r"(?i)unauthenticated|invalid authentication token|authentication is required")
_START_S = 120.0
# What Ray calls the types of machines that it only looks at, which no autoscaler has started.
_ONLY_SEEN = re.compile(r"(node_[0-9a-f]+)?")

# Names, between spaces, of the environment variables that a submitted job brings to every worker.
PASSED = "VISUAL_CODEBOOKS_PASSED"
# Where Ray's exceptions keep another one.
_INSIDE = ("cause", "controller_failure", "health_check_failure", "_base_exc")


def packages_hook() -> Callable[[], None]:
    """Return what every worker process does first: import our packages, by this process's path where it has it.

    It also sets the variables that a submitted job brings (PASSED names them): they travel in the hook, which Ray keeps
    as packed code, and in no runtime environment, which Ray writes into logs and shows to whoever asks for the job.
    Ray puts the driver's current folder before all else in a worker's search path, with whatever `pipeline/` or `jobs/`
    of the user's own lies there. A package that is imported already is not searched for. Ray packs a function inside
    another one with its code; any other it would look up by the very names that are to be settled here.
    """
    root = str(Path(__file__).resolve().parents[1])
    passed = {name: os.environ[name] for name in os.environ.get(PASSED, "").split() if name in os.environ}

    def use_ours() -> None:
        import contextlib
        import importlib
        import os
        import sys
        from pathlib import Path

        os.environ.update(passed)

        places = [root] if (Path(root) / "pipeline" / "workers.py").is_file() else []
        sys.path[:0] = places
        # Not installed on this machine: told in full when Ray unpacks what needs them.
        with contextlib.suppress(ImportError):
            for name in ("pipeline", "jobs", "cluster"):
                importlib.import_module(name)
        del sys.path[: len(places)]

    return use_ours


class KeptRecords(logging.Handler):
    """What this process logs, kept until it is taken to the driver with a result: a worker's own log stays on its node.

    Of our packages all but debugging, of others warnings and worse; beyond the first 50 records they are only counted.
    """

    MOST = 50

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._kept: list[str] = []
        self._lost = 0
        logging.getLogger("pipeline").setLevel(logging.INFO)
        logging.getLogger().addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record as `LEVEL logger: message`."""
        if record.levelno < logging.WARNING and record.name.partition(".")[0] != "pipeline":
            return
        if len(self._kept) >= self.MOST:
            self._lost += 1
            return
        try:
            self._kept.append(f"{record.levelname} {record.name}: {self.format(record)}")
        except Exception:  # noqa: BLE001  as logging itself does: what cannot be logged stops nothing
            self.handleError(record)

    def taken(self) -> tuple[str, ...]:
        """Return what was kept since the last time."""
        self.acquire()
        try:
            kept, lost, self._kept, self._lost = self._kept, self._lost, [], 0
        finally:
            self.release()
        return (*kept, *([f"{lost} more records"] if lost else ()))


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """Where a process runs and with what. root: the folder of our packages; code: a digest of what they hold."""

    host: str
    root: str
    python: str
    torch: str
    code: str

    COMPARED: ClassVar[tuple[str, ...]] = ("python", "torch", "code")


def whereabouts() -> Whereabouts:
    """Return where this process runs."""
    package = Path(__file__).resolve().parent
    code = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        code.update(str(path.relative_to(package)).encode() + b"\0" + path.read_bytes())
    try:
        torch = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        torch = "none"
    return Whereabouts(socket.gethostname(), str(package.parent), platform.python_version(), torch, code.hexdigest())


def compared(theirs: Whereabouts) -> tuple[Level, str, str]:
    """Return what is to be said of a worker beside this process: how grave it is, the text, and how to mend it."""
    ours = whereabouts()
    text = f"a worker on {theirs.host} runs Python {theirs.python}, torch {theirs.torch}, our packages at {theirs.root}"
    differing = [name for name in Whereabouts.COMPARED if getattr(ours, name) != getattr(theirs, name)]
    if not differing:
        return "ok", text, ""
    listed = "; ".join(f"{name}: {getattr(ours, name)} here, {getattr(theirs, name)} there" for name in differing)
    return "warn", f"{text}; not as here: {listed}", "install the same versions on all machines of the cluster"


def ask_a_worker() -> Whereabouts:
    """Return where a worker process of the cluster runs that this process is connected to.

    Raises Unavailable when none starts within two minutes, CodebooksError when it lacks our code.
    """
    import ray

    try:
        found: Whereabouts = ray.get(ray.remote(num_cpus=1)(whereabouts).remote(), timeout=_START_S)
    except ray.exceptions.GetTimeoutError as error:
        raise Unavailable(
            f"no worker process answered within {_START_S:g} s: the cluster has no free CPU, or its machines cannot "
            "start Python processes now; look at `ray status`"
        ) from error
    except ray.exceptions.RayError as error:
        raise explained(error, "starting a worker", stays="nothing was begun") from error
    return found


@dataclass(frozen=True, slots=True)
class Room:
    """What a cluster has. machines: that are up; cpus: of all; gpus: of each machine that has some.

    grows: whether an autoscaler may start machines for what is asked and not there.
    """

    machines: int
    cpus: float
    gpus: tuple[float, ...] = ()
    grows: bool = False

    def places(self, gpus: float) -> int:
        """Return how many processes of so many GPUs each the machines that are up can hold."""
        return sum(int(of_machine / gpus + 1e-9) for of_machine in self.gpus)


def find_room() -> Room:
    """Return what the cluster has that this process is connected to."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    gpus = tuple(node["GPU"] for node in nodes if node.get("GPU"))
    return Room(len(nodes), sum(node.get("CPU", 0.0) for node in nodes), gpus, grows=_grows())


def _grows() -> bool:
    """Return whether the cluster has an autoscaler that starts machines.

    Ray tells it nowhere in public. Its autoscaler, of either version, notes in the head's store of which types the
    machines are; on a cluster that is only looked at, each machine is a type of its own.
    """
    from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
    from ray.experimental.internal_kv import _internal_kv_get

    types: set[str] = set()
    with suppress(ValueError, AttributeError, KeyError, TypeError):
        report = json.loads(_internal_kv_get(DEBUG_AUTOSCALING_STATUS)).get("autoscaler_report") or {}
        types |= set(report.get("active_nodes", ())) | set(report.get("pending_launches", ()))
    return any(not _ONLY_SEEN.fullmatch(kind) for kind in types | _types_of_second_version())


def _types_of_second_version() -> set[str]:
    import ray
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply  # type: ignore[attr-defined]

    reply = GetClusterStatusReply()
    with suppress(RuntimeError, OSError, ray.exceptions.RayError):  # the head does not answer now
        reply.ParseFromString(GcsClient(ray.get_runtime_context().gcs_address).get_cluster_status(timeout_s=10))
    if not reply.autoscaling_state.autoscaler_state_version:
        return set()
    return {node.ray_node_type_name for node in reply.cluster_resource_state.node_states}


def gather_nodes(cluster: ClusterConfig, settings: Mapping[str, Any], note: Note) -> None:
    """Refuse what only one of several nodes could read, then wait for the nodes that are to be there.

    settings: the config as plain values. Raises ConfigError, Unavailable after cluster.wait_s.
    """

    import ray

    def look() -> list[Node]:
        return living(ray.nodes())  # type: ignore[no-untyped-call]

    refuse_local_places(local_places(settings), [node.name for node in look()], cluster.min_nodes)
    if missing(look(), cluster.min_nodes) is None:
        return
    # An autoscaler starts nodes for what is asked of it; without one this only stands in a list until it is taken back.
    asked = ray.util.placement_group([{"CPU": 1}] * cluster.min_nodes, strategy="STRICT_SPREAD")
    try:
        wait_for_nodes(cluster, look, note)
    finally:
        ray.util.remove_placement_group(asked)


@contextmanager
def starting_in_silence() -> Iterator[None]:
    """Hold back what Ray's C++ side writes to standard error while it starts; show it when starting fails."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException as error:
            held.seek(0)
            said = held.read()
            error.add_note(said.decode(errors="replace"))
            if not _TOKEN_WORDS.search(said.decode(errors="replace")):  # told in one line, not once a second
                os.write(kept, said)
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def use_token_if_any() -> None:
    """Show a cluster this user's Ray token where there is one, as `ray start` does; RAY_AUTH_MODE decides if it is set.

    `ray.init` does so by itself for `auto` alone.
    """
    from ray._private.authentication import authentication_token_setup as setup

    setup.logger.setLevel(logging.ERROR)  # it says at every command that a token is used
    setup.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


def token_refused(address: str, error: BaseException) -> str:
    """Return in words that a cluster wants another token than it was shown."""
    said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return (
        f"the Ray cluster at {address!r} wants a token ({said}); set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH (or "
        "RAY_AUTH_TOKEN) to its token, which `ray get-auth-token` shows on its head"
    )


def not_joined(address: str, error: BaseException) -> CodebooksError:
    """Return why a cluster could not be joined; Ray tells a missing node and a wrong token by words alone.

    The latter only on standard error, while it tries: see `starting_in_silence`.
    """
    said = [text for found in _chain(error) for text in (str(found), *getattr(found, "__notes__", ()))]
    if type(error).__name__ == "AuthenticationError" or any(_TOKEN_WORDS.search(text) for text in said):
        return ConfigError(token_refused(address, error))
    if any("No node info found" in text for text in said):
        return ConfigError(
            f"the Ray cluster at {address!r} has no node on this machine, and only its nodes join it; hand the command "
            "in with `codebooks submit --address http://HEAD:8265 COMMAND`, or run it on one of them"
        )
    return Unavailable(f"no Ray cluster answers at {address!r}: {error}; start it or unset cluster.address")


def helper(kind: type, *, restarts: int = 0) -> Any:
    """Return `kind` as a Ray actor class without a CPU of its own, whose actors live on the driver's node.

    There they end with the run they help, and no other node's end is theirs. restarts: -1 for always, with nothing of
    what the actor knew.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options: dict[str, Any] = {"num_cpus": 0, "scheduling_strategy": here, "max_restarts": restarts}
    return ray.remote(**options)(kind)


def explained(error: BaseException, while_doing: str, *, stays: str) -> CodebooksError:
    """Return what Ray raised in this project's terms.

    Unavailable when processes or machines were lost; an error of ours as itself; CodebooksError when code is wrong or
    missing on the workers, which no other try mends. stays: what a next run finds, for people.
    """
    own = [found for found in _chain(error) if isinstance(found, CodebooksError)]
    if own:  # the innermost: Ray raises what a task raised as a class of both
        return own[-1]
    if code := code_error(error):
        return CodebooksError(
            f"{while_doing} failed by an error in code, not by a lost machine: {code}; if it is an import, the workers "
            "run another environment than this process: install the same packages there"
        )
    return Unavailable(f"the Ray cluster failed while {while_doing} ({error}); {stays}, run again")


def code_error(error: BaseException) -> str | None:
    """Return what is wrong with the code, or None where an error tells of lost processes, machines or time."""
    for found in _chain(error):
        if isinstance(found, _CODE):
            return f"{type(found).__name__}: {found}"
        if type(found).__module__.startswith("ray.") and _CODE_WORDS.search(str(found)):
            return str(found).strip()
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and all that Ray and Python keep inside it, outermost first."""
    seen: list[BaseException] = []
    todo = [error]
    while todo:
        found = todo.pop(0)
        if any(found is other for other in seen):
            continue
        seen.append(found)
        yield found
        inside = [found.__cause__, *(getattr(found, name, None) for name in _INSIDE)]
        inside += list(getattr(found, "worker_failures", {}).values())
        todo += [inner for inner in inside if isinstance(inner, BaseException)]
