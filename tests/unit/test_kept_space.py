"""One space across bundles: the rotation against SciPy's, what it moves (nothing), what a consumer loses without."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy.linalg import orthogonal_procrustes
from scipy.stats import ortho_group
from sklearn.linear_model import LogisticRegression

from jobs.__main__ import main
from jobs.config import Config, config_values
from pipeline.errors import ConfigError, InputError, IntegrityError
from pipeline.index import IndexConfig, LatentArrays, Origin, build_index, nightly_index
from pipeline.index.kept_space import kept_space, release_latents, release_space
from pipeline.index.space import Space, fit_space, rotated_table, space_of
from pipeline.reader import Release, open_release
from pipeline.release import read_head, read_manifest
from pipeline.release.manifest import check_format
from pipeline.storage import Store, open_store
from pipeline.storage.cache import FileCache

DIM = 6


@pytest.fixture(autouse=True)
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


def rotation(seed: int = 0, dim: int = DIM) -> np.ndarray:
    return ortho_group.rvs(dim, random_state=seed)


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_the_rotation_is_that_of_scipy_and_finds_what_was_turned(metric: str) -> None:
    rng = np.random.default_rng(0)
    known = rng.normal(size=(200, DIM)).astype(np.float32)
    turned = (known @ rotation().T).astype(np.float32)
    fit = fit_space(turned, known, metric=metric)
    np.testing.assert_allclose(fit.space.rotation, rotation(), atol=1e-6)
    assert fit.residual < 1e-6 < 0.5 < fit.before
    noisy = turned + rng.normal(0, 0.3, turned.shape).astype(np.float32)
    sides = [side.astype(np.float64) for side in (noisy, known)]
    if metric == "cosine":
        sides = [side / np.linalg.norm(side, axis=1, keepdims=True) for side in sides]
    expected, _ = orthogonal_procrustes(*sides)
    fit = fit_space(noisy, known, metric=metric)
    np.testing.assert_allclose(fit.space.rotation, expected, atol=1e-9)
    left = np.linalg.norm(sides[0] @ expected - sides[1]) / np.linalg.norm(sides[1])
    assert fit.residual == pytest.approx(left)
    assert fit.photos == 200


def test_what_is_no_rotation_is_refused() -> None:
    space = Space(rotation())
    assert space_of(space.data, "x", DIM).digest == space.digest
    for data, said in [
        (b"no array", "x is no rotation"),
        (Space(rotation(dim=5)).data, r"x holds float64 \[5, 5\], expected float64 \[6, 6\]"),
        (Space(2.0 * rotation()).data, "would change distances"),
    ]:
        with pytest.raises(IntegrityError, match=said):
            space_of(data, "x", DIM)
    pickled = io.BytesIO()
    np.save(pickled, np.array([object()]), allow_pickle=True)
    with pytest.raises(IntegrityError, match="x is no rotation"):
        space_of(pickled.getvalue(), "x", DIM)


def vectors_like(photos: list[Any], seed: int) -> list[Any]:
    """Return the same photos as another training has them: turned, and a little noisy."""
    rng, turn = np.random.default_rng(seed), rotation(seed)
    return [replace(photo, mean=(photo.mean @ turn + rng.normal(0, 0.05, DIM)).astype(np.float32)) for photo in photos]


NEW = "cd" * 32


def night(maker: Any, store: Store, photos: list[Any], *, asked: bool, run: str, model: str, metric: str) -> Any:
    """Write a release as a refresh does: rotated where the space is kept, but for its parts, which are the model's."""
    head = read_head(store, "stable")
    parent = None if head is None else read_manifest(store, head.release_id)
    ordered = sorted(photos, key=lambda photo: (photo.item_id, photo.view))
    parts = maker.write_parts(store, ordered, model, run)
    items = maker.items_table(ordered, [part.name for part in parts])
    means = LatentArrays(np.stack([photo.mean for photo in ordered]))
    config = IndexConfig(metric=metric)
    kept = kept_space(store, items, means, parent, model_id=model, index=config, asked=asked)
    rotated = kept.rotated(means)

    def with_space(fields: dict[str, Any]) -> dict[str, Any]:
        built = build_index(rotated, config)
        files = {**fields["files"], **built.files(), **kept.files()}
        return {**fields, "files": files, "inputs": kept.inputs, "index_parameters": built.parameters}

    return maker.make_release(store, photos, run=run, index=config, change=with_space, model_id=model)


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_a_new_bundle_stays_in_the_space_that_consumers_know(maker: Any, store: Store, metric: str) -> None:
    photos = maker.some_photos(60)
    night(maker, store, photos, asked=True, run="one", model=maker.MODEL, metric=metric)
    first = open_release(store.url)
    assert first.manifest.format == 1  # the first release of all has the model's own space
    theirs = vectors_like(photos, seed=4)
    night(maker, store, theirs, asked=True, run="two", model=NEW, metric=metric)
    second = open_release(store.url)
    manifest = second.manifest
    told = manifest.inputs["space"]
    assert (manifest.format, told["onto"]) == (4, {"model": maker.MODEL, "space": None})
    assert told["residual"] < 0.15 < 0.8 < told["before"]
    beside = json.loads(store.get(next(e.name for e in store.list(f"models/{NEW}/space-") if e.name.endswith("json"))))
    assert beside == told
    # Vectors lie where they lay; without the rotation they do not (negative control).
    ids = first.item_ids()
    old, new = (np.stack(release.latents(ids)["mean"].to_pylist()) for release in (first, second))
    raw = np.stack([photo.mean for photo in sorted(theirs, key=lambda photo: (photo.item_id, photo.view))])
    assert np.linalg.norm(new - old) / np.linalg.norm(old) < 0.15
    assert np.linalg.norm(raw - old) / np.linalg.norm(old) > 0.8
    # A question by vector is one in the kept space; neighbours are those of the model's own vectors.
    plain_store = open_store(str(store.url) + "-plain")
    night(maker, plain_store, theirs, asked=False, run="two", model=NEW, metric=metric)
    plain = open_release(plain_store.url)
    assert plain.manifest.format == 1
    for item in ids[::7]:
        mine, others = second.similar(item, 10), plain.similar(item, 10)
        assert [near.item_id for near in mine] == [near.item_id for near in others]
        np.testing.assert_allclose([n.score for n in mine], [n.score for n in others], atol=1e-5)
    found = second.search(new[:5], 3)
    assert [near.item_id for near, *_ in found] == [photo.item_id for photo in sorted(
        theirs, key=lambda photo: (photo.item_id, photo.view))[:5]]  # fmt: skip

    # The next night of the bundle carries the space over, asked for or not, and fits nothing.
    night(maker, store, theirs[:-3], asked=False, run="three", model=NEW, metric=metric)
    third = open_release(store.url)
    assert third.manifest.inputs["space"] == told
    assert release_space(store, third.manifest).digest == told["sha256"]
    # And a third bundle is turned onto that, so the first consumers still understand.
    again = vectors_like(photos, seed=9)
    night(maker, store, again, asked=True, run="four", model="ef" * 32, metric=metric)
    fourth = open_release(store.url)
    assert fourth.manifest.inputs["space"]["onto"] == {"model": NEW, "space": told["sha256"]}
    last = np.stack(fourth.latents(ids)["mean"].to_pylist())
    assert np.linalg.norm(last - old) / np.linalg.norm(old) < 0.25


