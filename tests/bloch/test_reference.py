"""Against stored patterns: the formula of the thesis, and abTEM and py4DSTEM in their own geometries.

The three differ in how a tilt enters, and so agree at tilt zero.

- The thesis: k_t = theta K, 2 K s = -(g^2 + 2 g.k_t), path t / K.
- abTEM turns the crystal by asin(|theta|): 2 K s = -(g^2 + 2 K g_z), and amplitudes are those of M A M with M =
  (1 + g_z / K)^(-1/2); its wave equation has M = 1 and drops g_z^2 from g^2.
- py4DSTEM keeps the surface and turns the beam: k_t = theta K, k_z = sqrt(K^2 - k_t^2), s = -(g^2 + 2 g.k_t) / (2 k_z),
  path t / k_z.
"""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest

from mlindex.bloch.beams import Geometry, differences, geometry, shell_beams, zone_frame
from mlindex.bloch.propagate import by_eigenvectors, intensities, structure_matrix
from mlindex.crystal.electrons import electron_structure_factors, wavelength
from mlindex.crystal.scattering import structure_from_sites
from mlindex.crystal.spacegroup import space_group

FILE = np.load(Path(__file__).parents[1] / "reference" / "bloch" / "patterns.npz")
CASES = [f"SrTiO3-{i}" for i in range(1, 11)] + ["ZnO-1", "ZnO-2"]
PEERS = ["SrTiO3-1", "SrTiO3-8", "SrTiO3-10", "ZnO-1"]
CELLS = {"SrTiO3": (3.905, 3.905, 3.905, 90, 90, 90), "ZnO": (3.2498, 3.2498, 5.2066, 90, 90, 120)}
SITES = {
    "SrTiO3": ("P m -3 m", [("Sr", 0.0, 0.0, 0.0), ("Ti", 0.5, 0.5, 0.5), ("O", 0.5, 0.5, 0.0)]),
    "ZnO": ("P 63 m c", [("Zn", 1 / 3, 2 / 3, 0.0), ("O", 1 / 3, 2 / 3, 0.382)]),
}


def stored(name: str) -> np.ndarray:
    """An array of the file, or that which it names."""
    values = FILE[name]
    return stored(str(values)) if values.dtype.kind == "U" else values


def case(name: str, k0: float | None = None) -> tuple[Geometry, np.ndarray, float]:
    """Geometry as stored (in ZnO the frame has a along x, not a*), U, thickness."""
    _, wave, thickness = stored(f"{name}/energy_wavelength_thickness")
    hkl, flat = stored(f"{name}/hkl"), stored(f"{name}/g")
    dhkl, index = differences(hkl)
    np.testing.assert_array_equal(dhkl, stored(f"{name}/dhkl"))
    g = np.column_stack([flat, np.zeros(len(flat))])
    k0 = k0 or 1 / float(wave)
    return Geometry(hkl, g, stored(f"{name}/theta") * k0, k0, dhkl, index), stored(f"{name}/U_d"), float(thickness)


@pytest.mark.parametrize("name", CASES)
def test_the_formula_of_the_thesis(name):
    at, u, thickness = case(name)
    np.testing.assert_allclose(at.kt, stored(f"{name}/kt"), atol=1e-13)
    np.testing.assert_allclose(intensities(u, at, thickness), stored(f"{name}/I"), atol=1e-12)


@pytest.mark.parametrize("method", ["eigenvectors", "squaring", "chebyshev"])
@pytest.mark.parametrize("name", ["SrTiO3-2", "SrTiO3-8"])
def test_every_way_and_both_precisions(name, method):
    at, u, thickness = case(name)
    np.testing.assert_allclose(intensities(u, at, thickness, method=method), stored(f"{name}/I"), atol=1e-12)
    single = intensities(u, at, thickness, method=method, single=True)
    assert single.dtype == np.float32
    # squarings double the error of single precision each time
    np.testing.assert_allclose(single, stored(f"{name}/I"), atol=5e-6 if method == "chebyshev" else 2e-4)


