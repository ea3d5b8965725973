"""Semantic IDs: encoding held to plain loops in float64, k-means to scikit-learn's, slots to a dictionary."""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import permutations

import numpy as np
import pyarrow as pa
import pytest
import safetensors.numpy
from sklearn.cluster import KMeans

from pipeline.errors import ConfigError, InputError, IntegrityError
from pipeline.index import LatentArrays
from pipeline.storage.memory import MemoryStore
from pipeline.tables.code_map import map_table, matched, renumbered
from pipeline.tables.codebook_files import codebooks_bytes, codebooks_from, find_codebooks, keep_codebooks
from pipeline.tables.quantizer import Codebooks, encode, fit_codebooks
from pipeline.tables.sid_measures import gini, neighbour_measures, purity_measures, usage_measures
from pipeline.tables.sid_tables import tokens
from pipeline.tables.slots import Slots, give_slots
from pipeline.tables.vectors import item_vectors


def clustered(count: int, *, dim: int = 8, centres: int = 40, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    middle = generator.normal(size=(centres, dim))
    return (middle[generator.integers(centres, size=count)] + generator.normal(0, 0.3, (count, dim))).astype(np.float32)


def plain_codes(vector: np.ndarray, books: Codebooks) -> list[int]:
    """Encode one vector from the definition: every level's nearest centroid in float64, the first of equally near."""
    left, codes = vector.astype(np.float64), []
    for level in books.levels:
        distances = [sum((left - centroid.astype(np.float64)) ** 2) for centroid in level]
        codes.append(min(range(len(level)), key=lambda code: (distances[code], code)))
        left = left - level[codes[-1]].astype(np.float64)
    return codes


def near_ties() -> tuple[np.ndarray, Codebooks]:
    """Return vectors far from zero that lie between two centroids, hardly nearer to one of them; and ties."""
    generator = np.random.default_rng(1)
    level = generator.normal(size=(16, 8)).astype(np.float32) + np.float32(30)
    level[9] = level[4]  # two codes of one centroid: the lower number is the code
    pairs = generator.integers(16, size=(300, 2))
    middle = (level[pairs[:, 0]] + level[pairs[:, 1]]) / 2
    vectors = np.concatenate([middle + generator.normal(0, 1e-6, middle.shape), level]).astype(np.float32)
    second = np.round(generator.normal(size=(8, 8)), 1).astype(np.float32)
    return vectors, Codebooks((level, second))


def test_codes_are_those_of_plain_loops_however_many_rows_are_encoded_together() -> None:
    for vectors, books in (
        near_ties(),
        (clustered(300), fit_codebooks(clustered(2000), (32, 16, 8), seed=0)),
        (np.zeros((3, 8), np.float32), fit_codebooks(clustered(500), (16, 4), seed=1)),
    ):
        whole = encode(vectors, books)
        assert whole.tolist() == [plain_codes(vector, books) for vector in vectors]
        for rows in (1, 7, 256):
            pieces = [encode(vectors[start : start + rows], books) for start in range(0, len(vectors), rows)]
            assert np.array_equal(np.concatenate(pieces), whole)


def test_a_batched_argmin_in_float32_gives_other_codes() -> None:
    """The way it is usually done, on the same vectors: what the test above would not let pass."""
    vectors, books = near_ties()
    level = books.levels[0]
    usual = (np.sum(level * level, axis=1) - 2 * vectors @ level.T).argmin(axis=1)
    assert (usual != encode(vectors, books)[:, 0]).mean() > 0.05


def test_what_cannot_be_encoded_or_fitted_is_refused() -> None:
    books = fit_codebooks(clustered(200), (8, 4), seed=0)
    with pytest.raises(InputError, match=r"shape \[2, 5\]; the codebooks are of vectors \[n, 8\]"):
        encode(np.zeros((2, 5), np.float32), books)
    bad = clustered(3)
    bad[1, 2] = np.nan
    with pytest.raises(InputError, match="vector 1 holds values that are not finite"):
        encode(bad, books)
    with pytest.raises(ConfigError, match="asks for 256 codes at level 1, and the items have only 200 different"):
        fit_codebooks(clustered(200), (256, 4), seed=0)
    with pytest.raises(ConfigError, match="level 2, and the items have only 1 different remainders of the 1 levels"):
        fit_codebooks(np.eye(4, 8, dtype=np.float32), (4, 2), seed=0)


def test_k_means_is_as_good_as_another_one() -> None:
    points = clustered(3000)
    ours = fit_codebooks(points, (64,), seed=0).levels[0]
    inertia = float(np.square(points - ours[encode(points, Codebooks((ours,)))[:, 0]]).sum())
    theirs = [KMeans(64, init="random", n_init=1, max_iter=20, random_state=seed).fit(points).inertia_
              for seed in range(5)]  # fmt: skip
    assert inertia < 1.05 * max(theirs)
    # No code is dead, and equal seeds give equal codebooks; the levels are of what was left over.
    assert len(np.unique(encode(points, Codebooks((ours,))))) == 64
    assert np.array_equal(fit_codebooks(points, (64, 8), seed=0).levels[0], ours)
    left = points - ours[encode(points, Codebooks((ours,)))[:, 0]]
    second = fit_codebooks(points, (64, 8), seed=0).levels[1]
    finer = np.square(left[:, None] - second).sum(axis=2).min(axis=1).sum()
    assert finer < 0.8 * inertia


def test_a_refit_would_move_nearly_every_item() -> None:
    vectors = clustered(3000)
    before = encode(vectors, fit_codebooks(vectors, (64, 32), seed=0))
    fewer = np.delete(vectors, np.arange(0, 3000, 100), axis=0)
    refitted = encode(vectors, fit_codebooks(fewer, (64, 32), seed=0))
    assert (before == refitted).all(axis=1).mean() < 0.02


def as_column(ids: list[str]) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(ids, pa.string())])


