"""`codebooks explain` and the terms of a score: held to the metrics' definitions, written out here once more."""

from __future__ import annotations

import base64
import copy
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs.__main__ import main
from pipeline.index import LatentArrays
from pipeline.index.gaussians import below_median
from pipeline.index.metrics import METRICS, fitted_metric, metric_named
from pipeline.index.terms import latent_terms
from pipeline.schema import pixels_schema
from pipeline.storage import Store, open_store

DIM = 6


def some_latents(seed: int, rows: int) -> LatentArrays:
    rng = np.random.default_rng(seed)
    made = [rng.normal(size=(rows, DIM)).astype(np.float32) for _ in range(2)]
    return LatentArrays(mean=made[0], log_var=made[1])


def from_the_definition(name: str, left: LatentArrays, right: LatentArrays) -> np.ndarray:
    """Return each latent's term, float64 [d], from the formula of the metric."""
    assert left.log_var is not None
    assert right.log_var is not None
    m, n = left.mean[0].astype(float), right.mean[0].astype(float)
    s, t = np.exp(0.5 * left.log_var[0].astype(float)), np.exp(0.5 * right.log_var[0].astype(float))

    def kl(m: Any, s: Any, n: Any, t: Any) -> np.ndarray:
        return np.asarray(np.log(t / s) + (s**2 + (m - n) ** 2) / (2 * t**2) - 0.5)

    squares = {"l2": (m - n) ** 2, "w2": (m - n) ** 2 + (s - t) ** 2}
    if name in squares:
        return np.asarray(-squares[name] / np.sqrt(squares[name].sum()))
    if name == "cosine":
        return np.asarray(m * n / np.linalg.norm(m) / np.linalg.norm(n))
    return -{"kl": kl(m, s, n, t), "reverse_kl": kl(n, t, m, s), "jeffreys": kl(m, s, n, t) + kl(n, t, m, s)}[name]


@pytest.mark.parametrize("name", ["l2", "cosine", "kl", "reverse_kl", "jeffreys", "w2"])
def test_terms_are_the_definitions_and_sum_to_the_score(name: str) -> None:
    items = some_latents(1, 5)
    for number in range(5):
        query, item = some_latents(2 + number, 1), items.take([number])
        terms = latent_terms(METRICS[name], query, item)
        assert terms is not None
        np.testing.assert_allclose(terms, from_the_definition(name, query, item), rtol=1e-9, atol=1e-12)
        score = METRICS[name].exact(query, item)[0, 0]
        np.testing.assert_allclose(terms.sum(), score, rtol=1e-12)
        assert name in ("l2", "w2", "cosine", "jeffreys") or not np.isclose(
            score, METRICS[name].exact(item, query)[0, 0]
        )


@pytest.mark.parametrize("name", ["l2", "cosine", "kl", "w2"])
def test_terms_under_a_mask_leave_out_what_it_leaves_out(name: str) -> None:
    items, query = some_latents(1, 40), some_latents(9, 1)
    assert query.log_var is not None
    fixed = metric_named(fitted_metric(name, "catalogue_median", items).name)
    asked = [fixed] if name == "cosine" else [fixed, fitted_metric(name, "query_median", items)]
    for metric in asked:
        terms = latent_terms(metric, query, items.take([3]))
        assert terms is not None
        np.testing.assert_allclose(terms.sum(), metric.exact(query, items.take([3]))[0, 0], rtol=1e-12)
        assert np.count_nonzero(terms) == DIM // 2
        if metric.name.endswith("query_median"):
            assert np.array_equal(terms != 0, below_median(query.log_var.astype(float))[0])


def test_terms_at_no_distance_and_of_no_direction_are_zero() -> None:
    query = some_latents(1, 1)
    for name in ("l2", "w2", "kl"):
        terms = latent_terms(METRICS[name], query, query)
        assert terms is not None
        assert not terms.any()
    nothing = LatentArrays(mean=np.zeros((1, DIM), np.float32))
    terms = latent_terms(METRICS["cosine"], query, nothing)
    assert terms is not None
    assert not terms.any()


class TwoNights:
    """A release, and one after it in which an item is gone, one has moved far away and one is new and nearest."""

    ASKED, NEW, FAR, REMOVED = "sku-000", "sku-new", "sku-005", "sku-003"

    def __init__(self, maker: Any, store: Store) -> None:
        self.maker, self.store = maker, store
        photos = maker.some_photos(9, seed=11)
        refused = [(self.ASKED, "s3://photos/0/torn.jpg", "decode", "truncated"), ("sku-bad", "u", "decode", "empty")]
        self.before = maker.make_release(store, photos, run="mon", release_id="mon-0123456789ab", refused=refused)
        own = next(photo for photo in photos if photo.item_id == self.ASKED)
        later = [
            maker.Photo(each.item_id, each.uri, each.view, each.mean + 90 * (each.item_id == self.FAR))
            for each in photos
            if each.item_id != self.REMOVED
        ]
        later.append(maker.Photo(self.NEW, "s3://photos/new.jpg", 0, own.mean + np.float32(0.01)))
        self.after = maker.make_release(
            store, later, run="tue", release_id="tue-0123456789ab", parent="mon-0123456789ab",
            removed=[self.REMOVED], refused=[("sku-bad", "u", "decode", "empty")],
        )  # fmt: skip


