"""`codebooks prior` as a scheduler runs it: a small VQ release, two workers on real Ray, stopped and continued.

What it must come to is trained without Ray, by two forked ranks that nothing stops: `rank_main`, see tests/ranks.py.
"""

from __future__ import annotations

import pickle
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import jobs.prior
from pipeline.models.priors.stored import load_prior
from pipeline.storage import open_store
from pipeline.training import PriorJob
from pipeline.training.loop import NO_LINE
from pipeline.training.ranks import Ranks
from pipeline.training.worker import fix_process

pytestmark = [pytest.mark.ray, pytest.mark.slow]

WORDS = [
    "catalogue.category=category", "prior.by_category=true", "prior.kind=pixelcnn", "prior.width=16",
    "prior.layers=2", "prior.dropout=0",
    "prior.train.epochs=40", "prior.train.batch_size=32", "prior.train.learning_rate=0.01",
    "prior.train.validation=0.15", "prior.train.workers=2", "prior.train.checkpoint_every_s=0.2", "--run", "night",
    "--samples", "6",
]  # fmt: skip


def words(folder: Path) -> list[str]:
    return ["prior", f"store={folder}", *WORDS]


def rank_main(rank: int, world: int, folder: str) -> None:
    """Train the prior that is asked for in `folder` as one rank."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    job: PriorJob = pickle.loads((Path(folder) / "job").read_bytes())
    fix_process(job.train, torch.device("cpu"))
    torch.save(job.run_rank(Ranks(rank, world), line=NO_LINE, first_here=rank == 0), Path(folder) / f"rank-{rank}.pt")
    dist.destroy_process_group()


def test_two_workers_stopped_on_the_way_make_the_same_prior(
    maker: Any, commands: Any, run_ranks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forked(job: PriorJob, **_: Any) -> str:
        (tmp_path / "job").write_bytes(pickle.dumps(job))
        first, second = run_ranks(__file__, 2, tmp_path)
        assert (first, second) == (job.answer(), None)
        return str(first)

    torch.set_num_threads(1)
    folders = [tmp_path / "undisturbed", tmp_path / "stopped"]
    maker.make_vq_release(open_store(str(folders[0])))
    shutil.copytree(folders[0], folders[1])
    with monkeypatch.context() as patch:
        patch.setattr(jobs.prior, "train_job", forked)
        whole = commands.run(*words(folders[0]))
    assert (whole["reason"], whole["trained"], whole["published"]) == ("prior trained", True, False)
    assert whole["measures"]["nats_per_code/prior"] + 0.3 < whole["measures"]["nats_per_code/unigram"]
    assert whole["outliers"][0]["item_id"] == maker.STRANGE

    process, deadline = commands.start(*words(folders[1])), time.monotonic() + 500
    while not list(folders[1].glob("runs/night/checkpoints/*/*/complete.json")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    stopped = commands.finish(process, expect=6)
    assert (stopped["run"], stopped["reason"]) == ("night", "temporary, try again")
    assert not list(folders[1].glob("priors/by-key/*"))
    continued = commands.run(*words(folders[1]))
    assert (continued["prior_id"], continued["trained"]) == (whole["prior_id"], True)
    assert load_prior(open_store(str(folders[1])), continued["prior_id"]).prior.labels == ("Hats", "Shoes")
    assert continued["measures"] == pytest.approx(whole["measures"])
