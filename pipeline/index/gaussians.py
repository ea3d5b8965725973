"""Latents as diagonal Gaussians: what divergences compare, how wide they may be, and their middles."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .latents import Float64, LatentArrays

SIGMA_FLOOR = 0.01
"""No latent is taken as narrower: below, 1 / sigma^2 outgrows the seven digits of float32. Part of every metric."""
LOG_VAR_FLOOR = 2.0 * math.log(SIGMA_FLOOR)
LOG_VAR_CEILING = 20.0  # no latent is wider either: float32 holds its variance and products of it

_HALVINGS = 200  # of an interval of doubles: to the last digit from any width


class Gaussian(NamedTuple):
    """Diagonal Gaussians: mean and log_var float64 [..., d], log_var within its floor and ceiling."""

    mean: Float64
    log_var: Float64

    @property
    def var(self) -> Float64:
        """The variances."""
        return np.asarray(np.exp(self.log_var))

    @property
    def sigma(self) -> Float64:
        """The standard deviations."""
        return np.asarray(np.exp(0.5 * self.log_var))


def gaussian(latents: LatentArrays) -> Gaussian:
    """Return latents as Gaussians in float64. Raises InputError where they have no log_var."""
    if latents.log_var is None:
        raise InputError("these latents hold means alone; give log_var too, or choose index.metric l2 or cosine")
    log_var = np.clip(latents.log_var.astype(np.float64), LOG_VAR_FLOOR, LOG_VAR_CEILING)
    return Gaussian(latents.mean.astype(np.float64), log_var)


def latents_of(mean: Float64, var: Float64) -> LatentArrays:
    """Return Gaussians as latents, float32."""
    return LatentArrays(mean=mean.astype(np.float32), log_var=np.log(var).astype(np.float32))


def below_median(values: Float64) -> NDArray[np.bool_]:
    """Return which of values [..., d] lie below the median of their d; bool [..., d].

    Where at least half of them share the least value and none lies below the median, those at it: never none.
    """
    if values.shape[-1] == 0:
        return np.zeros(values.shape, np.bool_)
    middle = np.median(values, axis=-1, keepdims=True)
    below = values < middle
    kept: NDArray[np.bool_] = np.where(below.any(axis=-1, keepdims=True), below, values <= middle)
    return kept


def _shares(weights: Float64) -> Float64:
    shares: Float64 = (weights / weights.sum())[:, None]
    return shares


def matched_moments(latents: LatentArrays, weights: Float64) -> LatentArrays:
    """Return the Gaussian [1] with the mixture's mean and variance: the least weighted sum of KL(item, it)."""
    given, shares = gaussian(latents), _shares(weights)
    mean = np.sum(shares * given.mean, axis=0, keepdims=True)
    # About the mean, not E[x^2] - mean^2: that loses narrow variances far from zero.
    return latents_of(mean, np.sum(shares * (given.var + (given.mean - mean) ** 2), axis=0, keepdims=True))


def weighted_by_precision(latents: LatentArrays, weights: Float64) -> LatentArrays:
    """Return the normalised weighted product [1] of Gaussians: the least weighted sum of KL(it, item)."""
    given = gaussian(latents)
    precision = _shares(weights) / given.var
    total = np.sum(precision, axis=0, keepdims=True)
    return latents_of(np.sum(precision * given.mean, axis=0, keepdims=True) / total, 1.0 / total)


def jeffreys_centre(latents: LatentArrays, weights: Float64) -> LatentArrays:
    """Return the Gaussian [1] with the least weighted sum of Jeffreys divergences, to float64's last digits.

    Each latent apart, with A the mean precision, m and S the mixture's mean and variance, p the precision-weighted
    mean: the mean is (A v p + m) / (A v + 1), and y = A v the one positive root of y^2 / A - (y / (1 + y))^2 (p - m)^2
    = S, whose left side grows wherever it is positive.
    """
    given, shares = gaussian(latents), _shares(weights)
    precision = np.sum(shares / given.var, axis=0)
    inner = np.sum(shares * given.mean / given.var, axis=0) / precision
    outer = np.sum(shares * given.mean, axis=0)
    spread = np.sum(shares * (given.var + (given.mean - outer) ** 2), axis=0)
    between = (inner - outer) ** 2
    low, high = np.zeros_like(spread), np.sqrt(precision * (spread + between)) * (1.0 + 1e-12)
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        short = middle**2 / precision - (middle / (1.0 + middle)) ** 2 * between < spread
        low, high = np.where(short, middle, low), np.where(short, high, middle)
    mean = (high * inner + outer) / (high + 1.0)
    return latents_of(mean[None], (high / precision)[None])


def w2_centre(latents: LatentArrays, weights: Float64) -> LatentArrays:
    """Return the Gaussian [1] of mean means and mean deviations: the least weighted sum of squared W2 distances."""
    given, shares = gaussian(latents), _shares(weights)
    deviation = np.sum(shares * given.sigma, axis=0, keepdims=True)
    return latents_of(np.sum(shares * given.mean, axis=0, keepdims=True), deviation**2)
