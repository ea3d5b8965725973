"""What of a config planning a night reads; each section is its own room's."""

from __future__ import annotations

from typing import Protocol

from ..catalogue import CatalogueConfig
from ..encoding import EncodeConfig
from ..evaluation import GatesConfig, MeasuresConfig
from ..images import ImagesConfig
from ..index import IndexConfig
from ..models import AnyModelConfig
from ..release import PublishConfig
from ..tables import SemanticIdsConfig, TablesConfig
from ..training import TrainConfig


class NightSettings(Protocol):
    """The sections that decide what a night computes and publishes, however the whole config was put together."""

    @property
    def catalogue(self) -> CatalogueConfig: ...
    @property
    def images(self) -> ImagesConfig: ...
    @property
    def model(self) -> AnyModelConfig: ...
    @property
    def train(self) -> TrainConfig: ...
    @property
    def encode(self) -> EncodeConfig: ...
    @property
    def index(self) -> IndexConfig: ...
    @property
    def tables(self) -> TablesConfig: ...
    @property
    def semantic_ids(self) -> SemanticIdsConfig | None: ...
    @property
    def measures(self) -> MeasuresConfig: ...
    @property
    def gates(self) -> GatesConfig: ...
    @property
    def publish(self) -> PublishConfig: ...
