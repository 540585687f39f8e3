"""How uncertain a count is: Poisson, Poisson after a scale, or as the file says.

With variance gain times the mean the points follow, in quasi-likelihood, a Poisson law of y / gain; the deviance is
D = 2 / gain sum[m - y + y ln(y / m)] (McCullagh & Nelder, Generalized Linear Models, 2nd ed. 1989, chapter 9).
Standard uncertainties of the points make it a sum of squares.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.optimize import nnls

# Second differences y[i-1] - 2 y[i] + y[i+1] have six times the variance of a point
_SECOND_DIFFERENCE = 6.0
_BLOCKS = (1, 2, 4)  # points
_MAD = 1.4826  # standard deviations of a normal law in a median absolute deviation


@dataclass(frozen=True)
class Noise:
    """Variance `gain` times the mean of a point (counts have 1), or `variance` (n,) where it is known for each."""

    gain: float = 1.0
    variance: Float[np.ndarray, " n"] | None = None

    def part(self, points: slice) -> Noise:
        """The same for some of the points."""
        return self if self.variance is None else Noise(self.gain, self.variance[points])

    def variance_of(self, mean: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """The variance of points with these means; never below that of a hundredth of a count."""
        if self.variance is not None:
            return self.variance
        return self.gain * np.maximum(mean, 0.01 * self.gain)

    def deviance(self, y: Float[np.ndarray, " n"], mean: Float[np.ndarray, " n"]) -> float:
        """Twice the log likelihood that is lost against means equal to the points; about n for a true model."""
        if self.variance is not None:
            return float(np.sum((y - mean) ** 2 / self.variance))
        return float(np.sum(_poisson_deviance(y / self.gain, mean / self.gain)))

    def significance(
        self, y: Float[np.ndarray, " n"], mean: Float[np.ndarray, " n"], half: int
    ) -> Float[np.ndarray, " n"]:
        """By how many standard deviations the sum of y over 2 half + 1 points exceeds that of the mean, at each point.

        The signed square root of the likelihood ratio, which keeps its meaning at few counts (Cash, Astrophys. J. 228
        (1979) 939). At the ends the sum is over the points there are.
        """
        if self.variance is not None:
            return sums(y - mean, half) / np.sqrt(sums(self.variance, half))
        seen = sums(y, half) / self.gain
        expected = np.maximum(sums(mean, half) / self.gain, 0.01)
        return np.sign(seen - expected) * np.sqrt(_poisson_deviance(seen, expected))


def _poisson_deviance(seen: Float[np.ndarray, " n"], expected: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    expected, seen = np.maximum(expected, 0.01), np.maximum(seen, 0.0)
    ratio = np.where(seen > 0, seen, 1.0) / expected
    return np.maximum(2 * (expected - seen + seen * np.log(ratio)), 0.0)


def sums(y: Float[np.ndarray, " n"], half: int) -> Float[np.ndarray, " n"]:
    """The sum over 2 half + 1 points around each; at the ends over those there are."""
    total = np.concatenate([[0.0], np.cumsum(y, dtype=np.float64)])
    at = np.arange(len(y))
    return total[np.minimum(at + half + 1, len(y))] - total[np.maximum(at - half, 0)]


def _scatter(y: Float[np.ndarray, " n"], size: int) -> tuple[Float[np.ndarray, " t"], Float[np.ndarray, " t"]]:
    """Mean and variance of points by level, from means over blocks of `size`: of a pattern that was smoothed or
    interpolated, whose neighbours are too much alike, larger blocks tell more of the noise."""
    block = y[: len(y) // size * size].reshape(-1, size).mean(axis=1)
    bend = np.abs(np.diff(block, 2))
    level = (block[:-2] + block[1:-1] + block[2:]) / 3
    parts = np.array_split(np.argsort(level, kind="stable"), 10)[:7]  # the uppermost tenths are peaks
    variance = [size * (_MAD * np.median(bend[p])) ** 2 / _SECOND_DIFFERENCE for p in parts]
    return np.array([np.mean(level[p]) for p in parts]), np.array(variance)


def noise_of_pattern(y: Float[np.ndarray, " n"], sigma: Float[np.ndarray, " n"] | None = None) -> Noise:
    """The noise of a measured pattern: `sigma` where the file has it for every point, else from neighbouring points.

    Whole numbers without a negative one are counts if their scatter is that of counts. For others the variance of
    second differences, robustly, in tenths of the points by level, gives the gain, or, where there are values below
    zero, a constant and a slope. A pattern without noise, as from a calculation, gets a thousandth of its median level.
    """
    if sigma is not None and np.all(np.isfinite(sigma)) and np.all(sigma > 0):
        return Noise(variance=np.asarray(sigma, np.float64) ** 2)
    level = sums(y, 2) / sums(np.ones_like(y), 2)
    both = [_scatter(y, size) for size in _BLOCKS if len(y) >= 30 * size]
    mean, variance = both[0][0], np.max([v for _, v in both], axis=0)
    floor = 1e-3 * max(float(np.median(np.abs(y))), 1e-3 * float(np.max(np.abs(y))), 1e-300)
    whole = bool(np.all(np.abs(y - np.rint(y)) < 1e-6)) and np.min(y) >= 0 and np.max(y) > 1
    if whole and np.median(y) < 5:
        return Noise()  # too few counts for a scatter, or none at most points
    if np.min(y) >= 0 and np.max(mean) > 0:
        gain = float(np.median(variance / np.maximum(mean, floor)))
        if whole and 0.5 < gain < 2.0:
            return Noise()
        if whole and float(np.median(both[0][1] / np.maximum(mean, floor))) < 1:
            gain = min(gain, 1.0)  # counts that were smoothed; they were not noisier than counts
        if gain * float(np.median(y)) > floor**2:
            return Noise(gain)
    constant, slope = nnls(np.stack([np.ones_like(mean), np.maximum(mean, 0.0)], 1), variance)[0]
    return Noise(variance=np.maximum(constant + slope * np.maximum(level, 0.0), floor**2))
