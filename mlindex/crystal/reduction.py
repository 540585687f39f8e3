"""Reduced bases: Selling (Delone) reduction of whole batches, Niggli cells, and when two lattices are the same.

Selling reduction reaches an obtuse superbase b1 + b2 + b3 + b4 = 0 with all b_i . b_j <= 0. From it follow the
seven vonorms, the least squared lengths in the classes of L / 2L. As a function on these classes they change
continuously with the lattice and determine it, up to the 168 relabellings GL(3, 2); so they settle equality without
the jumps that Niggli cells make between types. Here the batch is one `argmax` and one table look-up a step, in
NumPy or JAX alike.

Sources: Conway & Sloane, Proc. R. Soc. A 436 (1992) 55, for vonorms and conorms; Andrews, Bernstein & Sauter, Acta
Cryst. A75 (2019) 115, for the six Selling scalars; Krivy & Gruber, Acta Cryst. A32 (1976) 297, and Grosse-Kunstleve
et al., Acta Cryst. A60 (2004) 1, for Niggli reduction (by gemmi).
"""

from __future__ import annotations

from functools import cache
from itertools import combinations, permutations, product
from typing import Any

import gemmi
import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from mlindex.crystal.lattice import primitive_transform
from mlindex.crystal.metric import (
    CellLike,
    cell_from_direct_metric,
    checked_cell,
    direct_metric_from_cell,
    inverted_metric,
    matrix_from_metric,
    metric_from_matrix,
    reciprocal_metric_from_cell,
    transform_metric,
)

_PAIRS = ((1, 2), (0, 2), (0, 1), (0, 3), (1, 3), (2, 3))  # b.c, a.c, a.b, a.d, b.d, c.d with d = -(a + b + c)
_CLASSES = np.array([c for c in product((0, 1), repeat=3) if any(c)])  # of L / 2L, in the superbase's a, b, c


def _reduction_tables() -> tuple[NDArray, NDArray]:
    """For each pair (i, j) with b_i . b_j > 0: the superbase after the step (4, 4), and its effect on the scalars
    (6, 6).

    The step is b_i -> -b_i, b_k -> b_k + b_i for the two others; b_j stays.
    """
    index = {frozenset(pair): n for n, pair in enumerate(_PAIRS)}
    bases, scalars = np.zeros((6, 4, 4)), np.zeros((6, 6, 6))
    for n, (i, j) in enumerate(_PAIRS):
        base = np.eye(4)
        base[i, i] = -1
        for k in set(range(4)) - {i, j}:
            base[k, i] = 1
        bases[n] = base
        for m, (r, s) in enumerate(_PAIRS):
            for p, q in product(range(4), repeat=2):
                weight = base[r, p] * base[s, q]
                if p != q:
                    scalars[n, m, index[frozenset((p, q))]] += weight
                else:  # b_p . b_p = - sum of its products with the three others
                    for other in set(range(4)) - {p}:
                        scalars[n, m, index[frozenset((p, other))]] -= weight
    return bases, scalars


_BASE_STEP, _SCALAR_STEP = _reduction_tables()


def _vonorm_table() -> NDArray:
    """(7, 6): the vonorm of each class as a linear form of the six scalars of an obtuse superbase."""
    table = np.zeros((7, 6))
    for row, parity in zip(table, _CLASSES, strict=True):
        inside = {i for i in range(3) if parity[i]}
        for n, pair in enumerate(_PAIRS):  # |sum over inside|^2 = - sum of the products across the cut
            if len(inside & set(pair)) == 1:
                row[n] = -1
    return table


_VONORM = _vonorm_table()


@cache
def _relabellings() -> NDArray[np.int64]:
    """(168, 7): what each element of GL(3, 2) does to the seven classes."""
    place = {tuple(c): n for n, c in enumerate(_CLASSES.tolist())}
    found = []
    for columns in permutations(_CLASSES.tolist(), 3):
        matrix = np.array(columns).T
        if round(float(np.linalg.det(matrix))) % 2:
            found.append([place[tuple(c)] for c in ((_CLASSES @ matrix.T) % 2).tolist()])
    return np.array(found)


