"""How photos are fetched, decoded and encoded, and what every actor is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from ..catalogue import CatalogueConfig, PhotoReader
from ..images import ImagesConfig
from ..storage import Files, Store

Precision = Literal["fp32", "bf16"]
USUAL_BATCH = 256
# On a machine that has to be started `auto` gives an actor about a minute's work; and so many actors are asked for at
# most: each is a process that the head keeps an eye on.
PHOTOS_THERE, MOST_ASKED = 20_000, 1_000


class ActorRange(BaseModel):
    """From how many actors to how many Ray Data lets the pool grow, as shards wait and the cluster has room."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min: int = Field(default=1, ge=1)
    max: int = Field(ge=1)

    @model_validator(mode="after")
    def _is_a_range(self) -> ActorRange:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is more than max {self.max}")
        return self


class EncodeConfig(BaseModel):
    """Settings of the pixels and encode stages; `batch_size`, `threads` and `precision` reach the latents' bits."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    batch_size: Literal["auto"] | Annotated[int, Field(ge=1)] = Field(
        default="auto",
        description="photos in each forward pass; the last one is padded; auto: 256, on a GPU what a probe finds",
    )
    precision: Precision = Field(default="fp32", description="bf16: autocast, on GPUs that have it")
    actors: Literal["auto"] | Annotated[int, Field(ge=1)] | ActorRange = Field(
        default="auto",
        description="processes that fetch, decode and encode; auto: what the photos need, see cluster/README.md",
    )
    stages: Literal["auto", "one", "two"] = Field(
        default="auto",
        description="two: other processes fetch and decode, the actors only encode; auto: two where actors have GPUs",
    )
    decoders: Literal["auto"] | Annotated[int, Field(ge=1)] | ActorRange = Field(
        default="auto", description="those other processes; auto: what the photos need and the cluster has room for"
    )
    threads: int = Field(default=1, ge=1, description="decoding and torch threads of one actor")
    fetch_threads: int = Field(
        default=16, ge=1, description="concurrent requests for a shard; an actor works on two of them"
    )
    shard_rows: int | None = Field(
        default=None, ge=1, description="photos in a part at most; null: from their number and size"
    )
    tail: Literal["even", "halves"] = Field(
        default="even",
        description="halves: the last shards are cut into halves to eighths, so that a slow actor is waited for less",
    )
    rewrite_below: float = Field(
        default=0.7, ge=0.0, le=1.0, description="a latents part of which a smaller share lives is written anew"
    )
    max_parts: int = Field(default=1000, ge=1, description="latents parts that a release names at most")
    gpus_per_actor: Literal["auto"] | Annotated[float, Field(ge=0.0)] = Field(
        default=0.0,
        description="0: on CPUs; a fraction shares a GPU; auto: one where a machine that is up has some, else none",
    )
    compile: bool = Field(default=False, description="the encoder by torch.compile, in each actor anew")
    no_progress_s: int = Field(
        default=1800, ge=1, description="seconds without a finished shard after which the stage fails as temporary"
    )

    @model_serializer(mode="wrap")
    def _without_an_even_tail(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = dump(self)  # what a run has frozen stays as it was before there was a choice
        return {name: value for name, value in values.items() if (name, value) != ("tail", "even")}

    def tail_for(self, photos: int) -> int:
        """Return how many actors the last shards of so many photos are cut smaller for: as many as are asked for."""
        if self.tail == "even":
            return 0
        if isinstance(self.actors, ActorRange):
            return self.actors.max
        return max(1, min(MOST_ASKED, -(-photos // PHOTOS_THERE))) if self.actors == "auto" else self.actors

    @property
    def least_actors(self) -> int:
        """Return how many actors the config insists on."""
        if isinstance(self.actors, ActorRange):
            return self.actors.min
        return 1 if self.actors == "auto" else self.actors


@dataclass(frozen=True, slots=True)
class EncodeJob:
    """What an actor needs beside its shards; picklable.

    model_id: the bundle that encodes, or None when only pixels are wanted; what its model sees is its own. images: the
    run's section, whose limits hold. stores: the transforms whose pixels a part holds, by default `images`.
    transform_id: that of what is stored.
    """

    store: Store
    files: Files
    catalogue: CatalogueConfig
    images: ImagesConfig
    encode: EncodeConfig
    model_id: str | None
    transform_id: str
    stores: tuple[ImagesConfig, ...] = ()

    @property
    def transforms(self) -> tuple[ImagesConfig, ...]:
        """Return what a pixels part stores."""
        return self.stores or (self.images,)

    def reader(self) -> PhotoReader:
        """Return what turns rows of photos into bytes."""
        return PhotoReader(
            self.files, self.catalogue, threads=self.encode.fetch_threads, max_bytes=self.images.max_bytes
        )
