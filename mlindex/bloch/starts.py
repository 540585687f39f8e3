"""What a pattern says before any fit: thicknesses, the sizes of structure factors, and the tilts that are simple.

Where a beam g is far from its Bragg position its intensity is |U_g|^2 sin^2(pi t s) / (k0 s)^2, s the excitation error.
s^2 I is then a cosine along s whose period names the thickness, and whose mean names |U_g|: tilts on a grid repeat the
periods, and a few candidates remain. Tilts at which the direct beam stays strong are nearly kinematic; a fit that
begins there has few wrong minima, and the others are added when it is near.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from mlindex.bloch.beams import Geometry

_GRID = 1.0  # A, of the thicknesses that are tried
_FAR = 0.6  # quantile of a beam's excitation errors beyond which fringes count
_PEAKS, _LEAST = 12, 0.2  # thicknesses, and how strong against the best
_CLIP = 6.0  # times the median: brighter is not far from its Bragg position, whatever the excitation error
_SIMPLE, _BRAGG = 0.3, 0.3  # of the tilts, those with the strongest direct beam; of a beam's, those nearest to Bragg


def thickness_candidates(
    intensity: Float[np.ndarray, "m n"], geometry: Geometry, thickness: tuple[float, float]
) -> Float[np.ndarray, " k"]:
    """Thicknesses (A) within the limits whose cosines explain most of s^2 I in all beams together, the best first."""
    low, high = thickness
    trial = np.arange(low, high + _GRID, _GRID)
    explained = np.zeros(len(trial))
    for beam in range(intensity.shape[1]):
        s = geometry.excitation[:, beam] / (2 * geometry.k0)
        far = np.abs(s) > np.quantile(np.abs(s), _FAR)
        if beam == geometry.origin or far.sum() < 8:
            continue
        fringe = intensity[far, beam] * s[far] ** 2
        fringe = np.minimum(fringe, _CLIP * np.median(fringe))
        fringe = fringe - fringe.mean()
        # sin^2(pi t s) = (1 - cos(2 pi t s)) / 2: the sign of the cosine tells thicknesses from their aliases
        cosine = np.cos(2 * np.pi * np.outer(trial, s[far]))
        cosine -= cosine.mean(1, keepdims=True)
        total = fringe @ fringe
        if total > 0:
            along = np.maximum(-cosine @ fringe, 0.0)
            explained += along**2 / (total * np.maximum(np.sum(cosine**2, 1), 1e-9))
    inner = np.flatnonzero((explained[1:-1] > explained[:-2]) & (explained[1:-1] >= explained[2:])) + 1
    peaks = inner[np.argsort(-explained[inner])]
    peaks = peaks[explained[peaks] > _LEAST * explained.max(initial=0.0)][:_PEAKS]
    return trial[peaks] if len(peaks) else np.geomspace(max(low, 1.0), high, _PEAKS)


def simplest_first(intensity: Float[np.ndarray, "m n"], geometry: Geometry) -> Int[np.ndarray, " m"]:
    """The tilts, those with the strongest direct beam first."""
    return np.argsort(-intensity[:, geometry.origin], kind="stable")


def kinematic_sizes(intensity: Float[np.ndarray, "m n"], geometry: Geometry) -> Float[np.ndarray, " d"]:
    """|U_g| (1/A^2) at `geometry.dhkl` of the differences that are beams; 0 for the others.

    The mean of sin^2 is a half: |U_g|^2 = mean(I (2 k0 s)^2) / 2, at simple tilts away from the Bragg position.
    """
    direct = intensity[:, geometry.origin]
    simple = direct >= np.quantile(direct, 1 - _SIMPLE)
    square = geometry.excitation**2
    use = simple[:, None] & (square >= np.quantile(square, _BRAGG, axis=0))
    mean = np.sum(np.where(use, intensity * square, 0.0), 0) / np.maximum(use.sum(0), 1)
    sizes = np.zeros(len(geometry.dhkl))
    sizes[geometry.index[:, geometry.origin]] = np.sqrt(mean / 2)
    sizes[len(sizes) // 2] = 0.0
    # A beam and its opposite tell of one structure factor
    both = np.stack([sizes, sizes[::-1]])
    return both.sum(0) / np.maximum((both > 0).sum(0), 1)
