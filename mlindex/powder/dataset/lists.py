"""All lines of many crystals in the standard setting, less those that glide planes and screw axes take away.

A line is absent when every reflection in it is: all that the holohedry makes equivalent and all that coincide for
every cell of the system (`mlindex.crystal.extinctions`). Crystals of one space group in one change of axes share the
work, because absence does not depend on the cell.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from mlindex.crystal.extinctions import extinction_groups, line_members
from mlindex.crystal.lattice import BRAVAIS, holohedry
from mlindex.crystal.metric import q2_from_hkl, volume_from_reciprocal_metric
from mlindex.crystal.reflections import hkl_within, line_key, reference_hkl
from mlindex.crystal.spacegroup import SpaceGroup

LINES = 60  # of a list at least, where absences leave them
MARGIN = 1.6  # of q2 beyond the last line that is needed: room for the lines of a distorted cell
MOST = 500  # lines of a list
_REFERENCE = 150  # lines on which patterns of absence are told apart


def q2_limit(g: NDArray, bravais: str, needed: float) -> float:
    """The q2 (1/angstrom^2) to which a list should go: with a margin beyond `needed`, and beyond some sixty lines."""
    volume = float(volume_from_reciprocal_metric(g)) / BRAVAIS[bravais].multiplicity
    order = len(holohedry(BRAVAIS[bravais].system))
    # about order / 2 nodes a line, because the first lines have special indices
    sixty = (LINES * 0.6 * order / (4.19 * volume)) ** (2 / 3)
    return MARGIN * max(needed, sixty)


def present(hkl: NDArray, bravais: str, group: SpaceGroup, p: NDArray) -> NDArray[np.bool_]:
    """True (n,) for the lines that the space group does not take away.

    `hkl` (n, 3) is in the standard setting, the group in its own, (standard axes) = (given axes) `p`.
    """
    if not len(hkl):
        return np.zeros(0, bool)
    members, owner = line_members(np.asarray(hkl, np.int64), bravais)
    given = np.rint(members @ np.linalg.inv(p)).astype(np.int64)
    seen = ~group.absent(given)
    return np.bincount(owner[seen], minlength=len(hkl)) > 0


def all_lines(
    g: NDArray, bravais: Sequence[str], groups: Sequence[SpaceGroup], bases: NDArray, needed: NDArray
) -> tuple[list[NDArray[np.int64]], NDArray[np.float64]]:
    """The lines (k, 3) of each crystal, ascending in q2, and the q2 (n,) up to which the list is complete.

    `g` (n, 6) and `bases` (n, 3, 3) as `standard_axes` gives them; `needed` (n,): q2 of the last line of interest.
    """
    same: dict[tuple[str, bytes, bytes], list[int]] = defaultdict(list)
    for i, group in enumerate(groups):
        operations = group.rotation.tobytes() + group.shift.tobytes()
        same[bravais[i], operations, bases[i].tobytes()].append(i)
    found: list[NDArray[np.int64]] = [np.zeros((0, 3), np.int64)] * len(g)
    limit = np.array([q2_limit(*row) for row in zip(g, bravais, needed, strict=True)]).reshape(len(g))
    for (lattice, _, _), members in same.items():
        lists = [hkl_within(g[i], lattice, float(limit[i])) for i in members]
        distinct, inverse = np.unique(np.concatenate(lists), axis=0, return_inverse=True)
        seen = present(distinct, lattice, groups[members[0]], bases[members[0]])[inverse.reshape(-1)]
        stops = np.cumsum([len(rows) for rows in lists])
        for i, rows, flags in zip(members, lists, np.split(seen, stops[:-1]), strict=True):
            kept = rows[flags]
            if len(kept) > MOST:
                limit[i] = float(q2_from_hkl(g[i], kept[MOST - 1 : MOST])[0])
            found[i] = kept[:MOST]
    return found, limit


@cache
def _patterns(bravais: str) -> tuple[tuple[str, ...], NDArray[np.bool_]]:
    found = extinction_groups(bravais, reference_hkl(bravais, _REFERENCE))
    return found.names, found.mask


def pattern_mask(bravais: str, symbol: str) -> NDArray[np.bool_]:
    """The lines of `reference_hkl(bravais, 150)` that an extinction symbol takes away, (150,)."""
    names, mask = _patterns(bravais)
    return mask[names.index(symbol)]


def extinction_symbol(bravais: str, group: SpaceGroup, p: NDArray) -> str:
    """The first symbol of `extinction_groups` with the absences of a group given in other axes.

    Raises `ValueError` where none has them, which no space group on its own lattice does.
    """
    names, mask = _patterns(bravais)
    absent = ~present(reference_hkl(bravais, _REFERENCE), bravais, group, p)
    match = np.flatnonzero(np.all(mask == absent, axis=1))
    if not len(match):
        raise ValueError(f"its absences are not those of a space group on {bravais}")
    return names[int(match[0])]


def where_in(lines: NDArray, listed: NDArray, bravais: str) -> NDArray[np.int64]:
    """The index (k,) in `lines` (n, 3) of each of `listed` (k, 3), by what makes two reflections one line; -1: none."""
    system = BRAVAIS[bravais].system
    places = {key: i for i, key in enumerate(map(tuple, line_key(lines, system).tolist()))}
    keys = map(tuple, line_key(np.asarray(listed, np.int64).reshape(-1, 3), system).tolist())
    return np.array([places.get(key, -1) for key in keys], np.int64)