def nights_of_churn(seed: int, capacity: int | None) -> None:
    """Let items come, go, return and change for some nights; every slot is held to who ever had it."""
    generator = np.random.default_rng(seed)
    every = [f"item-{number:03d}" for number in range(120)]
    books = Codebooks((np.arange(4, dtype=np.float32)[:, None] * 10, np.arange(6, dtype=np.float32)[:, None]))
    vector = {item: generator.uniform(0, 36) for item in every}
    slots = Slots.none(2)
    owner: dict[tuple[int, ...], str] = {}
    held: dict[tuple[str, tuple[int, ...]], tuple[int, ...]] = {}
    for night in range(6):
        for item in generator.choice(every, 6).tolist():
            vector[item] = generator.uniform(0, 36)
        ids = sorted(generator.choice(every, 70, replace=False).tolist())
        values = np.array([[vector[item]] for item in ids], np.float32)
        nearest = encode(values, books)
        given = give_slots(as_column(ids), nearest, values, books, slots, capacity)
        seen = set()
        for row, item in enumerate(ids):
            slot = (*given.codes[row].tolist(), int(given.suffixes[row]))
            asked = (item, tuple(nearest[row].tolist()))
            assert owner.setdefault(slot, item) == item, "a slot means one item for ever"
            assert held.setdefault(asked, slot) == slot, "an item keeps its slot"
            assert slot not in seen
            assert capacity is None or slot[-1] < capacity
            assert capacity is not None or tuple(given.codes[row].tolist()) == asked[1]
            seen.add(slot)
        since = [f"night-{night}"] * len(ids)
        gone = given.gone
        slots = Slots(
            as_column([*ids, *(slots.item_ids[row].as_py() for row in gone.tolist())]),
            np.concatenate([given.codes, slots.codes[gone]]),
            np.concatenate([nearest, slots.nearest[gone]]),
            np.concatenate([given.suffixes, slots.suffixes[gone]]),
            as_column([*since, *[""] * len(gone)]),
            pa.chunked_array([pa.array([None] * len(ids) + ["gone"] * len(gone), pa.string())]),
        )


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("capacity", [None, 9])
def test_a_published_item_never_moves_and_a_slot_never_means_another(seed: int, capacity: int | None) -> None:
    nights_of_churn(seed, capacity)


