"""Simulated scans for the tests: lines placed by gemmi, profiles by SciPy, counts by a Poisson law."""

from __future__ import annotations

import numpy as np
from scipy.special import voigt_profile

from tests.powder.patterns import CELLS, reflections, tth_from_q2

CU1, CU2 = 1.5405929, 1.5444274


def lines_of(name, low=10.0, high=70.0, separation=0.5, seed=0):
    """2theta of the lines of a known cell that stand apart by `separation` degrees, and an area for each."""
    q2 = np.unique(reflections(*CELLS[name], (2 * np.sin(np.radians(high / 2)) / CU1) ** 2)[1].round(10))
    tth = tth_from_q2(q2, CU1)
    gap = np.diff(tth, prepend=-np.inf, append=np.inf)
    tth = tth[(np.minimum(gap[:-1], gap[1:]) > separation) & (tth > low) & (tth < high - 1)]
    return tth, 10 ** np.random.default_rng(seed).uniform(2.2, 4.0, len(tth))


def scan(tth, area, *, doublet=False, level=60.0, step=0.02, low=8.0, high=72.0, width=0.1, seed=0, scale=1.0):
    """x and counts of Voigt lines over a falling background; `area` in counts, of both lines of a doublet."""
    x = np.arange(low, high, step)
    y = level * (1 + 2 * np.exp(-(x - low) / 8))
    sigma, gamma = width / 3.6, width / 5
    second = 2 * np.degrees(np.arcsin(np.minimum(np.sin(np.radians(tth / 2)) * CU2 / CU1, 1)))
    parts = ((tth, 2 / 3), (second, 1 / 3)) if doublet else ((tth, 1.0),)
    for places, share in parts:
        for at, total in zip(places, area, strict=True):
            y = y + share * total * step * voigt_profile(x - at, sigma, gamma)
    return x, np.random.default_rng(seed).poisson(y).astype(float) * scale
