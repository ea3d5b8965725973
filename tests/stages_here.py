"""The stages of a refresh that run on Ray, run in this process instead; everything else of a night is the real one."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest

import jobs.computing
import jobs.context
from pipeline.encoding import make_worker
from pipeline.models import bundle
from pipeline.models.bundle import find_bundle
from pipeline.training.ranks import Ranks
from pipeline.training.worker import TrainJob, run_rank

# A model that is only fitted: 60 photos take a moment.
SMALL = ["model.kind=descriptor", "images.size=16", "model.read_out={dims: 4}", "train.validation=0"]


def run_stages_here(patch: pytest.MonkeyPatch) -> None:
    """Let pixels, training and encoding run here, shard by shard, with the real workers."""

    def train_job(job: TrainJob, *, progress: Any) -> str:
        run_rank(job, Ranks())
        return str(find_bundle(job.store, job.train_key))

    def run_shards(shards: list[Any], job: Any, *, on_result: Callable[..., None]) -> list[Any]:
        worker, results = make_worker(job), []
        for shard in shards:
            results.append(worker(shard))
            on_result(results[-1], len(results), len(shards))
        return results

    patch.setattr(jobs.computing, "train_job", train_job)
    patch.setattr(jobs.computing, "run_shards", run_shards)
    patch.setattr(jobs.context, "ray_session", lambda *_, **__: nullcontext())
    # No night here is asked by photo, and the export takes longer than all the rest.
    patch.setattr(bundle, "export_encoder", lambda *_, **__: b"an encoder")
