"""Structure factors, absences and Laue classes against gemmi; strain against gemmi's cells and its round trip."""

from __future__ import annotations

import gemmi
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlindex.crystal import scattering, spacegroup, strain
from mlindex.crystal.metric import b_matrix_from_cell, q2_from_hkl, reciprocal_metric_from_cell
from mlindex.crystal.rotation import random_rotations, rotation_angle
from mlindex.laue.materials import TABLE

HKL = np.array(
    [(h, k, l) for h in range(-4, 5) for k in range(-4, 5) for l in range(-4, 5) if (h, k, l) != (0, 0, 0)]  # noqa: E741
)


def gemmi_structure(name):
    symbol, cell, sites, _ = TABLE[name]
    small = gemmi.SmallStructure()
    small.cell = gemmi.UnitCell(*cell)
    small.spacegroup_hm = symbol
    small.determine_and_set_spacegroup("1")
    for index, (element, *fraction) in enumerate(sites):
        site = gemmi.SmallStructure.Site()
        site.label, site.element, site.occ = f"{element}{index}", gemmi.Element(element), 1.0
        site.fract = gemmi.Fractional(*fraction)
        small.add_site(site)
    small.setup_cell_images()
    small.change_occupancies_to_crystallographic()
    return small


@pytest.mark.parametrize("name", ["Cu", "Si", "Ti", "GaN", "ZrO2", "CuWO4", "Al2O3", "TiO2"])
def test_structure_factors_against_gemmi(name):
    symbol, cell, sites, _ = TABLE[name]
    structure = scattering.structure_from_sites(spacegroup.space_group(symbol), cell, sites)
    small = gemmi_structure(name)
    authority = gemmi.StructureFactorCalculatorX(small.cell)
    expected = np.array([authority.calculate_sf_from_small_structure(small, hkl.tolist()) for hkl in HKL[::5]])
    found = scattering.structure_factors(structure, cell, HKL[::5])
    np.testing.assert_allclose(found, expected, atol=2e-4 * np.abs(expected).max())


def test_intensities_have_the_symmetry_and_the_absences_of_the_group():
    for name, (symbol, cell, sites, _) in TABLE.items():
        group = spacegroup.space_group(symbol)
        squared = scattering.intensities(scattering.structure_from_sites(group, cell, sites), cell, HKL)
        assert np.all(squared[group.absent(HKL)] == 0), name
        orbit = group.orbit(HKL[::7])
        turned = scattering.intensities(
            scattering.structure_from_sites(group, cell, sites), cell, orbit.reshape(-1, 3)
        ).reshape(orbit.shape[:2])
        # the printed coordinates of special positions (1/3) have all their digits here, so the match is close
        np.testing.assert_allclose(turned, squared[::7, None] + 0 * turned, rtol=1e-6, atol=1e-6 * squared.max())


def test_silicon_222_is_extinct_by_its_atoms_alone():
    """Not a systematic absence of Fd-3m, but zero for atoms on 8a; 200 is absent and 400 is strong."""
    group = spacegroup.space_group("F d -3 m:1")
    cell = (5.431, 5.431, 5.431, 90.0, 90.0, 90.0)
    structure = scattering.structure_from_sites(group, cell, (("Si", 0.0, 0.0, 0.0),))
    hkl = np.array([(2, 2, 2), (2, 0, 0), (4, 0, 0), (1, 1, 1)])
    assert group.absent(hkl).tolist() == [False, True, False, False]
    assert (scattering.intensities(structure, cell, hkl) > 0).tolist() == [False, False, True, True]


@pytest.mark.parametrize("edge", [3.0, 30.0, 100.0])
@pytest.mark.parametrize("digits", [3, 4])
def test_special_positions_of_few_digits_are_those_they_stand_for(edge, digits):
    """2c of P63/mmc at 1/3, 2/3, and its 6h, where y = 2x in print differs by a digit."""
    cell, group = (edge, edge, 1.6 * edge, 90.0, 90.0, 120.0), spacegroup.space_group("P 63/m m c")
    third, two = round(1 / 3, digits), round(2 / 3, digits)
    double = round(2 * 0.12345, digits)
    sites = (("Mg", third, two, 0.25), ("O", round(double / 2, digits), double, 0.25))
    structure = scattering.structure_from_sites(group, cell, sites)
    assert structure.element == ("Mg",) * 2 + ("O",) * 6
    np.testing.assert_allclose(sorted(structure.xyz[:2, 0]), [1 / 3, 2 / 3], atol=1e-9)


@pytest.mark.parametrize("edge", [4.0, 10.0, 40.0, 100.0])
@pytest.mark.parametrize(("off", "atoms"), [(0.03, 1), (0.08, 2), (0.3, 2)])
def test_images_of_a_disordered_atom_are_told_apart_by_their_distance(edge, off, atoms):
    """Half an atom `off` angstrom from its image in a centre of symmetry, in a cell of any size."""
    cell, group = (edge, edge, edge, 90.0, 90.0, 90.0), spacegroup.space_group("P -1")
    place = 0.5 + off / 2 / edge
    structure = scattering.structure_from_sites(group, cell, (("O", place, 0.5, 0.5),), occupancy=(0.5,))
    assert len(structure.element) == atoms
    full = scattering.structure_from_sites(group, cell, (("O", place, 0.5, 0.5),))
    assert len(full.element) == 1 and full.xyz[0] == pytest.approx(0.5)


