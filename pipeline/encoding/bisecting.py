"""Which photos of a shard kill the process that works on them, found by halving: pure functions, no Ray."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from ..errors import CodebooksError

Cause = Literal["crashed", "out_of_memory"]


@dataclass(frozen=True, slots=True)
class Death:
    """How a process ended that had a stretch of photos to itself. reason: as in schema.REFUSAL; detail: a sentence."""

    reason: Cause
    detail: str


# Returns how a process of its own died that worked on these rows alone, or None when it lived.
Trial = Callable[[tuple[int, ...]], Death | None]


def find_killers(rows: tuple[int, ...], trial: Trial, *, most: int) -> dict[int, Death]:
    """Return the rows that alone kill their process twice, each with its second death.

    `rows` together have killed one already. A guilty row costs at most log2(n) + 2 deaths, innocent halves are tried
    once each. Rows that only die together (their memory adds up) and rows whose first death does not repeat (a machine
    that went away) are not in the answer. Raises CodebooksError when a process dies without any photo, and when more
    than `most` rows are guilty: then it is not the photos that are at fault.
    """
    if (death := trial(())) is not None:
        raise CodebooksError(
            f"an encoding process dies without any photo ({death.detail}): it is the model, the machine's memory or an "
            "installed library, not the photos. Lower encode.batch_size or give the actors more memory; "
            "`codebooks doctor --try` tries one process"
        )
    guilty: dict[int, Death] = {}
    todo = _halves(rows)
    while todo:
        suspects = todo.pop(0)
        death = trial(suspects)
        if death is None:
            continue
        if len(suspects) > 1:
            todo[:0] = _halves(suspects)
        elif (again := trial(suspects)) is not None:
            guilty[suspects[0]] = again
        if len(guilty) > most:
            raise CodebooksError(
                f"more than {most} photos kill the process that works on them ({death.detail}): a library or this "
                "machine is at fault, not the photos; finished parts are kept"
            )
    return guilty


def _halves(rows: tuple[int, ...]) -> list[tuple[int, ...]]:
    middle = (len(rows) + 1) // 2
    return [half for half in (rows[:middle], rows[middle:]) if half]
