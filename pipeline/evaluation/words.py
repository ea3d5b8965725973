"""Codes as words: a photo is the text of its codes, weighted by TF-IDF; texts of many photos make a customer's.

Visual words (Sivic and Zisserman 2003, "Video Google") of a codebook that a model has learned, so that photos, and
collections of photos, are compared by which codes they have and how often, and a word that all photos have counts
least. Where in the photo a code lies is forgotten, unless the words are of regions (Lazebnik et al. 2006).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import InputError
from .spread import unit_rows

Float32 = NDArray[np.float32]
Codes = NDArray[np.integer[Any]]
Levels = Mapping[str, Codes]  # codes [n, cells] of each codebook, by its level's name ("" of only one)

_STARTS = 4  # k-means from as many beginnings; the best one counts


@dataclass(frozen=True, slots=True)
class CodeWords:
    """The words of known photos and how much each counts.

    vocabulary: words by level, ascending; a word is a code, or code * regions^2 + region. idf: float64 [V], ln((1 + n)
    / (1 + df)) + 1 for n known photos, df of them with the word. regions: into how many parts a side a grid is cut.
    """

    vocabulary: Mapping[str, NDArray[np.int64]]
    idf: NDArray[np.float64]
    regions: int

    @property
    def dims(self) -> int:
        """Return V, the number of words."""
        return len(self.idf)

    def counts(self, levels: Levels) -> Float32:
        """Return how often each photo has each word, float32 [n, V]; words that no known photo has are dropped.

        Raises InputError for other levels than those of the known photos.
        """
        return _counted(_words(levels, self.regions), self.vocabulary)

    def vectors(self, counts: Float32) -> Float32:
        """Return counts [n, V] times idf, each row of length 1, float32 [n, V]; zeros for a row without known words.

        Rows may be single photos or sums of photos (`counts_of_owners`): their vectors are compared by cosine. Raises
        InputError for rows of other words.
        """
        if counts.ndim != 2 or counts.shape[1] != self.dims:
            raise InputError(f"counts are {list(counts.shape)} and there are {self.dims} words; give `counts` of these")
        return unit_rows(counts * self.idf.astype(np.float32))


def fitted_words(known: Levels, *, regions: int = 1) -> CodeWords:
    """Return the words of known photos' codes, and their weights.

    regions: 1, or into how many parts a side a square grid of codes is cut; the same code in two of them is two words.
    Raises InputError for no photo, negative codes or a grid that cannot be cut so.
    """
    words = _words(known, regions)
    vocabulary = {name: np.unique(codes) for name, codes in words.items()}
    counts = _counted(words, vocabulary)
    idf = np.log((1 + len(counts)) / (1 + np.count_nonzero(counts, axis=0))) + 1
    return CodeWords(vocabulary, idf, regions)


def counts_of_owners(counts: Float32, owners: Sequence[str]) -> tuple[list[str], Float32]:
    """Return the owners' names, ascending, and the sums of their photos' counts, float32 [owners, V].

    owners: whose each photo of counts [n, V] is: a customer's purchases, an item's photos. Owners and single photos are
    then compared by `CodeWords.vectors`. Raises InputError where the lengths differ.
    """
    if len(owners) != len(counts):
        raise InputError(f"{len(owners)} owners and {len(counts)} photos do not fit; give one owner a photo")
    names, rows = np.unique(np.asarray(owners, dtype=np.str_), return_inverse=True)
    sums = np.zeros((len(names), counts.shape[1]), np.float32)
    np.add.at(sums, rows, counts)
    return names.tolist(), sums


@dataclass(frozen=True, slots=True)
class ClusterQuality:
    """How well groups made without labels agree with labels.

    purity: share of rows whose label is their group's most frequent (Manning et al. 2008, section 16.3). chance: that
    of the same groups with labels shuffled. nmi: normalised mutual information, 0 to 1, which many small groups do not
    raise as they do purity. clusters: groups that have a row.
    """

    purity: float
    chance: float
    nmi: float
    clusters: int


def cluster_quality(vectors: ArrayLike, labels: ArrayLike, *, clusters: int | None = None, seed: int) -> ClusterQuality:
    """Return how well k-means groups of vectors float [n, d] agree with labels [n].

    Vectors are scaled to length 1 before, as neighbours are told by cosine. clusters: as many as there are labels
    unless given. Raises InputError for arrays that do not fit or more clusters than rows.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.metrics import normalized_mutual_info_score

    rows, names = np.asarray(vectors, np.float32), np.asarray(labels)
    if rows.ndim != 2 or len(rows) != len(names):
        raise InputError(f"vectors {list(rows.shape)} and {len(names)} labels do not fit; give one label a row")
    _, truth = np.unique(names, return_inverse=True)
    wanted = int(truth.max(initial=0)) + 1 if clusters is None else clusters
    if not 1 <= wanted <= len(rows):
        raise InputError(f"clusters is {wanted} for {len(rows)} rows; it must be between 1 and the number of rows")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer unlike rows than clusters, which `clusters` tells
        groups = KMeans(wanted, n_init=_STARTS, random_state=seed).fit_predict(unit_rows(rows))
    shuffled = np.random.default_rng(seed).permutation(truth)
    return ClusterQuality(
        purity=_purity(groups, truth),
        chance=_purity(groups, shuffled),
        nmi=float(normalized_mutual_info_score(truth, groups)),
        clusters=len(np.unique(groups)),
    )


