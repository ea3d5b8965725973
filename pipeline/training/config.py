"""What a training run is asked to do, and which of it decides the trained bundle."""

from __future__ import annotations

import math
import re
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from ..errors import ConfigError

_SECONDS = {"h": 3600, "d": 86_400, "w": 604_800}

# Fields of which no key says anything: what they change is when a training runs and how it survives.
_NOT_IN_KEY = frozenset(
    {
        "when", "version", "seed", "checkpoint_every_s", "keep_checkpoints", "max_failures", "cache_gib",
        "least_workers", "gpus_per_worker", "start_timeout_s", "load_threads",
    }
)  # fmt: skip

# Where and in which order of sums a training computes: other last bits, or another order of photos, of the same
# learning. Two trainings that differ only here share a bundle. The keys of earlier versions held these fields; they
# stand in every key with the values that were their defaults, so that keys made with these answer still.
_HARDWARE = {"accumulate": 1, "compile": False, "threads": 1, "window_parts": 4, "workers": 1}
# Weights of some hundred thousand to some million numbers learn no more from further photos; their pixels at 64 px,
# 25 GB, still lie in a machine's cache.
DEFAULT_PHOTOS = 2_000_000

# Fields that came later, with the defaults at which no key and no frozen config says anything of them.
_LATER = {
    "supervision": "none", "photos": DEFAULT_PHOTOS, "least_workers": None, "gpus_per_worker": 0,
    "start_timeout_s": 1800, "load_threads": None,
}  # fmt: skip
# All that a model without training by steps takes of a training: which photos its read-out is fitted on.
_OF_A_FIT = ("validation", "split_by", "init_from", "balance")

_NOT_OF_CODES = ("augment", "init_from", "balance", "window_parts", "supervision", "photos")


