"""What one training process does, from a job's description to what is saved; Ray Train runs it on every worker."""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch

from ..errors import CodebooksError, Conflict, Unavailable
from ..images import ImagesConfig
from ..keys import SHORT, key_of
from ..models import MODELS, build_model
from ..models.base import Batch, Model, ModelConfig, as_dict, images_values
from ..models.bundle import find_bundle, load_bundle, resolved_config, save_bundle
from ..models.frozen_loading import load_frozen
from ..models.pretraining import copy_convolutions
from ..runs import Lookout, Run
from ..storage import Files, Store
from .checkpoints import Checkpoints
from .config import TrainConfig
from .fixed import fix_process as fix_process
from .loader import Loader, PixelLoader
from .loop import NO_LINE, Line, Loop
from .part_cache import FeatureReader, PartCache, PartReader, cache_folder
from .part_rows import PartRows, inputs_digest
from .progress import Scalars, TrainProgress
from .ranks import Ranks
from .validation import Validation

FIT_PHOTOS = 20_000  # what is fitted after a training sees, at most
_FIT_BATCH = 256
_GPU_LOAD_THREADS = 8
_BOARD_S = 5.0  # how long a worker waits for an answer of the board
_CARD_CATEGORIES = 5  # of the worst, and as many of the best, on a bundle's card


class Job(Protocol):
    """What is trained: a model on pixels (`TrainJob`), or a prior on codes (`prior_job.PriorJob`).

    run_dir: `runs/<run>`; attempt: of that run, on whose behalf it is trained; train_key: what the result answers;
    labels: the categories that condition rows from 2 on stand for.
    """

    @property
    def store(self) -> Store: ...
    @property
    def train(self) -> TrainConfig: ...
    @property
    def run_dir(self) -> str: ...
    @property
    def attempt(self) -> int: ...
    @property
    def train_key(self) -> str: ...
    @property
    def labels(self) -> tuple[str, ...]: ...

    def run_rank(self, ranks: Ranks, *, line: Line, first_here: bool) -> str | None:
        """Train one rank; rank 0 saves what was trained and returns its id, the others return None."""

    def answer(self) -> str | None:
        """Return the id of what answers train_key on the store, None when nothing does."""


@dataclass(frozen=True, slots=True)
class TrainJob:
    """All that a worker needs to know to train a bundle.

    pixels: in any order; kept in that of their names. images: the images config as JSON values; run_dir:
    `runs/<run>`; labels: the categories that the condition rows of `pixels` from 2 on stand for; attempt: of the
    run, for which it is trained. teacher: the model_id of the model's teacher, whose features `pixels` name. exports:
    False leaves the ONNX encoder out, for a bundle that no query by photo meets. folder: where the relative paths of
    files of weights begin: that of the command, as workers run in others.
    """

    store: Store
    pixels: tuple[PartRows, ...]
    model: ModelConfig
    images: dict[str, Any]
    train: TrainConfig
    run_dir: str
    train_key: str
    labels: tuple[str, ...] = ()
    attempt: int = 1
    teacher: str | None = None
    exports: bool = True
    folder: str = field(default_factory=os.getcwd)

    def __post_init__(self) -> None:
        """Sort the parts, as every attempt must meet them in one order."""
        object.__setattr__(self, "pixels", tuple(sorted(self.pixels, key=lambda part: part.place)))

    @property
    def files(self) -> Files:
        """Return what reads files of weights, from any folder."""
        return Files(self.store.options, folder=self.folder)

    @property
    def transforms(self) -> tuple[ImagesConfig, ...]:
        """Return how photos became the pixels that are read, once the model is resolved."""
        return self.model.transforms(ImagesConfig.model_validate(self.images))

    def run_rank(self, ranks: Ranks, *, line: Line, first_here: bool) -> str | None:
        """Do what `run_rank` does."""
        return run_rank(self, ranks, line=line, first_here=first_here)

    def answer(self) -> str | None:
        """Return the model_id of the bundle that answers train_key."""
        return find_bundle(self.store, self.train_key)


