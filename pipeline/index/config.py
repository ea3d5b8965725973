"""The configuration of an index."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class IndexConfig(BaseModel):
    """How an index is built and how good it must be.

    metric: how two photos are compared. kind: `flat` is exact; `hnsw` is a graph, worth it above about a million
    photos. m, ef_construction: links a node and candidates looked at while the graph is built (hnsw only).
    target_recall: recall@k that ef_search is tuned to, as a share; max_ef_search: where tuning gives up (the
    measured recall is then what the gate sees). k, queries, seed: neighbours, sampled queries and their seed for
    tuning and for measuring recall. memory_gib: refuse to build an index estimated above this; None: no limit.
    threads: OpenMP threads while building; None: all. gpu: `auto` uses GPUs where the installed FAISS sees some.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    metric: Literal["l2", "cosine"] = "cosine"
    kind: Literal["flat", "hnsw"] = "flat"
    m: int = Field(default=32, ge=2, le=512)
    ef_construction: int = Field(default=200, ge=8, le=10_000)
    target_recall: float = Field(default=0.98, gt=0.0, le=1.0)
    max_ef_search: int = Field(default=2048, ge=1)
    k: int = Field(default=10, ge=1)
    queries: int = Field(default=1000, ge=1)
    seed: int = Field(default=0, ge=0)
    memory_gib: float | None = Field(default=None, gt=0.0)
    threads: int | None = Field(default=None, ge=1)
    gpu: Literal["auto", "never"] = "auto"