def selling_scalars(direct: Float[Any, "... 6"], *, steps: int = 64) -> Float[Any, "... 6"]:
    """The scalars (b.c, a.c, a.b, a.d, b.d, c.d), all <= 0, of a Selling-reduced superbase; NumPy or JAX arrays.

    `direct` is the direct metric (angstrom^2) of any primitive basis. A fixed number of steps is made, so the
    function can be jitted and vmapped; steps without a positive scalar change nothing. A scalar above the rounding
    error is left only if `steps` was too small (a basis with indices in the thousands).
    """
    xp = direct.__array_namespace__()
    table = xp.asarray(_SCALAR_STEP, dtype=direct.dtype)
    bc, ac, ab = direct[..., 3] / 2, direct[..., 4] / 2, direct[..., 5] / 2
    ad, bd, cd = -(direct[..., 0] + ab + ac), -(direct[..., 1] + ab + bc), -(direct[..., 2] + ac + bc)
    scalars = xp.stack([bc, ac, ab, ad, bd, cd], -1)
    tiny = 8 * float(np.finfo(direct.dtype).eps)
    for _ in range(steps):
        worst = xp.argmax(scalars, axis=-1)
        moved = xp.einsum("...ij,...j->...i", table[worst], scalars)
        positive = xp.max(scalars, axis=-1) > tiny * xp.max(xp.abs(scalars), axis=-1)
        if xp is np and not np.any(positive):
            break
        scalars = xp.where(positive[..., None], moved, scalars)
    return scalars


def delone_reduce(direct: Float[np.ndarray, "n 6"]) -> tuple[Float[np.ndarray, "n 6"], Int[np.ndarray, "n 3 3"]]:
    """Direct metrics (n, 6) of Selling-reduced bases and the integer P (n, 3, 3), det 1, with (new) = (old) P.

    The basis is the three shortest vectors of the superbase, ascending; the fourth is minus their sum.
    """
    scalars = np.asarray(direct, np.float64)
    bc, ac, ab = (scalars[:, i] / 2 for i in (3, 4, 5))
    scalars = np.stack([bc, ac, ab, -(direct[:, 0] + ab + ac), -(direct[:, 1] + ab + bc), -(direct[:, 2] + ac + bc)], 1)
    base = np.broadcast_to(np.vstack([np.eye(3), -np.ones(3)]), (len(scalars), 4, 3)).copy()
    for _ in range(10_000):
        worst = scalars.argmax(1)
        # well above rounding: of several superbases that are obtuse within it, the first is kept
        positive = scalars.max(1) > 1e-10 * np.abs(scalars).max(1)
        if not positive.any():
            break
        moved = worst[positive]
        scalars[positive] = np.einsum("nij,nj->ni", _SCALAR_STEP[moved], scalars[positive])
        base[positive] = _BASE_STEP[moved] @ base[positive]
    matrix = matrix_from_metric(np.asarray(direct, np.float64))
    norm = np.einsum("nki,nij,nkj->nk", base, matrix, base)
    order = np.argsort(norm, axis=1, kind="stable")[:, :3]
    chosen = np.take_along_axis(base, order[:, :, None], axis=1)
    chosen = chosen * np.sign(np.linalg.det(chosen))[:, None, None]  # right-handed; -b is as good a superbase as b
    p = np.swapaxes(chosen, 1, 2)
    reduced = metric_from_matrix(np.swapaxes(p, 1, 2) @ matrix @ p)
    return reduced, np.rint(p).astype(np.int64)


def vonorms(g_primitive: Float[Any, "... 6"]) -> Float[Any, "... 7"]:
    """The seven vonorms (angstrom^2), labelled by the classes of L / 2L of a reduced basis; NumPy or JAX arrays."""
    scalars = selling_scalars(inverted_metric(g_primitive))
    return scalars @ scalars.__array_namespace__().asarray(_VONORM.T, dtype=scalars.dtype)


