"""What every stage of a run works with."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from jobs.config import Config, config_values
from jobs.ray_session import ray_session
from pipeline.evaluation.verdicts import Allowed
from pipeline.progress import Progress
from pipeline.runs import Attempt, Run
from pipeline.storage import Files, Store
from pipeline.watch import Watch

StartRay = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Context:
    """One live attempt of a run and where it reads, writes and shows what it does.

    here: its stages compute in this process, without Ray, and its bundles are thrown away. allowed: gates that a person
    lets pass.
    """

    config: Config
    store: Store
    files: Files
    run: Run
    attempt: Attempt
    progress: Progress
    watch: Watch
    here: bool = False
    allowed: tuple[Allowed, ...] = ()


def ray_starter(context: Context, stack: ExitStack) -> StartRay:
    """Return a function that starts Ray when it is first called; the stack stops it at the end of the run."""
    started: list[bool] = []

    def start() -> None:
        if not started:
            with context.watch.stage("ray"):
                busy = max(context.config.encode.least_actors, context.config.train.workers)
                settings, note = config_values(context.config), context.progress.note
                stack.enter_context(ray_session(context.config.cluster, busy=busy, settings=settings, note=note))
            started.append(True)

    return start
