"""The symmetry of a phase as results describe it: a cell, a Laue class and the number of a space group."""

from __future__ import annotations

from itertools import product

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from mlindex.crystal.metric import b_matrix_from_cell, direct_metric_from_cell, matrix_from_metric
from mlindex.crystal.rotation import laue_rotations, nearest_rotation
from mlindex.crystal.spacegroup import space_group
from mlindex.crystal.strain import direct_matrix_from_cell
from mlindex.formats.ctf import Phase

_FITS = 2e-3  # relative change of an element of the metric that an operation may make


def _lattice_rotations(cell: Float[np.ndarray, " 6"]) -> NDArray[np.float64]:
    """The rotations (m, 3, 3) of a cell's lattice by its metric, in Cartesian crystal axes (a* along x)."""
    metric = matrix_from_metric(direct_metric_from_cell(cell))
    w = np.array(list(product((-1, 0, 1), repeat=9))).reshape(-1, 3, 3)
    w = w[np.rint(np.linalg.det(w)) == 1]
    scale = np.sqrt(np.diag(metric))
    change = np.abs((np.swapaxes(w, 1, 2) @ metric @ w - metric) / np.outer(scale, scale)).max((1, 2))
    # x' = W x acts on positions; in the reciprocal Cartesian axes A = B^-T takes indices of positions to vectors
    direct = np.linalg.inv(np.asarray(b_matrix_from_cell(cell), np.float64)).T
    return direct @ w[change < _FITS] @ np.linalg.inv(direct)


def rotations_of(phase: Phase) -> NDArray[np.float64]:
    """The rotations (m, 3, 3) of a phase's Laue class in Cartesian crystal axes (a* along x, b* in xy).

    In the setting that its cell is in: those of the space group where these fit the cell, else those of the lattice
    where there are as many, else those of the Laue class in its standard setting.
    """
    cell = np.asarray(phase.cell, np.float64)
    if phase.number:
        group = space_group(str(phase.number), float(cell[3]), float(cell[5]))
        if group.misfit(cell) < _FITS:
            return group.rotations(cell)
    usual = laue_rotations(phase.laue_group)
    found = _lattice_rotations(cell)
    return found if len(found) == len(usual) else usual


def orientation(ub: Float[np.ndarray, "*n 3 3"], b0: Float[np.ndarray, "*n 3 3"]) -> Float[np.ndarray, "*n 3 3"]:
    """The rotation of a strained crystal: that of the polar decomposition of ub against the unstrained B0.

    In another setting that symmetry makes equivalent it is this times a rotation of the crystal, exactly. The `u` of a
    result is not: it holds a* of the strained lattice on x, and in another setting another axis, which turns it by as
    much as the strain. So orientations are compared, from frame to frame, by this one.
    """
    return np.asarray(nearest_rotation(ub @ np.linalg.inv(b0)), np.float64)


def reciprocal_from_direct(cell: Float[np.ndarray, " 6"]) -> NDArray[np.float64]:
    """The rotation (3, 3) of components in the direct crystal axes (x along a, b in xy; those of the strain) to
    components in the reciprocal ones (x along a*, b* in xy; those that `u` acts on)."""
    cell = np.asarray(cell, np.float64)
    direct = np.asarray(direct_matrix_from_cell(cell), np.float64)
    return np.linalg.inv(np.asarray(b_matrix_from_cell(cell), np.float64)).T @ np.linalg.inv(direct)
