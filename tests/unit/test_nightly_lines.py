"""Lines of nightly measures on small releases: against brute force, and on the wrong thing, where each must fail."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.evaluation.measured import Measured
from pipeline.evaluation.nightly import MeasuresConfig
from pipeline.evaluation.nightly.category import category
from pipeline.evaluation.nightly.churn import ItemList, split
from pipeline.evaluation.nightly.coverage import coverage
from pipeline.evaluation.nightly.drift import added_and_others, drift
from pipeline.evaluation.nightly.hubness import hubness
from pipeline.evaluation.nightly.identical import identical, numbered
from pipeline.evaluation.nightly.near_duplicates import near_duplicates
from pipeline.evaluation.nightly.photo_recall import own_ranks, photo_recall
from pipeline.evaluation.nightly.photos import chosen_photos
from pipeline.evaluation.nightly.reconstruction import reconstruction
from pipeline.evaluation.nightly.scores import scores
from pipeline.evaluation.nightly.tonight import Found, LeftOut, Looked, Tonight
from pipeline.evaluation.nightly.view_agreement import agreements, view_agreement
from pipeline.index import IndexConfig, LatentArrays, build_index
from pipeline.index.search import SearchIndex
from pipeline.release import Manifest
from pipeline.schema import changes_schema
from pipeline.storage import MemoryStore
from pipeline.tables import Night

COUNT = 120
NOBODY = LeftOut("nobody looks")


def vectors(count: int = COUNT, *, seed: int = 0, dims: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, dims)).astype(np.float32)


def index_of(means: np.ndarray, metric: Any = "cosine") -> SearchIndex:
    return build_index(LatentArrays(means), IndexConfig(kind="flat", metric=metric)).index


def night_of(
    means: np.ndarray,
    *,
    index: SearchIndex | None = None,
    items: Sequence[int] | None = None,
    digests: Sequence[str] | None = None,
    kinds: Sequence[str | None] | None = None,
    added: Sequence[int] = (),
    parent: Manifest | None = None,
    looked: Looked | LeftOut = NOBODY,
) -> Tonight:
    """Return a night of photos [n]; items: the number of each photo's item."""
    numbers = list(range(len(means))) if items is None else list(items)
    ids = [f"item-{number:05d}" for number in numbers]
    table = {
        "item_id": ids,
        "uri": [f"{row}.png" for row in range(len(means))],
        "digest": [f"{row:064x}" for row in range(len(means))] if digests is None else list(digests),
        "pixels_part": pa.array(["pixels/p"] * len(means), pa.string()).dictionary_encode(),
        "pixels_row": list(range(len(means))),
        "latents_part": pa.array(["latents/p"] * len(means), pa.string()).dictionary_encode(),
        "latents_row": list(range(len(means))),
        "kind": ["x"] * len(means) if kinds is None else list(kinds),
    }
    changes = [{"item_id": f"item-{number:05d}", "uri": f"{number}.png", "change": "added"} for number in added]
    night = Night(
        run="night",
        model_id="m",
        metric="cosine",
        items=pa.table(table),
        latents=LatentArrays(means),
        index=index_of(means) if index is None else index,
        changes=pa.Table.from_pylist(changes, schema=changes_schema()),
        parent=parent,
        category="kind",
    )
    catalogue = pa.table({"item_id": ids, "kind": table["kind"]})
    return Tonight(MeasuresConfig(), MemoryStore("memory://nightly-lines"), night, catalogue, lambda _: looked, {})


def the(found: Found, name: str, kind: str | None = None) -> Measured:
    assert not isinstance(found, LeftOut), found
    (one,) = [measured for measured in found if (measured.name, measured.category) == (name, kind)]
    return one


def parent(**fields: Any) -> Manifest:
    given = {
        "release_id": "before-000000000000", "release_key": "k", "run": "before", "attempt": 1, "parent": None,
        "created": "2026-11-29T00:00:00Z", "model_id": "m", "model_kind": "vae", "latent_dim": 8, "transform_id": "t",
        "metric": "cosine", "index_kind": "flat", "files": {}, "parts": (), "code_version": "0",
    }  # fmt: skip
    return Manifest.model_validate({**given, **fields})


