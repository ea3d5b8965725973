"""Which settings a command line names: presets, a YAML file, the environment, `key=value`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from jobs.command import Arguments
from pipeline.errors import ConfigError
from pipeline.settings import Source, environment_sources, normal, override_source, read_file
from pipeline.storage.local import expanded

PRESETS = Path(__file__).parent / "presets"


def read_sources(arguments: Arguments, environment: Mapping[str, str] | None = None) -> list[Source]:
    """Return the sources of a command line, weakest first. Raises ConfigError on what cannot be read."""
    sources: list[Source] = []
    if arguments.config is not None:
        sources.extend(_config_sources(arguments.config))
    sources.extend(environment_sources(os.environ if environment is None else environment))
    sources.extend(override_source(text) for text in arguments.overrides)
    return [normal(source) for source in sources]


def preset_names() -> list[str]:
    """Return the names of the presets."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def _config_sources(config: str) -> Iterator[Source]:
    path = expanded(config)
    if not _is_file(path) and not path.suffix and "/" not in config:
        yield _preset(config, f"--config {config!r} is neither a file nor a preset")
        return
    source = read_file(path, config)
    based_on = source.values.pop("preset", None)
    if based_on is not None:
        yield _preset(based_on, f"{source.where(('preset',))}: there is no preset {based_on!r}")
    yield source


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long, a folder that may not be looked into: reading it says so
        return False


def _preset(name: Any, problem: str) -> Source:
    names = preset_names()
    if name not in names:
        near = get_close_matches(str(name), names, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(f"{problem}; {hint}presets: {', '.join(names)}")
    source = read_file(PRESETS / f"{name}.yaml", f"preset {name!r}")
    return Source(source.label, source.values, source.lines, weak=True)
