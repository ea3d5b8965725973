"""What a command is given and what it answers; the same for all of them."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any


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


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a command that did not fail answers.

    run, release: their names where there are any. published: did this run move a channel. reason: a few words for a
    scheduler's log. details: more fields of the JSON object. text: for people. exit_code: other than 0 only where the
    answer itself is bad news, as with `doctor`.
    """

    run: str | None = None
    release: str | None = None
    published: bool = False
    reason: str = "done"
    details: Mapping[str, Any] = field(default_factory=dict)
    text: str = ""
    exit_code: int = 0