def _purity(groups: NDArray[Any], truth: NDArray[np.int64]) -> float:
    table = np.zeros((int(groups.max()) + 1, int(truth.max()) + 1), np.int64)
    np.add.at(table, (groups, truth), 1)
    return float(table.max(axis=1).sum() / len(truth))


def _words(levels: Levels, regions: int) -> dict[str, NDArray[np.int64]]:
    """Return words int64 [n, cells] by level: codes where regions is 1, else the region's number beside the code."""
    if regions < 1:
        raise InputError(f"regions is {regions}; it must be at least 1")
    found = {}
    for name, given in levels.items():
        codes = np.asarray(given, np.int64)
        if codes.ndim != 2 or not codes.size or codes.min() < 0:
            seen = f"from {codes.min()}" if codes.size else "none"
            raise InputError(f"codes are {list(codes.shape)}, {seen}; give whole numbers from 0, [n, cells]")
        found[name] = codes if regions == 1 else codes * regions**2 + _region_of(codes.shape[1], regions)
    if len({len(codes) for codes in found.values()}) != 1:
        raise InputError(f"levels have {[len(codes) for codes in found.values()]} photos; give the same photos' codes")
    return found


def _region_of(cells: int, regions: int) -> NDArray[np.int64]:
    """Return the region's number of each cell of a square grid, row-major, int64 [cells]."""
    side = math.isqrt(cells)
    if side * side != cells or side < regions:
        raise InputError(f"regions is {regions}, and a photo has {cells} codes; that needs a square grid as large")
    row, column = np.divmod(np.arange(cells, dtype=np.int64), side)
    region: NDArray[np.int64] = row * regions // side * regions + column * regions // side
    return region


def _counted(words: Mapping[str, NDArray[np.int64]], vocabulary: Mapping[str, NDArray[np.int64]]) -> Float32:
    if set(words) != set(vocabulary):
        raise InputError(f"codes are of levels {sorted(words)}, the words of {sorted(vocabulary)}; give one model's")
    parts = []
    for name, known in vocabulary.items():
        given = words[name]
        places = np.searchsorted(known, given).clip(max=len(known) - 1)
        rows, cells = np.nonzero(known[places] == given)
        counts = np.zeros((len(given), len(known)), np.float32)
        np.add.at(counts, (rows, places[rows, cells]), 1)
        parts.append(counts)
    return np.concatenate(parts, axis=1)