def test_a_view_finds_the_item_whose_photo_it_is_of() -> None:
    means, owners = vectors(), np.arange(COUNT) // 2
    tonight = night_of(means, items=owners.tolist())
    views = means + 0.6 * vectors(seed=1)
    ranks = own_ranks(tonight.night.index, tonight.groups, LatentArrays(views), owners)
    unit, asked = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in (means, views))
    best = (asked @ unit.T).reshape(COUNT, -1, 2).max(axis=2)  # of each item's two photos
    oracle = np.array([1 + int((row > row[own]).sum()) for row, own in zip(best, owners.tolist(), strict=True)])
    assert ranks.tolist() == np.minimum(oracle, 11).tolist()
    assert 1 < oracle.max() > 11

    def recall(index: SearchIndex) -> float:
        looked = Looked(np.arange(COUNT), COUNT, LatentArrays(means), LatentArrays(means[:0]), None)
        return the(photo_recall(night_of(means, index=index, looked=looked)), "photo_recall").value

    assert recall(index_of(means)) == 1.0
    shuffled = recall(index_of(means[np.random.default_rng(2).permutation(COUNT)]))
    assert shuffled < 0.3, "negative control: rows of the index are other items'"
    assert recall(index_of(vectors(seed=9))) < 0.3, "negative control: the index is of another bundle"


def test_views_find_each_other() -> None:
    means = vectors()
    index = index_of(means)
    other = means + 0.7 * vectors(seed=1)
    unit, asked = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in (other, means))
    found = agreements(index.metric, LatentArrays(means), LatentArrays(other))
    assert found.tolist() == [int(np.argmax(unit @ one)) == place for place, one in enumerate(asked)]
    looked = Looked(np.arange(COUNT), COUNT, LatentArrays(means), LatentArrays(other), None)
    one = the(view_agreement(night_of(means, looked=looked)), "view_agreement")
    assert one.value == found.mean()
    assert one.examples[0] == f"item-{int(np.flatnonzero(~found)[0]):05d}"
    control = replace(looked, second=LatentArrays(vectors(seed=5)))
    assert the(view_agreement(night_of(means, looked=control)), "view_agreement").value < 0.05, "a random space"


