"""The quality table of a release on a store that is written by hand: what is sampled, measured, written and refused."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from html.parser import HTMLParser
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from jobs import evaluate
from jobs.command import Arguments, Outcome
from jobs.config import Config, load_config
from pipeline.encoding.decoding import _pixels_table
from pipeline.errors import ConfigError, GateRefused, InputError
from pipeline.evaluation.nuisance import DesignPhotos
from pipeline.evaluation.quality import Difference, FactorPhotos
from pipeline.evaluation.spaces import Space
from pipeline.evaluation.table import Against, TablePhotos, TableRow, against_baselines, leaders, table_row
from pipeline.images import ImagesConfig, decode
from pipeline.images.render import NUISANCES, render_products
from pipeline.models import build_model, save_bundle
from pipeline.parts import put_part
from pipeline.progress import Progress
from pipeline.quality import table as quality_table
from pipeline.quality.table import TableOptions, asked_table, named_bundles, write_quality
from pipeline.quality.table_page import table_text, verdicts
from pipeline.quality.table_sample import sample_photos
from pipeline.release import write_release
from pipeline.release.tables import write_table
from pipeline.schema import items_schema
from pipeline.storage import Store, open_store
from pipeline.training.split import held_out

SIZE = 16
ITEMS = 120
MODEL = ["model.kind=vae", "model.latent_dim=4", "model.channels=[4, 8]", f"images.size={SIZE}"]
CODES = [
    "model.kind=vqvae", "model.channels=[4, 8]", "model.quantizer.kind=ema", "model.quantizer.num_codes=32",
    f"images.size={SIZE}",
]  # fmt: skip


def config_of(store: str, *more: str, model: Sequence[str] = MODEL, category: bool = True) -> Config:
    named = ["catalogue.category=category"] if category else []
    overrides = (f"store={store}", "catalogue.source=/nowhere.csv", *named, *model, *more)
    return load_config(Arguments(overrides=overrides), {})


@pytest.fixture(scope="module")
def products() -> list[tuple[Any, np.ndarray]]:
    images = ImagesConfig(size=SIZE)
    return [(product, decode(photo, images)) for product, photo in render_products(ITEMS, seed=2, size=(48, 60))]


def bundle(store: Store, config: Config, *, size: int = SIZE, key: str = "k") -> str:
    model = build_model(config.model, image_size=size)
    images = config.images.model_copy(update={"size": size})
    return save_bundle(store, model, config.model, images, train_key=key, card={})


def write_items(store: Store, pixels: np.ndarray, columns: dict[str, Sequence[Any]], ids: Sequence[str]) -> pa.Table:
    """Write two parts of pixels and return the items table that names their rows."""
    half = len(pixels) // 2
    digests = columns.get("digest") or [f"{number:064x}" for number in range(len(pixels))]
    for number, rows in enumerate((slice(None, half), slice(half, None))):
        names = {name: list(ids[rows]) for name in ("item_id", "uri", "token")}
        table = _pixels_table(pa.table(names), list(digests[rows]), [pixels[rows].copy()], [None] * len(ids[rows]))
        put_part(store, f"pixels/t/{number}.parquet", table, "key")
    fields = [pa.field(name, pa.string()) for name in columns if name != "digest"]
    schema = items_schema(fields)
    given: dict[str, Any] = {
        "item_id": ids, "uri": ids, "view": [0] * len(ids), "token": ids, "digest": digests,
        "latents_part": ["latents/m/0.parquet"] * len(ids), "latents_row": list(range(len(ids))),
        "pixels_part": [f"pixels/t/{int(row >= half)}.parquet" for row in range(len(ids))],
        "pixels_row": [row - half * (row >= half) for row in range(len(ids))], **columns,
    }  # fmt: skip
    return pa.table([pa.array(given[field.name], field.type) for field in schema], schema=schema)


def release_of(store: Store, items: pa.Table, model_id: str) -> str:
    written = write_release(
        store, release_id="night-0123456789ab", files={"items": (write_table(items), ".parquet", items.num_rows)},
        release_key="0" * 64, run="night", attempt=1, parent=None, model_id=model_id, model_kind="vae", latent_dim=4,
        transform_id="t", metric="cosine", index_kind="flat", parts=(), code_version="0",
    )  # fmt: skip
    return written.manifest.release_id


@pytest.fixture(scope="module")
def night(
    no_onnx: None, tmp_path_factory: pytest.TempPathFactory, products: list[tuple[Any, np.ndarray]]
) -> SimpleNamespace:
    """A store with a release of 120 items and two bundles, and a third of larger photos."""
    url = str(tmp_path_factory.mktemp("store"))
    store, config = open_store(url), config_of(url)
    ids = [f"sku-{number:03}" for number in range(ITEMS)]
    columns = {"category": [product.category for product, _ in products], "colour": [p.colour for p, _ in products]}
    items = write_items(store, np.stack([photo for _, photo in products]), columns, ids)
    own, other = bundle(store, config, key="one"), bundle(store, config, key="two")
    larger = bundle(store, config, size=32, key="three")
    assert len({own, other, larger}) == 3
    return SimpleNamespace(
        url=url, store=store, config=config, items=items, own=own, other=other, larger=larger,
        release=release_of(store, items, own),
    )  # fmt: skip


@pytest.fixture(autouse=True)
def few_rendered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Render at a small size: only that they are passed on is looked at here."""
    factors = render_products(120, seed=9, size=(24, 30))

    def photos(images: ImagesConfig, *, count: int, seed: int) -> FactorPhotos:
        pairs = [(product, decode(photo, images)) for product, photo in factors] or kept
        kept[:] = pairs
        names = ("category", "colour", "pattern", "angle", "shade", "width")
        values = {name: [getattr(product, name) for product, _ in pairs] for name in names}
        designs = np.repeat(np.arange(10), 4)
        varied = {name: DesignPhotos(np.stack([photo for _, photo in pairs[:40]]), designs) for name in NUISANCES}
        return FactorPhotos(np.stack([photo for _, photo in pairs]), values, varied)

    kept: list[tuple[Any, np.ndarray]] = []
    monkeypatch.setattr(quality_table, "factor_photos", photos)


