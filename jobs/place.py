"""The part of a config that every command needs, and the only one for those that just look at releases.

Nothing here imports torch or ray, so `codebooks releases` starts in a moment and works in a base install.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from jobs.command import Arguments
from jobs.sources import read_sources
from pipeline.release import PublishConfig
from pipeline.settings import check_and_build, merge
from pipeline.storage.config import StoreConfig


class LightConfig(BaseModel):
    """What `releases`, `rollback`, `similar` and `search` read of a config; the other sections are passed over."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    store: StoreConfig
    publish: PublishConfig = PublishConfig()
    catalogue: Any = None
    images: Any = None
    model: Any = None
    train: Any = None
    prior: Any = None
    choose: Any = None
    encode: Any = None
    index: Any = None
    gates: Any = None
    cluster: Any = None
    monitor: Any = None
    tables: Any = None
    semantic_ids: Any = None
    measures: Any = None


def load_light(arguments: Arguments) -> LightConfig:
    """Return the store and channel of a command line. Raises ConfigError."""
    return check_and_build(merge(read_sources(arguments)), LightConfig)
