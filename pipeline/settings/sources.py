"""Where settings come from: a preset, a YAML file, the environment, `key=value`; each is a plain dict with a label."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..errors import ConfigError
from ..storage.secrets import MASK, masked_options, names_secret

PREFIX = "CODEBOOKS__"
Path_ = tuple[str, ...]
# PyYAML lets through what Python says of dates such as 2024-13-45 and of numbers of thousands of digits.
_MOST_VALUES = 100_000
_NO_YAML = (yaml.YAMLError, ValueError, OverflowError, RecursionError)


@dataclass(frozen=True, slots=True)
class Source:
    """The settings of one place. label: how messages name it; lines: of each key path in its file; weak: a preset."""

    label: str
    values: dict[str, Any]
    lines: Mapping[Path_, int] = field(default_factory=dict)
    weak: bool = False

    def where(self, path: Path_) -> str:
        """Return how a message names the place of one key, for example `night.yaml line 7`."""
        known = next((path[:end] for end in range(len(path), 0, -1) if path[:end] in self.lines), None)
        return self.label if known is None else f"{self.label} line {self.lines[known]}"


@dataclass(frozen=True, slots=True)
class Merged:
    """All sources as one dict. origins: for each key path that holds a plain value, the source it came from."""

    values: dict[str, Any]
    sources: tuple[Source, ...]
    origins: dict[Path_, Source]

    def where(self, path: Path_) -> str | None:
        """Return where the value at a path, or the closest one above or below it, comes from."""
        for end in range(len(path), 0, -1):
            for known, source in self.origins.items():
                if known[:end] == path[:end] and (end == len(path) or known == path[:end]):
                    return source.where(known)
        return None


def merge(sources: list[Source]) -> Merged:
    """Return the sources as one dict; of two plain values at one path the later one wins, sections are joined."""
    values: dict[str, Any] = {}
    origins: dict[Path_, Source] = {}
    for source in sources:
        _merge_into(values, source.values, (), source, origins)
    return Merged(values, tuple(sources), origins)


def parse_value(text: str, label: str) -> Any:
    """Return the value that a YAML text stands for: numbers, true, null, [lists], {maps}, else a string."""
    try:
        return _finite(yaml.safe_load(text))
    except _NO_YAML as error:
        raise ConfigError(f"{label}: the value is not YAML ({_one_line(error)}); quote it") from error


def read_file(path: Path, label: str) -> Source:
    """Return a YAML file's settings. Raises ConfigError, with the line, when it holds no mapping of names."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"there is no config file {str(path)!r}; `codebooks init` writes one") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the config file {str(path)!r} cannot be read: {error}") from error
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        values = _finite(yaml.safe_load(text))
    except _NO_YAML as error:
        raise ConfigError(f"{label} is not YAML: {_one_line(error)}") from error
    if node is None:
        return Source(label, {})
    if not isinstance(node, yaml.MappingNode):
        line = node.start_mark.line + 1
        raise ConfigError(
            f"{label} line {line} holds a {type(values).__name__}, expected settings such as `store: s3://bucket/prefix`"
        )
    return Source(label, values, dict(_lines(node, (), label)))


def environment_sources(environment: Mapping[str, str]) -> Iterator[Source]:
    for name in sorted(environment):
        if name.upper().startswith(PREFIX):
            label = f"environment variable {name}"
            parts = name[len(PREFIX) :].lower().split("__")
            yield Source(label, _nested(parts, parse_value(environment[name], label), label))


def override_source(text: str) -> Source:
    name, equals, value = text.partition("=")
    secret = any(names_secret(part) for part in name.strip().split("."))
    label = f"argument {f'{name}={MASK}' if equals and secret else masked_options(text)!r}"
    if not equals:
        raise ConfigError(f"{label} is not of the form key.path=value, for example train.epochs=20")
    return Source(label, _nested(name.strip().split("."), parse_value(value, label), label))


def _nested(parts: list[str], value: Any, label: str) -> dict[str, Any]:
    if not all(parts):
        raise ConfigError(f"{label}: {'.'.join(parts)!r} is no key path; write for example train.epochs")
    nested: dict[str, Any] = {parts[-1]: value}
    for part in reversed(parts[:-1]):
        nested = {part: nested}
    return nested


def normal(source: Source) -> Source:
    """Return the source with a plain `store: URL` written out as `store: {url: URL}`, so that sources can be joined."""
    store = source.values.get("store")
    if not isinstance(store, str):
        return source
    lines = {**source.lines}
    if ("store",) in lines:
        lines["store", "url"] = lines["store",]
    return Source(source.label, {**source.values, "store": {"url": store}}, lines, source.weak)


def _merge_into(
    target: dict[str, Any], values: dict[str, Any], path: Path_, source: Source, origins: dict[Path_, Source]
) -> None:
    for name, value in values.items():
        here = (*path, str(name))
        if isinstance(value, dict):
            if not isinstance(target.get(name), dict):
                target[name] = {}
                origins.pop(here, None)
            if not value:
                origins[here] = source
            _merge_into(target[name], value, here, source, origins)
        else:
            for known in [known for known in origins if known[: len(here)] == here]:
                del origins[known]
            target[name] = value
            origins[here] = source


def _lines(node: yaml.MappingNode, path: Path_, label: str) -> Iterator[tuple[Path_, int]]:
    seen: dict[str, int] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        name = str(key.value)
        if name in seen:
            raise ConfigError(f"{label} line {line}: {name!r} is there already in line {seen[name]}; keep one of them")
        seen[name] = line
        yield (*path, name), line
        if isinstance(value, yaml.MappingNode):
            yield from _lines(value, (*path, name), label)


def _finite(value: Any) -> Any:
    """Return what YAML made of a text; raises ValueError where aliases make it endless, or all but endless."""
    seen, todo = 0, [value]
    while todo:
        seen += 1
        if seen > _MOST_VALUES:
            raise ValueError(f"it holds more than {_MOST_VALUES:,} values, or itself by an alias")
        held = todo.pop()
        todo.extend(held.values() if isinstance(held, dict) else held if isinstance(held, list | set) else ())
    return value


def _one_line(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    return str(problem) if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: {problem}"
