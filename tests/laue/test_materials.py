"""Materials: what each description gives, bond lengths of the built-in ones, rays against a direct enumeration."""

from __future__ import annotations

import gemmi
import numpy as np
import pytest

from mlindex.crystal.metric import direct_metric_from_cell, matrix_from_metric
from mlindex.laue.geometry import KEV_ANGSTROM, Detector
from mlindex.laue.materials import TABLE, material, rays
from mlindex.records import InputError

DETECTOR = Detector(79.553, 979.32, 932.31, 0.37, 0.447)
# The shortest distances between the atoms (angstrom), from handbooks of bond lengths or the papers in the table
NEAREST = {
    "Cu": (2.55, 2.56), "Al": (2.86, 2.87), "Fe": (2.48, 2.49), "Ti": (2.89, 2.96), "Zr": (3.1, 3.24),
    "Si": (2.35, 2.36), "Ge": (2.44, 2.46), "C_diamond": (1.54, 1.55), "GaAs": (2.44, 2.46), "GaN": (1.94, 1.97),
    "ZnO": (1.79, 1.99), "MgO": (2.10, 2.11), "UO2": (2.36, 2.38), "TiO2": (1.94, 1.99), "SrTiO3": (1.95, 1.96),
    "Al2O3": (1.84, 1.87), "ZrO2": (2.04, 2.06), "CuWO4": (1.74, 1.78), "Sn": (3.0, 3.05),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(TABLE))
def test_built_in_materials(name):
    found = material(name)
    assert found.name == name and found.source
    assert found.laue_group == gemmi.SpaceGroup(found.group.name).laue_str()
    assert found.group.misfit(found.cell) < 1e-9
    metric = matrix_from_metric(direct_metric_from_cell(found.cell))
    near = np.stack(np.meshgrid(*[np.arange(-1, 2)] * 3, indexing="ij"), -1).reshape(-1, 3)
    vector = found.structure.xyz[:, None, None] - found.structure.xyz[None, :, None] + near
    distance = np.sqrt(np.einsum("...i,ij,...j->...", vector, metric, vector))
    shortest = distance[distance > 1e-6].min()
    assert 1.5 < shortest < 3.6
    low, high = NEAREST.get(name, (1.5, 3.6))
    assert low <= shortest <= high


def test_rotations_leave_the_lattice_alone():
    for name in ("Cu", "Ti", "ZrO2", "CuWO4", "Al2O3", "TiO2"):
        found = material(name)
        turned = np.linalg.inv(found.b) @ found.rotations @ found.b
        np.testing.assert_allclose(turned, np.rint(turned), atol=1e-9)
        square = found.rotations @ np.swapaxes(found.rotations, 1, 2)
        np.testing.assert_allclose(square, np.broadcast_to(np.eye(3), square.shape), atol=1e-9)
        np.testing.assert_allclose(np.linalg.det(found.rotations), 1, atol=1e-9)