def run_rank(
    job: TrainJob,
    ranks: Ranks,
    *,
    line: Line = NO_LINE,
    first_here: bool = True,
) -> str | None:
    """Train one rank of a job; rank 0 saves the bundle and returns its model_id, the others return None.

    A model that does not train (`Model.trains`) becomes a bundle at once, and needs no pixels where it fits nothing;
    one that is made of other bundles (`ModelConfig.bundles`) keeps what they are made of. first_here: this rank cleans
    up its machine's cache of parts.
    """
    job = replace(job, model=resolved_config(job.store, job.model, job.images, teacher=job.teacher, files=job.files))
    gib = job.train.cache_gib
    cache = PartCache(
        job.store, cache_folder(job.train_key[:SHORT]), limit_bytes=None if gib is None else int(gib * 2**30)
    )
    reader = _reader(job, cache, for_gpu=ranks.device.type == "cuda")
    loop = _loop(job, ranks, reader, line) if MODELS[job.model.kind][1].trains else None
    trained = loop.run() if loop else _model(job, ranks, reader, fresh=True)
    ranks.wait_for_all()
    bundled = _bundled(job, trained, reader, ranks.device) if ranks.is_first else None
    if first_here:
        cache.remove()
    if bundled is None:
        return None
    held_out = sum(int(part.held_out.sum()) for part in job.pixels if part.held_out is not None)
    card = {
        "photos": sum(len(part.rows) for part in job.pixels) - held_out,
        "photos held out": held_out,
        "steps": loop.total_steps if loop else 0,
        "train": job.train.model_dump(mode="json"),
        **bundled.told(),
        **_validation_sections(loop.validation if loop else Validation()),
    }
    own = images_values(job.transforms)
    same = own == as_dict(ImagesConfig.model_validate(job.images))
    images = job.images if same else own
    return save_bundle(
        job.store,
        bundled,
        job.model,
        images,
        train_key=job.train_key,
        card=card,
        labels=job.labels,
        exports=job.exports,
    )


def _loop(job: TrainJob, ranks: Ranks, reader: PartReader, line: Line) -> Loop:
    """Return the loop of one rank over its share of the pixels."""
    loader = PixelLoader(
        reader,
        job.pixels,
        batch_size=job.train.worker_batch_size(ranks.world_size),
        rank=ranks.rank,
        world_size=ranks.world_size,
        seed=job.train.seed,
        window_parts=job.train.window_parts,
        balance=job.train.balance,
    )
    return open_loop(
        job,
        ranks,
        loader,
        build=lambda *, fresh: _model(job, ranks, reader, fresh=fresh),
        inputs=inputs_digest(job.pixels),
        line=line,
    )


def open_loop(
    job: Job,
    ranks: Ranks,
    loader: Loader,
    *,
    build: Callable[..., Model],
    inputs: str,
    line: Line,
    scalars: str = "tensorboard",
) -> Loop:
    """Return the loop of one rank of a job, which goes on from the newest checkpoint where there is one.

    build: called with `fresh`, whether there is none; returns the model to train, the same on every rank. inputs: a
    digest of what is trained on, which a checkpoint must have been made with. scalars: the run's folder for them.
    """
    identity = {
        "train_key": job.train_key,
        "inputs": inputs,
        "labels": key_of(list(job.labels)),
        **job.train.continued_values(),
    }
    folder = f"{job.run_dir}/checkpoints/{job.train_key[:SHORT]}"
    checkpoints = Checkpoints(
        job.store,
        folder,
        ranks,
        identity=identity,
        keep=job.train.keep_checkpoints,
        may_prune=lambda: Run.at(job.store, job.run_dir).highest_attempt() <= job.attempt,
    )
    return Loop(
        build(fresh=checkpoints.newest() is None),
        loader,
        job.train,
        ranks,
        labels=job.labels,
        checkpoints=checkpoints,
        line=line,
        open_scalars=lambda step: Scalars(job.store, f"{job.run_dir}/{scalars}", purge_step=step),
    )


def _reader(job: TrainJob, cache: PartCache, *, for_gpu: bool) -> PartReader:
    """Return what reads the photos: their pixels where the model looks at some, and what its teacher says of them."""
    sizes = [images.size for images in job.transforms]
    threads = job.train.load_threads or (_GPU_LOAD_THREADS if for_gpu else 1)
    if job.model.taught_by() is None:
        return PartReader(cache, *sizes, threads=threads, for_gpu=for_gpu)
    with torch.random.fork_rng(devices=[]):
        model = build_model(job.model, image_size=sizes[0], labels=job.labels)
    features = FeatureReader(cache, model.num_features)
    reader = PartReader(cache, *sizes, features=features, threads=threads, for_gpu=for_gpu)
    return reader if model.reads == "photos" else reader.blind()


def _bundled(job: TrainJob, trained: Model, reader: PartReader, device: torch.device) -> Model:
    """Return the model that becomes the bundle, on the CPU: the trained weights, and what is fitted after them.

    Fitted on the same photos in the same order whatever the number of workers.
    """
    # Built anew: what the training made of the modules (norms over ranks, compiled calls) is no part of the model.
    model = build_model(job.model, image_size=job.transforms[0].size, labels=job.labels).eval()
    model.load_state_dict(trained.state_dict())
    if not model.fits:
        return model
    with torch.no_grad(), closing(_some_photos(job, reader, device)) as batches:
        model.to(device).fit(batches)
    return model.to("cpu")


