"""Do latents use their dimensions tonight, or have they collapsed?"""

from __future__ import annotations

from .. import spread as spreads
from ..measured import Measured
from .tonight import Found, LeftOut, Tonight


def spread(tonight: Tonight) -> Found:
    """Return `effective_rank` and `unit_spread` of the sampled items' first photos."""
    means = tonight.night.latents.mean[tonight.sample]
    if not means.size:
        return LeftOut("there are no latents")
    return [
        Measured("effective_rank", spreads.effective_rank(means), n=len(means)),
        Measured("unit_spread", spreads.unit_spread(means), n=len(means)),
    ]
