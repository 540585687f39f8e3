"""Lines of known cells for the tests, from gemmi alone: which reflections there are and where they lie."""

from __future__ import annotations

import itertools

import gemmi
import numpy as np

CU = 1.5405929  # angstrom

# One cell of each Bravais lattice, with a space group that has no extinctions beyond the centring
CELLS = {
    "cP": ((8.913, 8.913, 8.913, 90, 90, 90), "P m -3 m"),
    "cI": ((10.467, 10.467, 10.467, 90, 90, 90), "I m -3 m"),
    "cF": ((12.331, 12.331, 12.331, 90, 90, 90), "F m -3 m"),
    "tP": ((7.421, 7.421, 9.836, 90, 90, 90), "P 4/m m m"),
    "tI": ((7.137, 7.137, 13.217, 90, 90, 90), "I 4/m m m"),
    "hP": ((8.129, 8.129, 6.731, 90, 90, 120), "P 6/m m m"),
    "hR": ((9.417, 9.417, 15.361, 90, 90, 120), "R -3 m:H"),
    "oP": ((6.137, 8.291, 10.673, 90, 90, 90), "P m m m"),
    "oS": ((9.731, 12.317, 6.413, 90, 90, 90), "C m m m"),
    "oI": ((7.219, 9.843, 11.587, 90, 90, 90), "I m m m"),
    "oF": ((10.813, 13.657, 16.291, 90, 90, 90), "F m m m"),
    "mP": ((7.313, 9.127, 8.461, 90, 103.21, 90), "P 1 2/m 1"),
    "mC": ((13.217, 7.841, 8.713, 90, 107.43, 90), "C 1 2/m 1"),
    "aP": ((6.417, 7.253, 8.139, 82.31, 101.47, 108.23), "P -1"),
}


def reflections(cell, space_group, q2_max):
    """Every allowed reflection of half a sphere up to q2_max, (m, 3), and its q2, ascending: all of them, by gemmi."""
    unit = gemmi.UnitCell(*cell)
    operations = gemmi.SpaceGroup(space_group).operations()
    top = [int(np.ceil(edge * np.sqrt(q2_max))) for edge in cell[:3]]
    box = itertools.product(range(top[0] + 1), range(-top[1], top[1] + 1), range(-top[2], top[2] + 1))
    hkl = [h for h in box if any(h) and not operations.is_systematically_absent(h)]
    q2 = np.array([unit.calculate_1_d2(h) for h in hkl])
    order = np.argsort(q2, kind="stable")
    order = order[q2[order] <= q2_max]
    return np.array(hkl)[order], q2[order]


def positions(cell, space_group, count, separation=0.0, wavelength=CU):
    """q2 of the first `count` lines; of lines closer than `separation` degrees of 2theta the first stands for all."""
    q2_max = (count / gemmi.UnitCell(*cell).volume) ** (2 / 3)
    while True:
        q2 = reflections(cell, space_group, q2_max)[1]
        tth = tth_from_q2(q2, wavelength)
        kept = [0]
        for i in range(1, len(q2)):
            if q2[i] - q2[kept[-1]] > 1e-7 and tth[i] - tth[kept[-1]] > separation:
                kept.append(i)
        if len(kept) >= count:
            return q2[kept[:count]]
        q2_max *= 1.5


def tth_from_q2(q2, wavelength=CU):
    """2theta in degrees, by Bragg's law."""
    return 2 * np.rad2deg(np.arcsin(np.sqrt(q2) * wavelength / 2))


def q2_from_tth(tth, wavelength=CU):
    """1/d^2 in 1/angstrom^2, by Bragg's law."""
    return (2 * np.sin(np.deg2rad(tth) / 2) / wavelength) ** 2


def measured(name, count=25, error=0.005, seed=1, zero=0.0):
    """A list as a diffractometer would give it: separated lines of `CELLS[name]` with normal errors in 2theta."""
    tth = tth_from_q2(positions(*CELLS[name], count, 0.06))
    return q2_from_tth(tth + np.random.default_rng(seed).normal(0, error, count) + zero)
