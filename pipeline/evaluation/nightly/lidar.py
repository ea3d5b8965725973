"""LiDAR: how many dimensions tell photos apart beyond what views of one photo differ in."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..measured import Measured
from .tonight import Found, LeftOut, Tonight

_REGULAR = 1e-4  # delta of the paper, section 3.2, as a share of the mean variance within
_EPSILON = 1e-7  # of RankMe's and LiDAR's smooth rank


def lidar(tonight: Tonight) -> Found:
    """Return `lidar` of the photos that have two views."""
    looked = tonight.looked
    if isinstance(looked, LeftOut):
        return looked
    count = len(looked.second)
    if count <= 2:
        return LeftOut(f"{count} photos have two views, and a scatter between photos needs 3")
    views = np.stack([tonight.directed(side) for side in (looked.first.mean[:count], looked.second.mean)], axis=1)
    return [Measured("lidar", lidar_rank(views), n=count)]


def lidar_rank(views: NDArray[np.float64]) -> float:
    """Return the LiDAR of views float64 [photos, q, d], 1..d: 1 for a line, 0 where photos do not differ at all.

    exp of the entropy of the eigenvalues' shares of W^-1/2 B W^-1/2, with B the scatter of photos' means around the
    mean of all and W that of views around their photo's mean, plus a little of the identity (Thilak et al. 2024, arXiv
    2312.04000, equations 1 to 4). The little is a share of W's mean variance, so that the unit of latents says nothing.
    """
    means = views.mean(axis=1)
    around = means - means.mean(axis=0)
    between = around.T @ around / (len(means) - 1)
    apart = (views - means[:, None, :]).reshape(-1, views.shape[2])
    within = apart.T @ apart / (len(means) * (views.shape[1] - 1))
    scale = float(np.trace(within) or np.trace(between)) / len(within)
    if scale <= 0:
        return 0.0
    variances, axes = np.linalg.eigh(within + _REGULAR * scale * np.eye(len(within)))
    white = axes / np.sqrt(variances)
    shares = np.clip(np.linalg.eigvalsh(white.T @ between @ white), 0.0, None)
    total = float(shares.sum())
    if total <= 0:
        return 0.0
    shares = shares / total + _EPSILON
    return float(np.exp(-np.sum(shares * np.log(shares))))
