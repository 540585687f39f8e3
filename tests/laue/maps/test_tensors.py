"""Strains in the axes of the sample and the crystal, by a deformation that is known there; and their uncertainties."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import polar

from mlindex.crystal.rotation import misorientation, random_rotations
from mlindex.crystal.strain import b_from_strain, deviatoric_strain, u_from_ub, ub_from_strain
from mlindex.laue.geometry import sample_from_lab
from mlindex.laue.maps import tensors
from mlindex.laue.maps.phases import orientation, reciprocal_from_direct
from mlindex.laue.materials import material
from mlindex.laue.record import strain_norm

CRYSTALS = ("Cu", "Ti", "TiO2", "Al2O3", "ZrO2", "CuWO4")


def deviator(rng: np.random.Generator, size: float) -> np.ndarray:
    draw = rng.normal(size=(3, 3)) * size
    draw = (draw + draw.T) / 2
    return draw - np.eye(3) * np.trace(draw) / 3


@pytest.mark.parametrize("name", CRYSTALS)
@pytest.mark.parametrize("seed", range(3))
def test_a_strain_imposed_in_the_sample_comes_back(name, seed):
    """The sample is strained as a body: every lattice vector by 1 + e. What is measured in the crystal, turned into
    the sample, is e, up to its square."""
    rng = np.random.default_rng(seed)
    crystal, imposed = material(name), deviator(rng, 1e-3)
    to_sample = sample_from_lab(40.0)
    (u,) = random_rotations(rng, 1)
    in_lab = to_sample.T @ imposed @ to_sample
    ub = np.linalg.inv(np.eye(3) + in_lab).T @ u @ crystal.b  # reciprocal vectors go with the inverse transpose
    measured = deviatoric_strain(ub, crystal.cell)
    rotation = to_sample @ u_from_ub(ub) @ reciprocal_from_direct(crystal.cell)
    found = tensors.turned(measured[None], rotation[None])[0]
    np.testing.assert_allclose(found, imposed, atol=2e-5)
    assert np.abs(measured - found).max() > 1e-4, "the axes are not the same"
    np.testing.assert_allclose(tensors.turned(found[None], rotation.T[None])[0], measured, atol=1e-15)


@pytest.mark.parametrize("name", ["Ti", "TiO2", "Al2O3", "ZrO2"])
def test_equivalent_settings_have_one_strain(name):
    """The same lattice described in another setting: its own deviatoric strain there is the first one, turned."""
    rng = np.random.default_rng(5)
    crystal, (u,) = material(name), random_rotations(np.random.default_rng(6), 1)
    strain = deviator(rng, 5e-4)
    ub = ub_from_strain(u, crystal.cell, strain)
    direct = reciprocal_from_direct(crystal.cell)
    for turn, operation in zip(crystal.rotations, crystal.operations, strict=True):
        setting = np.rint(np.linalg.inv(crystal.b) @ turn @ crystal.b)
        np.testing.assert_allclose(np.linalg.inv(crystal.b) @ turn @ crystal.b, setting, atol=1e-6)
        assert abs(round(float(np.linalg.det(operation)))) == 1
        other = deviatoric_strain(ub @ setting, crystal.cell)
        rotation = (turn @ direct).T @ direct
        np.testing.assert_allclose(tensors.turned(strain[None], rotation[None])[0], other, atol=3e-6)


def test_direct_and_reciprocal_axes():
    """a lies along x of the direct axes, and a* along x of the reciprocal ones, in every crystal."""
    for name in CRYSTALS:
        crystal = material(name)
        turn = reciprocal_from_direct(crystal.cell)
        np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-12)
        assert np.linalg.det(turn) == pytest.approx(1)
        a = turn @ np.array([crystal.cell[0], 0, 0])  # in the reciprocal axes
        np.testing.assert_allclose(a @ crystal.b, [1, 0, 0], atol=1e-12)  # a . a* = 1, a . b* = a . c* = 0
        assert b_from_strain(crystal.cell, np.zeros((3, 3))) == pytest.approx(crystal.b)


def test_uncertainties_by_draws():
    rng = np.random.default_rng(0)
    rotation = random_rotations(rng, 1)[0]
    esd = np.array([[3.0, 2.0, 1.0], [2.0, 4.0, 2.5], [1.0, 2.5, 3.5]]) * 1e-5
    strain = deviator(rng, 1e-3)
    draw = np.triu(rng.normal(size=(40_000, 3, 3)) * esd)
    draw = strain + draw + np.swapaxes(np.triu(draw, 1), 1, 2)
    spread = tensors.turned(draw, np.broadcast_to(rotation, draw.shape)).std(0)
    np.testing.assert_allclose(tensors.turned_esd(esd[None], rotation[None])[0], spread, rtol=0.02)
    np.testing.assert_allclose(tensors.turned_esd(esd[None], np.eye(3)[None])[0], esd, rtol=1e-12)
    assert tensors.equivalent_esd(strain[None], esd[None])[0] == pytest.approx(
        tensors.equivalent(draw, 0 * draw).std(), rel=0.02
    )


def test_equivalent_strain():
    """In uniaxial stress without change of volume it is the strain along the axis (von Mises)."""
    strain = np.diag([1.0, -0.5, -0.5]) * 2e-3
    assert tensors.equivalent(strain[None], np.zeros((1, 3, 3)))[0] == pytest.approx(2e-3)
    esd = np.full((3, 3), 1e-4)
    for one in (strain, np.zeros((3, 3))):
        norm, spread = strain_norm(one, esd)
        assert tensors.equivalent(one[None], 0 * esd[None])[0] == pytest.approx(np.sqrt(2 / 3) * norm)
        assert tensors.equivalent_esd(one[None], esd[None])[0] == pytest.approx(np.sqrt(2 / 3) * spread)


def test_errors_add_nothing_to_the_equivalent_strain():
    """The mean square over draws is that of the true strain, with errors as correlated as those of deviators are."""
    rng = np.random.default_rng(1)
    basis = np.array([deviator(rng, 1e-4) for _ in range(5)])
    noise = np.einsum("nk,kij->nij", rng.normal(size=(40_000, 5)), basis)
    esd = np.broadcast_to(np.sqrt((basis**2).sum(0)), noise.shape)
    strain = deviator(rng, 1e-3)
    found, plain = (tensors.equivalent(strain + noise, e) for e in (esd, 0 * esd))
    true = tensors.equivalent(strain[None], 0 * esd[:1])[0]
    assert np.mean(found**2) == pytest.approx(true**2, rel=2e-3) and np.mean(plain**2) > 1.01 * true**2
    none = tensors.equivalent(noise, esd)
    assert 0.3 < np.mean(none == 0) < 0.8 and np.mean(none > 2 * tensors.equivalent_esd(noise, esd)) < 0.25


def test_six_components_by_name():
    tensor = np.arange(9.0).reshape(1, 3, 3)
    names = {"x": 0, "y": 1, "z": 2}
    expected = [tensor[0, names[c[0]], names[c[1]]] for c in tensors.COMPONENTS]
    symmetric = tensors.six(tensor + np.swapaxes(tensor, 1, 2))[0]
    np.testing.assert_array_equal(tensors.six(tensor)[0], expected)
    assert symmetric[3] == tensor[0, 1, 2] + tensor[0, 2, 1]


def test_the_orientation_of_a_strained_crystal_does_not_depend_on_its_setting():
    """Described in every equivalent setting it is the same up to a symmetry of the crystal; that by axes is not."""
    rng = np.random.default_rng(4)
    copper, (u,) = material("Cu"), random_rotations(np.random.default_rng(6), 1)
    ub = ub_from_strain(u, copper.cell, deviator(rng, 2e-3))
    first = orientation(ub, copper.b)
    np.testing.assert_allclose(first, polar(ub @ np.linalg.inv(copper.b))[0], atol=1e-12)
    by_axes = []
    for turn in copper.rotations:
        other = ub @ np.rint(np.linalg.inv(copper.b) @ turn @ copper.b)
        assert misorientation(orientation(other, copper.b), first, copper.rotations) < 1e-6
        by_axes.append(misorientation(u_from_ub(other), u_from_ub(ub), copper.rotations))
    assert max(by_axes) > 0.05
