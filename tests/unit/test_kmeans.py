"""k-means against scikit-learn, and where the codebooks of one rank begin."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans

from pipeline.models.quantizers import EMAQuantizer, GradientQuantizer
from pipeline.models.quantizers.kmeans import kmeans, spread_out
from pipeline.models.quantizers.nearest import nearest_code, nearest_in_blocks
from pipeline.models.quantizers.rank_draws import sample


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


def lloyd(rows: torch.Tensor, start: torch.Tensor, iterations: int) -> torch.Tensor:
    model = KMeans(len(start), init=start.numpy(), n_init=1, max_iter=iterations, tol=0, algorithm="lloyd")
    return torch.from_numpy(model.fit(rows.numpy()).cluster_centers_)


def clusters(number: int, rows: int, spread: float = 0.05) -> tuple[torch.Tensor, torch.Tensor]:
    centres = torch.randn(number, 16)
    return centres, centres[torch.randint(number, (rows,))] + spread * torch.randn(rows, 16)


@pytest.mark.parametrize("iterations", [1, 3, 10])
def test_lloyd_equals_scikit_learn(iterations: int) -> None:
    rows, start = torch.randn(3000, 8), torch.randn(40, 8)
    found = kmeans(rows, start, iterations=iterations)
    expected = lloyd(rows, start, iterations)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert (kmeans(rows, start, iterations=iterations + 1) - expected).abs().max() > 1e-3  # the control


def test_empty_clusters_take_the_farthest_rows_as_in_scikit_learn() -> None:
    rows = torch.cat([torch.randn(400, 8), torch.randn(1, 8) + 9, torch.randn(1, 8) - 12])
    start = torch.cat([torch.randn(10, 8), torch.full((2, 8), 90.0) + torch.randn(2, 8)])
    found, expected = kmeans(rows, start, iterations=5), lloyd(rows, start, 5)
    order = [torch.from_numpy(np.lexsort(centres.numpy().round(3).T)) for centres in (found, expected)]
    torch.testing.assert_close(found[order[0]], expected[order[1]], rtol=0, atol=1e-5)
    assert found.abs().max() < 20


def test_spherical_centres_stay_on_the_sphere_and_gain_cosine() -> None:
    rows = F.normalize(torch.randn(2000, 8) + torch.tensor([2.0, *[0.0] * 7]), dim=1)
    start = rows[:20]
    centres = kmeans(rows, start, iterations=10, spherical=True)
    torch.testing.assert_close(centres.norm(dim=1), torch.ones(20))

    def cosine(of: torch.Tensor) -> float:
        return (rows @ of.T).amax(1).mean().item()

    assert cosine(centres) > cosine(start) + 0.01
    # A fixed point of spherical k-means: every centre is the direction of its members' sum.
    final = kmeans(rows, start, iterations=200, spherical=True)
    labels = (rows @ final.T).argmax(1)
    sums = F.normalize(torch.zeros_like(final).index_add_(0, labels, rows), dim=1)
    torch.testing.assert_close(sums, final, rtol=0, atol=1e-5)


def test_spread_out_finds_every_cluster_where_a_plain_draw_does_not() -> None:
    _, rows = clusters(64, 4000)
    labels = kmeans_labels(rows)
    found, plain = [], []
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        found.append(len(labels[spread_out(rows, 64, generator)].unique()))
        plain.append(len(labels[torch.randperm(4000, generator=generator)[:64]].unique()))
    assert min(found) >= 60
    assert max(plain) <= 52  # 64 * (1 - 1/e) = 40


def kmeans_labels(rows: torch.Tensor) -> torch.Tensor:
    """Return which cluster every row is of."""
    return torch.from_numpy(KMeans(64, n_init=5, random_state=0).fit_predict(rows.numpy()))


def test_spread_out_draws_by_squared_distance() -> None:
    rows = torch.tensor([[0.0], [1.0], [2.0], [4.0]])
    pairs = torch.zeros(4, 4)
    for seed in range(3000):
        first, second = spread_out(rows, 2, torch.Generator().manual_seed(seed)).tolist()
        pairs[first, second] += 1
    torch.testing.assert_close(pairs.sum(1) / 3000, torch.full((4,), 0.25), rtol=0, atol=0.04)
    squared = (rows - rows.T).square()
    torch.testing.assert_close(
        pairs / pairs.sum(1, keepdim=True), squared / squared.sum(1, keepdim=True), rtol=0, atol=0.06
    )


def test_rows_that_repeat_are_taken_again_and_nothing_breaks() -> None:
    rows = torch.randn(3, 4).repeat(10, 1)
    chosen = spread_out(rows, 8, torch.Generator().manual_seed(0))
    assert len(rows[chosen].unique(dim=0)) == 3
    assert kmeans(rows, rows[chosen], iterations=5).isfinite().all()
    assert kmeans(rows[:2], rows[chosen], iterations=2).isfinite().all()


def test_blocks_change_no_choice() -> None:
    rows, codebook = torch.randn(1000, 8), torch.randn(30, 8)
    assert torch.equal(nearest_in_blocks(rows, codebook, cells=1000), nearest_code(rows, codebook))


@pytest.mark.parametrize("quantizer_class", [EMAQuantizer, GradientQuantizer])
def test_a_codebook_begins_at_the_centres_of_the_first_batch(
    quantizer_class: type[EMAQuantizer | GradientQuantizer],
) -> None:
    _, rows = clusters(32, 5000)
    quantizer = quantizer_class(64, 16)
    quantizer(rows)
    drawn = sample(rows, 64 * 64, 0)
    begin = drawn[spread_out(drawn, 64, torch.Generator().manual_seed(0))]
    torch.testing.assert_close(quantizer.codebook.detach(), lloyd(drawn, begin, 10), rtol=0, atol=1e-5)
    assert torch.equal(quantizer.code_count, torch.ones(64))
    before = quantizer.codebook.detach().clone()
    quantizer.eval()
    quantizer(rows)
    quantizer.train()
    assert torch.equal(quantizer.codebook, before)  # once, not again


def test_k_means_leaves_less_error_than_vectors_of_the_batch() -> None:
    _, rows = clusters(64, 6000)
    errors = {}
    for init in ("kmeans", "data", "normal"):
        torch.manual_seed(3)
        quantizer = EMAQuantizer(64, 16, init=init)  # type: ignore[arg-type]
        errors[init] = (quantizer(rows).values - rows).square().sum(1).mean().item()
    print({init: round(error, 3) for init, error in errors.items()})
    assert errors["kmeans"] < 0.2  # the clusters' own spread: 16 * 0.05**2 = 0.04
    assert errors["kmeans"] < 0.1 * errors["data"] < 0.1 * errors["normal"]
