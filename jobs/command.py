"""What a command is given; what it answers is `pipeline.ends.Outcome`."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from pipeline.ends import Outcome

__all__ = ["Arguments", "Outcome"]


@dataclass(frozen=True, slots=True)
class Arguments:
    """A parsed command line.

    config: a YAML file or the name of a preset. overrides: the `key.path=value` arguments, in order; later ones win.
    options: what the command's own `add_arguments` added.
    """

    config: str | None = None
    run: str | None = None
    limit: int | None = None
    overrides: tuple[str, ...] = ()
    json: bool = False
    options: argparse.Namespace = field(default_factory=argparse.Namespace)

    def with_overrides(self, *overrides: str) -> Arguments:
        """Return these arguments with more `key.path=value`, which yield to those that the user gave."""
        return replace(self, overrides=(*overrides, *self.overrides))

    def settings_apart(self, words: Sequence[str]) -> tuple[Arguments, list[str]]:
        """Return these arguments with the settings that stand among a command's own words, and the other words."""
        settings = [word for word in words if re.match(r"[a-z_.]+=", word)]
        return self.with_overrides(*settings), [word for word in words if word not in settings]

    def with_run(self, name: str) -> Arguments:
        """Return these arguments with a run's name."""
        return replace(self, run=name)

    def with_preset(self, name: str) -> Arguments:
        """Return these arguments with a preset for a user who named no config."""
        return self if self.config is not None else replace(self, config=name)
