"""What `verify` holds to its digest although no manifest lists it: weights, codebooks, tables beside a release."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch

from pipeline.keys import digest_of
from pipeline.models.shelves import content_id
from pipeline.reader import open_release
from pipeline.recommending import EventTable, RecommendConfig, recommend
from pipeline.release import Policy, expire, read_manifest, verify_release
from pipeline.release.beside import sealed, unsealed
from pipeline.release.signatures import signature_name
from pipeline.release.weights import weights_id
from pipeline.storage import Files, Store, open_store

CONFIG = b'{"format": 1}\n'
TENSORS = {
    "b.weight": torch.arange(15, dtype=torch.float32).reshape(3, 5),
    "a": torch.arange(7),
    "é": torch.tensor(2.5),
    "half": torch.arange(3, dtype=torch.float16),
    "brain": torch.arange(3, dtype=torch.bfloat16),
    "none": torch.zeros(0, 3, dtype=torch.float64),
    "bits": torch.tensor([True, False]),
    "bytes": torch.arange(5, dtype=torch.uint8),
    "small": torch.arange(3, dtype=torch.int8),
    "short": torch.arange(3, dtype=torch.int16),
    "int": torch.arange(3, dtype=torch.int32),
}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


def overwrite(store: Store, name: str, data: bytes) -> None:
    store.delete(name)
    assert store.put_if_absent(name, data)


def test_the_id_of_weights_is_that_of_the_bundle_and_any_byte_changes_it() -> None:
    data = safetensors.torch.save(TENSORS, {"format": "pt"})
    wanted = content_id(CONFIG, TENSORS)
    assert weights_id(CONFIG, data) == wanted
    rng = np.random.default_rng(0)
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= rng.integers(1, 256)
        try:
            found = weights_id(CONFIG, bytes(changed))
        except ValueError:
            continue
        assert found != wanted, place
    for size in (0, 7, 8, 100, len(data) - 1):
        with pytest.raises(ValueError, match=r"its|bytes"):
            weights_id(CONFIG, data[:size])
    with pytest.raises(ValueError, match="its tensors end at"):
        weights_id(CONFIG, data + b"\0")
    # The negative control: what reads the tensors alone does not see the padding.
    (length,) = np.frombuffer(data[:8], "<u8")
    padded = bytearray(data)
    if padded[7 + int(length)] == ord(" "):
        padded[7 + int(length)] = ord("\n")
        assert content_id(CONFIG, safetensors.torch.load(bytes(padded))) == wanted
        with pytest.raises(ValueError, match="not as safetensors writes it"):
            weights_id(CONFIG, bytes(padded))


def test_weights_and_codebooks_of_a_release_are_checked(maker: Any, store: Store) -> None:
    model, books = content_id(CONFIG, TENSORS), b"codebooks"
    folder, data = f"models/{model}/", safetensors.torch.save(TENSORS, {"format": "pt"})
    for name, held in {
        "config.json": CONFIG,
        "weights.safetensors": data,
        "sids-0123456789ab.safetensors": books,
    }.items():
        store.put_if_absent(folder + name, held)
    inputs = {"semantic_ids": {"epoch": 1, "codebooks": digest_of(books), "levels": [4]}}
    release = maker.make_release(store, maker.some_photos(5), model_id=model, inputs=inputs).release_id
    assert verify_release(store, release).problems == ()
    overwrite(store, folder + "weights.safetensors", data[:-1] + b"!")
    overwrite(store, folder + "sids-0123456789ab.safetensors", b"others")
    weights, codes = verify_release(store, release).problems
    assert f"{folder}weights.safetensors" in weights
    assert f"are those of the model {model}" in weights
    assert "sids-0123456789ab.safetensors" in codes
    assert digest_of(books) in codes
    store.delete(folder + "weights.safetensors")
    assert f"{folder}weights.safetensors is missing" in verify_release(store, release).problems


def test_tables_beside_a_release_are_checked(
    maker: Any, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    release = maker.make_release(store, maker.some_photos(12)).release_id
    events = tmp_path / "events.parquet"
    who, what = [f"c{n % 4}" for n in range(20)], [f"sku-{n % 11:03d}" for n in range(20)]
    pq.write_table(pa.table({"customer": who, "item": what}), events)
    config = RecommendConfig()
    recommend(open_release(store.url).opened, EventTable(Files(), str(events), config), config, store)
    whole = verify_release(store, release)
    assert whole.problems == ()
    beside = {entry.name: store.get(entry.name) for entry in store.list(f"releases/{release}/recommend-")}
    assert len(beside) == 4
    manifest = read_manifest(store, release)
    assert whole.files == sum(map(len, manifest.files.values())) + 3
    rng = np.random.default_rng(0)
    for name, data in beside.items():
        for place in [0, len(data) - 1, *rng.integers(0, len(data), 6).tolist()]:
            overwrite(store, name, data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
            assert any(name in problem for problem in verify_release(store, release).problems), (name, place)
        overwrite(store, name, data[:-1])
        assert any(name in problem for problem in verify_release(store, release).problems)
        overwrite(store, name, data)
    (summary,) = (name for name in beside if name.endswith("/recommendations.json"))
    store.delete(summary)
    assert verify_release(store, release).problems == ()  # it is written last: another process may be at work
    with monkeypatch.context() as later:
        later.setattr("pipeline.release.beside._WRITTEN", -timedelta(hours=1))
        assert any(f"{summary} is missing" in problem for problem in verify_release(store, release).problems)
    store.put_if_absent(summary, beside[summary])
    # Another release's, as it was written.
    other = maker.make_release(store, maker.some_photos(12, seed=1), run="other").release_id
    for name, data in beside.items():
        store.put_if_absent(name.replace(release, other), data)
    (problem,) = verify_release(store, other).problems
    assert f"it lists tables of '{release}'" in problem


def test_a_seal_holds_a_document_and_one_from_before_has_none() -> None:
    text = b'{\n "format": 1,\n "files": []\n}'
    data = sealed(text)
    assert unsealed(data, "x") == unsealed(text, "x") == text
    assert digest_of(text[:-2]).encode() in data
    with pytest.raises(ValueError, match="x has the sha256"):
        unsealed(data.replace(b"1", b"2", 1), "x")
    with pytest.raises(ValueError, match="x is not as it was written"):
        unsealed(data + b"\n", "x")


def test_a_signature_lives_as_long_as_its_release(expiring: Any) -> None:
    store = expiring.ClockStore("memory://signatures")
    policy = Policy(keep=1, keep_days=0, max_share=1.0)
    names = []
    for number in range(2):
        part = expiring.part(store, f"latents/m/own-{number}.parquet", b"own" * 40)
        release = expiring.night(store, f"night-{number}", [part]).manifest.release_id
        names.append(signature_name(release, "ab" * 32))
        store.put(names[-1], b"{}")
        store.pass_days(1)
    for _ in range(3):
        store.pass_days(8)
        expire(store, policy, yes=True)
    assert names[1] in store.names()  # no manifest lists it; the release is current
    assert names[0] not in store.names()