class OlderThan(BaseModel):
    """Train anew once per period, for example `30d`, `2w`, `12h`; periods are counted from 1970, not from a bundle."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    older_than: str

    @field_validator("older_than")
    @classmethod
    def _is_a_period(cls, text: str) -> str:
        if not re.fullmatch(r"[1-9]\d{0,4}[hdw]", text):
            raise ValueError(f"older_than is {text!r}; write a number and h, d or w, for example 30d")
        return text

    @property
    def seconds(self) -> int:
        """Return the period in seconds."""
        return int(self.older_than[:-1]) * _SECONDS[self.older_than[-1]]


class TrainConfig(BaseModel):
    """How a model is trained.

    when: `missing` (only when no bundle answers the train key), `always` (once a run), or `{older_than: 30d}`. Written
    down, whichever it is, it lets a refresh train and encode everything anew unasked; without it only the first refresh
    of a channel does, and later ones want `--retrain`. version: raise it to train again with the same settings.
    batch_size: photos per optimiser step over all workers. warmup: share of all steps over which the learning rate
    rises; afterwards `schedule` rules: `cosine` down to 0, `constant`, or `milestones`, the epochs after which the rate
    is multiplied by `gamma`. grad_clip: largest norm of the whole gradient, null for none. ema_decay: the bundle gets a
    moving average of the weights with this decay.

    photos: a seeded sample of so many, in whole parts, is trained on where the catalogue has more; null: all of them.
    Only these are decoded before the training, and their pixels kept.

    Where it is computed, which is no part of the train key: workers; gpus_per_worker: 1 puts each on a GPU, which is
    waited for where the cluster can start one, 0 on CPUs, whatever the cluster has; threads: torch threads per worker;
    compile: by torch.compile; accumulate: micro-batches in which an optimiser step is computed; window_parts: pixel
    parts whose rows are shuffled together, of which a worker holds at most two windows in memory. start_timeout_s: how
    long workers are waited for, as long as a machine with a GPU takes to boot. least_workers: with how many a training
    goes on from its checkpoint where machines were lost and no others come; null: with all of them. load_threads: parts
    of a window that a worker unpacks at once; null: 1, beside a GPU 8.

    validation: share of items (or of the values of the column `split_by`, for example a brand or contributor) that
    is held out and measured after every epoch. keep: the bundle gets the `last` epoch's weights, or the `best` by
    the measure `best_by`, for example `validation/total` (least) or `validation/ssim` (most). balance: every
    category is drawn equally often. supervision: `category` has a SimCLR bring photos of one category together, not
    the views of one photo alone (`losses.sup_con`); a photo without a category has its own other view. augment:
    `none`, or `light` (horizontal flip, a shift by up to a 16th of the side). init_from: model_id of a bundle on
    the store whose convolutions the training begins with. cache_gib: how much of each machine's disk the pixel
    parts of a remote store may take (else the machine's CODEBOOKS_TRAIN_CACHE_GIB, else 100, and a quarter at most
    of what is free); the rest is fetched anew for each use.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    when: Literal["missing", "always"] | OlderThan = "missing"
    version: int = Field(default=1, ge=1)
    seed: int = Field(default=0, ge=0, lt=2**63)
    epochs: int = Field(default=10, ge=1)
    batch_size: int = Field(default=256, ge=1)
    optimiser: Literal["adam", "adamw", "sgd"] = "adamw"
    learning_rate: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    warmup: float = Field(default=0.02, ge=0, lt=1)
    schedule: Literal["cosine", "constant", "milestones"] = "cosine"
    milestones: tuple[int, ...] = ()
    gamma: float = Field(default=0.1, gt=0, le=1)
    accumulate: int = Field(default=1, ge=1)
    grad_clip: float | None = Field(default=None, gt=0)
    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    compile: bool = False
    precision: Literal["fp32", "bf16"] = "fp32"
    validation: float = Field(default=0.05, ge=0, lt=1)
    split_by: str | None = None
    keep: Literal["last", "best"] = "last"
    best_by: str = "validation/total"
    balance: bool = False
    supervision: Literal["none", "category"] = "none"
    augment: Literal["none", "light"] = "none"
    init_from: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    photos: int | None = Field(default=DEFAULT_PHOTOS, ge=1)
    workers: int = Field(default=1, ge=1)
    least_workers: int | None = Field(default=None, ge=1)
    gpus_per_worker: Literal[0, 1] = 0
    start_timeout_s: int = Field(default=1800, ge=1)
    load_threads: int | None = Field(default=None, ge=1)
    threads: int = Field(default=1, ge=1)
    window_parts: int = Field(default=4, ge=1)
    checkpoint_every_s: float = Field(default=30.0, ge=0)
    keep_checkpoints: int = Field(default=2, ge=1)
    max_failures: int = Field(default=3, ge=0)
    cache_gib: float | None = Field(default=None, ge=0)

    @model_serializer(mode="wrap")
    def _without_what_came_later(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = dump(self)  # keys of those that do not use it stay as they were
        return {name: value for name, value in values.items() if name not in _LATER or value != _LATER[name]}

    @model_validator(mode="after")
    def _batch_divides(self) -> TrainConfig:
        if self.least_workers is not None and self.least_workers > self.workers:
            raise ValueError(f"least_workers {self.least_workers} is more than workers {self.workers}")
        counts = range(self.least_workers or self.workers, self.workers + 1)
        if any(self.batch_size % workers for workers in counts):
            step = math.lcm(*counts)
            below = self.batch_size - self.batch_size % step
            near = f"{below} or {below + step}" if below else str(step)
            said = f"workers {self.workers}" if len(counts) == 1 else f"each of {counts[0]} to {counts[-1]} workers"
            raise ValueError(f"batch_size {self.batch_size} is not a multiple of {said}; try {near}")
        return self

    def worker_batch_size(self, world_size: int) -> int:
        """Return the photos per optimiser step of one of so many workers."""
        return self.batch_size // world_size

    def key_values(self, *, by_steps: bool = True) -> dict[str, Any]:
        """Return what goes into the train key: every field that decides what is learned, but seed and version.

        A field that says nothing beside the others (`gamma` without milestones) stands there with its default, and so
        do all that a model which is only fitted has no use for. by_steps: False for such a model (`Model.trains`).
        """
        values = {**self.continued_values(), **_HARDWARE}
        idle = [name for name in values if not by_steps and name not in (*_OF_A_FIT, *_HARDWARE)]
        if self.schedule != "milestones":
            idle += ["milestones", "gamma"]
        if self.keep != "best":
            idle.append("best_by")
        if not self.validation:
            idle.append("split_by")
        defaults = TrainConfig().continued_values()
        kept = {name: value for name, value in values.items() if name not in idle}
        return {**kept, **{name: defaults[name] for name in idle if name in defaults}}

    def continued_values(self) -> dict[str, Any]:
        """Return what a checkpoint must have been made with to be gone on from; the train keys of earlier versions."""
        return self.model_dump(mode="json", exclude=set(_NOT_IN_KEY))

    @property
    def when_is_set(self) -> bool:
        """Return whether the user has written `when` down, be it as the default."""
        return "when" in self.model_fields_set


class PriorTrainConfig(TrainConfig):
    """How a prior is trained: as a model is, with defaults that suit grids of codes.

    batch_size: photos an optimiser step. Codes have no pixels to augment, no convolutions to begin with and are in
    memory as a whole, so `augment`, `init_from`, `balance` and `window_parts` are refused where they are set.
    """

    epochs: int = Field(default=10, ge=1)
    batch_size: int = Field(default=128, ge=1)
    learning_rate: float = Field(default=2e-3, gt=0)

    @model_validator(mode="after")
    def _only_what_codes_have(self) -> PriorTrainConfig:
        for name in _NOT_OF_CODES:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} is {getattr(self, name)!r}, and training a prior on codes has no use for it")
        return self


def train_period(config: TrainConfig, *, run: str, now: float) -> str:
    """Return the nonce that `when` adds to the train key: empty, this run's name, or the number of the period.

    now: seconds since 1970 (UTC).
    """
    if config.when == "missing":
        return ""
    if config.when == "always":
        return f"run:{run}"
    if not isinstance(config.when, OlderThan):
        raise ConfigError(f"train.when is {config.when!r}; allowed: missing, always, {{older_than: 30d}}")
    return f"{config.when.older_than}:{int(now // config.when.seconds)}"
