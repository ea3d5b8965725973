"""Neighbours of some items beside those that another release gives them: random, new, worst and most moved ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow.compute as pc

from ...report.night import Card, Compared, Neighbourhood
from .changes import changed
from .sides import Side
from .subject import Subject, sampled

SHOWN = 8
_QUERIES = 4
_SAMPLE = 200  # items among which the worst and the most moved are looked for


def neighbourhoods(subject: Subject) -> list[Neighbourhood]:
    """Return the neighbours of four items of each sort, beside the other release's where there is one."""
    shown = subject.now.shown()
    drawn = [int(shown[place]) for place in sampled(subject.draw(3), len(shown), _SAMPLE)]
    near = dict(zip(drawn, subject.now.near(drawn, SHOWN), strict=True))
    spread = [drawn[place] for place in sampled(subject.draw(4), len(drawn), _QUERIES)]
    alone = sorted((number for number in drawn if near[number]), key=lambda number: near[number][0][1])[:_QUERIES]
    groups = [
        ("Random items", "Drawn by seed.", spread),
        ("New items", "Drawn by seed among those that the other release has not.", _new(subject)),
        ("Worst items", f"Of {len(drawn):,} drawn items those whose nearest neighbour is furthest away.", alone),
    ]
    if subject.before is not None:
        moved, common = _most_moved(subject, subject.before, near)
        about = f"Of {common:,} drawn items that both releases have, those that kept the fewest neighbours."
        groups.append(("Most moved items", about, moved))
    found = []
    for title, about, numbers in groups:
        missing = [number for number in numbers if number not in near]
        near |= dict(zip(missing, subject.now.near(missing, SHOWN), strict=True))
        if numbers:
            found.append(Neighbourhood(title, about, _compared(subject, numbers, [near[number] for number in numbers])))
    return found


def _new(subject: Subject) -> list[int]:
    """Return the numbers of some items whose photos were all added; none without another release."""
    before = subject.before
    if before is None:
        return []
    ids = pc.unique(changed(subject, "added")["item_id"].combine_chunks()).sort()
    numbers = []
    for place in sampled(subject.draw(5), len(ids), 4 * _QUERIES):
        item_id = ids[place].as_py()
        number = subject.now.number(item_id)
        if number is not None and before.items.find(item_id) is None:
            numbers.append(number)
    return numbers[:_QUERIES]


def _most_moved(subject: Subject, before: Side, near: dict[int, list[tuple[int, float]]]) -> tuple[list[int], int]:
    """Return those of the drawn items that kept the fewest neighbours, and how many both releases have."""
    both = [(number, before.number(subject.now.items.item_id(number))) for number in near]
    pairs = [(number, old) for number, old in both if old is not None]
    kept = []
    for (number, _), old in zip(pairs, before.near([old for _, old in pairs], SHOWN), strict=True):
        names = {before.items.item_id(other) for other, _ in old}
        kept.append(sum(subject.now.items.item_id(other) in names for other, _ in near[number]))
    order = np.argsort(kept, kind="stable")[:_QUERIES]
    return [pairs[place][0] for place in order.tolist() if kept[place] < SHOWN], len(pairs)


def _compared(subject: Subject, numbers: Sequence[int], near: Sequence[Sequence[tuple[int, float]]]) -> list[Compared]:
    now, before, category = subject.now, subject.before, subject.category
    own = subject.album.cards(now, numbers, [now.attribute(number, category) for number in numbers])
    old_numbers = [None if before is None else before.number(card.item_id) for card in own]
    there = [number for number in old_numbers if number is not None]
    old_near = dict(zip(there, [] if before is None else before.near(there, SHOWN), strict=True))
    rows = []
    for query, found, old in zip(own, near, old_numbers, strict=True):
        new = _cards(subject, now, found, query)
        if before is None or old is None:
            rows.append(Compared(query, new, None, "" if before is None else "not in the other release"))
            continue
        was = _cards(subject, before, old_near[old], query)
        ids, old_ids = {card.item_id for card in new}, {card.item_id for card in was}
        alike = [card.item_id for card in new] == [card.item_id for card in was]
        words = "the same in both releases" if alike else f"{len(ids & old_ids)} of {len(was)} neighbours kept"
        rows.append(Compared(query, _marked(new, old_ids, "new"), _marked(was, ids, "gone"), words))
    return rows


def _cards(subject: Subject, side: Side, near: Sequence[tuple[int, float]], query: Card) -> list[Card]:
    """Return neighbours as cards: their category and score, and whether the category is the query's own."""
    numbers = [number for number, _ in near]
    labels = [side.attribute(number, subject.category) for number in numbers]
    words = [
        f"{label}, {score:.3f}" if label else f"{score:.3f}" for label, (_, score) in zip(labels, near, strict=True)
    ]
    cards = subject.album.cards(side, numbers, words)
    known = [label == query.words if label and query.words else None for label in labels]
    return [Card(card.item_id, card.words, card.pixels, same) for card, same in zip(cards, known, strict=True)]


def _marked(cards: Sequence[Card], others: set[str], mark: str) -> list[Card]:
    return [
        Card(card.item_id, card.words, card.pixels, card.same, "" if card.item_id in others else mark)  # type: ignore[arg-type]
        for card in cards
    ]
