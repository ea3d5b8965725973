"""Manifests: what is written, in what order, by whom first, and what a reader refuses."""

from __future__ import annotations

import copy
import hashlib
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from pipeline.errors import InputError, IntegrityError, NotFound, Unavailable
from pipeline.parts import PartFile, latents_part_name, write_part
from pipeline.release import (
    FileEntry,
    ReleaseFile,
    check_store,
    claim_store,
    manifest_name,
    read_manifest,
    release_id,
    release_key,
    verify_release,
    write_release,
)
from pipeline.schema import items_schema, latents_schema
from pipeline.storage import Store, open_store

MODEL = "m" * 8


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


def latents_part(store: Store, number: int, rows: int = 2) -> PartFile:
    """Write a small latents part by hand."""
    schema = latents_schema(3, log_var=False)
    keys = [f"sku-{number}-{row}" for row in range(rows)]
    table = pa.table(
        {
            "item_id": keys,
            "uri": keys,
            "token": keys,
            "digest": ["0" * 64] * rows,
            "pixels_row": pa.array(range(rows), pa.int32()),
            "mean": pa.array([[float(number), float(row), 0.0] for row in range(rows)], pa.list_(pa.float32(), 3)),
        },
        schema=schema,
    )
    key = hashlib.sha256(f"part {number}".encode()).hexdigest()
    return write_part(store, latents_part_name(MODEL, key), table, key)


def items_file(parts: list[PartFile]) -> ReleaseFile:
    rows = [(part.name, row) for part in parts for row in range(part.rows)]
    keys = [f"{name[-20:]}-{row}" for name, row in rows]
    table = pa.table(
        {
            "item_id": keys,
            "uri": keys,
            "view": pa.array([0] * len(rows), pa.int32()),
            "token": keys,
            "digest": ["0" * 64] * len(rows),
            "latents_part": [name for name, _ in rows],
            "latents_row": pa.array([row for _, row in rows], pa.int32()),
            "pixels_part": pa.nulls(len(rows), pa.string()),
            "pixels_row": pa.nulls(len(rows), pa.int32()),
        },
        schema=items_schema([]),
    )
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return ReleaseFile(sink.getvalue(), ".parquet", len(rows))


def fields(**changes: Any) -> dict[str, Any]:
    usual: dict[str, Any] = {
        "release_key": "ab" * 32,
        "run": "night",
        "attempt": 1,
        "parent": None,
        "model_id": MODEL,
        "model_kind": "vae",
        "latent_dim": 3,
        "transform_id": "t" * 16,
        "metric": "cosine",
        "index_kind": "hnsw",
        "index_parameters": {"ef_search": 64, "exact": False},
        "counts": {"photos": 4},
        "measures": {"recall": 0.99},
        "code_version": "0.1.0",
    }
    return {**usual, **changes}


def small_release(store: Store, name: str = "night-abc") -> Any:
    parts = [latents_part(store, number) for number in range(2)]
    files = {"items": items_file(parts), "index": (b"faiss bytes", ".faiss", 4)}
    return write_release(store, release_id=name, files=files, parts=tuple(parts), **fields())


