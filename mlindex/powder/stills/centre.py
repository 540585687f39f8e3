"""Where the beam meets the detector, from the rings that the spots of many stills lie on.

If the beam is (dx, dy) from where it is thought to be, a ring's spots at azimuth phi are dx cos(phi) + dy sin(phi)
farther out. First the shift is sought for which the histogram of q is sharpest (sum of squared counts); then each
spot near a strong line, with the probability that it belongs to the line and not to the background, gives an equation
dr = c_k + dx cos(phi) + dy sin(phi); c_k, the error of the line's position, keeps uneven coverage from passing for a
shift.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from mlindex.powder.pattern.decompose import Decomposition
from mlindex.powder.stills.rings import Histogram, histogram, lines_of, q_from_place, slope_of_q

SECTORS = 12
_RINGS = 8  # the strongest
_SPOTS = 40_000  # for the first search
_REACH = 12.0  # pixels, of the first search
_STEPS = 4  # of the regression
_FEWEST = 100  # spots on rings
_CUT = 6.0


@dataclass(frozen=True)
class Shift:
    """What the rings say: the beam is at (`x`, `y`) pixels from where it is thought to be, uncertain by `esd`; from
    `spots` on `rings` lines. `sectors` (12,): the mean shift of q's radius in pixels by azimuth, before any correction,
    counted from +x towards +y, NaN where there is no spot."""

    x: float
    y: float
    esd: tuple[float, float]
    rings: int
    spots: int
    sectors: Float[np.ndarray, " 12"]

    @property
    def size(self) -> float:
        """The length of the shift in pixels."""
        return float(np.hypot(self.x, self.y))

    @property
    def significant(self) -> bool:
        """Whether it is beyond its uncertainty, and large enough to matter."""
        return self.size > max(0.1, 4 * float(np.hypot(*self.esd)))


def _moved(place: Float[np.ndarray, "n 3"], shift: Float[np.ndarray, " 2"]) -> Float[np.ndarray, "n 3"]:
    out = place.copy()
    out[:, :2] -= shift
    return out


def _sharpest(
    place: Float[np.ndarray, "n 3"], wavelength: Float[np.ndarray, " n"], pixel: float
) -> Float[np.ndarray, " 2"]:
    """The shift in metres, of a grid that narrows, whose histogram has the largest sum of squares."""
    if len(place) > _SPOTS:
        some = np.random.default_rng(0).choice(len(place), _SPOTS, replace=False)
        place, wavelength = place[some], wavelength[some]
    resolution = float(np.median(slope_of_q(place, wavelength))) * pixel
    top = float(np.quantile(q_from_place(place, wavelength), 0.98))

    def contrast(shift: Float[np.ndarray, " 2"], bin_pixels: float) -> float:
        q = q_from_place(_moved(place, shift), wavelength)
        place_of = (q[q < top] / (bin_pixels * resolution)).astype(np.int64)
        return float(np.sum(np.bincount(place_of).astype(np.float64) ** 2))

    best = np.zeros(2)
    for step, reach in ((2.0, _REACH), (1.0, 2.0), (0.5, 1.0)):
        offsets = np.arange(-reach, reach + 0.5 * step, step)
        tried = [best + pixel * np.array([a, b]) for a in offsets for b in offsets]
        best = tried[int(np.argmax([contrast(s, max(step, 1.0)) for s in tried]))]
    return best


def _rings(lines: Decomposition) -> Float[np.ndarray, "k 4"]:
    """q, its standard deviation, height and background, of the strongest lines that stand apart from others."""
    p = lines.peaks
    gap = np.diff(p.position, prepend=-np.inf, append=np.inf)
    lone = np.minimum(gap[:-1], gap[1:]) > 2.5 * p.width
    chosen = np.flatnonzero(lone)
    chosen = chosen[np.argsort(-p.significance[chosen])][:_RINGS]
    return np.stack([p.position[chosen], p.width[chosen] / 2.3548, p.height[chosen], chosen], 1)


def _regression(
    place: Float[np.ndarray, "n 3"],
    wavelength: Float[np.ndarray, " n"],
    found: Histogram,
    lines: Decomposition,
    pixel: float,
) -> tuple[Float[np.ndarray, " 2"], Float[np.ndarray, " 2"], int, int, Float[np.ndarray, " 12"]] | None:
    """The shift in pixels, its uncertainty, rings, spots, and the shift by sector; None for too few spots."""
    q, slope = q_from_place(place, wavelength), slope_of_q(place, wavelength) * pixel
    phi = np.arctan2(place[:, 1], place[:, 0])
    rings = _rings(lines)
    rows, shifts, weights, angles = [], [], [], []
    for k, (at, sigma, height, _) in enumerate(rings):
        near = np.abs(q - at) < 3.5 * sigma
        under = float(np.interp(at, found.q, lines.background))
        bell = height * np.exp(-0.5 * ((q[near] - at) / sigma) ** 2)
        row = np.zeros((int(near.sum()), len(rings) + 2))
        row[:, k] = 1.0
        row[:, -2], row[:, -1] = np.cos(phi[near]), np.sin(phi[near])
        rows.append(row)
        shifts.append((q[near] - at) / slope[near])
        # A spot counts as far as it is of the line, and by the width of the line there
        weights.append(bell / (bell + max(under, 1e-9)) * (slope[near] / sigma) ** 2)
        angles.append(phi[near])
    if not rows or sum(len(r) for r in rows) < _FEWEST:
        return None
    a, dr, w, angle = np.concatenate(rows), np.concatenate(shifts), np.concatenate(weights), np.concatenate(angles)
    normal = a.T @ (w[:, None] * a) + 1e-9 * np.sum(w) * np.eye(a.shape[1])
    inverse = np.linalg.inv(normal)
    solution = inverse @ (a.T @ (w * dr))
    rest = dr - a @ solution
    # The sandwich form, because weights of membership are no variances
    meat = (a * (w * rest)[:, None]).T @ (a * (w * rest)[:, None])
    covariance = inverse @ meat @ inverse
    sector = np.floor((angle % (2 * np.pi)) / (2 * np.pi) * SECTORS).astype(int).clip(0, SECTORS - 1)
    centred = dr - a[:, :-2] @ solution[:-2]
    total = np.bincount(sector, w, SECTORS)
    mean = np.bincount(sector, w * centred, SECTORS) / np.where(total > 0, total, np.nan)
    return solution[-2:], np.sqrt(np.diag(covariance)[-2:]), len(rings), len(dr), mean


def centre_shift(place: Float[np.ndarray, "n 3"], wavelength: Float[np.ndarray, " n"], pixel: float) -> Shift | None:
    """How far the beam is from the origin of `place` (x, y, z in metres); `wavelength` in angstrom, `pixel` in metres.

    None where there are too few spots on rings to say.
    """
    if len(place) < _FEWEST:
        return None

    def lines_at(shift: Float[np.ndarray, " 2"]) -> tuple[Float[np.ndarray, "n 3"], Histogram, Decomposition]:
        moved = _moved(place, shift)
        resolution = float(np.median(slope_of_q(moved, wavelength))) * pixel
        found = histogram(q_from_place(moved, wavelength), resolution=resolution)
        return moved, found, lines_of(found, _CUT)

    shift = _sharpest(place, wavelength, pixel)
    answer = None
    for _ in range(_STEPS):
        moved, found, lines = lines_at(shift)
        step = _regression(moved, wavelength, found, lines, pixel)
        if step is None:
            return None
        # Membership by the distance from the ring takes off about half of a shift as wide as the ring
        shift = shift + step[0] * pixel
        answer = step
        if np.hypot(*step[0]) < 0.3 * np.hypot(*step[1]):
            break
    assert answer is not None
    x, y = shift / pixel
    azimuth = (np.arange(SECTORS) + 0.5) * 2 * np.pi / SECTORS
    sectors = answer[4] - answer[0] @ np.stack([np.cos(azimuth), np.sin(azimuth)])
    sectors = sectors + x * np.cos(azimuth) + y * np.sin(azimuth)
    return Shift(float(x), float(y), (float(answer[1][0]), float(answer[1][1])), answer[2], answer[3], sectors)