def test_a_photo_is_asked_for_in_the_kept_space(maker: Any, store: Store) -> None:
    photos = maker.some_photos(40)
    night(maker, store, photos, asked=True, run="one", model=maker.MODEL, metric="l2")
    maker.write_encoder(store, NEW, DIM)
    night(maker, store, vectors_like(photos, seed=4), asked=True, run="two", model=NEW, metric="l2")
    release = open_release(store.url)
    space = release_space(store, release.manifest)
    (vector,) = release.encode_photo(maker.picture())
    assert space is not None
    own = vector.astype(np.float64) @ space.rotation.T
    plain = Release.encode_photo(open_release(store.url), maker.picture())[0]
    np.testing.assert_array_equal(plain, vector)
    assert release.similar_photo(maker.picture(), 3) == release.search(vector, 3)[0]
    bare = release.opened.encoder()
    bare._space = None
    np.testing.assert_allclose(bare(maker.picture()).mean[0], own, rtol=1e-4)


@pytest.mark.parametrize("kind", ["flat", "flat_codes"])
def test_segments_are_rotated_as_they_are_built(maker: Any, store: Store, tmp_path: Path, kind: str) -> None:
    photos = sorted(maker.some_photos(60), key=lambda photo: (photo.item_id, photo.view))
    parts = maker.write_parts(store, photos, NEW, "one")
    items = maker.items_table(photos, [part.name for part in parts])
    means = LatentArrays(np.stack([photo.mean for photo in photos]))
    config = IndexConfig(metric="l2", kind=kind, segment_rows=25, queries=20, target_recall=0.9)

    def made(latents: LatentArrays, space: Space | None) -> tuple[set[str], Any]:
        cache = FileCache(tmp_path / "files")
        origin = Origin(rotation=space)
        night = nightly_index(store, items, latents, config, model_id=NEW, parent=None, cache=cache, origin=origin)
        return {segment.index.name for segment in night.built.segments}, night.built.index

    space, another = Space(rotation(3)), Space(rotation(5))
    names, index = made(space.rotated(means), space)
    rotated = space.rotated(means)
    np.testing.assert_array_equal(index.features_of(np.s_[:]), rotated.mean)
    whole = build_index(rotated, IndexConfig(metric="l2")).index
    found, truth = index.search(rotated.take(np.s_[:9]), 7), whole.search(rotated.take(np.s_[:9]), 7)
    np.testing.assert_allclose(found.scores, truth.scores, atol=1e-6)
    # No two spaces share a segment, nor what is trained for one.
    plain, other = made(means, None)[0], made(another.rotated(means), another)[0]
    assert len(names) == -(-len(photos) // 25)
    assert not names & plain
    assert not names & other
    assert made(rotated, space)[0] == names
    unturned = made(rotated, None)[1]
    assert not np.allclose(unturned.features_of(np.s_[:]), rotated.mean), "negative control: as they lie on the store"


def test_variances_do_not_survive_a_rotation(maker: Any, store: Store) -> None:
    table = pa.table({"mean": pa.array([[1.0, 0.0]], pa.list_(pa.float32(), 2)), "log_var": [[0.0, 0.0]]})
    turned = rotated_table(table, Space(np.array([[0.0, 1.0], [-1.0, 0.0]])))
    assert turned.to_pylist() == [{"mean": [0.0, 1.0]}]


def test_what_cannot_keep_a_space_is_refused(maker: Any, store: Store) -> None:
    photos = maker.some_photos(60)
    night(maker, store, photos, asked=True, run="one", model=maker.MODEL, metric="l2")
    parent = read_manifest(store, read_head(store, "stable").release_id)
    rows = maker.items_table(photos, ["latents/x/y.parquet"] * 10)

    def kept(means: np.ndarray, items: pa.Table = rows, **index: Any) -> Any:
        latents, config = LatentArrays(means.astype(np.float32)), IndexConfig(**{"metric": "l2", **index})
        return kept_space(store, items, latents, parent, model_id=NEW, index=config, asked=True)

    with pytest.raises(ConfigError, match=r"vectors of 9 dimensions into the space of release .*, which has 6"):
        kept(np.zeros((len(photos), 9)))
    with pytest.raises(ConfigError, match=r"index.metric is 'kl'"):
        kept(np.zeros((len(photos), 6)), metric="kl")
    with pytest.raises(ConfigError, match=r"index.metric is 'l2/catalogue_median'"):
        kept(np.zeros((len(photos), 6)), mask="catalogue_median")
    others = rows.set_column(rows.schema.get_field_index("token"), "token", pa.array(["etag:new"] * rows.num_rows))
    with pytest.raises(ConfigError, match=r"needs 12 photos .* unchanged, .* and there are 0"):
        kept(np.zeros((len(photos), 6)), others)
    with pytest.raises(InputError, match="upgrade visual-codebooks"):  # what older versions say to such a manifest
        check_format({"format": 4}, "manifest", newest=3)


SMALLEST = {
    "store": {"url": "s"},
    "catalogue": {"source": "c.parquet", "item_id": "i", "image": "m"},
    "model": {"kind": "vae"},
}


def test_it_is_off_by_default_and_refused_at_once_with_a_divergence(capsys: pytest.CaptureFixture[str]) -> None:
    plain = Config.model_validate(SMALLEST)
    assert config_values(plain)["publish"] == {"channel": "stable"}
    asked = config_values(Config.model_validate({**SMALLEST, "publish": {"keep_space": True}}))
    assert asked["publish"] == {"channel": "stable", "keep_space": True}
    words = ["store=s", "catalogue.source=c.parquet", "model.kind=vae", "index.metric=kl", "publish.keep_space=true"]
    assert main(["plan", *words]) == 2
    assert "publish.keep_space rotates vectors" in capsys.readouterr().err


def test_a_consumers_classifier_goes_on_working(maker: Any, store: Store) -> None:
    rng = np.random.default_rng(1)
    centres = {"Shoes": rng.normal(size=DIM), "Hats": rng.normal(size=DIM), "Bags": rng.normal(size=DIM)}
    photos = [
        replace(photo, category=kind, mean=(2 * centres[kind] + rng.normal(0, 0.4, DIM)).astype(np.float32))
        for photo, kind in zip(maker.some_photos(120, most=1), list(centres) * 40, strict=True)
    ]
    night(maker, store, photos, asked=True, run="one", model=maker.MODEL, metric="cosine")
    first = open_release(store.url)
    ids, labels = first.item_ids(), [first.attributes(item)["category"] for item in first.item_ids()]
    head = LogisticRegression().fit(np.stack(first.latents(ids)["mean"].to_pylist()), labels)
    theirs = vectors_like(photos, seed=4)
    night(maker, store, theirs, asked=True, run="two", model=NEW, metric="cosine")
    second = open_release(store.url)
    kept = head.score(np.stack(second.latents(ids)["mean"].to_pylist()), labels)
    raw = head.score(np.stack([photo.mean for photo in sorted(theirs, key=lambda photo: photo.item_id)]), labels)
    assert kept > 0.95
    assert raw < 0.7  # what a consumer has today
    rows = maker.items_table(sorted(theirs, key=lambda p: p.item_id), [part.name for part in second.manifest.parts])
    np.testing.assert_array_equal(
        release_latents(store, second.manifest, rows).mean, np.stack(second.latents(ids)["mean"].to_pylist())
    )
