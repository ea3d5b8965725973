"""`codebooks similar` and `search`: a release asked from the command line."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from jobs.__main__ import main
from pipeline.errors import ConfigError
from pipeline.settings.conditions import parse_where
from pipeline.storage import Store, open_store

SIZE, DIM = 8, 6


@pytest.fixture(autouse=True)
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


def asked(capsys: pytest.CaptureFixture[str], *words: str, expect: int = 0) -> tuple[dict[str, Any], str]:
    assert main([*words, "--json"]) == expect
    taken = capsys.readouterr()
    return json.loads(taken.out), taken.err


def test_similar_shows_neighbours_with_attributes(maker: Any, store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    made = maker.make_release(store, maker.some_photos(40))
    found, text = asked(capsys, "similar", "sku-003", "-k", "5", f"store={store.url}")
    expected = maker.brute_force(made, "cosine", made.means("sku-003"), 5, left_out=["sku-003"])
    assert [near["item_id"] for near in found["neighbours"]] == [item_id for item_id, _ in expected]
    assert (found["release"], found["run"], found["published"]) == (made.release_id, None, False)
    assert set(found["neighbours"][0]["attributes"]) == {"category", "price", "stock"}
    lines = text.splitlines()
    assert lines[0].startswith(f"nearest to sku-003 in {made.release_id}")
    assert [line.split()[1] for line in lines[1:]] == [item_id for item_id, _ in expected]


def test_similar_with_filters(maker: Any, store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    made = maker.make_release(store, maker.some_photos(60))
    words = [
        "similar",
        "sku-003",
        f"store={store.url}",
        "--where",
        "category=[Shoes, Hats]",
        "--where",
        "stock={min: 2}",
    ]
    found, _ = asked(capsys, *words)
    expected = maker.brute_force(
        made,
        "cosine",
        made.means("sku-003"),
        10,
        left_out=["sku-003"],
        keep=lambda photo: photo.category in ("Shoes", "Hats") and photo.stock is not None and photo.stock >= 2,
    )
    assert [near["item_id"] for near in found["neighbours"]] == [item_id for item_id, _ in expected]
    assert (
        asked(capsys, "similar", "sku-003", f"store={store.url}", "--where", "colour=red", expect=2)[0]["exit_code"]
        == 2
    )


def test_similar_on_an_older_release_and_another_channel(
    maker: Any, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    first = maker.make_release(store, maker.some_photos(20))
    second = maker.make_release(store, maker.some_photos(20, seed=1), run="next", channel="canary")
    place = f"store={store.url}"
    assert asked(capsys, "similar", "sku-001", place)[0]["release"] == first.release_id
    assert asked(capsys, "similar", "sku-001", place, "--channel", "canary")[0]["release"] == second.release_id
    assert asked(capsys, "similar", "sku-001", place, "publish.channel=canary")[0]["release"] == second.release_id
    assert asked(capsys, "similar", "sku-001", place, "--release", second.release_id)[0]["release"] == second.release_id
    assert "no release 'nope'" in asked(capsys, "similar", "sku-001", place, "--release", "nope", expect=3)[0]["error"]


def test_an_unknown_item_says_why(maker: Any, store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    maker.make_release(
        store, maker.some_photos(10), refused=[("sku-bad", "u", "decode", "truncated")], removed=["sku-old"]
    )
    for item_id, why in (("sku-bad", "quarantined"), ("sku-old", "delisted"), ("sku-new", "never seen")):
        found, _ = asked(capsys, "similar", item_id, f"store={store.url}", expect=3)
        assert why in found["error"]


@pytest.mark.parametrize("k", ["0", "x"])
def test_a_wrong_k(maker: Any, store: Store, capsys: pytest.CaptureFixture[str], k: str) -> None:
    maker.make_release(store, maker.some_photos(5))
    assert asked(capsys, "similar", "sku-001", "-k", k, f"store={store.url}", expect=2)[0]["exit_code"] == 2


def encoder() -> bytes:
    """Return an ONNX encoder whose mean is the mean red, green, blue of a photo and their negatives, [1, 6]."""
    shape = [1, 3, SIZE, SIZE]
    nodes = [
        helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats", "axes"], ["colours"], keepdims=0),
        helper.make_node("Neg", ["colours"], ["negative"]),
        helper.make_node("Concat", ["colours", "negative"], ["mean"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "encoder",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info("mean", TensorProto.FLOAT, [1, DIM])],
        [helper.make_tensor("axes", TensorProto.INT64, [2], [2, 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    data: bytes = model.SerializeToString()
    onnx.checker.check_model(model)
    return data


def test_search_by_a_photo_in_a_file(
    maker: Any, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = maker.make_release(store, maker.some_photos(40))
    found, _ = asked(capsys, "similar", "sku-000", f"store={store.url}")
    folder = f"models/{found['model_id']}"
    store.put(f"{folder}/encoder.onnx", encoder())
    store.put(f"{folder}/config.json", json.dumps({"images": {"size": SIZE}}).encode())
    sink = io.BytesIO()
    Image.new("RGB", (30, 30), (200, 100, 50)).save(sink, "PNG")
    photo = tmp_path / "query.png"
    photo.write_bytes(sink.getvalue())
    found, text = asked(capsys, "search", str(photo), "-k", "3", f"store={store.url}")
    query = np.array([[200.0, 100.0, 50.0, -200.0, -100.0, -50.0]])
    expected = maker.brute_force(made, "cosine", query, 3)
    assert [near["item_id"] for near in found["neighbours"]] == [item_id for item_id, _ in expected]
    assert f"nearest to {photo}" in text
    photo.write_bytes(b"no photo")
    assert asked(capsys, "search", str(photo), f"store={store.url}", expect=3)[0]["reason"] == "input unreadable"
    found, _ = asked(capsys, "search", str(tmp_path / "none.png"), f"store={store.url}", expect=3)
    assert "cannot be read" in found["error"]


def test_where_values_are_yaml() -> None:
    assert parse_where(["a=1", "b=x", "c=[x, y]", "d={min: 1}", 'e="1"']) == {
        "a": 1, "b": "x", "c": ["x", "y"], "d": {"min": 1}, "e": "1",
    }  # fmt: skip
    assert parse_where([]) is None
    for bad in (["a"], ["=1"], ["a=1", "a=2"]):
        with pytest.raises(ConfigError, match="--where"):
            parse_where(bad)
