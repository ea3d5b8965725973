"""`codebooks init`: what it guesses from columns and folders, and that its file is a valid config."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from jobs.__main__ import main
from jobs.command import Arguments
from jobs.config import load_config
from pipeline.models import MODELS, ModelConfig
from pipeline.settings.model_choice import BEST, CHOICES, FASTEST, PRETRAINED, SEEDS, Choice

ROOT = Path(__file__).resolve().parents[2]
CATEGORIES = ["Shoes", "Shirts", "Hats"]


def table(rows: int = 30, **columns: Any) -> pa.Table:
    usual = {
        "sku": [f"sku-{row}" for row in range(rows)],
        "title": [f"A fine thing, number {row}" for row in range(rows)],
        "image_url": [f"photos/{row}.jpg" for row in range(rows)],
        "product_type": [CATEGORIES[row % 3] for row in range(rows)],
        "price": [float(row) for row in range(rows)],
    }
    return pa.table({**usual, **columns})


def write(tmp_path: Path, rows: pa.Table, kind: str = "parquet") -> Path:
    path = tmp_path / f"catalogue.{kind}"
    if kind == "parquet":
        pq.write_table(rows, path)
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows.to_pylist()))
    else:
        delimiter = ";" if kind == "csv" else "\t"
        lines = [rows.column_names, *([str(value) for value in row.values()] for row in rows.to_pylist())]
        path.write_text("".join(delimiter.join(f'"{cell}"' for cell in line) + "\n" for line in lines))
    return path


def init(tmp_path: Path, source: Path, *words: str) -> Any:
    """Run init and return the config that its file means."""
    output = tmp_path / "codebooks.yaml"
    assert main(["init", str(source), "--output", str(output), *words]) == 0
    return load_config(Arguments(config=str(output)), {})


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_columns_are_guessed_in_every_format(tmp_path: Path, kind: str) -> None:
    source = write(tmp_path, table(), kind)
    config = init(tmp_path, source, "--store", "s3://shop/visual")
    catalogue = config.catalogue
    assert (catalogue.item_id, catalogue.image, catalogue.category) == ("sku", "image_url", "product_type")
    assert (catalogue.rows, catalogue.format, catalogue.source) == ("item", kind, str(source))
    assert (config.store.url, config.model.kind) == ("s3://shop/visual", "descriptor")


def test_a_packed_csv(tmp_path: Path) -> None:
    plain = write(tmp_path, table(), "csv")
    packed = tmp_path / "catalogue.csv.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    assert init(tmp_path, packed).catalogue.item_id == "sku"


@pytest.mark.parametrize(
    ("columns", "item_id", "image", "category", "rows"),
    [
        ({"sku": [f"s{row // 2}" for row in range(30)]}, "sku", "image_url", "product_type", "photo"),
        ({"image_url": [b"\xff\xd8"] * 30}, "sku", "image_url", "product_type", "item"),
        ({"image_url": [{"bytes": b"\xff\xd8", "path": "x"}] * 30}, "sku", "image_url", "product_type", "item"),
        ({"image_url": [["a.jpg", "b.png"]] * 30}, "sku", "image_url", "product_type", "item"),
        ({"sku": list(range(30))}, "sku", "image_url", "product_type", "item"),
        ({"sku": [None] * 30, "key": list(range(30))}, "key", "image_url", "product_type", "item"),
        ({"product_type": [f"all different {row}" for row in range(30)]}, "sku", "image_url", None, "item"),
        ({"image": [f"p/{row}.webp" for row in range(30)]}, "sku", "image", "product_type", "item"),
        ({"label": [row % 4 for row in range(30)], "product_type": [None] * 30}, "sku", "image_url", "label", "item"),
    ],
)
def test_guesses(
    tmp_path: Path, columns: dict[str, Any], item_id: str, image: str, category: str | None, rows: str
) -> None:
    catalogue = init(tmp_path, write(tmp_path, table(**columns))).catalogue
    assert (catalogue.item_id, catalogue.image, catalogue.category) == (item_id, image, category)
    assert catalogue.rows == rows


def test_a_key_of_another_name_is_the_first_unique_column(tmp_path: Path) -> None:
    rows = table().rename_columns(["nummer", "titel", "bild", "sorte", "preis"])
    catalogue = init(tmp_path, write(tmp_path, rows)).catalogue
    assert (catalogue.item_id, catalogue.image, catalogue.category) == ("nummer", "bild", "sorte")


def test_https_photos_get_their_prefixes(tmp_path: Path) -> None:
    urls = [f"https://cdn{row % 2}.shop.example/p/{row}.jpg?v=3" for row in range(30)]
    catalogue = init(tmp_path, write(tmp_path, table(image_url=urls))).catalogue
    assert catalogue.allowed_prefixes == ("https://cdn0.shop.example/", "https://cdn1.shop.example/")


def test_photos_elsewhere_get_their_bucket_or_folder(tmp_path: Path) -> None:
    places = ("s3://other/p/{}.jpg", "{}.jpg", "/photos-of-others/{}.jpg", "//CDN.shop.example/{}.jpg")
    rows = [places[row % 4].format(row) for row in range(30)]
    catalogue = init(tmp_path, write(tmp_path, table(image_url=rows))).catalogue
    assert catalogue.allowed_prefixes == ("/photos-of-others/", "https://cdn.shop.example/", "s3://other/")


def test_options_override_the_guess(tmp_path: Path) -> None:
    source = write(tmp_path, table(other=[f"o{row}" for row in range(30)]))
    catalogue = init(tmp_path, source, "--item-id", "other", "--category", "title").catalogue
    assert (catalogue.item_id, catalogue.category) == ("other", "title")


def test_a_folder_of_photos(tmp_path: Path) -> None:
    for category in CATEGORIES:
        (tmp_path / "photos" / category).mkdir(parents=True)
        (tmp_path / "photos" / category / f"{category}-1.jpg").write_bytes(b"\xff\xd8")
    config = init(tmp_path, tmp_path / "photos")
    assert (config.catalogue.format, config.catalogue.item_id, config.catalogue.category) == (
        "folder",
        "name",
        "category",
    )


def test_the_file_explains_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    init(tmp_path, write(tmp_path, table()), "--json")
    text = (tmp_path / "codebooks.yaml").read_text()
    assert "# Columns: sku (string), title (string), image_url (string), product_type (string), price (double)" in text
    assert "item_id: sku  # the key of an item, for example sku-0" in text
    assert text.count("#") > 10
    taken = capsys.readouterr()
    found = json.loads(taken.out)
    assert (found["reason"], found["config"]) == ("written", str(tmp_path / "codebooks.yaml"))
    assert found["guess"]["image"] == "image_url"
    assert f"codebooks plan --config {tmp_path / 'codebooks.yaml'}" in taken.err


def test_odd_column_names_are_quoted(tmp_path: Path) -> None:
    rows = table().rename_columns(["item: id", "title", "image #1", "yes", "price"])
    catalogue = init(tmp_path, write(tmp_path, rows)).catalogue
    assert (catalogue.item_id, catalogue.image, catalogue.category) == ("item: id", "image #1", "yes")


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path, table())
    output = tmp_path / "codebooks.yaml"
    output.write_text("mine")
    assert main(["init", str(source), "--output", str(output)]) == 2
    assert output.read_text() == "mine"
    assert "is not overwritten" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rows", "words", "code", "problem"),
    [
        (table(image_url=["no photo"] * 30), [], 3, "looks like photos"),
        (table(sku=[1.5] * 30, title=[None] * 30, product_type=["x"] * 30), [], 3, "looks like a key"),
        (table(), ["--image", "imge"], 3, "no column 'imge'; columns: sku (string)"),
        (table(0), [], 3, "has no rows"),
        (table(), ["train.epochs=3"], 2, "unrecognized arguments"),
    ],
)
def test_what_cannot_be_guessed_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: pa.Table, words: list[str], code: int, problem: str
) -> None:
    source = write(tmp_path, rows)
    assert main(["init", str(source), "--output", str(tmp_path / "c.yaml"), *words]) == code
    assert problem in capsys.readouterr().err
    assert not (tmp_path / "c.yaml").exists()


def test_a_source_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", str(tmp_path / "none.parquet"), "--output", str(tmp_path / "c.yaml")]) == 3
    assert "is not there" in capsys.readouterr().err


def test_the_model_that_was_measured_best_is_proposed_and_the_others_stand_beside_it(tmp_path: Path) -> None:
    config = init(tmp_path, write(tmp_path, table()))
    assert config.model == chosen(BEST)
    assert not config.train.when_is_set, "written down it would let every night train anew unasked"
    text = (tmp_path / "codebooks.yaml").read_text()
    for choice in (FASTEST, SEEDS, PRETRAINED):
        other = text.replace(f"model: {BEST.model}", "#").replace(f"# model: {choice.model}", f"model: {choice.model}")
        path = tmp_path / f"{choice.preset}.yaml"
        path.write_text(other)
        assert load_config(Arguments(config=str(path)), {}).model == chosen(choice)


def chosen(choice: Choice) -> ModelConfig:
    values = yaml.safe_load(choice.model)
    return MODELS[values["kind"]][0].model_validate(values)


@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: choice.preset)
def test_what_is_said_of_a_model_is_what_was_measured(choice: Choice) -> None:
    results = json.loads((ROOT / "tests" / "benchmarks" / "results" / "quality.json").read_text())["runs"]
    runs = [run for run in results if run["preset"] == choice.preset]
    assert len(runs) == 3
    assert round(100 * float(np.mean([run["knn"] for run in runs])), 1) == choice.knn
    assert round(float(np.mean([run["fit_cpu_s"] for run in runs]))) == choice.fit_s
    assert abs(float(np.mean([run["encode_images_per_cpu_s"] for run in runs])) - choice.photos_per_s) <= 5
    measured = load_config(Arguments(config=choice.preset, overrides=("store=/x", "catalogue.source=/x/c.csv")), {})
    assert measured.model == chosen(choice), "the preset is what was measured"
    best = max(results, key=lambda run: run["knn"] if run["catalogue"] == "clothing" else 0)
    assert best["preset"] in (BEST.preset, "fusion_clothing"), "a fusion begins with two finished models"


def test_what_is_said_of_a_pretrained_network_is_what_was_measured() -> None:
    results = json.loads((ROOT / "tests" / "benchmarks" / "results" / "folds.json").read_text())["runs"]
    (run,) = [run for run in results if run["name"] == "Lite0 head 3x3 of the central square"]
    assert round(100 * run["old_knn"], 1) == PRETRAINED.knn, "of the same 279 photos as the others"
    assert round(run["photos_per_cpu_s"]) == PRETRAINED.photos_per_s
    given = ("store=/x", "catalogue.source=/x/c.csv", "model.weights=FILE")
    measured = load_config(Arguments(config=PRETRAINED.preset, overrides=given), {})
    assert measured.model == chosen(PRETRAINED)
