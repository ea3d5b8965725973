"""Semantic IDs of a trained autoencoder: NumPy's codes held to torch's, collapse found, a killed training gone on."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
import torch
from torch import Tensor

from pipeline.errors import ConfigError, InputError, IntegrityError, Unavailable
from pipeline.index import LatentArrays
from pipeline.keys import digest_of, key_of
from pipeline.models.base import Batch, Step
from pipeline.models.quantizers import EMAQuantizer
from pipeline.models.rqvae import RQVAE, RQVAESettings
from pipeline.quality.finding import codebooks_of
from pipeline.release import Sample
from pipeline.storage.memory import MemoryStore
from pipeline.tables import Makers, SemanticIdsConfig, TablesConfig, further_tables
from pipeline.tables.code_map import renumbered
from pipeline.tables.codebook_files import codebooks_bytes, codebooks_from, codebooks_name
from pipeline.tables.quantizer import Codebooks, encode, fit_codebooks, remainders
from pipeline.tables.sid_measures import usage_measures
from pipeline.training import CodebooksJob, Line, train_codebooks
from pipeline.training.codebooks_job import check_use, frozen_codebooks
from pipeline.training.ranks import Ranks

ASKED = SemanticIdsConfig.model_validate(
    {
        "levels": [16, 8], "method": "rqvae",
        "rqvae": {"hidden": [24, 12], "code_dim": 6, "epochs": 20, "batch_size": 128, "learning_rate": 0.003},
    }
)  # fmt: skip


def clustered(count: int, *, dim: int = 8, centres: int = 40, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    middle = generator.normal(3, 1, size=(centres, dim))
    return (middle[generator.integers(centres, size=count)] + generator.normal(0, 0.2, (count, dim))).astype(np.float32)


def job_of(store: MemoryStore, vectors: np.ndarray, **changes: Any) -> CodebooksJob:
    return CodebooksJob(store, vectors, ASKED.model_copy(update=changes), "runs/one")


@pytest.fixture(scope="module")
def trained() -> tuple[np.ndarray, Codebooks, MemoryStore]:
    vectors, store = clustered(640), MemoryStore("memory://rqvae")
    return vectors, train_codebooks(job_of(store, vectors)), store


def model_of(books: Codebooks, dim: int) -> RQVAE:
    """Return the torch model whose encoder and codebooks these are, in float64."""
    assert books.encoder is not None
    widths = tuple(len(layer.bias) for layer in books.encoder.layers)
    model = RQVAE(RQVAESettings(books.sizes, widths[:-1], widths[-1]), dim)
    state = {"shift": books.encoder.shift, "scale": books.encoder.scale}
    for number, layer in enumerate(books.encoder.layers):
        state |= {f"encoder.{2 * number}.weight": layer.weight, f"encoder.{2 * number}.bias": layer.bias}
    state |= {f"quantizers.{number}.codebook": level for number, level in enumerate(books.levels)}
    told = model.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()}, strict=False)
    assert not told.unexpected_keys
    return model.double().eval()


def batch_of(vectors: np.ndarray) -> Batch:
    return Batch(torch.empty(len(vectors), 3, 0, 0), features=torch.from_numpy(vectors))


def test_numpys_codes_are_torchs_however_many_rows_are_encoded_together(
    trained: tuple[np.ndarray, Codebooks, MemoryStore],
) -> None:
    _, books, _ = trained
    vectors = clustered(500, seed=3)
    with torch.no_grad():
        latents = model_of(books, 8).encode_batch(batch_of(vectors.astype(np.float64)))
    assert latents.codes is not None
    whole = encode(vectors, books)
    assert np.array_equal(whole, latents.codes.numpy())
    # A point is the sum of its codes and of what they leave over, and the encoder is deterministic to the bit.
    points = books.points(vectors)
    np.testing.assert_allclose(latents.mean.numpy(), points - remainders(vectors, whole, books), atol=1e-9)
    sums = sum(level[whole[:, number]].astype(np.float64) for number, level in enumerate(books.levels))
    np.testing.assert_allclose(sums + remainders(vectors, whole, books), points, atol=1e-12)
    for rows in (1, 7, 256):
        pieces = [slice(start, start + rows) for start in range(0, 500, rows)]
        assert np.array_equal(np.concatenate([books.points(vectors[piece]) for piece in pieces]), points)
        assert np.array_equal(np.concatenate([encode(vectors[piece], books) for piece in pieces]), whole)
    # The usual product of matrices has other last digits row by row than all at once: what must not decide a code.
    weight = books.encoder.layers[0].weight.astype(np.float64) if books.encoder else np.empty(0)
    wide = vectors.astype(np.float64)
    assert any(not np.array_equal(wide[row] @ weight.T, (wide @ weight.T)[row]) for row in range(500))
    with pytest.raises(InputError, match=r"shape \[2, 5\]; the codebooks are of vectors \[n, 8\]"):
        encode(np.zeros((2, 5), np.float32), books)


def test_a_training_uses_its_codes_and_is_the_same_again(trained: tuple[np.ndarray, Codebooks, MemoryStore]) -> None:
    vectors, books, store = trained
    found = usage_measures(encode(vectors, books), books.sizes)
    assert found["sid_perplexity_1"] > 8
    assert found["sid_perplexity_2"] > 4
    # Near vectors share their first code.
    codes = encode(vectors, books)[:, 0]
    near = encode(vectors + np.float32(0.01), books)[:, 0]
    assert (codes == near).mean() > 0.9
    again = train_codebooks(job_of(MemoryStore("memory://again"), vectors))
    assert all(np.array_equal(one, other) for one, other in zip(again.levels, books.levels, strict=True))
    # What the run has trained already is not trained anew.
    kept = train_codebooks(job_of(store, vectors), progress=lambda _: pytest.fail("trained again"))
    assert np.array_equal(kept.levels[0], books.levels[0])


def test_a_stopped_training_goes_on_to_the_same_codebooks(trained: tuple[np.ndarray, Codebooks, MemoryStore]) -> None:
    vectors, books, _ = trained
    job = job_of(MemoryStore("memory://stopped"), vectors)
    asked = iter([False] * 4 + [True])
    with pytest.raises(Unavailable, match="asked to stop after step"):
        job.run_rank(Ranks(), line=Line(should_stop=lambda: next(asked)))
    assert job.answer() is None
    steps: list[int | None] = []
    found = train_codebooks(job, progress=lambda told: steps.append(told.resumed_from))
    assert steps[0] is not None
    for one, other in zip(found.levels, books.levels, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


class WithoutDecoder(RQVAE):
    """The known wrong way: commitment alone, which a point for all vectors makes least."""

    def error(self, made: Tensor, inputs: Tensor) -> Tensor:
        return 0.0 * super().error(made, inputs)


def steps_of(model: RQVAE, vectors: np.ndarray, steps: int) -> Codebooks:
    """Train a model by the plainest loop."""
    model.measured_by(torch.from_numpy(vectors))
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.01)
    for number in range(steps):
        optimiser.zero_grad()
        model(batch_of(vectors), Step(number, steps)).total.backward()
        optimiser.step()
        model.after_step()
    return frozen_codebooks(model.eval())


def begun(kind: type[RQVAE], *, restart: float) -> RQVAE:
    """Return a model whose codes begin anywhere but among the points: far from them, and hardly ever used."""
    torch.manual_seed(0)
    model = kind(RQVAESettings((32, 8), (12,), 4, restart_threshold=restart), 8)
    for level in model.levels():
        assert isinstance(level, EMAQuantizer)
        level.initialised.fill_(True)
        level.codebook.copy_(20 + torch.arange(float(level.num_codes))[:, None] * torch.ones(4))
        level.code_count.fill_(1e-3)
        level.code_sum.copy_(1e-3 * level.codebook)
    return model


def test_a_collapse_is_refused_before_it_is_kept_and_restarts_mend_it() -> None:
    vectors = clustered(200)
    mended = steps_of(begun(RQVAE, restart=0.1), vectors, 40)
    check_use(mended, vectors)
    assert usage_measures(encode(vectors, mended), (32, 8))["sid_dead_1"] <= 6
    for kind in (RQVAE, WithoutDecoder):
        collapsed = steps_of(begun(kind, restart=0.0), vectors, 40)
        with pytest.raises(ConfigError, match=r"level 1 has collapsed: its perplexity is 1\.0 of 32 codes, 31 have no"):
            check_use(collapsed, vectors)


def test_without_a_decoder_nothing_is_learned_of_the_vectors() -> None:
    """The known wrong way: the points shrink to what commitment likes best, and tell less and less apart."""
    vectors = clustered(200)
    spread = {}
    for kind in (RQVAE, WithoutDecoder):
        books = steps_of(begun(kind, restart=0.1), vectors, 80)
        spread[kind] = float(np.std(books.points(vectors), axis=0).mean())
    assert spread[WithoutDecoder] < 0.5 * spread[RQVAE]


def test_trained_codebooks_are_safetensors_that_are_checked(
    trained: tuple[np.ndarray, Codebooks, MemoryStore],
) -> None:
    vectors, books, _ = trained
    data = codebooks_bytes(books, {"method": "rqvae"})
    theirs = safetensors.numpy.load(data)
    assert theirs["encoder_weight_0"].shape == (24, 8)
    assert np.array_equal(encode(vectors, codebooks_from(data, "x")), encode(vectors, books))
    for left_out in ("encoder_shift", "encoder_bias_1", "encoder_weight_0", "level_0"):
        part = {name: tensor for name, tensor in theirs.items() if name != left_out}
        with pytest.raises(IntegrityError, match=r"x (is no file of codebooks|holds)"):
            codebooks_from(safetensors.numpy.save(part), "x")
    for wrong in ({"encoder_scale": np.ones(3, np.float32)}, {"decoder": np.ones(3, np.float32)}):
        with pytest.raises(IntegrityError, match=r"do not fit each other|holds \['decoder'\] too"):
            codebooks_from(safetensors.numpy.save(theirs | wrong), "x")


def test_numbering_by_an_earlier_vocabulary_leaves_the_encoder(
    trained: tuple[np.ndarray, Codebooks, MemoryStore],
) -> None:
    vectors, books, _ = trained
    old = encode(vectors, fit_codebooks(vectors, (16, 8), seed=0))
    new = renumbered(books, old, encode(vectors, books), (16, 8)).books
    assert new.encoder is books.encoder
    for level, now in zip(books.levels, new.levels, strict=True):
        assert sorted(map(tuple, now.tolist())) == sorted(map(tuple, level.tolist()))
    assert (encode(vectors, new)[:, 0] == old[:, 0]).mean() > (encode(vectors, books)[:, 0] == old[:, 0]).mean()


def test_what_rq_kmeans_asks_for_has_the_names_that_it_had() -> None:
    plain = SemanticIdsConfig()
    assert plain.model_dump(mode="json") == {
        "levels": [1024, 256, 256], "method": "rq_kmeans", "capacity": None, "seed": 0,
    }  # fmt: skip
    values = {"format": "1", "method": "rq_kmeans", "levels": [1024, 256, 256], "seed": 0, "metric": "cosine"}
    assert codebooks_name("ab", plain, "cosine") == f"models/ab/sids-{key_of(values)[:12]}.safetensors"
    assert codebooks_name("ab", plain, "cosine") == "models/ab/sids-e28fb5dd8515.safetensors"
    assert (
        digest_of(codebooks_bytes(Codebooks((np.eye(3, dtype=np.float32),)), {"seed": "0"}))
        == "859c477cb704d227927691a56207bbe4bbd12f3ec4b957ecd0ec926057494a8d"
    )
    longer = ASKED.model_copy(update={"rqvae": ASKED.rqvae.model_copy(update={"epochs": 21})})
    names = {codebooks_name("ab", asked, "cosine") for asked in (ASKED, longer, plain)}
    assert len(names) == 3
    assert codebooks_name("ab", plain, "cosine", Sample(limit=5, seed=0)) not in names
    with pytest.raises(ValueError, match="rqvae is set, and method is rq_kmeans; set method to rqvae"):
        SemanticIdsConfig.model_validate({"rqvae": {"epochs": 3}})


def test_fewer_different_vectors_than_codes_are_refused() -> None:
    vectors = np.repeat(clustered(5), 10, axis=0)
    with pytest.raises(ConfigError, match="asks for 16 codes at level 1, and the items have only 5 different vectors"):
        train_codebooks(job_of(MemoryStore("memory://few"), vectors))


def test_a_night_asks_for_a_training_once_a_bundle(trained: tuple[np.ndarray, Codebooks, MemoryStore]) -> None:
    vectors, books, _ = trained
    asked: list[int] = []

    def train(sample: np.ndarray, config: SemanticIdsConfig) -> Codebooks:
        asked.append(len(sample))
        assert config.method == "rqvae"
        return books

    rows = vectors[:200]
    ids = pa.table({"item_id": [f"sku-{number:03d}" for number in range(len(rows))]})
    night: Any = SimpleNamespace(
        run="one", model_id="ab", metric="l2", items=ids, latents=LatentArrays(mean=rows), index=None,
        changes=ids.slice(0, 0), parent=None, category=None, sample=None, space=None,
    )  # fmt: skip
    store = MemoryStore("memory://nights")
    made = [further_tables(store, night, TablesConfig(), ASKED, Makers(train, lambda: ())) for _ in range(2)]
    assert asked == [200], "the second night finds what the first one kept"
    data, suffix, _ = made[1].files["sid_codebooks"]
    assert (suffix, digest_of(data)) == (".safetensors", made[0].inputs["semantic_ids"]["codebooks"])
    table = pq.read_table(pa.BufferReader(b"".join(file.data for file in made[1].files["semantic_ids"])))
    codes = encode(rows, codebooks_from(data, "kept"))
    left = np.linalg.norm(remainders(rows, codes, books), axis=1)
    for row in table.to_pylist():
        number = int(row["item_id"][-3:])
        assert row["codes"] == codes[number].tolist()
        assert row["residual_norm"] == pytest.approx(left[number], rel=1e-5)


def test_the_command_hands_over_what_a_training_needs() -> None:
    told: list[str] = []
    context: Any = SimpleNamespace(
        store=MemoryStore("memory://context"), run=SimpleNamespace(name="night"), attempt=SimpleNamespace(number=3),
        config=SimpleNamespace(train=SimpleNamespace(threads=1)),
        progress=SimpleNamespace(note=told.append, training=lambda progress: None),
    )  # fmt: skip
    short = ASKED.model_copy(update={"rqvae": ASKED.rqvae.model_copy(update={"epochs": 1})})
    books = codebooks_of(context, clustered(200), short)
    assert books.sizes == (16, 8)
    assert told == ["codebooks of semantic IDs: rqvae on 200 item vectors"]
    (name,) = [entry.name for entry in context.store.list("runs/night/codebooks-")]
    assert np.array_equal(codebooks_from(context.store.get(name), name).levels[0], books.levels[0])
