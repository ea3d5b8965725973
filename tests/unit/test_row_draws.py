"""Balanced sampling: exact quotas, level draws within a category, over one epoch and over many."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.training.dealing import cut
from pipeline.training.row_draws import Balanced, EveryRow

parts = st.lists(st.lists(st.sampled_from([0, 1, 2, 7, 900]), max_size=25), min_size=1, max_size=6).filter(any)


def arrays(given_parts: list[list[int]]) -> list[np.ndarray]:
    return [np.array(part, np.int32) for part in given_parts]


def draws_of(sampling: Balanced, categories: list[np.ndarray], epoch: int) -> list[np.ndarray]:
    """Return how often each row of each part is drawn."""
    counts = sampling.counts(epoch)
    out = []
    for part, rows in enumerate(categories):
        places = sampling.places(epoch, part)
        assert places.dtype == np.int32
        assert len(places) == counts[part]
        out.append(np.bincount(places, minlength=len(rows)))
        assert len(out[-1]) == len(rows)
    return out


def spread(draws: np.ndarray, categories: np.ndarray) -> int:
    """Return the largest difference between draws of rows of one category."""
    return max(int(np.ptp(draws[categories == name])) for name in np.unique(categories))


@given(given_parts=parts, seed=st.integers(0, 5), first=st.integers(0, 10_000))
@settings(max_examples=60)
def test_categories_have_exact_quotas_and_their_rows_level_draws(given_parts, seed, first):
    categories = arrays(given_parts)
    together = np.concatenate(categories)
    names = np.unique(together)
    sampling = Balanced(categories, seed=seed)
    assert sampling.total == len(together)
    sums = np.zeros(len(together), np.int64)
    for epoch in range(first, first + 4):
        draws = np.concatenate(draws_of(sampling, categories, epoch))
        assert draws.sum() == len(together)
        quotas = np.array([draws[together == name].sum() for name in names])
        assert set(quotas) <= {len(together) // len(names), math.ceil(len(together) / len(names))}
        assert (np.diff(quotas) <= 0).all()  # and in every epoch the same ones
        assert spread(draws, together) <= 1
        sums += draws
        assert spread(sums, together) <= 1  # over any number of epochs, too
    # The same again from nothing.
    again = Balanced(categories, seed=seed)
    assert [draws.tolist() for draws in draws_of(again, categories, first)] == [
        draws.tolist() for draws in draws_of(sampling, categories, first)
    ]


def test_over_as_many_epochs_as_rows_every_row_has_its_category_s_quota():
    categories = arrays([[5] * 30 + [6], [5] * 17 + [9, 9]])  # 47, 1 and 2 rows; quotas 17, 17, 16
    sampling = Balanced(categories, seed=1)
    sums = sum(np.concatenate(draws_of(sampling, categories, epoch)) for epoch in range(47))
    together = np.concatenate(categories)
    assert set(sums[together == 5]) == {17}
    assert set(sums[together == 6]) == {47 * 17}
    assert set(sums[together == 9]) == {47 * 8}


def test_a_weighted_random_sampler_is_not_level():
    """The usual remedy, weights of 1 / frequency with replacement, draws rows unlike often and quotas by chance."""
    together = np.array([0] * 900 + list(np.repeat(np.arange(1, 11), 10)), np.int32)
    weights = torch.from_numpy(1.0 / np.bincount(together)[together])
    torch.manual_seed(0)
    sampler = torch.utils.data.WeightedRandomSampler(weights, len(together))
    drawn = np.bincount(list(sampler), minlength=len(together))
    sums = np.bincount(together, drawn)
    assert spread(drawn, together) > 5
    assert np.ptp(sums) > 10
    ours = np.concatenate(draws_of(Balanced([together], seed=0), [together], 0))
    assert spread(ours, together) == 1
    assert np.ptp(np.bincount(together, ours)) <= 1


def test_epochs_and_seeds_draw_other_rows():
    categories = [np.array([0] * 900 + [1] * 100, np.int32)]
    sampling = Balanced(categories, seed=0)
    chosen = [set(sampling.places(epoch, 0).tolist()) for epoch in range(3)]
    assert chosen[0] != chosen[1] != chosen[2]
    assert set(Balanced(categories, seed=1).places(0, 0).tolist()) != chosen[0]
    # 500 of 900 an epoch: two epochs see every row.
    assert chosen[0] | chosen[1] >= set(range(900))


def test_a_rare_part_is_cut_so_that_it_fills_no_window():
    categories = arrays([[0] * 100] * 9 + [[1] * 4])
    sampling = Balanced(categories, seed=0)
    counts = sampling.counts(0)
    assert counts[-1] == 452
    assert sampling.longest_piece == 91
    pieces = cut(counts, sampling.longest_piece)
    assert max(map(len, pieces)) <= 91
    assert sum(map(len, pieces)) == 904
    assert len(pieces) <= 2 * len(categories)


@pytest.mark.parametrize("longest", [None, 1, 4, 100])
def test_pieces_cover_all_draws_once(longest):
    pieces = cut([5, 0, 9], longest)
    covered = [(piece.part, row) for piece in pieces for row in range(piece.start, piece.stop)]
    assert covered == [(0, row) for row in range(5)] + [(2, row) for row in range(9)]
    assert longest is None or max(map(len, pieces)) <= longest


def test_every_row_is_every_row():
    sampling = EveryRow([3, 0, 2])
    assert (sampling.total, sampling.counts(7), sampling.longest_piece) == (5, [3, 0, 2], None)
    assert sampling.places(7, 0).tolist() == [0, 1, 2]


def test_large_categories_do_not_overflow():
    """Rows times draws pass 2^31 here."""
    sampling = Balanced([np.zeros(70_000, np.int32), np.array([1, 1], np.int32)], seed=0)
    for epoch in (0, 10**6):
        assert sampling.counts(epoch) == [35_001, 35_001]
        assert len(sampling.places(epoch, 0)) == 35_001
