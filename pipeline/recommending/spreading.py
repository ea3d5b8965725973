"""Where the ranges of a run are done: here, or as Ray tasks side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from ..index.segments import TASK_BYTES
from ..mapping import Scratch, mapped_in_turn
from ..storage import Store

Shared = TypeVar("Shared")
Task = TypeVar("Task")
Answer = TypeVar("Answer")

_RANGE_BYTES = 400 << 20  # of a range in work, about, and of the release's tables in memory


@dataclass(frozen=True, slots=True)
class Spread:
    """The ranges of one run over a release. store: the release's own; name: of what is asked."""

    store: Store
    name: str

    def __call__(
        self, function: Callable[[Shared, Task], Answer], shared: Shared, tasks: Iterable[Task], count: int
    ) -> Iterator[Answer]:
        """Yield what a function gives of `count` tasks, in order; see `mapped_in_turn`."""
        scratch = Scratch.of_run(self.store, self.name, count)
        return mapped_in_turn(
            function,
            shared,
            tasks,
            scratch=scratch,
            task_bytes=TASK_BYTES + _RANGE_BYTES,
            while_doing="recommending",
        )
