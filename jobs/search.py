"""Ask a release which items are nearest to a photo."""

from __future__ import annotations

from jobs.asking import answer, open_asked
from jobs.command import Arguments, Outcome
from jobs.options import QUESTION, option, takes
from pipeline.errors import InputError
from pipeline.settings.conditions import parse_where
from pipeline.storage.local import expanded

add_arguments = takes(
    option("photo", metavar="PHOTO", help="an image file on this machine"),
    option(
        "--category",
        metavar="NAME",
        help="what the photo shows, as in the catalogue's column; only a model that is told categories looks at it",
    ),
    QUESTION,
)


def run(arguments: Arguments) -> Outcome:
    """Encode a photo with the release's own encoder and show the items nearest to it."""
    options = arguments.options
    where = parse_where(options.where)
    try:
        data = expanded(options.photo).read_bytes()
    except OSError as error:
        raise InputError(f"the photo {options.photo!r} cannot be read: {error}") from error
    release = open_asked(arguments)
    return answer(
        release, options.photo, release.similar_photo(data, k=options.k, where=where, category=options.category)
    )
