"""Indexes of several segments, night after night: answers, what is carried over, merged, kept, verified and refused."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.errors import ConfigError, InputError, IntegrityError
from pipeline.index import (
    KINDS,
    IndexConfig,
    LatentArrays,
    NightIndex,
    build_index,
    gather_latents,
    nightly,
    nightly_index,
    planner,
    segments,
)
from pipeline.index.layout import LEAST_LIVING
from pipeline.index.segmented import SegmentedIndex
from pipeline.index.segments import segments_of
from pipeline.keys import digest_of
from pipeline.parts import PartFile
from pipeline.quality.side_by_side import open_space
from pipeline.reader import Release, open_release
from pipeline.release import (
    Manifest,
    Policy,
    delist,
    expire,
    publish,
    read_head,
    read_manifest,
    verify_release,
    write_release,
)
from pipeline.release.manifest import FORMAT, parse_manifest
from pipeline.storage import Store, open_store
from pipeline.storage.cache import FileCache

ROWS, K = 25, 7  # rows of a segment
MODEL = "ab" * 32


@dataclass
class Nights:
    """A catalogue on a store, changed and published night by night. where: of each living photo its part and row."""

    maker: Any
    store: Store
    cache: Path
    config: IndexConfig
    where: dict[str, tuple[Any, PartFile, int]] = field(default_factory=dict)
    last: Manifest | None = None
    count: int = 0

    def change(self, put: list[Any], gone: list[str] = []) -> None:  # noqa: B006 - only read
        """Write parts of photos that are new or other than before, and forget those that are gone."""
        self.count += 1
        parts = self.maker.write_parts(self.store, put, MODEL, f"n{self.count}")
        for at, photo in enumerate(put):
            self.where[photo.uri] = photo, parts[at // self.maker.PART_ROWS], at % self.maker.PART_ROWS
        for uri in gone:
            del self.where[uri]

    def items(self) -> tuple[pa.Table, LatentArrays, list[PartFile]]:
        ordered = sorted(self.where.values(), key=lambda held: (held[0].item_id, held[0].view))
        items = self.maker.items_table([held[0] for held in ordered], [""] * len(ordered))
        names, rows = [held[1].name for held in ordered], [held[2] for held in ordered]
        for name, values in (("latents_part", names), ("latents_row", rows)):
            at = items.schema.get_field_index(name)
            items = items.set_column(at, items.schema.field(name), pa.array(values).cast(items.schema.field(name).type))
        parts = list({held[1].name: held[1] for held in ordered}.values())
        return items, gather_latents(self.store, items, columns=self.config.needs), parts

    def index(self) -> NightIndex:
        items, latents, _ = self.items()
        cache = FileCache(self.cache)
        return nightly_index(self.store, items, latents, self.config, model_id=MODEL, parent=self.last, cache=cache)

    def publish(self) -> Manifest:
        made, parts = self.index(), self.items()[2]
        built, run = made.built, f"night-{self.count}"
        tables = {"quarantine": self.maker.quarantine_table([], run), "changes": self.maker.changes_table([])}
        tables["items"] = made.items
        written = write_release(
            self.store,
            release_id=f"{run}-0123456789ab",
            files={name: (self.maker.table_bytes(table), ".parquet", table.num_rows) for name, table in tables.items()}
            | built.files(),
            segments=built.shared_files(),
            release_key="0123456789ab" + "0" * 52,
            run=run,
            attempt=1,
            parent=None if self.last is None else self.last.release_id,
            model_id=MODEL,
            model_kind="vae",
            latent_dim=self.maker.DIM,
            transform_id="cd" * 8,
            metric=built.index.metric.name,
            index_kind=built.kind,
            index_parameters=built.parameters,
            parts=tuple(parts),
            code_version="test",
        )
        head = read_head(self.store, "stable")
        publish(
            self.store,
            "stable",
            expected_head=0 if head is None else head.number,
            release_id=written.manifest.release_id,
            manifest_sha256=written.manifest_sha256,
            run=run,
            attempt=1,
        )
        self.last = read_manifest(self.store, written.manifest.release_id)
        return self.last

    def open(self) -> Release:
        return open_release(self.store.url, cache_dir=self.cache)


def nights(maker: Any, folder: Path, **index: Any) -> Nights:
    asked = {"segment_rows": ROWS, "metric": "l2", "queries": 40, "threads": 1, **index}
    return Nights(maker, open_store(str(folder / "store")), folder / "cache", IndexConfig(**asked))


def photos_of(maker: Any, items: int, *, seed: int, first: int = 0) -> list[Any]:
    """Photos of items sku-<first>, ..., with log_var and codes, some of them copies of others."""
    rng = np.random.default_rng(seed)
    made = []
    for photo in maker.some_photos(items, seed=seed, most=2):
        number = first + int(photo.item_id[4:])
        mean = made[-1].mean if made and rng.random() < 0.05 else photo.mean
        made.append(
            replace(
                photo,
                item_id=f"sku-{number:04d}",
                uri=f"s3://photos/{number}/{photo.view}.jpg",
                mean=mean,
                log_var=rng.normal(-1.0, 0.5, maker.DIM).astype(np.float32),
                codes=rng.integers(0, 8, 6),
            )
        )
    return made


def some_change(maker: Any, held: Nights, seed: int) -> None:
    """Add, change and remove a few photos, by a seed."""
    rng = np.random.default_rng(seed)
    living = sorted(held.where)
    gone = rng.choice(living, int(rng.integers(0, 15)), replace=False).tolist()
    changed = [uri for uri in rng.choice(living, 8, replace=False).tolist() if uri not in gone]
    again = [replace(held.where[uri][0], mean=rng.normal(size=maker.DIM).astype(np.float32)) for uri in changed]
    held.change([*again, *photos_of(maker, int(rng.integers(0, 25)), seed=seed, first=1000 * seed)], gone)


@pytest.mark.parametrize(
    "index",
    [{"metric": "cosine"}, {"metric": "kl", "mask": "query_median"}],
    ids=lambda index: "-".join(index.values()),
)
def test_random_nights_answer_as_a_full_build_of_an_exact_kind(maker: Any, tmp_path: Path, index: Any) -> None:
    held = nights(maker, tmp_path, **index)
    held.change(photos_of(maker, 60, seed=1))
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
        some_change(maker, held, seed)
    assert carried > 2
    assert merged > 0
    assert verify_release(held.store, manifest.release_id).problems == ()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_k_living_rows_and_never_a_dead_one(
    maker: Any, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planner, "_SCAN_ROWS", 0)  # else so few rows are scored one by one
    monkeypatch.setattr(planner, "_GRAPH_SHARE", 0.5)
    held = nights(maker, tmp_path, kind=kind, target_recall=0.9, ef_construction=40)
    held.change(photos_of(maker, 60, seed=1))
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
        some_change(maker, held, seed)
    assert manifest.index_parameters["segments_carried"]


def test_dead_rows_that_are_not_left_out_give_wrong_answers(maker: Any, tmp_path: Path) -> None:
    held = nights(maker, tmp_path)
    held.change(photos_of(maker, 60, seed=1))
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


def test_what_is_carried_over_is_the_same_file_and_half_empty_segments_are_written_anew(
    maker: Any, tmp_path: Path
) -> None:
    held = nights(maker, tmp_path)
    held.change(photos_of(maker, 60, seed=1))
    first = held.publish()
    held.change(photos_of(maker, 3, seed=2, first=5000))
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
    maker: Any, tmp_path: Path
) -> None:
    held = nights(maker, tmp_path, segment_rows=1000)
    held.change(photos_of(maker, 60, seed=1))
    manifest = held.publish()
    _, latents, _ = held.items()
    assert manifest.format == 1
    assert held.store.get(manifest.file("index").name) == build_index(latents, held.config).data
    assert set(manifest.index_parameters) == {"k", "queries", "add_block"}
    assert "segment_rows" not in IndexConfig().model_dump()
    assert not list(held.store.list("indexes/"))
    # Above the limit and back again.
    held.config = held.config.model_copy(update={"segment_rows": ROWS})
    assert held.index().built.segments
    held.config = held.config.model_copy(update={"segment_rows": len(latents)})
    assert not held.index().built.segments
    assert "index_segment" not in held.index().items.column_names


def test_a_broken_off_night_goes_on_with_the_segments_that_it_wrote(
    maker: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = nights(maker, tmp_path, kind="flat_codes", target_recall=0.9)
    held.change(photos_of(maker, 60, seed=1))
    first = held.index().built
    monkeypatch.setattr(segments, "_fill", lambda *_: pytest.fail("what is there is built again"))
    again = held.index().built
    assert again.segments == first.segments
    assert dict(again.told())["segments"].startswith(f"{len(first.segments)}, 0 of them carried over")


def test_another_space_carries_nothing_over(maker: Any, tmp_path: Path) -> None:
    held = nights(maker, tmp_path)
    held.change(photos_of(maker, 60, seed=1))
    held.publish()
    assert held.index().built.parameters["segments_carried"] > 0
    for change in ({"metric": "cosine"}, {"kind": "hnsw", "ef_construction": 40}, {"kind": "flat_codes"}):
        held.config = held.config.model_copy(update={"target_recall": 0.9, **change})
        assert held.index().built.parameters["segments_carried"] == 0


@pytest.mark.parametrize(
    "index", [{"metric": "codes"}, {"metric": "codes_hamming"}, {"metric": "kl", "mask": "catalogue_median"}]
)
def test_what_a_metric_was_fitted_to_stays_and_answers_follow_it(maker: Any, tmp_path: Path, index: Any) -> None:
    held = nights(maker, tmp_path, **index)
    held.change(photos_of(maker, 60, seed=1))
    first = held.publish()
    some_change(maker, held, 3)
    second = held.publish()
    assert second.metric == first.metric
    assert second.index_parameters.get("photos_with_code") == first.index_parameters.get("photos_with_code")
    assert second.index_parameters["segments_carried"]
    _, latents, _ = held.items()
    found = held.open().opened.index
    exact = found.metric.exact(latents.take(np.s_[:20]), latents)
    scores = found.search(latents.take(np.s_[:20]), K).scores
    np.testing.assert_allclose(scores, -np.sort(-exact, axis=1)[:, :K], atol=1e-5)


def test_trained_parts_are_fitted_once_and_again_only_when_recall_is_lost(
    maker: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = nights(maker, tmp_path, kind="ivf_sq8", target_recall=0.9, segment_rows=300)
    held.change(photos_of(maker, 260, seed=1))
    first = held.publish()
    assert first.index_parameters["fit"] == 1
    kept = [entry.name for entry in held.store.list(f"models/{MODEL}/index-")]
    assert len(kept) == 1
    some_change(maker, held, 2)
    second = held.publish()
    assert [entry.name for entry in held.store.list(f"models/{MODEL}/index-")] == kept
    assert second.index_parameters["space"] == first.index_parameters["space"]
    measured = nightly.meets
    lost = iter([False])
    monkeypatch.setattr(nightly, "meets", lambda *asked: next(lost, True) and measured(*asked))
    some_change(maker, held, 3)
    third = held.publish()
    assert third.index_parameters["fit"] == 2
    assert "fit 1 gave recall" in str(third.index_parameters["refitted"])
    assert third.index_parameters["segments_carried"] == 0
    monkeypatch.undo()
    some_change(maker, held, 4)
    assert held.publish().index_parameters["fit"] == 2


def test_auto_chooses_over_a_sample_and_keeps_the_parents_kind(maker: Any, tmp_path: Path) -> None:
    held = nights(maker, tmp_path, kind="auto", target_recall=0.8)
    held.change(photos_of(maker, 60, seed=1))
    first = held.publish()
    assert first.index_kind in KINDS
    assert first.index_kind != "hnsw"
    assert "sample of 25 rows" in str(first.index_parameters["chosen"])
    some_change(maker, held, 2)
    second = held.publish()
    assert second.index_kind == first.index_kind
    assert "parent's kind still gives" in str(second.index_parameters["chosen"])


def test_what_cannot_be_reached_is_refused_with_what_was_measured(maker: Any, tmp_path: Path) -> None:
    held = nights(maker, tmp_path, kind="ivf_sq8", latency_p99_ms=1e-6)
    held.change(photos_of(maker, 60, seed=1))
    with pytest.raises(ConfigError, match="latency_p99_ms 1e-06; measured:\n  ivf_sq8, candidates"):
        held.publish()
    held.config = held.config.model_copy(update={"memory_gib": 1e-6})
    with pytest.raises(ConfigError, match="memory_gib"):
        held.publish()
    bad = held.where[sorted(held.where)[0]][0]
    held.change([replace(bad, mean=np.full(maker.DIM, np.nan, np.float32))])
    with pytest.raises(InputError, match="NaN"):
        held.publish()


def test_damage_is_found_by_verify_and_by_the_reader(maker: Any, tmp_path: Path) -> None:
    held = nights(maker, tmp_path, kind="flat_codes", target_recall=0.9)
    held.change(photos_of(maker, 60, seed=1))
    first = held.publish()
    some_change(maker, held, 2)
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
    maker: Any, expiring: Any, tmp_path: Path
) -> None:
    store = expiring.ClockStore("memory://segments")
    held = nights(maker, tmp_path)
    held.store = store
    held.change(photos_of(maker, 60, seed=1))
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
    maker: Any, tmp_path: Path, old: str, new: str, words: str
) -> None:
    held = nights(maker, tmp_path)
    held.change(photos_of(maker, 60, seed=1))
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
def test_items_that_name_wrong_rows_are_refused(maker: Any, tmp_path: Path, change: Any, words: str) -> None:
    held = nights(maker, tmp_path)
    held.change(photos_of(maker, 60, seed=1))
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


def test_refresh_and_delisting(maker: Any, tmp_path: Path) -> None:
    held = nights(maker, tmp_path)
    held.change(photos_of(maker, 60, seed=1))
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
    some_change(maker, held, 3)
    held.publish()
    assert release.refresh()
    assert release.release_id == held.last.release_id  # type: ignore[union-attr]
    assert nearest not in [near.item_id for near in release.similar(item_id, k=50)]
