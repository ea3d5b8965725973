"""The settings that one name stands for: a preset's, a file's, or a file's upon the preset that it is based on."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..storage.local import expanded
from .sources import Source, read_file


def preset_names(presets: Path) -> list[str]:
    """Return the names of the presets in a folder."""
    return sorted(path.stem for path in presets.glob("*.yaml"))


def config_sources(config: str, presets: Path) -> Iterator[Source]:
    """Yield what `--config` names, weakest first: a preset of the folder, or a YAML file and its preset.

    Raises ConfigError on what cannot be read, and with a near spelling where there is no such preset.
    """
    path = expanded(config)
    if not _is_file(path) and not path.suffix and "/" not in config:
        yield _preset(config, presets, f"--config {config!r} is neither a file nor a preset")
        return
    source = read_file(path, config)
    based_on = source.values.pop("preset", None)
    if based_on is not None:
        yield _preset(based_on, presets, f"{source.where(('preset',))}: there is no preset {based_on!r}")
    yield source


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long, a folder that may not be looked into: reading it says so
        return False


def _preset(name: Any, presets: Path, problem: str) -> Source:
    names = preset_names(presets)
    if name not in names:
        near = get_close_matches(str(name), names, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(f"{problem}; {hint}presets: {', '.join(names)}")
    source = read_file(presets / f"{name}.yaml", f"preset {name!r}")
    return Source(source.label, source.values, source.lines, weak=True)
