"""Write a release's tables to a file in a form that another tool reads."""

from __future__ import annotations

from pathlib import Path

from jobs.asking import open_asked
from jobs.command import Arguments, Outcome
from jobs.options import CHANNEL, RELEASE, option, takes
from pipeline.tables.exports import FORMS, export

add_arguments = takes(
    option("file", help="the file to write (`lance`: the folder), which must not be there yet"),
    option("--to", metavar="FORM", required=True, choices=FORMS, help=", ".join(FORMS)),
    CHANNEL,
    RELEASE,
)


def run(arguments: Arguments) -> Outcome:
    """Write one export of a release."""
    options = arguments.options
    release = open_asked(arguments)
    size = export(release, options.to, Path(options.file))
    text = f"{options.file}: {options.to} of {release.release_id}, {size:,} bytes"
    details = {"file": options.file, "form": options.to, "bytes": size, "model_id": release.model_id}
    return Outcome(release=release.release_id, reason="exported", details=details, text=text)