@pytest.mark.parametrize("name", CASES)
def test_beams_and_wavelength_are_found_again(name):
    """Beams from their number alone (ZnO-1 leaves two out of a shell), tilts turned into the frame with a* along x."""
    energy, wave, thickness = stored(f"{name}/energy_wavelength_thickness")
    assert wavelength(energy / 1e3) == pytest.approx(wave, rel=1e-14)
    cell, theirs = CELLS[name.split("-")[0]], stored(f"{name}/hkl")
    hkl = shell_beams(cell, (0, 0, 1), 97 if name == "ZnO-1" else len(theirs))
    if name == "ZnO-1":
        hkl = hkl[(np.abs(hkl) != [3, 3, 0]).any(1) | (hkl[:, 0] != hkl[:, 1])]
    np.testing.assert_array_equal(hkl, theirs)
    g = stored(f"{name}/g")
    astar = np.linalg.lstsq(theirs[:, :2].astype(float), g, rcond=None)[0][0]
    turn = np.array([[astar[0], astar[1]], [-astar[1], astar[0]]]) / np.linalg.norm(astar)
    np.testing.assert_allclose(hkl @ zone_frame(cell, (0, 0, 1)).T[:, :2], g @ turn.T, atol=1e-12)
    tilt = stored(f"{name}/theta") @ turn.T * 1e3
    at = geometry(hkl, tilt, cell=cell, zone=(0, 0, 1), voltage_kv=energy / 1e3)
    mine = intensities(stored(f"{name}/U_d"), at, float(thickness))
    np.testing.assert_allclose(mine, stored(f"{name}/I"), atol=1e-10)


@pytest.mark.parametrize("name", ["SrTiO3-10", "ZnO-1", "ZnO-2"])
def test_structure_factors_of_another_table(name):
    """The stored U are by the factors of Lobato & Van Dyck: the same physics, another fit."""
    group, sites = SITES[name.split("-")[0]]
    atoms = structure_from_sites(space_group(group), CELLS[name.split("-")[0]], sites)
    energy, _, _ = stored(f"{name}/energy_wavelength_thickness")
    theirs, dhkl = stored(f"{name}/U_d"), stored(f"{name}/dhkl")
    mine = electron_structure_factors(atoms, CELLS[name.split("-")[0]], dhkl, energy / 1e3)
    np.testing.assert_allclose(mine, theirs, atol=0.01 * np.abs(theirs).max())
    strong = np.abs(theirs) > 0.02
    np.testing.assert_allclose(mine[strong], theirs[strong], rtol=0.03)


def flat(name: str, u: np.ndarray, at: Geometry) -> np.ndarray:
    """The structure matrix without U_0, which is a phase."""
    matrix = np.array(structure_matrix(u, at))
    np.fill_diagonal(matrix, 0)
    return matrix


def amplitudes(matrix: np.ndarray, diagonal: np.ndarray, phase: np.ndarray) -> np.ndarray:
    """By our kernel, with a matrix (m, n, n) and a phase (m,) for each tilt."""
    with jax.enable_x64(True):
        one = jax.vmap(lambda a, d, p: by_eigenvectors(a, d[None], p[None], 0)[0, 0])
        return np.asarray(jax.jit(one)(matrix.astype(complex), diagonal, phase))


@pytest.mark.parametrize("form", ["I_abtem", "I_abtem_waveeq"])
@pytest.mark.parametrize("name", PEERS)
def test_abtem(name, form):
    at, _, thickness = case(name)
    u, theirs = stored(f"{name}/abtem/U_d"), FILE[f"{name}/abtem/{form}"]
    away = np.abs(intensities(u, at, thickness) - theirs).max(1)
    assert away[0] < 1e-6 and not at.kt[0].any()  # tilt zero, without any change
    assert away.max() > 1e-5
    # a rotation by asin(theta) has g_z = g.theta: k_t is that of the thesis, and only g_z^2 and M are new
    gz, g2 = at.kt @ at.g[:, :2].T / at.k0, np.sum(at.g**2, 1)
    wave = form == "I_abtem_waveeq"
    metric = np.ones_like(gz) if wave else (1 + gz / at.k0) ** -0.5
    diagonal = -(g2 + 2 * at.k0 * gz) + (gz**2 if wave else 0)
    matrix = metric[:, :, None] * flat(name, u, at) * metric[:, None, :]
    phase = np.full(len(gz), np.pi * thickness / at.k0)
    found = np.abs(metric * amplitudes(matrix, metric**2 * diagonal, phase)) ** 2
    np.testing.assert_allclose(found, theirs, atol=1e-7)


@pytest.mark.parametrize("name", PEERS)
def test_py4dstem(name):
    at, _, thickness = case(name, 1 / float(FILE[f"{name}/py4dstem/wavelength"]))
    u, theirs = stored(f"{name}/py4dstem/U_d"), FILE[f"{name}/py4dstem/I"]
    away = np.abs(intensities(u, at, thickness) - theirs).max(1)
    assert away[0] < 1e-6 and away.max() > 1e-5
    kz = np.sqrt(at.k0**2 - np.sum(at.kt**2, 1))
    diagonal = at.excitation * (at.k0 / kz)[:, None]
    matrix = np.broadcast_to(flat(name, u, at), (len(kz), len(at.hkl), len(at.hkl)))
    found = np.abs(amplitudes(matrix, diagonal, np.pi * thickness / kz)) ** 2
    np.testing.assert_allclose(found, theirs, atol=1e-10)
