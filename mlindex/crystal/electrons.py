"""Fast electrons: wavelength, relativistic factor, scattering factors, and the structure factors U_g of a crystal.

U_g = gamma / (pi V) sum_j occ_j f_j(|g|) exp(-8 pi^2 Uiso_j s^2) exp(-2 pi i g.r_j) in 1/A^2, s = |g| / 2; f in A is
the first Born approximation with the rest mass. psi ~ exp(+2 pi i k.r), and a positive U_0 attracts.

Sources: International Tables for Crystallography C (2004), table 4.3.2.2 (f, five Gaussians fitted for s up to 2 1/A:
Peng, Ren, Dudarev & Whelan, Acta Cryst. A52 (1996) 257; from gemmi); CODATA 2018.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gemmi
import numpy as np
from jaxtyping import Complex, Float, Int

from mlindex.crystal.metric import CellLike, q2_from_hkl, reciprocal_metric_from_cell, volume_from_reciprocal_metric
from mlindex.crystal.scattering import Structure

_H = 6.62607015e-34  # J s
_E = 1.602176634e-19  # C
_M0 = 9.1093837015e-31  # kg
_C = 299792458.0  # m / s
_FITTED = 4.0  # 1/A: the largest |g| = 2 s that the Gaussians were fitted to

FactorTable = Callable[[str, Float[np.ndarray, " n"]], Float[np.ndarray, " n"]]


def wavelength(voltage_kv: float) -> float:
    """The wavelength in angstrom, h / sqrt(2 m0 e E (1 + e E / (2 m0 c^2))), of electrons of `voltage_kv`.

    Raises `ValueError` unless the voltage is finite and positive.
    """
    volts = _volts(voltage_kv)
    return float(_H / np.sqrt(2 * _M0 * _E * volts * (1 + _E * volts / (2 * _M0 * _C**2))) * 1e10)


def gamma(voltage_kv: float) -> float:
    """The relativistic factor m / m0 = 1 + e E / (m0 c^2) of electrons of `voltage_kv`."""
    return 1 + _E * _volts(voltage_kv) / (_M0 * _C**2)


def _volts(voltage_kv: float) -> float:
    if not (np.isfinite(voltage_kv) and voltage_kv > 0):
        raise ValueError(f"the voltage must be positive (kV), not {voltage_kv}")
    return float(voltage_kv) * 1e3


def scattering_factor(element: str, g: Float[Any, " n"]) -> Float[np.ndarray, " n"]:
    """f in angstrom of a neutral atom at each |g| = 1/d (1/A).

    Beyond the fitted range f falls as 1/g^2, as the nucleus alone scatters, where the Gaussians would vanish. Raises
    `ValueError` for an element that the table lacks.
    """
    atom = gemmi.Element(element)
    table = atom.c4322 if atom.atomic_number else None
    if table is None:
        raise ValueError(f"there is no electron scattering factor of the element {element!r}")
    coefficients = np.array(table.get_coefs())
    length = np.abs(np.asarray(g, np.float64))
    inside = np.minimum(length, _FITTED)
    f = np.exp(-np.multiply.outer(inside**2 / 4, coefficients[5:])) @ coefficients[:5]
    return f * (_FITTED / np.maximum(length, _FITTED)) ** 2


def electron_structure_factors(
    structure: Structure,
    cell: CellLike,
    hkl: Int[np.ndarray, "n 3"],
    voltage_kv: float,
    *,
    absorption: float = 0.0,
    factors: FactorTable = scattering_factor,
) -> Complex[np.ndarray, " n"]:
    """U_g in 1/A^2 of each reflection, U_0 included.

    `absorption`: the absorptive potential as a proportion of the elastic one, U (1 + i absorption), so that the beams
    of a slab lose intensity. `factors`: another table of f(element, |g|). Raises `ValueError` for an element without
    factors, a voltage that is none or an absorption below zero.
    """
    if not (np.isfinite(absorption) and absorption >= 0):
        raise ValueError(f"the absorption must be zero or a positive proportion, not {absorption}")
    metric = reciprocal_metric_from_cell(np.asarray(cell, np.float64))
    indices = np.asarray(hkl, np.float64)
    q2 = q2_from_hkl(metric, indices)
    symbols = np.array(structure.element)
    total = np.zeros(len(indices), np.complex128)
    for symbol in dict.fromkeys(structure.element):
        atoms = np.flatnonzero(symbols == symbol)
        phase = np.exp(-2j * np.pi * (indices @ structure.xyz[atoms].T))
        motion = np.exp(-2 * np.pi**2 * np.outer(q2, structure.u_iso[atoms]))
        total += factors(symbol, np.sqrt(q2)) * ((phase * motion) @ structure.occupancy[atoms])
    scale = gamma(voltage_kv) / (np.pi * float(volume_from_reciprocal_metric(metric)))
    return scale * total * (1 + 1j * absorption)
