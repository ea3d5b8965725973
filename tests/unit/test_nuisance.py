"""Neighbour purity: encoders that know the design or the nuisance alone, other libraries, and what is rendered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from pipeline.errors import InputError
from pipeline.evaluation.nuisance import DesignPhotos, neighbour_purity, nuisance_photos, nuisance_purity
from pipeline.evaluation.retrieval import retrieve
from pipeline.images import ImagesConfig
from pipeline.images.drawing import COLOURS, PATTERNS, Product, View, draw_product, is_light
from pipeline.images.garments import GARMENTS
from pipeline.images.render import NUISANCES, SHOWINGS, choose_designs, render_photos, render_products, showings

DESIGNS = np.repeat(np.arange(100), 4)


def directions(numbers: np.ndarray, dims: int = 8) -> np.ndarray:
    """Return a random direction for every number, the same for equal ones."""
    return np.random.default_rng(3).normal(size=(int(numbers.max()) + 1, dims))[numbers]


def angles(values: np.ndarray) -> np.ndarray:
    """Return values as points of a circle, so that cosine tells near ones from far ones."""
    return np.stack([np.cos(values), np.sin(values)], axis=1)


def test_the_design_alone_is_one_and_the_nuisance_alone_is_chance() -> None:
    nuisance = np.random.default_rng(0).uniform(0, 3, len(DESIGNS))
    assert neighbour_purity(directions(DESIGNS), DESIGNS).purity == 1
    blind = neighbour_purity(angles(nuisance), DESIGNS)
    assert blind.chance == pytest.approx(3 / 399)
    # A design's four photos make 6 pairs; 100 designs of 12 hits or misses have this standard error at most.
    assert blind.purity == pytest.approx(blind.chance, abs=3 * np.sqrt(blind.chance / 600))
    collapsed = neighbour_purity(np.ones((len(DESIGNS), 3)), DESIGNS)
    assert collapsed.purity == pytest.approx(blind.chance, abs=0.015), "not the order of the photos"
    # In between: the more of the nuisance, the less of the design.
    found = [
        neighbour_purity(np.concatenate([directions(DESIGNS), weight * angles(nuisance)], axis=1), DESIGNS).purity
        for weight in (0, 3, 10, 100)
    ]
    assert found == sorted(found, reverse=True)
    assert found[1] > 0.3 > found[2] > found[3]


def test_it_is_the_r_precision_of_a_loop_and_of_scikit_learns_neighbours() -> None:
    rng = np.random.default_rng(1)
    owners = rng.permutation(np.repeat(np.arange(12), [1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 7, 8]))
    vectors = rng.normal(size=(12, 5))[owners] + 0.9 * rng.normal(size=(len(owners), 5)) + 1
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    theirs = NearestNeighbors(n_neighbors=len(owners) - 1, metric="cosine").fit(vectors).kneighbors()[1]
    by_design: dict[int, list[float]] = {}
    for row, owner in enumerate(owners):
        fitting = int(np.sum(owners == owner)) - 1
        near = sorted(
            (other for other in range(len(owners)) if other != row), key=lambda other: -unit[row] @ unit[other]
        )
        assert near[:fitting] == theirs[row, :fitting].tolist()
        if fitting:
            by_design.setdefault(int(owner), []).append(np.mean(owners[near[:fitting]] == owner))
    found = neighbour_purity(vectors, owners)
    assert found.purities == pytest.approx([np.mean(by_design[design]) for design in sorted(by_design)])
    assert len(found.purities) == 11, "a design of one photo is not asked"
    assert found.purity == pytest.approx(found.purities.mean())
    assert 0.2 < found.purity < 0.9
    # Negative controls: Euclidean distance, and a photo that may find itself, give other numbers.
    euclid = NearestNeighbors(n_neighbors=len(owners) - 1).fit(vectors).kneighbors()[1]
    assert np.mean(owners[euclid[:, 0]] == owners) != np.mean(owners[theirs[:, 0]] == owners)
    assert retrieve(vectors, owners, vectors, owners).r_precision.mean() > found.purity + 0.1


def test_numbers_have_their_interval_over_designs() -> None:
    shown = DesignPhotos(np.zeros((400, 2, 2, 3), np.uint8), DESIGNS)
    rng = np.random.default_rng(2)
    vectors = directions(DESIGNS) + 0.6 * rng.normal(size=(400, 8))
    numbers = nuisance_purity(lambda pixels: vectors[: len(pixels)], {"angle": shown}, seed=0)
    assert list(numbers) == [f"purity_angle{end}" for end in ("", "_chance", "_low", "_high")]
    found = neighbour_purity(vectors, DESIGNS)
    error = found.purities.std() / 10
    assert numbers["purity_angle"] == found.purity
    assert numbers["purity_angle_low"] == pytest.approx(found.purity - 1.96 * error, abs=0.5 * error)
    assert numbers["purity_angle_high"] == pytest.approx(found.purity + 1.96 * error, abs=0.5 * error)


def test_designs_are_the_catalogues_and_no_two_alike() -> None:
    designs = choose_designs(200, seed=0)
    assert len({(design.category, design.colour, design.pattern) for design in designs}) == 200
    assert {(design.angle, design.shade, design.width) for design in designs} == {(0, 0.97, 0.95)}
    assert {design.category for design in designs} == set(GARMENTS)
    assert {design.pattern for design in designs} == set(PATTERNS)
    assert set(COLOURS) - {design.colour for design in designs} == {"purple"}
    assert designs[:20] == choose_designs(20, seed=0) != choose_designs(20, seed=1)
    # Purple is what shade would turn into another design: its pattern is dark on a light fabric, light on a dark one.
    assert not is_light("purple", 0.97)
    assert is_light("purple", 1.05)
    most = len(GARMENTS) * 9 * len(PATTERNS)
    with pytest.raises(InputError, match=f"{most + 1} designs are asked for and there are {most}"):
        choose_designs(most + 1, seed=0)


@pytest.mark.parametrize("nuisance", NUISANCES)
def test_only_the_nuisance_differs_and_as_in_the_catalogue(nuisance: str) -> None:
    product = choose_designs(1, seed=4)[0]
    dice = np.random.default_rng(0)
    taken = [showing for _ in range(100) for showing in showings(product, nuisance, dice)]
    assert len(taken) == 100 * SHOWINGS
    for name, value in asdict(product).items():
        seen = {getattr(shown, name) for shown, _ in taken}
        assert len(seen) > 50 if name == nuisance else seen == {value}, name
    if nuisance == "view":
        kinds = [(view.mirrored, view.zoom > 1, view.turn != 0) for _, view in taken[:SHOWINGS]]
        assert kinds == [(False, False, False), (True, False, False), (False, True, False), (False, False, True)]
        assert {view.backdrop for _, view in taken} == {View().backdrop}
        return
    assert {view for _, view in taken} == {View()}
    values = np.array([getattr(shown, nuisance) for shown, _ in taken])
    catalogue = np.array([getattr(shown, nuisance) for shown, _ in render_products(150, seed=0, size=(8, 10))])
    assert values.mean() == pytest.approx(catalogue.mean(), abs=4 * catalogue.std() / np.sqrt(150))
    assert values.std() == pytest.approx(catalogue.std(), rel=0.25)


def test_photos_are_drawn_as_they_are_shown() -> None:
    product = Product("bag", "red", "dots", 3.0, 1.0, 0.9)
    photo, other = render_photos([(product, View()), (product, View(mirrored=True))], size=(48, 60))
    assert photo != other
    assert photo.startswith(b"\xff\xd8")
    with pytest.raises(InputError, match="nuisance 'colour' is not one of angle, shade, width, view"):
        showings(product, "colour", np.random.default_rng(0))


@pytest.fixture(scope="module")
def photos() -> dict[str, DesignPhotos]:
    return nuisance_photos(ImagesConfig(size=24), designs=12, seed=1)


@pytest.mark.slow
def test_photos_are_repeatable_and_of_the_same_designs(photos: dict[str, DesignPhotos]) -> None:
    assert tuple(photos) == NUISANCES
    few = nuisance_photos(ImagesConfig(size=24), designs=2, seed=1)
    for name, shown in photos.items():
        assert shown.pixels.shape == (48, 24, 24, 3)
        assert np.array_equal(shown.designs, np.repeat(np.arange(12), 4))
        assert np.array_equal(few[name].pixels, shown.pixels[:8])
        assert len({photo.tobytes() for photo in shown.pixels}) > 40
    other = nuisance_photos(ImagesConfig(size=24), designs=2, seed=2)
    assert not any(np.array_equal(few[name].pixels, other[name].pixels) for name in NUISANCES)
    plain = [np.asarray(draw_product(design, View(), size=(96, 120))) for design in choose_designs(12, seed=1)]
    middle = np.stack([picture.mean(axis=(0, 1)) for picture in plain])
    # The photos of a number are that design's: mean colours follow those of the plain drawing.
    shown = photos["angle"].pixels.mean(axis=(1, 2)).reshape(12, 4, 3).mean(axis=1)
    assert np.corrcoef(shown[:, 0] - shown[:, 2], middle[:, 0] - middle[:, 2])[0, 1] > 0.95


def rows_of(pixels: np.ndarray) -> np.ndarray:
    return pixels.reshape(len(pixels), -1) / 255.0 - 0.9


def silhouettes(pixels: np.ndarray) -> np.ndarray:
    """Return where a garment is, whatever its colour."""
    return rows_of(255 * (np.abs(pixels.astype(int) - View().backdrop).max(axis=3, keepdims=True) > 30))


def mean_colours(pixels: np.ndarray) -> np.ndarray:
    return pixels.mean(axis=(1, 2)) - View().backdrop


@pytest.mark.parametrize(
    ("encode", "steady", "moved"),
    [(rows_of, "shade", "view"), (silhouettes, "shade", "angle"), (mean_colours, "angle", "shade")],
)
def test_a_space_is_steady_under_what_it_does_not_see(
    photos: dict[str, DesignPhotos], encode: Callable[[np.ndarray], np.ndarray], steady: str, moved: str
) -> None:
    found = nuisance_purity(encode, photos, seed=0)
    assert found[f"purity_{steady}"] > found[f"purity_{moved}"] + 0.1
    assert found[f"purity_{moved}"] > found[f"purity_{moved}_chance"]


def test_what_does_not_fit_is_refused() -> None:
    vectors = np.ones((4, 2))
    with pytest.raises(InputError, match="do not fit"):
        neighbour_purity(vectors, [0, 0, 1])
    with pytest.raises(InputError, match="nothing in the gallery is of any query's kind"):
        neighbour_purity(vectors, [0, 1, 2, 3])
    with pytest.raises(InputError, match="no matrix"):
        neighbour_purity(vectors[0], [0, 0])
