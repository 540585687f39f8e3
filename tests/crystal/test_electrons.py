"""Electron wavelengths and structure factors: CODATA values as printed, gemmi's own sums, the Mott-Bethe relation."""

from __future__ import annotations

import gemmi
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlindex.crystal.electrons import electron_structure_factors, gamma, scattering_factor, wavelength
from mlindex.crystal.scattering import Structure

CELL = (4.1, 5.3, 6.7, 82.0, 97.0, 105.0)
HKL = np.stack(np.meshgrid(*[np.arange(-3, 4)] * 3, indexing="ij"), -1).reshape(-1, 3)
atoms = st.lists(
    st.tuples(
        st.sampled_from(["Sr", "Ti", "O", "Zn"]), *[st.floats(0, 0.99)] * 3, st.floats(0.1, 1), st.floats(0, 0.05)
    ),
    min_size=1,
    max_size=5,
)


def structure_of(rows: list) -> Structure:
    table = np.array([row[1:] for row in rows], float)
    return Structure(tuple(row[0] for row in rows), table[:, :3], table[:, 3], table[:, 4])


@pytest.mark.parametrize(
    ("kv", "angstrom"), [(60, 0.048661), (100, 0.037014366), (120, 0.033492153), (200, 0.02507934)]
)
def test_wavelengths(kv, angstrom):
    assert wavelength(float(kv)) == pytest.approx(angstrom, rel=1e-5)


@given(kv=st.floats(1, 1000))
def test_wavelength_and_mass_are_one_relation(kv):
    """The momentum h / lambda from the energy: (p c)^2 = E^2 - (m0 c^2)^2, E = gamma m0 c^2; h c = 12398.42 eV A."""
    rest = 510998.95  # eV
    assert 12398.41984 / wavelength(kv) == pytest.approx(rest * np.sqrt(gamma(kv) ** 2 - 1), rel=1e-8)
    assert gamma(kv) == pytest.approx(1 + kv * 1e3 / rest, rel=1e-9)


@given(rows=atoms)
def test_structure_factors_are_those_of_gemmi(rows):
    """gemmi sums f exp(+2 pi i h.x) with the same table, per cell, without the relativistic factor."""
    small = gemmi.SmallStructure()
    small.cell = gemmi.UnitCell(*CELL)
    small.spacegroup_hm = "P 1"
    for number, (element, x, y, z, occupancy, motion) in enumerate(rows):
        site = gemmi.SmallStructure.Site()
        site.label, site.element = f"{element}{number}", gemmi.Element(element)
        site.fract, site.occ, site.u_iso = gemmi.Fractional(x, y, z), occupancy, motion
        small.add_site(site)
    small.setup_cell_images()
    sums = gemmi.StructureFactorCalculatorE(small.cell)
    theirs = np.array([sums.calculate_sf_from_small_structure(small, list(map(int, h))) for h in HKL])
    q = np.sqrt([small.cell.calculate_1_d2(list(map(int, h))) for h in HKL])
    mine = electron_structure_factors(structure_of(rows), CELL, HKL, 120.0) * np.pi * small.cell.volume / gamma(120.0)
    inside = q < 4
    np.testing.assert_allclose(mine[inside], theirs.conj()[inside], atol=1e-4)  # their tables are float32


@given(rows=atoms, shift=st.tuples(*[st.floats(-1, 1)] * 3))
def test_friedel_and_the_origin(rows, shift):
    structure = structure_of(rows)
    u = electron_structure_factors(structure, CELL, HKL, 200.0)
    np.testing.assert_allclose(u[::-1], u.conj(), atol=1e-15)
    moved = Structure(structure.element, structure.xyz + shift, structure.occupancy, structure.u_iso)
    phase = np.exp(-2j * np.pi * HKL @ np.array(shift))
    np.testing.assert_allclose(electron_structure_factors(moved, CELL, HKL, 200.0), u * phase, atol=1e-12)
    assert u[len(u) // 2].real > 0  # the mean potential attracts


def test_motion_and_absorption():
    still, moving = (Structure(("Sr",), np.zeros((1, 3)), np.ones(1), np.array([u])) for u in (0.0, 0.02))
    one, other = (electron_structure_factors(s, CELL, HKL, 120.0) for s in (still, moving))
    cell = gemmi.UnitCell(*CELL)
    q2 = np.array([cell.calculate_1_d2(list(map(int, h))) for h in HKL])
    np.testing.assert_allclose(other / one, np.exp(-2 * np.pi**2 * 0.02 * q2), rtol=1e-10)
    lossy = electron_structure_factors(still, CELL, HKL, 120.0, absorption=0.1)
    np.testing.assert_allclose(lossy, one * (1 + 0.1j), rtol=1e-14)


@pytest.mark.parametrize("element", ["C", "O", "Si", "Ti", "Zn", "Sr", "Au"])
def test_scattering_factors_obey_mott_and_bethe(element):
    """f = m e^2 / (2 h^2 eps0) (Z - f_x) / s^2 with the independent X-ray table; 0.023934 / A for s in 1/A."""
    x = np.array(gemmi.Element(element).it92.get_coefs())
    s = np.linspace(0.15, 1.9, 40)
    f_x = np.exp(-np.outer(s**2, x[4:8])) @ x[:4] + x[8]
    mott = 0.0239337 * (gemmi.Element(element).atomic_number - f_x) / s**2
    np.testing.assert_allclose(scattering_factor(element, 2 * s), mott, rtol=0.04)


def test_beyond_the_fitted_range_the_nucleus_scatters():
    f = scattering_factor("Zn", np.array([4.0, 4.0 + 1e-9, 8.0, -8.0]))
    np.testing.assert_allclose(f, f[0] * np.array([1, 1, 0.25, 0.25]), rtol=1e-8)


def test_another_table_of_factors():
    structure = Structure(("X", "Y"), np.array([[0.0, 0, 0], [0.5, 0, 0]]), np.ones(2), np.zeros(2))
    hkl, cell = np.array([[1, 0, 0], [2, 0, 0]]), (2, 2, 2, 90, 90, 90)
    u = electron_structure_factors(structure, cell, hkl, 100.0, factors=lambda element, g: np.full(len(g), 2.0))
    np.testing.assert_allclose(u, gamma(100.0) / (8 * np.pi) * np.array([0, 4]), atol=1e-15)


def test_what_cannot_be_is_said():
    structure = Structure(("Sr",), np.zeros((1, 3)), np.ones(1), np.zeros(1))
    for kv in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="voltage must be positive"):
            electron_structure_factors(structure, CELL, HKL, kv)
    with pytest.raises(ValueError, match="absorption"):
        electron_structure_factors(structure, CELL, HKL, 120.0, absorption=-0.1)
    for element in ("Es", "X", "nothing"):
        with pytest.raises(ValueError, match="no electron scattering factor"):
            scattering_factor(element, np.array([0.1]))