def _some_photos(job: TrainJob, reader: PartReader, device: torch.device) -> Generator[Batch]:
    """Yield photos to train on, each once and at most 20,000, the same whatever the number of workers."""
    everything = PixelLoader(
        reader,
        job.pixels,
        batch_size=_FIT_BATCH,
        rank=0,
        world_size=1,
        seed=job.train.seed,
        window_parts=job.train.window_parts,
    )
    photos = min(everything.num_photos, FIT_PHOTOS)
    with closing(everything.batches(0, -(-photos // _FIT_BATCH))) as batches:
        yield from _first(batches, photos, device)


def _first(batches: Iterable[Batch], photos: int, device: torch.device) -> Iterator[Batch]:
    """Yield the first so many photos of batches, on the device."""
    for batch in batches:
        left = photos
        yield batch.each(lambda values, left=left: values[:left].to(device))  # type: ignore[misc]
        photos -= len(batch.images)


def _model(job: TrainJob, ranks: Ranks, reader: PartReader, *, fresh: bool) -> Model:
    """Return the model to train, the same on every rank: what surrounds it attached, and begun with if `fresh`."""
    torch.manual_seed(job.train.seed)  # every rank builds the same weights
    model = build_model(job.model, image_size=job.transforms[0].size, labels=job.labels)
    model.supervised = job.train.supervision != "none"
    if job.train.init_from is not None and fresh:
        copy_convolutions(model, load_bundle(job.store, job.train.init_from).model)
    frozen = job.model.frozen()
    if frozen is not None:
        model.use_frozen(load_frozen(frozen, job.store, job.files).to(ranks.device))
    if (file := job.model.file()) is not None:
        model.use_file(job.files.read(file), file)
    if members := job.model.bundles():
        model.use_bundles([load_bundle(job.store, member).model for member in members])
    if model.prepares and fresh:
        # What is set before the first step is about features alone.
        with closing(_some_photos(job, reader.blind(), torch.device("cpu"))) as batches:
            model.prepare(batches)
    return model


def _validation_sections(validation: Validation) -> dict[str, dict[str, float]]:
    """Return what the card says of the held-out photos: all measures, the categories with the largest and least error.

    Nothing where no photo is held out.
    """
    names = list(validation.categories)
    shown = [*names[:_CARD_CATEGORIES], *names[_CARD_CATEGORIES:][-_CARD_CATEGORIES:]]
    sections = {
        "validation": dict(validation.measures),
        "validation mse by category": {name: validation.categories[name] for name in shown},
    }
    return {title: values for title, values in sections.items() if values}


class BoardLine:
    """A worker's line to the board and to the run. A board that is gone says nothing, and the training goes on.

    lookout: of the attempt that the training works for. Nothing here waits for long, and losing the board costs the
    progress only: errors then reach the driver through Ray Train, after its restarts.
    """

    def __init__(self, board: Any, lookout: Lookout) -> None:
        self._board = board
        self._lookout = lookout
        self._asked_at = time.monotonic()

    def report(self, progress: TrainProgress) -> None:
        """Send progress."""
        self._board.tell.remote(pickle.dumps(progress))

    def begin(self, workers: int) -> None:
        """Tell that the workers have begun."""
        self._board.begin.remote(workers)

    def fail(self, error: CodebooksError) -> None:
        """Tell an error that a restart of the workers would only meet again."""
        self._answer(self._board.fail.remote(pickle.dumps(error)))

    def is_over(self, within_s: float = _BOARD_S) -> bool:
        """Return whether the workers have nothing left to do, or shall do nothing more."""
        return bool(self._answer(self._board.is_over.remote(), within_s))

    def should_stop(self) -> bool:
        """Return whether the training shall stop; asks at most once a second, and looks for a newer attempt."""
        if time.monotonic() - self._asked_at < 1.0:
            return False
        self._asked_at = time.monotonic()
        try:
            self._lookout.check()
        except Conflict as superseded:
            self.fail(superseded)
            return True
        return self.is_over(within_s=1.0)

    def _answer(self, reference: Any, within_s: float = _BOARD_S) -> Any:
        """Return what the board answers, None when it is gone or does not answer now."""
        import ray

        try:
            return ray.get(reference, timeout=within_s)
        except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
            return None


def train_worker(setup: dict[str, Any]) -> str | None:
    """Run this Ray Train worker's rank and return the id of what it saved, None on other ranks and when stopped.

    setup: `job`, a reference to a Job, and `board`, the Board actor.
    """
    import ray
    import ray.train
    import ray.train.torch

    job: Job = ray.get(setup["job"])
    line = BoardLine(setup["board"], Lookout(job.store, job.run_dir, job.attempt))
    if line.is_over():
        return None  # a restart would only meet the same error again; the driver raises it
    context = ray.train.get_context()
    line.begin(context.get_world_size())
    ranks = Ranks(context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device())
    fix_process(job.train, ranks.device)
    first_here = context.get_local_rank() == 0
    try:
        return job.run_rank(ranks, line=Line(line.report, line.should_stop), first_here=first_here)
    except Unavailable:
        if line.is_over():
            return None  # stopped as asked, on every rank; raising would have Ray start the workers anew
        raise
    except CodebooksError as error:
        line.fail(error)
        raise
