"""A drawn month: what the feed changes on each day, what goes wrong on each night, and how each has to end."""

from __future__ import annotations

import copy
import datetime as dt
import io
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from PIL import Image

FIRST = dt.date(2026, 12, 1)


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of night. count: of a month. codes: with which its scheduler's command may end. entry: a new release.

    at: the write of the store at which it happens. tries: the least that the scheduler's command needs.
    """

    name: str
    count: int
    codes: tuple[int, ...] = (0,)
    entry: bool = True
    at: str = ""
    tries: int = 1


KINDS = (
    Kind("churn", 6),
    Kind("nothing new", 2, entry=False),
    Kind("driver killed once it has planned", 1, at="runs/[^/]+/plan", tries=2),
    Kind("driver killed at the first latents", 2, at="latents/", tries=2),
    Kind("driver killed while it writes the release", 1, at="releases/", tries=2),
    Kind("driver killed as it publishes", 1, at="channels/stable/", tries=2),
    Kind("submit killed at the first latents", 2, at="latents/", tries=2),
    Kind("a tenth of all requests answered 503", 2),
    Kind("the store away for twenty seconds", 1, at="latents/"),
    Kind("the answer of publishing lost", 1, at="channels/stable/"),
    Kind("started again beside itself", 1),
    Kind("handed in from a second place", 1),
    Kind("another run beside it", 2, codes=(0, 5)),
    Kind("half of the catalogue gone", 3, codes=(4,), entry=False),
    Kind("started again after its end", 1),
    Kind("scheduler off", 2, entry=False),
    Kind("scheduler lost during the night", 1, at="latents/"),
)
# Of these the night is made up for on the next day, by the run's name.
MADE_UP = ("scheduler off", "scheduler lost during the night")


@dataclass(frozen=True, slots=True)
class Day:
    """One night. date: also the run's name. added, changed, removed: how many photos the feed changes before it."""

    date: str
    kind: Kind
    added: int
    changed: int
    removed: int


def drawn(seed: int, nights: int) -> list[Day]:
    """Return a month: first an ordinary night, then one of each kind, then the others; the last is not made up for."""
    dice = random.Random(seed)
    first, once, more = KINDS[0], list(KINDS[1:]), [kind for kind in KINDS for _ in range(kind.count - 1)]
    if len(once) + len(more) + 1 < nights:
        raise ValueError(f"at most {len(once) + len(more) + 1} nights can be drawn, not {nights}")
    dice.shuffle(once)
    dice.shuffle(more)
    kinds = [first, *once, *more][:nights]
    while kinds[-1].name in MADE_UP:
        kinds.insert(1, kinds.pop())
    days = []
    for number, kind in enumerate(kinds):
        change = (dice.randint(2, 6), dice.randint(0, 4), dice.randint(0, 4))
        change = (0, 0, 0) if not kind.entry and kind.name not in MADE_UP else change
        days.append(Day((FIRST + dt.timedelta(number)).isoformat(), kind, *change))
    return days


@dataclass
class Feed:
    """The catalogue as the shop has it. photos: each item's picture, by the seed of its pixels."""

    dice: random.Random
    photos: dict[str, int] = field(default_factory=dict)
    made: int = 0

    def next_day(self, day: Day) -> dict[str, int]:
        """Change the catalogue and return what has to be uploaded."""
        for item in self.dice.sample(sorted(self.photos), min(day.removed, len(self.photos))):
            del self.photos[item]
        changed = self.dice.sample(sorted(self.photos), min(day.changed, len(self.photos)))
        return self.put([*changed, *(f"item-{self.made + number:04}" for number in range(day.added))])

    def put(self, items: Sequence[str]) -> dict[str, int]:
        """Give items new pictures."""
        fresh = {item: self.made + number for number, item in enumerate(items)}
        self.made += len(items)
        self.photos |= fresh
        return fresh

    def table(self, *, half: bool = False) -> bytes:
        """Return the catalogue's file; half: an export that broke off."""
        items = sorted(self.photos)
        rows = "".join(f"{item},photos/{item}.png\n" for item in (items[: len(items) * 2 // 5] if half else items))
        return f"item_id,image\n{rows}".encode()


def picture(seed: int) -> bytes:
    """Return a picture of a few coloured fields, so that no two look alike."""
    fields = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), np.uint8)
    sink = io.BytesIO()
    Image.fromarray(fields).resize((32, 32), Image.Resampling.BICUBIC).save(sink, "PNG")
    return sink.getvalue()


def problems(nights: Sequence[Mapping[str, Any]], log: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what is not as it has to be, of the nights and of the channel's log.

    A night: name, date, code, tries, wanted (codes), least_tries, entries (runs that were published in it), published
    (wanted runs), missing and strange (items of the release against the feed). An entry: number, release, run, parent.
    """
    found = []
    for night in nights:
        said = f"{night['date']}, {night['name']}"
        if night["code"] not in night["wanted"]:
            found.append(f"{said}: ended with {night['code']}, not one of {night['wanted']}")
        if night["tries"] < night["least_tries"] or (night["code"] in (4, 5) and night["tries"] != 1):
            found.append(f"{said}: {night['tries']} tries; the least is {night['least_tries']}, after 4 and 5 one")
        if sorted(night["entries"]) not in [sorted(wanted) for wanted in night["published"]]:
            found.append(f"{said}: published {night['entries']}, not one of {night['published']}")
        if night["missing"] or night["strange"]:
            found.append(f"{said}: the release lacks {night['missing']} and has {night['strange']}")
    if [entry["number"] for entry in log] != list(range(1, len(log) + 1)):
        found.append(f"the log's numbers are {[entry['number'] for entry in log]}")
    for name in ("run", "release"):
        names = [entry[name] for entry in log]
        found += [f"{name} {each} stands in the log twice" for each in sorted({*names}) if names.count(each) > 1]
    for before, entry in pairwise(log):
        if entry["parent"] != before["release"]:
            found.append(f"{entry['release']} follows {entry['parent']}, and in the log {before['release']}")
    runs = [run for night in nights for run in night["entries"]]
    if runs != [entry["run"] for entry in log]:
        found.append(f"the nights published {runs}, the log has {[entry['run'] for entry in log]}")
    return found


def unseen(nights: Sequence[dict[str, Any]], log: Sequence[dict[str, Any]]) -> list[str]:
    """Return which wrong months `problems` does not see: controls, made of a right one."""
    wrong: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {}

    def month(name: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        wrong[name] = copy.deepcopy(list(nights)), copy.deepcopy(list(log))
        return wrong[name]

    month("an entry is gone")[1].pop(len(log) // 2)
    month("another wrote the entry")[1][-1]["run"] = "nobody"
    month("two entries of one release")[1][-1]["release"] = log[0]["release"]
    month("a release on another parent")[1][-1]["parent"] = log[-1]["release"]
    month("a night ended with 1")[0][0]["code"] = 1
    month("an item is missing")[0][0]["missing"] = ["item-0000"]
    month("a night did not publish")[0][0]["entries"] = []
    for number, night in enumerate(nights):
        if night["least_tries"] > 1:
            month(f"{night['date']}, killed, without a second try")[0][number]["tries"] = 1
        if night["code"] == 4:
            month(f"{night['date']}, refused, and tried again")[0][number]["tries"] = 2
    return [name for name, (of_nights, of_log) in wrong.items() if not problems(of_nights, of_log)]
