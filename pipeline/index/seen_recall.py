"""The recall that a reader's own questions see: one of N is answered once more, exactly, and compared."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from ..forks import FreshLock, renewed_in_children
from .groups import GroupHits

log = logging.getLogger("codebooks.reader")

_TIES = 1e-9  # of a score: rounding between two ways to the same number


@dataclass(frozen=True, slots=True)
class SeenRecall:
    """What was compared since the release was first opened, over all releases that it moved to.

    questions: asked; checked: answered once more; skipped: drawn while another was under way, or failed; neighbours:
    that the exact answers have; found: of these, those that the answers had, ties counted as found.
    """

    questions: int = 0
    checked: int = 0
    skipped: int = 0
    neighbours: int = 0
    found: int = 0

    @property
    def recall(self) -> float | None:
        """The share of the exact neighbours that was found; None as long as there are none."""
        return self.found / self.neighbours if self.neighbours else None


class RecallCheck:
    """Draws one question in N and compares its answer on a thread of its own, one at a time; the rest never wait.

    A question that is drawn while another is compared is skipped, so that exact searches of a large release cannot pile
    up. Which are drawn is random, so that what asks in a rhythm is drawn like everything else.
    """

    def __init__(self, one_in: int) -> None:
        self._one_in = one_in
        self._draw = random.Random()
        self.seen = SeenRecall()
        self._lock = FreshLock()
        self.renew_after_fork()
        renewed_in_children(self)

    def renew_after_fork(self) -> None:
        """Begin with a thread of this process."""
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="recall")
        self._busy = threading.Semaphore(1)

    def observe(self, answers: list[GroupHits], exactly: Callable[[int], GroupHits]) -> None:
        """Count answered questions, and have some of them compared; exactly: the exact answer to one of them."""
        drawn = [number for number in range(len(answers)) if self._draw.randrange(self._one_in) == 0]
        taken = drawn[:1] if drawn and self._busy.acquire(blocking=False) else []
        self._count(questions=len(answers), skipped=len(drawn) - len(taken))
        for number in taken:
            self._pool.submit(self._compare, answers[number], partial(exactly, number))

    def wait(self) -> SeenRecall:
        """Return what was seen once the comparison under way has ended."""
        self._pool.submit(lambda: None).result()
        return self.seen

    def _compare(self, answer: GroupHits, exactly: Callable[[], GroupHits]) -> None:
        try:
            truth = exactly()
            found = 0
            if len(truth.scores):
                kth = truth.scores[-1]
                near = answer.scores >= kth - _TIES * max(1.0, abs(float(kth)))
                found = min(int(np.count_nonzero(near)), len(truth.scores))
            self._count(checked=1, neighbours=len(truth.scores), found=found)
        except Exception:  # a comparison must never be an answer's concern
            log.exception("a question could not be answered exactly, to compare")
            self._count(skipped=1)
        finally:
            self._busy.release()

    def _count(self, **more: int) -> None:
        with self._lock:
            self.seen = replace(self.seen, **{name: getattr(self.seen, name) + value for name, value in more.items()})
