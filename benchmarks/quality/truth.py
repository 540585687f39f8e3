"""Whether two cells describe the same lattice, decided with gemmi and integer changes of basis alone.

Kept apart from `mlindex.crystal` on purpose: a benchmark must not be judged by the code it judges.

Both cells are made primitive and Niggli reduced by gemmi. The Niggli *type* is not compared: near a boundary between
types an error of a part in a thousand swaps basis vectors. Instead every basis of the second lattice with small integer
coefficients and determinant +-1 is tried against the reduced basis of the first. Tolerances: 1 % on each of the three
lengths, 0.75 degrees on each of the three angles. A sublattice or superlattice never passes, because the change of
basis is unimodular. A lattice whose true symmetry is lower than what its metric shows within the tolerance passes in
either description: line positions cannot tell them apart.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import gemmi
import numpy as np
from numpy.typing import NDArray

LENGTH_TOLERANCE = 0.01  # relative
ANGLE_TOLERANCE = 0.75  # degrees
CENTRINGS = "PABCIFR"

_STEPS = np.array([n for n in itertools.product(range(-2, 3), repeat=3) if any(n)])


def centring_of(bravais: str, cell: Sequence[float]) -> str:
    """The centring letter gemmi needs for a Bravais symbol.

    "S" and "C" are C; hR is R in hexagonal axes and P where the cell (angstrom, degrees) is in rhombohedral axes.
    """
    letter = bravais[1]
    if letter == "R":
        return "R" if abs(cell[5] - 120) < 1 and abs(cell[4] - 90) < 1 else "P"
    return "C" if letter == "S" else letter


def niggli(cell: Sequence[float], centring: str) -> tuple[float, ...]:
    """The primitive Niggli cell (angstrom, degrees) of a conventional one; ValueError for an impossible cell."""
    if centring not in CENTRINGS:
        raise ValueError(f"centring {centring!r} is none of {CENTRINGS}")
    unit = gemmi.UnitCell(*map(float, cell))
    if not np.isfinite(unit.volume) or unit.volume <= 0:
        raise ValueError(f"no cell has the parameters {tuple(cell)}")
    vector = gemmi.GruberVector(unit, centring)
    vector.niggli_reduce(epsilon=1e-6)
    return tuple(vector.cell_parameters())


def _metric(cell: Sequence[float]) -> NDArray[np.float64]:
    lengths, cosines = np.array(cell[:3], float), np.cos(np.radians(np.array(cell[3:], float)))
    shape = np.eye(3)
    for (i, j), cosine in zip(((1, 2), (0, 2), (0, 1)), cosines, strict=True):
        shape[i, j] = shape[j, i] = cosine
    return shape * np.outer(lengths, lengths)


def same_lattice(
    first: Sequence[float], second: Sequence[float], *, length: float = LENGTH_TOLERANCE, angle: float = ANGLE_TOLERANCE
) -> bool:
    """Whether two primitive Niggli cells (from `niggli`) are the same lattice within the tolerances."""
    g1, g2 = _metric(first), _metric(second)
    ratio = np.sqrt(np.linalg.det(g2) / np.linalg.det(g1))
    if not abs(np.log(ratio)) < 6 * length:  # far outside what the lengths and angles could allow
        return False
    sizes = np.sqrt(np.einsum("ni,ij,nj->n", _STEPS, g2, _STEPS))
    near = [_STEPS[np.abs(sizes / edge - 1) <= length] for edge in first[:3]]
    for u, v in itertools.product(near[0], near[1]):
        if abs(_angle(u, v, g2) - first[5]) > angle:
            continue
        for w in near[2]:
            if (
                abs(round(np.linalg.det(np.array([u, v, w])))) == 1
                and abs(_angle(v, w, g2) - first[3]) <= angle
                and abs(_angle(u, w, g2) - first[4]) <= angle
            ):
                return True
    return False


def _angle(u: NDArray, v: NDArray, metric: NDArray) -> float:
    cosine = (u @ metric @ v) / np.sqrt((u @ metric @ u) * (v @ metric @ v))
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