def test_absences_of_every_group_against_gemmi():
    hkl = np.ascontiguousarray(HKL[::3], np.int32)
    for group in gemmi.spacegroup_table():
        found = spacegroup.space_group_from_triplets([op.triplet() for op in group.operations()])
        assert found.laue_group == group.laue_str()
        np.testing.assert_array_equal(found.absent(hkl), group.operations().systematic_absences(hkl))


def test_a_group_in_an_unnamed_setting_has_its_laue_class():
    for group in list(gemmi.spacegroup_table())[::9]:
        change = gemmi.Op("x+y,y+2*z,z")
        operations = group.operations()
        operations.change_basis_forward(change)
        found = spacegroup.space_group_from_triplets([op.triplet() for op in operations])
        assert found.laue_group == group.laue_str()


def test_axes_choose_the_setting_of_a_rhombohedral_group():
    assert spacegroup.space_group("R -3 c", 55.3, 55.3).name.endswith(":R")
    assert spacegroup.space_group("R -3 c", 90.0, 120.0).name.endswith(":H")
    assert spacegroup.space_group("167", 55.3, 55.3).name.endswith(":R")
    assert spacegroup.space_group("225").name == "F m -3 m"
    for name in ("P 42/q", "231", "0"):
        with pytest.raises(ValueError, match="unknown space group"):
            spacegroup.space_group(name)


def test_a_cell_must_have_the_symmetry():
    group = spacegroup.space_group("P 63/m m c")
    assert group.misfit((2.95, 2.95, 4.68, 90, 90, 120)) < 1e-12
    assert group.misfit((2.95, 2.97, 4.68, 90, 90, 120)) > 5e-3


def test_atoms_of_a_cif(tmp_path):
    small = gemmi_structure("ZrO2")
    text = small.make_cif_block().as_string()
    path = tmp_path / "zirconia.cif"
    path.write_text(text)
    crystal = scattering.crystal_from_cif(path)
    symbol, cell, sites, _ = TABLE["ZrO2"]
    expected = scattering.structure_from_sites(spacegroup.space_group(symbol), cell, sites)
    np.testing.assert_allclose(crystal.cell, cell, rtol=1e-6)
    np.testing.assert_allclose(
        scattering.intensities(crystal.structure, crystal.cell, HKL),
        scattering.intensities(expected, cell, HKL),
        rtol=1e-3,
        atol=1.0,
    )
    for content, word in (("data_x\n_cell_length_a 5\n", "unit cell"), ("nothing here", "CIF")):
        path.write_text(content)
        with pytest.raises(ValueError, match=word):
            scattering.crystal_from_cif(path)


def cif_of(symbol, cell, sites):
    names = ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma")
    head = "".join(f"_cell_{name} {value}\n" for name, value in zip(names, cell, strict=True))
    columns = "".join(f"_atom_site_{k}\n" for k in ("label", "fract_x", "fract_y", "fract_z", "occupancy"))
    return f"data_x\n{head}_symmetry_space_group_name_H-M '{symbol}'\nloop_\n{columns}" + "\n".join(sites) + "\n"


SPECIAL = {
    "ZnO": ("P 63 m c", (3.25, 3.25, 5.207, 90, 90, 120), "Zn1 {0} {1} 0 1|O1 {0} {1} .382 1", 4),
    "AlB2": ("P 6/m m m", (3.005, 3.005, 3.257, 90, 90, 120), "Al1 0 0 0 1|B1 {0} {1} 0.5 1", 3),
    "large": ("P -3 m 1", (14.2, 14.2, 9.1, 90, 90, 120), "Al1 0 0 .17 1|O1 {0} {1} .213 1|O2 0.2 0.4 .4 1", 10),
    "half": ("P 63 m c", (3.25, 3.25, 5.207, 90, 90, 120), "Zn1 {0} {1} 0 0.5|Cd1 {0} {1} 0 0.5|O1 {0} {1} .382 1", 6),
}


@pytest.mark.parametrize("digits", [2, 3, 4])
@pytest.mark.parametrize("name", SPECIAL)
def test_special_positions_of_a_cif_may_be_written_with_few_digits(tmp_path, name, digits):
    """Against the CIF with all its digits; the numbers of atoms are the multiplicities of Wyckoff's letters."""
    symbol, cell, sites, count = SPECIAL[name]
    rounded, cut = f"{2 / 3:.{digits}f}", f"{2 / 3 - 0.5 * 10**-digits:.{digits}f}"
    exact, third = (f"{1 / 3:.15f}", f"{2 / 3:.15f}"), f"{1 / 3:.{digits}f}"
    (tmp_path / "exact.cif").write_text(cif_of(symbol, cell, sites.format(*exact).split("|")))
    expected = scattering.crystal_from_cif(tmp_path / "exact.cif").structure
    assert len(expected.element) == count
    for number, coordinates in enumerate(((third, rounded), (third, cut))):
        path = tmp_path / f"{number}.cif"
        path.write_text(cif_of(symbol, cell, sites.format(*coordinates).split("|")))
        found = scattering.crystal_from_cif(path).structure
        assert found.element == expected.element
        squared = [scattering.intensities(one, cell, HKL[::5]) for one in (found, expected)]
        np.testing.assert_allclose(*squared, atol=1e-9 * squared[1].max())


