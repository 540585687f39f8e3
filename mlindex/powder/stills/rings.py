"""From places on a detector to q, and the histogram of q in which the lines of a powder appear.

q = 2 sin(theta) / lambda with tan(2 theta) = r / z, r the distance from the beam, z that of the detector's plane from
the sample (metres). dq/dr = cos(theta) / lambda * z / (r^2 + z^2) turns an error of a place into one of q.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from mlindex.powder.pattern.decompose import Decomposition, decompose
from mlindex.powder.pattern.detect import typical_width
from mlindex.powder.pattern.noise import Noise

_FINEST = 0.25  # pixels, of a bin before the widths of lines are known
_MOST = 20_000  # bins
_FEWEST = 400
_POINTS = 6.0  # bins across the full width of a line, at least
_SPAN = 0.999  # of the spots; the few beyond, in the corners, would only make the histogram long


@dataclass(frozen=True)
class Histogram:
    """Spots over q: `q` (n,), the middles of the bins in 1/angstrom, `count` (n,), spots or their weights, `noise`."""

    q: Float[np.ndarray, " n"]
    count: Float[np.ndarray, " n"]
    noise: Noise


def q_from_place(place: Float[np.ndarray, "n 3"], wavelength: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """q = 1/d in 1/angstrom of x, y, z in metres; `wavelength` in angstrom."""
    two_theta = np.arctan2(np.hypot(place[:, 0], place[:, 1]), place[:, 2])
    return 2 * np.sin(two_theta / 2) / wavelength


def slope_of_q(place: Float[np.ndarray, "n 3"], wavelength: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """dq/dr in 1/angstrom per metre."""
    r, z = np.hypot(place[:, 0], place[:, 1]), place[:, 2]
    return np.cos(np.arctan2(r, z) / 2) / wavelength * z / (r**2 + z**2)


def quantum(q: Float[np.ndarray, " n"]) -> float:
    """The step that all values are rounded to, as those printed with few digits are; 0 where they are not."""
    sample = np.unique(q[: min(len(q), 100_000)])
    if len(sample) < 10 or len(sample) > 0.5 * min(len(q), 100_000):
        return 0.0
    step = float(np.min(np.diff(sample)[np.diff(sample) > 1e-9 * sample[-1]], initial=np.inf))
    multiple = sample / step
    return step if np.isfinite(step) and np.all(np.abs(multiple - np.rint(multiple)) < 0.02) else 0.0


def histogram(
    q: Float[np.ndarray, " n"], weight: Float[np.ndarray, " n"] | None = None, *, resolution: float | None = None
) -> Histogram:
    """The histogram of q with bins narrow against the width of its lines, a sixth or less.

    `resolution`: what a pixel spans, in 1/angstrom, where that is known. Values that were rounded get bins as wide as
    what they were rounded to, or they would beat. With `weight` (n,) the variance of a bin is its sum times the ratio
    sum w^2 / sum w.
    """
    top = float(np.quantile(q, _SPAN)) * 1.002
    low = float(np.min(q)) * 0.98
    step = quantum(q)
    if step == 0.0:
        fine = (top - low) / _MOST if resolution is None else max(_FINEST * resolution, (top - low) / _MOST)
        first = _binned(q, None, low, top, fine)
        width = typical_width(first.count, first.noise) * fine
        step = float(np.clip(width / _POINTS, fine, (top - low) / _FEWEST))
    else:
        low = (np.floor(low / step) - 0.5) * step
    return _binned(q, weight, low, top, step)


def _binned(
    q: Float[np.ndarray, " n"], weight: Float[np.ndarray, " n"] | None, low: float, top: float, step: float
) -> Histogram:
    bins = max(int(np.ceil((top - low) / step)), 64)
    inside = (q >= low) & (q < low + bins * step)
    place = ((q[inside] - low) / step).astype(np.int64).clip(0, bins - 1)
    middle = low + (np.arange(bins) + 0.5) * step
    if weight is None:
        return Histogram(middle, np.bincount(place, minlength=bins).astype(np.float64), Noise())
    w = weight[inside]
    gain = float(np.sum(w**2) / np.sum(w))
    return Histogram(middle, np.bincount(place, w, minlength=bins), Noise(gain))


def lines_of(found: Histogram, cut: float) -> Decomposition:
    """The lines of a histogram: Gaussians over a smooth background, at the maximum of the Poisson likelihood."""
    return decompose(found.q, found.count, noise=found.noise, gaussian=True, cut=cut)
