"""Stretches of shuffled parts, dealt out to ranks so that every rank holds the same number of photos."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch [start, stop) of the shuffled draws of part number `part`."""

    part: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def split(self, head: int) -> tuple[Piece, Piece]:
        """Return the first `head` draws and the rest."""
        cut = self.start + min(head, len(self))
        return Piece(self.part, self.start, cut), Piece(self.part, cut, self.stop)


def cut(counts: Sequence[int], longest: int | None = None) -> list[Piece]:
    """Return the draws of all parts, part by part, in pieces of at most `longest` (None: each part whole).

    counts: draws of each part; a part without any gives no piece.
    """
    return [
        Piece(part, start, min(start + (longest or count), count))
        for part, count in enumerate(counts)
        for start in range(0, count, longest or count or 1)
    ]


def deal(pieces: Sequence[Piece], world_size: int) -> list[list[Piece]]:
    """Deal pieces to ranks in turn, then level: every rank holds an equal share of all draws, to within one."""
    total = sum(map(len, pieces))
    shares = [total // world_size + (rank < total % world_size) for rank in range(world_size)]
    held: list[list[Piece]] = [[] for _ in range(world_size)]
    spare: list[Piece] = []
    for rank, share in enumerate(shares):
        room = share
        for piece in pieces[rank::world_size]:
            head, rest = piece.split(room)
            held[rank] += [head] if len(head) else []
            spare += [rest] if len(rest) else []
            room -= len(head)
    spare.reverse()
    for rank, share in enumerate(shares):
        missing = share - sum(map(len, held[rank]))
        while missing > 0:
            head, rest = spare.pop().split(missing)
            held[rank].append(head)
            spare += [rest] if len(rest) else []
            missing -= len(head)
    return held
