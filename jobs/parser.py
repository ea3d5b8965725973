"""One command's options: those that all commands have, and its own."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from types import ModuleType
from typing import NoReturn

from jobs.command import Arguments
from pipeline.errors import ConfigError
from pipeline.storage.secrets import masked, masked_options

_COMMON = ("config", "run", "limit", "json", "log", "overrides")


class _Parser(argparse.ArgumentParser):
    """Raises instead of exiting, so that --json gets its object on a usage error too."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{masked_options(message)}; see `{self.prog} --help`")


def parse_arguments(words: Sequence[str], summary: str, common: Sequence[str], module: ModuleType) -> Arguments | None:
    """Return the arguments of `COMMAND ...`, or None after it has answered `--help`.

    common: which of the options that commands share it takes. module: the command's; its `add_arguments` may add
    options of its own. Raises ConfigError on a usage error.
    """
    parser = _Parser(
        prog=f"codebooks {words[0]}",
        description=summary[0].upper() + summary[1:] + ".",
        epilog="Exit codes: 0 done, 2 usage or config, 3 input unreadable, 4 a gate refused, 5 another run won, "
        "6 temporary, 1 unexpected.",
        allow_abbrev=False,
    )
    if hasattr(module, "add_arguments"):
        module.add_arguments(parser)
    parser.set_defaults(config=None, run=None, limit=None)
    _add_common(parser, common)
    if "-h" in words or "--help" in words:
        parser.print_help()
        return None
    # What another command is given, with its options, stays together.
    parse = parser.parse_args if hasattr(module, "TAKES_COMMAND") else parser.parse_intermixed_args
    found = parse(list(words[1:]))
    for name, value in vars(found).items():
        if value == "" or (isinstance(value, list) and "" in value):
            raise ConfigError(f"{name} is given as an empty text; give it a value, or leave it out")
    overrides = tuple(getattr(found, "overrides", ()))
    for text in overrides:
        if "=" not in text:
            raise ConfigError(
                f"{masked(text)!r} is no option and not of the form key.path=value; see `{parser.prog} --help`"
            )
    return Arguments(
        config=found.config,
        run=found.run,
        limit=found.limit,
        overrides=overrides,
        json=found.json,
        options=argparse.Namespace(**{name: value for name, value in vars(found).items() if name not in _COMMON}),
    )


def _add_common(parser: argparse.ArgumentParser, common: Sequence[str]) -> None:
    if "config" in common:
        parser.add_argument("--config", metavar="FILE|PRESET", help="a YAML file, or the name of a preset")
    if "run" in common:
        parser.add_argument("--run", metavar="NAME", help="name of the run; a retry with the same name goes on with it")
    if "limit" in common:
        parser.add_argument("--limit", metavar="N", type=_positive, help="only a seeded sample of N items")
    parser.add_argument("--json", action="store_true", help="print one JSON object on standard output")
    parser.add_argument("--log", choices=["text", "json"], help="standard error as text, or as one JSON object a line")
    if "overrides" in common:
        parser.add_argument(
            "overrides", metavar="key.path=value", nargs="*", help="a setting, for example train.epochs=20"
        )


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return value
