"""The options of benchmarks, and what several of them say of them."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Given = argparse.Namespace  # what was given, and what stands for the rest
NEEDED = object()  # of a file or folder that has to be named


class Options(argparse.ArgumentParser):
    """The options of one benchmark, under its module's own text.

    given: by name (`slow_s` is --slow-s) a default, which tells the type too; a type, where nothing is the default;
    False, of a switch; NEEDED. With a help text: a pair.
    """

    def __init__(self, text: str | None, /, **given: Any) -> None:
        super().__init__(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
        for name, value in given.items():
            default, told = value if isinstance(value, tuple) else (value, None)
            self._add(name, default, told)

    def hidden(self, **given: Any) -> Options:
        """Add options by which a benchmark calls itself."""
        for name, default in given.items():
            self._add(name, default, argparse.SUPPRESS)
        return self

    def _add(self, name: str, default: Any, told: str | None) -> None:
        flag = f"--{name.replace('_', '-')}"
        if default is False:
            self.add_argument(flag, action="store_true", help=told)
        elif default is NEEDED:
            self.add_argument(flag, type=Path, required=True, help=told)
        elif isinstance(default, type):
            self.add_argument(flag, type=default, help=told)
        else:
            self.add_argument(flag, type=type(default), default=default, help=told)


def absent(data: Path) -> bool:
    """Return whether the catalogues are not there, and say so: then nothing is measured, which is no failure."""
    if not data.exists():
        print(f"no catalogues at {data}: nothing measured; name their folder with --data")
    return not data.exists()


def names_of(given: str | None, there: Iterable[str], what: str, *, apart: str = ",") -> list[str]:
    """Return the names that were given, all that there are by default; what: of what they are names.

    Raises SystemExit for a name that is not there.
    """
    names = list(there)
    found = names if given is None else given.split(apart)
    if unknown := set(found) - set(names):
        raise SystemExit(f"no {what} {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    return found
