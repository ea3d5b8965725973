"""Priors on the store: the same bits back, and every damage named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pipeline.errors import InputError, IntegrityError, NotFound
from pipeline.models.priors import PriorConfig, build_prior
from pipeline.models.priors.pixelcnn import PixelCNNConfig
from pipeline.models.priors.stored import find_prior, load_prior, prior_key, save_prior
from pipeline.models.priors.transformer import TransformerConfig
from pipeline.models.shelves import content_id
from pipeline.storage import Store, open_store

CONFIGS = [PixelCNNConfig(width=8, layers=2, by_category=True), TransformerConfig(width=8, layers=1)]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    torch.set_num_threads(1)
    return open_store(str(tmp_path))


KEY = "feed" * 16


def saved(store: Store, config: PriorConfig, *, seed: int = 0, train_key: str = KEY) -> str:
    torch.manual_seed(seed)
    prior = build_prior(config, num_codes=5, grid=(2, 3), labels=("a", "b"))
    return save_prior(store, prior, model_id="f" * 64, measures={"nats_per_code/prior": 1.25}, train_key=train_key)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.kind)
def test_a_prior_comes_back_to_the_bit(store: Store, config: PriorConfig):
    prior_id = saved(store, config)
    assert saved(store, config) == prior_id
    torch.manual_seed(0)
    prior = build_prior(config, num_codes=5, grid=(2, 3), labels=("a", "b")).eval()
    before = torch.get_rng_state()
    found = load_prior(store, prior_id)
    assert torch.equal(torch.get_rng_state(), before)
    assert (found.prior_id, found.model_id, dict(found.measures)) == (prior_id, "f" * 64, {"nats_per_code/prior": 1.25})
    assert found.prior.settings == config
    assert found.prior.labels == prior.labels
    assert not found.prior.training
    codes, told = torch.randint(0, 5, (4, 2, 3)), torch.tensor([0, 1, 2, 3])
    assert torch.equal(found.prior.nats(codes, told), prior.nats(codes, told).detach())


def test_the_first_prior_answers_its_key(store: Store):
    assert find_prior(store, KEY) is None
    first = saved(store, CONFIGS[1])
    assert saved(store, CONFIGS[1], seed=1) == first  # trained twice: whoever was first decides
    assert find_prior(store, KEY) == first
    other = saved(store, CONFIGS[1], seed=1, train_key="0" * 64)
    assert other != first
    assert find_prior(store, "0" * 64) == other
    store.delete(f"priors/{first}/config.json")
    with pytest.raises(IntegrityError, match=f"names prior {first}, which is not there"):
        find_prior(store, KEY)
    store.put(f"priors/by-key/{KEY}.json", b"{}")
    with pytest.raises(IntegrityError, match="names the prior_id None, which is not 64 hex digits"):
        find_prior(store, KEY)


def test_a_key_holds_everything_that_was_asked_for_and_no_catalogue():
    train = {"epochs": 3, "learning_rate": 0.1}
    base = prior_key(CONFIGS[1], "m", train, 0, 1)
    assert base == prior_key(CONFIGS[1], "m", dict(reversed(train.items())), 0, 1)
    others = [
        prior_key(CONFIGS[0], "m", train, 0, 1),
        prior_key(CONFIGS[1], "n", train, 0, 1),
        prior_key(CONFIGS[1], "m", {**train, "epochs": 4}, 0, 1),
        prior_key(CONFIGS[1], "m", train, 1, 1),
        prior_key(CONFIGS[1], "m", train, 0, 2),
        prior_key(CONFIGS[1], "m", train, 0, 1, "run:night"),
        prior_key(CONFIGS[1], "m", train, 0, 1, condition="category"),
    ]
    assert len({base, *others}) == 8


def test_what_is_missing_or_damaged_is_named(store: Store, tmp_path: Path):
    with pytest.raises(NotFound, match="there is no prior abc"):
        load_prior(store, "abc")
    prior_id = saved(store, CONFIGS[0])
    weights = tmp_path / "priors" / prior_id / "weights.safetensors"
    good = weights.read_bytes()
    for bad in (good[:-8] + bytes(8), good[:40]):
        weights.write_bytes(bad)
        with pytest.raises(IntegrityError, match="damaged"):
            load_prior(store, prior_id)
        with pytest.raises(IntegrityError, match="damaged"):
            saved(store, CONFIGS[0])
    weights.unlink()
    with pytest.raises(IntegrityError, match="missing"):
        load_prior(store, prior_id)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": 2}, "format 2"),
        ({"prior": {"kind": "lstm"}}, "kind 'lstm'"),
        ({"prior": {"kind": "pixelcnn", "depth": 3}}, "depth"),
        ({"num_codes": 6}, "size mismatch"),
    ],
)
def test_a_prior_of_another_version_is_refused(store: Store, change: dict[str, object], said: str):
    torch.manual_seed(0)
    prior = build_prior(CONFIGS[0], num_codes=5, grid=(2, 3), labels=())
    first = save_prior(store, prior, model_id="f" * 64, measures={}, train_key=KEY)
    facts = {**json.loads(store.get(f"priors/{first}/config.json")), **change}
    config = json.dumps(facts).encode()
    prior_id = content_id(config, prior.state_dict())
    store.put_if_absent(f"priors/{prior_id}/config.json", config)
    store.put_if_absent(f"priors/{prior_id}/weights.safetensors", store.get(f"priors/{first}/weights.safetensors"))
    with pytest.raises(InputError, match=said):
        load_prior(store, prior_id)
