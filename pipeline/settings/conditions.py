"""Filters as a command line writes them, `--where NAME=VALUE`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import ConfigError
from .sources import parse_value


def parse_where(texts: Sequence[str]) -> dict[str, Any] | None:
    """Return the filter of `--where NAME=VALUE` options, None when there is none.

    Values are YAML: a text that looks like a number is written in quotes, --where 'size="42"'. Raises ConfigError.
    """
    where: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ConfigError(f"--where {text!r} is not of the form NAME=VALUE, for example --where category=Shoes")
        if name in where:
            raise ConfigError(f"--where names {name!r} twice; write --where '{name}=[a, b]' for any of several values")
        where[name] = parse_value(value, f"--where {text!r}")
    return where or None
