"""What `doctor` finds: one line each, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from .errors import CodebooksError, ConfigError, InputError

Level = Literal["ok", "warn", "fail"]

_WORST_FIRST = (ConfigError.exit_code, InputError.exit_code, 1, 4, 5, 6)


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the answer. mend: what to do about it; exit_code: of a failure."""

    level: Level
    name: str
    text: str
    mend: str = ""
    exit_code: int = 0


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All findings together."""

    findings: tuple[Finding, ...]

    @property
    def failures(self) -> list[Finding]:
        """Return what failed."""
        return [finding for finding in self.findings if finding.level == "fail"]

    @property
    def exit_code(self) -> int:
        """Return the code of the worst failure, 0 where there is none: what no second try mends comes first."""
        return next((code for code in _WORST_FIRST if any(one.exit_code == code for one in self.failures)), 0)

    def details(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        names = ("level", "name", "text", "mend")
        checks = [{name: getattr(finding, name) for name in names} for finding in self.findings]
        return {"checks": checks} | ({"exit_code": self.exit_code} if self.exit_code else {})

    def text(self) -> str:
        """Return it for people, a line a finding, and one below it that says how to mend it."""
        lines = []
        for finding in self.findings:
            lines.append(f"{finding.level:<5}{finding.name}: {finding.text}")
            lines += [f"       -> {finding.mend}"] if finding.mend else []
        warnings = sum(finding.level == "warn" for finding in self.findings)
        return "\n".join([*lines, f"{len(self.findings)} checks: {len(self.failures)} failed, {warnings} warnings"])


def examined(name: str, findings: Iterator[Finding]) -> Iterator[Finding]:
    """Yield the findings of a check; an error of ours is its last one, and stops no other check."""
    try:
        yield from findings
    except CodebooksError as error:
        yield Finding("fail", name, str(error), "", error.exit_code)
