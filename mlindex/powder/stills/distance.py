"""The distance of the detector, from lines of a crystal that is known.

Without one it cannot be told: a longer distance and a larger cell make the same rings. With one, the factor f on the
distance is sought for which the rings fall on the lines of the cell: q(f) = 2 sin(theta) / lambda with tan(2 theta) =
r / (f z).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

_RANGE = 0.06  # factors from 1 - 0.06 to 1 + 0.06 are tried
_STEPS = 2401
_LINES = 20  # the lowest
_SHARP = 3e-4  # of q, the least width of the comparison
_FEWEST = 4  # lines on lines of the cell
_APART = 3.0  # widths between lines of the cell, for either to count


@dataclass(frozen=True)
class Distance:
    """The true distance is `factor` times the one thought, with its standard uncertainty `esd`; `matched` lines of
    `lines` that were compared lie on lines of the cell."""

    factor: float
    esd: float
    matched: int
    lines: int

    @property
    def significant(self) -> bool:
        """Whether it differs from one by more than its uncertainty and one part in ten thousand."""
        return bool(abs(self.factor - 1) > max(4 * self.esd, 1e-4))


def scaled_q(
    q: Float[np.ndarray, " n"], wavelength: float, factor: Float[np.ndarray, " m"]
) -> Float[np.ndarray, "m n"]:
    """What q (1/angstrom) becomes when the distance is `factor` times as long; `wavelength` in angstrom."""
    tangent = np.tan(2 * np.arcsin(np.minimum(q * wavelength / 2, 0.7)))
    return 2 * np.sin(np.arctan(tangent / factor[:, None]) / 2) / wavelength


def distance_from_lines(
    q: Float[np.ndarray, " n"],
    esd: Float[np.ndarray, " n"],
    known: Float[np.ndarray, " m"],
    wavelength: float,
) -> Distance | None:
    """The factor on the distance from observed lines, ascending, with their uncertainties, and the lines of the cell.

    All in 1/angstrom. None where fewer than four observed lines lie on lines of the cell that stand apart from others.
    """
    q, sigma = q[:_LINES], np.hypot(esd[:_LINES], _SHARP * q[:_LINES])
    gap = np.diff(known, prepend=-np.inf, append=np.inf)
    lone = known[np.minimum(gap[:-1], gap[1:]) > _APART * float(np.median(sigma))]
    if len(q) < _FEWEST or len(lone) < _FEWEST:
        return None
    factor = np.linspace(1 - _RANGE, 1 + _RANGE, _STEPS)
    tried = scaled_q(q, wavelength, factor)
    nearest = lone[_nearest(lone, tried)]
    # Wide enough that the grid of factors cannot step over the answer
    wide = np.hypot(sigma, q * (factor[1] - factor[0]))
    score = np.sum(np.exp(-0.5 * ((tried - nearest) / wide) ** 2), axis=1)
    best = factor[int(np.argmax(score))]
    for _ in range(5):
        now = scaled_q(q, wavelength, np.array([best, best * (1 + 1e-6)]))
        slope = (now[1] - now[0]) / (best * 1e-6)
        miss = lone[_nearest(lone, now[0])] - now[0]
        on = np.abs(miss) < 4 * sigma
        if np.count_nonzero(on) < _FEWEST:
            return None
        weight = 1 / sigma[on] ** 2
        best += float(np.sum(weight * slope[on] * miss[on]) / np.sum(weight * slope[on] ** 2))
    spread = max(float(np.sum(weight * miss[on] ** 2)) / max(int(on.sum()) - 1, 1), 1.0)
    return Distance(float(best), float(np.sqrt(spread / np.sum(weight * slope[on] ** 2))), int(on.sum()), len(q))


def _nearest(known: Float[np.ndarray, " m"], q: Float[np.ndarray, "... n"]) -> np.ndarray:
    at = np.searchsorted(known, q).clip(1, len(known) - 1)
    return np.where(q - known[at - 1] < known[at] - q, at - 1, at)