class Page(HTMLParser):
    """Collects a page's elements, words and table rows, and complains about tags that do not nest."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.feed(data.decode())
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in {"meta", "link", "br"}:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in {"td", "th"}:
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"td", "th"} & set(self.open) and data.strip():
            self.rows[-1][-1] += data.strip() + "|"


@pytest.mark.slow
def test_a_table_has_a_row_for_every_model_and_baseline(night: SimpleNamespace) -> None:
    options = TableOptions(beside=(night.other[:12], night.own))
    written = write_quality(
        night.store, night.config, run="night", release=night.release, options=options, note=Progress().note
    )
    document = json.loads(night.store.get("runs/night/quality.json"))
    assert document == json.loads(json.dumps(written.details["quality"]))
    rows = {row["name"]: row for row in document["rows"]}
    models = [f"vae {night.own[:8]}", f"vae {night.other[:8]}"]
    floors = ["raw pixels", "PCA-10", "PCA-64", "HOG + PCA-10", "HOG + PCA-64", "random weights"]
    assert [row["name"] for row in document["rows"] if row["name"] != "UMAP-10"] == [*models, *floors]
    assert [rows[name]["model_id"] for name in models] == [night.own, night.other]
    assert [row["baseline"] for row in document["rows"]][:2] == [False, False]
    assert rows["raw pixels"]["dims"] == SIZE * SIZE * 3
    for row in document["rows"]:
        for name in ("knn", "knn_weighted", "probe", "precision_at_10", "map_at_r", "ndcg_at_10", "rare_recall"):
            assert 0 <= row[f"{name}_low"] <= row[name] <= row[f"{name}_high"] <= 1, (row["name"], name)
        for name in NUISANCES:
            purity = [row[f"purity_{name}{end}"] for end in ("_low", "", "_high")]
            assert 0 <= purity[0] <= purity[1] <= purity[2] <= 1
            assert row[f"purity_{name}_chance"] == pytest.approx(3 / 39)
        for name in ("effective_rank", "unit_spread", "rare_ahead", "moved", "found", "factor_angle"):
            assert np.isfinite(row[name])
    assert rows["raw pixels"]["knn"] > 0.35
    assert document["photos"]["known"] + document["photos"]["asked"] == ITEMS
    asked = held_out(night.items["item_id"], 0.25, night.config.train.seed)
    assert document["photos"]["asked"] == asked.sum()
    against = document["against_best_baseline"]["knn"]
    best = max((row for row in document["rows"] if row["baseline"]), key=lambda row: row["knn"])
    assert against["baseline"] == best["name"]
    assert against["mean"] == pytest.approx(rows[models[0]]["knn"] - best["knn"])
    assert against["low"] <= against["mean"] <= against["high"]
    assert written.details["quality_page"] == "runs/night/quality.html"
    page = Page(night.store.get("runs/night/quality.html"))
    assert not [tag for tag, found in page.elements if tag in {"script", "img", "link"} or "src" in found]
    shown = [row for row in page.rows if row[0] == f"vae|{night.own[:8]}|"]
    assert len(shown) == 4
    knn = rows[models[0]]
    expected = f"{knn['knn'] * 100:.1f}|{knn['knn_low'] * 100:.1f} – {knn['knn_high'] * 100:.1f}|"
    assert shown[0][2] == expected
    view = [knn[f"purity_view{end}"] * 100 for end in ("", "_low", "_high")]
    assert shown[2][5] == f"{view[0]:.1f}|{view[1]:.1f} – {view[2]:.1f}|"
    assert "purity, view %" in written.text
    assert all(name in written.text for name in rows)


@pytest.mark.slow
def test_a_model_of_codes_has_a_row_of_its_words(night: SimpleNamespace) -> None:
    config = config_of(night.url, model=CODES)
    quantised = bundle(night.store, config, key="codes")
    options = TableOptions(beside=(quantised,), baselines=False)
    written = write_quality(
        night.store, night.config, run="words", release=night.release, options=options, note=Progress().note
    )
    rows = {row["name"]: row for row in written.details["quality"]["rows"]}
    name = f"vqvae {quantised[:8]}"
    assert list(rows) == [f"vae {night.own[:8]}", name, f"words of {name}"]
    assert rows[f"words of {name}"]["model_id"] == quantised
    assert 1 <= rows[f"words of {name}"]["dims"] <= 32


def test_without_categories_only_what_needs_none(night: SimpleNamespace) -> None:
    config = config_of(night.url, category=False)
    options = TableOptions(baselines=False)
    written = write_quality(
        night.store, config, run="plain", release=night.release, options=options, note=Progress().note
    )
    document = written.details["quality"]
    assert [row["name"] for row in document["rows"]] == [f"vae {night.own[:8]}"]
    assert "knn" not in document["rows"][0]
    assert "effective_rank" in document["rows"][0]
    assert document["ahead_of_all"] == document["against_best_baseline"] == {}
    assert any("catalogue.category is not set" in note for note in document["notes"])
    assert "k-NN" not in written.text


def test_groups_of_split_by_are_never_on_both_sides(night: SimpleNamespace) -> None:
    config = config_of(night.url, "train.split_by=colour")
    sampled = sample_photos(night.store, config, night.items, photos=100)
    assert len(sampled.pixels) == 100
    groups = np.asarray(sampled.groups)
    assert not set(groups[sampled.asked]) & set(groups[~sampled.asked])
    assert set(groups) <= set(night.items["colour"].to_pylist())
    # Negative control: by item colours lie on both sides.
    alone = sample_photos(night.store, night.config, night.items, photos=100)
    colours = dict(zip(night.items["item_id"].to_pylist(), night.items["colour"].to_pylist(), strict=True))
    mixed = np.asarray([colours[item] for item in alone.groups])
    assert set(mixed[alone.asked]) & set(mixed[~alone.asked])


def test_sampled_photos_are_those_of_their_items(
    night: SimpleNamespace, products: list[tuple[Any, np.ndarray]]
) -> None:
    sampled = sample_photos(night.store, night.config, night.items, photos=70)
    again = sample_photos(night.store, night.config, night.items, photos=70)
    assert sampled.groups == again.groups
    assert len(set(sampled.groups)) == 70
    for item, label, photo in zip(sampled.groups, sampled.labels or [], sampled.pixels, strict=True):
        product, pixels = products[int(item.removeprefix("sku-"))]
        assert label == product.category
        assert np.array_equal(photo, pixels)


def test_one_photo_an_item_and_equal_bytes_once(
    tmp_path_factory: pytest.TempPathFactory, products: list[tuple[Any, np.ndarray]]
) -> None:
    store = open_store(str(tmp_path_factory.mktemp("twice")))
    pixels = np.stack([photo for _, photo in products[:100]])
    ids = [f"sku-{number // 2:03}" for number in range(100)]  # two photos each
    digests = ["f" * 64 if number in (0, 40) else f"{number:064x}" for number in range(100)]
    labels = [None if number < 4 else "hat" if number % 4 < 2 else "bag" for number in range(100)]
    items = write_items(store, pixels, {"category": labels, "digest": digests}, ids)
    config = config_of(str(store.url))
    found = sample_photos(store, config, items, photos=100)
    assert "sku-000" not in found.groups, "no category"
    assert "sku-001" not in found.groups
    assert len(found.groups) == len(set(found.groups)) == 48
    assert np.array_equal(found.pixels[0], pixels[4]), "the first photo"
    plain = sample_photos(store, config_of(str(store.url), category=False), items, photos=100)
    assert "sku-000" in plain.groups
    assert "sku-020" not in plain.groups, "photo 40 has the bytes of photo 0"


def test_too_few_photos_are_refused(night: SimpleNamespace) -> None:
    gone = night.items.set_column(
        night.items.schema.get_field_index("pixels_part"),
        night.items.schema.field("pixels_part"),
        pa.array([None] * 100 + ["pixels/t/1.parquet"] * 20, night.items.schema.field("pixels_part").type),
    )
    with pytest.raises(InputError, match=r"20 items have a photo with kept pixels.*at least 40"):
        sample_photos(night.store, night.config, gone, photos=5000)
    with pytest.raises(ConfigError, match=r"train\.split_by is 'brand'.*it has: item_id, category, colour"):
        sample_photos(night.store, config_of(night.url, "train.split_by=brand"), night.items, photos=100)
    one = night.items.set_column(
        night.items.schema.get_field_index("colour"), "colour", pa.array(["red"] * ITEMS, pa.string())
    )
    with pytest.raises(InputError, match=r"1 groups of train\.split_by 'colour' cannot be divided"):
        sample_photos(night.store, config_of(night.url, "train.split_by=colour"), one, photos=100)


def test_models_that_cannot_stand_in_the_table_are_refused(night: SimpleNamespace) -> None:
    def ask(*words: str) -> list[str]:
        return [found.model_id for found in named_bundles(night.store, night.config, TableOptions(beside=words))]

    assert ask(night.other, night.other[:8], night.own) == [night.other, night.own]
    with pytest.raises(ConfigError, match=rf"--beside 0123456789: there is no such model.*{night.own[:12]}"):
        ask("0123456789")
    with pytest.raises(ConfigError, match="at least its first 8 of 64 digits"):
        ask(night.own[:5])
    assert ask(night.larger) == [night.larger], "of another size, which it is shown"


def asked(**given: Any) -> dict[str, Any]:
    return {"table": True, "beside": [], "photos": None, "without_baselines": False, **given}


def test_options_of_the_table() -> None:
    assert asked_table(**asked(table=False)) is None
    found = asked_table(**asked(beside=["a", "b"], photos=300, without_baselines=True))
    assert found == TableOptions(("a", "b"), 300, baselines=False)
    assert asked_table(**asked()) == TableOptions((), 5000, baselines=True)
    with pytest.raises(ConfigError, match="--beside, --photos without --table"):
        asked_table(**asked(table=False, beside=["a"], photos=9))
    with pytest.raises(ConfigError, match="--photos is 9; a quality table takes at least 40"):
        asked_table(**asked(photos=9))


def arguments(night: SimpleNamespace, **given: Any) -> Arguments:
    overrides = (f"store={night.url}", "catalogue.source=/nowhere.csv", "catalogue.category=category", *MODEL)
    options = argparse.Namespace(**asked(without_baselines=True, **given))
    return Arguments(run="night", overrides=overrides, options=options)


def test_a_refused_release_has_its_table_too(night: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Outcome:
        raise GateRefused("refused", release=night.release)

    monkeypatch.setattr(evaluate, "run_until", refuse)
    night.store.delete("runs/night/quality.json") if night.store.exists("runs/night/quality.json") else None
    with pytest.raises(GateRefused):
        evaluate.run(arguments(night))
    assert json.loads(night.store.get("runs/night/quality.json"))["release"] == night.release


def test_nothing_is_run_for_an_unknown_model(night: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "run_until", lambda *_: pytest.fail("the run was begun"))
    with pytest.raises(ConfigError, match="--beside ffffffffff: there is no such model"):
        evaluate.run(arguments(night, beside=["ffffffffff"]))


def test_the_answer_holds_the_run_and_the_table(night: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    done = Outcome(run="night", release=night.release, details={"counts": {"photos": 1}}, text="evaluated")
    monkeypatch.setattr(evaluate, "run_until", lambda *_: done)
    outcome = evaluate.run(arguments(night))
    assert outcome.details["counts"] == {"photos": 1}
    assert outcome.details["quality"]["model_id"] == night.own
    assert outcome.text.startswith("evaluated\n\nspace")


# --- rows, leaders, comparisons


def row(name: str, values: np.ndarray, *, trained: bool = False) -> TableRow:
    return TableRow(name, 3, trained, "m" if trained else None, {"knn": float(values.mean())}, {"knn": values})


def test_a_leader_is_ahead_of_all_by_more_than_chance() -> None:
    rng = np.random.default_rng(0)
    base = (rng.random(1000) < 0.7).astype(float)
    better, same = base.copy(), base.copy()
    better[:60] = 1
    same[5] = 1 - same[5]
    first, second, third = row("a", base, trained=True), row("b", better), row("c", same)
    assert leaders([first, second, third], seed=0) == {"knn": "b"}
    assert leaders([first, third], seed=0) == {}, "one photo of a thousand is no lead"
    assert leaders([first], seed=0) == {}
    found = against_baselines(first, [first, second, third], seed=0)
    assert found["knn"].baseline == "b"
    assert found["knn"].difference.high < 0
    assert verdicts(found)[0][2] == -1
    assert against_baselines(first, [first], seed=0) == {}


def test_verdicts_and_text_say_which_way() -> None:
    rows = [row("ours", np.array([1.0, 0.0]), trained=True), row("PCA-10", np.array([1.0, 1.0]))]
    against = {"knn": Against("PCA-10", Difference(0.05, 0.01, 0.09)), "probe": Against("PCA-10", Difference(0, -1, 1))}
    assert [(name, sign) for name, _, sign in verdicts(against)] == [("k-NN", 1), ("probe", 0)]
    text = table_text(rows, {"knn": "PCA-10"}, against)
    assert "ours, k-NN: ahead, +5.0 points (+1.0 to +9.0) against PCA-10" in text
    assert "100.0 *" in text
    assert "ours, probe: even" in text


def test_a_row_hands_known_and_asked_over_in_their_places() -> None:
    """An encoder that gives asked photos away: where it is right on them, known photos voted, not asked ones."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (80, 8, 8, 3), dtype=np.uint8)
    labels = [["bag", "hat"][number % 2] for number in range(80)]
    asked = np.zeros(80, np.bool_)
    asked[60:] = True
    seen: list[int] = []
    numbers = {photo.tobytes(): number for number, photo in enumerate(pixels)}

    def encode(given: np.ndarray) -> np.ndarray:
        seen.append(len(given))
        own = [numbers.get(photo.tobytes(), 0) for photo in given]
        # Known photos show their label, asked ones the other one.
        sign = [(1 if number % 2 else -1) * (-1 if number >= 60 else 1) for number in own]
        return np.stack([np.asarray(sign, float), rng.normal(0, 0.05, len(own))], axis=1)

    factors = FactorPhotos(pixels[:40], {"shade": rng.normal(size=40).tolist()}, {})
    photos = TablePhotos(pixels, asked, labels, [str(number) for number in range(80)], factors)
    assert np.array_equal(photos.known_pixels, pixels[:60])
    found = table_row(Space("odd", 2, encode), photos, seed=0, model_id="m")
    assert found.numbers["knn"] == found.numbers["probe"] == found.numbers["precision_at_10"] == 0
    assert found.values["knn"].shape == (20,)
    assert seen[:2] == [20, 60]
    assert found.trained
    with pytest.raises(InputError, match="no labels"):
        TablePhotos(pixels, asked, None, [""] * 80, factors).side(asked)
