"""Why a photo cannot be used: every reason there is, and what the next night makes of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Reason:
    """What a reason word means.

    kept: it is about the photo's bytes, so a part may hold it and the next night repeats it unasked while the token is
    the same. Otherwise it may pass: no part ever holds it, and the photo is asked for again by every later try and
    every later night, whatever its token.
    """

    means: str
    kept: bool = False


# What the decoder says of bytes.
DECODE_REASONS = {
    "empty": Reason("the file has no bytes", kept=True),
    "not_an_image": Reason("the content is no picture: text, HTML, SVG, ...", kept=True),
    "unsupported": Reason("a picture, but of a format or pixel type that is not read here", kept=True),
    "too_many_bytes": Reason("the file is longer than images.max_bytes", kept=True),
    "too_many_pixels": Reason("width x height in the header is more than images.max_pixels", kept=True),
    "truncated": Reason("the file ends before its picture does", kept=True),
    "broken": Reason("the content contradicts itself: checksum, header or compressed data", kept=True),
}
# What the catalogue and the places where photos lie say.
ASKED_REASONS = {
    "no_image": Reason("the catalogue names no photo for the item"),
    "bad_uri": Reason("the catalogue's text is no address that photos are read from"),
    "no_version": Reason("the column that catalogue.version names is empty for the photo"),
    "not_allowed": Reason("an address or file that the catalogue may not name, see catalogue.allowed_prefixes"),
    "missing": Reason("nothing is at that address"),
    "forbidden": Reason("access to this photo is refused; refusals of who asks stop the run instead"),
    "unreachable": Reason("no answer, or a temporary one, to the last of all tries"),
    "changed": Reason("the bytes that came are not those whose token the plan saw"),
    "unreadable": Reason("an answer that is no photo's: a status that nobody expects, a limit passed"),
}
# What became of the process that worked on a photo, and of its numbers. Of the stage `encode` they are the model's: for
# another model the photo is asked for again.
WORK_REASONS = {
    "crashed": Reason("twice the process that worked on this photo alone was ended by native code", kept=True),
    "out_of_memory": Reason("twice the process that worked on this photo alone was killed for its memory", kept=True),
    "not_finite": Reason("the model's latents of the photo are not finite numbers", kept=True),
}
REASONS: dict[str, Reason] = {**ASKED_REASONS, **DECODE_REASONS, **WORK_REASONS}
KEPT: frozenset[str] = frozenset(word for word, reason in REASONS.items() if reason.kept)
