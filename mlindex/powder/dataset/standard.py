"""The standard conventional axes of a crystal that is given in any setting of its space group.

Sources: International Tables for Crystallography A (2016), sections 1.5.1 and 3.1.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from mlindex.crystal.lattice import BRAVAIS, free_from_metric, metric_from_free, primitive_transform
from mlindex.crystal.metric import (
    CellLike,
    cell_from_direct_metric,
    checked_cell,
    direct_metric_from_cell,
    inverted_metric,
    matrix_from_metric,
    metric_from_matrix,
    transform_metric,
)
from mlindex.crystal.reduction import niggli_from_cell
from mlindex.crystal.settings import centring_of, standard_setting
from mlindex.crystal.spacegroup import SpaceGroup
from mlindex.crystal.symmetry import conventional_cells

# (new axes) = (old axes) P: the unique axis a or c of a monoclinic setting becomes b; rhombohedral to hexagonal axes
_CYCLE = np.array([[0.0, 1, 0], [0, 0, 1], [1, 0, 0]])  # new a = c, b = a, c = b
_UNIQUE_TO_B = (_CYCLE, np.eye(3), _CYCLE.T)
TO_HEXAGONAL = np.array([[1.0, 0, 1], [-1, 1, 1], [0, -1, 1]])
_SYSTEM_OF = {
    "-1": "a", "2/m": "m", "mmm": "o", "4/m": "t", "4/mmm": "t", "-3": "h", "-3m": "h", "6/m": "h", "6/mmm": "h",
    "m-3": "c", "m-3m": "c",
}  # fmt: skip


@lru_cache(maxsize=1000)
def lattice_letter(group: SpaceGroup) -> str:
    """The centring letter of a space group in its own axes (P, A, B, C, I, F, R obverse, r reverse, H).

    Raises `ValueError` for a centring that has no letter.
    """
    pure = np.all(group.rotation == np.eye(3, dtype=np.int64), axis=(1, 2))
    points = group.shift[pure] / 24
    # a primitive basis: unit vectors and centring points span the lattice
    vectors = np.concatenate([points[np.any(points != 0, axis=1)], np.eye(3)])
    best = min(
        (
            (abs(det), i, j, k)
            for i in range(len(vectors))
            for j in range(i)
            for k in range(j)
            if abs(det := np.linalg.det(vectors[[i, j, k]])) > 1e-6
        ),
    )
    return centring_of(np.linalg.inv(vectors[list(best[1:])].T))


def bravais_of(group: SpaceGroup) -> str:
    """The Bravais lattice of a space group: aP, mP, mC, oP, oS, ..., cF.

    Raises `ValueError` for a centring that has no letter.
    """
    first = _SYSTEM_OF[group.laue_group]
    letter = lattice_letter(group)
    if first == "a":
        return "aP"
    if first == "m":
        return "mP" if letter == "P" or letter == "ABC"[_unique_axis(group)] else "mC"
    if first == "o":
        return "oS" if letter in "ABC" else f"o{letter}"
    if first == "t":
        return {"C": "tP", "F": "tI"}.get(letter, f"t{letter}")
    if first == "h":
        rhombohedral_axes = letter == "P" and _three_fold_is_diagonal(group)
        return "hR" if letter in "Rr" or rhombohedral_axes else "hP"
    return f"c{letter}"


def _unique_axis(group: SpaceGroup) -> int:
    """0, 1 or 2: the axis that the two-fold rotations of a monoclinic group keep (1 where none is a cell axis)."""
    folds = group.laue_operations[np.trace(group.laue_operations, axis1=1, axis2=2) == -1]
    for fold in folds:
        kept = np.flatnonzero(np.diag(fold) == 1)
        if len(kept) == 1 and np.count_nonzero(fold[:, kept[0]]) == 1:
            return int(kept[0])
    return 1


def _three_fold_is_diagonal(group: SpaceGroup) -> bool:
    threes = group.laue_operations[np.trace(group.laue_operations, axis1=1, axis2=2) == 0]
    return bool(len(threes)) and bool(np.all(threes @ np.ones(3) == 1))


def _by_search(cell: NDArray, letter: str, bravais: str) -> NDArray:
    """The change of basis for axes that are in no common setting, from the symmetry of the lattice itself."""
    primitive = np.linalg.inv(_to_basis(letter))
    g = transform_metric(inverted_metric(direct_metric_from_cell(cell)), primitive)
    for found in conventional_cells(g, 1e-4):
        if found.bravais == bravais:
            return primitive @ found.transform
    raise ValueError(f"its cell has not the symmetry of {bravais}")


def _to_basis(letter: str) -> NDArray:
    if letter == "r":
        return np.linalg.inv(BRAVAIS["hR"].primitive) @ np.diag([-1.0, -1.0, 1.0])
    if letter == "H":
        return np.linalg.inv(np.array([[2.0, -1, 0], [1, 1, 0], [0, 0, 3]]) / 3)
    return np.linalg.inv(primitive_transform(letter))


def standard_axes(
    cell: CellLike, group: SpaceGroup, bravais: str
) -> tuple[Float[np.ndarray, " 6"], Float[np.ndarray, "3 3"]]:
    """The reciprocal metric g (6,) (1/angstrom^2) in the standard setting and P, (standard axes) = (given axes) P.

    Indices change as hkl' = hkl P. g is exactly of the lattice system. Raises `ValueError` (one sentence) where the
    cell is impossible or has not the symmetry of the lattice.
    """
    values = checked_cell(cell)
    letter = lattice_letter(group)
    system = BRAVAIS[bravais].system
    p = np.eye(3)
    if system == "triclinic":
        _, p = niggli_from_cell(values, letter)
    elif system in ("monoclinic", "orthorhombic"):
        if system == "monoclinic":
            unique = _unique_axis(group)
            p = _UNIQUE_TO_B[unique]
            letter = letter if letter in "PIF" else "ABC"[("ABC".index(letter) - unique + 1) % 3]
        turned = _turned(values, p)
        if system == "monoclinic" and letter in "BF":  # a centring that a smaller standard cell describes
            p = p @ _by_search(turned, letter, bravais)
        else:
            p = p @ standard_setting(turned, bravais, centring=letter)[1]
    elif bravais == "hR" and letter in "Pr":
        p = TO_HEXAGONAL if letter == "P" else np.diag([-1.0, -1.0, 1.0])
    elif letter != BRAVAIS[bravais].centring or not _is_of(values, system):
        p = _by_search(values, letter, bravais)
    turned = _turned(values, p)
    g = inverted_metric(direct_metric_from_cell(turned))
    exact = metric_from_free(free_from_metric(g, system), system)
    if np.abs(exact - g).max() > 2e-3 * np.abs(g[:3]).max():
        raise ValueError(f"its cell has not the symmetry of {bravais}")
    return exact, np.round(p, 9)


def _is_of(cell: NDArray, system: str) -> bool:
    g = inverted_metric(direct_metric_from_cell(cell))
    exact = metric_from_free(free_from_metric(g, system), system)
    return bool(np.abs(exact - g).max() <= 2e-3 * np.abs(g[:3]).max())


def _turned(cell: NDArray, p: NDArray) -> NDArray:
    matrix = matrix_from_metric(direct_metric_from_cell(cell))
    return cell_from_direct_metric(metric_from_matrix(p.T @ matrix @ p))
