"""A function over many tasks: side by side where this process is connected to Ray, else one after another here."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from .workers import explained

Task = TypeVar("Task")
Answer = TypeVar("Answer")
Shared = TypeVar("Shared")


def mapped(
    function: Callable[[Task], Answer], tasks: Sequence[Task], *, task_bytes: int, while_doing: str, stays: str
) -> list[Answer]:
    """Return what a function gives of each task, in their order.

    Each is a Ray task, side by side with the others, where this process is connected to Ray, else one after another is
    done here. task_bytes: what one holds, so that a machine takes no more than it has memory for. while_doing, stays:
    as in `explained`, whose errors are raised.
    """
    ray: Any = sys.modules.get("ray")
    if ray is None or not tasks or not ray.is_initialized():
        return [function(task) for task in tasks]
    most = max((node["Resources"].get("memory", 0.0) for node in ray.nodes() if node["Alive"]), default=0.0)
    remote = ray.remote(num_cpus=1, memory=int(min(task_bytes, most)))(function)
    try:
        found: list[Answer] = ray.get([remote.remote(task) for task in tasks])
    except ray.exceptions.RayError as error:
        raise explained(error, while_doing, stays=stays) from error
    return found


def mapped_in_turn(
    function: Callable[[Shared, Task], Answer],
    shared: Shared,
    tasks: Sequence[Task],
    *,
    task_bytes: int,
    while_doing: str,
    stays: str,
) -> Iterator[Answer]:
    """Yield what a function gives of what all tasks share and each of them, in their order, one after another.

    As `mapped`, but that few answers are held at a time, and `shared` is sent to a machine once. One task is done here.
    """
    ray: Any = sys.modules.get("ray")
    if ray is None or len(tasks) < 2 or not ray.is_initialized():
        yield from (function(shared, task) for task in tasks)
        return
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    most = max((node.get("memory", 0.0) for node in nodes), default=0.0)
    at_once = max(2, int(sum(node.get("CPU", 0.0) for node in nodes)))
    remote = ray.remote(num_cpus=1, memory=int(min(task_bytes, most)))(function)
    waiting: deque[Any] = deque()
    try:
        held = ray.put(shared)
        for task in tasks:
            waiting.append(remote.remote(held, task))
            if len(waiting) >= 2 * at_once:
                yield ray.get(waiting.popleft())
        while waiting:
            yield ray.get(waiting.popleft())
    except ray.exceptions.RayError as error:
        raise explained(error, while_doing, stays=stays) from error
    finally:
        for one in waiting:  # whoever stopped asking wants no more of them
            ray.cancel(one, force=False)
