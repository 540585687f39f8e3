"""Systematic absences: the patterns of missing lines that the space groups of a Bravais lattice can make.

A powder line is missing only if every reflection in it is absent: all those equivalent under the holohedry, of
which a lower Laue class makes separate sets (0kl and k0l in Pa-3), and those that coincide for every cell of the
system (333 and 511).

Space groups are taken in every setting that keeps the standard lattice axes: all axis orders for orthorhombic
groups, since a, b, c are sorted by length; all cell choices of the monoclinic ones with b unique. Source: gemmi's
table of space groups.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache

import gemmi
import numpy as np
from jaxtyping import Int
from numpy.typing import NDArray

from mlindex.crystal.lattice import BRAVAIS, allowed, holohedry
from mlindex.crystal.reflections import line_key


@dataclass(frozen=True, eq=False)
class ExtinctionGroups:
    """The distinct patterns of absence of a Bravais lattice over a list of reflections; the first has no absence.

    `names`: the Hermann-Mauguin symbol of the lowest-numbered space group with the pattern; `numbers` (m,) its number;
    `counts` (m,): how many space-group types have it; `members`: the symbols of all of them, in every setting;
    `mask` (m, n): True where a glide plane or screw axis takes the line away.
    """

    names: tuple[str, ...]
    numbers: NDArray[np.int64]
    counts: NDArray[np.int64]
    members: tuple[tuple[str, ...], ...]
    mask: NDArray[np.bool_]


_SYSTEMS_OF = {
    "cubic": ("cubic",),
    "tetragonal": ("tetragonal",),
    "hexagonal": ("hexagonal", "trigonal"),
    "rhombohedral": ("trigonal",),
    "orthorhombic": ("orthorhombic",),
    "monoclinic": ("monoclinic",),
    "triclinic": ("triclinic",),
}


def space_groups(bravais: str) -> Iterator[gemmi.SpaceGroup]:
    """Every setting in gemmi's table that has the standard axes of a Bravais lattice, standard settings first."""
    lattice = BRAVAIS[bravais]
    for group in sorted(gemmi.spacegroup_table(), key=lambda s: (s.number, not s.is_reference_setting())):
        if group.crystal_system_str() not in _SYSTEMS_OF[lattice.system] or group.centring_type() != lattice.centring:
            continue
        if group.crystal_system_str() == "trigonal" and group.ext == "R":
            continue  # rhombohedral axes: a primitive cell with three-fold axis [111]
        if lattice.system == "monoclinic" and group.monoclinic_unique_axis() != "b":
            continue
        yield group


def line_members(hkl: Int[np.ndarray, "n 3"], bravais: str) -> tuple[Int[np.ndarray, "m 3"], Int[np.ndarray, " m"]]:
    """All reflections (m, 3) that the lattice centring allows in the lines of `hkl`, and the index (m,) of their line.

    Of each Friedel pair at least one is given.
    """
    lattice = BRAVAIS[bravais]
    # The lines of a rhombohedral lattice have the symmetry of a hexagonal one: hkl and hk-l share q2
    system = "hexagonal" if lattice.system == "rhombohedral" else lattice.system
    keys = line_key(hkl, system)
    seeds, owner = hkl, np.arange(len(hkl))
    if system in ("cubic", "tetragonal", "hexagonal") and len(hkl):
        # Coincident lines: every h >= k >= 0 and l >= 0 with the same key
        top = int(np.sqrt(keys[:, 0].max()))
        high = top if system == "cubic" else int(np.abs(hkl[:, 2]).max())
        axes = np.meshgrid(np.arange(top + 1), np.arange(top + 1), np.arange(high + 1), indexing="ij")
        box = np.stack(axes, -1).reshape(-1, 3)
        box = box[(box[:, 0] >= box[:, 1]) & ((box[:, 1] >= box[:, 2]) if system == "cubic" else True)]
        # `unique` numbers the keys; a seed belongs to every listed reflection that has its number
        _, number = np.unique(np.concatenate([keys, line_key(box, system)]), axis=0, return_inverse=True)
        number = number.reshape(-1)
        listed, boxed = number[: len(hkl)], number[len(hkl) :]
        order = np.argsort(listed, kind="stable")
        low = np.searchsorted(listed[order], boxed, "left")
        many = np.searchsorted(listed[order], boxed, "right") - low
        seed = np.repeat(np.arange(len(box)), many)
        within = np.arange(len(seed)) - np.repeat(np.cumsum(many) - many, many)
        seeds, owner = box[seed], order[np.repeat(low, many) + within]
    operations = holohedry(system)
    operations = operations[np.linalg.det(operations) > 0]  # the others are these and inversion
    members = np.einsum("ni,mij->nmj", seeds, operations).reshape(-1, 3)
    owner = np.repeat(owner, len(operations))
    keep = allowed(members, lattice.centring)
    table = np.unique(np.concatenate([members[keep], owner[keep, None]], axis=1), axis=0)
    return table[:, :3], table[:, 3]


