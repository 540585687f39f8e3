"""Standard conventional settings: the axes a crystallographer would choose for a lattice of known symmetry.

- orthorhombic: a <= b <= c for P, I and F; C-centred with a <= b for oS;
- monoclinic: b unique, beta >= 90; P with a <= c the two shortest vectors of the net perpendicular to b; C-centred
with the
  least oblique beta;
- triclinic: the Niggli cell;
- tetragonal, hexagonal, rhombohedral, cubic: the axes are fixed by the symmetry.

Bases are matrices P whose columns are the new axes in the old ones, (a', b', c') = (a, b, c) P, right-handed.
Source: International Tables for Crystallography A (2016), sections 1.5.1 and 3.1.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np
from jaxtyping import Float, Num
from numpy.typing import NDArray

from mlindex.crystal.lattice import BRAVAIS, primitive_transform
from mlindex.crystal.metric import (
    CellLike,
    cell_from_direct_metric,
    checked_cell,
    direct_metric_from_cell,
    matrix_from_metric,
    metric_from_matrix,
)
from mlindex.crystal.reduction import niggli_from_cell

_NET_BASES = np.array([m for m in product(range(-3, 4), repeat=4) if abs(m[0] * m[3] - m[1] * m[2]) == 1])
_NET_BASES = _NET_BASES.reshape(-1, 2, 2)


def right_handed(basis: NDArray) -> NDArray:
    """`basis` (3, 3), with the second axis reversed where the determinant is negative."""
    return basis if np.linalg.det(basis) > 0 else basis * np.array([1, -1, 1])


def centring_of(basis: Num[Any, "3 3"]) -> str:
    """The centring letter of a conventional basis given in a primitive one (P, A, B, C, I, F, R obverse or reverse
    r).

    Raises `ValueError` where the lattice points fit none of them.
    """
    return _centring(np.ascontiguousarray(basis, np.float64).tobytes())


@lru_cache(maxsize=10_000)
def _centring(data: bytes) -> str:
    basis = np.frombuffer(data).reshape(3, 3)
    inverse = np.linalg.inv(basis)
    points = {tuple(p) for p in np.round((np.array(list(product(range(-3, 4), repeat=3))) @ inverse.T) % 1, 4) % 1}
    half = {
        "P": (),
        "A": ((0, 0.5, 0.5),),
        "B": ((0.5, 0, 0.5),),
        "C": ((0.5, 0.5, 0),),
        "I": ((0.5, 0.5, 0.5),),
        "F": ((0, 0.5, 0.5), (0.5, 0, 0.5), (0.5, 0.5, 0)),
        "R": ((0.6667, 0.3333, 0.3333), (0.3333, 0.6667, 0.6667)),
        "H": ((0.6667, 0.3333, 0), (0.3333, 0.6667, 0)),
        "r": ((0.3333, 0.6667, 0.3333), (0.6667, 0.3333, 0.6667)),
    }
    for letter, extra in half.items():
        if points == {(0.0, 0.0, 0.0), *extra}:
            return letter
    raise ValueError(f"the basis {basis.tolist()} has no standard centring")


def net_basis(normal: NDArray) -> NDArray[np.int64]:
    """A basis (3, 2) of the integer vectors x with normal . x = 0, for a coprime integer `normal`."""
    # Column operations that bring the normal to (0, 0, 1): the first two columns then span its null space
    work, basis = np.array(normal, np.int64), np.eye(3, dtype=np.int64)
    while np.count_nonzero(work) > 1:
        small = min(np.flatnonzero(work), key=lambda i: abs(int(work[i])))
        for i in set(range(3)) - {small}:
            factor = work[i] // work[small]
            work[i] -= factor * work[small]
            basis[:, i] -= factor * basis[:, small]
    last = int(np.flatnonzero(work)[0])
    return basis[:, [i for i in range(3) if i != last]]


def _shortest_net(net: NDArray, direct: NDArray) -> NDArray:
    """The Gauss-reduced basis of a plane net: its two shortest vectors, ascending, obtuse."""
    first, second = net[:, 0], net[:, 1]
    if second @ direct @ second < first @ direct @ first:
        first, second = second, first
    while True:
        second = second - np.rint(first @ direct @ second / (first @ direct @ first)).astype(np.int64) * first
        if second @ direct @ second >= (first @ direct @ first) * (1 - 1e-12):
            break
        first, second = second, first
    return np.stack([first, -second if first @ direct @ second > 0 else second], 1)


def monoclinic_basis(unique: NDArray, normal: NDArray, direct: NDArray) -> tuple[str, NDArray]:
    """("mP" or "mC", basis) for the two-fold axis `unique` [uvw], perpendicular to the net (hkl) = `normal`.

    All in a primitive basis with the symmetric direct metric `direct` (3, 3); `unique` and `normal` are coprime
    integers.
    """
    net = _shortest_net(net_basis(normal), direct)
    if abs(int(unique @ normal)) == 1:
        return "mP", right_handed(np.stack([net[:, 0], unique, net[:, 1]], 1))
    # A centred lattice has its extra points at b/2 + (i a + j c)/2. C-centring wants (i, j) = (1, 0) in the new axes
    inverse = np.linalg.inv(np.stack([net[:, 0], unique, net[:, 1]], 1).astype(float))
    half = np.rint(2 * (np.array(list(product((0, 1), repeat=3))) @ inverse.T)).astype(np.int64) % 2
    shift = next(h for h in half if h[1])[[0, 2]]
    bases = _NET_BASES[np.all(_NET_BASES[:, :, 0] % 2 == shift, axis=1)]
    axes = net @ bases
    edges = np.sqrt(np.einsum("nix,ij,njx->nx", axes, direct, axes))
    cosine = np.einsum("ni,ij,nj->n", axes[:, :, 0], direct, axes[:, :, 1]) / edges.prod(1)
    # Rounded, so that an exact tie goes to the shorter axes and not to the last bit
    order = np.lexsort((edges[:, 0], np.round(edges.sum(1) / edges.sum(1).min(), 6), np.round(np.abs(cosine), 6)))
    a, c = axes[order[0]].T
    return "mC", right_handed(np.stack([a if cosine[order[0]] <= 0 else -a, unique, c], 1))


def orthorhombic_basis(basis: NDArray, edges: NDArray) -> tuple[str, NDArray]:
    """(Bravais lattice, basis) from three perpendicular axes (columns, in a primitive basis) of the given lengths."""
    centring = centring_of(basis)
    order = np.argsort(edges, kind="stable")
    if centring in "ABC":
        normal = "ABC".index(centring)  # the axis perpendicular to the centred face becomes c
        order = np.array([*[i for i in order if i != normal], normal])
    name = "oS" if centring in "ABC" else f"o{centring}"
    return name, right_handed(basis[:, order])


def standard_setting(
    cell: CellLike, bravais: str, *, centring: str | None = None
) -> tuple[Float[np.ndarray, " 6"], Float[np.ndarray, "3 3"]]:
    """The cell in the standard setting and P with (standard basis) = (given basis) P.

    `cell` is conventional for `bravais` (monoclinic: b unique; hexagonal axes for hR). `centring` is that of the
    cell as it is given, by default the standard one; "I" or "A" for mC and "A" or "B" for oS are brought to C.
    Raises `ValueError` for an impossible cell, an unknown lattice or a centring that the lattice does not have.
    """
    if bravais not in BRAVAIS:
        raise ValueError(f"unknown Bravais lattice {bravais!r}; the lattices are {', '.join(BRAVAIS)}")
    lattice = BRAVAIS[bravais]
    letter = centring or lattice.centring
    possible = {"mC": "CIA", "oS": "CAB"}.get(bravais, lattice.centring)
    if letter not in possible:
        raise ValueError(f"{bravais} cannot have the centring {letter!r}; it is one of {', '.join(possible)}")
    values = checked_cell(cell)
    direct = matrix_from_metric(direct_metric_from_cell(values))
    if lattice.system == "triclinic":
        return niggli_from_cell(values, "P")
    if lattice.system not in ("monoclinic", "orthorhombic"):
        return values.copy(), np.eye(3)
    to_primitive = primitive_transform(letter)
    in_primitive = np.rint(np.linalg.inv(to_primitive)).astype(np.int64)  # columns: a, b, c in the primitive basis
    if lattice.system == "orthorhombic":
        _, basis = orthorhombic_basis(in_primitive, values[:3])
    else:
        # the net perpendicular to b is (010), in primitive indices (010) P, made coprime
        normal = np.rint(np.array([0, 1, 0]) @ to_primitive * lattice.multiplicity).astype(np.int64)
        normal //= np.gcd.reduce(normal)
        primitive_direct = to_primitive.T @ direct @ to_primitive
        _, basis = monoclinic_basis(in_primitive[:, 1], normal, primitive_direct)
    p = np.round(to_primitive @ basis, 9)
    return cell_from_direct_metric(metric_from_matrix(p.T @ direct @ p)), p
