"""The whole config of a refresh: the rooms' own configs, put together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from jobs.command import Arguments
from jobs.sources import read_config
from pipeline.catalogue import CatalogueConfig, catalogue_files
from pipeline.encoding import EncodeConfig
from pipeline.evaluation import GatesConfig, MeasuresConfig
from pipeline.images import ImagesConfig
from pipeline.index import IndexConfig
from pipeline.index.space import check_rotates
from pipeline.models import AnyModelConfig
from pipeline.monitoring import MonitorConfig
from pipeline.nodes import ClusterConfig
from pipeline.planning.prior_section import DEFAULT_PRIOR, AnyPriorSection
from pipeline.quality.choose_config import ChooseConfig
from pipeline.release import PublishConfig
from pipeline.storage import NO_SECRETS, Files, holds_user
from pipeline.storage.config import StoreConfig, absolute
from pipeline.tables import SemanticIdsConfig, TablesConfig
from pipeline.training import TrainConfig


class Config(BaseModel):
    """Everything a refresh is told; the three sections without a default make the smallest useful file.

    prior, choose: of the commands of these names; a refresh only checks them. monitor: whom a run tells how it goes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    store: StoreConfig
    catalogue: CatalogueConfig
    images: ImagesConfig = Field(default_factory=ImagesConfig)
    model: AnyModelConfig
    train: TrainConfig = Field(default_factory=TrainConfig)
    prior: AnyPriorSection = DEFAULT_PRIOR
    encode: EncodeConfig = Field(default_factory=EncodeConfig)
    index: IndexConfig = Field(default_factory=IndexConfig)
    tables: TablesConfig = TablesConfig()
    semantic_ids: SemanticIdsConfig | None = None
    measures: MeasuresConfig = MeasuresConfig()
    gates: GatesConfig = Field(default_factory=GatesConfig)
    publish: PublishConfig = Field(default_factory=PublishConfig)
    cluster: ClusterConfig = Field(default_factory=ClusterConfig)
    monitor: MonitorConfig = Field(default_factory=MonitorConfig)
    choose: ChooseConfig = Field(default_factory=ChooseConfig)

    @model_validator(mode="after")
    def _rotates(self) -> Config:
        if self.publish.keep_space:
            check_rotates(self.index)
        return self

    @field_validator("catalogue")
    @classmethod
    def _absolute_source(cls, catalogue: CatalogueConfig) -> CatalogueConfig:
        if holds_user(catalogue.source):
            raise ValueError(f"source must not name a user or password; {NO_SECRETS}")
        return catalogue.model_copy(update={"source": absolute(catalogue.source)})


def load_config(arguments: Arguments, environment: Mapping[str, str] | None = None) -> Config:
    """Return the config of a command line: preset, file, environment, `key=value`; later ones win.

    environment: instead of this process's. Raises ConfigError naming each wrong key, where it stands and what is
    allowed.
    """
    return read_config(arguments, Config, environment)


def config_values(config: Config) -> dict[str, Any]:
    """Return a config as plain JSON values, without `monitor` and `publish.sign`.

    Whom a run tells and who signs is no part of it, and may be secret.
    """
    unset = {"canary": config.publish.canary is None, "keep_space": not config.publish.keep_space}
    idle = {"sign", *(name for name, left_out in unset.items() if left_out)}
    values = config.model_dump(mode="json", exclude={"monitor": True, "publish": idle})
    if config.images.keep != "auto":  # the section itself leaves it out, so that it is in no key
        values["images"]["keep"] = config.images.keep
    plain = {
        "tables": not config.tables.asked,
        "semantic_ids": config.semantic_ids is None,
        "measures": config.measures == MeasuresConfig(),
    }
    for section, left_out in plain.items():
        if left_out:  # a run's frozen config is then what it was before there were such sections
            del values[section]
    return values


def photo_files(config: Config) -> Files:
    """Return what reads the catalogue and its photos: as the catalogue says, else as the store is reached."""
    return catalogue_files(config.catalogue, config.store.options())
