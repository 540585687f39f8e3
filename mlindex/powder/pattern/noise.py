"""How uncertain a count is: Poisson, Poisson after a scale, or as the file says.

With variance gain times the mean the points follow, in quasi-likelihood, a Poisson law of y / gain; the deviance is
D = 2 / gain sum[m - y + y ln(y / m)] (McCullagh & Nelder, Generalized Linear Models, 2nd ed. 1989, chapter 9).
Standard uncertainties of the points make it a sum of squares.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

# Second differences y[i-1] - 2 y[i] + y[i+1] have six times the variance of a point
_SECOND_DIFFERENCE = 6.0
# Sixth differences tell noise from all but the sharpest lines
_SIXTH = np.array([1.0, -6.0, 15.0, -20.0, 15.0, -6.0, 1.0]) / np.sqrt(924.0)
_BLOCKS = (1, 2, 4)  # points
_ALIKE = 1.5  # times that means over blocks are noisier than single points say, from which neighbours are alike
_STRETCH, _GROUP = 250, 40  # points of the background, and of lines, whose scatter is taken together
_MAD = 1.4826  # standard deviations of a normal law in a median absolute deviation


@dataclass(frozen=True)
class Noise:
    """Variance `gain` times the mean of a point (counts have 1), or `variance` (n,) where it is known for each."""

    gain: float = 1.0
    variance: Float[np.ndarray, " n"] | None = None

    def part(self, points: slice) -> Noise:
        """The same for some of the points."""
        return self if self.variance is None else Noise(self.gain, self.variance[points])

    def unit(self, y: Float[np.ndarray, " n"]) -> float:
        """What a count is worth in units of y, about: a pattern divided by it looks like counts."""
        if self.variance is None:
            return self.gain
        return float(np.median(self.variance / np.maximum(y, np.sqrt(self.variance))))

    def divided(self, unit: float) -> Noise:
        """That of a pattern divided by `unit`."""
        return Noise(self.gain / unit, None if self.variance is None else self.variance / unit**2)

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


def _quantum(y: Float[np.ndarray, " n"]) -> float:
    """The number that all values are whole multiples of, as those of counts are that were scaled; 0 without one."""
    values = np.unique(y)
    step = float(np.min(np.diff(values), initial=np.inf))
    multiple = np.rint(values / step)
    if not np.isfinite(step) or multiple[-1] < 1:
        return 0.0
    step = float(values[-1] / multiple[-1])  # more precise than the difference
    return step if np.all(np.abs(values / step - multiple) < 1e-6) else 0.0


def noise_of_pattern(y: Float[np.ndarray, " n"], sigma: Float[np.ndarray, " n"] | None = None) -> Noise:
    """The noise of a measured pattern: `sigma` where the file has it for every point, else from neighbouring points.

    Whole numbers without a negative one are counts if their scatter is that of counts. For others the variance of
    second differences, robustly, in tenths of the points by level, gives the gain, which is exact for counts that were
    scaled. Where there are values below zero it is that of the background and a slope. A pattern without noise, as from
    a calculation, gets a thousandth of its median level.
    """
    if sigma is not None and np.all(np.isfinite(sigma)) and np.all(sigma > 0):
        return Noise(variance=np.asarray(sigma, np.float64) ** 2)
    both = [_scatter(y, size) for size in _BLOCKS if len(y) >= 30 * size]
    mean, variance = both[0][0], np.max([v for _, v in both], axis=0)
    floor = 1e-3 * max(float(np.median(np.abs(y))), 1e-3 * float(np.max(np.abs(y))), 1e-300)
    whole = bool(np.all(np.abs(y - np.rint(y)) < 1e-6)) and np.min(y) >= 0 and np.max(y) > 1
    if whole and np.median(y) < 5:
        return Noise()  # too few counts for a scatter, or none at most points
    if np.min(y) >= 0 and np.max(mean) > 0:
        gain = float(np.median(variance / np.maximum(mean, floor)))
        for unit in (1.0, _quantum(y)) if whole else (_quantum(y),):
            if 0.5 * unit < gain < 2.0 * unit:
                return Noise(unit)
        if whole and float(np.median(both[0][1] / np.maximum(mean, floor))) < 1:
            gain = min(gain, 1.0)  # counts that were smoothed; they were not noisier than counts
        if gain * float(np.median(y)) > floor**2:
            return Noise(gain)
    return Noise(variance=np.maximum(_variance_about_zero(y, variance), floor**2))


def _variance_about_zero(y: Float[np.ndarray, " n"], blocks: Float[np.ndarray, " t"]) -> Float[np.ndarray, " n"]:
    """The variance of the points of a pattern whose background was taken off: that of the background, along the
    pattern, and a slope times what rises above it. `blocks`: the variance of a point as means over blocks tell it.

    Lines that are sharp against the step add to the scatter. So the slope is a low quantile over groups of points of
    like height, of those that are high enough to tell it.
    """
    count = np.ones(len(y))
    rough = np.pad(np.convolve(y, _SIXTH, "valid"), 3, mode="edge")
    span = max(float(np.ptp(y)), 1e-300)
    level = np.round(sums(y, 3) / sums(count, 3) / span, 9) * span  # or equal ones would be in any order
    low = np.flatnonzero(level <= np.quantile(level, 0.7))
    stretches = np.array_split(low, max(1, len(low) // _STRETCH))
    middle = [np.mean(s) for s in stretches]
    flat = np.interp(np.arange(len(y)), middle, [_square_of(rough[s]) for s in stretches])
    base = np.interp(np.arange(len(y)), middle, [np.median(level[s]) for s in stretches])
    slope = _slope(rough, level - base, flat)
    variance = flat + slope * np.maximum(sums(y, 2) / sums(count, 2) - base, 0.0)
    background = _square_of(rough[low])
    alike = float(np.median(blocks)) / background if background > 0 else 1.0
    return variance * alike if alike > _ALIKE else variance


def _slope(rough: Float[np.ndarray, " n"], height: Float[np.ndarray, " n"], flat: Float[np.ndarray, " n"]) -> float:
    """How the variance rises with the height above the background, where it is `flat`; 0 where few points rise."""
    above = np.flatnonzero(height > 3 * np.sqrt(flat / 7))
    if len(above) < _GROUP // 2:
        return 0.0
    groups = np.array_split(above[np.argsort(height[above], kind="stable")], max(1, len(above) // _GROUP))
    high, beneath = (np.array([np.median(v[g]) for g in groups]) for v in (height, flat))
    slopes = (np.array([_square_of(rough[g]) for g in groups]) - beneath) / high
    about = max(0.0, float(np.median(slopes[-max(1, len(groups) // 4) :])))
    telling = high / np.maximum(beneath + about * high, 1e-300)
    return max(0.0, float(np.quantile(slopes[telling >= 0.5 * np.max(telling)], 0.25)))


def _square_of(differences: Float[np.ndarray, " k"]) -> float:
    """Their variance, robustly."""
    return float((_MAD * np.median(np.abs(differences))) ** 2)
