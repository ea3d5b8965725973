"""Write a release's tables to a file in a form that another tool reads."""

from __future__ import annotations

import argparse
from pathlib import Path

from jobs.asking import open_asked
from jobs.command import Arguments, Outcome
from pipeline.tables.exports import FORMS, export


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `export`."""
    parser.add_argument("file", help="the file to write (`lance`: the folder), which must not be there yet")
    parser.add_argument("--to", metavar="FORM", required=True, choices=FORMS, help=", ".join(FORMS))
    parser.add_argument("--channel", metavar="NAME", help="the channel; by default that of the config, or `stable`")
    parser.add_argument("--release", metavar="RELEASE_ID", help="a certain release, instead of the current one")


def run(arguments: Arguments) -> Outcome:
    """Write one export of a release."""
    options = arguments.options
    release = open_asked(arguments)
    size = export(release, options.to, Path(options.file))
    text = f"{options.file}: {options.to} of {release.release_id}, {size:,} bytes"
    details = {"file": options.file, "form": options.to, "bytes": size, "model_id": release.model_id}
    return Outcome(release=release.release_id, reason="exported", details=details, text=text)
