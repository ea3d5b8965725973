"""A photo as a query: the release's own encoder, by ONNX, on bytes of a picture."""

from __future__ import annotations

import builtins
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import ConfigError, InputError, IntegrityError, PhotoRefused
from pipeline.images import ImagesConfig, decode
from pipeline.reader import Release, open_release
from pipeline.release import read_manifest, verify_release
from pipeline.storage import Store, open_store

ROOT = Path(__file__).resolve().parents[2]

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

SIZE = 8


@pytest.fixture(autouse=True)
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def store(tmp_path: Path, maker: Any) -> Store:
    opened = open_store(str(tmp_path / "store"))
    maker.make_release(opened, maker.some_photos(40))
    return opened


def release_with_digests(store: Store, maker: Any, **changes: Any) -> Release:
    maker.write_encoder(store, maker.MODEL, maker.DIM)
    fields = maker.listed(store, maker.MODEL) | changes
    maker.make_release(store, maker.some_photos(40), run="digests", **fields)
    return open_release(store.url)


def test_a_photo_is_decoded_and_encoded_as_the_model_was_trained(store: Store, maker: Any) -> None:
    maker.write_encoder(store, maker.MODEL, maker.DIM)
    release = open_release(store.url)
    vectors = release.encode_photo(maker.picture())
    pixels = decode(maker.picture(), ImagesConfig(size=maker.PHOTO_SIZE, fit="crop"))  # [H, W, 3]
    expected = pixels.transpose(2, 0, 1).reshape(1, -1).astype(np.float32) @ maker.projection(maker.DIM)
    assert (vectors.shape, vectors.dtype) == ((1, maker.DIM), np.float32)
    np.testing.assert_allclose(vectors, expected, rtol=1e-5)
    assert release.similar_photo(maker.picture(), k=7) == release.search(vectors, k=7)[0]
    filtered = release.similar_photo(maker.picture(), k=7, where={"category": "Hats"})
    assert {near.attributes["category"] for near in filtered} == {"Hats"}


@pytest.mark.parametrize(("name", "data"), [("encoder.onnx", b"\xff" * 50), ("config.json", b'{"model": {}}')])
def test_a_bundle_that_cannot_be_loaded_is_said_by_name(store: Store, maker: Any, name: str, data: bytes) -> None:
    store.put_if_absent(f"models/{maker.MODEL}/{name}", data)
    maker.write_encoder(store, maker.MODEL, maker.DIM)
    with pytest.raises(IntegrityError, match=rf"models/{maker.MODEL} on .* cannot be loaded"):
        open_release(store.url).encode_photo(maker.picture())


def test_bytes_that_are_no_photo_are_refused(store: Store, maker: Any) -> None:
    maker.write_encoder(store, maker.MODEL, maker.DIM)
    with pytest.raises(PhotoRefused, match="not_an_image"):
        open_release(store.url).encode_photo(b"<html>no picture</html>")


def test_a_bundle_that_is_gone_is_said_so(store: Store, maker: Any) -> None:
    with pytest.raises(IntegrityError, match=r"models/.* is not whole"):
        open_release(store.url).encode_photo(maker.picture())


def test_the_encoder_comes_through_the_hashed_cache(store: Store, maker: Any) -> None:
    plain = open_release(store.url)  # a manifest without the digests
    release = release_with_digests(store, maker)
    vectors = release.encode_photo(maker.picture())
    np.testing.assert_array_equal(vectors, plain.encode_photo(maker.picture()))
    assert release.manifest.encoder is not None
    store.delete(release.manifest.encoder.name)
    np.testing.assert_array_equal(open_release(store.url).encode_photo(maker.picture()), vectors)


def flipped(data: bytes) -> bytes:
    """Return an encoder with one other weight: as long, as loadable, and wrong."""
    at = data.index(np.random.default_rng(3).normal(size=(1, 6)).astype(np.float32).tobytes()[:16])
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("encoder.onnx", flipped),
        ("encoder.onnx", lambda data: data[:-1]),
        ("encoder.onnx", lambda data: data + b" "),
        ("config.json", lambda data: data.replace(b"crop", b"pad ")),
    ],
    ids=["one bit", "shorter", "longer", "another config"],
)
def test_changed_bytes_are_refused_by_name(
    store: Store, maker: Any, file: str, damage: Callable[[bytes], bytes]
) -> None:
    release, name = release_with_digests(store, maker), f"models/{maker.MODEL}/{file}"
    changed = damage(store.get(name))
    assert changed != store.get(name)
    store.put(name, changed)
    for _ in range(2):  # a refusal is not remembered as an answer
        with pytest.raises(IntegrityError, match=f"{name} on .* was changed after it was written"):
            release.encode_photo(maker.picture())
    assert release.similar("sku-001"), "queries by item need no encoder"
    assert any(name in problem for problem in verify_release(store, release.release_id).problems)


