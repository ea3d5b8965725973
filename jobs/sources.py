"""Which settings a command line names: presets, a YAML file, the environment, `key=value`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from jobs.command import Arguments
from pipeline.settings import Source, check_and_build, environment_sources, merge, normal, override_source, presets

PRESETS = Path(__file__).parent / "presets"
C = TypeVar("C", bound=BaseModel)


def read_sources(arguments: Arguments, environment: Mapping[str, str] | None = None) -> list[Source]:
    """Return the sources of a command line, weakest first. Raises ConfigError on what cannot be read."""
    sources = [] if arguments.config is None else list(presets.config_sources(arguments.config, PRESETS))
    sources.extend(environment_sources(os.environ if environment is None else environment))
    sources.extend(override_source(text) for text in arguments.overrides)
    return [normal(source) for source in sources]


def read_config(arguments: Arguments, config: type[C], environment: Mapping[str, str] | None = None) -> C:
    """Return what a command line says of a config. Raises ConfigError that names every wrong key."""
    return check_and_build(merge(read_sources(arguments, environment)), config)


def preset_names() -> list[str]:
    """Return the names of the presets."""
    return presets.preset_names(PRESETS)
