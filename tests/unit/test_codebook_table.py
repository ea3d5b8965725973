"""The codes of a VQ model as a table: groups held to scikit-learn's, uses and purity to plain counting."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from pipeline.errors import ConfigError, IntegrityError
from pipeline.images import ImagesConfig
from pipeline.models import ModelConfig, build_model, load_bundle
from pipeline.models.codebooks import code_levels
from pipeline.models.quantizers import EMAConfig, FSQConfig
from pipeline.models.vae import VAEConfig
from pipeline.models.vqvae import VQVAEConfig
from pipeline.models.vqvae2 import VQVAE2Config
from pipeline.planning.resolution import check_tables
from pipeline.release import read_manifest, read_table
from pipeline.schema import CODEBOOK
from pipeline.storage.memory import MemoryStore
from pipeline.tables import TablesConfig
from pipeline.tables.codebook_table import NEAREST, CodeLevel, code_groups, codebook_table, near_codes
from pipeline.tables.config import CodebookTableConfig


def apart(number: int, codes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return vectors [codes, 6] of `number` clusters far from each other, and each one's cluster."""
    generator = np.random.default_rng(seed)
    owner = np.concatenate([np.arange(number), generator.integers(number, size=codes - number)])
    middle = 100 * generator.permutation(np.eye(number, 6))
    return (middle[owner] + generator.normal(0, 0.1, (codes, 6))).astype(np.float32), owner


def together(numbers: np.ndarray) -> np.ndarray:
    return numbers[:, None] == numbers[None]


def test_groups_are_those_of_another_k_means_and_numbered_by_their_first_code() -> None:
    generator = np.random.default_rng(5)
    vectors = generator.normal(size=(144, 6)).astype(np.float32)
    found = code_groups(vectors, None, seed=0)
    assert sorted(set(found.tolist())) == list(range(12)), "the square root of 144 codes"
    first = [found.tolist().index(group) for group in range(12)]
    assert first == sorted(first)
    assert np.array_equal(code_groups(vectors, None, seed=0), found)

    def inertia(numbers: np.ndarray) -> float:
        return sum(float(np.square(rows - rows.mean(axis=0)).sum()) for group in range(12)
                   if len(rows := vectors[numbers == group]))  # fmt: skip

    theirs = [inertia(KMeans(12, init="random", n_init=1, random_state=seed).fit_predict(vectors)) for seed in range(4)]
    assert inertia(found) < 1.1 * max(theirs)
    assert inertia(found) < 0.9 * inertia(generator.permutation(found)), "and not any grouping will do"
    vectors, owner = apart(2, 9)
    assert np.array_equal(together(code_groups(vectors, 2, seed=3)), together(owner))


def test_equal_codes_are_one_group() -> None:
    vectors = np.repeat(np.eye(3, 4, dtype=np.float32), 4, axis=0)
    assert code_groups(vectors, 8, seed=0).tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert code_groups(np.zeros((5, 2), np.float32), None, seed=0).tolist() == [0] * 5


def test_the_nearest_codes_are_those_of_plain_loops() -> None:
    vectors = np.random.default_rng(1).normal(size=(40, 5)).astype(np.float32)
    for code, near in enumerate(near_codes(vectors).tolist()):
        others = sorted(
            set(range(40)) - {code}, key=lambda other: float(np.square(vectors[other] - vectors[code]).sum())
        )
        assert near == others[:NEAREST]
    assert near_codes(vectors[:2]).tolist() == [[1], [0]]


