"""Elastic strain of a lattice: from matrices to cells and back, for every crystal system.

A = (a, b, c) as columns in the direct crystal axes, x along a and b in the plane xy, of the strained cell; A0 of the
reference. T = A A0^-1 is upper triangular and the strain in these axes is sym(T) - 1. A white beam shows a lattice up
to its scale, so a Laue frame gives the deviatoric part alone: dev = 3 sym(T) / tr(T) - 1, of trace zero.

`ub` (1/angstrom) takes hkl to q; u = ub B^-1 with the Busing-Levy B of the strained lattice itself, so u is exactly a
rotation. Functions take leading batch axes, NumPy or JAX. Source: Lauetools (CrystalParameters), whose direct axes
these are; its listings are in units of 1e-3.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float

from mlindex.crystal.metric import (
    CellLike,
    b_matrix_from_metric,
    cell_from_direct_metric,
    direct_metric_from_cell,
    inverted_metric,
    matrix_from_metric,
    metric_from_matrix,
)


def _namespace(x: Any) -> Any:
    return x.__array_namespace__() if hasattr(x, "__array_namespace__") else np


def direct_matrix_from_cell(cell: CellLike) -> Float[Any, "*n 3 3"]:
    """A (angstrom): columns a, b, c in axes with x along a and b in the plane xy; upper triangular."""
    return direct_matrix_from_metric(direct_metric_from_cell(cell))


def direct_matrix_from_metric(direct: Float[Any, "*n 6"]) -> Float[Any, "*n 3 3"]:
    """A of a direct metric (angstrom^2): the Cholesky factor, A^T A = G."""
    xp = _namespace(direct)
    return xp.swapaxes(xp.linalg.cholesky(matrix_from_metric(direct)), -1, -2)


def _metric_of(ub: Any) -> Any:
    return metric_from_matrix(_namespace(ub).swapaxes(ub, -1, -2) @ ub)


def u_from_ub(ub: Float[Any, "*n 3 3"]) -> Float[Any, "*n 3 3"]:
    """The rotation u with ub = u B, B the Busing-Levy matrix of the (strained) lattice of ub."""
    return ub @ _namespace(ub).linalg.inv(b_matrix_from_metric(_metric_of(ub)))


def cell_from_ub(ub: Float[Any, "*n 3 3"]) -> Float[Any, "*n 6"]:
    """The cell (angstrom, degrees) of the lattice whose reciprocal axes are the columns of ub."""
    return cell_from_direct_metric(inverted_metric(_metric_of(ub)))


def deviatoric_strain(ub: Float[Any, "*n 3 3"], cell: CellLike) -> Float[Any, "*n 3 3"]:
    """The deviatoric strain of ub's lattice against the reference `cell`, in the direct crystal axes (x along a).

    Symmetric, of trace zero, the same for every scale of ub.
    """
    xp = _namespace(ub)
    direct = direct_matrix_from_metric(inverted_metric(_metric_of(ub)))
    reference = np.linalg.inv(direct_matrix_from_cell(np.asarray(cell, np.float64)))
    t = direct @ xp.asarray(reference, dtype=ub.dtype)
    symmetric = (t + xp.swapaxes(t, -1, -2)) / 2
    trace = t[..., 0, 0] + t[..., 1, 1] + t[..., 2, 2]
    scaled = symmetric * (3 / trace)[..., None, None]
    return scaled - xp.reshape(xp.eye(3, dtype=ub.dtype), (1,) * (ub.ndim - 2) + (3, 3))


def b_from_strain(cell: CellLike, strain: Float[Any, "*n 3 3"]) -> Float[Any, "*n 3 3"]:
    """The Busing-Levy B (1/angstrom) of `cell` under a symmetric strain given in the direct crystal axes (x along a).

    The inverse of `deviatoric_strain` where the trace is zero: A = T A0, T upper triangular with sym(T) = 1 + strain.
    """
    xp = _namespace(strain)
    weight = xp.asarray(np.triu(np.full((3, 3), 2.0)) - np.eye(3), dtype=strain.dtype)
    shape = (1,) * (strain.ndim - 2) + (3, 3)
    t = strain * xp.reshape(weight, shape) + xp.reshape(xp.eye(3, dtype=strain.dtype), shape)
    direct = t @ xp.asarray(direct_matrix_from_cell(np.asarray(cell, np.float64)), dtype=strain.dtype)
    return b_matrix_from_metric(inverted_metric(_metric_of(direct)))


def ub_from_strain(u: Float[Any, "*n 3 3"], cell: CellLike, strain: Float[Any, "*n 3 3"]) -> Float[Any, "*n 3 3"]:
    """ub (1/angstrom) of a grain of orientation u and symmetric strain (direct crystal axes)."""
    return u @ b_from_strain(cell, strain)
