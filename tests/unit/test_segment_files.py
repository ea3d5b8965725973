"""Files of an index of segments: carried over, merged, fitted anew, kept, verified and refused."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.errors import ConfigError, InputError, IntegrityError
from pipeline.index import (
    KINDS,
    IndexConfig,
    NightIndex,
    build_index,
    nightly,
    segments,
)
from pipeline.index.layout import LEAST_LIVING
from pipeline.index.segments import segments_of
from pipeline.keys import digest_of
from pipeline.reader import open_release
from pipeline.release import (
    Policy,
    delist,
    expire,
    verify_release,
)
from pipeline.release.manifest import FORMAT, parse_manifest

ROWS, K = 25, 7  # rows of a segment
MODEL = "ab" * 32


def test_what_is_carried_over_is_the_same_file_and_half_empty_segments_are_written_anew(
    segmented: Any, maker: Any, tmp_path: Path
) -> None:
    held = segmented.nights(maker, tmp_path)
    held.change(segmented.photos_of(maker, 60, seed=1))
    first = held.publish()
    held.change(segmented.photos_of(maker, 3, seed=2, first=5000))
    second = held.publish()
    assert second.files["index"][:-1] == first.files["index"]
    assert second.index_parameters["rows_written"] == sum(uri.split("/")[3].startswith("500") for uri in held.where)
    items = held.store.get(second.file("items").name)
    assert digest_of(items) == second.file("items").sha256
    emptied = segments_of(second)[0]
    named = held.index().items
    inside = [row for row in named.to_pylist() if row["index_segment"] == emptied.index.name]
    held.change([], [row["uri"] for row in inside[: round((1 - LEAST_LIVING) * emptied.rows) + 1]])
    third = held.publish()
    assert emptied.index not in third.files["index"]
    assert third.files["index"][0] == first.files["index"][1]
    assert verify_release(held.store, third.release_id).problems == ()


def test_up_to_a_segments_rows_all_is_as_before_and_the_bytes_are_those_of_one_build(
    segmented: Any, maker: Any, tmp_path: Path
) -> None:
    held = segmented.nights(maker, tmp_path, segment_rows=1000)
    held.change(segmented.photos_of(maker, 60, seed=1))
    manifest = held.publish()
    _, latents, _ = held.items()
    assert manifest.format == 1
    assert held.store.get(manifest.file("index").name) == build_index(latents, held.config).data
    assert set(manifest.index_parameters) == {"k", "queries", "add_block", "chosen"}
    assert "segment_rows" not in IndexConfig().model_dump()
    assert not list(held.store.list("indexes/"))
    # Above the limit and back again.
    held.config = held.config.model_copy(update={"segment_rows": ROWS})
    assert held.index().built.segments
    held.config = held.config.model_copy(update={"segment_rows": len(latents)})
    assert not held.index().built.segments
    assert "index_segment" not in held.index().items.column_names


def test_a_broken_off_night_goes_on_with_the_segments_that_it_wrote(
    segmented: Any, maker: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = segmented.nights(maker, tmp_path, kind="flat_codes", target_recall=0.9)
    held.change(segmented.photos_of(maker, 60, seed=1))
    first = held.index().built
    monkeypatch.setattr(segments, "_fill", lambda *_: pytest.fail("what is there is built again"))
    again = held.index().built
    assert again.segments == first.segments
    assert dict(again.told())["segments"].startswith(f"{len(first.segments)}, 0 of them carried over")


def test_another_space_carries_nothing_over(segmented: Any, maker: Any, tmp_path: Path) -> None:
    held = segmented.nights(maker, tmp_path)
    held.change(segmented.photos_of(maker, 60, seed=1))
    held.publish()
    assert held.index().built.parameters["segments_carried"] > 0
    for change in ({"metric": "cosine"}, {"kind": "hnsw", "ef_construction": 40}, {"kind": "flat_codes"}):
        held.config = held.config.model_copy(update={"target_recall": 0.9, **change})
        assert held.index().built.parameters["segments_carried"] == 0


@pytest.mark.parametrize(
    "index", [{"metric": "codes"}, {"metric": "codes_hamming"}, {"metric": "kl", "mask": "catalogue_median"}]
)
def test_what_a_metric_was_fitted_to_stays_and_answers_follow_it(
    segmented: Any, maker: Any, tmp_path: Path, index: Any
) -> None:
    held = segmented.nights(maker, tmp_path, **index)
    held.change(segmented.photos_of(maker, 60, seed=1))
    first = held.publish()
    segmented.some_change(maker, held, 3)
    second = held.publish()
    assert second.metric == first.metric
    assert second.index_parameters.get("photos_with_code") == first.index_parameters.get("photos_with_code")
    assert second.index_parameters["segments_carried"]
    _, latents, _ = held.items()
    found = held.open().opened.index
    exact = found.metric.exact(latents.take(np.s_[:20]), latents)
    scores = found.search(latents.take(np.s_[:20]), K).scores
    np.testing.assert_allclose(scores, -np.sort(-exact, axis=1)[:, :K], atol=1e-5)


@pytest.mark.slow
def test_trained_parts_are_fitted_once_and_again_only_when_recall_is_lost(
    segmented: Any, maker: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = segmented.nights(maker, tmp_path, kind="ivf_sq8", target_recall=0.9, segment_rows=300)
    held.change(segmented.photos_of(maker, 260, seed=1))
    first = held.publish()
    assert first.index_parameters["fit"] == 1
    kept = [entry.name for entry in held.store.list(f"models/{MODEL}/index-")]
    assert len(kept) == 1
    segmented.some_change(maker, held, 2)
    second = held.publish()
    assert [entry.name for entry in held.store.list(f"models/{MODEL}/index-")] == kept
    assert second.index_parameters["space"] == first.index_parameters["space"]
    measured = nightly.meets
    lost = iter([False])
    monkeypatch.setattr(nightly, "meets", lambda *asked: next(lost, True) and measured(*asked))
    segmented.some_change(maker, held, 3)
    third = held.publish()
    assert third.index_parameters["fit"] == 2
    assert "fit 1 gave recall" in str(third.index_parameters["refitted"])
    assert third.index_parameters["segments_carried"] == 0
    monkeypatch.undo()
    segmented.some_change(maker, held, 4)
    assert held.publish().index_parameters["fit"] == 2


def test_auto_chooses_over_a_sample_and_keeps_the_parents_kind(
    segmented: Any, maker: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.index.kinds.SCANNED", 0)  # so few rows are scanned else
    held = segmented.nights(maker, tmp_path, kind="auto", target_recall=0.8)
    held.change(segmented.photos_of(maker, 60, seed=1))
    first = held.publish()
    assert first.index_kind in KINDS
    assert first.index_kind != "hnsw"
    assert "sample of 25 rows" in str(first.index_parameters["chosen"])
    segmented.some_change(maker, held, 2)
    second = held.publish()
    assert second.index_kind == first.index_kind
    assert "parent's kind still gives" in str(second.index_parameters["chosen"])


def test_what_cannot_be_reached_is_refused_with_what_was_measured(segmented: Any, maker: Any, tmp_path: Path) -> None:
    held = segmented.nights(maker, tmp_path, kind="ivf_sq8", latency_p99_ms=1e-6)
    held.change(segmented.photos_of(maker, 60, seed=1))
    with pytest.raises(ConfigError, match="latency_p99_ms 1e-06; measured:\n  ivf_sq8, candidates"):
        held.publish()
    held.config = held.config.model_copy(update={"memory_gib": 1e-6})
    with pytest.raises(ConfigError, match="memory_gib"):
        held.publish()
    bad = held.where[sorted(held.where)[0]][0]
    held.change([replace(bad, mean=np.full(maker.DIM, np.nan, np.float32))])
    with pytest.raises(InputError, match="NaN"):
        held.publish()


def test_damage_is_found_by_verify_and_by_the_reader(segmented: Any, maker: Any, tmp_path: Path) -> None:
    held = segmented.nights(maker, tmp_path, kind="flat_codes", target_recall=0.9)
    held.change(segmented.photos_of(maker, 60, seed=1))
    first = held.publish()
    segmented.some_change(maker, held, 2)
    second = held.publish()
    carried = set(first.names()) & set(second.names())
    for suffix in (".faiss", ".npy"):
        name = next(name for name in sorted(carried) if name.endswith(suffix))
        path = tmp_path / "store" / name
        whole = path.read_bytes()
        path.write_bytes(whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:])
        (problem,) = verify_release(held.store, second.release_id).problems
        assert name in problem
        with pytest.raises(IntegrityError, match="sha256"):
            open_release(held.store.url, cache_dir=tmp_path / f"other{suffix}")
        path.write_bytes(whole)
    assert verify_release(held.store, second.release_id).problems == ()


def test_expiry_keeps_what_a_kept_release_or_a_run_at_work_names_and_no_other_segment(
    segmented: Any, maker: Any, expiring: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # the store lives in this process, so no segment is built in another
    store = expiring.ClockStore("memory://segments")
    held = segmented.nights(maker, tmp_path)
    held.store = store
    held.change(segmented.photos_of(maker, 60, seed=1))
    first = held.publish()
    named = held.index().items.to_pylist()
    gone = [row["uri"] for row in named if row["index_segment"] == first.files["index"][0].name]
    store.pass_days(1)
    held.change([], gone)  # its first segment dies
    second = held.publish()
    carried = set(first.files["index"]) & set(second.files["index"])
    assert carried
    policy = Policy(keep=1, keep_days=1, max_share=1.0)
    dead = {entry.name for entry in first.files["index"]} - {entry.name for entry in second.files["index"]}
    store.pass_days(20)
    expiring.begin(store, "night-3")
    store.put("runs/night-3/plan.parquet", expiring.plan([], parent=second.release_id, model=MODEL))
    said = {one.entry.name: (one.keep, one.reason) for one in expire(store, policy).judged}
    assert all(said[name] == (True, "run night-3 may be at work and may find this") for name in dead)
    expiring.end(store, "night-3")
    for _ in range(2):
        expire(store, policy, yes=True)
        store.pass_days(10)
    assert f"releases/{first.release_id}/manifest.json" not in store.names()
    assert not dead & store.names(), "no release names them"
    assert {entry.name for entry in carried} <= store.names()
    assert verify_release(store, second.release_id).problems == ()


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (f"indexes/{MODEL}/", "indexes/another/", "names must stay inside their folder"),
        (f"indexes/{MODEL}/", f"indexes/{MODEL}/../../runs/", "names must stay inside their folder"),
        ('"format":3', '"format":2', "format 2 has no segments"),
        ('"format":3', f'"format":{FORMAT + 1}', "upgrade visual-codebooks"),
    ],
)
def test_segments_lie_in_their_models_folder_and_older_formats_have_none(
    segmented: Any, maker: Any, tmp_path: Path, old: str, new: str, words: str
) -> None:
    held = segmented.nights(maker, tmp_path)
    held.change(segmented.photos_of(maker, 60, seed=1))
    text = held.publish().to_bytes().decode()
    parse_manifest(text.encode(), "as it is")
    assert old in text
    with pytest.raises((IntegrityError, InputError), match=words):
        parse_manifest(text.replace(old, new).encode(), "changed")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: [rows[1], *rows[1:]], "one row of"),
        (lambda rows: [10_000, *rows[1:]], "10000"),
    ],
)
def test_items_that_name_wrong_rows_are_refused(
    segmented: Any, maker: Any, tmp_path: Path, change: Any, words: str
) -> None:
    held = segmented.nights(maker, tmp_path)
    held.change(segmented.photos_of(maker, 60, seed=1))
    made = held.index

    def damaged() -> NightIndex:
        night = made()
        at = night.items.schema.get_field_index("index_row")
        rows = pa.array(change(night.items["index_row"].to_pylist()), pa.int32())
        segments = night.items["index_segment"].to_pylist()
        assert segments[0] == segments[1] or words != "one row of"
        return replace(night, items=night.items.set_column(at, night.items.schema.field(at), rows))

    held.index = damaged  # type: ignore[method-assign]
    manifest = held.publish()
    assert words in " ".join(verify_release(held.store, manifest.release_id).problems)
    with pytest.raises(IntegrityError, match=words):
        held.open()


def test_refresh_and_delisting(segmented: Any, maker: Any, tmp_path: Path) -> None:
    held = segmented.nights(maker, tmp_path)
    held.change(segmented.photos_of(maker, 60, seed=1))
    held.publish()
    release = held.open()
    asked = sorted(held.where)[0].split("/")[3]
    item_id = f"sku-{int(asked):04d}"
    nearest = release.similar(item_id, k=K)[0].item_id
    delist(held.store, [nearest], owner="shop", reason="gone")
    assert not release.refresh()
    answer = [near.item_id for near in release.similar(item_id, k=K)]
    assert nearest not in answer
    assert len(answer) == K
    segmented.some_change(maker, held, 3)
    held.publish()
    assert release.refresh()
    assert release.release_id == held.last.release_id  # type: ignore[union-attr]
    assert nearest not in [near.item_id for near in release.similar(item_id, k=50)]
