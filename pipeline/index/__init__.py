"""Metrics as FAISS geometries, building, tuning and searching an index, and gathering the latents it is built from.

Pure functions of arrays; nothing here knows of Ray, releases or channels. `faiss` itself is imported only by
`faiss_module`, and only when an index is built or opened.
"""

from __future__ import annotations

from .build import BuiltIndex, build_index
from .codes import FITTED, code_features
from .config import IndexConfig
from .exact import nearest_exact
from .faiss_module import load_faiss
from .fitted import Origin
from .fusion import FUSIONS, RRF_K, reciprocal_ranks
from .gather import gather_latents
from .groups import GroupHits, Grouping, nearest_groups
from .items import ItemTable
from .kinds import KINDS, Kind, check_readable, estimate_bytes, estimate_features_bytes, feature_width, kinds_here
from .latents import LatentArrays
from .metric import Metric
from .metrics import MASKED, METRICS, fitted_metric, metric_named, metric_of_index, needs_of
from .nightly import NightIndex, nightly_index
from .search import Hits, SearchIndex, open_index
from .where import matching_rows

__all__ = [
    "FITTED",
    "FUSIONS",
    "KINDS",
    "MASKED",
    "METRICS",
    "RRF_K",
    "BuiltIndex",
    "GroupHits",
    "Grouping",
    "Hits",
    "IndexConfig",
    "ItemTable",
    "Kind",
    "LatentArrays",
    "Metric",
    "NightIndex",
    "Origin",
    "SearchIndex",
    "build_index",
    "check_readable",
    "code_features",
    "estimate_bytes",
    "estimate_features_bytes",
    "feature_width",
    "fitted_metric",
    "gather_latents",
    "kinds_here",
    "load_faiss",
    "matching_rows",
    "metric_named",
    "metric_of_index",
    "nearest_exact",
    "nearest_groups",
    "needs_of",
    "nightly_index",
    "open_index",
    "reciprocal_ranks",
]
