"""Classes of rays that no angle can tell apart: what a network can recognise a spot as.

The angles between a spot and all others say which ray it is up to the Laue group, and up to more where the metric of
the lattice is more symmetric than the crystal (m-3, 4/m, -3m, ...): classes with the same angles to all rays merge.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from mlindex.laue.materials import Material, Rays

_SAME = 1e-4  # of two cosines
_COMPARED = 500  # rays, about, that the classes are compared by
_BASE = 4096  # above twice the largest index, so that the code of a triplet is its own


class Classes(NamedTuple):
    """`hkl` (k, 3) int64: all primitive indices of all classes, both signs; `of` (k,) int64 the class of each.

    Classes are numbered from the lowest scattering vector up. `representative` (k,) bool marks in each class one of
    every set that the proper rotations of the crystal turn into each other.
    """

    hkl: NDArray[np.int64]
    of: NDArray[np.int64]
    representative: NDArray[np.bool_]

    @property
    def number(self) -> int:
        """The number of classes."""
        return int(self.of.max(initial=-1)) + 1


def _codes(hkl: Int[np.ndarray, "*n 3"]) -> Int[np.ndarray, "*n"]:
    h = np.asarray(hkl, np.int64)
    return (h[..., 0] * _BASE + h[..., 1]) * _BASE + h[..., 2]


def orbits(material: Material, hkl: Int[np.ndarray, "n 3"]) -> Int[np.ndarray, " n"]:
    """A number for each of a list of indices, the same for those that the Laue group makes equivalent, from 0 in the
    order of the first of them."""
    images = material.group.orbit(hkl)
    code = np.maximum(_codes(images).max(1), _codes(-images).max(1))
    _, first, number = np.unique(code, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[number]


def alike(material: Material, hkl: Int[np.ndarray, "n 3"], others: Int[np.ndarray, "m 3"]) -> Int[np.ndarray, " n"]:
    """For each of `hkl` the first whose angles to `others` and their opposites are the same set as its own."""
    q, p = (v @ material.b.T for v in (hkl, others))
    q, p = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (q, p))
    cosines = np.sort(np.abs(q @ p.T), axis=1)
    first = np.arange(len(hkl))
    for i, j in sorted(cKDTree(cosines).query_pairs(_SAME, p=np.inf)):
        first[j] = min(first[j], first[i])
    return first


def classes_of(
    material: Material,
    table: Rays,
    seen: Float[np.ndarray, " n"],
    *,
    most: int,
    rare: float,
    largest: int | None = None,
) -> Classes:
    """The classes of the rays of a table whose smallest indices are `largest` or less (None: as many as `most` allows).

    `seen` (n,) is how often each ray is in the pattern of a grain. A class that is there less than `rare` times in a
    pattern is left out. Raises `ValueError` where nothing is left.
    """
    hkl = np.asarray(table.hkl, np.int64)
    if not len(hkl):
        raise ValueError(f"{material.name} has no reflection in this energy band on this detector")
    orbit = orbits(material, hkl)
    size = np.full(orbit.max() + 1, np.iinfo(np.int64).max)
    np.minimum.at(size, orbit, np.abs(hkl).max(1))
    frequent = np.bincount(orbit, seen) >= rare
    levels = [largest] if largest is not None else sorted(set(size.tolist()), reverse=True)
    chosen = np.zeros(0, np.int64)
    for level in levels:
        chosen = np.flatnonzero(frequent & (size <= level))
        if largest is not None or len(chosen) <= most:
            break
    if not len(chosen):
        raise ValueError(f"no ray of {material.name} is on this detector often enough to be learnt")
    first = np.unique(orbit, return_index=True)[1][chosen]
    # Whole shells of |q|, so that a hidden symmetry of the lattice finds its partners
    near = table.q <= np.sort(table.q)[:_COMPARED].max() + 1e-9
    root = alike(material, hkl[first], hkl[near])
    number = np.unique(root, return_inverse=True)[1]
    new = np.full(orbit.max() + 1, -1)
    new[chosen] = number
    of = new[orbit]
    rows = np.flatnonzero(of >= 0)
    members = np.concatenate([hkl[rows], -hkl[rows]])
    of = np.concatenate([of[rows], of[rows]])
    order = np.argsort(of, kind="stable")
    members, of = members[order], of[order]
    proper = _codes(material.group.orbit(members)).max(1)
    representative = np.zeros(len(of), bool)
    representative[np.unique(proper, return_index=True)[1]] = True
    return Classes(members, of, representative)


def class_of_hkl(classes: Classes, hkl: Int[np.ndarray, "n 3"]) -> Int[np.ndarray, " n"]:
    """The class of each of a list of primitive indices, -1 for those that are in none."""
    known = _codes(classes.hkl)
    order = np.argsort(known)
    code = _codes(hkl)
    at = order[np.minimum(np.searchsorted(known, code, sorter=order), len(known) - 1)]
    return np.where(known[at] == code, classes.of[at], -1)