class _Absences:
    """Which settings of which space groups take a line away, kept by line: candidate cells ask for the same lines
    again."""

    def __init__(self, bravais: str) -> None:
        self.bravais = bravais
        self.groups = tuple(space_groups(bravais))
        self._operations = tuple(group.operations() for group in self.groups)
        self._known: dict[bytes, NDArray[np.bool_]] = {}

    def table(self, hkl: NDArray[np.int64]) -> NDArray[np.bool_]:
        """(n settings, n lines), True where the whole line is absent."""
        lattice = BRAVAIS[self.bravais]
        # hR lines have hexagonal symmetry, so their key has it too; the centring decides what a key may contain
        names = [key.tobytes() for key in np.ascontiguousarray(line_key(hkl, lattice.system))]
        new = {name: n for n, name in enumerate(names) if name not in self._known}
        if new:
            members, owner = line_members(hkl[list(new.values())], self.bravais)
            indices = np.ascontiguousarray(members, np.int32)
            has_member = np.bincount(owner, minlength=len(new)) > 0
            found = np.empty((len(self.groups), len(new)), bool)
            for row, operations in zip(found, self._operations, strict=True):
                present = ~operations.systematic_absences(indices)
                row[:] = has_member & (np.bincount(owner[present], minlength=len(new)) == 0)
            self._known.update(zip(new, found.T, strict=True))
        return np.array([self._known[name] for name in names]).reshape(len(names), len(self.groups)).T


@cache
def _absences(bravais: str) -> _Absences:
    return _Absences(bravais)


@lru_cache(maxsize=256)
def _extinction_groups(bravais: str, data: bytes) -> ExtinctionGroups:
    hkl = np.frombuffer(data, np.int64).reshape(-1, 3)
    absences = _absences(bravais)
    patterns: dict[bytes, list[gemmi.SpaceGroup]] = {}
    for group, absent in zip(absences.groups, absences.table(hkl), strict=True):
        patterns.setdefault(absent.tobytes(), []).append(group)
    rows = sorted(patterns.items(), key=lambda item: (sum(item[0]), item[1][0].number, item[1][0].xhm()))
    mask = np.array([np.frombuffer(pattern, bool) for pattern, _ in rows]).reshape(len(rows), len(hkl))
    mask.setflags(write=False)
    return ExtinctionGroups(
        tuple(groups[0].hm for _, groups in rows),
        np.array([groups[0].number for _, groups in rows]),
        np.array([len({group.number for group in groups}) for _, groups in rows]),
        tuple(tuple(dict.fromkeys(group.hm for group in groups)) for _, groups in rows),
        mask,
    )


def extinction_groups(bravais: str, hkl: Int[np.ndarray, "n 3"]) -> ExtinctionGroups:
    """The distinct patterns of systematic absence on a Bravais lattice over the lines `hkl`, fewest absences first.

    A reflection that the centring itself forbids is in no pattern. Groups that differ only outside `hkl` share a
    row. The answer for a list is cached. Raises `ValueError` for an unknown lattice.
    """
    if bravais not in BRAVAIS:
        raise ValueError(f"unknown Bravais lattice {bravais!r}; the lattices are {', '.join(BRAVAIS)}")
    return _extinction_groups(bravais, np.ascontiguousarray(hkl, np.int64).tobytes())
