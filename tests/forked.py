"""Python processes that are forked from one which has imported torch and its like; also the program that forks them.

Importing torch and pyarrow takes a process two to four seconds of a core, more than most of what it then does. The one
process is the parent of the workers of the tests' Ray and of commands in processes of their own. Each has its own
arguments, variables, folder, standard streams and search path, as if Python had been started for it, and imports Ray
and our own packages itself, from where it finds them.
"""

from __future__ import annotations

import array
import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn

ROOT = Path(__file__).resolve().parents[1]
PLACE = "VISUAL_CODEBOOKS_FORKS"  # the variable by which Ray's workers find the program
# Imported before anybody asks. The first step of an optimiser imports torch._dynamo, the first export torch's table of
# operators. Nothing of ours: whether a worker finds our packages is what tests ask. Not Ray either: once imported it
# keeps of which raylet and job a worker is, and its random numbers, so that workers forked from one would give their
# objects the same names and crash.
FIRST = (
    "torch._dynamo", "torch.utils.tensorboard", "torch.onnx._internal.exporter._core", "onnxscript.optimizer", "pandas",
    "pyarrow.dataset", "pyarrow.fs", "PIL.ImageOps", "prometheus_client", "s3fs", "starlette.datastructures",
    "pydantic.main", "pydantic.dataclasses", "pydantic.json_schema", "pydantic.types", "jsonschema", "yaml", "click",
    "requests", "msgpack", "uvloop", "psutil", "tqdm", "filelock", "colorful", "pyarrow.parquet", "pdb",
)  # fmt: skip
ABSENT = ("ray", "pipeline", "jobs", "cluster")
_MOST = 2**20  # bytes of a question


