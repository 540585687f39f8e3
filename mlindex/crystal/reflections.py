"""The reflections of a Bravais lattice: which are distinct lines, in which order to list them, how many share a line.

"Distinct" means distinct in q2 for a general cell of the system. That merges the reflections equivalent under the
holohedry and also those that coincide for every cell although no symmetry relates them: 333 with 511 in cubic, 43l
with 50l in tetragonal, 70l with 53l in hexagonal, hkl with hk-l in rhombohedral axes. They are one line in a
powder, and must count once.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from mlindex.crystal.lattice import BRAVAIS, SYSTEMS, allowed, holohedry
from mlindex.crystal.metric import (
    inverted_metric,
    products_from_hkl,
    q2_from_hkl,
    reciprocal_metric_from_cell,
    volume_from_reciprocal_metric,
)

# Median edge ratios and monoclinic angles of 10,744 known crystals (COD, Materials Project and others; orthorhombic
# axes sorted). They decide the order of a reference list and nothing else.
_TYPICAL_CELL = {
    "cF": (1.0, 1.0, 1.0, 90.0, 90.0, 90.0),
    "cI": (1.0, 1.0, 1.0, 90.0, 90.0, 90.0),
    "cP": (1.0, 1.0, 1.0, 90.0, 90.0, 90.0),
    "hR": (0.72, 0.72, 1.9, 90.0, 90.0, 120.0),
    "hP": (1.03, 1.03, 0.95, 90.0, 90.0, 120.0),
    "tI": (0.8, 0.8, 1.57, 90.0, 90.0, 90.0),
    "tP": (0.9, 0.9, 1.24, 90.0, 90.0, 90.0),
    "oF": (0.62, 1.05, 1.54, 90.0, 90.0, 90.0),
    "oI": (0.71, 0.9, 1.45, 90.0, 90.0, 90.0),
    "oS": (0.79, 1.43, 0.82, 90.0, 90.0, 90.0),
    "oP": (0.71, 0.98, 1.44, 90.0, 90.0, 90.0),
    "mC": (1.26, 0.84, 0.98, 90.0, 105.0, 90.0),
    "mP": (0.86, 0.96, 1.22, 90.0, 101.0, 90.0),
    "aP": (0.8, 1.01, 1.27, 90.0, 90.0, 90.0),
}


def line_key(hkl: Int[Any, "... 3"], system: str) -> Int[Any, "... p"]:
    """Integers that agree exactly when two reflections have the same q2 in every cell of the system.

    They are the coefficients of the free parameters: (h^2 + k^2 + l^2) in cubic, (h^2 + k^2 + h k, l^2) in
    hexagonal, ...
    """
    return products_from_hkl(hkl) @ SYSTEMS[system].embed.astype(np.int64)


def multiplicity(hkl: Int[Any, "n 3"], system: str) -> Int[Any, " n"]:
    """The number of reflections equivalent under the holohedry, Friedel mates included (cubic hkl: 48)."""
    operations = holohedry(system)
    fixed = np.all(hkl[:, None, :] == np.einsum("ni,mij->nmj", hkl, operations), axis=2).sum(axis=1)
    return len(operations) // fixed


def _unique_half(h: NDArray, k: NDArray, l: NDArray, system: str) -> NDArray:  # noqa: E741
    """True for one reflection in each set that is equivalent under the holohedry (hR: under 6/mmm, which q2 has)."""
    match system:
        case "cubic":
            return (h >= k) & (k >= l) & (l >= 0)
        case "tetragonal" | "hexagonal":
            return (h >= k) & (k >= 0) & (l >= 0)
        case "rhombohedral":
            return (h >= k) & (k >= 0)
        case "orthorhombic":
            return (h >= 0) & (k >= 0) & (l >= 0)
        case "monoclinic":
            return (h >= 0) & (k >= 0) & ((h > 0) | (l >= 0))
    return (h > 0) | ((h == 0) & ((k > 0) | ((k == 0) & (l >= 0))))


def _box(limits: NDArray, system: str) -> NDArray:
    """Every index triple of the asymmetric unit up to `limits`, without 000."""
    lowest = np.zeros(3, np.int64)
    if system in ("rhombohedral", "monoclinic", "triclinic"):
        lowest[2] = -limits[2]
    if system == "triclinic":
        lowest[1] = -limits[1]
    axes = [np.arange(low, high + 1) for low, high in zip(lowest, limits, strict=True)]
    h, k, l = (x.ravel() for x in np.meshgrid(*axes, indexing="ij"))  # noqa: E741
    keep = _unique_half(h, k, l, system) & ((h != 0) | (k != 0) | (l != 0))
    return np.stack([h, k, l], 1)[keep]


def hkl_within(g: Float[Any, " 6"], bravais: str, q2_max: float) -> Int[Any, "n 3"]:
    """Every distinct line of a lattice with 0 < q2 <= q2_max (1/angstrom^2), one reflection each, ascending in q2.

    `g` is the reciprocal metric (6,) in the conventional axes of `bravais`. The index limits |h| <= a q_max come
    from the direct cell, so the list is complete. Of the reflections that share a line the one with the largest
    multiplicity stands for it. Raises `ValueError` where g is not positive definite.
    """
    lattice = BRAVAIS[bravais]
    metric = np.asarray(g, np.float64)
    direct = inverted_metric(metric)
    if not (np.all(np.isfinite(direct)) and np.all(direct[:3] > 0) and np.all(metric[:3] > 0)):
        raise ValueError(f"the reciprocal metric {metric.tolist()} is not that of a cell")
    limits = np.floor(np.sqrt(direct[:3] * max(q2_max, 0.0)) + 1e-9).astype(np.int64)
    if lattice.system in ("cubic", "tetragonal", "rhombohedral", "hexagonal"):
        limits[:2] = limits[:2].max()
    hkl = _box(limits, lattice.system)
    hkl = hkl[allowed(hkl, lattice.centring)]
    q2 = q2_from_hkl(metric, hkl)
    hkl = hkl[q2 <= q2_max * (1 + 1e-12)]
    if lattice.system not in ("orthorhombic", "monoclinic", "triclinic") and len(hkl):
        # l >= 0 is preferred where both hkl and hk-l of hR are allowed
        order = np.lexsort((hkl[:, 1], hkl[:, 0], hkl[:, 2] < 0, -multiplicity(hkl, lattice.system)))
        _, first = np.unique(line_key(hkl[order], lattice.system), axis=0, return_index=True)
        hkl = hkl[order][first]
    # Rounded, so that ties are ordered by the indices and not by the last bit
    rank = np.round(q2_from_hkl(metric, hkl) / max(q2_max, 1e-300), 11)
    return hkl[np.lexsort((hkl[:, 2], hkl[:, 1], hkl[:, 0], rank))]


@cache
def _reference(bravais: str, n: int) -> NDArray[np.int64]:
    g = reciprocal_metric_from_cell(_TYPICAL_CELL[bravais])
    lattice = BRAVAIS[bravais]
    # Nodes in a sphere of radius q number (4/3) pi q^3 V / multiplicity; each line holds at most |holohedry| of them
    volume = float(volume_from_reciprocal_metric(g)) / lattice.multiplicity
    q2_max = (n * len(holohedry(lattice.system)) / (4.19 * volume)) ** (2 / 3) * 0.5
    while len(found := hkl_within(g, bravais, q2_max)) < n:
        q2_max *= 1.3
    found = found[:n].copy()
    found.setflags(write=False)
    return found


def reference_hkl(bravais: str, n: int) -> Int[Any, "n 3"]:
    """The first n distinct lines of a Bravais lattice, (n, 3) int64, in the order of q2 in a typical cell of it.

    The typical cell has the median edge ratios (and beta) of known crystals of that lattice. The list is
    deterministic, obeys the centring, leaves out 000, holds one reflection a line, and a longer list begins with
    the shorter one.
    """
    if bravais not in BRAVAIS:
        raise ValueError(f"unknown Bravais lattice {bravais!r}; the lattices are {', '.join(BRAVAIS)}")
    if n < 1:
        raise ValueError(f"a reference list needs at least one reflection, got n = {n}")
    return _reference(bravais, n)