@pytest.fixture(scope="module")
def kept_nights(maker: Any, tmp_path_factory: pytest.TempPathFactory) -> TwoNights:
    return TwoNights(maker, open_store(str(tmp_path_factory.mktemp("nights") / "store")))


@pytest.fixture
def nights(kept_nights: TwoNights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TwoNights:
    """The two nights on a store of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shutil.copytree(kept_nights.store.url, tmp_path / "store")
    own = copy.copy(kept_nights)
    own.store = open_store(str(tmp_path / "store"))
    return own


def told(capsys: pytest.CaptureFixture[str], words: list[str]) -> tuple[int, dict[str, Any], str]:
    code = main([*words, "--json"])
    taken = capsys.readouterr()
    return code, json.loads(taken.out), taken.err


def test_neighbours_of_two_nights_side_by_side(nights: TwoNights, capsys: pytest.CaptureFixture[str]) -> None:
    code, found, text = told(capsys, ["explain", "sku-000", "-k", "8", f"store={nights.store.url}"])
    assert (code, found["release"], found["against"]) == (0, "tue-0123456789ab", "mon-0123456789ab")
    sides = {"now": nights.after, "before": nights.before}
    metric = found["metric"]
    for side, made in sides.items():
        near = [line[side] for line in found["neighbours"] if line[side]]
        near.sort(key=lambda one: one["rank"])
        expected = nights.maker.brute_force(made, metric, made.means("sku-000"), 8, left_out=["sku-000"])
        assert [one["item_id"] for one in near] == [item_id for item_id, _ in expected]
        np.testing.assert_allclose([one["score"] for one in near], [score for _, score in expected], atol=1e-6)
        for one in near:
            pairs = nights.maker.pair_scores(metric, made.means("sku-000"), made.means(one["item_id"]))
            left, right = np.unravel_index(pairs.argmax(), pairs.shape)
            assert (one["photo"]["view"], one["other"]["view"]) == (left, right)
            assert one["photo"]["token"] == f"etag:s3://photos/0/{left}.jpg"
            total = sum(term["term"] for term in one["latents"]) + one["rest"]
            np.testing.assert_allclose(total, one["score"], rtol=1e-9)
            assert [abs(term["term"]) for term in one["latents"]] == sorted(
                (abs(term["term"]) for term in one["latents"]), reverse=True
            )
    status = {line["item_id"]: (line["status"], line["why"]) for line in found["neighbours"]}
    assert status["sku-new"] == ("new", "mon-0123456789ab does not hold it")
    assert status["sku-003"] == ("gone", "tue-0123456789ab does not hold it")
    assert all(why == "" for kind, why in status.values() if kind == "kept")
    assert [(row["release"], row["reason"]) for row in found["refused"]] == [("mon-0123456789ab", "truncated")]
    assert "mon-0123456789ab: s3://photos/0/torn.jpg: decode, truncated (a sentence)" in text


def test_one_that_is_crowded_out_is_told_from_one_that_is_gone(
    nights: TwoNights, capsys: pytest.CaptureFixture[str]
) -> None:
    made = nights.before
    (nearest, _), *_ = nights.maker.brute_force(made, "cosine", made.means("sku-000"), 1, left_out=["sku-000"])
    _, found, _ = told(capsys, ["explain", "sku-000", "-k", "1", f"store={nights.store.url}"])
    assert nearest != "sku-003"
    assert [(line["item_id"], line["status"]) for line in found["neighbours"]] == [
        ("sku-new", "new"),
        (nearest, "gone"),
    ]
    assert found["neighbours"][1]["why"] == "it is here, further away"


def test_an_unknown_item_is_told_why(nights: TwoNights, capsys: pytest.CaptureFixture[str]) -> None:
    for item_id, why in (
        ("sku-bad", "is quarantined in release tue"),
        ("sku-003", "is delisted: release tue-0123456789ab removed it"),
        ("sku-xyz", "was never seen"),
    ):
        code, found, _ = told(capsys, ["explain", item_id, f"store={nights.store.url}"])
        assert code == 3
        assert why in found["error"]
    assert main(["delist", "sku-001", "--reason", "recalled", f"store={nights.store.url}"]) == 0
    capsys.readouterr()
    code, found, _ = told(capsys, ["explain", "sku-001", f"store={nights.store.url}"])
    assert code == 3
    assert "recalled" in found["error"]


def test_without_a_release_to_compare_with_it_says_so(nights: TwoNights, capsys: pytest.CaptureFixture[str]) -> None:
    place = f"store={nights.store.url}"
    code, found, _ = told(capsys, ["explain", "sku-000", "--release", "mon-0123456789ab", place])
    assert (code, found["against"]) == (0, None)
    assert "has no parent" in found["note"]
    code, found, _ = told(capsys, ["explain", "sku-new", place])
    assert code == 0
    assert "'sku-new' was never seen by release mon" in found["note"]
    assert {line["why"] for line in found["neighbours"]} == {""}
    code, found, _ = told(capsys, ["explain", "sku-000", "--against", "wed-0123456789ab", place])
    assert code == 3
    assert "wed-0123456789ab" in found["error"]
    nights.store.delete("releases/mon-0123456789ab/manifest.json")
    code, found, _ = told(capsys, ["explain", "sku-000", place])
    assert code == 0
    assert "its parent mon-0123456789ab has expired" in found["note"]
    code, found, _ = told(capsys, ["explain", "sku-000", "-k", "0", place])
    assert code == 2
    assert "k is 0" in found["error"]


def test_the_page_shows_what_the_answer_says(
    nights: TwoNights, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place, page = f"store={nights.store.url}", tmp_path / "item.html"
    code, found, _ = told(capsys, ["explain", "sku-000", "--to", str(page), place])
    text = page.read_text()
    assert (code, found["file"]) == (0, str(page))
    assert text.count('<tr><th scope="row">') == len(found["neighbours"]) + len(found["refused"])
    assert "Neighbours, tonight and in mon-0123456789ab" in text
    assert "<script" not in text
    code, found, _ = told(capsys, ["explain", "sku-000", "--to", str(page), place])
    assert code == 2
    assert "is there already" in found["error"]
    code, found, _ = told(capsys, ["explain", "sku-000", "--to", str(tmp_path / "item.pdf"), place])
    assert code == 2
    assert ".html" in found["error"]


def test_kept_pixels_and_semantic_ids_are_shown(
    maker: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    store, photos = open_store(str(tmp_path / "store")), maker.some_photos(3, most=1)
    ids = [photo.item_id for photo in photos]
    seen = np.random.default_rng(0).integers(0, 255, (3, 8, 8, 3), np.uint8)
    schema = pixels_schema(8)
    held = {name: pa.array(ids) for name in ("item_id", "uri", "token")} | {
        "pixels": pa.array([row.tobytes() for row in seen], schema.field("pixels").type)
    }
    rows = [held.get(field.name, pa.nulls(3, field.type)) for field in schema]
    store.put("pixels/t/0.parquet", maker.table_bytes(pa.table(rows, schema=schema)))

    def kept(fields: dict[str, Any]) -> dict[str, Any]:
        items = pq.read_table(io.BytesIO(fields["files"]["items"][0]))
        # Of the last photo none are kept.
        for name, values in (("pixels_part", ["pixels/t/0.parquet"] * 2 + [None]), ("pixels_row", [2, 0, None])):
            place = items.schema.get_field_index(name)
            items = items.set_column(place, items.schema.field(name), pa.array(values, items.schema.field(name).type))
        codes = pa.array([[4, 1], [4, 2], [5, 0]], pa.list_(pa.uint16(), 2))
        sids = pa.table({"item_id": ids, "codes": codes, "suffix": pa.array([0, 0, 3], pa.int32())})
        files = {
            "items": (maker.table_bytes(items), ".parquet", 3),
            "semantic_ids": (maker.table_bytes(sids), ".parquet", 3),
        }
        facts = {"semantic_ids": {"epoch": 7, "codebooks": "0" * 64, "levels": [8, 8]}}
        return {**fields, "files": {**fields["files"], **files}, "inputs": facts}

    maker.make_release(store, photos, change=kept)
    page = tmp_path / "item.html"
    code, found, text = told(capsys, ["explain", "sku-000", f"store={store.url}", "--to", str(page)])
    assert code == 0
    assert (found["sid"]["token"], found["sid"]["epoch"]) == ("<a_4><b_1><c_0>", 7)
    assert "pixels in row 2 of pixels/t/0.parquet" in text
    pictures = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page.read_text())
    # Itself above, then beside each of its two neighbours, of which one is kept.
    assert len(pictures) == 4
    shown = [np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))).astype(int) for data in pictures]
    near = {int(np.abs(seen.astype(int) - one).mean(axis=(1, 2, 3)).argmin()) for one in shown}
    assert near == {2, 0}
    assert int(np.abs(seen.astype(int) - shown[0]).mean(axis=(1, 2, 3)).argmin()) == 2
