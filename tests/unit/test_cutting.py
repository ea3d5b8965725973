"""Where a list of photos is cut into shards, and what smaller ones at the end are good for."""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.encoding import EncodeConfig, assign_shards, build_shards
from pipeline.encoding.cutting import cut
from pipeline.schema import plan_schema


def seconds(shards: np.ndarray, speeds: list[float]) -> float:
    """Return when the last of some actors has ended who take shards in order, each when it is free."""
    free = [(0.0, number) for number in range(len(speeds))]
    ended = 0.0
    for photos in np.bincount(shards).tolist():
        at, actor = heapq.heappop(free)
        heapq.heappush(free, (at + photos / speeds[actor], actor))
        ended = max(ended, at + photos / speeds[actor])
    return ended


@pytest.mark.parametrize("rows", [0, 1, 499, 500, 501, 9_999, 60_000])
@pytest.mark.parametrize("limit", [1, 500, 1_000, 10_922])
@pytest.mark.parametrize("actors", [0, 1, 7, 400])
def test_every_photo_has_one_shard_of_at_most_the_limit(rows: int, limit: int, actors: int) -> None:
    shard = cut(rows, limit, actors)
    assert len(shard) == rows
    sizes = np.bincount(shard)
    assert (np.diff(shard) >= 0).all()
    assert sizes.min(initial=1) >= 1  # no number is left out
    assert sizes.max(initial=0) <= limit
    whole = -(-rows // limit)
    assert len(sizes) == whole if actors == 0 else whole <= len(sizes) <= max(2.5 * whole, 1)


def test_without_actors_the_cut_is_the_one_of_old() -> None:
    counted = [n * 7 // 60_000 for n in range(60_000)]
    assert cut(60_000, 10_000, 0).tolist() == [n * 6 // 60_000 for n in range(60_000)] != counted


def test_the_last_shards_are_halves_quarters_and_eighths() -> None:
    sizes = np.bincount(cut(160_000, 10_000, 2)).tolist()
    assert sizes == [10_000] * 12 + [5_000] * 4 + [2_500] * 4 + [1_250] * 8
    assert np.bincount(cut(32_000, 1_000, 2)).tolist() == [1_000] * 28 + [500] * 4 + [250] * 8  # no eighths of these
    assert np.bincount(cut(4_990, 499, 2)).tolist() == [499] * 10  # and these are small enough


@pytest.mark.parametrize("actors", [2, 20, 100])
def test_a_slow_actor_is_waited_for_less(actors: int) -> None:
    speeds = [1.0] * (actors - 1) + [0.5]
    best = 1_000_000 / sum(speeds)
    even, halves = (seconds(cut(1_000_000, 5_000, asked), speeds) for asked in (0, actors))
    assert halves < even
    assert halves < best + 5_000  # a whole shard of the slow one takes 10,000
    backwards = np.sort(cut(1_000_000, 5_000, actors).max() - cut(1_000_000, 5_000, actors))
    assert seconds(backwards, speeds) >= halves  # small ones first are no help


def test_it_is_asked_for_and_follows_photos_and_config_alone() -> None:
    assert EncodeConfig().tail_for(10_000_000) == 0
    assert [EncodeConfig(tail="halves").tail_for(photos) for photos in (0, 1, 60_000, 10**9)] == [1, 1, 3, 1_000]
    assert EncodeConfig(tail="halves", actors=7).tail_for(1) == 7
    assert EncodeConfig.model_validate({"tail": "halves", "actors": {"min": 2, "max": 40}}).tail_for(1) == 40


def test_what_does_not_use_it_is_frozen_as_before() -> None:
    assert "tail" not in EncodeConfig().model_dump(mode="json")
    assert EncodeConfig(tail="halves").model_dump(mode="json")["tail"] == "halves"


def test_a_retry_that_plans_again_names_the_same_parts() -> None:
    def names(**how: Any) -> list[str]:
        given = {
            "item_id": [f"i{n:05d}" for n in range(8_000)], "uri": [f"s3://b/{n}" for n in range(8_000)],
            "view": [0] * 8_000, "token": ["version:1"] * 8_000, "status": ["added"] * 8_000,
            "retried": [False] * 8_000,
        }  # fmt: skip
        schema = plan_schema([])
        columns = [pa.array(given.get(field.name, [None] * 8_000), field.type) for field in schema]
        plan = pa.Table.from_arrays(columns, schema=schema)
        plan = assign_shards(plan, image_size=8, shard_rows=1_000, **how)
        shards = build_shards(plan, transform_id="0" * 16, model_id=None, precision="fp32")
        return [shard.pixels_name for shard in shards]

    tail = EncodeConfig(tail="halves", actors=2).tail_for
    assert names(tail_for=tail) == names(tail_for=tail)
    assert len(names(tail_for=tail)) == 16
    assert names(tail_for=tail)[:4] == names()[:4]  # the whole ones are the same parts
