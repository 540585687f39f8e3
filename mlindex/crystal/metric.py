"""Metric tensors: cells, reciprocal metrics, q2, and what a change of basis does to each.

A metric is kept as six numbers m = (m11, m22, m33, 2 m23, 2 m13, 2 m12) so that the squared length of a vector v is
linear in it, m . (v1^2, v2^2, v3^2, v2 v3, v1 v3, v1 v2). For the reciprocal metric g (1/angstrom^2) and v = hkl
this is q2 = 1/d^2.

Every function accepts leading batch axes and works alike on NumPy arrays and on JAX arrays, under `jit` too; the
dtype of the input is kept. Cells are (a, b, c, alpha, beta, gamma) in angstrom and degrees.

Source: International Tables for Crystallography A (2016), chapter 1.5 (changes of basis); B (2010), section 1.1
(metrics).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Num
from numpy.typing import NDArray

CellLike = Sequence[Any] | Num[Any, "... 6"]  # (a, b, c, alpha, beta, gamma), one or a batch


# int32: indices of int64 mean another thing to JAX with 64 bits than without, and its cache does not tell them apart
_PLACE = np.array([[0, 5, 4], [5, 1, 3], [4, 3, 2]], np.int32)  # of each matrix element among the six numbers
_SHARE = np.array([[1.0, 0.5, 0.5], [0.5, 1.0, 0.5], [0.5, 0.5, 1.0]])


def _namespace(x: Any) -> Any:
    """The array module of `x`: `jax.numpy` for JAX arrays and tracers, NumPy for everything else."""
    return x.__array_namespace__() if hasattr(x, "__array_namespace__") else np


def checked_cell(cell: Sequence[Any] | NDArray, *, origin: str = "unit cell") -> NDArray[np.float64]:
    """`cell` (..., 6) as float64; raises `ValueError`, one sentence naming `origin`, unless it spans a positive
    volume."""
    array = np.asarray(cell, np.float64)
    if array.ndim == 0 or array.shape[-1] != 6:
        raise ValueError(f"{origin}: six numbers a, b, c, alpha, beta, gamma are needed, got the shape {array.shape}")
    if not np.all(np.isfinite(array)) or np.any(array[..., :3] <= 0):
        raise ValueError(f"{origin}: the edges must be finite and positive (angstrom), got {array.tolist()}")
    direct = matrix_from_metric(direct_metric_from_cell(array))
    scale = np.prod(array[..., :3], axis=-1) ** 2
    angles = array[..., 3:]
    if np.any(angles <= 0) or np.any(angles >= 180) or np.any(np.linalg.det(direct) <= 1e-12 * scale):
        raise ValueError(f"{origin}: no cell has the angles (degrees) in {array.tolist()}; correct them")
    return array


def matrix_from_metric(m: Float[Any, "... 6"]) -> Float[Any, "... 3 3"]:
    """The symmetric matrix (..., 3, 3) of a metric (..., 6)."""
    return m[..., _PLACE] * _SHARE.astype(m.dtype)


def metric_from_matrix(matrix: Num[Any, "... 3 3"]) -> Num[Any, "... 6"]:
    """The metric (..., 6) of a symmetric matrix (..., 3, 3); the two halves of the matrix are averaged."""
    xp = _namespace(matrix)
    t = matrix
    cross = [t[..., i, j] + t[..., j, i] for i, j in ((1, 2), (0, 2), (0, 1))]
    return xp.stack([t[..., 0, 0], t[..., 1, 1], t[..., 2, 2], *cross], -1)


def inverted_metric(m: Float[Any, "... 6"]) -> Float[Any, "... 6"]:
    """The reciprocal metric of a direct one and the reverse, by cofactors (no linear solver, so it is cheap under
    vmap)."""
    xp = _namespace(m)
    m11, m22, m33 = m[..., 0], m[..., 1], m[..., 2]
    m23, m13, m12 = m[..., 3] / 2, m[..., 4] / 2, m[..., 5] / 2
    c11, c22, c33 = m22 * m33 - m23 * m23, m11 * m33 - m13 * m13, m11 * m22 - m12 * m12
    c23, c13, c12 = m12 * m13 - m11 * m23, m12 * m23 - m22 * m13, m13 * m23 - m33 * m12
    det = m11 * c11 + m12 * c12 + m13 * c13
    return xp.stack([c11, c22, c33, 2 * c23, 2 * c13, 2 * c12], -1) / det[..., None]


def metric_determinant(m: Float[Any, "... 6"]) -> Float[Any, " ..."]:
    """The determinant of a metric: the squared volume of its cell."""
    m11, m22, m33 = m[..., 0], m[..., 1], m[..., 2]
    m23, m13, m12 = m[..., 3] / 2, m[..., 4] / 2, m[..., 5] / 2
    return m11 * (m22 * m33 - m23 * m23) - m22 * m13 * m13 - m33 * m12 * m12 + 2 * m12 * m13 * m23


def direct_metric_from_cell(cell: CellLike) -> Float[Any, "... 6"]:
    """The direct metric (angstrom^2) of a cell: (a^2, b^2, c^2, 2 b.c, 2 a.c, 2 a.b)."""
    xp = _namespace(cell)
    cells: Any = cell if hasattr(cell, "__array_namespace__") else np.asarray(cell, np.float64)
    a, b, c = cells[..., 0], cells[..., 1], cells[..., 2]
    cosine = xp.cos(cells[..., 3:] * (np.pi / 180))
    # cos(pi/2) is 6e-17; right angles are exact in the metric, and stay so through reductions
    cosine = xp.where(cells[..., 3:] == 90.0, 0.0, cosine)
    alpha, beta, gamma = cosine[..., 0], cosine[..., 1], cosine[..., 2]
    return xp.stack([a * a, b * b, c * c, 2 * b * c * alpha, 2 * a * c * beta, 2 * a * b * gamma], -1)


def cell_from_direct_metric(m: Float[Any, "... 6"]) -> Float[Any, "... 6"]:
    """The cell (angstrom, degrees) of a direct metric (angstrom^2)."""
    xp = _namespace(m)
    edges = xp.sqrt(m[..., :3])
    a, b, c = edges[..., 0], edges[..., 1], edges[..., 2]
    cosine = xp.stack([m[..., 3] / (2 * b * c), m[..., 4] / (2 * a * c), m[..., 5] / (2 * a * b)], -1)
    return xp.concatenate([edges, xp.arccos(xp.clip(cosine, -1, 1)) * (180 / np.pi)], -1)


def reciprocal_metric_from_cell(cell: CellLike) -> Float[Any, "... 6"]:
    """The reciprocal metric g (1/angstrom^2) of a cell (..., 6) in angstrom and degrees."""
    return inverted_metric(direct_metric_from_cell(cell))


def cell_from_reciprocal_metric(g: Float[Any, "... 6"]) -> Float[Any, "... 6"]:
    """The cell (angstrom, degrees) of a reciprocal metric (1/angstrom^2); inverse of
    `reciprocal_metric_from_cell`."""
    return cell_from_direct_metric(inverted_metric(g))


def volume_from_reciprocal_metric(g: Float[Any, "... 6"]) -> Float[Any, " ..."]:
    """The volume (angstrom^3) of the direct cell, 1 / sqrt(det g)."""
    return 1 / _namespace(g).sqrt(metric_determinant(g))


def products_from_hkl(hkl: Num[Any, "... 3"]) -> Num[Any, "... 6"]:
    """(h^2, k^2, l^2, k l, h l, h k) of each reflection."""
    h, k, l = hkl[..., 0], hkl[..., 1], hkl[..., 2]  # noqa: E741  the field's names
    return _namespace(hkl).stack([h * h, k * k, l * l, k * l, h * l, h * k], -1)


def q2_from_hkl(g: Float[Any, "... 6"], hkl: Num[Any, "n 3"]) -> Float[Any, "... n"]:
    """q2 = 1/d^2 (1/angstrom^2) of every reflection in every lattice: (..., 6), (n, 3) -> (..., n)."""
    return g @ products_from_hkl(hkl).astype(g.dtype).T


def transform_metric(g: Float[Any, "... 6"], p: Num[Any, "... 3 3"]) -> Float[Any, "... 6"]:
    """The reciprocal metric after the change of basis (a', b', c') = (a, b, c) P (columns of P are the new basis
    vectors).

    G*' = P^-1 G* P^-T; indices transform like the basis, (h', k', l') = (h, k, l) P. Convention of gemmi and ITA.
    """
    xp = _namespace(g)
    inverse = xp.linalg.inv(p.astype(g.dtype))
    return metric_from_matrix(inverse @ matrix_from_metric(g) @ xp.swapaxes(inverse, -1, -2))


def b_matrix_from_metric(g: Float[Any, "... 6"]) -> Float[Any, "... 3 3"]:
    """B (1/angstrom), upper triangular with a* along x and b* in the xy plane: q = B hkl, and B^T B = G*.

    Source: Busing & Levy, Acta Cryst. 22 (1967) 457, eq. 3.
    """
    xp = _namespace(g)
    return xp.swapaxes(xp.linalg.cholesky(matrix_from_metric(g)), -1, -2)


def b_matrix_from_cell(cell: CellLike) -> Float[Any, "... 3 3"]:
    """B (1/angstrom) of a cell in angstrom and degrees; see `b_matrix_from_metric`."""
    return b_matrix_from_metric(reciprocal_metric_from_cell(cell))