class Forks:
    """The program that forks; as a context manager it ends with the tests. program: what starts a worker of Ray."""

    program = __file__

    def __enter__(self) -> Forks:
        self._folder = tempfile.TemporaryDirectory(prefix="forks-")
        self._place = str(Path(self._folder.name) / "socket")
        given = {"OMP_NUM_THREADS": "1"}
        self._program = subprocess.Popen(
            [sys.executable, __file__, "--serve", self._place],
            env={**os.environ, **given},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._program.stdout is not None
        assert self._program.stdout.readline() == b"ready\n"
        return self

    def __exit__(self, *_: object) -> None:
        self._program.communicate(timeout=200)
        self._folder.cleanup()

    @property
    def variables(self) -> dict[str, str]:
        """What the environment of a Ray must hold whose nodes start workers by `program`."""
        return {PLACE: self._place}

    @contextlib.contextmanager
    def workers(self) -> Iterator[None]:
        """Let the Ray that is started in here have its worker processes from the program."""
        from ray._private.parameter import RayParams

        made = RayParams.__init__

        def with_ours(self: RayParams, *words: Any, **given: Any) -> None:
            made(self, *words, **{"setup_worker_path": __file__, "include_log_monitor": False, **given})

        os.environ[PLACE] = self._place  # Ray hands the variables of who starts it on to its workers
        RayParams.__init__ = with_ours
        try:
            yield
        finally:
            RayParams.__init__ = made
            del os.environ[PLACE]

    def start(self, words: list[str], variables: dict[str, str]) -> Fork:
        """Start `python WORDS` (-m MODULE or -c CODE, then arguments) in the current folder."""
        out, err = (tempfile.TemporaryFile("w+") for _ in range(2))  # noqa: SIM115  read at the end of the process
        question = {"words": words, "variables": variables, "folder": str(Path.cwd())}
        with Path(os.devnull).open() as nothing:
            answers = ask(self._place, question, (nothing.fileno(), out.fileno(), err.fileno()))
        return Fork(answers, out, err)


class Fork:
    """A process that was started, as `subprocess.Popen` with pipes; wait for its end."""

    def __init__(self, answers: socket.socket, out: IO[str], err: IO[str]) -> None:
        self._answers, self._out, self._err = answers, out, err
        self.pid = int(answers.recv(_MOST))
        self.returncode: int | None = None
        self._said: list[str] = []

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal, or None while the process runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(timeout=0.0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code when there is one. Raises TimeoutExpired."""
        if self.returncode is None:
            self._answers.settimeout(timeout)
            try:
                self.returncode = int(self._answers.recv(_MOST))
            except (TimeoutError, BlockingIOError) as error:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0) from error
            self._answers.close()
            for stream in (self._out, self._err):
                with stream:
                    stream.seek(0)
                    self._said.append(stream.read())
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Return standard output and standard error at the end of the process. Raises TimeoutExpired."""
        self.wait(timeout)
        out, err = self._said
        return out, err

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End the process, unless it has ended."""
        self.send_signal(signal.SIGKILL)


def ask(place: str, question: dict[str, Any], streams: tuple[int, int, int]) -> socket.socket:
    """Ask the program for a process, and return where it says the process's pid and, at the end, its exit code."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(place)
    packed = array.array("i", streams).tobytes()
    connection.sendmsg([json.dumps(question).encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, packed)])
    return connection


# --- what Ray starts in the place of a worker


def become_worker(words: list[str]) -> None:
    """Have the worker forked whose command line this is: Ray's own program for workers, its arguments, its environment.

    A worker whose runtime environment wants another Python or a wrapper is started as Ray does.
    """
    marked = next((word for word in words if word.startswith("--serialized-runtime-env-context=")), "")
    context = json.loads(marked.partition("=")[2] or "{}")
    if context.get("command_prefix") or context.get("override_worker_entrypoint"):
        runpy.run_module("ray._private.workers.setup_worker", run_name="__main__", alter_sys=True)
        return
    passed = [word for word in words if word != marked and not word.startswith("--language=")]
    variables = {**os.environ, **context.get("env_vars", {})}
    ask(os.environ[PLACE], {"words": passed, "variables": variables, "folder": str(Path.cwd())}, (0, 1, 2)).recv(_MOST)


# --- the program that forks


@dataclass(frozen=True)
class Task:
    """What a process was forked for."""

    words: list[str]
    variables: dict[str, str]
    folder: str
    streams: list[int]

    def run(self) -> NoReturn:
        """Do it and end the process."""
        for number, stream in enumerate(self.streams):
            os.dup2(stream, number)
            os.close(stream)
        atexit.register(gc.unfreeze)  # else libraries that count their objects at the end would miss some
        os.environ.clear()
        os.environ.update(self.variables)
        os.chdir(self.folder)
        found = [place for place in self.variables.get("PYTHONPATH", "").split(os.pathsep) if place]
        importlib.import_module("numpy.random").seed()  # else the parent's numbers would be every fork's
        kind, *rest = self.words
        if kind == "-m":
            sys.argv, sys.path[:0] = rest, [self.folder, *found]
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        elif kind == "-c":
            sys.argv, sys.path[:0] = ["-c", *rest[1:]], ["", *found]
            exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
        else:
            sys.argv, sys.path[:0] = self.words, [str(Path(kind).parent), *found]
            end_at_once_after(lambda: runpy.run_path(kind, run_name="__main__"))
        sys.exit()


def end_at_once_after(program: Callable[[], object]) -> NoReturn:
    """Run a program and end the process without taking all modules apart, which costs a worker seconds of a core."""
    code: object = None
    try:
        program()
    except SystemExit as end:
        code = end.code
    except BaseException:  # noqa: BLE001  as Python ends: it is said, then the exit functions run
        sys.excepthook(*sys.exc_info())
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def serve(place: str) -> Task:
    """Fork a process for every question that comes to `place` and return in each; end when standard input does."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listening.bind(place)
    listening.listen(64)
    woken, wake = socket.socketpair()
    wake.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
    asked_by: dict[int, socket.socket] = {}
    selector = selectors.DefaultSelector()
    for source in (listening, woken, sys.stdin):
        selector.register(source, selectors.EVENT_READ)
    print("ready", flush=True)
    while True:
        ready = [key.fileobj for key, _ in selector.select()]
        if sys.stdin in ready:
            os._exit(0)
        if woken in ready:
            woken.recv(_MOST)
            tell_ends(asked_by)
        if listening not in ready:
            continue
        connection, _ = listening.accept()
        data, streams, _, _ = socket.recv_fds(connection, _MOST, 3)
        task = Task(**json.loads(data), streams=list(streams))
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            selector.close()
            for open_one in (listening, woken, wake, connection, *asked_by.values()):
                open_one.close()
            return task
        for stream in streams:
            os.close(stream)
        asked_by[pid] = connection
        with contextlib.suppress(OSError):
            connection.send(str(pid).encode())


def tell_ends(asked_by: dict[int, socket.socket]) -> None:
    """Say of every process that has ended how it did, to who asked for it and may be gone."""
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            with asked_by.pop(ended[0]) as connection, contextlib.suppress(OSError):
                connection.send(str(os.waitstatus_to_exitcode(ended[1])).encode())


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        # Not this folder, nor those that this process was told to search: each fork puts its own in front.
        sys.path[:] = [
            place for place in sys.path[1:] if place not in os.environ.get("PYTHONPATH", "").split(os.pathsep)
        ]
        for name in FIRST:
            importlib.import_module(name)
        if early := sorted(set(ABSENT) & set(sys.modules)):
            raise RuntimeError(f"each worker is to import {early[0]} itself; see FIRST")
        threads = [(thread / "comm").read_text().strip() for thread in Path("/proc/self/task").iterdir()]
        if len(threads) - threads.count("jemalloc_bg_thd") > 1:  # Arrow's allocator starts its own anew in a fork
            raise RuntimeError(f"a process with threads cannot be forked, and it has {threads}; see FIRST")
        for finalizer in list(weakref.finalize._registry):
            finalizer.atexit = False  # what this process made is not a fork's to take away
        gc.collect()
        gc.freeze()  # so that no process writes into pages that all share
        serve(sys.argv[2]).run()
    else:
        become_worker(sys.argv[1:])
