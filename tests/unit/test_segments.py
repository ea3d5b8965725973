"""Indexes of several segments, night after night: what they answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.index import (
    KINDS,
    IndexConfig,
    LatentArrays,
    build_index,
    kinds_here,
    planner,
)
from pipeline.index.segmented import SegmentedIndex
from pipeline.quality.side_by_side import open_space
from pipeline.release import (
    verify_release,
)

ROWS, K = 25, 7  # rows of a segment
MODEL = "ab" * 32


@pytest.mark.parametrize(
    "index",
    [{"metric": "cosine"}, {"metric": "kl", "mask": "query_median"}],
    ids=lambda index: "-".join(index.values()),
)
@pytest.mark.slow
def test_random_nights_answer_as_a_full_build_of_an_exact_kind(
    segmented: Any, maker: Any, tmp_path: Path, index: Any
) -> None:
    held = segmented.nights(maker, tmp_path, **index)
    held.change(segmented.photos_of(maker, 60, seed=1))
    carried = merged = 0
    before: set[str] = set()
    for seed in range(2, 6):
        manifest = held.publish()
        assert manifest.format == 3
        names = [entry.name for entry in manifest.files_of("index")]
        assert manifest.index_parameters["segments_carried"] == len(before & set(names))
        carried, merged = carried + len(before & set(names)), merged + len(before - set(names))
        before = set(names)
        items, latents, _ = held.items()
        whole = build_index(latents, held.config.model_copy(update={"segment_rows": 2_000_000})).index
        release = held.open()
        queries = latents.take(np.random.default_rng(seed).permutation(len(latents))[:20])
        found, truth = release.opened.index.search(queries, K), whole.search(queries, K)
        np.testing.assert_allclose(found.scores, truth.scores, rtol=1e-9, atol=1e-9)
        differ = found.ids != truth.ids  # copies at the last place may be either
        assert np.isclose(found.scores[differ], found.scores[:, -1:].repeat(K, 1)[differ], atol=1e-9).all()
        ids = items["item_id"].to_pylist()
        asked = ids[:: len(ids) // 3]
        assert len(release) == len(set(ids))
        space = open_space(held.store, manifest)  # from bytes, as pages do
        np.testing.assert_array_equal(space.index.search(queries, K).ids, found.ids)
        for item_id in asked:
            answers = [near.item_id for near in release.similar(item_id, k=K)]
            assert len(set(answers)) == K
            assert item_id not in answers
        some = release.similar(asked[0], k=K, where={"category": "Shoes"})
        assert len(some) == K
        assert {near.attributes["category"] for near in some} == {"Shoes"}
        segmented.some_change(maker, held, seed)
    assert carried > 2
    assert merged > 0
    assert verify_release(held.store, manifest.release_id).problems == ()


@pytest.mark.slow
@pytest.mark.parametrize("kind", kinds_here(IndexConfig()))
def test_every_kind_gives_k_living_rows_and_never_a_dead_one(
    segmented: Any, maker: Any, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planner, "_SCAN_ROWS", 0)  # else so few rows are scored one by one
    monkeypatch.setattr(planner, "_GRAPH_SHARE", 0.5)
    held = segmented.nights(maker, tmp_path, kind=kind, target_recall=0.9, ef_construction=40)
    held.change(segmented.photos_of(maker, 60, seed=1))
    for seed in range(2, 4):
        manifest = held.publish()
        assert manifest.index_kind == kind
        assert ("features" in manifest.files) == KINDS[kind].lossy
        index = held.open().opened.index
        assert isinstance(index, SegmentedIndex)
        _, latents, _ = held.items()
        for share in (1.0, 0.4, 0.03):
            allowed = np.sort(np.random.default_rng(seed).permutation(index.rows)[: round(share * index.rows)])
            ids, scores = index.search(latents.take(np.s_[:20]), K, allowed=None if share == 1.0 else allowed)
            there = min(K, len(allowed))
            assert (ids[:, :there] >= 0).all()
            assert np.isin(ids[ids >= 0], allowed).all()
            assert all(len(set(row[:there])) == there for row in ids.tolist())
            apart = np.linalg.norm(latents.mean[:20, None].astype(np.float64) - latents.mean[ids[:, :there]], axis=-1)
            np.testing.assert_allclose(-scores[:, :there], apart, atol=1e-6)  # of these very rows, none that is dead
        segmented.some_change(maker, held, seed)
    assert manifest.index_parameters["segments_carried"]


def test_dead_rows_that_are_not_left_out_give_wrong_answers(segmented: Any, maker: Any, tmp_path: Path) -> None:
    held = segmented.nights(maker, tmp_path)
    held.change(segmented.photos_of(maker, 60, seed=1))
    held.publish()
    gone = sorted(held.where)[::12]
    lost = LatentArrays(np.stack([held.where[uri][0].mean for uri in gone]))
    held.change([], gone)
    held.publish()
    index = held.open().opened.index
    good, (_, latents, _) = index.search(lost, K), held.items()
    apart = np.linalg.norm(lost.mean[:, None].astype(np.float64) - latents.mean[None], axis=-1)
    np.testing.assert_allclose(-good.scores, np.sort(apart, axis=1)[:, :K], atol=1e-9)
    index._living = (None,) * len(index._living)  # type: ignore[attr-defined]
    bad = index.search(lost, K)
    assert (bad.ids < 0).any(), "negative control: what is gone takes the place of what lives"
