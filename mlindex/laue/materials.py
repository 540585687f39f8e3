"""Crystals by name, from a CIF, or from a cell; and the rays that each can send to a detector.

Sources of the built-in table. "W": R. W. G. Wyckoff, Crystal Structures 1, 2nd edition (1963), as in the
Crystallography Open Database. GaN: Schulz & Thiemann, Solid State Commun. 23 (1977) 815. ZrO2: Howard, Hill & Reichert,
Acta Cryst. B44 (1988) 116. CuWO4: Kihlborg & Gebert, Acta Cryst. B26 (1970) 1020. Si: the CODATA value of 2018. Ge:
Baker & Hart, Acta Cryst. A31 (1975) 364. Al2O3: Newnham & de Haan, Z. Kristallogr. 117 (1962) 235.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from mlindex.crystal.metric import (
    b_matrix_from_cell,
    checked_cell,
    q2_from_hkl,
    reciprocal_metric_from_cell,
)
from mlindex.crystal.scattering import Structure, crystal_from_cif, intensities, structure_from_sites
from mlindex.crystal.spacegroup import SpaceGroup, space_group
from mlindex.laue.geometry import KEV_ANGSTROM, Detector, largest_two_theta
from mlindex.records import InputError

MAX_ORDER = 30  # of a harmonic: the orders of a ray are bits of an int32

_FCC, _BCC, _HCP, _DIAMOND = "F m -3 m", "I m -3 m", "P 63/m m c", "F d -3 m:1"
_HEXAGONAL = (1 / 3, 2 / 3)
_Row = tuple[str, tuple[float, ...], tuple[tuple[str, float, float, float], ...], str]


def _element(symbol: str, group: str, a: float, c: float | None = None, source: str = "W") -> _Row:
    cell = (a, a, a, 90.0, 90.0, 90.0) if c is None else (a, a, c, 90.0, 90.0, 120.0)
    site = (symbol, *_HEXAGONAL, 0.25) if group == _HCP else (symbol, 0.0, 0.0, 0.0)
    return group, cell, (site,), source


def _two(
    group: str, cell: tuple[float, ...], first: str, second: str, at: tuple[float, ...], source: str = "W"
) -> _Row:
    start = (*_HEXAGONAL, 0.0) if group == "P 63 m c" else (0.0, 0.0, 0.0)
    return group, cell, ((first, *start), (second, at[0], at[1], at[2])), source


def _cubic(a: float) -> tuple[float, ...]:
    return (a, a, a, 90.0, 90.0, 90.0)


def _hexagonal(a: float, c: float) -> tuple[float, ...]:
    return (a, a, c, 90.0, 90.0, 120.0)


_QUARTER, _HALF = (0.25, 0.25, 0.25), (0.5, 0.5, 0.5)
TABLE: dict[str, _Row] = {
    "Ag": _element("Ag", _FCC, 4.0862),
    "Al": _element("Al", _FCC, 4.04958),
    "Au": _element("Au", _FCC, 4.07825),
    "Cu": _element("Cu", _FCC, 3.61496),
    "Fe_gamma": _element("Fe", _FCC, 3.591),
    "Pb": _element("Pb", _FCC, 4.9505),
    "Pt": _element("Pt", _FCC, 3.9231),
    "Cr": _element("Cr", _BCC, 2.8839),
    "Fe": _element("Fe", _BCC, 2.8665),
    "Mo": _element("Mo", _BCC, 3.1473),
    "Nb": _element("Nb", _BCC, 3.3004),
    "Ta": _element("Ta", _BCC, 3.3058),
    "Ti_beta": _element("Ti", _BCC, 3.3065),
    "Co": _element("Co", _HCP, 2.5071, 4.0686),
    "Mg": _element("Mg", _HCP, 3.20927, 5.21033),
    "Ti": _element("Ti", _HCP, 2.950, 4.686),
    "Zn": _element("Zn", _HCP, 2.6648, 4.9467),
    "Zr": _element("Zr", _HCP, 3.232, 5.147),
    "C_diamond": _element("C", _DIAMOND, 3.56679),
    "Ge": _element("Ge", _DIAMOND, 5.65791, source="Baker & Hart 1975"),
    "Si": _element("Si", _DIAMOND, 5.431020511, source="CODATA 2018"),
    "Sn_alpha": _element("Sn", _DIAMOND, 6.4912),
    "Sn": ("I 41/a m d:1", (5.8197, 5.8197, 3.17488, 90.0, 90.0, 90.0), (("Sn", 0.0, 0.0, 0.0),), "W"),
    "CdTe": _two("F -4 3 m", _cubic(6.480), "Cd", "Te", _QUARTER),
    "GaAs": _two("F -4 3 m", _cubic(5.6537), "Ga", "As", _QUARTER),
    "InSb": _two("F -4 3 m", _cubic(6.4782), "In", "Sb", _QUARTER),
    "MgO": _two(_FCC, _cubic(4.2112), "Mg", "O", _HALF),
    "UO2": _two(_FCC, _cubic(5.4682), "U", "O", _QUARTER),
    "GaN": _two("P 63 m c", _hexagonal(3.190, 5.189), "Ga", "N", (*_HEXAGONAL, 0.377), "Schulz & Thiemann 1977"),
    "ZnO": _two("P 63 m c", _hexagonal(3.2495, 5.2069), "Zn", "O", (*_HEXAGONAL, 0.345)),
    "TiO2": _two("P 42/m n m", (4.59373, 4.59373, 2.95812, 90.0, 90.0, 90.0), "Ti", "O", (0.3053, 0.3053, 0.0)),
    "SrTiO3": (
        "P m -3 m",
        _cubic(3.90528),
        (("Sr", 0.5, 0.5, 0.5), ("Ti", 0.0, 0.0, 0.0), ("O", 0.5, 0.0, 0.0)),
        "W",
    ),
    "Al2O3": (
        "R -3 c:H",
        _hexagonal(4.7589, 12.991),
        (("Al", 0.0, 0.0, 0.3522), ("O", 0.3063, 0.0, 0.25)),
        "Newnham & de Haan 1962",
    ),
    "ZrO2": (
        "P 1 21/c 1",
        (5.1505, 5.2116, 5.3173, 90.0, 99.230, 90.0),
        (("Zr", 0.2754, 0.0395, 0.2083), ("O", 0.0700, 0.3317, 0.3447), ("O", 0.4496, 0.7569, 0.4792)),
        "Howard, Hill & Reichert 1988",
    ),
    "CuWO4": (
        "P -1",
        (4.7026, 5.8389, 4.8784, 91.677, 92.469, 82.805),
        (
            ("Cu", 0.49533, 0.65976, 0.24481),
            ("W", 0.02106, 0.17348, 0.25429),
            ("O", 0.2491, 0.3535, 0.4245),
            ("O", 0.2145, 0.8812, 0.4309),
            ("O", 0.7353, 0.3803, 0.0981),
            ("O", 0.7826, 0.9079, 0.0533),
        ),
        "Kihlborg & Gebert 1970",
    ),
}


@dataclass(frozen=True, eq=False)
class Material:
    """A crystal that may be in a frame: its `cell` (angstrom, degrees), space group, and atoms or None."""

    name: str
    cell: NDArray[np.float64]
    group: SpaceGroup
    structure: Structure | None = None
    source: str = ""

    @property
    def laue_group(self) -> str:
        """The Laue class, as "m-3m"."""
        return self.group.laue_group

    @property
    def b(self) -> Float[np.ndarray, "3 3"]:
        """The Busing-Levy B (1/angstrom) of the cell."""
        return np.asarray(b_matrix_from_cell(self.cell), np.float64)

    @property
    def operations(self) -> Int[np.ndarray, "m 3 3"]:
        """The rotations of the Laue class on indices, hkl' = hkl W."""
        return self.group.laue_operations

    @property
    def rotations(self) -> Float[np.ndarray, "m 3 3"]:
        """The same in Cartesian crystal axes, for `mlindex.crystal.rotation.misorientation`."""
        return self.group.rotations(self.cell)

    @property
    def digest(self) -> str:
        """A name (hexadecimal) for everything that decides the pattern: cell, space group and atoms."""
        parts = [self.cell, self.group.rotation, self.group.shift]
        text = ""
        if self.structure is not None:
            parts += [self.structure.xyz, self.structure.occupancy, self.structure.u_iso]
            text = " ".join(self.structure.element)
        hashed = hashlib.sha256(text.encode())
        for part in parts:
            hashed.update(np.ascontiguousarray(part).tobytes())
        return hashed.hexdigest()[:16]


