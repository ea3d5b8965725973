"""Photos to pixels and latents parts, shard by shard, through Ray Data or without it."""

from .actors import ShardWorker, make_encoder, make_worker
from .answers import HELD_OVER, Asked, FetchLimits, ask_again, settle
from .apart import run_shards_apart
from .collect import FeaturePart, LivingRows, among, collect_features, collect_pixels, collect_rows
from .compact import compact, hash_parts
from .config import EncodeConfig, EncodeJob
from .decoding import PhotoDecoder, Reader
from .driver import run_shards
from .encoder import Encoder
from .here import run_shards_here
from .shards import PART_BYTES, Shard, ShardResult, Unanswered, assign_shards, build_shards, split_done
from .unfit import NOT_FINITE

__all__ = [
    "HELD_OVER",
    "NOT_FINITE",
    "PART_BYTES",
    "Asked",
    "EncodeConfig",
    "EncodeJob",
    "Encoder",
    "FeaturePart",
    "FetchLimits",
    "LivingRows",
    "PhotoDecoder",
    "Reader",
    "Shard",
    "ShardResult",
    "ShardWorker",
    "Unanswered",
    "among",
    "ask_again",
    "assign_shards",
    "build_shards",
    "collect_features",
    "collect_pixels",
    "collect_rows",
    "compact",
    "hash_parts",
    "make_encoder",
    "make_worker",
    "run_shards",
    "run_shards_apart",
    "run_shards_here",
    "settle",
    "split_done",
]
