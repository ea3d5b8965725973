"""Options as data: a command lists what it takes, and what several commands take is written once."""

from __future__ import annotations

import argparse
import getpass
from collections.abc import Callable
from typing import Any

Adds = Callable[[argparse.ArgumentParser], None]


def option(*names: str, **how: Any) -> Adds:
    """Return what adds one option or argument to a parser; how: as `add_argument` takes it."""

    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument(*names, **how)

    return add


def takes(*parts: Adds) -> Adds:
    """Return what adds all of them, in this order: a command's `add_arguments`."""

    def add(parser: argparse.ArgumentParser) -> None:
        for part in parts:
            part(parser)

    return add


def owner(what: str) -> Adds:
    """Return the option of who did something, by default who is at work now."""

    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--owner", metavar="NAME", default=getpass.getuser(), help=what)

    return add


CHANNEL = option("--channel", metavar="NAME", help="the channel; by default that of the config, or `stable`")
RELEASE = option("--release", metavar="RELEASE_ID", help="a certain release, instead of the current one")
RELEASE_OF_CHANNEL = option(
    "--release", metavar="RELEASE_ID", help="a certain release, instead of the channel's current one"
)
# Of commands that gates may refuse.
ALLOWING = takes(
    option("--allow", metavar="GATE", action="append", help="let this gate pass once; may be given several times"),
    option("--reason", metavar="TEXT", help="why, for those who read the log and the report"),
)
# Of a question to a release.
QUESTION = takes(
    option("-k", metavar="K", type=int, default=10, help="how many items (default 10)"),
    option(
        "--where",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="only items with this attribute; a [list] means any, {min: a, max: b} a range; may be given several times",
    ),
    CHANNEL,
    RELEASE_OF_CHANNEL,
)
