"""The likelihood of a night's codes by the bundle's prior: photo by photo, by category, and where there is none."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipeline.evaluation.nightly import MeasuresConfig
from pipeline.evaluation.nightly.likelihood import likelihood
from pipeline.evaluation.nightly.tonight import LeftOut, Tonight
from pipeline.index import LatentArrays
from pipeline.models.priors import build_prior
from pipeline.models.priors.pixelcnn import PixelCNNConfig
from pipeline.models.priors.stored import STORED, newest_prior, save_prior
from pipeline.quality.nightly import _prior_of
from pipeline.storage import Store, open_store

MODEL, OTHER = "f" * 64, "e" * 64
CODES, GRID, COUNT = 5, (2, 3), 40
KINDS = ["a", "b", None, "unseen"] * 10


@pytest.fixture
def store(tmp_path: Path) -> Store:
    torch.set_num_threads(1)
    return open_store(str(tmp_path))


def prior(*, by_category: bool = True, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    made = build_prior(
        PixelCNNConfig(width=8, layers=2, by_category=by_category), num_codes=CODES, grid=GRID, labels=("a", "b")
    )
    torch.nn.init.normal_(next(iter(made.parameters())), std=2.0)  # a new one finds all codes alike
    return made


def night(category: str | None = "kind") -> SimpleNamespace:
    codes = np.random.default_rng(0).integers(CODES, size=(COUNT, 6)).astype(np.int32)
    items = {"item_id": [f"i-{number:02d}" for number in range(COUNT)], "kind": KINDS}
    latents = LatentArrays(np.zeros((COUNT, 2), np.float32), codes=codes)
    return SimpleNamespace(items=pa.table(items), latents=latents, category=category, parent=None)


def said(store: Store, model_id: str = MODEL, cells: int = 6, category: str | None = "kind") -> Any:
    model = SimpleNamespace(num_latent_codes=cells)
    return _prior_of(store, SimpleNamespace(model=model, model_id=model_id), night(category))  # type: ignore[arg-type]


def alone(network: Any, told: list[int] | None) -> np.ndarray:
    """Return the nats per code of each photo, asked for by itself."""
    found = []
    for row, codes in enumerate(night().latents.codes):
        condition = None if told is None else torch.tensor([told[row]])
        with torch.no_grad():
            found.append(float(network.eval().nats(torch.from_numpy(codes).long().reshape(1, *GRID), condition)) / 6)
    return np.array(found)


def test_each_photo_has_the_nats_that_the_prior_gives_it_alone(store: Store) -> None:
    save_prior(store, prior(), model_id=MODEL, measures={}, train_key="1" * 64)
    tonight = Tonight(MeasuresConfig(), store, night(), pa.table({}), lambda _: LeftOut(""), {}, prior=said(store))
    known = {"a": 2, "b": 3, None: 0, "unseen": 1}
    oracle = alone(prior(), [known[kind] for kind in KINDS])
    found = likelihood(tonight)
    assert not isinstance(found, LeftOut)
    values = {(one.name, one.category): one for one in found}
    whole = values["code_nats", None]
    assert whole.value == pytest.approx(oracle.mean(), rel=1e-6)
    assert whole.n == COUNT
    assert whole.examples[0] == f"i-{int(oracle.argmax()):02d}"
    of_kinds = {kind: oracle[number::4].mean() for number, kind in enumerate(KINDS[:4]) if kind}
    for kind, value in of_kinds.items():
        assert values["code_nats", kind].value == pytest.approx(value, rel=1e-6)
    assert values["code_nats_worst", None].value == pytest.approx(max(of_kinds.values()), rel=1e-6)
    assert values["code_nats_best", None].value == pytest.approx(min(of_kinds.values()), rel=1e-6)
    # Negative control: told other categories, the photos are as likely as other photos.
    assert abs(alone(prior(), [2] * COUNT).mean() - oracle.mean()) > 1e-4


def test_the_newest_prior_of_this_bundle_is_asked(store: Store) -> None:
    assert newest_prior(store, MODEL) is None
    first = save_prior(store, prior(), model_id=MODEL, measures={}, train_key="1" * 64)
    save_prior(store, prior(seed=1), model_id=OTHER, measures={}, train_key="2" * 64)
    assert newest_prior(store, MODEL).prior_id == first  # type: ignore[union-attr]
    second = save_prior(store, prior(seed=2), model_id=MODEL, measures={}, train_key="3" * 64)
    assert newest_prior(store, MODEL).prior_id == second  # type: ignore[union-attr]


def test_a_night_without_a_prior_that_fits_says_why(store: Store) -> None:
    def why(**given: Any) -> str:
        found = said(store, **given)
        assert isinstance(found, LeftOut)
        return found.why

    assert why(cells=0) == "the model has no codes"
    assert "`codebooks prior` trains one" in why()
    made = save_prior(store, prior(), model_id=MODEL, measures={}, train_key="1" * 64)
    assert "of 6 codes a photo, not of this model's" in why(cells=4)
    assert "is told categories, and catalogue.category names none" in why(category=None)
    store.put(STORED.name(made, "config.json"), b"{}")
    assert "cannot be read" in why()