class Rays(NamedTuple):
    """The rays of a material, lowest scattering vector first (that of the lowest allowed order).

    `hkl` (n, 3) int32: primitive indices, one of hkl and -h-k-l. `q` (n,) float64: |q| of them (1/angstrom). `orders`
    (n,) int32: bit m is set where the order m is allowed. `strength` (n, m): |F|^2 of the orders 1, 2, ..., m (1
    where no atoms are known, 0 for an order that is not allowed).
    """

    hkl: Any
    q: Any
    orders: Any
    strength: Any


@lru_cache(maxsize=64)
def _rays(material: Material, q_max: float, faintest: float) -> Rays:
    limits = np.floor(material.cell[:3] * q_max + 1e-9).astype(np.int64)
    axes = [np.arange(-n if i else 0, n + 1) for i, n in enumerate(limits)]
    hkl = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    h, k, l = hkl.T  # noqa: E741
    half = (h > 0) | ((h == 0) & ((k > 0) | ((k == 0) & (l > 0))))
    hkl = hkl[half]
    q = np.sqrt(q2_from_hkl(reciprocal_metric_from_cell(material.cell), hkl))
    order = np.gcd.reduce(hkl, axis=1)
    keep = (q <= q_max) & (order <= MAX_ORDER)
    keep[keep] &= ~material.group.absent(hkl[keep])
    hkl, q, order = hkl[keep], q[keep], order[keep]
    if not len(hkl):
        return Rays(np.empty((0, 3), np.int32), np.empty(0), np.empty(0, np.int32), np.empty((0, 1)))
    strength = np.ones(len(hkl))
    if material.structure is not None:
        strength = intensities(material.structure, material.cell, hkl)
        seen = strength > faintest * strength.max()
        hkl, q, order, strength = hkl[seen], q[seen], order[seen], strength[seen]
    primitive, row = np.unique(hkl // order[:, None], axis=0, return_inverse=True)
    bits = np.zeros(len(primitive), np.int64)
    np.bitwise_or.at(bits, row, np.left_shift(1, order))
    table = np.zeros((len(primitive), order.max()))
    table[row, order - 1] = strength
    lowest = np.full(len(primitive), np.inf)
    np.minimum.at(lowest, row, q)
    sequence = np.lexsort((*primitive.T[::-1], np.round(lowest, 9)))
    shortest = np.sqrt(q2_from_hkl(reciprocal_metric_from_cell(material.cell), primitive))
    found = Rays(
        primitive[sequence].astype(np.int32), shortest[sequence], bits[sequence].astype(np.int32), table[sequence]
    )
    for column in found:
        column.setflags(write=False)
    return found


def rays(material: Material, emax: float, detector: Detector | None = None, *, faintest: float = 0.0) -> Rays:
    """Every ray that can have an order of energy `emax` (keV) or less on the detector (anywhere, without one).

    The orders stop at 30, which leaves no spot out above 5 keV for cells up to 35 angstrom. Where atoms are known,
    orders with |F|^2 not above `faintest` of the largest are taken for extinct. The last tables are kept.
    """
    half = 90.0 if detector is None else largest_two_theta(detector) / 2
    return _rays(material, 2 * emax * float(np.sin(np.radians(half))) / KEV_ANGSTROM, faintest)


def _checked(
    name: str, cell: Any, group: SpaceGroup, structure: Structure | None, origin: str, source: str
) -> Material:
    try:
        values = checked_cell(cell, origin=origin)
    except ValueError as error:
        raise InputError(str(error)) from None
    if group.misfit(values) > 2e-3:
        shown = ", ".join(f"{v:g}" for v in values)
        raise InputError(f"{origin}: the cell {shown} has not the symmetry of {group.name}; correct one of them")
    values.setflags(write=False)
    return Material(name, values, group, structure, source)


@lru_cache(maxsize=128)
def _built_in(name: str) -> Material:
    symbol, cell, sites, source = TABLE[name]
    group = space_group(symbol)
    shown = "Wyckoff, Crystal Structures 1 (1963)" if source == "W" else source
    return _checked(name, cell, group, structure_from_sites(group, cell, sites), name, shown)


def _from_cif(path: Path) -> Material:
    if not path.is_file():
        raise InputError(f"{path}: there is no such file; give the path of a CIF")
    try:
        crystal = crystal_from_cif(path)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
    return _checked(path.stem, crystal.cell, crystal.group, crystal.structure, str(path), f"CIF {path.name}")


def material(text: str) -> Material:
    """The material of a description: a name in the table, the path of a CIF, or NAME:SPACEGROUP:a,b,c,alpha,beta,gamma.

    Without atoms (the third form) every reflection that the space group allows counts as equally strong. Raises
    `InputError`.
    """
    description = text.strip()
    if description in TABLE:
        return _built_in(description)
    if description.lower().endswith((".cif", ".mcif")):
        return _from_cif(Path(description))
    if description.count(":") >= 2:
        name, rest = description.split(":", 1)
        symbol, numbers = rest.rsplit(":", 1)
        try:
            cell = [float(v) for v in numbers.replace(";", ",").split(",")]
        except ValueError:
            raise InputError(f"material {description}: {numbers!r} is no cell; give a,b,c,alpha,beta,gamma") from None
        if len(cell) != 6:
            raise InputError(f"material {description}: a cell has six numbers a,b,c,alpha,beta,gamma, not {len(cell)}")
        try:
            group = space_group(symbol, cell[3], cell[5])
        except ValueError as error:
            raise InputError(f"material {description}: {error}") from None
        return _checked(name, cell, group, None, f"material {description}", "cell and space group as given")
    raise InputError(
        f"unknown material {description!r}; it is one of {', '.join(sorted(TABLE))}, the path of a CIF, "
        "or NAME:SPACEGROUP:a,b,c,alpha,beta,gamma"
    )
