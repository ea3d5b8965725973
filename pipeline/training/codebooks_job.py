"""What is done to train the codebooks of semantic IDs: from a sample of item vectors to what a bundle keeps of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from ..errors import ConfigError
from ..index.latents import Float32
from ..keys import SHORT, digest_of, key_of, portable
from ..models.base import Batch
from ..models.rqvae import RQVAE, RQVAESettings
from ..storage import Store
from ..tables import SemanticIdsConfig
from ..tables.codebook_files import codebooks_bytes, find_codebooks
from ..tables.encoder import Encoder, Layer
from ..tables.quantizer import Codebooks, encode
from ..tables.sid_measures import usage_measures
from .config import TrainConfig
from .here import train_here
from .loop import NO_LINE, Line
from .progress import TrainProgress
from .ranks import Ranks
from .rows_loader import RowsLoader
from .worker import open_loop

_LEAST_SHARE = 0.1  # of a level's codes: a perplexity below it says that the codebook has collapsed
_LEAST = 1.1  # and whatever the size, nearly all items have one code


@dataclass(frozen=True, slots=True)
class CodebooksJob:
    """All that is needed to train codebooks of method `rqvae`; a night's own, kept in its run's folder.

    vectors: the sample, float32 [n, d]. run_dir: `runs/<run>`; attempt: of that run.
    """

    store: Store
    vectors: Float32
    config: SemanticIdsConfig
    run_dir: str
    attempt: int = 1
    threads: int = 1
    labels: tuple[str, ...] = ()

    @property
    def train(self) -> TrainConfig:
        """Return how the loop trains it."""
        asked = self.config.rqvae
        return TrainConfig(
            epochs=asked.epochs,
            batch_size=min(asked.batch_size, len(self.vectors)),
            learning_rate=asked.learning_rate,
            seed=self.config.seed,
            threads=self.threads,
            validation=0.0,
        )

    @property
    def train_key(self) -> str:
        """Return the key of the training: what was asked for, and the sample."""
        return key_of({"semantic_ids": portable(self.config.model_dump(mode="json")), "vectors": self._digest()})

    @property
    def name(self) -> str:
        """Return where the codebooks lie once they are trained."""
        return f"{self.run_dir}/codebooks-{self.train_key[:SHORT]}.safetensors"

    def answer(self) -> str | None:
        """Return `name` where the codebooks are there, else None."""
        return self.name if self.store.exists(self.name) else None

    def run_rank(self, ranks: Ranks, *, line: Line = NO_LINE, first_here: bool = True) -> str | None:
        """Train one rank; rank 0 writes the codebooks and returns their name, the others return None.

        Raises ConfigError for codebooks that have collapsed.
        """
        loop = open_loop(
            self,
            ranks,
            self._loader(ranks),
            build=self._model,
            inputs=self._digest(),
            line=line,
            scalars="tensorboard/semantic_ids",  # beside those of the model that the run may have trained
        )
        trained = loop.run()
        ranks.wait_for_all()
        if not ranks.is_first:
            return None
        model = self._model()  # built anew: what the training made of the modules is no part of it
        model.load_state_dict(trained.state_dict())
        books = frozen_codebooks(model)
        check_use(books, self.vectors)
        self.store.put_if_absent(self.name, codebooks_bytes(books, {"method": self.config.method}))
        return self.name

    def _digest(self) -> str:
        return digest_of(np.ascontiguousarray(self.vectors, "<f4").tobytes())

    def _loader(self, ranks: Ranks) -> RowsLoader:
        def batch(rows: np.ndarray) -> Batch:
            none = torch.empty(len(rows), 3, 0, 0, dtype=torch.uint8)
            return Batch(none, features=torch.from_numpy(self.vectors[rows]))

        return RowsLoader(
            (len(self.vectors), batch),
            (0, batch),
            batch_size=self.train.worker_batch_size(ranks.world_size),
            rank=ranks.rank,
            world_size=ranks.world_size,
            seed=self.train.seed,
        )

    def _model(self, *, fresh: bool = True) -> RQVAE:
        torch.manual_seed(self.train.seed)  # every rank builds the same weights
        asked = self.config.rqvae
        settings = RQVAESettings(self.config.levels, asked.hidden, asked.code_dim, asked.commitment_weight)
        model = RQVAE(settings, self.vectors.shape[1])
        model.measured_by(torch.from_numpy(self.vectors))
        return model


def train_codebooks(job: CodebooksJob, *, progress: Callable[[TrainProgress], None] | None = None) -> Codebooks:
    """Return the codebooks that a job trains, in this process; those that an earlier attempt has trained as they are.

    Raises ConfigError for fewer different vectors than a level has codes, and as `CodebooksJob.run_rank`.
    """
    different, wanted = len(np.unique(job.vectors, axis=0)), max(job.config.levels)
    if different < wanted:
        raise ConfigError(
            f"semantic_ids.levels asks for {wanted:,} codes at level {job.config.levels.index(wanted) + 1}, and the "
            f"items have only {different:,} different vectors to make them of; give smaller levels, or leave "
            "semantic_ids out"
        )
    held = find_codebooks(job.store, job.answer() or train_here(job, progress=progress))
    if held is None:
        raise ConfigError(f"{job.name} was deleted while the run needed it; run it again")
    return held.books


def frozen_codebooks(model: RQVAE) -> Codebooks:
    """Return what encodes without torch as a model does; the decoder is needed for its training alone."""

    def array(values: torch.Tensor) -> Float32:
        found: Float32 = values.detach().cpu().float().numpy().copy()
        return found

    linear = [layer for layer in model.encoder if isinstance(layer, torch.nn.Linear)]
    layers = tuple(Layer(array(layer.weight), array(layer.bias)) for layer in linear)
    levels = tuple(array(level.codebook_rows()) for level in model.levels())
    return Codebooks(levels, Encoder(array(model.shift), array(model.scale), layers))


def check_use(books: Codebooks, vectors: Float32) -> None:
    """Raise ConfigError where the vectors use next to none of a level's codes, before they are kept for good."""
    found = usage_measures(encode(vectors, books), books.sizes)
    for level, size in enumerate(books.sizes, start=1):
        perplexity = found[f"sid_perplexity_{level}"]
        if perplexity < max(_LEAST, _LEAST_SHARE * min(size, len(vectors))):
            raise ConfigError(
                f"the trained codebook of level {level} has collapsed: its perplexity is {perplexity:.1f} of {size:,} "
                f"codes, {found[f'sid_dead_{level}']:.0f} have no item; give more semantic_ids.rqvae.epochs, a lower "
                "commitment_weight or smaller levels, or use method rq_kmeans"
            )