def test_the_table_counts_what_the_photos_have(maker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.models.bundle.export_encoder", lambda model, **options: b"not exported here")
    store = MemoryStore("memory://vq")
    made = maker.make_vq_release(store)
    manifest = read_manifest(store, made.release_id)
    items = read_table(store, manifest, "items")
    model = load_bundle(store, manifest.model_id).model
    (level,) = levels = code_levels(model)
    assert np.array_equal(level.vectors, model.quantizer.codebook_rows().numpy())
    found = codebook_table(store, items, levels, CodebookTableConfig(), "category", run="run")
    assert found.table.schema.equals(CODEBOOK)
    rows = found.table.to_pylist()
    uses = Counter(code for photo in made.photos for code in photo.codes.tolist())
    photos = Counter(code for photo in made.photos for code in set(photo.codes.tolist()))
    assert [row["code"] for row in rows] == list(range(maker.VQ_CODES))
    assert [row["uses"] for row in rows] == [uses[code] for code in range(maker.VQ_CODES)]
    assert [row["photos"] for row in rows] == [photos[code] for code in range(maker.VQ_CODES)]
    group = {row["code"]: row["groups"] for row in rows}
    told = Counter((group[code], photo.category) for photo in made.photos for code in photo.codes.tolist())
    best = sum(max(count for (of, _), count in told.items() if of == one) for one in set(group.values())
               if any(of == one for of, _ in told))  # fmt: skip
    assert found.measures["code_group_purity"] == pytest.approx(best / sum(told.values()))
    shoes = sum(count for (_, category), count in told.items() if category == "Shoes")
    assert found.measures["code_group_chance"] == pytest.approx(
        max(shoes, sum(told.values()) - shoes) / sum(told.values())
    )
    assert found.measures["code_group_purity"] >= found.measures["code_group_chance"]
    # Groups of the codes by what they mean here tell the categories apart; every code its own can do no better.
    means = np.array([[0, 0], *[[9, code] for code in range(4)], *[[-9, code] for code in range(4)], *[[0, 50]] * 7])
    meant = CodeLevel("", means.astype(np.float32), level.cells)
    clear = codebook_table(store, items, [meant], CodebookTableConfig(groups=4), "category", run="run").measures
    alone = codebook_table(store, items, [meant], CodebookTableConfig(groups=16), "category", run="run").measures
    assert clear["code_group_chance"] < clear["code_group_purity"] <= alone["code_group_purity"] + 1e-12
    assert codebook_table(store, items, levels, CodebookTableConfig(), None, run="run").measures == {}
    few = CodeLevel("", level.vectors[:9], level.cells)
    with pytest.raises(IntegrityError, match="latents hold the code 15; the model has 9"):
        codebook_table(store, items, [few], CodebookTableConfig(), None, run="run")


def test_every_level_has_its_own_codebook() -> None:
    torch.manual_seed(0)
    two = VQVAE2Config(channels=(8, 8, 8), top_quantizer=EMAConfig(num_codes=6, code_dim=3),
                       bottom_quantizer=EMAConfig(num_codes=9, code_dim=4))  # fmt: skip
    model = build_model(two, image_size=32)
    top, bottom = code_levels(model)
    assert (top.name, bottom.name) == ("top", "bottom")
    assert np.array_equal(top.vectors, model.top_quantizer.codebook_rows().numpy())
    assert bottom.vectors.shape == (9, 4)
    assert np.concatenate([top.cells, bottom.cells]).tolist() == list(range(model.num_latent_codes))
    parts = build_model(
        VQVAEConfig(channels=(8,), codes="parts", parts=3, quantizer=FSQConfig(levels=(3, 4))), image_size=16
    )
    assert [(level.name, level.cells.tolist(), level.vectors.shape) for level in code_levels(parts)] == [
        (f"part_0{number}", [number], (12, 2)) for number in range(3)
    ]
    assert code_levels(build_model(VAEConfig(latent_dim=4, channels=(8,)), image_size=16)) == ()


def night_of(model: ModelConfig, codebook: Any) -> Any:
    tables = TablesConfig.model_validate({"codebook": codebook})
    return SimpleNamespace(model=model, tables=tables, images=ImagesConfig(size=16))


def test_a_table_that_the_model_has_not_is_refused_before_the_night() -> None:
    store = MemoryStore("memory://asked")
    vq = VQVAEConfig(channels=(8,), quantizer=EMAConfig(num_codes=16))
    check_tables(night_of(vq, True), store, None)
    check_tables(night_of(VAEConfig(), None), store, None)
    with pytest.raises(ConfigError, match="lists codes, and a model of the kind 'vae' yields none; leave it out"):
        check_tables(night_of(VAEConfig(), True), store, None)
    with pytest.raises(ConfigError, match="groups is 17, and a codebook of this model has 16 codes; give at most as"):
        check_tables(night_of(vq, {"groups": 17}), store, None)


def test_releases_without_it_ask_for_what_they_asked_for() -> None:
    assert TablesConfig(vectors=True).model_dump(mode="json") == {"vectors": True, "neighbours": 0}
    assert not TablesConfig().asked
    asked = TablesConfig.model_validate({"codebook": True})
    assert asked.asked
    assert asked.model_dump(mode="json")["codebook"] == {"groups": None, "seed": 0}
