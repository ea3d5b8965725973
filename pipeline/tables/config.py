"""Which tables a release has beside its items, and how items get semantic IDs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

MAX_CODES = 1 << 16  # a code is a uint16
MAX_LEVELS = 8

Level = Annotated[int, Field(ge=2, le=MAX_CODES)]


class TablesConfig(BaseModel):
    """Tables that a release may have besides. vectors: one vector an item, always there where items have semantic IDs.

    neighbours: how many nearest items of every item are listed; 0: no such table.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    vectors: bool = False
    neighbours: int = Field(default=0, ge=0, le=1000)

    @property
    def asked(self) -> bool:
        """Return whether any table is asked for."""
        return self != TablesConfig()


class SemanticIdsConfig(BaseModel):
    """How items get semantic IDs: short sequences of codes, of which near items share the first ones.

    levels: codes of each level. method: `rq_kmeans`, k-means of what the levels before left over. capacity: the most
    items that may have the same codes; an item beyond them takes the nearest last code that has room. None: no limit.
    Items of the same codes are told apart by a suffix either way. seed: of the sample and the first centroids.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    levels: tuple[Level, ...] = Field(default=(1024, 256, 256), min_length=1, max_length=MAX_LEVELS)
    method: Literal["rq_kmeans"] = "rq_kmeans"
    capacity: int | None = Field(default=None, ge=1, le=1_000_000)
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _switched_on(cls, given: Any) -> Any:
        """`semantic_ids: true` is the section with its defaults."""
        return {} if given is True else given
