"""`codebooks COMMAND ...`, the same as `python -m jobs COMMAND ...`: finds the command, runs it, says how it ended."""

from __future__ import annotations

import contextlib
import importlib
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.metadata import PackageNotFoundError, version

from jobs.parser import parse_arguments
from pipeline.ends import EXIT_CODES, Answer, Outcome, failure_of
from pipeline.errors import ConfigError
from pipeline.monitoring import json_lines
from pipeline.process import settle
from pipeline.runs import check_run_name, default_run_name
from pipeline.stopping import stopping_on_signals
from pipeline.storage.secrets import masked_for_people


@dataclass(frozen=True, slots=True)
class Command:
    """One line of the table.

    module: imported when the command is asked for. options: which of the common options mean something to it.
    makes_run: it has a name in `runs/`, a time stamp where none is given.
    """

    group: str
    module: str
    help: str
    options: tuple[str, ...]
    makes_run: bool = False


NONE: tuple[str, ...] = ()
CONFIG = ("config", "overrides")
RUN = ("config", "overrides", "run", "limit")

# By group: name, options in common with others, help.
_TABLE: dict[str, tuple[tuple[str, tuple[str, ...], str], ...]] = {
    "Start here": (
        ("demo", RUN, "the whole way on a generated catalogue, on this machine"),
        ("init", NONE, "write a commented config from a table's columns or a folder"),
        ("doctor", CONFIG, "check this machine, the store and the config; says how to mend"),
        ("pretrained", ("overrides",), "networks that others trained: list, convert and check them"),
        ("choose", RUN, "candidate models by folds: quality, speed, licence; writes the best one's config"),
    ),
    "Every night": (
        ("plan", RUN, "show what a refresh would do and cost; writes nothing"),
        ("refresh", RUN, "plan, train if needed, encode, index, check, publish"),
        ("submit", NONE, "run any of these as a Ray job on a cluster"),
    ),
    "One stage at a time": (
        ("train", RUN, "train the model, unless the store has it already"),
        ("encode", RUN, "encode the photos into latents"),
        ("index", RUN, "build the index and write a release, on no channel"),
        ("evaluate", RUN, "measure that release and check the gates"),
    ),
    "Releases": (
        ("releases", CONFIG, "list what a channel has published, the current one marked"),
        ("history", CONFIG, "counts, measures and verdicts over a channel's releases: table, page, file"),
        ("promote", CONFIG, "take a checked release from one channel to another"),
        ("rollback", CONFIG, "make an earlier release current again"),
        ("diff", CONFIG, "items, attributes, measures, neighbours: what changed"),
        ("verify", CONFIG, "read a release's files and name every damaged one"),
        ("sign", CONFIG, "sign a release that is there, once its bytes are checked"),
        ("pin", CONFIG, "keep a release from expiring, for good or until a date"),
        ("unpin", CONFIG, "let a pinned release expire again"),
        ("delist", CONFIG, "hide items from every reader at once, or show them again"),
        ("expire", CONFIG, "list what nothing needs; --yes marks, a week later sweeps"),
        ("undelete", CONFIG, "drop what expire has marked, before it is swept"),
        ("report", CONFIG, "a release beside another: verdict, pictures, curves; as page or data"),
    ),
    "Ask a release": (
        ("similar", CONFIG, "the items nearest to an item"),
        ("explain", CONFIG, "why an item has its neighbours: photos, latents, another release"),
        ("search", CONFIG, "the items nearest to a photo in a file"),
        ("serve", CONFIG, "answer over HTTP, with a page to look at"),
        ("recommend", CONFIG, "customers' events to tables: what to offer them, who is like whom"),
        ("compare-metrics", CONFIG, "every metric and mask on its latents: k-NN, P@10, MAP@R"),
        ("export", CONFIG, "vectors, semantic IDs, points: a file for another tool"),
        ("prior", (*CONFIG, "run"), "learn how its VQ codes go together: unlikely photos, new pictures"),
    ),
}
# It may be given a run's name, and leaves nothing behind under it.
_WRITES_NOTHING = "plan"


def _named(group: str, name: str, options: tuple[str, ...], text: str) -> Command:
    # Modules are named, not imported: `releases` must work where neither torch nor ray is installed.
    module = "cluster.submit" if name == "submit" else f"jobs.{name.replace('-', '_')}"
    return Command(group, module, text, options, makes_run="run" in options and name != _WRITES_NOTHING)