def test_an_atom_without_coordinates_is_named(tmp_path):
    (tmp_path / "x.cif").write_text(cif_of("P m -3 m", (4.006,) * 3 + (90,) * 3, ["Ba1 0 0 0 1", "O7 ? ? . 1"]))
    with pytest.raises(ValueError, match="its atom O7 has no coordinates"):
        scattering.crystal_from_cif(tmp_path / "x.cif")


def test_disordered_atoms_beside_a_special_position_stay_apart(tmp_path):
    """The eight sites of titanium in BaTiO3, 0.1 angstrom apart, and oxygen on either side of a mirror."""
    sites = ["Ba1 0 0 0 1", "Ti1 0.487 0.487 0.487 0.125", "O1 0.5 0.5 0.03 0.5"]
    (tmp_path / "x.cif").write_text(cif_of("P m -3 m", (4.006,) * 3 + (90,) * 3, sites))
    structure = scattering.crystal_from_cif(tmp_path / "x.cif").structure
    assert [structure.element.count(e) for e in ("Ba", "Ti", "O")] == [1, 8, 6]
    assert structure.occupancy.sum() == pytest.approx(1 + 1 + 3)


CELLS = st.sampled_from([row[1] for row in TABLE.values()] + [(7.1, 7.9, 5.6, 89.9, 101.1, 106.0)])
SMALL = st.lists(st.floats(-3e-3, 3e-3), min_size=6, max_size=6)


def deviatoric(values):
    matrix = np.array([[values[0], values[3], values[4]], [0, values[1], values[5]], [0, 0, values[2]]])
    matrix = matrix + np.triu(matrix, 1).T
    return matrix - np.eye(3) * np.trace(matrix) / 3


@given(CELLS, SMALL, st.integers(0, 1000), st.floats(0.9, 1.1))
def test_strain_round_trip_for_every_scale_and_orientation(cell, values, seed, scale):
    given_strain = deviatoric(values)
    u = random_rotations(np.random.default_rng(seed), 1)[0]
    ub = strain.ub_from_strain(u, cell, given_strain)
    np.testing.assert_allclose(strain.deviatoric_strain(scale * ub, cell), given_strain, atol=1e-12)
    assert rotation_angle(strain.u_from_ub(scale * ub).T @ u) < 1e-7
    np.testing.assert_allclose(
        strain.ub_from_strain(u, cell, 0 * given_strain), u @ b_matrix_from_cell(cell), atol=1e-12
    )


@given(CELLS, SMALL)
def test_strain_is_that_between_the_cells_of_gemmi(cell, values):
    """T = A A0^-1 with gemmi's orthogonalization matrices (x along a, b in the plane xy)."""
    strained = strain.cell_from_ub(strain.b_from_strain(cell, deviatoric(values)))
    a, a0 = (np.array(gemmi.UnitCell(*c).orth.mat.tolist()) for c in (strained, cell))
    np.testing.assert_allclose(strain.direct_matrix_from_cell(strained), a, atol=1e-9)
    t = a @ np.linalg.inv(a0)
    np.testing.assert_allclose((t + t.T) / 2 - np.eye(3), deviatoric(values), atol=1e-9)


def test_strain_in_jax():
    cell = np.array(TABLE["CuWO4"][1])
    values = np.stack([deviatoric(v) for v in np.random.default_rng(0).normal(size=(4, 6)) * 1e-3])
    with jax.enable_x64(True):
        b = jax.jit(lambda s: strain.b_from_strain(cell, s))(jnp.asarray(values))
        back = jax.jit(lambda m: strain.deviatoric_strain(m, cell))(b)
        u = jax.jit(strain.u_from_ub)(b)
    np.testing.assert_allclose(b, strain.b_from_strain(cell, values), atol=1e-12)
    np.testing.assert_allclose(back, values, atol=1e-12)
    np.testing.assert_allclose(u, np.broadcast_to(np.eye(3), (4, 3, 3)), atol=1e-12)


@pytest.mark.parametrize("name", ["Ag", "ZrO2", "CuWO4", "GaN"])
def test_b_matrix_against_gemmi(name):
    """The same |q| as gemmi's cell gives, and a* along x."""
    cell = TABLE[name][1]
    b = b_matrix_from_cell(cell)
    expected = [gemmi.UnitCell(*cell).calculate_1_d2(hkl.tolist()) for hkl in HKL[::11]]
    np.testing.assert_allclose(((HKL[::11] @ b.T) ** 2).sum(1), expected, rtol=1e-9)
    np.testing.assert_allclose(q2_from_hkl(reciprocal_metric_from_cell(cell), HKL[::11]), expected, rtol=1e-9)
    assert np.all(np.tril(b, -1) == 0)