def on_disk(store: Store) -> list[str]:
    root = Path(store.url.removeprefix("file://"))
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def test_files_carry_their_digest_and_the_manifest_lists_them(store: Store) -> None:
    manifest, digest = small_release(store)
    root = Path(store.url.removeprefix("file://"))
    data = (root / "releases/night-abc/manifest.json").read_bytes()
    assert hashlib.sha256(data).hexdigest() == digest
    assert json.dumps(json.loads(data), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode() == data
    index = hashlib.sha256(b"faiss bytes").hexdigest()
    assert manifest.file("index").name == f"releases/night-abc/index-{index[:12]}.faiss"
    assert json.loads(data)["files"]["index"] == {
        "name": f"releases/night-abc/index-{index[:12]}.faiss",
        "bytes": 11,
        "sha256": index,
        "rows": 4,
    }
    assert json.loads((root / "store.json").read_text()) == {"format": 1}
    assert read_manifest(store, "night-abc", expect_sha256=digest) == manifest


def test_the_first_manifest_of_a_release_wins(store: Store) -> None:
    first, first_digest = small_release(store)
    parts = [latents_part(store, number) for number in range(2)]
    second, second_digest = write_release(
        store,
        release_id="night-abc",
        files={"items": items_file(parts), "index": (b"other faiss bytes", ".faiss", 4)},
        parts=tuple(parts),
        **fields(attempt=2),
    )
    assert (second, second_digest) == (first, first_digest)
    assert read_manifest(store, "night-abc").attempt == 1
    assert len([name for name in on_disk(store) if "index-" in name]) == 1  # nothing was written beside it


def with_put(store: Store, put_if_absent: Any) -> Store:
    """Return the store with another put_if_absent."""
    changed = copy.copy(store)
    changed.put_if_absent = put_if_absent  # type: ignore[method-assign]
    return changed


def test_the_manifest_is_written_last(store: Store) -> None:
    written: list[str] = []

    def record(name: str, data: bytes) -> bool:
        written.append(name)
        return store.put_if_absent(name, data)

    small_release(with_put(store, record))
    own = [name for name in written if name.startswith("releases/")]
    assert own[-1] == "releases/night-abc/manifest.json"
    assert [name.rpartition("/")[2].split("-")[0] for name in own[:-1]] == ["index", "items"]


def test_a_rival_that_is_quicker_by_a_moment_wins(store: Store, tmp_path: Path) -> None:
    other = open_store(str(tmp_path / "other"))
    theirs, _ = small_release(other)
    rival = theirs.model_copy(update={"attempt": 7}).to_bytes()

    def late(name: str, data: bytes) -> bool:
        if name.endswith("manifest.json"):
            assert store.put_if_absent(name, rival)
        return store.put_if_absent(name, data)

    manifest, digest = small_release(with_put(store, late))
    assert manifest.attempt == 7
    assert digest == hashlib.sha256(rival).hexdigest()


def test_a_lost_reply_is_healed_by_the_retry(store: Store) -> None:
    def no_reply(name: str, data: bytes) -> bool:
        store.put_if_absent(name, data)
        raise Unavailable(f"no reply for {name}; try again")

    def lost(name: str, data: bytes) -> bool:
        return no_reply(name, data) if name.endswith("manifest.json") else store.put_if_absent(name, data)

    with pytest.raises(Unavailable):
        small_release(with_put(store, lost))
    first = (Path(store.url.removeprefix("file://")) / "releases/night-abc/manifest.json").read_bytes()
    manifest, digest = small_release(store)
    assert manifest.to_bytes() == first
    assert digest == hashlib.sha256(first).hexdigest()


def test_a_part_that_expired_stops_the_release(store: Store) -> None:
    parts = [latents_part(store, number) for number in range(2)]
    store.delete(parts[1].name)
    with pytest.raises(IntegrityError, match=r"1 of 3 files are no longer") as caught:
        write_release(store, release_id="r", files={"items": items_file(parts)}, parts=tuple(parts), **fields())
    assert parts[1].name in str(caught.value)
    assert not store.exists(manifest_name("r"))


def test_a_part_of_another_size_stops_the_release(store: Store) -> None:
    part = latents_part(store, 0)
    wrong = part.model_copy(update={"bytes": part.bytes + 1})
    with pytest.raises(IntegrityError, match="bytes, expected"):
        write_release(store, release_id="r", files={"items": items_file([part])}, parts=(wrong,), **fields())


def bundle(store: Store) -> dict[str, FileEntry]:
    """Write a bundle's files by hand and return the manifest's fields for them."""
    found = {}
    for field, file in (("encoder", "encoder.onnx"), ("bundle_config", "config.json")):
        name, data = f"models/{MODEL}/{file}", f"bytes of {file}".encode()
        store.put_if_absent(name, data)
        found[field] = FileEntry(name=name, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    return found


def with_bundle(store: Store, **changes: Any) -> Any:
    part = latents_part(store, 0)
    files = {"items": items_file([part])}
    return write_release(store, release_id="b", files=files, parts=(part,), **fields(**changes))


def test_the_bundles_files_are_listed_and_verified(store: Store) -> None:
    entries = bundle(store)
    manifest, _ = with_bundle(store, **entries)
    assert read_manifest(store, "b").bundle_files() == [entries["encoder"], entries["bundle_config"]]
    check = verify_release(store, "b")
    assert (check.files, check.parts, check.problems) == (3, 1, ())
    name = entries["encoder"].name
    store.put(name, store.get(name)[:-1] + b"?")
    assert [problem.split(" has ")[0] for problem in verify_release(store, "b").problems] == [name]
    store.delete(name)
    assert verify_release(store, "b").problems == (f"{name} is missing",)
    assert manifest.encoder == entries["encoder"]


@pytest.mark.parametrize("field", ["encoder", "bundle_config"])
def test_a_bundle_that_is_not_whole_stops_the_release(store: Store, field: str) -> None:
    entries = bundle(store)
    name = entries[field].name
    store.put(name, store.get(name) + b"?")
    with pytest.raises(IntegrityError, match=f"{name} has .* bytes, expected"):
        with_bundle(store, **entries)
    store.delete(name)
    with pytest.raises(IntegrityError, match=f"1 of 4 files are no longer on .*{name}"):
        with_bundle(store, **entries)
    assert not store.exists(manifest_name("b"))


def test_a_manifest_from_before_bundles_were_listed_still_reads(store: Store) -> None:
    small_release(store)
    name = manifest_name("night-abc")
    document = json.loads(store.get(name))
    assert (document.pop("encoder"), document.pop("bundle_config")) == (None, None)
    store.put(name, json.dumps(document).encode())
    assert read_manifest(store, "night-abc").bundle_files() == []
    assert verify_release(store, "night-abc").problems == ()


@pytest.mark.parametrize("changes", [{"colour": "red"}, {"measures": {"recall": float("nan")}}, {"attempt": 0}])
def test_unknown_and_impossible_fields_are_refused(store: Store, changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        write_release(store, release_id="r", files={}, parts=(), **fields(**changes))
    assert not store.exists(manifest_name("r"))


def test_a_changed_manifest_is_an_error(store: Store) -> None:
    _, digest = small_release(store)
    name = manifest_name("night-abc")
    store.put(name, store.get(name).replace(b'"attempt":1', b'"attempt":2'))
    assert read_manifest(store, "night-abc").attempt == 2
    with pytest.raises(IntegrityError, match="changed after it was published"):
        read_manifest(store, "night-abc", expect_sha256=digest)


def test_a_renamed_release_is_an_error(store: Store) -> None:
    small_release(store)
    store.put(manifest_name("copied-abc"), store.get(manifest_name("night-abc")))
    with pytest.raises(IntegrityError, match="must not be moved"):
        read_manifest(store, "copied-abc")


def test_a_missing_release_says_so(store: Store) -> None:
    with pytest.raises(NotFound, match="no release 'nope'"):
        read_manifest(store, "nope")


@pytest.mark.parametrize(
    ("data", "error", "text"),
    [
        (b"{", IntegrityError, "not JSON"),
        (b"[]", IntegrityError, "expected an object"),
        (b"{}", IntegrityError, "format None"),
        (b'{"format": true}', IntegrityError, "format True"),
        (b'{"format": 5, "something": "new"}', InputError, "upgrade visual-codebooks"),
        (b'{"format": 1}', IntegrityError, "not a manifest of format 1"),
    ],
)
def test_what_is_no_manifest_is_refused(store: Store, data: bytes, error: type[Exception], text: str) -> None:
    store.put(manifest_name("r"), data)
    with pytest.raises(error, match=text):
        read_manifest(store, "r")


def test_a_newer_store_is_refused_by_writers_and_readers(store: Store) -> None:
    assert not check_store(store)
    store.put("store.json", b'{"format": 2}')
    for use in (check_store, claim_store):
        with pytest.raises(InputError, match=r"format 2.*formats up to 1"):
            use(store)
    with pytest.raises(InputError):
        small_release(store)
    assert not any(name.startswith("releases/") for name in on_disk(store))


def test_the_first_writer_claims_the_store_once(store: Store) -> None:
    claim_store(store)
    claim_store(store)
    assert check_store(store)
    assert store.get("store.json") == b'{"format": 1}'


def test_release_key_depends_on_what_is_in_it() -> None:
    base: dict[str, Any] = {
        "items_digest": "i",
        "model_id": "m",
        "index": {"m": 32, "target_recall": 0.98},
        "evaluation": {},
        "gates": {"min_recall": 0.95},
        "parent": None,
    }
    changes = {
        "items_digest": "j",
        "model_id": "n",
        "index": {"m": 16, "target_recall": 0.98},
        "evaluation": {"k": 10},
        "gates": {"min_recall": 0.9},
        "parent": "before",
    }
    keys = [release_key(**base), *(release_key(**{**base, name: value}) for name, value in changes.items())]
    assert len(set(keys)) == 7
    assert release_key(**dict(reversed(base.items()))) == keys[0]
    asked = {
        "evaluation": {},
        "format": 1,
        "gates": {"min_recall": "float:0.95"},
        "index": {"m": 32, "target_recall": "float:0.98"},
        "items": "i",
        "model": "m",
        "parent": None,
    }
    text = json.dumps(asked, sort_keys=True, separators=(",", ":")).encode()
    assert keys[0] == hashlib.sha256(text).hexdigest()
    assert release_id("night", keys[0]) == f"night-{keys[0][:12]}"


def test_verify_finds_nothing_in_a_whole_release(store: Store) -> None:
    manifest, _ = small_release(store)
    check = verify_release(store, "night-abc")
    assert check.problems == ()
    assert (check.files, check.parts) == (2, 2)
    assert check.bytes == sum(
        entry.bytes for entry in [*(entry for role in manifest.files.values() for entry in role), *manifest.parts]
    )
    check.require()


def test_verify_names_every_damaged_file(store: Store) -> None:
    manifest, _ = small_release(store)
    index, part = manifest.file("index"), manifest.parts[0]
    store.put(index.name, b"faiss bytex")
    store.put(part.name, store.get(part.name)[:-1])
    store.delete(manifest.parts[1].name)
    check = verify_release(store, "night-abc")
    text = "\n".join(check.problems)
    assert f"{index.name} has the sha256" in text
    assert f"{part.name} has {part.bytes - 1:,} bytes" in text
    assert f"{manifest.parts[1].name} is missing" in text
    with pytest.raises(IntegrityError, match="roll back"):
        check.require()
    assert replace(check, problems=()).require() is None


def test_verify_checks_rows_and_references(store: Store) -> None:
    parts = [latents_part(store, number) for number in range(3)]
    longer = parts[0].model_copy(update={"rows": 5})
    items = items_file([longer, parts[1]])
    write_release(store, release_id="rows", files={"items": items._replace(rows=9)}, parts=tuple(parts), **fields())
    assert "has 7 rows, the manifest says 9" in verify_release(store, "rows").problems[0]
    write_release(store, release_id="refs", files={"items": items}, parts=(parts[0], parts[2]), **fields())
    text = "\n".join(verify_release(store, "refs").problems)
    assert f"items names the rows 0 to 4 of {parts[0].name}, which has 2" in text
    assert f"items names the part {parts[1].name}, which the manifest does not list" in text
    assert f"the manifest lists the part {parts[2].name}, which items does not name" in text
