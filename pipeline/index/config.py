"""The configuration of an index."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from .metrics import MASKED, METRICS, needs_of


class IndexConfig(BaseModel):
    """How an index is built and how good it must be.

    metric: how two photos are compared; `codes` and `codes_hamming` need a model that yields codes, all others but `l2`
    and `cosine` one that yields log_var. mask: which latents
    count, `query_median` those of the query that are surer than its median, `catalogue_median` those that are over the
    whole catalogue; needs log_var too. kind: `flat` is exact; `hnsw` is a graph, worth it above about a million
    photos, `cagra` one that GPUs draw, refused where FAISS sees none; `flat_codes`, `flat_eden4`, `ivf_sq8`, `ivf_pq`
    (of divergences `ivf_pairs`) and the graph `hnsw_sq8` hold codes in memory, whose
    candidates are scored by the exact features in a mapped file beside them; `auto` is `flat` for a catalogue that is
    scanned in a few milliseconds, else it builds all that fit `memory_gib` and takes by what they measure. m,
    ef_construction: links a node and candidates looked at while a graph is built.
    target_recall: recall@k that is tuned to, as a share, by the lower end of its 95 % interval; a kind that does not
    reach it is refused. max_ef_search: where tuning gives up, of ef_search and of the candidates of codes. k, queries,
    seed: neighbours, sampled queries and their seed for tuning and for measuring recall. memory_gib: refuse to build an
    index estimated above this; None: no limit. latency_p99_ms: what one query alone may take where the index is built,
    for all but `flat`; None: no limit. segment_rows: above so many photos the index is made of several files of up to
    so many, of which a night writes those that change (fewer, where a photo's features are so many that a file would
    pass 4 GiB). threads: OpenMP threads while building; None: all. gpu: `auto` trains cells, and tells those of rows,
    on all GPUs that the installed FAISS sees.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    metric: Literal["l2", "cosine", "kl", "reverse_kl", "jeffreys", "w2", "codes", "codes_hamming"] = "cosine"
    mask: Literal["none", "query_median", "catalogue_median"] = "none"
    kind: Literal[
        "flat", "hnsw", "cagra", "hnsw_sq8", "flat_codes", "flat_eden4", "ivf_sq8", "ivf_pq", "ivf_pairs", "auto"
    ] = "auto"
    m: int = Field(default=32, ge=2, le=512)
    ef_construction: int = Field(default=200, ge=8, le=10_000)
    target_recall: float = Field(default=0.98, gt=0.0, le=1.0)
    max_ef_search: int = Field(default=2048, ge=1)
    k: int = Field(default=10, ge=1)
    queries: int = Field(default=1000, ge=1)
    seed: int = Field(default=0, ge=0)
    memory_gib: float | None = Field(default=None, gt=0.0)
    latency_p99_ms: float | None = Field(default=None, gt=0.0)
    segment_rows: int = Field(default=2_000_000, ge=16, le=1 << 30)
    threads: int | None = Field(default=None, ge=1)
    gpu: Literal["auto", "never"] = "auto"

    # Fields that came later: at their default they are in no dump, and so in no release's key.
    quiet: ClassVar[tuple[str, ...]] = ("latency_p99_ms", "mask", "segment_rows")

    @property
    def needs(self) -> tuple[str, ...]:
        """The latents that an index is built from."""
        return needs_of(self.metric, self.mask)

    def _cancels(self) -> bool:
        return self.metric in METRICS and METRICS[self.metric].cancels

    @model_validator(mode="after")
    def _go_together(self) -> IndexConfig:
        if self.mask not in MASKED[self.metric]:
            allowed = ", ".join(MASKED[self.metric])
            raise ValueError(f"mask {self.mask} does not go with metric {self.metric}; one of {allowed}")
        if self.kind in ("hnsw", "cagra", "hnsw_sq8") and (self.mask == "query_median" or self._cancels()):
            raise ValueError(
                f"kind {self.kind} does not go with metric {self.metric}, mask {self.mask}: a graph over the terms of "
                "its inner product loses most neighbours; take kind flat, or metric w2, l2 or cosine without "
                "query_median"
            )
        return self

    @model_validator(mode="after")
    def _pairs_of_gaussians(self) -> IndexConfig:
        if self.kind == "ivf_pairs" and not (self._cancels() or self.mask == "query_median"):
            raise ValueError(
                f"kind ivf_pairs does not go with metric {self.metric}, mask {self.mask}: its codes are of the means "
                "and variances that kl, reverse_kl, jeffreys or a query_median compare; take kind ivf_sq8 or ivf_pq"
            )
        return self

    @model_validator(mode="after")
    def _gpus_where_needed(self) -> IndexConfig:
        if self.kind == "cagra" and self.gpu == "never":
            raise ValueError("kind cagra is drawn on GPUs and index.gpu is never; take gpu: auto, or kind: hnsw")
        return self

    @model_serializer(mode="wrap")
    def _without_quiet_defaults(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = dump(self)
        defaults = type(self).model_fields
        return {
            name: value
            for name, value in values.items()
            if name not in self.quiet or getattr(self, name) != defaults[name].default
        }
