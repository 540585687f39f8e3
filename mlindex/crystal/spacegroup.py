"""Space groups as integers: the operations in the crystal's own setting, what they forbid, and the Laue class.

Operations are kept as gemmi gives them: x' = W x + t, and hkl' = hkl W. Source: gemmi's table of space groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import gemmi
import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray

from mlindex.crystal.metric import CellLike, b_matrix_from_cell, direct_metric_from_cell, matrix_from_metric

_DENOMINATOR = 24  # gemmi's, of translations


@dataclass(frozen=True, eq=False)
class SpaceGroup:
    """All operations of a space group, centring included: `rotation` W (m, 3, 3) and `shift` t (m, 3) in 24ths, int64.

    `name` is the extended Hermann-Mauguin symbol (":1", ":H", ... name a setting), `laue_group` one of the eleven.
    """

    name: str
    number: int
    laue_group: str
    rotation: NDArray[np.int64]
    shift: NDArray[np.int64]

    @property
    def laue_operations(self) -> NDArray[np.int64]:
        """The rotations of the Laue class (m, 3, 3), determinant 1, distinct: hkl' = hkl W, each also with a minus."""
        proper = self.rotation * np.rint(np.linalg.det(self.rotation)).astype(np.int64)[:, None, None]
        return np.unique(proper.reshape(-1, 9), axis=0)[::-1].reshape(-1, 3, 3)

    def rotations(self, cell: CellLike) -> Float[np.ndarray, "m 3 3"]:
        """The rotations of the Laue class in Cartesian crystal axes (a* along x, b* in xy), for a cell."""
        b = np.asarray(b_matrix_from_cell(cell), np.float64)
        return b @ np.swapaxes(self.laue_operations, 1, 2) @ np.linalg.inv(b)

    def absent(self, hkl: Int[np.ndarray, "n 3"]) -> Bool[np.ndarray, " n"]:
        """True for the systematic absences: hkl W = hkl and h . t not whole, for some operation."""
        indices = np.asarray(hkl, np.int64)
        absent = np.zeros(len(indices), bool)
        for w, t in zip(self.rotation, self.shift, strict=True):
            absent |= np.all(indices @ w == indices, axis=1) & ((indices @ t) % _DENOMINATOR != 0)
        return absent

    def orbit(self, hkl: Int[np.ndarray, "n 3"]) -> Int[np.ndarray, "n m 3"]:
        """The images of each reflection under the rotations of the Laue class (without Friedel mates; with repeats)."""
        return np.einsum("ni,mij->nmj", np.asarray(hkl, np.int64), self.laue_operations)

    def misfit(self, cell: CellLike) -> float:
        """The largest relative change that an operation makes to an element of the cell's metric; 0 for a cell of the
        group."""
        metric = matrix_from_metric(direct_metric_from_cell(np.asarray(cell, np.float64)))
        turned = np.swapaxes(self.rotation, 1, 2) @ metric @ self.rotation
        scale = np.sqrt(np.diag(metric))
        return float(np.abs((turned - metric) / np.outer(scale, scale)).max())


def _from_operations(name: str, number: int, laue_group: str, operations: Any) -> SpaceGroup:
    rotation = np.array([op.rot for op in operations], np.int64) // _DENOMINATOR
    shift = np.array([op.tran for op in operations], np.int64) % _DENOMINATOR
    return SpaceGroup(name, number, laue_group, rotation, shift)


def _from_table(group: gemmi.SpaceGroup) -> SpaceGroup:
    return _from_operations(group.xhm(), group.number, group.laue_str(), list(group.operations()))


@lru_cache(maxsize=500)
def space_group(name: str, alpha: float = 0.0, gamma: float = 0.0) -> SpaceGroup:
    """A space group by its symbol ("P 21/c", "Fd-3m:1", "R -3 c:H") or its number ("14").

    `alpha` and `gamma` of the cell (degrees), where given, choose between hexagonal and rhombohedral axes. A symbol
    with two origins means the first. Raises `ValueError` for a symbol that is not in gemmi's table.
    """
    text = name.strip()
    if text.isdigit():
        found = gemmi.find_spacegroup_by_number(int(text)) if 1 <= int(text) <= 230 else None
        if found is not None and found.ext == "H" and abs(gamma - 120) > 1 and gamma:
            found = gemmi.find_spacegroup_by_name(found.hm, alpha, gamma)
    else:
        found = gemmi.find_spacegroup_by_name(text, alpha, gamma)
    if found is None:
        raise ValueError(f"unknown space group {name!r}; give a Hermann-Mauguin symbol such as P21/c or a number 1-230")
    return _from_table(found)


def space_group_from_triplets(triplets: Sequence[str]) -> SpaceGroup:
    """The space group of a list of operations "x,y,z", in any setting; named from the table where it is there.

    Raises `ValueError` where the operations are not those of a group.
    """
    try:
        operations = gemmi.GroupOps([gemmi.Op(t) for t in triplets])
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"the symmetry operations cannot be read ({error}); correct them") from None
    found = gemmi.find_spacegroup_by_ops(operations)
    if found is not None:
        return _from_table(found)
    members = list(operations)
    if not members:
        raise ValueError("there are no symmetry operations; give x,y,z at least")
    order = len({str(np.array(op.rot) * round(np.linalg.det(np.array(op.rot) / 24))) for op in members})
    folds = {round(float(np.trace(np.array(op.rot) / 24) * np.linalg.det(np.array(op.rot) / 24))) for op in members}
    three, four, six = 0 in folds, 1 in folds, 2 in folds
    names = {
        1: "-1",
        2: "2/m",
        3: "-3",
        4: "4/m" if four else "mmm",
        6: "6/m" if six else "-3m",
        8: "4/mmm",
        12: "6/mmm" if six else "m-3",
        24: "m-3m",
    }
    if order not in names or (three and order in (4, 8)):
        raise ValueError(f"the {len(members)} symmetry operations are not those of a group; correct them")
    return _from_operations("unnamed setting", 0, names[order], members)