def test_nobody_is_among_its_own_neighbours() -> None:
    means = vectors()
    means[3] = means.mean(axis=0) + 0.01  # in the middle: near to many
    tonight = night_of(means, items=[number // 2 for number in range(COUNT)])
    assert len(tonight.sample) == COUNT // 2
    near = tonight.sample_near
    assert not (near == np.arange(len(near))[:, None]).any()
    unit = means[tonight.sample] / np.linalg.norm(means[tonight.sample], axis=1, keepdims=True)
    cosines = unit @ unit.T
    control = np.argsort(-cosines, axis=1)[:, :10]
    np.fill_diagonal(cosines, -np.inf)
    oracle = np.argsort(-cosines, axis=1)[:, :10]
    assert np.array_equal(np.sort(near, axis=1), np.sort(oracle, axis=1))
    counts = np.bincount(oracle.ravel(), minlength=len(oracle))
    found = hubness(tonight)
    assert the(found, "antihub_share").value == np.mean(counts == 0)
    assert the(found, "antihub_share", "x").value == np.mean(counts == 0)
    assert np.bincount(control.ravel()).min() > 0, "negative control: who counts itself is never in nobody's list"


def test_asked_neighbours_are_other_items() -> None:
    means = vectors()
    tonight = night_of(means, items=[number // 3 for number in range(COUNT)])
    asked = tonight.asked
    assert asked.items.tolist() == list(range(COUNT // 3))
    unit = means.astype(np.float64) / np.linalg.norm(means, axis=1, keepdims=True)
    best = (unit @ unit.T).reshape(COUNT // 3, 3, -1, 3).max(axis=(1, 3))
    np.fill_diagonal(best, -np.inf)
    assert asked.near.tolist() == np.argsort(-best, axis=1)[:, :10].tolist()
    np.testing.assert_allclose(asked.scores, -np.sort(-best, axis=1)[:, :10], atol=1e-6)


def lists(cosines: np.ndarray, living: np.ndarray) -> Callable[[int], ItemList]:
    def of(item: int) -> ItemList:
        others = living[living != item]
        order = others[np.argsort(-cosines[item, others], kind="stable")][:10]
        return ItemList(order, cosines[item, order])

    return of


def test_churn_is_of_newcomers_and_leavers_while_the_space_stands() -> None:
    unit = vectors() / np.linalg.norm(vectors(), axis=1, keepdims=True)
    cosines = (unit @ unit.T).astype(np.float64)
    fresh = np.zeros(COUNT, np.bool_)
    fresh[90:] = True  # 0..9 leave, 90.. come
    before, now = lists(cosines, np.arange(90)), lists(cosines, np.arange(10, COUNT))
    lost = displaced = 0
    for item in range(10, 90):
        old, new = before(item), now(item)
        gone = ItemList(np.where(old.near < 10, -1, old.near), old.scores)
        found = split(gone, new, fresh, lambda other, item=item: float(cosines[item, other]))  # type: ignore[misc]
        assert found.lost == len(set(old.near.tolist()) - set(new.near.tolist()))
        assert (found.displaced, found.missed, found.moved) == (found.lost, 0, 0)
        lost, displaced = lost + found.lost, displaced + found.displaced
    assert lost == displaced > 100


def test_churn_tells_a_space_that_moved_and_a_search_that_misses() -> None:
    unit = vectors() / np.linalg.norm(vectors(), axis=1, keepdims=True)
    cosines, everyone = (unit @ unit.T).astype(np.float64), np.arange(COUNT)
    other = vectors(seed=4) / np.linalg.norm(vectors(seed=4), axis=1, keepdims=True)
    moved = (other @ other.T).astype(np.float64)
    nobody = np.zeros(COUNT, np.bool_)
    before = lists(cosines, everyone)(5)
    found = split(before, lists(moved, everyone)(5), nobody, lambda one: float(moved[5, one]))
    assert (found.moved, found.displaced, found.missed) == (10, 0, 0), "negative control: a random space"
    other_places = lists(cosines, np.random.default_rng(0).permutation(COUNT)[:60])(5)
    found = split(before, other_places, nobody, lambda one: float(cosines[5, one]))
    assert found.missed == found.lost > 0, "negative control: an index that lost half of its rows"
    assert (found.moved, found.displaced) == (0, 0)
    late = split(other_places, before, nobody, lambda one: float(cosines[5, one]))
    assert late.missed == late.lost == found.lost, "the parent's search had missed them"
    told = split(before, lists(moved, everyone)(5), nobody, None)
    assert told.lost > 0
    assert (told.moved, told.displaced, told.missed) == (0, 0, 0), "of another bundle nothing more is told"


def test_scores_shift_only_within_one_space() -> None:
    means = vectors()
    known = {"score_q01": 0.1, "score_q50": 0.5, "score_q99": 0.9}
    found = scores(night_of(means, parent=parent(measures=known)))
    tonight = night_of(means)
    best = tonight.asked.scores[:, 0]
    assert the(found, "score_q50").value == np.quantile(best, 0.5, method="inverted_cdf")
    assert the(found, "score_q50_shift").value == the(found, "score_q50").value - 0.5
    for other in (parent(measures=known, model_id="n"), parent(measures=known, metric="l2"), None):
        names = {one.name for one in scores(night_of(means, parent=other))}  # type: ignore[union-attr]
        assert names == set(known), "not compared"


def test_one_picture_at_many_items_is_a_placeholder() -> None:
    digests = [f"{row:064x}" for row in range(COUNT)]
    for row in (7, 9, 30, 31, 70):
        digests[row] = "f" * 64
    digests[50] = digests[51]  # two photos of one item: nobody else's
    items = [row if row < 50 else row - 1 for row in range(COUNT)]
    items[50] = items[51] = 50
    found = identical(night_of(vectors(), items=sorted(items), digests=digests))
    assert the(found, "identical_share").value == 5 / 119
    group = the(found, "largest_identical_group")
    assert (group.value, group.n) == (5, 119)
    assert group.examples == ("item-00007", "item-00009", "item-00030", "item-00031", "item-00069")
    plain = identical(night_of(vectors()))
    assert [(one.name, one.value) for one in plain] == [  # type: ignore[union-attr]
        ("identical_share", 0.0), ("largest_identical_group", 0.0), ("largest_identical_share", 0.0)
    ]  # fmt: skip


@pytest.mark.parametrize("odd", [None, "short", "A" * 64])
def test_pictures_are_numbered_by_where_they_first_stand(odd: str | None) -> None:
    generator = np.random.default_rng(0)
    some = [generator.bytes(32).hex() for _ in range(40)]
    # Digests that differ in one letter, and any text at all.
    some += ["0" * place + "1" + "0" * (63 - place) for place in range(64)] + ["a" * 64, "b" * 64]
    texts = [some[number] for number in generator.integers(0, len(some), 400)] + ([] if odd is None else [odd, odd])
    first: dict[str, int] = {}
    expected = [first.setdefault(text, len(first)) for text in texts]
    for cuts in ([0, len(texts)], [0, 0, 150, len(texts)]):
        chunks = [pa.array(texts[a:b], pa.string()) for a, b in itertools.pairwise(cuts)]
        assert numbered(pa.chunked_array(chunks)).tolist() == expected
    behind = pa.array(["before", *texts], pa.string()).slice(1)
    assert numbered(pa.chunked_array([behind])).tolist() == expected


def test_a_placeholder_that_was_saved_anew_is_found_by_distance() -> None:
    means = vectors()
    means[20:35] = means[20] + 1e-3 * vectors(15, seed=1)
    found = near_duplicates(night_of(means))
    assert the(found, "near_duplicate_share").value == 15 / COUNT
    assert the(found, "largest_near_share").value == 15 / COUNT
    assert set(the(found, "largest_near_share").examples) <= {f"item-{row:05d}" for row in range(20, 35)}
    twice = night_of(means, items=[row if row < 20 else max(20, row - 14) for row in range(COUNT)])
    assert the(near_duplicates(twice), "near_duplicate_share").value == 0, "photos of one item are no duplicates"


def test_items_without_a_photo_are_missed_by_category() -> None:
    tonight = night_of(vectors(40), kinds=["shoe", "hat"] * 20)
    ids = [f"item-{number:05d}" for number in range(60)]
    catalogue = pa.table({"item_id": ids, "kind": ["shoe", "hat"] * 20 + ["shoe"] * 20})
    found = coverage(replace(tonight, catalogue=catalogue))
    assert the(found, "coverage").value == 40 / 60
    assert (the(found, "coverage", "shoe").value, the(found, "coverage", "hat").value) == (0.5, 1.0)
    assert the(found, "coverage", "shoe").examples[0] == "item-00040"


def test_new_items_are_held_to_others_of_their_category() -> None:
    means = vectors(600)
    means[::4, 0] += 6  # shoes are apart from the rest
    kinds = ["shoe" if row % 4 == 0 else "hat" for row in range(600)]
    added = [row for row in range(400, 600) if row % 4 == 0 or row >= 560]
    tonight = night_of(means, kinds=kinds, added=added, parent=parent())
    new, others = added_and_others(tonight)
    share = [np.mean([kinds[row] == "shoe" for row in rows.tolist()]) for rows in (new, others)]
    assert share[0] == share[1]
    assert not set(others.tolist()) & set(added)
    found = drift(tonight)
    assert the(found, "drift_auc").low < 0.5 < the(found, "drift_auc").high  # type: ignore[operator]
    assert the(found, "drift_mmd_p").value > 0.01
    plain = drift(replace(tonight, night=replace(tonight.night, category=None)))
    assert the(plain, "drift_auc").low > 0.6, "negative control: more shoes would be a drift"  # type: ignore[operator]
    means[added, 1] += 2  # a new camera
    found = drift(night_of(means, kinds=kinds, added=added, parent=parent()))
    assert the(found, "drift_auc").low > 0.8  # type: ignore[operator]
    assert the(found, "drift_mmd_p").value < 0.01
    few = drift(night_of(means, added=added[:20], parent=parent()))
    assert isinstance(few, LeftOut)
    assert "20 added items" in few.why


def test_reconstructions_are_told_from_the_worst_category_to_the_best() -> None:
    kinds = ["shoe", "hat", "bag"] * 40
    errors = np.random.default_rng(0).random(COUNT) + np.tile([2.0, 0.0, 1.0], 40)
    looked = Looked(np.arange(COUNT), COUNT, LatentArrays(vectors()), LatentArrays(vectors()[:0]), errors)
    found = reconstruction(night_of(vectors(), kinds=kinds, looked=looked))
    assert the(found, "reconstruction_mse").value == errors.mean()
    assert [one.category for one in found] == [None, "shoe", "bag", "hat", None, None]  # type: ignore[union-attr]
    assert the(found, "reconstruction_worst").value == pytest.approx(errors[::3].mean())
    assert the(found, "reconstruction_best").value == pytest.approx(errors[1::3].mean())
    assert the(found, "reconstruction_mse").examples[0] == f"item-{int(np.argmax(errors)):05d}"


def test_categories_are_told_apart_one_by_one() -> None:
    means = vectors()
    means[:60, 0] += 8
    kinds = ["shoe"] * 60 + ["hat", "bag"] * 30  # hats and bags look alike
    found = category(night_of(means, kinds=kinds))
    assert the(found, "category_knn", "shoe").value == 1.0
    assert the(found, "category_knn", "bag").value < 0.8
    rows = [the(found, "category_knn", kind) for kind in ("shoe", "hat", "bag")]
    assert the(found, "category_knn").value == pytest.approx(sum(one.value * int(one.n or 0) for one in rows) / COUNT)
    mixed = np.random.default_rng(0).permutation(kinds).tolist()
    assert the(category(night_of(means, kinds=mixed)), "category_knn", "shoe").value < 0.8, "categories shuffled"


def test_photos_are_read_from_few_stretches() -> None:
    tonight = night_of(vectors(2000))
    rows, uniform = chosen_photos(tonight)
    assert (len(rows), uniform) == (1000, 1000)
    scattered = pa.array([f"pixels/p{row // 20}" for row in range(2000)], pa.string()).dictionary_encode()
    items = tonight.night.items.set_column(3, "pixels_part", scattered)
    items = items.set_column(4, "pixels_row", pa.array(np.arange(2000) % 20))
    rows, uniform = chosen_photos(replace(tonight, night=replace(tonight.night, items=items)))
    assert uniform == len(rows) == 32 * 20
    assert len(set(rows // 20)) == 32


def test_few_photos_are_fetched_once_more() -> None:
    tonight = night_of(vectors(900))
    parts = pa.array([None if row % 3 else "pixels/p" for row in range(900)], pa.string()).dictionary_encode()
    items = tonight.night.items.set_column(3, "pixels_part", parts)
    tonight = replace(tonight, night=replace(tonight.night, items=items))
    rows, uniform = chosen_photos(tonight)
    lost = rows[rows % 3 > 0]
    assert len(lost) == 200
    assert 270 < uniform < 330, "as many of the kept ones as there are among so many"
    assert np.array_equal(rows[:uniform], tonight.order[:uniform])
    none = replace(tonight, config=MeasuresConfig(fetched=0))
    assert not (chosen_photos(none)[0] % 3).any()
