"""The reader's way to a release: channels, hot swap, damage, unknown items, the cache."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from pipeline.errors import ConfigError, IntegrityError, NotFound, UnknownItem
from pipeline.index import IndexConfig, LatentArrays, build_index
from pipeline.reader import open_release
from pipeline.release import read_manifest, rollback
from pipeline.storage import Store, open_store

MODEL, DIM = "ab" * 32, 6  # as in release_maker.py


@pytest.fixture(autouse=True)
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


def test_unknown_items_are_told_apart(maker: Any, store: Store) -> None:
    photos = maker.some_photos(20)
    first = maker.make_release(store, photos, run="n1")
    second = maker.make_release(
        store, [p for p in photos if p.item_id != "sku-005"], run="n2", removed=["sku-005"], parent=first.release_id
    )
    refused = [("sku-bad", "s3://photos/bad.jpg", "decode", "truncated")]
    third = maker.make_release(
        store,
        [p for p in photos if p.item_id not in ("sku-005", "sku-006")],
        run="n3",
        refused=refused,
        removed=["sku-006"],
        parent=second.release_id,
    )
    release = open_release(store.url)
    with pytest.raises(UnknownItem, match=r"sku-bad.*quarantined.*bad\.jpg.*decode.*truncated"):
        release.similar("sku-bad")
    with pytest.raises(UnknownItem, match=rf"sku-006.*delisted.*{third.release_id}"):
        release.similar("sku-006")
    with pytest.raises(UnknownItem, match=rf"sku-005.*delisted.*{second.release_id} removed"):
        release.similar("sku-005")
    with pytest.raises(UnknownItem, match=r"nobody.*never seen"):
        release.attributes("nobody")
    with pytest.raises(KeyError):
        release.similar("nobody")


def test_an_expired_parent_does_not_hide_that_an_item_is_unknown(maker: Any, store: Store) -> None:
    maker.make_release(store, maker.some_photos(5), parent="gone-0123456789ab")
    with pytest.raises(UnknownItem, match="never seen"):
        open_release(store.url).similar("sku-777")


def test_a_release_by_its_id_is_pinned(maker: Any, store: Store) -> None:
    first = maker.make_release(store, maker.some_photos(10), run="n1")
    second = maker.make_release(store, maker.some_photos(12), run="n2")
    pinned, current = open_release(store.url, release_id=first.release_id), open_release(store.url)
    assert (pinned.release_id, current.release_id) == (first.release_id, second.release_id)
    assert (len(pinned), len(current)) == (10, 12)
    assert not pinned.refresh()
    assert pinned.release_id == first.release_id


def test_refresh_follows_the_channel_forwards_and_back(maker: Any, store: Store) -> None:
    first = maker.make_release(store, maker.some_photos(10), run="n1")
    release = open_release(store.url)
    assert not release.refresh()
    second = maker.make_release(store, maker.some_photos(12), run="n2")
    maker.make_release(store, maker.some_photos(14), run="n3", channel="canary")
    assert release.refresh()
    assert (release.release_id, len(release)) == (second.release_id, 12)
    rollback(store, "stable")
    assert release.refresh()
    assert (release.release_id, len(release)) == (first.release_id, 10)
    assert len(open_release(store.url, channel="canary")) == 14


def test_a_refresh_that_fails_keeps_the_open_release(maker: Any, store: Store) -> None:
    first = maker.make_release(store, maker.some_photos(10), run="n1")
    release = open_release(store.url, expect_model=MODEL)
    maker.make_release(store, maker.some_photos(12), run="n2", model_id="cd" * 32)
    with pytest.raises(IntegrityError, match=f"{'cd' * 32}.*{MODEL}"):
        release.refresh()
    assert release.release_id == first.release_id
    assert len(release.similar("sku-001", k=3)) == 3


def test_another_model_is_refused_by_name(maker: Any, store: Store) -> None:
    maker.make_release(store, maker.some_photos(10))
    assert open_release(store.url, expect_model=MODEL).model_id == MODEL
    with pytest.raises(IntegrityError, match=f"{MODEL}, expected {'ff' * 32}"):
        open_release(store.url, expect_model="ff" * 32)


def test_nothing_published_is_said_so(maker: Any, store: Store) -> None:
    with pytest.raises(NotFound, match=r"'stable'.*no release yet"):
        open_release(store.url)
    maker.make_release(store, maker.some_photos(3))
    with pytest.raises(NotFound, match="no release 'other'"):
        open_release(store.url, release_id="other")


@pytest.mark.slow
def test_queries_under_way_finish_on_the_release_they_began_on(maker: Any, store: Store) -> None:
    # Release A holds items a-*, release B items b-*: an answer that mixes them, or an error, would be a torn read.
    def only(letter: str) -> list[Any]:
        return [replace(p, item_id=letter + p.item_id, uri=letter + p.uri) for p in maker.some_photos(40)]

    maker.make_release(store, only("a"), run="na")
    maker.make_release(store, only("b"), run="nb")
    release = open_release(store.url)
    stop, answers, errors = threading.Event(), [0], []

    def ask() -> None:
        vector = np.random.default_rng(threading.get_ident() % 1000).normal(size=(3, DIM))
        while not stop.is_set():
            try:
                found = {near.item_id[0] for answer in release.search(vector, k=15) for near in answer}
                answers[0] += 1
                assert len(found) == 1, found
            except BaseException as error:  # noqa: BLE001 - a thread's failure must reach the test
                errors.append(error)
                return

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    seen = set()
    for _ in range(40):
        rollback(store, "stable", to="na-0123456789ab" if release.release_id.startswith("nb") else "nb-0123456789ab")
        assert release.refresh()
        seen.add(release.release_id)
    stop.set()
    for thread in threads:
        thread.join(timeout=200)
    assert not errors
    assert len(seen) == 2
    assert answers[0] > 40


@pytest.mark.parametrize("role", ["items", "index"])
@pytest.mark.parametrize("damage", ["flip", "cut", "longer", "gone"])
def test_a_damaged_file_is_refused(maker: Any, store: Store, tmp_path: Path, role: str, damage: str) -> None:
    made = maker.make_release(store, maker.some_photos(30))
    name = read_manifest(store, made.release_id).file(role).name
    path = tmp_path / "store" / name
    data = path.read_bytes()
    path.unlink()
    if damage != "gone":
        middle = len(data) // 2
        flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        path.write_bytes({"flip": flipped, "cut": data[:-5], "longer": data + b"x"}[damage])
    with pytest.raises(IntegrityError, match=role):
        open_release(store.url)


def test_a_damaged_manifest_is_refused(maker: Any, store: Store, tmp_path: Path) -> None:
    made = maker.make_release(store, maker.some_photos(30))
    path = tmp_path / "store" / "releases" / made.release_id / "manifest.json"
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data.replace(b'"attempt":1', b'"attempt":2'))
    with pytest.raises(IntegrityError, match="sha256"):
        open_release(store.url)


def test_a_damaged_part_is_refused_when_it_is_read(maker: Any, store: Store, tmp_path: Path) -> None:
    made = maker.make_release(store, maker.some_photos(30))
    name = read_manifest(store, made.release_id).parts[0].name
    path = tmp_path / "store" / name
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[:-1] + b"X")
    release = open_release(store.url)
    assert release.similar("sku-001"), "queries by item read no parts"
    with pytest.raises(IntegrityError, match="latents/"):
        release.latents(["sku-001"])


def refit(**changes: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda fields: {**fields, **changes}


def with_file(role: str, entry: Callable[[Any], Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda fields: {**fields, "files": {**fields["files"], role: entry(fields["files"][role])}}


def index_of(rows: int) -> bytes:
    return build_index(LatentArrays(mean=np.ones((rows, DIM), np.float32)), IndexConfig()).data


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (with_file("items", lambda file: (file[0], file[1], 3)), "rows"),
        (with_file("index", lambda file: (file[0], file[1], 3)), "rows"),
        (with_file("index", lambda file: (index_of(4), file[1], None)), "rows"),
        (refit(metric="l2"), "do not belong together"),
        (refit(latent_dim=DIM + 1), "features"),
    ],
    ids=["items rows", "index rows", "another index", "metric", "dimension"],
)
def test_files_that_do_not_fit_the_manifest_are_refused(maker: Any, store: Store, change: Any, text: str) -> None:
    maker.make_release(store, maker.some_photos(30), change=change)
    with pytest.raises(IntegrityError, match=text):
        open_release(store.url)


def renamed(name: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def change(document: dict[str, Any]) -> dict[str, Any]:
        document["files"]["index"]["name"] = name
        return document

    return change


def part_named(name: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def change(document: dict[str, Any]) -> dict[str, Any]:
        document["parts"][0]["name"] = name
        return document

    return change


def digested(digest: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def change(document: dict[str, Any]) -> dict[str, Any]:
        document["files"]["index"]["sha256"] = digest
        return document

    return change


OWN = "releases/night-0123456789ab"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        *[(digested(digest), "sha256") for digest in ("../../../etc/passwd", "A" * 64, "a" * 63, "a" * 64 + "\n", "")],
        *[
            (renamed(name), "inside their folder")
            for name in (
                "runs/night/config.yaml", f"{OWN}/../other/index.faiss", f"{OWN}/", f"{OWN}/a/b.faiss", "/etc/passwd",
                "releases/other-0123456789ab/index.faiss", f"{OWN}/a\\b", f"{OWN}/a\0b", f"{OWN}/..", "",
            )
        ],
        *[
            (part_named(name), "inside their folder")
            for name in (f"latents/{'cd' * 32}/a.parquet", f"latents/{MODEL}/../x.parquet", f"pixels/{MODEL}/a.parquet")
        ],
        (lambda document: {**document, "model_id": "../runs"}, "model_id"),
        (lambda document: {**document, "parent": "../../x"}, "parent"),
        (lambda document: {**document, "release_id": "night-0123456789ab/../x"}, "release_id"),
        (lambda document: {**document, "bundle_config": {"name": "models/x/config.json", "bytes": 1,
                                                         "sha256": "0" * 64, "rows": None}}, "config.json"),
    ],
)  # fmt: skip
def test_names_and_digests_of_a_manifest_lead_nowhere_else(
    maker: Any, store: Store, tmp_path: Path, change: Any, text: str
) -> None:
    made = maker.make_release(store, maker.some_photos(5))
    path = tmp_path / "store" / "releases" / made.release_id / "manifest.json"
    document = json.loads(path.read_bytes())
    path.unlink()
    path.write_bytes(json.dumps(document).encode())
    assert len(open_release(store.url, release_id=made.release_id)) == 5, "negative control: as it was"
    path.unlink()
    path.write_bytes(json.dumps(change(document)).encode())
    with pytest.raises(IntegrityError, match=text):
        open_release(store.url, release_id=made.release_id)


@pytest.mark.parametrize("wrong", ["../night", "night/../../x", "", "a b", "night-0123456789ab\n", "\0"])
def test_what_is_no_release_id_is_refused_by_name(maker: Any, store: Store, wrong: str) -> None:
    maker.make_release(store, maker.some_photos(5))
    with pytest.raises(ConfigError, match="is no release's id"):
        open_release(store.url, release_id=wrong)


@pytest.mark.parametrize("field", [{"manifest_sha256": "0"}, {"release_id": "../x"}])
def test_a_channels_entry_names_only_releases(maker: Any, store: Store, tmp_path: Path, field: dict[str, str]) -> None:
    maker.make_release(store, maker.some_photos(5))
    path = tmp_path / "store" / "channels" / "stable" / "000000000001.json"
    document = json.loads(path.read_bytes())
    path.unlink()
    path.write_bytes(json.dumps({**document, **field}).encode())
    with pytest.raises(IntegrityError, match=next(iter(field))):
        open_release(store.url)


def test_what_was_evicted_from_the_cache_under_a_reader_is_no_loss(maker: Any, store: Store, cache_home: Path) -> None:
    made = maker.make_release(store, maker.some_photos(40))
    release = open_release(store.url)
    before = release.similar("sku-001")
    for path in [path for path in cache_home.rglob("*") if path.is_file()]:
        path.unlink()
    for role in ("items", "index"):  # nor can they be fetched again
        store.delete(read_manifest(store, made.release_id).file(role).name)
    assert release.similar("sku-001") == before
    assert release.latents(["sku-003"])["item_id"][0].as_py() == "sku-003"


def test_a_cosine_index_whose_vectors_were_never_normalised_is_refused(maker: Any, store: Store) -> None:
    raw = LatentArrays(mean=np.stack([p.mean for p in maker.some_photos(30)]) * 3)
    data = build_index(raw, IndexConfig(metric="l2")).data

    wrong = faiss.IndexFlatIP(DIM)
    wrong.add(faiss.deserialize_index(np.frombuffer(data, np.uint8)).reconstruct_n(0, len(raw)))
    change = with_file("index", lambda _: (faiss.serialize_index(wrong).tobytes(), ".faiss", len(raw)))
    maker.make_release(store, maker.some_photos(30), change=change)
    with pytest.raises(IntegrityError, match="not those of 'cosine'"):
        open_release(store.url)


def test_the_cache_is_shared_and_read_instead_of_the_store(
    maker: Any, store: Store, tmp_path: Path, cache_home: Path
) -> None:
    made = maker.make_release(store, maker.some_photos(30))
    open_release(store.url)
    manifest = read_manifest(store, made.release_id)
    kept = sorted(path.name for path in cache_home.rglob("*") if path.is_file())
    assert kept == sorted(manifest.file(role).sha256 for role in ("items", "index"))
    for role in ("items", "index"):
        (tmp_path / "store" / manifest.file(role).name).unlink()
    assert open_release(store.url).similar("sku-001"), "no need of the store's copies"
    elsewhere = tmp_path / "elsewhere"
    with pytest.raises(IntegrityError, match="not on"):
        open_release(store.url, cache_dir=elsewhere)


def test_importing_the_reader_needs_neither_ray_nor_torch_nor_pillow() -> None:

    code = (
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in {'ray','torch','torchvision','PIL','onnx','onnxruntime','sklearn','faiss'}:\n"
        "            raise ImportError(f'{name} is blocked')\n"
        "sys.meta_path.insert(0, Block())\n"
        "import pipeline.reader\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
