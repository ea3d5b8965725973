"""Runs `rank_main(rank, world, folder)` of a test file in several gloo processes; also the program that starts them.

One process imports torch and the library and forks all ranks of all tests: importing costs more than most cases. The
ranks meet over a file in `folder` and leave what they found in `folder/rank-N.pt`.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LIMIT_S = 300  # of one rank; a hang is a failure


class RankRunner:
    """The program, started once for all tests; as a context manager it ends with them."""

    def __enter__(self) -> RankRunner:
        given = {"PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
        self._program = subprocess.Popen(
            [sys.executable, "-W", "error", __file__],
            env={**os.environ, **given},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._program.communicate(timeout=60)

    def __call__(self, file: str, world: int, folder: Path) -> list[Any]:
        """Return what each rank of a world left behind."""
        import torch

        stdin, stdout = self._program.stdin, self._program.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps([file, world, str(folder)]) + "\n")
        stdin.flush()
        failures = json.loads(stdout.readline())
        assert not failures, "\n".join(failures)
        return [torch.load(folder / f"rank-{rank}.pt", weights_only=True) for rank in range(world)]


def fork(module: Any, world: int, folder: Path) -> list[str]:
    """Run all ranks of a world in processes of their own and return what those say that failed."""
    children: dict[int, int] = {}
    for rank in range(world):
        pid = os.fork()
        if pid == 0:
            signal.alarm(LIMIT_S)
            code = 1
            try:
                module.rank_main(rank, world, str(folder))
                code = 0
            except BaseException:  # noqa: BLE001  the process ends here, whatever it was
                (folder / f"rank-{rank}.txt").write_text(traceback.format_exc())
            finally:
                os._exit(code)
        children[pid] = rank
    failures = []
    while children:
        pid, status = os.wait()
        rank, code = children.pop(pid), os.waitstatus_to_exitcode(status)
        if code:
            failures.append(f"rank {rank} of {world} ended with {code}\n{_text(folder, rank)}")
            for other in children:  # it would wait for ever for the one that is gone
                os.kill(other, signal.SIGKILL)
    return failures


def _text(folder: Path, rank: int) -> str:
    told = folder / f"rank-{rank}.txt"
    return told.read_text() if told.exists() else "without a word"


def serve() -> None:
    """Answer one line of standard output to each line of standard input: a file, a world, a folder."""
    import torch
    import torch._dynamo  # which the first step of an optimiser imports, in every rank anew

    torch.set_num_threads(1)
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        file, world, folder = json.loads(line)
        spec = importlib.util.spec_from_file_location(f"ranks_of_{Path(file).stem}", file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # where dataclasses look for what their annotations name
        spec.loader.exec_module(module)
        gc.freeze()  # so that no rank writes into pages that all share
        answers.write(json.dumps(fork(module, world, Path(folder))) + "\n")
        answers.flush()


if __name__ == "__main__":
    serve()
