"""What a network that others trained offers to a model of ours, whatever library it comes from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...errors import ConfigError


@dataclass(frozen=True, slots=True)
class Seen:
    """What a network says of pictures at one output: maps float [B, C, h, h], a vector float [B, D], or both.

    Of a transformer, maps are its patch tokens where they lie and the vector is its class token.
    """

    maps: Tensor | None = None
    vector: Tensor | None = None


class ForeignNetwork(nn.Module, ABC):
    """A network up to one of its outputs, its weights part of its state; input: what `Values` returns."""

    @abstractmethod
    def seen(self, values: Tensor) -> Seen:
        """Return what the network says at its output, of values float [B, 3, H, H]."""

    def blank(self, side: int) -> Seen:
        """Return what it says of a black picture, whose shapes are those of every other."""
        return self.seen(torch.zeros(1, 3, side, side))

    @abstractmethod
    def all_maps(self, values: Tensor) -> list[Tensor]:
        """Return the maps up to the output, finest first, float [B, C, h, h] each. Raises ConfigError without any."""

    @abstractmethod
    def take(self, data: bytes, source: str) -> None:
        """Take the weights from a file's bytes; source: what it is called. Raises InputError for another's file."""


def from_tokens(tokens: Tensor, prefixes: int, output: str) -> Seen:
    """Return tokens [B, prefixes + h * h, C] as maps, and the first as the vector where there are prefixes.

    Raises ConfigError where the patches make no square.
    """
    patches = tokens[:, prefixes:]
    side = round(patches.shape[1] ** 0.5)
    if side * side != patches.shape[1]:
        raise ConfigError(f"model.output {output!r} has {patches.shape[1]} tokens of patches, which fill no square")
    maps = patches.transpose(1, 2).reshape(-1, patches.shape[2], side, side)
    return Seen(maps, tokens[:, 0] if prefixes else None)


def near(word: str, known: list[str]) -> str:
    """Return the known words that an unknown one may have meant, in words; all where they are few."""
    from difflib import get_close_matches

    if len(known) <= 12:
        return f"known: {', '.join(known)}"
    close = get_close_matches(word, known, n=6, cutoff=0.4)
    return f"near to it: {', '.join(close)}" if close else f"among {len(known)} known: {', '.join(known[-6:])}"
