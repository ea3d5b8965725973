"""What a night asks of its model: the settings that decide what is learned, and the keys that name them."""

from __future__ import annotations

import time
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from ..errors import ConfigError
from ..images import ImagesConfig
from ..models import MODELS, AnyModelConfig
from ..models.bundle import train_key
from ..release import Sample
from ..training import TrainConfig, train_period
from .settings import NightSettings


class Asked(BaseModel):
    """The settings that bundle and latents depend on.

    precision: of encoding; the train key leaves it out. category: the column of categories where the model or the
    training is told them. sample: which items alone were taken, None for all.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: AnyModelConfig
    images: ImagesConfig
    train: TrainConfig
    precision: str
    category: str | None
    sample: Sample | None

    @staticmethod
    def of(config: NightSettings, sample: Sample | None) -> Asked:
        """Return what a config asks for. Raises ConfigError as `category_told`."""
        told = category_told(config)
        return Asked(
            model=config.model,
            images=config.images,
            train=config.train,
            precision=config.encode.precision,
            category=told or (config.catalogue.category if _learns_by_category(config.train) else None),
            sample=sample,
        )

    @staticmethod
    def from_frozen(config_yaml: bytes) -> Asked | None:
        """Return what a run's frozen config asked for; None where this version cannot read it, as of a newer one."""
        try:
            values = yaml.safe_load(config_yaml)
            limit, train = values.get("limit"), values["train"]
            asked = Asked(
                model=values["model"],
                images=values["images"],
                train=train,
                precision=values["encode"]["precision"],
                category=values["catalogue"]["category"],
                sample=None if limit is None else Sample(limit=limit, seed=train["seed"]),
            )
        except (yaml.YAMLError, ValidationError, KeyError, TypeError, AttributeError):
            return None
        needed = asked.model.conditional or _learns_by_category(asked.train)
        return asked if needed else asked.model_copy(update={"category": None})

    def train_key(self, period: str = "") -> str:
        """Return the key of the training: what is learned, of which sample; never the machine that computes it.

        period: as `training.train_period` returns it.
        """
        sample = [] if self.sample is None else [f"sample:{self.sample.limit}"]
        return train_key(
            self.model,
            self.images.key_values(),
            self._learned(),
            self.train.seed,
            self.train.version,
            ";".join([*sample, *([period] if period else [])]),
            condition=self.category,
        )

    def former_train_key(self, period: str = "") -> str:
        """Return the key that versions before this one gave: of the hardware and of idle settings, too."""
        return train_key(
            self.model,
            self.images.model_dump(mode="json"),
            self.train.continued_values(),
            self.train.seed,
            self.train.version,
            period,
            condition=self.category,
        )

    def settings(self) -> dict[str, Any]:
        """Return every setting whose change trains or encodes anew, by its name in a config, as plain values."""
        nested = {
            "model": self.model.model_dump(mode="json"),
            "images": self.images.model_dump(mode="json"),
            "train": {**self._learned(), "seed": self.train.seed, "version": self.train.version},
        }
        limit = None if self.sample is None else self.sample.limit
        others = {"encode.precision": self.precision, "catalogue.category": self.category, "--limit": limit}
        return {**dict(_flat(nested, "")), **others}

    def period(self, run: str) -> str:
        """Return what `train.when` adds to the key of a run that is planned now."""
        return train_period(self.train, run=run, now=time.time())

    def _learned(self) -> dict[str, Any]:
        return self.train.key_values(by_steps=MODELS[self.model.kind][1].trains)


def _learns_by_category(train: TrainConfig) -> bool:
    return train.balance or train.supervision != "none"


def category_told(config: NightSettings) -> str | None:
    """Return the catalogue's column that the model is told, None for a model that is told none.

    Raises ConfigError for a conditional model when the catalogue names no category.
    """
    if not config.model.conditional:
        return None
    if config.catalogue.category is None:
        raise ConfigError(
            f"model.kind {config.model.kind!r} is told each photo's category and catalogue.category is not set; set it "
            "to the catalogue's column of categories (for a folder of photos: catalogue.category=category), or choose "
            "a model that needs none, for example model.kind=vae"
        )
    return config.catalogue.category


def _flat(value: Any, path: str) -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        return [pair for name, member in value.items() for pair in _flat(member, f"{path}.{name}" if path else name)]
    return [(path, value)]
