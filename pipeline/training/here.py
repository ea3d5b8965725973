"""A training in this process, without Ray: for the many small ones of which nobody waits for one alone."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..errors import CodebooksError
from .loop import Line
from .progress import TrainProgress
from .ranks import Ranks
from .worker import Job

ProgressCallback = Callable[[TrainProgress], None]


def train_here(job: Job, *, progress: ProgressCallback | None = None) -> str:
    """Train on one thread set of this process and return the id that answers the job's key; as `driver.train_job`."""
    before = torch.get_num_threads()
    torch.set_num_threads(job.train.threads)
    try:
        line = Line() if progress is None else Line(report=progress)
        found = job.run_rank(Ranks(), line=line, first_here=True) or job.answer()
    finally:
        torch.set_num_threads(before)
    if found is None:
        raise CodebooksError(f"the training ended, but nothing answers its train key {job.train_key}")
    return found
