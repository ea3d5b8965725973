"""What one process does to train a prior: from the codes of latents parts to the prior on the store."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..models.priors import Prior, PriorConfig, build_prior
from ..models.priors.stored import find_prior, save_prior
from ..storage import Store
from .codes import Codes, CodesLoader, read_codes
from .config import TrainConfig
from .loop import NO_LINE, Line
from .part_rows import PartRows, inputs_digest
from .ranks import Ranks
from .worker import open_loop


@dataclass(frozen=True, slots=True)
class PriorJob:
    """All that a worker needs to know to train a prior.

    codes: which rows of which latents parts, in any order, kept in that of their names; num_codes: K of their
    codebook; model_id: of the VQ model that made them. run_dir: `runs/<run>`; attempt: of that run, for which it is
    trained. labels: the categories that the condition rows of `codes` from 2 on stand for.
    """

    store: Store
    codes: tuple[PartRows, ...]
    prior: PriorConfig
    num_codes: int
    model_id: str
    train: TrainConfig
    run_dir: str
    train_key: str
    labels: tuple[str, ...] = ()
    attempt: int = 1

    def __post_init__(self) -> None:
        """Sort the parts, as every attempt must meet them in one order."""
        object.__setattr__(self, "codes", tuple(sorted(self.codes, key=lambda part: part.part)))

    def answer(self) -> str | None:
        """Return the prior_id of the prior that answers train_key."""
        return find_prior(self.store, self.train_key)

    def run_rank(
        self,
        ranks: Ranks,
        *,
        line: Line = NO_LINE,
        first_here: bool = True,
    ) -> str | None:
        """Train one rank; rank 0 saves the prior and returns its prior_id, the others return None.

        Every rank holds the codes of all photos. Raises InputError as `codes.read_codes` and `codes.CodesLoader`.
        """
        codes = read_codes(self.store, self.codes)
        loader = CodesLoader(
            codes,
            batch_size=self.train.worker_batch_size(ranks.world_size),
            rank=ranks.rank,
            world_size=ranks.world_size,
            seed=self.train.seed,
        )
        loop = open_loop(
            self,
            ranks,
            loader,
            build=lambda *, fresh: self._prior(codes),
            inputs=inputs_digest(self.codes),
            line=line,
        )
        trained = loop.run()
        ranks.wait_for_all()
        if not ranks.is_first:
            return None
        prior = self._prior(codes)  # built anew: what the training made of the modules is no part of it
        prior.load_state_dict(trained.state_dict())
        measures = loop.validation.measures
        return save_prior(self.store, prior, model_id=self.model_id, measures=measures, train_key=self.train_key)

    def _prior(self, codes: Codes) -> Prior:
        torch.manual_seed(self.train.seed)  # every rank builds the same weights
        return build_prior(self.prior, num_codes=self.num_codes, grid=codes.grid, labels=self.labels)
