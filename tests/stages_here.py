"""The stages of a refresh that run on Ray, run in this process instead; everything else of a night is the real one."""

from __future__ import annotations

from contextlib import nullcontext

import pytest

import jobs.computing
import jobs.context
from pipeline.encoding import run_shards_here
from pipeline.models import bundle
from pipeline.training import train_here

# A model that is only fitted: 60 photos take a moment.
SMALL = ["model.kind=descriptor", "images.size=16", "model.read_out={dims: 4}", "train.validation=0"]


def run_stages_here(patch: pytest.MonkeyPatch) -> None:
    """Let pixels, training and encoding run here, shard by shard, with the real workers."""
    patch.setattr(jobs.computing, "train_job", train_here)
    patch.setattr(jobs.computing, "run_shards", run_shards_here)
    patch.setattr(jobs.context, "ray_session", lambda *_, **__: nullcontext())
    # No night here is asked by photo, and the export takes longer than all the rest.
    patch.setattr(bundle, "export_encoder", lambda *_, **__: b"an encoder")
