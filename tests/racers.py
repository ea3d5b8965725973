"""Several processes of one program that answers lines with lines; also the program that forks them.

One process imports what they need and becomes all of them: for eight processes importing takes longer than most races.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).resolve().parents[1]


class Racers:
    """Processes that run the program `text`; as a context manager they are told to end, and must end with 0."""

    def __init__(self, text: str, number: int, *arguments: str) -> None:
        pipes = [(os.pipe(), os.pipe()) for _ in range(number)]  # to each racer, from each racer
        theirs = [(to[0], back[1]) for to, back in pipes]
        self._process = subprocess.Popen(
            [sys.executable, __file__, text, json.dumps(theirs), *arguments],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            pass_fds=[end for pair in theirs for end in pair],
        )
        for end in (end for pair in theirs for end in pair):
            os.close(end)
        self._to = [os.fdopen(to[1], "w") for to, _ in pipes]
        self._back = [os.fdopen(back[0]) for _, back in pipes]

    def say(self, racer: int, line: str) -> None:
        """Send one racer a line."""
        self._to[racer].write(line + "\n")
        self._to[racer].flush()

    def lines(self) -> list[str]:
        """Return the next line of each racer."""
        found = [back.readline().strip() for back in self._back]
        assert all(found), f"a racer ended: {found}"
        return found

    def __enter__(self) -> Racers:
        assert self.lines() == ["ready"] * len(self._to)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for stream in self._to:
            stream.close()
        code = self._process.wait(timeout=120)
        for stream in self._back:
            stream.close()
        assert error is not None or code == 0


def fork(text: str, pairs: list[list[int]], arguments: list[str]) -> int:
    """Become all racers and return how many of them failed."""
    import pyarrow.fs  # noqa: F401
    import s3fs  # noqa: F401

    import pipeline.release
    import pipeline.runs
    import pipeline.storage  # noqa: F401

    children = []
    for stdin, stdout in pairs:
        pid = os.fork()
        if pid == 0:
            _race(text, stdin, stdout, pairs, arguments)
        children.append(pid)
    for end in (end for pair in pairs for end in pair):
        os.close(end)
    return sum(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0 for pid in children)


def _race(text: str, stdin: int, stdout: int, pairs: list[list[int]], arguments: list[str]) -> None:
    for end in (end for pair in pairs for end in pair):
        if end not in (stdin, stdout):  # another's pipe would never be seen to close
            os.close(end)
    sys.stdin, sys.stdout, sys.argv = os.fdopen(stdin), os.fdopen(stdout, "w"), ["-c", *arguments]
    code = 1
    try:
        exec(compile(text, "racer", "exec"), {"__name__": "__main__"})
        sys.stdout.flush()
        code = 0
    except BaseException:  # noqa: BLE001  the process ends here, whatever it was
        traceback.print_exc()
    finally:
        os._exit(code)


if __name__ == "__main__":
    sys.exit(fork(sys.argv[1], json.loads(sys.argv[2]), sys.argv[3:]))