def test_suffixes_counted_anew_every_night_would_move_items() -> None:
    codes = np.zeros((5, 2), np.uint16)
    ids = [f"item-{number}" for number in range(5)]
    books = Codebooks((np.zeros((1, 1), np.float32), np.zeros((1, 1), np.float32)))
    first = give_slots(as_column(ids), codes, np.zeros((5, 1), np.float32), books, Slots.none(2), None)
    assert first.suffixes.tolist() == [0, 1, 2, 3, 4]
    out = as_column([*ids])
    slots = Slots(out, codes, codes, first.suffixes, out, pa.chunked_array([pa.nulls(5, pa.string())]))
    later = ["item-0", "item-00", "item-2", "item-3", "item-4"]
    second = give_slots(as_column(later), codes, np.zeros((5, 1), np.float32), books, slots, None)
    assert second.suffixes.tolist() == [0, 5, 2, 3, 4]
    assert second.gone.tolist() == [1]
    by_order = list(range(5))  # what counting anew gives
    assert by_order != second.suffixes.tolist()


def test_a_full_bucket_gives_the_nearest_last_code_that_has_room() -> None:
    books = Codebooks((np.zeros((1, 1), np.float32), np.array([[0], [10], [13]], np.float32)))
    values = np.array([[9.0], [9.5], [10.0], [10.2], [12.9], [11.4]], np.float32)
    nearest = encode(values, books)
    ids = as_column([f"item-{number}" for number in range(6)])
    given = give_slots(ids, nearest, values, books, Slots.none(2), 2)
    assert given.codes[:, 1].tolist() == [1, 1, 2, 0, 2, 0]
    assert given.suffixes.tolist() == [0, 1, 1, 0, 0, 1]
    with pytest.raises(InputError, match=r"item 'item-2': every code .* behind the codes \[0\] has its 1 items"):
        give_slots(ids, nearest, values, books, Slots.none(2), 1)


def test_codebooks_are_safetensors_and_whoever_is_first_decides() -> None:
    books, other = (fit_codebooks(clustered(300, seed=seed), (16, 8), seed=seed) for seed in (0, 1))
    data = codebooks_bytes(books, {"method": "rq_kmeans"})
    theirs = safetensors.numpy.load(data)
    assert sorted(theirs) == ["level_0", "level_1"]
    for number, level in enumerate(books.levels):
        assert np.array_equal(theirs[f"level_{number}"], level)
        assert np.array_equal(codebooks_from(data, "x").levels[number], level)
    again = codebooks_from(safetensors.numpy.save(theirs), "x")
    assert np.array_equal(again.levels[1], books.levels[1])
    store = MemoryStore("memory://sids")
    assert find_codebooks(store, "models/a/sids.safetensors") is None
    assert keep_codebooks(store, "models/a/sids.safetensors", books, {}).books is books
    held = keep_codebooks(store, "models/a/sids.safetensors", other, {})
    assert np.array_equal(held.books.levels[0], books.levels[0])
    for damaged in (b"", data[:40], data[:-4], b"\x80\x04]" + data, data.replace(b"F32", b"F64")):
        with pytest.raises(IntegrityError, match=r"x (is no file of codebooks|holds levels)"):
            codebooks_from(damaged, "x")


def test_the_matching_of_codes_is_the_best_there_is() -> None:
    generator = np.random.default_rng(0)
    old, new = generator.integers(5, size=200), generator.integers(5, size=200)
    was, now, counts = matched(old, new, (5, 5))
    best = max(sum(counts[code, other[code]] for code in range(5)) for other in permutations(range(5)))
    assert counts[was, now].sum() == best
    # A vocabulary in another order comes back as it was.
    vectors = clustered(500)
    books = fit_codebooks(vectors, (16, 8), seed=0)
    shuffled = Codebooks(tuple(level[generator.permutation(len(level))] for level in books.levels))
    codes = encode(vectors, books)
    back = renumbered(shuffled, codes, encode(vectors, shuffled), books.sizes)
    assert all(np.array_equal(a, b) for a, b in zip(back.books.levels, books.levels, strict=True))
    rows = map_table(codes, encode(vectors, shuffled), books.sizes, (16, 8)).to_pylist()
    assert len(rows) == 24
    assert all(row["share"] == 1.0 for row in rows)
    fewer = map_table(codes, codes[:, :1] % 4, books.sizes, (4,)).to_pylist()
    assert sum(row["new"] is None for row in fewer) == 12


