"""The codebook atlas: how much each code is used, what photos hold it, and what the decoder draws of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from math import isqrt

import numpy as np
import torch
from numpy.typing import NDArray

from ...errors import NotReconstructing
from ...models.base import Latents, Model
from ...models.codebooks import codebook_sizes
from ...report.night import CodeCard, CodeLevel, Pixels
from .sides import PLACES
from .subject import Subject
from .windows import drawn_rows, latents_column

_CODES = 48  # shown of a codebook, the most used ones
_MOST_LEVELS = 4  # of a model of parts: each is a vocabulary of its own
_PICTURED = 512  # photos whose pixels are looked at for cells
_PIECES = 9  # of photos, a code, three by three
_PIECE = 24  # pixels a side of one
_GROUP = 3  # codes of a category that have a heading of their own
_LEAST = 8  # photos with a code below which nothing is said of its categories
_DEVIATIONS = 3.0
_LEANS = 1.5  # how many times as often in a category as in all, before a code is said to lean to it

Codes = NDArray[np.int64]


def code_levels(subject: Subject) -> list[CodeLevel]:
    """Return every codebook of a model of codes, as a seeded sample of photos uses it; none of another model."""
    bundle = subject.bundle
    if bundle is None or not bundle.model.num_latent_codes:
        return []
    side, model = subject.now, bundle.model
    rows = drawn_rows(subject, stream=7)
    places = side.lookup(rows, (*PLACES, "latents_part", "latents_row"))
    codes: Codes = latents_column(subject.store, places, "codes").astype(np.int64)
    pictured = np.unique(np.linspace(0, len(rows) - 1, min(_PICTURED, len(rows))).astype(np.int64))
    pixels = subject.album.read(places.take(pictured))
    photos = {int(place): picture for place, picture in zip(pictured, pixels, strict=True) if picture is not None}
    labels = np.array([side.attribute(int(number), subject.category) for number in side.items.groups.numbers[rows]])
    cells = model.code_levels(torch.arange(model.num_latent_codes)[None])
    found = []
    for name, where in list(cells.items())[:_MOST_LEVELS]:
        columns = where[0].numpy()
        size = _size(model, name, int(codes[:, columns].max()) + 1)
        found.append(_level(name, size, codes, columns, _Seen(model, photos, labels)))
    return found


def _size(model: Model, level: str, least: int) -> int:
    """Return how many codes a level's codebook has: of a quantizer by its name, else the smallest that can be."""
    own = getattr(model, f"{level}_quantizer" if level else "quantizer", None)
    return int(getattr(own, "num_codes", 0)) or min(size for size in codebook_sizes(model) if size >= least)


class _Seen:
    """What of the photos is looked at: pixels by their place, categories of all ("" where there is none)."""

    def __init__(self, model: Model, photos: Mapping[int, Pixels], labels: NDArray[np.str_]) -> None:
        self.model, self.photos, self.labels = model, photos, labels


def _level(name: str, size: int, codes: Codes, columns: NDArray[np.int64], seen: _Seen) -> CodeLevel:
    own = codes[:, columns]
    counts = np.bincount(own.ravel(), minlength=size)
    shares = counts / counts.sum()
    order = np.argsort(-counts, kind="stable")
    used = int((counts > 0).sum())
    positive = shares[shares > 0]
    chosen = order[: min(used, _CODES)]
    with_code = [(own == code).any(axis=1) for code in chosen]
    leans = [_leaning(held, seen.labels) for held in with_code]
    drawn = _decoded(seen.model, codes, columns, chosen)
    groups: dict[str, list[CodeCard]] = defaultdict(list)
    for place, code in enumerate(chosen.tolist()):
        category, times = leans[place]
        card = CodeCard(
            code=code,
            share=float(shares[code]),
            photos=float(with_code[place].mean()),
            leans=category,
            times=times,
            decoded=None if drawn is None else drawn[place],
            cells=_pieces(code, own, seen.photos),
        )
        groups[category or ""].append(card)
    return CodeLevel(
        name=name or "codebook",
        size=size,
        used=used,
        perplexity=float(2 ** -(positive * np.log2(positive)).sum()),
        photos=len(codes),
        shares=sorted((float(share) for share in positive), reverse=True),
        groups=_titled(groups),
    )


