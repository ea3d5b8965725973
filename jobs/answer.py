"""How a command ended: text on standard error, with --json one object on standard output, and an exit code."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from jobs.command import Outcome
from pipeline.ends import EXIT_CODES
from pipeline.errors import Unavailable
from pipeline.keys import plain_json
from pipeline.stopping import STOPPING
from pipeline.storage.secrets import masked_for_people


class Answer:
    """Says how a command ended: text on standard error, with --json one object on standard output."""

    def __init__(self, stdout: TextIO, *, as_json: bool, run: str | None) -> None:
        self.run = run
        self._stdout = stdout
        self._as_json = as_json

    def done(self, outcome: Outcome) -> int:
        """Say what a command answers, and return its exit code."""
        if outcome.text:
            sys.stderr.write(outcome.text + "\n")
        self._object(
            {
                **outcome.details,
                "run": outcome.run,
                "release": outcome.release,
                "published": outcome.published,
                "reason": outcome.reason,
            }
        )
        return outcome.exit_code

    def failed(
        self, text: str, code: int, *, release: str | None = None, verdicts: Sequence[Mapping[str, Any]] = ()
    ) -> int:
        """Say why a command failed, and return its exit code."""
        text = masked_for_people(text)
        sys.stderr.write(f"codebooks: {text}\n")
        reason = EXIT_CODES[code][0]
        self._object(
            {
                "run": self.run,
                "release": release,
                "published": False,
                "reason": reason,
                "error": text,
                "exit_code": code,
                **({"verdicts": list(verdicts)} if verdicts else {}),
            }
        )
        return code

    def stopped(self) -> None:
        """Say that the process ends on the spot; nothing is left to say it later."""
        self.failed(STOPPING.text, Unavailable.exit_code)

    def _object(self, values: Mapping[str, Any]) -> None:
        if self._as_json:
            # ASCII, whatever the terminal's encoding and the names in it: the object must come, also after a publish.
            self._stdout.write(json.dumps(plain_json(values), default=str, ensure_ascii=True, allow_nan=False) + "\n")
            self._stdout.flush()
            if lost := getattr(self._stdout, "lost", None):
                sys.stderr.write(f"codebooks: the JSON object could not be written to standard output ({lost})\n")
        self._as_json = False  # exactly one object, whatever happens after it
