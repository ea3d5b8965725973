"""A codebook that follows its vectors by moving averages (van den Oord et al. 2017, arXiv 1711.00937, appendix A.1).

`forward` chooses codes from the codebook as it is and notes what it saw; `update`, once after every optimiser step
and on every rank, adds those notes up over the ranks and moves the codebook. So the codes of a step never come from a
codebook that already knows that step, and micro-batches of one step count together. The notes are no buffers: DDP
would overwrite them with rank 0's. The codebook is a buffer and equal on all ranks, so DDP's broadcast changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...losses.collectives import from_first, pick_rows, rank_and_world, rows_per_rank, sum_over_ranks
from ..base import full_precision


@dataclass(frozen=True, slots=True)
class Quantised:
    """values: the chosen rows of the codebook, float32 [..., d], without gradient. codes: their numbers, int64 [...].

    passed: the same values, through which the gradient goes to the vectors unchanged (straight-through).
    """

    values: Tensor
    codes: Tensor
    passed: Tensor


@dataclass(slots=True)
class _Seen:
    """What the forward passes of one step saw on this rank: per code [K] and [K, d], the error's sum, the last rows."""

    counts: Tensor
    sums: Tensor
    error: Tensor
    rows: Tensor


class EMAQuantizer(nn.Module):
    """Chooses the nearest (L2) of `num_codes` rows and moves the rows to the mean of what chose them.

    decay: share of an average that stays at a step. epsilon: Laplace smoothing of the counts. restart_threshold: a code
    whose average count falls below this share of the mean count is dead and starts again from a vector of the step; 0
    never restarts. Computes in float32 also under autocast.
    """

    codebook: Tensor
    code_count: Tensor
    code_sum: Tensor
    updates: Tensor
    initialised: Tensor

    def __init__(
        self,
        num_codes: int,
        code_dim: int,
        *,
        decay: float = 0.99,
        epsilon: float = 1e-5,
        restart_threshold: float = 0.1,
    ) -> None:
        super().__init__()
        self.num_codes = num_codes
        self.code_dim = code_dim
        self.decay = decay
        self.epsilon = epsilon
        self.restart_threshold = restart_threshold
        start = torch.randn(num_codes, code_dim)
        self.register_buffer("codebook", start)
        # Counts start at one and sums at the codes: a count of zero with any sum would fling the codes far away.
        self.register_buffer("code_count", torch.ones(num_codes))
        self.register_buffer("code_sum", start.clone())
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self.register_buffer("initialised", torch.zeros((), dtype=torch.bool))
        self._known_initialised = False  # spares the device a wait in every step
        self._seen: _Seen | None = None
        self._used: Tensor | None = None  # int64 [K] since the last scalars(), over all ranks
        self._error = 0.0
        self._vectors = 0.0
        self._restarted = 0
        self.register_load_state_dict_post_hook(_forget_initialised)  # type: ignore[no-untyped-call]

    def forward(self, vectors: Tensor) -> Quantised:
        """Return the nearest code of every vector, [..., code_dim]; in training mode also take notes for `update`."""
        vectors = vectors.float()
        rows = vectors.detach().reshape(-1, self.code_dim)
        if self.training:
            self._initialise_once(rows)
        codes = self.nearest(rows)
        values = self.lookup(codes)
        if self.training:
            self._note(rows, codes, values)
        values = values.view(vectors.shape)
        return Quantised(values, codes.view(vectors.shape[:-1]), vectors + (values - vectors).detach())

    def nearest(self, rows: Tensor) -> Tensor:
        """Return the number of the nearest code of every row, float32 [N, d] to int64 [N]; ties to the smaller number.

        |r - c|^2 = |r|^2 - 2 r.c + |c|^2 without the term that is the same for every code; measured from the codebook's
        own centre, so that codes far from the origin do not drown their differences in rounding.
        """
        with full_precision(rows.device.type):
            centre = self.codebook.mean(dim=0)
            codebook = self.codebook - centre
            distances = codebook.square().sum(dim=1) - 2.0 * (rows.detach() - centre) @ codebook.T
            return distances.argmin(dim=1)

    def lookup(self, codes: Tensor) -> Tensor:
        """Return the codebook's rows of these numbers, int [...] to float32 [..., code_dim]."""
        return F.embedding(codes, self.codebook)

    @torch.no_grad()
    def update(self) -> None:
        """Move the codebook by what the step's forward passes saw on all ranks; every rank must call it.

        Where no rank saw anything the codebook stays. The result has the same bits on every rank and equals that of one
        rank with the concatenated batch, up to the rounding of sums.
        """
        seen, self._seen = self._seen, None
        if seen is None and rank_and_world()[1] == 1:
            return
        seen = seen or self._nothing()
        size = self.num_codes
        packed = sum_over_ranks(torch.cat([seen.counts, seen.sums.flatten(), seen.error.view(1)]))
        counts, sums, error = packed[:size], packed[size:-1].view(size, -1), packed[-1]
        total, squared = (float(value) for value in torch.stack([counts.sum(), error]).tolist())
        if total == 0:
            return
        self._used = counts.long() if self._used is None else self._used + counts.long()
        self._error += squared
        self._vectors += total
        self.code_count.lerp_(counts, 1.0 - self.decay)
        self.code_sum.lerp_(sums, 1.0 - self.decay)
        self.updates += 1
        mass = self.code_count.sum()
        smoothed = (self.code_count + self.epsilon) / (mass + size * self.epsilon) * mass
        self.codebook.copy_(self.code_sum / smoothed.unsqueeze(1))
        if self.restart_threshold > 0:
            self._restart_dead(seen.rows)

    def scalars(self) -> dict[str, float]:
        """Return measures over all steps and ranks since the last call: perplexity, used codes, error, restarts.

        perplexity: exp of the entropy (nats) of the codes chosen, between 1 and num_codes. quantisation_error: mean
        squared distance of a vector to its code. Empty when no step was taken in between.
        """
        if self._used is None:
            return {}
        shares = self._used.double() / self._used.sum()
        entropy = -torch.special.xlogy(shares, shares).sum()
        measures = {
            "codebook/perplexity": float(entropy.exp().item()),
            "codebook/used_codes": float((self._used > 0).sum().item()),
            "codebook/quantisation_error": self._error / self._vectors,
            "codebook/restarted": float(self._restarted),
        }
        self._used, self._error, self._vectors, self._restarted = None, 0.0, 0.0, 0
        return measures

    @torch.no_grad()
    def _initialise_once(self, rows: Tensor) -> None:
        """Begin with vectors of the first batch, drawn from all ranks, so that every code lies among the data."""
        if self._known_initialised:
            return
        if not bool(self.initialised.item()):
            per_rank = rows_per_rank(rows)
            chosen = from_first(self._draw(self.num_codes, int(per_rank.sum().item()), rows.device))
            self.codebook.copy_(pick_rows(rows, chosen, per_rank))
            self.code_sum.copy_(self.codebook)
            self.code_count.fill_(1.0)
            self.initialised.fill_(True)
        self._known_initialised = True

    @torch.no_grad()
    def _note(self, rows: Tensor, codes: Tensor, values: Tensor) -> None:
        seen = self._seen or self._nothing()
        seen.counts += torch.bincount(codes, minlength=self.num_codes)
        seen.sums.index_add_(0, codes, rows)
        seen.error += (rows - values).square().sum()
        seen.rows = rows
        self._seen = seen

    def _nothing(self) -> _Seen:
        zeros = torch.zeros_like
        return _Seen(zeros(self.code_count), zeros(self.code_sum), self.code_count.new_zeros(()), self.codebook[:0])

    def _restart_dead(self, rows: Tensor) -> None:
        """Give dead codes a vector of this step: code, count and sum together, or the next average would undo it.

        Rank 0 decides which codes are dead and which rows, of all ranks, they become. A count starts at the threshold,
        so that a code which does not earn its place at once moves on. Starting at the mean count left ten times the
        error on 64 clusters: a second code in one cluster then stays while another cluster has none.
        """
        enough = self.restart_threshold * self.code_count.mean()
        per_rank = rows_per_rank(rows)
        dead = self.code_count < enough
        # -1: the code lives. Every rank follows this one decision, so that no rank waits in a collective alone.
        decision = torch.full_like(dead, -1, dtype=torch.int64)
        if bool(dead.any()):
            decision[dead] = self._draw(int(dead.sum().item()), int(per_rank.sum().item()), rows.device)
        decision = from_first(decision)
        dead = decision >= 0
        number = int(dead.sum().item())
        if number == 0:
            return
        fresh = pick_rows(rows, decision[dead], per_rank)
        self.codebook[dead] = fresh
        self.code_count[dead] = enough
        self.code_sum[dead] = fresh * enough
        self._restarted += number

    def _draw(self, number: int, total: int, device: torch.device) -> Tensor:
        """Return positions below `total`, int64 [number], all different where there are enough.

        The generator is seeded by the number of updates, part of the state: a resumed training draws the same, and the
        draw is the same for one rank and for many.
        """
        generator = torch.Generator().manual_seed(int(self.updates.item()))
        if total >= number:
            drawn = torch.randperm(total, generator=generator)[:number]
        else:
            drawn = torch.randint(total, (number,), generator=generator)
        return drawn.to(device)


def _forget_initialised(quantizer: nn.Module, _: object) -> None:
    """Look at the loaded state again before believing that the codebook was initialised."""
    if isinstance(quantizer, EMAQuantizer):
        quantizer._known_initialised = False