def test_without_digests_a_changed_encoder_goes_unnoticed(store: Store, maker: Any) -> None:
    """What the digests are for: the same damage as above, in a release from before they were listed."""
    maker.write_encoder(store, maker.MODEL, maker.DIM)
    name = f"models/{maker.MODEL}/encoder.onnx"
    store.put(name, flipped(store.get(name)))
    assert open_release(store.url).encode_photo(maker.picture()).shape == (1, maker.DIM)


def test_a_listed_encoder_that_is_gone_is_said_so(store: Store, maker: Any) -> None:
    release = release_with_digests(store, maker)
    store.delete(f"models/{maker.MODEL}/encoder.onnx")
    with pytest.raises(IntegrityError, match=r"encoder\.onnx is not on .*expired or was damaged"):
        release.encode_photo(maker.picture())


def test_the_encoder_of_another_model_is_refused(store: Store, maker: Any) -> None:
    maker.write_encoder(store, "other", maker.DIM)
    with pytest.raises(IntegrityError, match=r"names 'models/other/encoder\.onnx' as its model's encoder\.onnx"):
        release_with_digests(store, maker, encoder=maker.listed(store, "other")["encoder"])


@pytest.mark.parametrize("missing", ["onnxruntime", "PIL"])
def test_what_is_not_installed_is_named_with_the_remedy(
    store: Store, maker: Any, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    maker.write_encoder(store, maker.MODEL, maker.DIM)
    release, data = open_release(store.url), maker.picture()
    real = builtins.__import__

    def without(name: str, *rest: Any, **named: Any) -> Any:
        if name.split(".")[0] == missing:
            raise ImportError(f"No module named {name!r}")
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"pip install .*visual-codebooks\[photo\]"):
        release.encode_photo(data)


