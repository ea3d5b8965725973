"""Write a commented config from what a catalogue looks like."""

from __future__ import annotations

from jobs.command import Arguments, Outcome
from jobs.options import option, takes
from pipeline.catalogue.proposal import TEXTS, propose
from pipeline.storage.new_files import open_new, unused

_ANOTHER = "name another file with --output"

add_arguments = takes(
    option("source", help="a table (Parquet, CSV, JSON lines), a folder of photos or of tables, a tar shard"),
    option("--output", metavar="FILE", default="codebooks.yaml", help="what to write (default codebooks.yaml)"),
    option("--store", metavar="URL", default="codebooks-store", help="s3://BUCKET/PREFIX or a folder"),
    option("--item-id", metavar="COLUMN", help="the column of keys, where the guess is wrong"),
    option("--image", metavar="COLUMN", help="the column of photos, where the guess is wrong"),
    option("--category", metavar="COLUMN", help="the column of categories, where the guess is wrong"),
)


def run(arguments: Arguments) -> Outcome:
    """Look at the first rows of a catalogue, guess what the columns mean and write a config to start from."""
    options = arguments.options
    output = unused(options.output, _ANOTHER)
    proposal = propose(options.source, item_id=options.item_id, image=options.image, category=options.category)
    text = proposal.text(store=options.store)
    with open_new(str(output), _ANOTHER) as file:
        file.write(text.encode())
    found, examples = proposal.found(), [list(pair) for pair in proposal.tried.examples]
    shown = ", ".join(f"{name} {value!r}" if name in TEXTS else f"{name} {value}" for name, value in found.items())
    next_step = (
        f"Read it, then run: codebooks plan --config {output}\n"
        f"Which model is best here: codebooks choose --config {output}"
    )
    return Outcome(
        reason="written",
        details={"config": str(output), "guess": found, "first_photos": examples},
        text="\n".join([f"wrote {output} ({shown}).", *proposal.tried_lines(), next_step]),
    )
