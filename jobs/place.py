"""The part of a config that every command needs, and the only one for those that just look at releases.

Nothing here imports torch or ray, so `codebooks releases` starts in a moment and works in a base install.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict

from jobs.command import Arguments
from jobs.sources import read_config
from pipeline.release import PublishConfig, check_store
from pipeline.storage import Store
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
    return read_config(arguments, LightConfig)


@dataclass(frozen=True, slots=True)
class Place:
    """An open store of a format that is known, and the channel that the command line names, else the config."""

    config: LightConfig
    store: Store
    channel: str


def open_place(arguments: Arguments) -> Place:
    """Return where a command line's releases are. Raises ConfigError, InputError for a store of a newer format."""
    config = load_light(arguments)
    store = config.store.open()
    check_store(store)
    return Place(config, store, getattr(arguments.options, "channel", None) or config.publish.channel)
