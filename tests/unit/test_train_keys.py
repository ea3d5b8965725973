"""Train keys: those of earlier versions as literals, and what a key of today says of hardware, limits and samples."""

from __future__ import annotations

import pytest
import yaml

from jobs.command import Arguments
from jobs.config import config_values, load_config
from pipeline.models.priors.stored import prior_key
from pipeline.planning import Asked
from pipeline.planning.prior_section import DEFAULT_PRIOR, network_of
from pipeline.release import Sample

# What the version gave whose keys held the hardware and idle settings.
PLAIN = "8152db1e6b824893700271a0f417d655bb77edbbe3850ec8e86ba9d463d22f30"
FORMER = {
    ("model.kind=vae",): PLAIN,
    ("model.kind=vae", "train.workers=2", "train.threads=3", "train.compile=true", "train.window_parts=2"):
        "954a98250f4111bdb2147f0a8d8e9b8eddf1c0521981423823c815da77ba7ba3",
    ("model.kind=vae", "train.best_by=validation/mse", "images.max_bytes=1000"):
        "9a8beac11b9d90e3f8c79674664b48f4e0708b7655069378d72153b45a88a76d",
    ("model.kind=descriptor", "train.epochs=5"):
        "23f958238df56c70f130dfa3ec68fe8118c95be4c93463f667cf3cc047c05a48",
}  # fmt: skip
PRIOR = "12dd46f2da09735ff500dd5566c096a46d07b3644cfdb91b37341fbed28c48a3"
PRIOR_OF_TWO_WORKERS = "3e588af30c09629184bae737d7616eba97aba30c515424d92c52fa789ead1a5c"


def asked(*words: str, sample: Sample | None = None) -> Asked:
    return Asked.of(load_config(Arguments(overrides=("store=/x", "catalogue.source=/x/c.csv", *words)), {}), sample)


@pytest.mark.parametrize("words", FORMER)
def test_the_keys_of_an_earlier_version_are_known(words: tuple[str, ...]) -> None:
    assert asked(*words).former_train_key() == FORMER[words]


def test_on_other_hardware_and_with_other_limits_the_key_is_that_of_the_defaults() -> None:
    for words in list(FORMER)[:3]:
        assert asked(*words).train_key() == PLAIN
    assert asked("model.kind=vae", "images.max_pixels=1000").train_key() == PLAIN
    assert asked("model.kind=descriptor", "train.epochs=5").train_key() == asked("model.kind=descriptor").train_key()
    for words in (["images.size=32"], ["images.fit=crop"], ["train.seed=1"], ["train.version=2"], ["train.epochs=9"],
                  ["model.latent_dim=8"]):  # fmt: skip
        assert asked("model.kind=vae", *words).train_key() != PLAIN


def test_a_sample_has_keys_of_its_own() -> None:
    samples = [None, Sample(limit=5, seed=0), Sample(limit=6, seed=0)]
    keys = {asked("model.kind=vae", sample=sample).train_key(period) for sample in samples for period in ("", "30d:7")}
    assert len(keys) == 6


def test_a_priors_key_is_that_of_the_defaults_on_other_hardware_too() -> None:
    def key(values: dict[str, object]) -> str:
        return prior_key(network_of(DEFAULT_PRIOR), "f" * 64, values, 0, 1)

    two = DEFAULT_PRIOR.train.model_copy(update={"workers": 2})
    assert (key(two.key_values()), key(two.continued_values())) == (PRIOR, PRIOR_OF_TWO_WORKERS)
    assert key(DEFAULT_PRIOR.train.model_copy(update={"epochs": 2}).key_values()) != PRIOR


def test_a_frozen_config_says_what_was_asked() -> None:
    words = ("store=/x", "catalogue.source=/x/c.csv", "model.kind=descriptor", "catalogue.category=kind")
    config = load_config(Arguments(overrides=words), {})
    text = yaml.safe_dump(config_values(config)).encode()
    assert Asked.from_frozen(text) == Asked.of(config, None)
    limited = Asked.from_frozen(text + b"limit: 5\n")
    assert limited is not None
    assert limited.sample == Sample(limit=5, seed=0)
    for other in (b"", b"[1]", b"model: {kind: of-the-future}", text.replace(b"descriptor", b"of-the-future")):
        assert Asked.from_frozen(other) is None
