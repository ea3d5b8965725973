"""How likely codes are: a prior against frequencies and against no knowledge at all, and photos that stand out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from ..errors import InputError
from ..models.priors import Prior
from ..schema import outliers_schema

_BATCH = 256
_PSEUDO = 0.5  # of a code never seen (Krichevsky and Trofimov 1981)
_SPREAD = 1.4826  # median absolute deviation of a normal distribution to its standard deviation

Texts: TypeAlias = Sequence[str | None] | pa.ChunkedArray


@dataclass(frozen=True, slots=True)
class CodeLikelihood:
    """Nats per code of held-out photos, fewer is better: by the prior, and by what knows less.

    unigram: how often a code is used; position: how often at this cell; uniform: log K. codes: how many were measured.
    A prior that learned how codes fit together is below `position`; the others need no training.
    """

    prior: float
    position: float
    unigram: float
    uniform: float
    codes: int

    def measures(self) -> dict[str, float]:
        """Return the four numbers by name."""
        return {
            "nats_per_code/prior": self.prior,
            "nats_per_code/position": self.position,
            "nats_per_code/unigram": self.unigram,
            "nats_per_code/uniform": self.uniform,
        }


def code_likelihood(
    prior: Prior,
    train: NDArray[np.integer],
    held_out: NDArray[np.integer],
    *,
    condition: NDArray[np.integer] | None = None,
) -> CodeLikelihood:
    """Measure a prior on held-out codes [n, h, w] beside frequencies of the codes [m, h, w] it was trained on.

    condition: rows [n] of the held-out photos' categories. Raises InputError for codes outside the codebook or none.
    """
    nats = item_nats(prior, held_out, condition=condition)
    return CodeLikelihood(
        prior=float(nats.mean()) / (prior.grid[0] * prior.grid[1]),
        position=position_nats(train, held_out, prior.num_codes),
        unigram=unigram_nats(train, held_out, prior.num_codes),
        uniform=uniform_nats(prior.num_codes),
        codes=held_out.size,
    )


def uniform_nats(num_codes: int) -> float:
    """Return log K, the nats per code of who knows nothing."""
    return math.log(num_codes)


def code_shares(codes: NDArray[np.integer], num_codes: int) -> NDArray[np.float64]:
    """Return each code's probability, float64 [K], by how often it is used in codes [n, ...]; no code has none."""
    counts = np.bincount(_checked(codes, num_codes).reshape(-1), minlength=num_codes) + _PSEUDO
    shares: NDArray[np.float64] = counts / counts.sum()
    return shares


def unigram_nats(train: NDArray[np.integer], held_out: NDArray[np.integer], num_codes: int) -> float:
    """Return the nats per code of held-out codes by the frequencies of training codes, both [n, h, w]."""
    return float(-np.log(code_shares(train, num_codes))[_checked(held_out, num_codes)].mean())


def position_nats(train: NDArray[np.integer], held_out: NDArray[np.integer], num_codes: int) -> float:
    """Return the nats per code of held-out codes by the frequencies at each cell, both [n, h, w].

    A cell's frequencies are drawn towards those of all cells by K / 2 photos' worth.
    """
    before = _checked(train, num_codes).reshape(len(train), -1)
    asked = _checked(held_out, num_codes).reshape(len(held_out), -1)
    if before.shape[1] != asked.shape[1]:
        raise InputError(f"training codes are {list(train.shape)}, held-out ones {list(held_out.shape)}; not one grid")
    weight = _PSEUDO * num_codes
    base = weight * code_shares(train, num_codes)
    total = 0.0
    for cell in range(before.shape[1]):
        shares = (np.bincount(before[:, cell], minlength=num_codes) + base) / (len(before) + weight)
        total -= float(np.log(shares)[asked[:, cell]].sum())
    return total / asked.size


@torch.no_grad()
def item_nats(
    prior: Prior, codes: NDArray[np.integer], *, condition: NDArray[np.integer] | None = None
) -> NDArray[np.float64]:
    """Return -log p of each photo's codes in nats, float64 [n], in evaluation mode on the prior's device.

    codes [n, h, w]; condition: rows [n] of the photos' categories. Raises InputError as `code_likelihood`.
    """
    codes = _checked(codes, prior.num_codes)
    if condition is not None and len(condition) != len(codes):
        raise InputError(f"{len(condition)} conditions for codes of {len(codes)} photos; give one each")
    device = prior.embedding.weight.device
    training = prior.training
    prior.eval()
    out = np.empty(len(codes), np.float64)
    try:
        for first in range(0, len(codes), _BATCH):
            rows = np.s_[first : first + _BATCH]
            told = None if condition is None else torch.from_numpy(condition[rows].astype(np.int64)).to(device)
            given = torch.from_numpy(codes[rows].astype(np.int64)).to(device)
            out[rows] = prior.nats(given, told).double().cpu().numpy()
    finally:
        prior.train(training)
    return out


def outlier_scores(nats: NDArray[np.float64], reference: NDArray[np.float64] | None = None) -> NDArray[np.float32]:
    """Return how far above the usual each photo's nats are, float32 [n], in robust standard deviations.

    (nats - median) / (1.4826 * median absolute deviation) of the reference (default: of the photos themselves), so that
    the outliers themselves do not widen the scale. Raises InputError when half of the reference has equal nats.
    """
    known = nats if reference is None else reference
    median = float(np.median(known)) if len(known) else math.nan
    spread = _SPREAD * float(np.median(np.abs(known - median))) if len(known) else 0.0
    if not spread > 0:
        raise InputError(f"the nats of {len(known)} photos have no spread; outliers need a reference of unlike photos")
    scores: NDArray[np.float32] = ((nats - median) / spread).astype(np.float32)
    return scores


def outlier_table(
    item_ids: Texts,
    uris: Texts,
    nats: NDArray[np.float64],
    scores: NDArray[np.float32] | None,
    *,
    cells: int,
    categories: Texts | None = None,
) -> pa.Table:
    """Return a table (schema.outliers_schema) of photos, the least likely first, then by item_id and uri.

    nats [n] and scores [n] of the photos; scores None: the nats have no spread. cells: codes a photo. categories: None
    where no photo's is known.
    """
    nulls = pa.nulls(len(nats))
    columns = {
        "item_id": item_ids,
        "uri": uris,
        "category": nulls if categories is None else categories,
        "nats": nats,
        "nats_per_code": nats / cells,
        "outlier_score": nulls if scores is None else scores,
    }
    table = pa.table(columns)
    order = [("nats", "descending"), ("item_id", "ascending"), ("uri", "ascending")]
    # The cast says which columns may hold no null, and carries the version.
    return table.sort_by(order).cast(outliers_schema())


def _checked(codes: NDArray[np.integer], num_codes: int) -> NDArray[np.integer]:
    if not codes.size or codes.min() < 0 or codes.max() >= num_codes:
        seen = f"{codes.min()}..{codes.max()}" if codes.size else "none"
        raise InputError(f"codes are {seen}; a codebook of {num_codes} has 0..{num_codes - 1}")
    return codes
