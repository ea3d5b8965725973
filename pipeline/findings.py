"""What `doctor` finds: one line each, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the answer. mend: what to do about it; exit_code: of a failure."""

    level: Level
    name: str
    text: str
    mend: str = ""
    exit_code: int = 0
