"""The whole way, as a scheduler runs it: real commands, real Ray, a folder and a real S3 server process."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.images.render import render_catalogue
from pipeline.reader import open_release
from pipeline.release import read_head, read_manifest, verify_release
from pipeline.release.tables import read_table
from pipeline.storage import open_store

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SMALL = [
    "catalogue.category=category", "model.kind=vae", "model.latent_dim=8", "images.size=32", "train.epochs=1",
    "train.batch_size=32", "encode.actors=1", "encode.shard_rows=40",
]  # fmt: skip


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("catalogue")
    render_catalogue(folder, items=80, seed=3)
    return folder


@pytest.fixture(scope="module")
def local(commands: Any, rendered: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """A store on disk after its first refresh, and what that printed."""
    store = str(tmp_path_factory.mktemp("store"))
    return store, commands.run("refresh", *night(store, rendered, "night-1"))


def night(store: str, rendered: Path, run: str) -> list[str]:
    """Return the words of a refresh of the rendered catalogue after the command's name."""
    return ["--run", run, f"store={store}", f"catalogue.source={rendered / 'catalogue.csv'}", *SMALL]


@pytest.fixture
def trained(local: tuple[str, dict[str, Any]], tmp_path: Path) -> Path:
    """A new store that holds nothing but the bundle of `local`, so that no night has to train again."""
    shutil.copytree(Path(local[0]) / "models", tmp_path / "trained" / "models")
    return tmp_path / "trained"