def reduced_signature(g_primitive: Float[Any, "... 6"]) -> Float[Any, "... 13"]:
    """The seven vonorms ascending, then the six conorms (- Selling scalars) ascending; angstrom^2.

    It is the same for every basis of a lattice and changes continuously with it, so that nearly equal lattices have
    nearly equal signatures. Different lattices differ, except for a set of measure zero in which the sorted values
    leave the labelling open; `lattice_distance` has no such exception.
    """
    scalars = selling_scalars(inverted_metric(g_primitive))
    xp = scalars.__array_namespace__()
    norms = scalars @ xp.asarray(_VONORM.T, dtype=scalars.dtype)
    return xp.concatenate([xp.sort(norms, axis=-1), xp.sort(-scalars, axis=-1)], -1)


def lattice_distance(
    g1_primitive: Float[np.ndarray, "... 6"], g2_primitive: Float[np.ndarray, "... 6"]
) -> Float[Any, " ..."]:
    """How far two lattices are apart: the largest relative difference in length among the seven Voronoi vectors.

    The smallest over the 168 relabellings is taken, so the choice of basis and of reduced type does not matter.
    Leading axes broadcast. Zero exactly for equal lattices (Conway & Sloane: the vonorm function determines the
    lattice).
    """
    first = np.sqrt(np.maximum(vonorms(np.asarray(g1_primitive, np.float64)), 0))
    second = np.sqrt(np.maximum(vonorms(np.asarray(g2_primitive, np.float64)), 0))
    relabelled = second[..., _relabellings()]
    difference = np.abs(relabelled - first[..., None, :]) / (0.5 * (relabelled + first[..., None, :]))
    return difference.max(-1).min(-1)


def primitive_metric(cell: CellLike, centring: str) -> Float[np.ndarray, "... 6"]:
    """The reciprocal metric of the primitive basis of a conventional cell with centring P, A, B, C, I, F or R
    (obverse)."""
    return transform_metric(reciprocal_metric_from_cell(checked_cell(cell)), primitive_transform(centring))


def same_lattice(cell1: CellLike, centring1: str, cell2: CellLike, centring2: str, *, rtol: float = 0.01) -> bool:
    """True when two cells, each with its centring, describe the same lattice within `rtol` on lengths."""
    return bool(lattice_distance(primitive_metric(cell1, centring1), primitive_metric(cell2, centring2)) <= rtol)


def _short_basis(direct: NDArray) -> NDArray[np.int64]:
    """P (3, 3), det 1, to the three shortest independent vectors of a Selling-reduced superbase's seven (a Buerger
    cell)."""
    _, p = delone_reduce(direct[None])
    vectors = _CLASSES @ p[0].T
    norms = vectors**2 @ direct[:3] + (vectors * np.roll(vectors, -1, 1)) @ direct[[5, 3, 4]]
    order = np.argsort(norms, kind="stable")
    for triple in combinations(vectors[order], 3):  # in ascending order, so the first unimodular one is the shortest
        basis = np.array(triple).T
        handed = round(float(np.linalg.det(basis)))
        if abs(handed) == 1:
            return basis * handed
    raise AssertionError("a Selling-reduced superbase contains a basis")


def niggli_from_cell(
    cell: CellLike, centring: str, *, epsilon: float = 1e-6
) -> tuple[Float[np.ndarray, " 6"], Float[np.ndarray, "3 3"]]:
    """The Niggli cell (angstrom, degrees) and P with (Niggli basis) = (conventional basis) P.

    P is integral for centring P and has halves or thirds otherwise; det P = 1 / multiplicity. Conditions of the
    Niggli form are decided within `epsilon` times the squared cube root of the volume, so that rounding in the
    input does not flip it.
    """
    to_primitive = primitive_transform(centring)
    matrix = matrix_from_metric(direct_metric_from_cell(checked_cell(cell)))
    start = to_primitive @ _short_basis(metric_from_matrix(to_primitive.T @ matrix @ to_primitive))
    short = metric_from_matrix(start.T @ matrix @ start)
    scale = float(np.linalg.det(matrix_from_metric(short))) ** (1 / 3)
    gruber = gemmi.GruberVector(gemmi.UnitCell(*cell_from_direct_metric(short)), "P", True)
    gruber.niggli_reduce(epsilon=epsilon * scale, iteration_limit=200)
    rotation = np.array(gruber.change_of_basis.rot) / gemmi.Op.DEN
    p = start @ rotation
    return cell_from_direct_metric(metric_from_matrix(p.T @ matrix @ p)), p
