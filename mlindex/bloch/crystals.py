"""Starts that are crystals of a few atoms, chosen by their pattern without a fit.

Signs and phases at random are seldom right in a dozen strong structure factors at once, and where no tilt is kinematic
nothing less leads to the solution. Those of a few atoms, with the symmetry of the pattern, are right often: many such
crystals are drawn, those whose structure factors have the kinematic sizes are kept, and their patterns at all
thicknesses, for which one decomposition serves, say which is the start.

Atoms are on the axes of the plane groups half of the time. How structure factors decrease with |g| is that of the
kinematic sizes, so no element is assumed. Kinematic sizes are too small where scattering is strong; a larger scale
is tried too.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Complex, Float, Int

from mlindex.bloch.beams import Geometry
from mlindex.bloch.judge import lengths
from mlindex.bloch.propagate import intensities
from mlindex.bloch.symmetry import Tie, bases

_ATOMS, _WEIGHT = 3, (0.2, 1.0)  # before the symmetry repeats them
_ON_AXIS = 0.5  # how often an atom is at one of these parts of the primitive cell
_AXES = (0.0, 1 / 4, 1 / 3, 1 / 2, 2 / 3, 3 / 4)
_DRAWN, _TRIED, _ALIKE = 500, 8, 0.98  # crystals; whose patterns are seen; correlation of two that are one
_SCALES = (1.0, 1.4)
_BEST = 0.6  # how often the nearest is taken; of the rest, as often the next one
_SAME = 1e-6  # 1/A
_TILTS, _FROM, _DEPTHS = 24, 0.25, (12, 400)  # so many, of the simplest part; thicknesses, fewest and most


def drawn(
    sizes: Float[np.ndarray, " o"], geometry: Geometry, tie: Tie, rng: np.random.Generator
) -> list[Complex[np.ndarray, " d"]]:
    """Structure factors (1/A^2, at `geometry.dhkl`) of random crystals, those nearest to the sizes first.

    `sizes` (1/A^2) of the orbits of `tie`, 0 where unknown; at least one is known.
    """
    half = len(geometry.dhkl) // 2 + 1
    upper = np.append(sizes, 0.0)[tie.orbit]
    known = upper > 0
    g = np.zeros((len(geometry.dhkl), 2))
    g[geometry.index] = (geometry.g[:, None] - geometry.g[None])[..., :2]
    length = lengths(geometry)
    slope = 0.0
    if np.ptp(length[half:][known]) > _SAME:
        slope = min(float(np.polyfit(length[half:][known], np.log(upper[known]), 1)[0]), 0.0)
    decrease, (_, dual) = np.exp(slope * length), bases(geometry)
    found: list[tuple[float, Complex[np.ndarray, " d"]]] = []
    for _ in range(_DRAWN):
        u = np.zeros(len(length), np.complex128)
        for _ in range(rng.integers(1, _ATOMS + 1)):
            place = rng.choice(_AXES, 2) if rng.random() < _ON_AXIS else rng.random(2)
            u += rng.uniform(*_WEIGHT) * np.exp(-2j * np.pi * (g @ (dual @ place)))
        u = tie.project(u) * decrease
        norm = float(np.linalg.norm(u[half:][known]))
        if norm > 0:
            u *= np.linalg.norm(upper) / norm
            found.append((-float(np.abs(u[half:]) @ upper), u))
    kept: list[Complex[np.ndarray, " d"]] = []
    for _, u in sorted(found, key=lambda one: one[0]):
        if all(abs(np.vdot(u, v)) < _ALIKE * np.linalg.norm(u) * np.linalg.norm(v) for v in kept):
            kept.append(u)
        if len(kept) == _TRIED:
            break
    return kept


def likely(
    observed: Float[np.ndarray, "m n"],
    geometry: Geometry,
    tie: Tie,
    *,
    sizes: Float[np.ndarray, " o"],
    order: Int[np.ndarray, " m"],
    limits: tuple[float, float],
    step: float,
    rng: np.random.Generator,
) -> tuple[Complex[np.ndarray, " d"], float] | None:
    """Structure factors and thickness (A) of one of some random crystals, mostly the nearest; None without sizes.

    `order`: the tilts, the simplest first; `limits` of the thickness and `step` between those that are tried (A).
    """
    if not np.any(sizes > 0):
        return None
    pool = order[: max(_TILTS, round(_FROM * len(order)))]
    tilts = np.sort(rng.permutation(pool)[:_TILTS])
    part, root = geometry.part(tilts), np.sqrt(observed[tilts])
    depths = np.linspace(*limits, int(np.clip((limits[1] - limits[0]) / step, *_DEPTHS)))
    found: list[tuple[float, Complex[np.ndarray, " d"], float]] = []
    for u in drawn(sizes, geometry, tie, rng):
        for scale in _SCALES:
            pattern = intensities(scale * u, part, depths, method="eigenvectors")
            off = np.sum((np.sqrt(pattern) - root) ** 2, (1, 2))
            found.append((float(off.min()), scale * u, float(depths[off.argmin()])))
    if not found:
        return None
    found.sort(key=lambda one: one[0])
    return found[min(int(rng.geometric(_BEST)), len(found)) - 1][1:]