def test_measures_are_what_they_are_called() -> None:
    generator = np.random.default_rng(3)
    codes = np.stack([generator.integers(6, size=400) ** 2 % 7, generator.integers(9, size=400)], axis=1)
    codes = codes.astype(np.uint16)
    found = usage_measures(codes, (8, 9))
    buckets = Counter(map(tuple, codes.tolist()))
    counts = np.array(list(buckets.values()))
    assert found["sid_unique"] == len(buckets) / 400
    assert found["sid_alone"] == sum(count for count in counts if count == 1) / 400
    assert found["sid_largest"] == counts.max()
    apart = np.abs(counts[:, None] - counts).mean() / (2 * counts.mean())
    assert found["sid_gini"] == pytest.approx(apart)
    shares = counts / 400
    assert found["sid_entropy"] == pytest.approx(-(shares * np.log(shares)).sum() / np.log(400))
    first = np.bincount(codes[:, 0], minlength=8)
    assert found["sid_dead_1"] == (first == 0).sum()
    shares = first[first > 0] / 400
    assert found["sid_perplexity_1"] == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))
    assert gini(np.array([3, 3, 3])) == 0
    names = [None if row % 11 == 0 else f"c{row % 3}" for row in range(400)]
    pure = purity_measures(codes, pa.chunked_array([pa.array(names)]))
    for length in (1, 2):
        groups = defaultdict(Counter)
        for row, name in enumerate(names):
            if name is not None:
                groups[tuple(codes[row, :length].tolist())][name] += 1
        commonest = sum(max(group.values()) for group in groups.values())
        assert pure[f"sid_purity_{length}"] == commonest / sum(name is not None for name in names)
    assert purity_measures(codes, pa.chunked_array([pa.nulls(400, pa.string())])) == {}


def test_neighbours_share_more_than_chance_and_random_codes_do_not() -> None:
    vectors = clustered(600)
    codes = encode(vectors, fit_codebooks(vectors, (16, 8), seed=0))
    found = neighbour_measures(codes, vectors, metric="l2", seed=0)
    distances = np.square(vectors[:, None].astype(np.float64) - vectors).sum(axis=2)
    np.fill_diagonal(distances, np.inf)
    near = np.argsort(distances, axis=1)[:, :10]
    assert found["sid_shared_1"] == pytest.approx((codes[:, None, 0] == codes[near][..., 0]).mean())
    pairs = codes[:, None, 0] == codes[:, 0]
    assert found["sid_chance_1"] == pytest.approx((pairs.sum() - 600) / (600 * 599))
    assert found["sid_shared_1"] > 5 * found["sid_chance_1"]
    mixed = neighbour_measures(np.random.default_rng(0).permutation(codes), vectors, metric="l2", seed=0)
    assert mixed["sid_shared_1"] < 2 * mixed["sid_chance_1"]


def test_an_items_vector_is_the_middle_of_its_photos() -> None:
    generator = np.random.default_rng(0)
    counts = generator.integers(1, 6, size=50)
    means = generator.normal(size=(int(counts.sum()), 5)).astype(np.float32)
    ids = np.repeat([f"item-{number:02d}" for number in range(50)], counts).tolist()
    items = pa.table({"item_id": as_column(ids)})
    for metric in ("l2", "cosine"):
        found = item_vectors(items, LatentArrays(mean=means), metric=metric)
        assert found.item_ids.to_pylist() == sorted(set(ids))
        for row, item in enumerate(found.item_ids.to_pylist()):
            photos = means[[name == item for name in ids]].astype(np.float64)
            if metric == "cosine":
                photos = photos / np.linalg.norm(photos, axis=1, keepdims=True)
            middle = photos.mean(axis=0)
            middle = middle / np.linalg.norm(middle) if metric == "cosine" else middle
            np.testing.assert_allclose(found.vectors[row], middle, atol=1e-6)
            alone = pa.table({"item_id": as_column([item] * len(photos))})
            mine = LatentArrays(mean=means[[name == item for name in ids]])
            assert np.array_equal(item_vectors(alone, mine, metric=metric).vectors[0], found.vectors[row])


def test_tokens_name_each_level() -> None:
    found = tokens(np.array([[12, 3], [0, 65535]], np.uint16), np.array([0, 7], np.int32))
    assert found.to_pylist() == ["<a_12><b_3><c_0>", "<a_0><b_65535><c_7>"]
