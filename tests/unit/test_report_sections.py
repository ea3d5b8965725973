"""Sections of a release's report against counts of their own: codes, windows of rows, training curves, neighbours."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.models.base import Latents
from pipeline.quality.release_page.atlas import _decoded, _leaning, _level, _piece, _pieces, _Seen, _titled
from pipeline.quality.release_page.curves import training_curves
from pipeline.quality.release_page.windows import drawn_rows
from pipeline.report.night import CodeCard
from pipeline.storage import open_store


class Painter:
    """A model whose decoder paints cell n of a 2 x 2 grid in the grey of its code."""

    latent_dim, num_latent_codes = 3, 4

    def decode(self, latents: Latents) -> torch.Tensor:
        assert latents.codes is not None
        grey = latents.codes.reshape(-1, 1, 2, 2).to(torch.float32) / 255
        return grey.repeat_interleave(4, 2).repeat_interleave(4, 3).expand(-1, 3, -1, -1)


def some_codes(photos: int = 400, size: int = 16) -> np.ndarray:
    shares = np.r_[np.arange(size - 4, 0, -1), 0, 0, 0, 0] / (size - 4) / (size - 3) * 2
    return np.random.default_rng(5).choice(size, (photos, 4), p=shares)


def test_use_of_codes_is_counted() -> None:
    codes = some_codes()
    labels = np.array(["hat", "bag"] * 200)
    level = _level("", 16, codes, np.arange(4), _Seen(Painter(), {}, labels))  # type: ignore[arg-type]
    counts = Counter(codes.ravel().tolist())
    assert (level.size, level.used, level.photos) == (16, len(counts), 400)
    assert level.shares == pytest.approx([count / codes.size for _, count in counts.most_common()])
    p = np.array(level.shares)
    assert level.perplexity == pytest.approx(np.exp(-(p * np.log(p)).sum()))
    cards = {card.code: card for _, group in level.groups for card in group}
    assert set(cards) == set(counts)
    for code, card in cards.items():
        assert card.share == pytest.approx(counts[code] / codes.size)
        assert card.photos == pytest.approx(np.mean([code in row for row in codes.tolist()]))
        assert card.leans is None, "labels that have nothing to do with codes lean nowhere"
        assert card.decoded is not None
        assert (card.decoded == code).all(), "the decoder is asked for this code in every cell"
        assert card.cells is None, "no photo has pixels"


def test_other_levels_keep_their_usual_codes_while_one_is_drawn() -> None:
    codes = np.tile([7, 7, 3, 9], (20, 1))
    drawn = _decoded(Painter(), codes, np.array([0, 1]), np.array([40, 50]))  # type: ignore[arg-type]
    assert drawn is not None
    assert [picture[::4, ::4, 0].ravel().tolist() for picture in drawn] == [[40, 40, 3, 9], [50, 50, 3, 9]]


def test_a_code_leans_to_a_category_only_beyond_chance() -> None:
    labels = np.array(["hat"] * 100 + ["bag"] * 300)
    planted = np.r_[np.ones(60, bool), np.zeros(40, bool), np.ones(40, bool), np.zeros(260, bool)]
    assert _leaning(planted, labels) == ("hat", pytest.approx(0.6 / 0.25))
    assert _leaning(np.random.default_rng(0).permutation(planted), labels) == (None, None)
    assert _leaning(planted, np.full(400, "")) == (None, None)
    few = np.array(["sock"] * 3 + ["bag"] * 397)
    assert _leaning(np.arange(400) < 3, few) == (None, None), "three photos say nothing"


def test_pieces_are_cut_around_the_cells_of_a_code() -> None:
    picture = np.zeros((64, 64, 3), np.uint8)
    for row in range(8):
        for column in range(8):
            picture[8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = 8 * row + column
    piece = _piece(picture, 27, 8)  # row 3, column 3
    assert piece[12, 12].tolist() == [27, 27, 27]
    assert set(piece[..., 0].ravel().tolist()) == {18, 19, 20, 26, 27, 28, 34, 35, 36}
    assert set(_piece(picture, 0, 8)[..., 0].ravel().tolist()) == {0, 1, 8, 9}, "at the edge it stays inside"
    own = np.zeros((3, 64), np.int64)
    own[1, 27] = own[2, 27] = own[2, 28] = 5
    board = _pieces(5, own, dict.fromkeys(range(3), picture))
    assert board is not None
    assert set(board[:24, :24, 0].ravel().tolist()) == {19, 20, 21, 27, 28, 29, 35, 36, 37}, "most cells come first"
    assert (board[:24, 26:50] == piece).all()
    assert (board[:24, 52:] == 255).all()
    assert _pieces(6, own, {0: picture}) is None
    assert _pieces(5, own[:, :60], {1: picture}) is None, "60 cells are no square grid"


def test_codes_of_small_groups_share_a_heading() -> None:
    cards = [CodeCard(code, 0.1 - code / 100, 0.5) for code in range(7)]
    titled = _titled({"": cards[:2], "hat": cards[2:5], "bag": cards[6:], "sock": cards[5:6]})
    assert [(title, [card.code for card in group]) for title, group in titled] == [
        ("In photos of all categories", [0, 1]),
        ("More often in hat", [2, 3, 4]),
        ("More often in one category", [5, 6]),
    ]
    assert [title for title, _ in _titled({"": cards})] == ["The most used first"]


@pytest.mark.parametrize(("rows", "most"), [(1_000_000, 2048), (5_000, 2048), (2_049, 2048), (300, 2048), (40, 16)])
def test_photos_are_drawn_in_few_runs_over_the_whole_table(rows: int, most: int) -> None:
    hidden = np.array([1, 2])
    items = SimpleNamespace(num_rows=rows, groups=SimpleNamespace(numbers=np.arange(rows)))

    def drawn(seed: int) -> np.ndarray:
        generator = lambda *stream: np.random.default_rng([seed, *stream])  # noqa: E731
        subject: Any = SimpleNamespace(now=SimpleNamespace(items=items, hidden=hidden), draw=generator)
        return drawn_rows(subject, stream=1, most=most)

    found = drawn(0)
    assert len(found) == len(set(found.tolist())) <= min(most, rows)
    assert 0 <= found.min() <= found.max() < rows
    assert not np.isin(hidden, found).any()
    runs = 1 + sum(after > before + 1 for before, after in pairwise(found.tolist()) if before not in (0,))
    assert runs <= 17
    np.testing.assert_array_equal(found, drawn(0))
    if rows > 10 * most:
        assert not np.array_equal(found, drawn(1))
        assert np.histogram(found, bins=16, range=(0, rows))[0].min() > 0, "every sixteenth of the table has some"


def test_training_curves_are_what_was_written(tmp_path: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    store = open_store(str(tmp_path / "store"))

    def attempt(number: int, steps: range, *, purge: int | None) -> bytes:
        folder = tmp_path / f"attempt-{number}"
        with SummaryWriter(str(folder), purge_step=purge) as writer:
            for step in steps:
                writer.add_scalar("loss/total", 100.0 * number + step, step)
            writer.add_scalar("once", 1.0, 3)
            writer.add_image("picture", np.zeros((3, 4, 4), np.uint8), 2)
        return next(folder.iterdir()).read_bytes()

    first, second = attempt(1, range(1, 9), purge=0), attempt(2, range(6, 400), purge=6)
    store.put("runs/n/tensorboard/events.1", first)
    (curve,) = training_curves(store, "n")
    assert [point.value for point in curve.points] == [101.0 + step for step in range(8)]
    store.put("runs/n/tensorboard/events.2", second[:-7])  # cut while it was written
    (curve,) = training_curves(store, "n")
    known = {point.label: point.value for point in curve.points}
    assert known["step 1"] == 101.0
    assert "step 7" not in known or known["step 7"] == 207.0, "what was done again takes the place of what was before"
    assert len(curve.points) <= 202
    assert curve.points[-1].label in {"step 398", "step 399"}
    assert training_curves(store, "another") == []
