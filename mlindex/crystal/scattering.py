"""Structure factors: |F|^2 of reflections from the atoms of a cell, and atoms from a CIF.

F(hkl) = sum over atoms of occ f(s) exp(-8 pi^2 Uiso s^2) exp(2 pi i h.x), s = q / 2 = sin(theta) / lambda, with the
scattering factors f of neutral atoms. Without resonant terms |F(hkl)| = |F(-h-k-l)|.

Source: International Tables for Crystallography C (1992), section 6.1.1 (f, four Gaussians and a constant, from gemmi).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gemmi
import numpy as np
from jaxtyping import Complex, Float, Int
from numpy.typing import NDArray

from mlindex.crystal.metric import (
    CellLike,
    direct_metric_from_cell,
    matrix_from_metric,
    q2_from_hkl,
    reciprocal_metric_from_cell,
)
from mlindex.crystal.spacegroup import SpaceGroup, space_group_from_triplets

_CHUNK = 4_000_000  # phases at a time
# Angstrom within which images of an atom are one: those that only the digits of its coordinates part, and, where the
# occupancy leaves no room for two, those that are too near to be two
_ROUNDED, _OVERLAP = 0.05, 0.5


@dataclass(frozen=True, eq=False)
class Structure:
    """The atoms of a whole cell: `element` symbols, `xyz` (n, 3) fractions, `occupancy` (n,), `u_iso` (n,) in A^2."""

    element: tuple[str, ...]
    xyz: NDArray[np.float64]
    occupancy: NDArray[np.float64]
    u_iso: NDArray[np.float64]


def structure_from_sites(
    group: SpaceGroup,
    cell: CellLike,
    sites: Sequence[tuple[str, float, float, float]],
    occupancy: Sequence[float] | None = None,
    u_iso: Sequence[float] | None = None,
) -> Structure:
    """The atoms of the cell (angstrom, degrees) from those of the asymmetric unit, rows (element, x, y, z).

    Sites are on the special positions that they are near to (see `at_special_position`), and images of one within 0.05
    angstrom are one atom. Raises `ValueError` for an unknown element.
    """
    metric = matrix_from_metric(direct_metric_from_cell(np.asarray(cell, np.float64)))
    element: list[str] = []
    rows: list[NDArray] = []
    for index, (symbol, *fraction) in enumerate(sites):
        if gemmi.Element(symbol).atomic_number == 0:
            raise ValueError(f"unknown element {symbol!r}")
        weight = 1.0 if occupancy is None else float(occupancy[index])
        motion = 0.0 if u_iso is None else float(u_iso[index])
        place = at_special_position(np.array(fraction, float), group, cell, weight)
        images = (group.rotation @ place + group.shift / 24) % 1
        kept: list[NDArray] = []
        for image in images:
            apart = np.array(kept).reshape(-1, 3) - image
            apart -= np.round(apart)
            if (np.einsum("mi,ij,mj->m", apart, metric, apart) >= _ROUNDED**2).all():
                kept.append(image)
        element += [symbol] * len(kept)
        rows += [np.array([*image, weight, motion]) for image in kept]
    table = np.array(rows, np.float64).reshape(-1, 5)
    return Structure(tuple(element), table[:, :3], table[:, 3], table[:, 4])


def at_special_position(
    fraction: Float[np.ndarray, " 3"], group: SpaceGroup, cell: CellLike, occupancy: float = 1.0
) -> Float[np.ndarray, " 3"]:
    """The special position that a site is near to, as 1/3 for 0.333, or the site itself.

    It is the mean of the site's images within 0.05 angstrom; within 0.5 where the site is more than half occupied, as
    two such atoms have no room there. A disordered atom beside a special position, of 1/2 or less, stays as it is.
    Source of the method: Grosse-Kunstleve & Adams, Acta Cryst. A58 (2002) 60 (the position from its site symmetry).
    """
    metric = matrix_from_metric(direct_metric_from_cell(np.asarray(cell, np.float64)))
    reach = _OVERLAP if occupancy > 0.5 else _ROUNDED
    place = np.asarray(fraction, np.float64)
    for _ in range(3):  # once, unless an image is just about at the limit
        change = group.rotation @ place + group.shift / 24 - place
        change -= np.round(change)
        near = np.einsum("mi,ij,mj->m", change, metric, change) < reach**2
        place = place + change[near].mean(0)
    return place


def structure_factors(structure: Structure, cell: CellLike, hkl: Int[np.ndarray, "n 3"]) -> Complex[np.ndarray, " n"]:
    """F (electrons per cell) of each reflection."""
    indices = np.asarray(hkl, np.float64)
    quarter_q2 = q2_from_hkl(reciprocal_metric_from_cell(np.asarray(cell, np.float64)), indices) / 4
    total = np.zeros(len(indices), np.complex128)
    for symbol in dict.fromkeys(structure.element):
        atoms = np.flatnonzero(np.array(structure.element) == symbol)
        coefficients = gemmi.Element(symbol).it92.get_coefs()
        a, b, c = np.array(coefficients[:4]), np.array(coefficients[4:8]), coefficients[8]
        factor = np.exp(-np.outer(quarter_q2, b)) @ a + c
        sums = np.zeros(len(indices), np.complex128)
        step = max(1, _CHUNK // len(atoms))
        for start in range(0, len(indices), step):
            part = slice(start, start + step)
            phase = np.exp(2j * np.pi * (indices[part] @ structure.xyz[atoms].T))
            motion = np.exp(-8 * np.pi**2 * np.outer(quarter_q2[part], structure.u_iso[atoms]))
            sums[part] = (phase * motion) @ structure.occupancy[atoms]
        total += factor * sums
    return total


def intensities(structure: Structure, cell: CellLike, hkl: Int[np.ndarray, "n 3"]) -> Float[np.ndarray, " n"]:
    """|F|^2 of each reflection; one that the atoms extinguish (below 1e-9 of F(000)^2) is exactly zero."""
    squared = np.abs(structure_factors(structure, cell, hkl)) ** 2
    forward = abs(structure_factors(structure, cell, np.zeros((1, 3), np.int64))[0]) ** 2
    return np.where(squared > 1e-9 * forward, squared, 0.0)


@dataclass(frozen=True, eq=False)
class Crystal:
    """What a CIF says of a crystal: `cell` (6,), the space group, the atoms of the cell or None."""

    name: str
    cell: NDArray[np.float64]
    group: SpaceGroup
    structure: Structure | None


def _space_group_of(small: Any) -> SpaceGroup:
    triplets = list(small.symops)
    if not triplets and small.spacegroup is not None:
        triplets = [op.triplet() for op in small.spacegroup.operations()]
    if not triplets:
        raise ValueError("it names no space group that is known and no symmetry operations; add one")
    return space_group_from_triplets(triplets)


def crystal_from_cif(path: str | Path) -> Crystal:
    """The first data block of a CIF that has a cell; its atoms are on the special positions that they are near to.

    Raises `ValueError` (one sentence, without the file's name) for a file without a cell or a usable space group,
    and for an atom without coordinates.
    """
    try:
        document = gemmi.cif.read(str(path))
    except (ValueError, RuntimeError, OSError) as error:
        raise ValueError(f"it is not a CIF that can be read ({str(error).splitlines()[0]})") from None
    for block in document:
        small = gemmi.make_small_structure_from_block(block)
        cell = np.array(small.cell.parameters, np.float64)
        if small.cell.volume <= 1.0 or not block.find_value("_cell_length_a"):
            continue
        group = _space_group_of(small)
        sites = [s for s in small.sites if s.element.atomic_number > 0]
        if not sites:
            return Crystal(small.name or block.name, cell, group, None)
        for site in sites:
            if not all(math.isfinite(v) for v in site.fract.tolist()):
                raise ValueError(f"its atom {site.label} has no coordinates; give them, or take the atom out")
        rows = [(s.element.name, s.fract.x, s.fract.y, s.fract.z) for s in sites]
        motion = [s.u_iso if np.isfinite(s.u_iso) and 0 <= s.u_iso < 1 else 0.0 for s in sites]
        structure = structure_from_sites(group, cell, rows, [s.occ for s in sites], motion)
        return Crystal(small.name or block.name, cell, group, structure)
    raise ValueError("none of its data blocks has a unit cell")
