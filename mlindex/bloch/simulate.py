"""LARBED patterns with their truth, from one of three sources of U_g: random ones, those of a crystal, or given ones.

Random U_g are Hermitian, U_-g = conj(U_g), uniform in the real and in the imaginary part; U_0, which is only a phase of
all beams, is zero. Source: J. Chen, thesis (2022): random U within +-0.2 1/A^2, thickness 5 to 100 nm.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Complex, Float, Inexact, Int

from mlindex.bloch.beams import Geometry
from mlindex.bloch.propagate import intensities
from mlindex.crystal.electrons import electron_structure_factors
from mlindex.crystal.metric import CellLike
from mlindex.crystal.scattering import Crystal
from mlindex.formats.larbed import Larbed, Truth

LARGEST_U = 0.2  # 1/A^2
THICKNESS = (50.0, 1000.0)  # A


def random_u(
    rng: np.random.Generator, dhkl: Int[np.ndarray, "d 3"], largest: float = LARGEST_U, *, real: bool = False
) -> Complex[np.ndarray, " d"]:
    """Random Hermitian U (1/A^2) at differences in the order of `Geometry.dhkl`; `real`: of a centrosymmetric crystal
    with its centre at the origin."""
    d = len(dhkl)
    half = rng.uniform(-largest, largest, d // 2) + (0 if real else 1j * rng.uniform(-largest, largest, d // 2))
    return np.concatenate([half, np.zeros(d % 2), half[::-1].conj()]).astype(np.complex128)


def centring(crystal: Crystal) -> Float[np.ndarray, "k 3"]:
    """The translations of a crystal's lattice that are none of its cell, in parts of the cell; (0, 3): primitive."""
    pure = np.all(crystal.group.rotation == np.eye(3, dtype=np.int64), axis=(1, 2))
    shift = crystal.group.shift[pure]
    return shift[shift.any(1)] / 24


def crystal_u(
    crystal: Crystal, geometry: Geometry, voltage_kv: float, absorption: float = 0.0
) -> Complex[np.ndarray, " d"]:
    """U (1/A^2) of a crystal at `geometry.dhkl`; raises `ValueError` for a crystal without atoms."""
    if crystal.structure is None:
        raise ValueError(f"{crystal.name} has no atoms, and so no structure factors; give a CIF with atom sites")
    return electron_structure_factors(crystal.structure, crystal.cell, geometry.dhkl, voltage_kv, absorption=absorption)


def given_u(
    hkl: Int[np.ndarray, "k 3"], u: Inexact[np.ndarray, " k"], dhkl: Int[np.ndarray, "d 3"]
) -> Complex[np.ndarray, " d"]:
    """U (1/A^2) at `dhkl` from a list: what is missing is conj(U_-g) where that is listed, else zero.

    Raises `ValueError` for a reflection that is listed twice and for U_g and U_-g that are not conjugate.
    """
    listed = {tuple(int(i) for i in index): complex(value) for index, value in zip(hkl, u, strict=True)}
    if len(listed) < len(hkl):
        raise ValueError("a reflection is listed twice among the structure factors")
    for index, value in listed.items():
        mate = listed.get(tuple(-i for i in index), value.conjugate())
        if abs(mate - value.conjugate()) > 1e-6 * max(abs(value), 1e-6):
            raise ValueError(f"U of {list(index)} and of its opposite are not complex conjugates")
    out = np.zeros(len(dhkl), np.complex128)
    for place, row in enumerate(dhkl):
        index = tuple(int(i) for i in row)
        out[place] = listed.get(index, np.conj(listed.get(tuple(-i for i in index), 0.0)))
    return out


def counted(rng: np.random.Generator, intensity: Float[np.ndarray, "m n"], counts: float) -> Float[np.ndarray, "m n"]:
    """The intensities with Poisson noise, as fractions again, for `counts` in the brightest place of the pattern."""
    unit = intensity.max() / counts
    return rng.poisson(intensity / unit) * unit


def simulate_pattern(
    name: str,
    u: Inexact[np.ndarray, " d"],
    geometry: Geometry,
    thickness: float,
    *,
    cell: CellLike,
    zone: Sequence[int],
    voltage_kv: float,
    counts: float | None = None,
    rng: np.random.Generator | None = None,
) -> tuple[Larbed, Truth]:
    """The pattern of a slab of `thickness` (A) and the truth behind it; `counts` adds Poisson noise (see `counted`).

    Raises `ValueError` for counts without a generator or not positive, and as `intensities`.
    """
    clean = intensities(u, geometry, float(thickness))
    seen = clean
    if counts is not None:
        if rng is None or not (np.isfinite(counts) and counts > 0):
            raise ValueError(f"noise needs a positive number of counts and a generator, not {counts}")
        seen = counted(rng, clean, counts)
    tilt = geometry.kt / geometry.k0 * 1e3
    axis = np.asarray(zone, np.int64)
    pattern = Larbed(name, name, seen, geometry.hkl, tilt, voltage_kv, np.asarray(cell, np.float64), axis)
    return pattern, Truth(geometry.dhkl, np.asarray(u, np.complex128), float(thickness), clean)
