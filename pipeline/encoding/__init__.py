"""Photos to pixels and latents parts, shard by shard, through Ray Data or without it."""

from .actors import Encoder, PhotoDecoder, Reader, ShardWorker, make_encoder, make_worker
from .collect import LivingRows, collect_pixels, collect_rows
from .compact import compact
from .config import EncodeConfig, EncodeJob
from .driver import run_shards
from .shards import PART_BYTES, Shard, ShardResult, assign_shards, build_shards, split_done

__all__ = [
    "PART_BYTES",
    "EncodeConfig",
    "EncodeJob",
    "Encoder",
    "LivingRows",
    "PhotoDecoder",
    "Reader",
    "Shard",
    "ShardResult",
    "ShardWorker",
    "assign_shards",
    "build_shards",
    "collect_pixels",
    "collect_rows",
    "compact",
    "make_encoder",
    "make_worker",
    "run_shards",
    "split_done",
]
