"""Where peaks stand above a background, beyond what noise does.

A place is judged by the likelihood ratio of the counts around it against the background (`Noise.significance`), over
windows from half a width to two. A peak is a local maximum of the smoothed excess that is significant by itself and
falls significantly to either side before a higher one begins.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from scipy.ndimage import gaussian_filter1d

from mlindex.powder.pattern.noise import Noise

_WIDTHS = (0.5, 1.0, 2.0)  # windows to either side, in half widths of a peak
_FALL = 3.0  # standard deviations between a peak and the valley to a higher one
_SMOOTHING = 0.6 / 2.3548  # standard deviation of the smoothing, in widths at half height
_SCALES = 1.3 ** np.arange(0, 18)  # standard deviations in points that `typical_width` tries: 1 to 87
_STRONGEST = 12  # peaks that decide on the typical width
_CLEAR = 6.0  # standard deviations that they have at least
_MANY, _ENOUGH = 30, 0.6  # clear maxima that are counted, and the share of the most that is enough for a scale
_COARSER = 6  # scales beyond that one in which the width is looked for: up to five times


def significance(
    y: Float[np.ndarray, " n"], mean: Float[np.ndarray, " n"], noise: Noise, width: float
) -> Float[np.ndarray, " n"]:
    """The largest significance at each point over windows that suit peaks `width` points wide."""
    halves = sorted({max(1, round(w * width / 2)) for w in _WIDTHS})
    return np.max([noise.significance(y, mean, half) for half in halves], axis=0)


def _curvature(y: Float[np.ndarray, " n"], noise: Noise, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """Minus the second derivative of y smoothed by a Gaussian, and the same in standard deviations; both (n,)."""
    bend = -gaussian_filter1d(y, sigma, order=2, mode="nearest")
    level = np.maximum(gaussian_filter1d(y, 2 * sigma, mode="nearest"), 0.0)
    variance = noise.variance_of(level)
    if noise.variance is not None:  # beside a strong line that of a point is small, and the line is still in the bend
        variance = gaussian_filter1d(variance, 2 * sigma, mode="nearest")
    # The squares of the second derivative of a Gaussian add up to 3 / (8 sqrt(pi) s^5)
    return bend, bend / np.sqrt(variance * 3 / (8 * np.sqrt(np.pi) * sigma**5))


def _clear(z: Float[np.ndarray, " n"]) -> Int[np.ndarray, " k"]:
    """Its clear maxima, the highest first, thirty at most; the highest of all where none is clear."""
    tops = np.flatnonzero((z[1:-1] > z[:-2]) & (z[1:-1] >= z[2:])) + 1
    tops = tops[np.argsort(-z[tops])][:_MANY]
    return tops[(z[tops] > _CLEAR) | (np.arange(len(tops)) == 0)]


def typical_width(y: Float[np.ndarray, " n"], noise: Noise) -> float:
    """The full width at half maximum, in points, of the peaks that stand out most.

    The second derivative of a Gaussian peak smoothed at scale s, times s^(3/2), is largest at the standard deviation of
    the peak (Lindeberg, Int. J. Comput. Vision 30 (1998) 117, with gamma = 3/4); its flanks and the background hardly
    count.
    """
    scales = [float(s) for s in _SCALES if 8 * s < len(y)]
    both = [_curvature(y, noise, s) for s in scales]
    # The finest scale at which nearly as much is clear as at any: coarser ones see clusters of lines, and humps
    tops = [_clear(z) for _, z in both]
    counts = np.array([len(t) for t in tops])
    finest = int(np.argmax(counts >= _ENOUGH * counts.max()))
    chosen = tops[finest][:_STRONGEST]
    scales = scales[: finest + _COARSER]
    bend = np.stack([b[chosen] for b, _ in both[: finest + _COARSER]])
    response = np.array(scales)[:, None] ** 1.5 * bend
    response = np.sum(response / np.maximum(np.max(response, axis=0), 1e-300), axis=1)
    top = int(np.argmax(response))
    sigma = np.log(scales[top])
    if 0 < top < len(scales) - 1:  # a parabola through the three highest
        left, middle, right = response[top - 1 : top + 2]
        sigma += 0.5 * np.log(_SCALES[1]) * (left - right) / (left - 2 * middle + right)
    return float(max(2.3548 * np.exp(sigma), 2.0))


def maxima(
    y: Float[np.ndarray, " n"], mean: Float[np.ndarray, " n"], noise: Noise, width: float, cut: float
) -> Int[np.ndarray, " m"]:
    """Points at the tops of the peaks in y above `mean` that are significant beyond `cut`, ascending."""
    sigma = max(_SMOOTHING * width, 0.5)
    excess = gaussian_filter1d(y - mean, sigma, mode="nearest")
    # Variance of a mean over a Gaussian window of standard deviation s: 1 / (2 s sqrt(pi)) that of a point
    error = np.sqrt(noise.variance_of(np.maximum(mean, 0.0) + np.maximum(excess, 0.0)) / max(2 * sigma * 1.7725, 1.0))
    strong = significance(y, mean, noise, width) > cut
    inner = np.flatnonzero((excess[1:-1] > excess[:-2]) & (excess[1:-1] >= excess[2:])) + 1
    inner = inner[strong[inner] & (excess[inner] > _FALL * error[inner])]
    return _prominent(excess, error, inner)


def _prominent(
    excess: Float[np.ndarray, " n"], error: Float[np.ndarray, " n"], tops: Int[np.ndarray, " m"]
) -> Int[np.ndarray, " k"]:
    """Of neighbouring tops without a significant valley between them, the higher."""
    kept: list[int] = []
    for top in tops.tolist():
        while kept:
            before = kept[-1]
            valley = float(np.min(excess[before : top + 1]))
            lower = min(before, top, key=lambda i: excess[i])
            if excess[lower] - valley > _FALL * error[lower]:
                break
            if lower == top:
                top = -1
                break
            kept.pop()
        if top >= 0:
            kept.append(top)
    return np.array(kept, np.int64)