def write_told_encoder(store: Store, model_id: str, labels: list[str]) -> None:
    """Write a bundle whose encoder answers with the condition row in every dimension."""
    helper, kinds = onnx.helper, onnx.TensorProto
    ones = onnx.numpy_helper.from_array(np.ones((1, 6), np.float32), "ones")
    nodes = [
        helper.make_node("Cast", ["condition"], ["row"], to=kinds.FLOAT),
        helper.make_node("Unsqueeze", ["row", "axes"], ["column"]),
        helper.make_node("MatMul", ["column", "ones"], ["told"]),
        helper.make_node("Cast", ["images"], ["float"], to=kinds.FLOAT),
        helper.make_node("ReduceMin", ["float"], ["least"], keepdims=0),
        helper.make_node("Mul", ["least", "zero"], ["nothing"]),
        helper.make_node("Add", ["told", "nothing"], ["mean"]),
    ]
    inputs = [
        helper.make_tensor_value_info("images", kinds.UINT8, ["batch", 3, SIZE, SIZE]),
        helper.make_tensor_value_info("condition", kinds.INT64, ["batch"]),
    ]
    given = [
        ones,
        onnx.numpy_helper.from_array(np.array([1]), "axes"),
        onnx.numpy_helper.from_array(np.float32(0), "zero"),
    ]
    graph = helper.make_graph(
        nodes, "encoder", inputs, [helper.make_tensor_value_info("mean", kinds.FLOAT, ["batch", 6])], given
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    store.put_if_absent(f"models/{model_id}/encoder.onnx", model.SerializeToString())
    config = {
        "images": ImagesConfig(size=SIZE).model_dump(mode="json"),
        "model": {"kind": "cvae"},
        "labels": labels,
    }
    store.put_if_absent(f"models/{model_id}/config.json", json.dumps(config).encode())


@pytest.mark.parametrize(
    ("category", "row"),
    [
        (None, 0), ("Hats", 3), ("Bags", 2), ("Scarves", 1), ("", 1), ("hats", 1), (7, 5), (7.0, 5), (True, 6),
        (float("nan"), 1), (np.str_("Hats"), 3), (np.int64(7), 5), ("\ud800", 1), (2**70, 1),
    ],
)  # fmt: skip
def test_a_conditional_encoder_is_told_the_category(store: Store, maker: Any, category: Any, row: int) -> None:
    write_told_encoder(store, maker.MODEL, ["Bags", "Hats", "Shoes", "7", "true"])
    release = open_release(store.url)
    found = release.encode_photo(maker.picture(), category=category)
    np.testing.assert_array_equal(found, np.full((1, maker.DIM), row, np.float32))
    if row:
        assert release.similar_photo(maker.picture(), k=3, category=category) == release.search(found, k=3)[0]


def test_a_category_that_is_no_scalar_is_said_so(store: Store, maker: Any) -> None:
    write_told_encoder(store, maker.MODEL, [])
    for wrong in (["Hats"], {"a": 1}, object()):
        with pytest.raises(InputError, match=r"the category .* is no text, number"):
            open_release(store.url).encode_photo(maker.picture(), category=wrong)


def test_other_encoders_do_not_look_at_the_category(store: Store, maker: Any) -> None:
    maker.write_encoder(store, maker.MODEL, maker.DIM)
    release = open_release(store.url)
    told = release.encode_photo(maker.picture(), category="Hats")
    np.testing.assert_array_equal(told, release.encode_photo(maker.picture()))


@pytest.mark.slow
def test_a_real_conditional_bundle_encodes_as_its_model_does(tmp_path: Path, maker: Any) -> None:
    torch = pytest.importorskip("torch")
    from pipeline.models import build_model, bundle_files, save_bundle
    from pipeline.models.conditions import condition_of
    from pipeline.models.cvae import CVAEConfig

    opened, images, labels = open_store(str(tmp_path / "real")), ImagesConfig(size=16), ("Bags", "Hats")
    torch.manual_seed(0)
    config = CVAEConfig(latent_dim=maker.DIM, channels=(4, 8))
    model = build_model(config, image_size=16, labels=labels).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    model_id = save_bundle(opened, model, config, images, train_key="k", card={}, labels=labels)
    maker.make_release(opened, maker.some_photos(10), model_id=model_id, **bundle_files(opened, model_id))
    release = open_release(opened.url, expect_model=model_id)
    pixels = torch.from_numpy(decode(maker.picture(), images).copy()).permute(2, 0, 1)[None]
    answers = []
    for category in (None, "Scarves", "Bags", "Hats"):
        with torch.inference_mode():
            expected = model.encode(pixels, condition_of(labels, [category])).mean.numpy()
        answers.append(release.encode_photo(maker.picture(), category=category))
        np.testing.assert_allclose(answers[-1], expected, atol=1e-4, rtol=1e-4)
    assert min(np.abs(a - b).max() for n, a in enumerate(answers) for b in answers[:n]) > 0.01


FORKED = """
import os, sys
from pathlib import Path
from pipeline.reader import open_release
release, photo = open_release(sys.argv[1]), Path(sys.argv[2]).read_bytes()
before = release.encode_photo(photo)
for asks in (False, True):
    child = os.fork()
    if child == 0:
        sys.exit(3 if not asks or (release.encode_photo(photo) == before).all() else 4)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.mark.slow
def test_a_real_bundle_encodes_as_its_model_does(tmp_path: Path, maker: Any) -> None:
    torch = pytest.importorskip("torch")
    from pipeline.models import build_model, bundle_files, save_bundle
    from pipeline.models.vae import VAEConfig

    opened, images = open_store(str(tmp_path / "real")), ImagesConfig(size=32)
    torch.manual_seed(0)
    model = build_model(VAEConfig(latent_dim=maker.DIM), image_size=32)
    model_id = save_bundle(opened, model, model.config, images, train_key="k", card={})
    files = bundle_files(opened, model_id)
    assert files == maker.listed(opened, model_id)
    made = maker.make_release(opened, maker.some_photos(10), model_id=model_id, **files)
    assert read_manifest(opened, made.release_id).bundle_files() == list(files.values())
    pixels = torch.from_numpy(decode(maker.picture(), images).copy()).permute(2, 0, 1)[None]
    with torch.inference_mode():
        expected = model.eval().encode(pixels).mean.numpy()
    found = open_release(opened.url, expect_model=model_id).encode_photo(maker.picture())
    np.testing.assert_allclose(found, expected, atol=1e-4)
    # A child forked after a query by photo answers as its parent, and ends as the interpreter does.
    (tmp_path / "photo.jpg").write_bytes(maker.picture())
    code = [sys.executable, "-c", FORKED, opened.url, str(tmp_path / "photo.jpg")]
    done = subprocess.run(code, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.stdout.split() == ["3", "3"], done.stderr
    opened.delete(files["encoder"].name)
    with pytest.raises(IntegrityError, match=r"encoder\.onnx on .* is missing"):
        bundle_files(opened, model_id)
