"""Which tables a release has beside its items, and how items get semantic IDs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

MAX_CODES = 1 << 16  # a code is a uint16
MAX_LEVELS = 8

Level = Annotated[int, Field(ge=2, le=MAX_CODES)]


class CodebookTableConfig(BaseModel):
    """The table of a VQ model's codes. groups: into how many groups of like codes; None: the square root of their
    number. seed: of the grouping."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    groups: int | None = Field(default=None, ge=1, le=MAX_CODES)
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _switched_on(cls, given: Any) -> Any:
        """`codebook: true` is the section with its defaults."""
        return {} if given is True else given


class TablesConfig(BaseModel):
    """Tables that a release may have besides. vectors: one vector an item, always there where items have semantic IDs.

    neighbours: how many nearest items of every item are listed; 0: no such table. codebook: the codes of a VQ model,
    in groups; None: no such table. returned: whether `changes` also tells which new items had been there before.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    vectors: bool = False
    neighbours: int = Field(default=0, ge=0, le=1000)
    codebook: CodebookTableConfig | None = None
    returned: bool = False

    @model_serializer(mode="wrap")
    def _without_what_came_later(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = dump(self)  # releases without it have the digests that they had
        later = {"codebook": None, "returned": False}
        return {name: value for name, value in values.items() if name not in later or value != later[name]}

    @property
    def asked(self) -> bool:
        """Return whether any table is asked for."""
        return self != TablesConfig()


class RqvaeConfig(BaseModel):
    """The network of `rqvae` and its training, once a bundle; see models.rqvae.

    hidden: width of the encoder's layers, the decoder's in reverse. code_dim: numbers of a code. commitment_weight: the
    paper's beta. epochs, batch_size, learning_rate: of the training on a seeded sample of the item vectors.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    hidden: tuple[Annotated[int, Field(ge=1, le=4096)], ...] = Field(default=(128, 64), min_length=1, max_length=8)
    code_dim: int = Field(default=32, ge=1, le=4096)
    commitment_weight: float = Field(default=0.25, ge=0)
    epochs: int = Field(default=100, ge=1)
    batch_size: int = Field(default=1024, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0)


class SemanticIdsConfig(BaseModel):
    """How items get semantic IDs: short sequences of codes, of which near items share the first ones.

    levels: codes of each level. method: `rq_kmeans`, k-means of what the levels before left over, or `rqvae`, the same
    sum of codes in the space of a small autoencoder that is trained with them. capacity: the most items that may have
    the same codes; an item beyond them takes the nearest last code that has room. None: no limit. Items of the same
    codes are told apart by a suffix either way. seed: of the sample and of the first centroids or weights.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    levels: tuple[Level, ...] = Field(default=(1024, 256, 256), min_length=1, max_length=MAX_LEVELS)
    method: Literal["rq_kmeans", "rqvae"] = "rq_kmeans"
    capacity: int | None = Field(default=None, ge=1, le=1_000_000)
    seed: int = Field(default=0, ge=0)
    rqvae: RqvaeConfig = RqvaeConfig()

    @model_serializer(mode="wrap")
    def _of_its_method(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = dump(self)  # what `rq_kmeans` asks for is as it was before there was another
        return {name: value for name, value in values.items() if name != "rqvae" or self.method == "rqvae"}

    @model_validator(mode="after")
    def _only_of_its_method(self) -> SemanticIdsConfig:
        if self.method != "rqvae" and self.rqvae != RqvaeConfig():
            raise ValueError(f"rqvae is set, and method is {self.method}; set method to rqvae, or leave rqvae out")
        return self

    @model_validator(mode="before")
    @classmethod
    def _switched_on(cls, given: Any) -> Any:
        """`semantic_ids: true` is the section with its defaults."""
        return {} if given is True else given
