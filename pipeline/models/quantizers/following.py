"""What codebooks that follow the data share: a start among it, average counts, restarts of dead codes.

`forward` chooses codes from the codebook as it is and notes what it saw; `update`, once after every optimiser step and
on every rank, adds those notes up over the ranks. So micro-batches of one step count together. The notes are no
buffers: DDP would overwrite them with rank 0's. Buffers are equal on all ranks, so DDP's broadcast changes nothing.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal, TypedDict

import torch
from torch import Tensor, nn

from ...losses.collectives import from_first, pick_rows, rank_and_world, rows_per_rank, sum_over_ranks
from ..compiling import uncompiled
from .base import CodebookQuantizer, GradientPath
from .rank_draws import replacements, sample, sample_centres

Start = Literal["kmeans", "data", "normal"]


@dataclass(slots=True)
class _Seen:
    """What the forward passes of one step saw on this rank: statistics [K, s], the last rows [N, d]."""

    statistics: Tensor
    rows: Tensor


class FollowingOptions(TypedDict, total=False):
    """The keywords of FollowingQuantizer, which say what they mean."""

    decay: float
    restart_threshold: float
    init: Start
    commitment_weight: float
    normalise: bool
    gradient: GradientPath


class FollowingQuantizer(CodebookQuantizer):
    """A codebook that begins among the vectors of the first batch and restarts codes that nothing chooses.

    init: `kmeans` begins at the centres of the first batch of all ranks, `data` at vectors of it, `normal` with normal
    numbers. restart_threshold: a code whose average count falls below this share of the mean count is dead and starts
    again from a vector of the step, of any rank; 0 never restarts. decay: share of an average that stays at a step.
    """

    codebook: Tensor
    code_count: Tensor
    updates: Tensor
    initialised: Tensor

    def __init__(
        self,
        num_codes: int,
        code_dim: int,
        *,
        decay: float = 0.99,
        restart_threshold: float = 0.1,
        init: Start = "kmeans",
        commitment_weight: float = 0.25,
        normalise: bool = False,
        gradient: GradientPath = "straight_through",
    ) -> None:
        super().__init__(
            num_codes, code_dim, commitment_weight=commitment_weight, normalise=normalise, gradient=gradient
        )
        self.decay = decay
        self.restart_threshold = restart_threshold
        self.init = init
        self.register_buffer("code_count", torch.ones(num_codes))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self.register_buffer("initialised", torch.zeros((), dtype=torch.bool))
        self._known_initialised = False  # spares the device a wait in every step, and so does the next
        self._known_updates: int | None = None
        self._seen: _Seen | None = None
        self.register_load_state_dict_post_hook(_forget_initialised)  # type: ignore[no-untyped-call]

    @abstractmethod
    def statistics(self, rows: Tensor, codes: Tensor) -> Tensor:
        """Return what `move` wants to know of a forward pass, to be added up, [K, s]; the first column: the counts."""

    @abstractmethod
    def move(self, statistics: Tensor) -> None:
        """Take a step's statistics, [K, s], summed over micro-batches and ranks, into the averages."""

    @abstractmethod
    def place_where(self, which: Tensor, rows: Tensor, count: Tensor) -> None:
        """Do what `place` does with a row for every code, [K, d], of which those of `which` are taken."""

    @abstractmethod
    def place(self, which: Tensor, rows: Tensor, count: Tensor) -> None:
        """Let codes, bool [K], begin anew as rows [number, d], scaled, with this average count, []."""

    @torch.no_grad()
    def begin(self, rows: Tensor) -> None:
        """Begin with the first batch, so that every code lies among the data; float32 [N, d]."""
        if not self._known_initialised:
            self._begin_once(rows)

    @uncompiled  # one step of many thousand, and it asks the device and other ranks
    def _begin_once(self, rows: Tensor) -> None:
        if not bool(self.initialised.item()):
            every = torch.ones_like(self.code_count, dtype=torch.bool)
            seed = int(self.updates.item())
            if self.init == "kmeans":
                centres = sample_centres(rows, self.num_codes, seed, spherical=self.normalise)
                self.place(every, centres, self.code_count.new_ones(()))
            elif self.init == "data":
                self.place(every, sample(rows, self.num_codes, seed), self.code_count.new_ones(()))
            self.initialised.fill_(True)
        self._known_initialised = True

    @torch.no_grad()
    def observe(self, rows: Tensor, codes: Tensor) -> None:
        """Note the chosen codes, int64 [N], of rows, float32 [N, d], for `update`."""
        statistics = self.statistics(rows, codes)
        if self._seen is not None:
            statistics += self._seen.statistics
        self._seen = _Seen(statistics, rows)

    @torch.no_grad()
    def update(self) -> None:
        """Move the averages by what the step's forward passes saw on all ranks; every rank must call it.

        Where no rank saw anything all stays. The result has the same bits on every rank and equals that of one rank
        with the concatenated batch, up to the rounding of sums.
        """
        seen, self._seen = self._seen, None
        if seen is None:
            if rank_and_world()[1] == 1:
                return
            seen = self._nothing()
        statistics = sum_over_ranks(seen.statistics)
        # A rank that saw something need not ask its device whether any did.
        if not len(seen.rows) and float(statistics[:, 0].sum().item()) == 0:
            return
        self.updates += 1
        self._known_updates = None if self._known_updates is None else self._known_updates + 1
        self.move(statistics)
        if self.restart_threshold <= 0:
            return
        if self._waits_for_nothing:
            self._restart_dead_on_device(seen.rows)
        else:
            self._restart_dead(seen.rows)

    def _nothing(self) -> _Seen:
        rows = self.codebook.detach()[:0]
        return _Seen(self.statistics(rows, self.updates.new_zeros(0)), rows)

    def _restart_dead(self, rows: Tensor) -> None:
        """Give dead codes a vector of this step: code, count and sum together, or the next average would undo it.

        A count starts at the threshold, so that a code which does not earn its place at once moves on. Starting at the
        mean count left ten times the error on 64 clusters: a second code in one cluster then stays while another
        cluster has none. The draw is seeded by the number of updates, part of the state: a resumed training draws the
        same.
        """
        enough = self.restart_threshold * self.code_count.mean()
        dead, fresh = replacements(self.code_count < enough, rows, int(self.updates.item()))
        if len(fresh):
            self.place(dead, fresh, enough)
            self.measures.note_restarts(len(fresh))

    @property
    def _waits_for_nothing(self) -> bool:
        return self.codebook.is_cuda

    def _restart_dead_on_device(self, rows: Tensor) -> None:
        """Do what `_restart_dead` does, without a wait for the device: every code draws, and only dead ones take it.

        So two dead codes may draw one vector; the next step's draw parts them, as one of the two stays dead. Every rank
        draws the same.
        """
        if self._known_updates is None:
            self._known_updates = int(self.updates.item())
        per_rank = rows_per_rank(rows)
        generator = torch.Generator().manual_seed(self._known_updates)
        shares = torch.rand(self.num_codes, generator=generator, dtype=torch.float64).to(rows.device, non_blocking=True)
        chosen = (shares * per_rank.sum()).long()
        enough = self.restart_threshold * self.code_count.mean()
        dead = from_first((self.code_count < enough).to(torch.uint8)).bool()
        self.place_where(dead, pick_rows(rows, chosen, per_rank), enough)
        self.measures.note_restarts(dead.sum())


def _forget_initialised(quantizer: nn.Module, _: object) -> None:
    """Look at the loaded state again before believing that the codebook was initialised."""
    if isinstance(quantizer, FollowingQuantizer):
        quantizer._known_initialised = False
        quantizer._known_updates = None
