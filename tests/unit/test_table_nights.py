"""Nights whose releases have further tables: what these hold, that no published ID moves, what a new model does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs.config import Config, config_values
from pipeline.errors import ConfigError
from pipeline.keys import digest_of
from pipeline.planning import release_config
from pipeline.reader import open_release
from pipeline.release import read_manifest, release_key, verify_release
from pipeline.storage import open_store
from pipeline.tables.codebook_files import codebooks_from
from pipeline.tables.exports import EXPORTS
from pipeline.tables.quantizer import encode

pytestmark = pytest.mark.slow

SIDS = "semantic_ids={levels: [4, 3]}"


class Shop:
    """A store and a catalogue of items with up to two photos each."""

    def __init__(self, folder: Path, commands: Any, small: list[str]) -> None:
        self.folder, self.commands, self._small = folder, commands, small
        for number in range(40):
            pixels = np.random.default_rng(number).integers(0, 256, (20, 20, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")

    @property
    def store(self) -> Any:
        return open_store(str(self.folder / "store"))

    def night(self, run: str, items: list[int], *words: str, expect: int = 0) -> dict[str, Any]:
        """Publish these items; the even ones have a second photo."""
        rows = "".join(f"item-{number:02d},{number}.png,{'ab'[number % 2]}\n" for number in items)
        rows += "".join(f"item-{number:02d},{number + 20}.png,a\n" for number in items if number % 2 == 0)
        (self.folder / "catalogue.csv").write_text("item_id,image,kind\n" + rows)
        where = [f"store={self.folder / 'store'}", f"catalogue.source={self.folder / 'catalogue.csv'}"]
        where += ["catalogue.category=kind", "catalogue.rows=photo"]
        found: dict[str, Any] = self.commands.run(
            "refresh",
            "--run",
            run,
            *where,
            "catalogue.category=kind",
            "catalogue.rows=photo",
            *self._small,
            *words,
            expect=expect,
        )
        return found

    def path(self, release: str, role: str) -> str:
        return str(self.folder / "store" / read_manifest(self.store, release).file(role).name)

    def slots(self, release: str) -> dict[str, tuple[int, ...]]:
        rows = pq.read_table(self.path(release, "semantic_ids")).to_pylist()
        return {row["item_id"]: (*row["codes"], row["suffix"]) for row in rows}


@pytest.fixture
def shop(tmp_path: Path, commands_here: Any, stages_here: Any, monkeypatch: pytest.MonkeyPatch) -> Shop:
    stages_here.run_stages_here(monkeypatch)
    return Shop(tmp_path, commands_here, stages_here.SMALL)


def test_ids_stay_with_their_items_from_night_to_night(shop: Shop) -> None:
    one = shop.night("one", list(range(16)), SIDS)
    two = shop.night("two", [*range(3, 16), 17, 18], SIDS)
    three = shop.night("three", [*range(1, 16), 17, 18, 19], SIDS)
    first, second, third = (shop.slots(made["release"]) for made in (one, two, three))
    for before, after in ((first, second), (second, third), (first, third)):
        assert all(after[item] == slot for item, slot in before.items() if item in after)
    owners: dict[tuple[int, ...], str] = {}
    for slots in (first, second, third):
        for item, slot in slots.items():
            assert owners.setdefault(slot, item) == item
    assert "sid_moves" not in one["measures"]
    assert two["measures"]["sid_moves"] == three["measures"]["sid_moves"] == 0.0
    retired = pq.read_table(shop.path(two["release"], "sid_retired")).to_pylist()
    assert {(row["item_id"], row["retired"]) for row in retired} == {(f"item-0{n}", "two") for n in range(3)}
    assert [row["item_id"] for row in pq.read_table(shop.path(three["release"], "sid_retired")).to_pylist()] == [
        "item-00"
    ]
    assert verify_release(shop.store, three["release"]).problems == ()
    facts = [read_manifest(shop.store, made["release"]).inputs["semantic_ids"] for made in (one, two, three)]
    assert facts[0] == facts[1] == facts[2]
    assert facts[0]["epoch"] == 1
    assert shop.night("four", [*range(1, 16), 17, 18, 19], SIDS)["reason"] == "nothing to do"


def test_the_tables_say_what_their_latents_do(shop: Shop) -> None:
    made = shop.night("one", list(range(16)), SIDS)
    release = made["release"]
    items, sids = (pq.read_table(shop.path(release, role)) for role in ("vectors", "semantic_ids"))
    assert items["item_id"].to_pylist() == [f"item-{number:02d}" for number in range(16)]
    vectors = np.array(items["vector"].to_pylist(), np.float32)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    books = codebooks_from(Path(shop.path(release, "sid_codebooks")).read_bytes(), "codebooks")
    codes = dict(zip(items["item_id"].to_pylist(), encode(vectors, books).tolist(), strict=True))
    rows = sids.to_pylist()
    assert [(row["codes"], row["suffix"]) for row in rows] == sorted((row["codes"], row["suffix"]) for row in rows)
    for row in rows:
        assert row["codes"] == row["nearest_codes"] == codes[row["item_id"]]
        assert row["offset_codes"] == [row["codes"][0], 4 + row["codes"][1]]
        assert row["token"] == f"<a_{row['codes'][0]}><b_{row['codes'][1]}><c_{row['suffix']}>"
        assert row["since"] == "one"
        vector = vectors[int(row["item_id"][-2:])]
        left = vector - books.levels[0][row["codes"][0]] - books.levels[1][row["codes"][1]]
        assert row["residual_norm"] == pytest.approx(float(np.linalg.norm(left)), abs=1e-6)
    back = pq.read_table(shop.path(release, "sid_items")).to_pylist()
    named = [(row["codes"], item) for row in back for item in row["item_ids"]]
    assert named == [(row["codes"], row["item_id"]) for row in rows]
    assert made["measures"]["sid_unique"] == len(back) / 16
    assert 0.5 <= made["measures"]["sid_purity_1"] <= 1
    page = Path(shop.path(release, "report")).read_text()
    assert f"epoch 1; {len(back) / 16:.3f} different IDs an item" in page
    assert "nearest items that share a prefix" in page
    query = f"""SELECT s.token, v.vector[1] FROM '{shop.path(release, "semantic_ids")}' s
                JOIN '{shop.path(release, "vectors")}' v USING (item_id) WHERE s.codes[1] = 0 ORDER BY s.codes"""
    assert len(duckdb.sql(query).fetchall()) == sum(row["codes"][0] == 0 for row in rows)


def test_a_reader_asks_by_item_and_by_prefix(shop: Shop, tmp_path: Path) -> None:
    made = shop.night("one", list(range(16)), SIDS)
    release = open_release(str(shop.folder / "store"), cache_dir=tmp_path / "cache")
    slots = shop.slots(made["release"])
    for item, slot in slots.items():
        sid = release.sid(item)
        assert ((*sid.codes, sid.suffix), sid.epoch) == (slot, 1)
    said = pq.read_table(shop.path(made["release"], "semantic_ids")).to_pylist()
    tokens = {row["item_id"]: row["token"] for row in said}
    assert {item: release.sid(item).token for item in slots} == tokens
    ordered = sorted(slots, key=lambda item: slots[item])
    assert release.items([]) == ordered
    for prefix in ([0], [3], [1, 2], (2, 0)):
        inside = [item for item in ordered if slots[item][: len(prefix)] == tuple(prefix)]
        assert release.items(prefix) == inside
        near = release.similar("item-03", k=16, where={"sid_prefix": prefix})
        assert {found.item_id for found in near} == set(inside) - {"item-03"}
        both = release.similar("item-03", k=16, where={"sid_prefix": prefix, "kind": "a"})
        assert [found.item_id for found in both] == [f.item_id for f in near if f.attributes["kind"] == "a"]
    assert release.sids().matrix().T.tolist() == [list(slots[item][:-1]) for item in sorted(slots)]
    assert release.sids().ordered().tolist() == [list(slots[item]) for item in ordered]
    words = json.loads(release.sids().words(release.item_ids()))
    assert {item: "".join(found) for item, found in words.items()} == tokens
    assert release.table("vectors")["item_id"].to_pylist() == sorted(slots)
    for prefix in ([4], [-1], [0, 0, 0], "01", [True], 3):
        with pytest.raises(ConfigError, match=r"no prefix of codes|is not one of 0 to"):
            release.items(prefix)
    shop.night("two", list(range(17)))
    release.refresh()
    with pytest.raises(ConfigError, match="has no table semantic_ids; whoever runs the refresh switches it on"):
        release.sid("item-00")


def test_exports_are_what_the_tables_hold(shop: Shop, tmp_path: Path) -> None:
    made = shop.night("one", list(range(16)), SIDS)
    store = f"store={shop.folder / 'store'}"
    files = {form: tmp_path / f"export.{form}" for form in EXPORTS}
    for form, path in files.items():
        said = shop.commands.run("export", str(path), "--to", form, store)
        assert said["bytes"] == path.stat().st_size
    slots = shop.slots(made["release"])
    ids = [json.loads(line) for line in files["item-ids"].read_text().splitlines()]
    assert ids == sorted(slots)
    vectors = np.load(files["vectors-npy"], allow_pickle=False)
    table = pq.read_table(shop.path(made["release"], "vectors"))
    assert vectors.tolist() == table["vector"].to_pylist()
    matrix = np.load(files["sids-npy"], allow_pickle=False)
    assert [tuple(column) for column in matrix.T.tolist()] == [slots[item][:-1] for item in ids]
    ordered = np.load(files["sids-sorted-npy"], allow_pickle=False)
    assert [tuple(row) for row in ordered.tolist()] == sorted(slots.values())
    words = json.loads(files["sids-json"].read_text())
    assert words["item-03"] == [f"<{level}_{code}>" for level, code in zip("abc", slots["item-03"], strict=True)]
    points = [json.loads(line) for line in files["qdrant-jsonl"].read_text().splitlines()]
    assert [point["payload"] for point in points][:2] == [
        {"item_id": "item-00", "kind": "a"}, {"item_id": "item-01", "kind": "b"}
    ]  # fmt: skip
    assert [point["vector"] for point in points] == vectors.tolist()
    again = shop.commands.run("export", str(files["sids-npy"]), "--to", "sids-npy", store, expect=2)
    assert "is there already; name another file" in again["error"]
    shop.night("two", list(range(17)))
    none = shop.commands.run("export", str(tmp_path / "x"), "--to", "vectors-npy", store, expect=2)
    assert "has no table vectors; whoever runs the refresh switches it on with tables.vectors" in none["error"]
    assert list(tmp_path.glob("x*")) == []


def test_neighbours_are_the_readers_answers(shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.tables.neighbours.FILE_ROWS", 20)  # five items a file
    monkeypatch.setattr("pipeline.tables.neighbours._ASKED", 3)
    made = shop.night("one", list(range(16)), "tables={neighbours: 4}")
    release = open_release(str(shop.folder / "store"), cache_dir=tmp_path / "cache")
    assert len(release.manifest.files_of("neighbours")) == 4
    assert verify_release(shop.store, made["release"]).problems == ()
    rows = release.table("neighbours").to_pylist()
    assert [(row["item_id"], row["rank"]) for row in rows] == [
        (f"item-{number:02d}", rank) for number in range(16) for rank in range(1, 5)
    ]
    for item in release.item_ids():
        mine = [(row["neighbour_id"], row["score"]) for row in rows if row["item_id"] == item]
        assert mine == [(near.item_id, near.score) for near in release.similar(item, k=4)]
    few = shop.night("two", [1, 2, 3], "tables={neighbours: 4}", "gates.max_removed=1")
    release.refresh()
    assert release.release_id == few["release"]
    assert release.table("neighbours").num_rows == 3 * 2


def test_another_model_begins_another_epoch_with_a_map(shop: Shop) -> None:
    one = shop.night("one", list(range(16)), SIDS)
    two = shop.night("two", list(range(17)), SIDS, "model.read_out={dims: 5}", "--retrain")
    manifest = read_manifest(shop.store, two["release"])
    assert manifest.inputs["semantic_ids"]["epoch"] == 2
    assert "sid_moves" not in two["measures"]
    rows = pq.read_table(shop.path(two["release"], "sid_map")).to_pylist()
    first, second = shop.slots(one["release"]), shop.slots(two["release"])
    for level, size in ((1, 4), (2, 3)):
        mapped = [row for row in rows if row["level"] == level]
        assert [row["old"] for row in mapped] == list(range(size))
        for row in mapped:
            both = [item for item in first if first[item][level - 1] == row["old"]]
            assert row["items"] == sum(second[item][level - 1] == row["new"] for item in both)
    assert pq.read_table(shop.path(two["release"], "sid_retired")).num_rows == 0
    three = shop.night("three", list(range(18)), SIDS, "model.read_out={dims: 5}")
    assert pq.read_table(shop.path(three["release"], "sid_map")).to_pylist() == rows
    assert three["measures"]["sid_moves"] == 0.0


def test_a_night_without_ids_between_two_changes_none(shop: Shop) -> None:
    one = shop.night("one", list(range(16)), SIDS)
    without = shop.night("two", list(range(17)))
    assert {"semantic_ids", "vectors"}.isdisjoint(read_manifest(shop.store, without["release"]).files)
    three = shop.night("three", list(range(18)), SIDS)
    first, third = shop.slots(one["release"]), shop.slots(three["release"])
    assert all(third[item] == slot for item, slot in first.items())
    vectors = shop.night("four", list(range(18)), "tables={vectors: true}")
    assert set(read_manifest(shop.store, vectors["release"]).files) >= {"vectors"}
    assert "semantic_ids" not in read_manifest(shop.store, vectors["release"]).files


def test_a_sample_fits_no_codebooks_for_the_catalogue(shop: Shop) -> None:
    shop.night("try", list(range(16)), SIDS, "--limit", "8", "--channel", "sample")
    made = shop.night("one", list(range(16)), SIDS)
    small, whole = sorted((shop.folder / "store" / "models").glob("*/sids-*.safetensors"))
    digests = {digest_of(path.read_bytes()) for path in (small, whole)}
    assert len(digests) == 2
    fact = read_manifest(shop.store, made["release"]).inputs["semantic_ids"]
    assert fact["codebooks"] in digests
    assert fact["epoch"] == 1


def test_more_codes_than_items_are_refused(shop: Shop) -> None:
    refused = shop.night("one", list(range(16)), "semantic_ids=true", expect=2)
    assert "semantic_ids.levels asks for 1,024 codes at level 1, and the items have only 16" in refused["error"]


def test_a_moved_id_keeps_the_release_from_the_channel(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.night("one", list(range(16)), SIDS)
    # The known wrong way: suffixes counted anew each night.
    monkeypatch.setattr("pipeline.tables.slots._kept", lambda item_ids, *_: np.full(len(item_ids), -1, np.int64))
    refused = shop.night("two", list(range(17)), SIDS, expect=4)
    assert "sid_moves: 16, limit 0" in refused["error"]


def test_a_config_without_them_is_what_it_was(tmp_path: Path) -> None:
    plain = {"store": {"url": str(tmp_path)}, "catalogue": {"source": "c.csv"}, "model": {"kind": "vae"}}
    config = Config.model_validate(plain)
    assert {"tables", "semantic_ids"}.isdisjoint(config_values(config))
    assert set(release_config(config)) == {"index", "gates", "encode"}
    asked = Config.model_validate({**plain, "semantic_ids": {"capacity": 5}, "tables": {"vectors": True}})
    assert config_values(asked)["semantic_ids"]["levels"] == [1024, 256, 256]
    assert json.dumps(release_config(asked)["tables"])
    base: dict[str, Any] = {
        "items_digest": "0" * 64, "model_id": "m", "index": {}, "evaluation": {}, "gates": {}, "parent": None
    }  # fmt: skip
    assert release_key(**base, tables={}) == release_key(**base)
    assert release_key(**base, tables={"vectors": True}) != release_key(**base)
