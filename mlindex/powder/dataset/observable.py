"""Which lines of a crystal structure a powder diffractometer would show.

The pattern of Cu K alpha 1 from 0 to 60 degrees 2theta has Gaussian lines of 0.1 degrees (full width at half maximum)
with the Lorentz and polarisation factors of a powder, and is scaled so that the sum of its squares over steps of 0.02
degrees is 1. A line is observable when the pattern exceeds 0.005 at its place, with a second derivative below -1 (per
degree squared), and no stronger observable line is within 0.1/1.5 degrees. Source: the write-up of ML-Index, section
2.1.1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from mlindex.crystal.extinctions import line_members
from mlindex.crystal.metric import q2_from_hkl, volume_from_reciprocal_metric
from mlindex.crystal.reflections import hkl_within
from mlindex.crystal.scattering import Structure, intensities
from mlindex.powder.dataset.acceptance import SEPARATION

WAVELENGTH = 1.5405929  # angstrom, Cu K alpha 1
WIDTH = 0.1  # degrees 2theta, full width at half maximum
STEP = 0.02  # degrees
LOWEST, CURVATURE = 0.005, -1.0
LONGEST = 60  # lines of an observable list
ENDS = (60.0, 30.0, 15.0)  # degrees 2theta of the end of a pattern: the first that holds at most MOST reflections
MOST = 20_000
_SIGMA = WIDTH / np.sqrt(8 * np.log(2))


def tth_from_q2(q2: Float[np.ndarray, "*n"]) -> Float[Any, "*n"]:
    """2theta (degrees) of q2 (1/angstrom^2); 180 beyond the reach of the wavelength."""
    return np.degrees(2 * np.arcsin(np.minimum(np.sqrt(np.maximum(q2, 0)) * WAVELENGTH / 2, 1)))


def q2_from_tth(tth: Float[np.ndarray, "*n"]) -> Float[Any, "*n"]:
    """q2 (1/angstrom^2) of 2theta (degrees)."""
    return (2 / WAVELENGTH * np.sin(np.radians(tth / 2))) ** 2


def pattern_end(g: Float[np.ndarray, " 6"]) -> float:
    """Where the pattern of a cell ends, degrees 2theta: 60, or less for a cell with very many reflections."""
    volume = float(volume_from_reciprocal_metric(g))
    for end in ENDS:
        if 4 / 3 * np.pi * volume * float(q2_from_tth(np.array(end))) ** 1.5 <= MOST:
            break
    return end


def line_intensities(
    hkl: NDArray[np.int64], bravais: str, p: NDArray, structure: Structure, cell: NDArray
) -> Float[np.ndarray, " n"]:
    """The sum of |F|^2 over all reflections in each line (n, 3) of the standard setting.

    `cell` and `structure` are in the given axes, (standard axes) = (given axes) `p`.
    """
    members, owner = line_members(hkl, bravais)
    # of each Friedel pair one: that whose first index other than zero is positive
    leading = np.take_along_axis(members, np.argmax(members != 0, axis=1)[:, None], axis=1)
    table = np.unique(np.concatenate([members * np.sign(leading), owner[:, None]], axis=1), axis=0)
    given = np.rint(table[:, :3] @ np.linalg.inv(p)).astype(np.int64)
    return 2 * np.bincount(table[:, 3], intensities(structure, cell, given), minlength=len(hkl))


def observable_lines(tth: Float[np.ndarray, " n"], squared: Float[np.ndarray, " n"], end: float) -> NDArray[np.int64]:
    """The indices, ascending in 2theta, of the first 60 observable lines of a pattern that ends at `end` (degrees).

    `tth` (degrees) and `squared`, the sum of |F|^2 over the reflections of each line.
    """
    theta = np.radians(tth / 2)
    area = squared * (1 + np.cos(2 * theta) ** 2) / (np.sin(theta) ** 2 * np.cos(theta))
    some = np.flatnonzero(area > 1e-7 * area.max(initial=0.0))
    if not len(some):
        return some
    position, height = tth[some], area[some]
    grid = np.arange(0.0, end + STEP / 2, STEP)
    pattern = np.zeros(len(grid))
    for x, a in zip(position, height, strict=True):
        near = slice(*np.searchsorted(grid, [x - 6 * _SIGMA, x + 6 * _SIGMA]))
        pattern[near] += a * np.exp(-0.5 * ((grid[near] - x) / _SIGMA) ** 2)
    height = height / np.sqrt(np.sum(pattern**2))
    apart = (position[:, None] - position[None, :]) / _SIGMA
    bell = height[None, :] * np.exp(-0.5 * apart**2)
    value, curvature = bell.sum(1), (bell * (apart**2 - 1)).sum(1) / _SIGMA**2
    seen = np.flatnonzero((value > LOWEST) & (curvature < CURVATURE))
    kept: list[int] = []
    for i in seen[np.argsort(-value[seen], kind="stable")]:
        if all(abs(position[i] - position[j]) >= SEPARATION for j in kept):
            kept.append(int(i))
    return some[np.array(sorted(kept, key=lambda i: position[i])[:LONGEST], np.int64)]


def observable_hkl(
    g: NDArray, bravais: str, p: NDArray, structure: Structure, cell: NDArray
) -> tuple[NDArray[np.int64], float]:
    """The observable lines (k, 3) of a structure in the standard setting, and where its pattern ends (degrees)."""
    end = pattern_end(g)
    hkl = hkl_within(g, bravais, float(q2_from_tth(np.array(end))))
    if not len(hkl):
        return hkl, end
    squared = line_intensities(hkl, bravais, p, structure, cell)
    return hkl[observable_lines(tth_from_q2(q2_from_hkl(g, hkl)), squared, end)], end
