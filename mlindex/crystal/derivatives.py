"""Derivative lattices: all sub- and superlattices of small index, the cells that an indexing program confuses.

The superlattices of direct space of index n are the Hermite normal forms of determinant n: 7, 13 and 35 of them for
n = 2, 3 and 4. The smaller cells, of which the lattice is itself a superlattice, are the same forms applied to
reciprocal space.

Source: Santoro & Mighell, Acta Cryst. A28 (1972) 284; Cassels, An Introduction to the Geometry of Numbers (1959), I.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from mlindex.crystal.metric import transform_metric
from mlindex.crystal.reduction import lattice_distance, reduced_signature


@dataclass(frozen=True, eq=False)
class Derivatives:
    """Lattices derived from one lattice, in ascending index.

    `transform` (m, 3, 3): (new primitive basis) = (given primitive basis) P; `metric` (m, 6): reciprocal, in the
    new basis; `index` (m,): how many times larger, or smaller, the primitive cell is; `count` (m,): how many
    transforms gave this lattice.
    """

    transform: NDArray[np.float64]
    metric: NDArray[np.float64]
    index: NDArray[np.int64]
    count: NDArray[np.int64]


@cache
def hermite_forms(index: int) -> Int[np.ndarray, "m 3 3"]:
    """All upper triangular Hermite normal forms of determinant `index`: one basis for each sublattice of that index."""
    found = []
    for a, b in product(range(1, index + 1), repeat=2):
        if index % (a * b):
            continue
        c = index // (a * b)
        # entries right of a diagonal element are smaller than it, so no two forms span the same sublattice
        found += [[[a, x, y], [0, b, z], [0, 0, c]] for x in range(a) for y in range(a) for z in range(b)]
    forms = np.array(found)
    forms.setflags(write=False)
    return forms


def _merged(g: NDArray, transform: NDArray, index: NDArray, rtol: float) -> Derivatives:
    metric = transform_metric(g, transform)
    signature = reduced_signature(metric)
    close = np.max(np.abs(signature[:, None] - signature[None]) / signature[:, None, 6:7], axis=2) <= 4 * rtol
    close &= index[:, None] == index[None]
    leader = np.arange(len(index))
    for i in range(len(index)):
        if leader[i] != i:
            continue
        rest = np.flatnonzero(close[i] & (leader == np.arange(len(index))) & (np.arange(len(index)) > i))
        if len(rest):
            leader[rest[lattice_distance(metric[i], metric[rest]) <= rtol]] = i
    kept = np.unique(leader)
    return Derivatives(transform[kept], metric[kept], index[kept], np.bincount(leader, minlength=len(index))[kept])


def superlattices_and_sublattices(
    g_primitive: Float[np.ndarray, " 6"], max_index: int = 4, *, rtol: float = 1e-6
) -> tuple[Derivatives, Derivatives]:
    """(larger cells, smaller cells) of index 2 to `max_index` of a primitive lattice (reciprocal metric, 1/angstrom^2).

    Lattices equal within `rtol` on lengths are merged, which a lattice with symmetry has many of.
    """
    if max_index < 2:
        raise ValueError(f"derivative lattices begin at index 2, got max_index = {max_index}")
    forms = [hermite_forms(n) for n in range(2, max_index + 1)]
    index = np.concatenate([np.full(len(f), n + 2) for n, f in enumerate(forms)])
    larger = np.concatenate(forms).astype(np.float64)
    # A basis P of a lattice whose reciprocal basis is the form H of ours: P = H^-T
    smaller = np.swapaxes(np.linalg.inv(larger), 1, 2)
    g = np.asarray(g_primitive, np.float64)
    return _merged(g, larger, index, rtol), _merged(g, smaller, index, rtol)