def enumerated(found, emax, half):
    """Orders of every ray by brute force with gemmi: {primitive hkl: {order}}, one of each pair hkl, -hkl."""
    q_max = 2 * emax * np.sin(half) / KEV_ANGSTROM
    cell = gemmi.UnitCell(*found.cell)
    hkl = gemmi.make_miller_array(cell, gemmi.SpaceGroup("P 1"), 1 / q_max)
    absent = gemmi.SpaceGroup(found.group.name).operations().systematic_absences(hkl)
    rows: dict[tuple[int, ...], set[int]] = {}
    for h in hkl[~absent].tolist():
        order = int(np.gcd.reduce(h))
        primitive = tuple(v // order for v in h)
        if max(primitive, tuple(-v for v in primitive)) == primitive:
            rows.setdefault(primitive, set()).add(order)
        else:
            rows.setdefault(tuple(-v for v in primitive), set()).add(order)
    return rows


@pytest.mark.parametrize(
    "text",
    ["X:Fd-3m:1:5.4309,5.4309,5.4309,90,90,90", "Y:P21/c:5.1505,5.2116,5.3173,90,99.23,90", "Z:P-1:4,5,6,80,95,100"],
)
def test_rays_against_an_enumeration(text):
    found = material(text)
    table = rays(found, 12.0)
    expected = enumerated(found, 12.0, np.pi / 2)
    orders = {
        tuple(h): {n for n in range(1, 31) if bits >> n & 1}
        for h, bits in zip(table.hkl.tolist(), table.orders.tolist(), strict=True)
    }
    assert orders == expected
    assert np.all(np.gcd.reduce(table.hkl, axis=1) == 1)
    np.testing.assert_allclose(table.q, np.linalg.norm(table.hkl @ found.b.T, axis=1), rtol=1e-12)
    number = np.arange(1, table.strength.shape[1] + 1)
    np.testing.assert_array_equal(table.strength > 0, (table.orders[:, None] >> number) & 1 == 1)


def test_the_ray_of_silicon_100_exists_although_100_and_200_are_extinct():
    table = rays(material("Si"), 23.0, DETECTOR)
    row = int(np.flatnonzero(np.all(table.hkl == [1, 0, 0], axis=1))[0])
    assert [n for n in range(1, 31) if table.orders[row] >> n & 1][:2] == [4, 8]
    row = int(np.flatnonzero(np.all(table.hkl == [1, 1, 1], axis=1))[0])
    assert not table.orders[row] >> 2 & 1  # 222, by the atoms
    lowest = np.argmax(table.strength > 0, axis=1) + 1
    assert np.all(np.diff(lowest * table.q) > -1e-8)
    assert len(rays(material("Si"), 23.0, DETECTOR, faintest=0.05).hkl) < len(table.hkl)
    assert rays(material("Si"), 23.0, DETECTOR) is table


def test_descriptions(tmp_path):
    plain = material("Zirconia:P 1 21/c 1:5.1505,5.2116,5.3173,90,99.23,90")
    assert plain.name == "Zirconia" and plain.laue_group == "2/m" and plain.structure is None
    assert np.array_equal(plain.cell, material("ZrO2").cell) and plain.digest != material("ZrO2").digest
    assert material("Si1:Fd-3m:1:5.43,5.43,5.43,90,90,90").group.name == "F d -3 m:1"
    assert material("A:R-3c:5.13,5.13,5.13,55.3,55.3,55.3").laue_group == "-3m"
    path = tmp_path / "copper.cif"
    path.write_text(
        "data_cu\n_cell_length_a 3.615(1)\n_cell_length_b 3.615(1)\n_cell_length_c 3.615(1)\n_cell_angle_alpha 90\n"
        "_cell_angle_beta 90\n_cell_angle_gamma 90\n_space_group_name_H-M_alt 'F m -3 m'\nloop_\n_atom_site_label\n"
        "_atom_site_fract_x\n_atom_site_fract_y\n_atom_site_fract_z\nCu1 0 0 0\n"
    )
    copper = material(str(path))
    assert copper.name == "copper" and len(copper.structure.element) == 4
    np.testing.assert_allclose(
        rays(copper, 23.0, DETECTOR).strength, rays(material("Cu"), 23.0, DETECTOR).strength, rtol=1e-3
    )


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("Unobtainium", "unknown material"),
        ("nowhere.cif", "no such file"),
        ("A:Pm-3m:4,4,4,90,90", "six numbers"),
        ("A:Pm-3m:4,4,4,90,90,x", "no cell"),
        ("A:Pq:4,4,4,90,90,90", "unknown space group"),
        ("A:Pm-3m:4,4,5,90,90,90", "symmetry"),
        ("A:P1:4,4,5,20,20,90", "angles"),
        ("A:P1:4,4,-5,90,90,90", "positive"),
    ],
)
def test_bad_descriptions(text, word):
    with pytest.raises(InputError, match=word):
        material(text)


def test_bad_cifs(tmp_path):
    path = tmp_path / "bad.cif"
    path.write_text("data_x\n_cell_length_a 5\n")
    with pytest.raises(InputError, match=r"bad\.cif: none of its data blocks"):
        material(str(path))
