"""The smooth part of a pattern beneath its peaks.

A first estimate clips peaks (SNIP: Ryan et al., Nucl. Instrum. Methods B 34 (1988) 396, with its log-log-square-root
scale). It lies low where the noise is large, so a penalised least-squares smoother (Whittaker; Eilers, Anal. Chem. 75
(2003) 3631) is then put through the points that do not stand out of it, again and again. Its penalty on second
differences, lambda = (period / 2 pi)^4, halves waves of that period.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy.linalg import solveh_banded

from mlindex.powder.pattern.noise import Noise, sums

_PERIOD = 14.0  # widths of a peak; shorter waves are peaks, longer ones background
_CLIP = 3.0  # widths of a peak that SNIP reaches to either side
_STAND_OUT = (4.0, 3.0, 2.5, 2.5, 2.5, 2.5, 2.5, 2.5)  # standard deviations, of a sum over a width, by iteration
_MISFIT = 0.05  # of a fitted peak's height: how wrong its profile may be


def snip(y: Float[np.ndarray, " n"], reach: int) -> Float[np.ndarray, " n"]:
    """The lower envelope of y: windows from `reach` points to either side down to one."""
    low = float(np.min(y))
    v = np.log(np.log(np.sqrt(y - low + 1.0) + 1.0) + 1.0)
    for p in range(min(reach, (len(y) - 1) // 2), 0, -1):
        v[p:-p] = np.minimum(v[p:-p], 0.5 * (v[: -2 * p] + v[2 * p :]))
    return (np.exp(np.exp(v) - 1.0) - 1.0) ** 2 - 1.0 + low


def smoothed(y: Float[np.ndarray, " n"], weight: Float[np.ndarray, " n"], period: float) -> Float[np.ndarray, " n"]:
    """The curve b that minimises sum weight (y - b)^2 + mean(weight) lambda sum (second differences of b)^2.

    `period` in points. Weights may be zero over stretches, which the curve then crosses straight.
    """
    n = len(y)
    penalty = (period / (2 * np.pi)) ** 4 * max(float(np.mean(weight)), 1e-300)
    bands = np.zeros((3, n))
    bands[2] = weight + penalty * np.convolve(np.ones(n - 2), [1.0, 4.0, 1.0])
    bands[1, 1:] = -2 * penalty * np.convolve(np.ones(n - 2), [1.0, 1.0])
    bands[0, 2:] = penalty
    return solveh_banded(bands, weight * y, check_finite=False)


def background(y: Float[np.ndarray, " n"], noise: Noise, width: float) -> Float[np.ndarray, " n"]:
    """The background of a pattern of equal steps whose peaks are `width` points wide at half height."""
    half = max(1, round(width / 2))
    count = sums(np.ones_like(y), half)
    mean = sums(y, half) / count
    curve = snip(mean, max(3, round(_CLIP * width)))
    for limit in _STAND_OUT:
        out = noise.significance(y, curve, half) > limit
        wide = sums(out.astype(np.float64), half) > 0.5
        # Where nearly all stands out, the lowest of it is the best there is
        weight = np.where(wide, 1e-3, 1.0) / noise.variance_of(curve)
        target = np.where(wide, np.minimum(y, curve), y)
        curve = smoothed(target, weight, _PERIOD * width)
        if np.min(y) >= 0:
            curve = np.maximum(curve, 0.0)
    return curve


def background_beneath(
    y: Float[np.ndarray, " n"],
    peaks: Float[np.ndarray, " n"],
    start: Float[np.ndarray, " n"],
    noise: Noise,
    width: float,
) -> Float[np.ndarray, " n"]:
    """The background of a pattern whose peaks are known, (n,), as the curve through what they leave; `start` is an
    earlier estimate. What stands out above it has the less say the more it does."""
    half = max(1, round(width / 2))
    rest, curve = y - peaks, start
    for _ in range(6):
        variance = noise.variance_of(curve + peaks) + (_MISFIT * peaks) ** 2
        z = sums(rest - curve, half) / np.sqrt(sums(variance, half))
        curve = smoothed(rest, np.minimum(1.0, 2.5 / np.maximum(z, 1e-9)) ** 2 / variance, _PERIOD * width)
        if np.min(y) >= 0:
            curve = np.maximum(curve, 0.0)
    return curve