def _titled(groups: Mapping[str, list[CodeCard]]) -> list[tuple[str, list[CodeCard]]]:
    """Return codes under headings: those of no category, of each category with some, and all others together."""
    of_none = groups.get("", [])
    large = sorted(((-len(codes), name) for name, codes in groups.items() if name and len(codes) >= _GROUP))
    few = [code for name, codes in groups.items() if name and len(codes) < _GROUP for code in codes]
    found = [("In photos of all categories" if len(groups) > 1 else "The most used first", of_none)]
    found += [(f"More often in {name}", groups[name]) for _, name in large]
    found.append(("More often in one category", sorted(few, key=lambda code: -code.share)))
    return [(title, codes) for title, codes in found if codes]


def _leaning(held: NDArray[np.bool_], labels: NDArray[np.str_]) -> tuple[str | None, float | None]:
    """Return the category in which a code is most frequent beside its frequency in all, and how many times that is."""
    known = labels != ""
    if held[known].sum() < _LEAST or len(np.unique(labels[known])) < 2:
        return None, None
    overall = held[known].mean()
    best: tuple[float, str] = (0.0, "")
    for label in np.unique(labels[known]).tolist():
        inside = labels == label
        expected = overall * inside.sum()
        # Further above what is expected than chance explains: of twenty categories one is always a little ahead.
        if held[inside].sum() >= expected + _DEVIATIONS * np.sqrt(expected * (1 - overall)):
            best = max(best, (float(held[inside].mean() / overall), label))
    return (best[1], best[0]) if best[0] >= _LEANS else (None, None)


def _decoded(model: Model, codes: Codes, columns: NDArray[np.int64], chosen: Codes) -> list[Pixels] | None:
    """Return the picture of each code in every cell of its level, other levels at each cell's most frequent code."""
    usual = np.array([np.bincount(column).argmax() for column in codes.T])
    grids = np.tile(usual, (len(chosen), 1))
    grids[:, columns] = chosen[:, None]
    empty = torch.zeros((len(chosen), model.latent_dim))
    try:
        with torch.inference_mode():
            made = model.decode(Latents(mean=empty, codes=torch.from_numpy(grids)))
    except NotReconstructing:
        return None
    pictures = (made.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    step = max(1, pictures.shape[1] // 64)
    return [np.ascontiguousarray(picture[::step, ::step]) for picture in pictures]


def _pieces(code: int, own: Codes, photos: Mapping[int, Pixels]) -> Pixels | None:
    """Return nine pieces of photos around a cell with the code, each of another photo, three by three.

    Photos with most such cells come first. Twice a cell's width is shown: what the encoder sees for a cell is wider
    than it. None where no photo with pixels has the code, or its cells are no square grid.
    """
    grid = isqrt(own.shape[1])
    if grid * grid != own.shape[1]:
        return None
    counts = {place: int((own[place] == code).sum()) for place in photos}
    holding = sorted((place for place, count in counts.items() if count), key=lambda place: (-counts[place], place))
    if not holding:
        return None
    board = np.full((3 * _PIECE + 4, 3 * _PIECE + 4, 3), 255, np.uint8)
    for number, place in enumerate(holding[:_PIECES]):
        cells = np.flatnonzero(own[place] == code)
        piece = _piece(photos[place], int(cells[len(cells) // 2]), grid)
        top, left = (index * (_PIECE + 2) for index in divmod(number, 3))
        board[top : top + _PIECE, left : left + _PIECE] = piece
    return board


def _piece(picture: Pixels, cell: int, grid: int) -> Pixels:
    """Return the surroundings of a cell, uint8 [_PIECE, _PIECE, 3]."""
    size = picture.shape[0]
    cell_size = size / grid
    wide = min(size, max(1, round(2 * cell_size)))
    starts = [min(size - wide, max(0, round((index + 0.5) * cell_size - wide / 2))) for index in divmod(cell, grid)]
    along = [start + (np.arange(_PIECE) * wide) // _PIECE for start in starts]
    return picture[np.ix_(*along)]