def wait_for(process: Any, store: Path, pattern: str) -> None:
    """Return as soon as a file is there that a running command writes."""
    deadline = time.monotonic() + 300
    while not list(store.glob(pattern)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_first_refresh_publishes_and_loses_no_photo(local: tuple[str, dict[str, Any]], rendered: Path) -> None:
    store_url, result = local
    assert result["published"]
    assert result["run"] == "night-1"
    assert result["reason"] == "published"
    with (rendered / "catalogue.csv").open() as handle:
        wanted = sum(
            len(json.loads(row["image"])) if row["image"].startswith("[") else 1 for row in csv.DictReader(handle)
        )
    assert result["counts"]["photos"] + result["counts"]["refused"] == wanted
    assert result["counts"]["refused"] > 0, "the rendered catalogue has broken files"
    store = open_store(store_url)
    manifest = read_manifest(store, result["release"])
    verify_release(store, manifest.release_id).require()
    assert len(manifest.bundle_files()) == 2
    quarantine = read_table(store, manifest, "quarantine").to_pylist()
    assert all(row["stage"] and row["reason"] and row["detail"] for row in quarantine)
    page = store.get(manifest.file("report").name).decode()
    assert "<html" in page
    assert str(Path.cwd()) not in page
    for name in ("category_precision_at_10", "category_map_at_r", "category_ndcg_at_10", "category_probe"):
        low, value, high = (manifest.measures[f"{name}{end}"] for end in ("_low", "", "_high"))
        assert 0 <= low <= value <= high <= 1
    assert "MAP@R" in page


def test_neighbours_are_those_of_a_plain_computation(local: tuple[str, dict[str, Any]]) -> None:
    store_url, result = local
    release = open_release(store_url)
    table = release.latents(release.item_ids())
    first = table["item_id"][0].as_py()
    vectors = np.stack(table["mean"].to_numpy(zero_copy_only=False)).astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    owners = np.asarray(table["item_id"].to_pylist())
    scores = (vectors @ vectors[owners == first].T).max(axis=1)
    best = {owner: scores[owners == owner].max() for owner in set(owners.tolist()) - {first}}
    expected = sorted(best, key=lambda owner: (-best[owner], owner))[:5]
    found = release.similar(first, k=5)
    assert [near.item_id for near in found] == expected
    assert np.allclose([near.score for near in found], [best[owner] for owner in expected], atol=1e-6)
    assert result["measures"]["recall"] == 1.0


def readme_code(language: str) -> str:
    """Return the code of the releases' README about reading one without our code."""
    text = (Path(__file__).parents[2] / "pipeline" / "release" / "README.md").read_text()
    section = text[text.index("## Without our code") :]
    return section.split(f"```{language}\n", 1)[1].split("```", 1)[0]


def test_the_readmes_sql_joins_items_with_latents(
    local: tuple[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    store_url, result = local
    store = open_store(store_url)
    manifest = read_manifest(store, result["release"])
    monkeypatch.chdir(store_url)
    query = readme_code("sql").replace("RELEASE", manifest.release_id).replace("MODEL", manifest.model_id)
    joined = duckdb.sql(query.rstrip().rstrip(";")).fetchall()
    items = read_table(store, manifest, "items")
    assert sorted(row[0] for row in joined) == sorted(items["item_id"].to_pylist())
    vectors = {tuple(row[2]) for row in joined}
    expected = open_release(store_url).latents(sorted(set(items["item_id"].to_pylist())))["mean"].to_pylist()
    assert vectors == {tuple(vector) for vector in expected}


def test_the_readmes_code_finds_an_item_nearest_to_itself(
    local: tuple[str, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    store_url, _ = local
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo-store").symlink_to(store_url)
    exec(compile(readme_code("python"), "pipeline/release/README.md", "exec"), {})
    first = open_release(store_url).item_ids()[0]
    assert capsys.readouterr().out.startswith(f"{first} ['{first}', ")


def test_again_with_nothing_changed_ends_without_ray(
    local: tuple[str, dict[str, Any]], rendered: Path, commands: Any
) -> None:
    store_url, first = local
    again = commands.run("refresh", *night(store_url, rendered, "night-2"))
    assert (again["published"], again["reason"], again["release"]) == (False, "nothing to do", first["release"])
    assert set(again["seconds"]) == {"plan"}
    head = read_head(open_store(store_url), "stable")
    assert head is not None
    assert head.number == 1


def test_the_same_name_again_does_nothing_and_with_another_config_is_refused(
    local: tuple[str, dict[str, Any]], rendered: Path, commands: Any
) -> None:
    store_url, first = local
    words = night(store_url, rendered, "night-1")
    same = commands.run("refresh", *words)
    assert (same["published"], same["release"]) == (True, first["release"])
    other = commands.run("refresh", *words, "index.kind=hnsw", expect=2)
    assert "index.kind: the run has 'auto', now 'hnsw'" in other["error"]


def test_a_gate_keeps_yesterday_live(local: tuple[str, dict[str, Any]], rendered: Path, commands: Any) -> None:
    store_url, _ = local
    store = open_store(store_url)
    before = read_head(store, "stable")
    words = night(store_url, rendered, "strict")
    result = commands.run("refresh", *words, "gates.max_quarantine=0.001", expect=4)
    assert "quarantine" in result["error"]
    assert not result["published"]
    assert read_manifest(store, result["release"]).run == "strict", "written, and named to the scheduler"
    assert read_head(store, "stable") == before


def upload(store_url: str, folder: Path) -> None:
    store = open_store(store_url)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            store.put(str(path.relative_to(folder)), path.read_bytes())


@pytest.mark.s3
def test_on_s3_only_what_changed_is_fetched_and_the_rest_is_carried_over(
    s3_server: Any, commands: Any, stages_here: Any, rendered: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first night as a scheduler runs it: a process with a Ray of its own, whose workers meet the server too."""
    bucket = s3_server.make_bucket("refresh-delta")
    upload(f"{bucket}/shop", rendered)
    upload(f"{bucket}/visual", trained)
    store_url, catalogue = f"{bucket}/visual", f"{bucket}/shop/catalogue.csv"

    def words(run: str) -> list[str]:
        return ["refresh", "--run", run, f"store={store_url}", f"catalogue.source={catalogue}", *SMALL]

    first = commands.finish(commands.start_alone(*words("night-1")))
    stages_here.run_stages_here(monkeypatch)
    shop = open_store(f"{bucket}/shop")
    rows = list(csv.DictReader(io.StringIO(shop.get("catalogue.csv").decode())))
    store = open_store(store_url)
    before = read_table(store, read_manifest(store, first["release"]), "items").to_pylist()
    usable = sorted({row["item_id"] for row in before})
    changed, removed = usable[3], usable[10]
    photo = next(row["uri"] for row in before if row["item_id"] == changed).removeprefix(f"{bucket}/shop/")
    other = next(row["uri"] for row in before if row["item_id"] == usable[20]).removeprefix(f"{bucket}/shop/")
    shop.put(photo, shop.get(other))
    shop.put("photos/new.jpg", shop.get(other))
    kept = [row for row in rows if row["item_id"] != removed]
    kept.append({**kept[0], "item_id": "zz-new", "image": "photos/new.jpg"})
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(kept)
    shop.put("catalogue.csv", text.getvalue().encode())

    s3_server.reset_counts()
    second = commands.run(*words("night-2"))
    photos = sorted(path for _, path in s3_server.count_gets() if "/shop/photos/" in path)
    assert photos == sorted([f"/refresh-delta/shop/{photo}", "/refresh-delta/shop/photos/new.jpg"])
    counts = second["plan"]["counts"]
    removed_photos = sum(row["item_id"] == removed for row in before)
    assert (counts["added"], counts["changed"], counts["removed"]) == (1, 1, removed_photos)

    manifest = read_manifest(store, second["release"])
    after = {(row["item_id"], row["uri"]): row for row in read_table(store, manifest, "items").to_pylist()}
    for row in before:
        if row["item_id"] not in (changed, removed):
            assert after[row["item_id"], row["uri"]] == row, "an untouched row names the same part and row"
    assert removed not in {item for item, _ in after}
    assert ("zz-new", f"{bucket}/shop/photos/new.jpg") in after
    release = open_release(store_url)
    assert removed not in {near.item_id for near in release.similar("zz-new", k=200)}
    changes = {(r["item_id"], r["change"]) for r in read_table(store, manifest, "changes").to_pylist()}
    assert {("zz-new", "added"), (changed, "changed"), (removed, "removed")} == changes

    s3_server.reset_counts()
    third = commands.run(*words("night-3"))
    assert third["reason"] == "nothing to do"
    assert not [path for _, path in s3_server.count_gets() if "/shop/photos/" in path]


def test_two_refreshes_at_once_one_publishes_the_other_says_who_won(
    rendered: Path, trained: Path, commands: Any
) -> None:
    runs = {name: commands.start("refresh", *night(str(trained), rendered, name)) for name in ("one", "two")}
    codes = {}
    outputs = {}
    for name, process in runs.items():
        out, _ = process.communicate(timeout=500)
        codes[name], outputs[name] = process.returncode, json.loads(out)
    assert sorted(codes.values()) == [0, 5], outputs
    winner = next(name for name, code in codes.items() if code == 0)
    loser = next(name for name, code in codes.items() if code == 5)
    assert f"'{winner}'" in outputs[loser]["error"]
    head = read_head(open_store(str(trained)), "stable")
    assert head is not None
    assert (head.number, head.run) == (1, winner)


def test_a_run_stopped_before_publishing_and_woken_later_does_not_publish(
    rendered: Path, trained: Path, commands: Any
) -> None:
    sleeper = commands.start("refresh", *night(str(trained), rendered, "sleeper"))
    wait_for(sleeper, trained, "latents/*/*.parquet")
    os.kill(sleeper.pid, signal.SIGSTOP)
    other = commands.run("refresh", *night(str(trained), rendered, "other"))
    assert other["published"]
    os.kill(sleeper.pid, signal.SIGCONT)
    late = commands.finish(sleeper, expect=5)
    assert "'other'" in late["error"]
    head = read_head(open_store(str(trained)), "stable")
    assert head is not None
    assert (head.number, head.release_id) == (1, other["release"])


def test_sigterm_ends_with_6_and_the_same_command_goes_on(rendered: Path, trained: Path, commands: Any) -> None:
    words = night(str(trained), rendered, "night")
    process = commands.start("refresh", *words)
    wait_for(process, trained, "pixels/*/*.parquet")
    process.send_signal(signal.SIGTERM)
    stopped = time.monotonic()
    result = commands.finish(process, expect=6)
    assert time.monotonic() - stopped < 100
    assert not result["published"]
    again = commands.run("refresh", *words)
    assert again["published"]


def test_parquet_files_of_a_release_are_open_formats(local: tuple[str, dict[str, Any]]) -> None:
    store_url, result = local
    manifest = json.loads((Path(store_url) / "releases" / result["release"] / "manifest.json").read_text())
    for part in manifest["parts"]:
        assert pq.read_metadata(Path(store_url) / part["name"]).num_rows == part["rows"]
