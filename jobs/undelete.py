"""Drop what `expire --yes` has marked, before it is swept."""

from __future__ import annotations

from dataclasses import asdict

from jobs.command import Arguments, Outcome
from jobs.place import open_place
from pipeline.release import undelete


def run(arguments: Arguments) -> Outcome:
    """Drop all marks; nothing that was marked has been changed, and readers never noticed."""
    store = open_place(arguments).store
    dropped = undelete(store)
    text = f"{dropped.files:,} files of {dropped.bytes:,} bytes are no longer marked"
    text += "; what nothing needs is marked again by the next expire: pin what is to stay" if dropped.files else ""
    return Outcome(reason="undeleted" if dropped.files else "nothing to do", details=asdict(dropped), text=text)
