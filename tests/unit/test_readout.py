"""The read-out: pooling as torch's, PCA as scikit-learn's, and a network with it through ONNX and its state."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from pipeline.errors import ConfigError, InputError
from pipeline.models.readout import ReadOut, ReadOutConfig, principal_components


def rows_of(number: int = 500, width: int = 24, seed: int = 0) -> torch.Tensor:
    """Return correlated rows whose principal directions are well apart, far from the origin."""
    generator = torch.Generator().manual_seed(seed)
    scales = 1.3 ** -torch.arange(width, dtype=torch.float32)
    turn = torch.linalg.qr(torch.randn(width, width, generator=generator)).Q
    rows: torch.Tensor = (torch.randn(number, width, generator=generator) * scales) @ turn + 5.0
    return rows


@pytest.mark.parametrize("grid", [1, 7, 8])
@pytest.mark.parametrize("pool", ["global", "map"])
def test_pooling_is_adaptive_average_pooling(pool: str, grid: int) -> None:
    features = torch.randn(3, 5, grid, grid, generator=torch.Generator().manual_seed(1))
    read_out = ReadOut(ReadOutConfig.model_validate({"pool": pool}), 5, grid)
    cells = 1 if pool == "global" else min(4, grid)
    expected = torch.nn.functional.adaptive_avg_pool2d(features, cells).flatten(1)
    assert read_out.latent_dim == expected.shape[1]
    torch.testing.assert_close(read_out(features), expected, rtol=1e-5, atol=1e-6)
    assert not read_out.needs_fit
    assert not read_out.state_dict()


@pytest.mark.parametrize("whiten", [False, True])
@pytest.mark.parametrize("dims", [6, None])
def test_pca_is_that_of_scikit_learn(dims: int | None, whiten: bool) -> None:
    rows = rows_of()
    config = ReadOutConfig(dims=dims, whiten=whiten)
    read_out = ReadOut(config, 24, 1)
    if not read_out.needs_fit:
        return
    read_out.fit(rows)
    expected = PCA(dims or 24, whiten=whiten, svd_solver="full").fit(rows.double().numpy())
    wanted = expected.transform(rows.double().numpy())
    found = read_out(rows[:, :, None, None]).numpy()
    signs = np.sign((found * wanted).sum(axis=0))
    np.testing.assert_allclose(found, wanted * signs, rtol=0, atol=5e-4)
    largest = read_out.components.gather(1, read_out.components.abs().argmax(1, keepdim=True))
    assert (largest > 0).all()


@pytest.mark.parametrize("chunk", [4096, 10])
def test_fewer_photos_than_numbers_have_the_same_components(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.models.components._CHUNK", chunk)
    rows = rows_of(20, 24)
    variances, directions = principal_components(rows, 19)
    expected = PCA(19, svd_solver="full").fit(rows.double().numpy())
    np.testing.assert_allclose(variances.numpy(), expected.explained_variance_, rtol=1e-9)
    signs = np.sign((directions.numpy() * expected.components_).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(directions.numpy(), expected.components_ * signs, rtol=0, atol=1e-8)
    same = rows[:1].expand(20, -1)  # one photo many times: no variance, and still directions at right angles
    variances, directions = principal_components(same, 5)
    assert variances.tolist() == [0.0] * 5
    torch.testing.assert_close(directions @ directions.T, torch.eye(5, dtype=torch.float64))


def test_a_fit_without_centring_is_not_a_pca() -> None:
    """The known wrong version: without the mean the first direction is the mean itself."""
    rows = rows_of()
    read_out = ReadOut(ReadOutConfig(dims=3), 24, 1)
    read_out.fit(rows)
    wrong = torch.linalg.svd(rows.double(), full_matrices=False).Vh[0]
    right = PCA(3, svd_solver="full").fit(rows.double().numpy()).components_[0]
    first = read_out.components[0].double()
    assert abs(float(first @ torch.from_numpy(right))) > 1 - 1e-6
    assert abs(float(first @ wrong)) < 0.9


def test_chunks_and_repeats_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_of()
    first, second, chunked = (ReadOut(ReadOutConfig(dims=5, whiten=True), 24, 1) for _ in range(3))
    first.fit(rows)
    second.fit(rows)
    assert torch.equal(first.components, second.components)
    monkeypatch.setattr("pipeline.models.components._CHUNK", 7)
    chunked.fit(rows)
    torch.testing.assert_close(chunked.components, first.components, rtol=1e-5, atol=1e-5)


def test_whitening_leaves_dead_channels_small() -> None:
    rows = rows_of()
    rows[:, 3] = 1.0
    read_out = ReadOut(ReadOutConfig(whiten=True), 24, 1)
    read_out.fit(rows)
    vectors = read_out(rows[:, :, None, None])
    assert torch.isfinite(vectors).all()
    assert vectors[:, :20].std(dim=0) == pytest.approx(torch.ones(20), abs=1e-2)
    assert vectors[:, -1].abs().max() < 0.1


def test_an_unfitted_pca_is_an_error_and_the_state_says_whether_it_is() -> None:
    read_out = ReadOut(ReadOutConfig(dims=5), 24, 1)
    features = rows_of()[:, :, None, None]
    with pytest.raises(ConfigError, match="not fitted"):
        read_out(features)
    unfitted = ReadOut(ReadOutConfig(dims=5), 24, 1)
    unfitted.load_state_dict(read_out.state_dict())
    assert not unfitted.fitted
    read_out.fit(rows_of())
    twin = ReadOut(ReadOutConfig(dims=5), 24, 1)
    twin.load_state_dict(read_out.state_dict())
    assert torch.equal(twin(features), read_out(features))
    assert torch.equal(copy.deepcopy(read_out)(features), read_out(features))


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"dims is 25.*24 numbers"):
        ReadOut(ReadOutConfig(dims=25), 24, 1)
    with pytest.raises(InputError, match="5 photos cannot fit 5"):
        ReadOut(ReadOutConfig(dims=5), 24, 1).fit(rows_of(number=5))


def test_half_precision_keeps_the_vectors_in_float32() -> None:
    read_out = ReadOut(ReadOutConfig(dims=5), 24, 1)
    read_out.fit(rows_of())
    features = rows_of()[:, :, None, None]
    with torch.autocast("cpu", torch.bfloat16):
        found = read_out(features)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, read_out(features))
