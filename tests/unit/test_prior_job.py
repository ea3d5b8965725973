"""One worker's whole job of a prior without Ray: latents parts to a prior, also when stopped on the way."""

from __future__ import annotations

import uuid

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipeline.errors import ConfigError, InputError, Unavailable
from pipeline.models.priors.pixelcnn import PixelCNNConfig
from pipeline.models.priors.stored import find_prior, load_prior
from pipeline.parts import write_part
from pipeline.schema import latents_schema
from pipeline.storage import Store, open_store
from pipeline.training import Line, PartRows, PriorTrainConfig
from pipeline.training.prior_job import PriorJob
from pipeline.training.ranks import Ranks

K, PHOTOS = 5, 60
KEY = "feed" * 16


@pytest.fixture
def store() -> Store:
    torch.set_num_threads(1)
    return open_store(f"memory://{uuid.uuid4().hex}")


def job(store: Store, *, run: str = "night", **settings: object) -> PriorJob:
    """Return a job on two parts of 2 x 2 codes; a photo's lower row repeats its upper one."""
    parts = []
    for number in range(2):
        upper = np.random.default_rng(number).integers(0, K, (PHOTOS, 2))
        names = [f"{number}-{row}" for row in range(PHOTOS)]
        columns = {"item_id": names, "uri": names, "token": names, "digest": names, "pixels_row": range(PHOTOS)}
        columns |= {"mean": [[0.0]] * PHOTOS, "codes": np.concatenate([upper, upper], axis=1).tolist()}
        schema = latents_schema(1, log_var=False, num_codes=4)
        table = pa.table([pa.array(columns[field.name], field.type) for field in schema], schema=schema)
        part = write_part(store, f"latents/m/{number}.parquet", table, f"{number}")
        rows = np.arange(PHOTOS, dtype=np.int32)
        parts.append(PartRows(part.name, rows, (rows % 2 + 2).astype(np.int32), rows % 4 == 0))
    return PriorJob(
        store=store,
        codes=tuple(parts),
        prior=PixelCNNConfig(width=8, layers=2, by_category=True),
        num_codes=K,
        model_id="f" * 64,
        train=PriorTrainConfig(**{"epochs": 3, "batch_size": 10, "checkpoint_every_s": 0, **settings}),
        run_dir=f"runs/{run}",
        train_key=KEY,
        labels=("bag", "hat"),
    )


@pytest.mark.slow
def test_a_rank_alone_trains_and_saves_the_prior(store: Store):
    prior_id = job(store, epochs=12, learning_rate=2e-2).run_rank(Ranks())
    assert prior_id == find_prior(store, KEY)
    found = load_prior(store, prior_id)
    assert (found.model_id, found.prior.grid, found.prior.num_codes) == ("f" * 64, (2, 2), K)
    assert found.prior.labels == ("bag", "hat")
    assert set(found.measures) == {"validation/total", "validation/nats_per_code"}
    # Two codes of four are free, the others repeat them; 90 photos teach some of that.
    assert np.log(K) / 2 < found.measures["validation/nats_per_code"] < np.log(K) - 0.4
    assert list(store.list("runs/night/tensorboard/"))


@pytest.mark.slow
def test_a_stopped_job_is_continued_to_the_same_prior(store: Store):
    undisturbed = job(store).run_rank(Ranks())
    store.delete(f"priors/by-key/{KEY}.json")
    answers = iter([False])
    with pytest.raises(Unavailable, match="step 10"):  # of 27
        job(store, run="other").run_rank(Ranks(), line=Line(should_stop=lambda: next(answers, True)))
    assert find_prior(store, KEY) is None
    seen = []
    assert job(store, run="other").run_rank(Ranks(), line=Line(report=seen.append)) == undisturbed
    assert {progress.resumed_from for progress in seen} == {10}


def test_a_checkpoint_of_other_photos_is_not_continued(store: Store):
    answers = iter([False])
    with pytest.raises(Unavailable):
        job(store).run_rank(Ranks(), line=Line(should_stop=lambda: next(answers, True)))
    other = job(store)
    fewer = [PartRows(part.part, part.rows[1:], part.category[1:], part.held_out[1:]) for part in other.codes]
    changed = PriorJob(**{**{name: getattr(other, name) for name in other.__slots__}, "codes": tuple(fewer)})
    with pytest.raises(ConfigError, match="inputs"):
        changed.run_rank(Ranks())


def test_a_prior_on_too_few_photos_says_so(store: Store):
    few = job(store)
    none = [PartRows(part.part, part.rows[:0], part.category[:0], part.held_out[:0]) for part in few.codes]
    empty = PriorJob(**{**{name: getattr(few, name) for name in few.__slots__}, "codes": tuple(none)})
    with pytest.raises(InputError, match="no photos whose codes"):
        empty.run_rank(Ranks())
