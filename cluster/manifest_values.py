"""Values of Kubernetes files that a schema passes as any text: quantities, schedules, time zones, names."""

from __future__ import annotations

import re
from decimal import Decimal
from zoneinfo import available_timezones

_SUFFIXES = {
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    "": Decimal(1),
    **{letter: Decimal(1000) ** power for power, letter in enumerate("kMGTPE", start=1)},
    **{f"{letter}i": Decimal(1024) ** power for power, letter in enumerate("KMGTPE", start=1)},
}
_QUANTITY = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+))(?:([numkMGTPE]|[KMGTPE]i)|[eE]([+-]?\d+))?")

_MONTHS = dict(
    zip(["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"], range(1, 13), strict=True)
)
_DAYS = dict(zip(["sun", "mon", "tue", "wed", "thu", "fri", "sat"], range(7), strict=True))
_FIELDS: tuple[tuple[str, int, int, dict[str, int]], ...] = (
    ("minute", 0, 59, {}),
    ("hour", 0, 23, {}),
    ("day of month", 1, 31, {}),
    ("month", 1, 12, _MONTHS),
    ("day of week", 0, 6, _DAYS),
)
_MACROS = ("@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly")


def quantity(value: object) -> Decimal:
    """Return a quantity (`500m`, `2Gi`, `1e3`, 4) in its unit. Raises ValueError with what is wrong."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"{value!r} is no quantity; write for example 500m, 4 or 2Gi")  # noqa: TRY004
    match = _QUANTITY.fullmatch(str(value))
    if match is None:
        raise ValueError(f"{value!r} is no quantity; write for example 500m, 4 or 2Gi")
    number, suffix, exponent = match.groups()
    factor = Decimal(10) ** int(exponent) if exponent else _SUFFIXES[suffix or ""]
    return Decimal(number) * factor


def cron_problem(schedule: object) -> str | None:
    """Return what is wrong with a CronJob's schedule, None for nothing.

    Five fields in the order minute, hour, day of month, month, day of week (0 to 6, 0 is Sunday), each `*`, a value, a
    range `a-b`, a step `*/n` or `a-b/n`, or several of them with commas; or one of the macros such as `@daily`.
    """
    text = str(schedule)
    if text.startswith(("TZ=", "CRON_TZ=")):
        return f"{text!r} names a time zone, which Kubernetes refuses there; use spec.timeZone"
    if text in _MACROS:
        return None
    fields = text.split()
    if len(fields) != len(_FIELDS):
        return f"{text!r} has {len(fields)} fields, it needs 5 (minute hour day month weekday), or one of {_MACROS}"
    for field, (name, low, high, words) in zip(fields, _FIELDS, strict=True):
        for part in field.split(","):
            problem = _cron_part_problem(part, low, high, words)
            if problem:
                return f"{text!r}: the {name} {problem}"
    return None


def _cron_part_problem(part: str, low: int, high: int, words: dict[str, int]) -> str | None:
    match = re.fullmatch(r"(\*|\?|\w+(?:-\w+)?)(?:/(\d+))?", part)
    if match is None:
        return f"{part!r} is neither *, a value, a range a-b nor a step /n"
    span, step = match.groups()
    if step is not None and int(step) < 1:
        return f"{part!r} has a step of {step}; it is at least 1"
    if span in ("*", "?"):
        return None
    ends = [words.get(end.lower(), int(end) if end.isdecimal() else -1) for end in span.split("-")]
    if any(not low <= end <= high for end in ends):
        return f"{part!r} lies outside of {low} to {high}"
    if len(ends) == 2 and ends[0] > ends[1]:
        return f"{part!r} ends before it begins"
    return None


def time_zone_problem(zone: object) -> str | None:
    """Return what is wrong with a time zone's name, None for nothing; `Local` depends on a machine and is refused."""
    if zone in available_timezones():
        return None
    return f"{zone!r} is no time zone of the tz database; write for example Europe/Berlin or Etc/UTC"


def label_name_problem(name: object, *, most: int = 63, letter_first: bool = False) -> str | None:
    """Return what is wrong with an object's name, None for nothing.

    letter_first: DNS-1035, which the Ray operator asks of its kinds, else DNS-1123; most: characters.
    """
    text = str(name)
    if len(text) > most:
        return f"{text!r} has {len(text)} characters; at most {most} are allowed"
    pattern = r"[a-z]([-a-z0-9]*[a-z0-9])?" if letter_first else r"[a-z0-9]([-.a-z0-9]*[a-z0-9])?"
    if not re.fullmatch(pattern, text):
        first = "a letter" if letter_first else "a letter or digit"
        return f"{text!r} is no name; write small letters, digits and -, beginning with {first}"
    return None