COMMANDS = {row[0]: _named(group, *row) for group, rows in _TABLE.items() for row in rows}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code; argv: without the program's name, None for this process's."""
    if argv is None:
        settle()
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        sys.stdout.write(overview())
        return 0 if words else ConfigError.exit_code
    if words[0] == "--version":
        sys.stdout.write(f"visual-codebooks {_version()}\n")
        return 0
    answer = Answer(sys.stdout, as_json="--json" in words, run=_named_run(words))
    with json_lines(words, lambda: answer.run), stopping_on_signals(answer.stopped):
        try:
            outcome = _run(words, answer)
        except BaseException as error:  # noqa: BLE001  the last line of defence
            failure = failure_of(error)
            if failure.unexpected:
                sys.stderr.write(masked_for_people(traceback.format_exc()))
            return answer.failed(failure.text, failure.exit_code, release=failure.release, verdicts=failure.verdicts)
        return 0 if outcome is None else answer.done(outcome)


def overview() -> str:
    """Return the text of `codebooks --help`."""
    lines = [
        "codebooks COMMAND [--config FILE.yaml|PRESET] [--run NAME] [--json] [key.path=value ...]",
        "",
        "Turns the photos of a product catalogue into latents and a FAISS index, and publishes both as releases.",
    ]
    for group in dict.fromkeys(command.group for command in COMMANDS.values()):
        lines += ["", f"{group}:"]
        lines += [f"  {name:<16}{command.help}" for name, command in COMMANDS.items() if command.group == group]
    lines += [
        "",
        "Examples:",
        "  codebooks demo",
        "  codebooks init catalogue.parquet --store s3://shop/visual",
        "  codebooks refresh --config codebooks.yaml --run 2026-11-21",
        "  codebooks similar sku-1 -k 5 store=s3://shop/visual",
        "",
        "Settings come from a preset or YAML file, then CODEBOOKS__SECTION__KEY variables, then key.path=value; later",
        "ones win. `codebooks COMMAND --help` tells more about one command.",
        "",
        "Exit codes:",
        *(f"  {code}  {meaning}" for code, (_, meaning) in EXIT_CODES.items()),
    ]
    return "\n".join(lines) + "\n"


def _run(words: Sequence[str], answer: Answer) -> Outcome | None:
    """Return what the command answers, None after `--help`."""
    command = COMMANDS.get(words[0])
    if command is None:
        raise ConfigError(_unknown_command(words[0]))
    try:
        module = importlib.import_module(command.module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] in ("jobs", "pipeline", "cluster"):
            raise
        raise ConfigError(
            f"`codebooks {words[0]}` needs {error.name!r}, which is not installed; "
            f"run `pip install 'visual-codebooks[{'serve' if words[0] == 'serve' else 'run'},cpu]'` (on a machine with "
            "CUDA gpu in the place of cpu)"
        ) from error
    arguments = parse_arguments(words, command.help, command.options, module)
    if arguments is None:
        return None
    if arguments.run is not None:
        check_run_name(arguments.run)
    elif command.makes_run:
        arguments = arguments.with_run(default_run_name())
    answer.run = arguments.run or answer.run
    # Only the answer goes to standard output, whatever a library prints.
    with contextlib.redirect_stdout(sys.stderr):
        outcome: Outcome = module.run(arguments)
    return outcome


def _named_run(words: Sequence[str]) -> str | None:
    """Return what `--run` says, before anything is parsed: an error on the way there still has to name the run."""
    for number, word in enumerate(words):
        if word.startswith("--run="):
            return word.removeprefix("--run=")
        if word == "--run" and number + 1 < len(words):
            return words[number + 1]
    return None


def _unknown_command(word: str) -> str:
    near = get_close_matches(word, list(COMMANDS), n=1)
    if word.startswith("-"):
        return f"{word!r} stands before the command; write `codebooks COMMAND {word}`"
    hint = f"did you mean {near[0]!r}?" if near else f"commands: {', '.join(COMMANDS)}"
    return f"there is no command {word!r}; {hint} See `codebooks --help`"


def _version() -> str:
    try:
        return version("visual-codebooks")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "(not installed)"


if __name__ == "__main__":
    sys.exit(main())
