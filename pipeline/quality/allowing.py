"""What a person lets pass of what gates refuse: checked, and kept with its run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from difflib import get_close_matches

from ..errors import ConfigError
from ..evaluation.verdicts import Allowed
from ..runs import Run


def checked_allowed(gates: Sequence[str] | None, reason: str | None, known: Sequence[str]) -> Allowed | None:
    """Return what a command line allows, None for nothing.

    known: the names of the gates that there are. Raises ConfigError for another name, for a gate without a reason, and
    for a reason without a gate.
    """
    if not gates and reason is None:
        return None
    if not gates:
        raise ConfigError(f"--reason {reason!r} without --allow says nothing; name the gate with --allow GATE")
    if reason is None or not reason.strip():
        raise ConfigError(f"--allow {gates[0]} wants a reason, which others will read: add --reason TEXT")
    for gate in gates:
        if gate not in known:
            near = get_close_matches(gate, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known)}"
            raise ConfigError(f"--allow {gate!r} names no gate; {hint}")
    return Allowed(tuple(dict.fromkeys(gates)), reason.strip())


def allowed_in_run(run: Run, attempt: int, asked: Allowed | None) -> tuple[Allowed, ...]:
    """Return what this and earlier attempts of a run were told to let pass, the newest last.

    It belongs to the run and lies in its folder, so that a retry need not say it again; a retry may add to it.
    """
    folder = f"{run.folder}allowed/"
    if asked is not None:
        run.freeze(f"allowed/{attempt:06d}.json", json.dumps(asdict(asked)).encode())
    found = (json.loads(run.store.get(entry.name)) for entry in sorted(run.store.list(folder), key=lambda e: e.name))
    return tuple(Allowed(tuple(each["gates"]), each["reason"]) for each in found)
