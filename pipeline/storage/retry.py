"""Trying again: which failures are temporary, and how long to wait between tries."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt

from ..errors import ClientRefused, HostSilent, Unavailable

Answer = TypeVar("Answer")
# A generator of its own: jitter must neither take from the seeded one nor be equal in forked workers.
_JITTER = random.SystemRandom()
_TOO_EARLY_OR_TOO_MANY = {408, 425, 429}
_NEVER_BETTER = {501, 505}
# Tries of a request whose sender was refused: new keys take a moment to be known everywhere, wrong ones never are.
_REFUSED_TRIES = 3


class Retry(BaseModel):
    """Capped exponential back-off with full jitter (Brooker, "Exponential Backoff And Jitter", AWS, 2015).

    attempts: tries in all. first_s, cap_s: the longest wait after the first try, and after any. total_s: no try begins
    later than this after the first one; a try itself is bounded by the time-outs of its connection.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    attempts: PositiveInt = 8
    first_s: PositiveFloat = 0.2
    cap_s: PositiveFloat = 10.0
    total_s: PositiveFloat = 60.0

    def longest_wait(self, failures: int) -> float:
        """Return the upper end of the wait after so many failures, in seconds."""
        return min(self.cap_s, self.first_s * 2.0 ** min(failures - 1, 60))


def temporary_status(status: int) -> bool:
    """Return whether an HTTP status may be better next time: 408, 425, 429 and 5xx but 501 and 505."""
    return status in _TOO_EARLY_OR_TOO_MANY or (status >= 500 and status not in _NEVER_BETTER)


def retrying(
    action: Callable[[], Answer],
    policy: Retry,
    *,
    asked: Callable[[Unavailable], float] = lambda _: 0.0,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
    uniform: Callable[[float, float], float] = _JITTER.uniform,
) -> Answer:
    """Return what `action` returns, calling it again while it raises Unavailable or, three times in all, ClientRefused.

    asked: seconds that a failure asks to wait at least. Raises an error of the last failure's class, with the number of
    tries, when the policy is used up; every other error, and HostSilent, passes at once.
    """
    begun = clock()
    failures = 0
    while True:
        try:
            return action()
        except HostSilent:
            raise
        except (Unavailable, ClientRefused) as error:
            failures += 1
            refused = isinstance(error, ClientRefused)
            most = min(policy.attempts, _REFUSED_TRIES) if refused else policy.attempts
            wait = uniform(0.0, policy.longest_wait(failures))
            if isinstance(error, Unavailable):
                wait = max(asked(error), wait)
            waited = clock() - begun
            if failures >= most or waited + wait > policy.total_s:
                advice = "" if refused else "; it may work later: run the same command again"
                raise type(error)(f"{error}; {failures} tries in {waited:.1f} s{advice}") from error
            sleep(wait)
