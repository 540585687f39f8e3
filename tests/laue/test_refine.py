"""Refinement: derivatives by differences, the least-squares minimum by SciPy, strains of every crystal system."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import least_squares

from mlindex.crystal.rotation import misorientation, random_rotations, rotation_from_vector
from mlindex.crystal.strain import deviatoric_strain, u_from_ub, ub_from_strain
from mlindex.laue import assign, refine
from mlindex.laue.geometry import Detector
from mlindex.laue.materials import material, rays
from mlindex.laue.record import strain_is_real, strain_norm, strain_size
from mlindex.laue.simulate import spots_of

DETECTOR = Detector(79.553, 979.32, 932.31, 0.37, 0.447)
PLANE = DETECTOR.plane
BAND = (5.0, 23.0)
SYSTEMS = {
    "cubic": "Si",
    "hexagonal": "Ti",
    "trigonal": "Al2O3",
    "tetragonal": "TiO2",
    "orthorhombic": "forsterite:Pbnm:4.756,10.207,5.98,90,90,90",
    "monoclinic": "ZrO2",
    "triclinic": "CuWO4",
}


def grain(rng, chosen, strain=0.0):
    """(ub, u, strain, hkl, xy) of a random grain without noise."""
    u = random_rotations(rng, 1)[0]
    e = rng.normal(size=(3, 3)) * strain
    e = (e + e.T) / 2
    e -= np.eye(3) * np.trace(e) / 3
    ub = ub_from_strain(u, chosen.cell, e)
    seen = spots_of(ub, rays(chosen, BAND[1], DETECTOR), DETECTOR, BAND)
    return ub, u, e, seen.hkl.astype(float), np.stack([seen.x, seen.y], 1)


def test_gradients_are_those_of_differences():
    _, _, _, hkl, xy = grain(np.random.default_rng(0), material("GaN"))
    q = hkl @ material("GaN").b.T @ random_rotations(np.random.default_rng(0), 1)[0].T
    at, gradient = refine.pixels_and_gradients(PLANE, q)
    np.testing.assert_allclose(at, xy, atol=1e-6)
    for axis in range(3):
        step = np.zeros(3)
        step[axis] = 1e-6
        slope = (assign.projected(PLANE, q + step)[0] - assign.projected(PLANE, q - step)[0]) / 2e-6
        np.testing.assert_allclose(gradient[:, :, axis], slope, rtol=1e-5, atol=1e-2)


def test_moves_are_three_rotations_and_five_deviatoric_strains():
    moves = refine.MOVES.reshape(8, 3, 3)
    v = np.array([0.2, -0.5, 0.7])
    for axis in range(3):
        small = rotation_from_vector(1e-7 * np.eye(3)[axis])
        np.testing.assert_allclose((small @ v - v) / 1e-7, moves[axis] @ v, atol=1e-6)
    strains = moves[3:]
    np.testing.assert_allclose(strains, np.swapaxes(strains, 1, 2))
    np.testing.assert_allclose(np.trace(strains, axis1=1, axis2=2), 0, atol=1e-15)
    np.testing.assert_allclose(refine.MOVES[3:] @ refine.MOVES[3:].T, np.eye(5), atol=1e-15)


@settings(max_examples=15)
@given(seed=st.integers(0, 10**6), name=st.sampled_from(["Cu", "ZrO2"]))
def test_the_truth_is_recovered_without_noise(seed, name):
    rng = np.random.default_rng(seed)
    chosen = material(name)
    ub, _, _, hkl, xy = grain(rng, chosen, 1e-3)
    start = rotation_from_vector(rng.normal(size=3) * 5e-4) @ ub
    fit = refine.refined(start, hkl, xy, PLANE, sigma=1.0, prior=1.0, steps=8)
    assert np.abs(fit.residual).max() < 1e-5
    # Directions alone are measured: the matrix agrees up to its scale
    scale = np.cbrt(np.linalg.det(fit.ub) / np.linalg.det(ub))
    np.testing.assert_allclose(fit.ub / scale, ub, atol=1e-7)


def test_the_minimum_is_that_of_scipy():
    """With noise, the robust fit agrees with scipy.optimize.least_squares on the same loss, over the same moves."""
    rng = np.random.default_rng(4)
    ub, _, _, hkl, xy = grain(rng, material("Si"), 1e-3)
    xy = xy + rng.normal(scale=0.2, size=xy.shape)
    sigma = 0.25
    fit = refine.refined(ub, hkl, xy, PLANE, sigma=sigma, prior=10.0, steps=12)

    def loss(moves):
        moved = ub + (moves @ refine.MOVES).reshape(3, 3) @ ub
        square = ((xy - assign.projected(PLANE, hkl @ moved.T)[0]) ** 2).sum(1) / (4 * sigma) ** 2
        return np.sqrt(square / (1 + square))  # Geman and McClure

    best = least_squares(loss, np.zeros(8), x_scale=1e-4, xtol=1e-14, ftol=1e-14, gtol=1e-14)
    expected = ub + (best.x @ refine.MOVES).reshape(3, 3) @ ub
    ours = loss(np.linalg.lstsq(refine.MOVES.T, ((fit.ub - ub) @ np.linalg.inv(ub)).ravel(), rcond=None)[0])
    assert (ours**2).sum() <= (loss(best.x) ** 2).sum() * (1 + 1e-6)
    assert misorientation(u_from_ub(fit.ub), u_from_ub(expected)) < 2e-4


@pytest.mark.parametrize("system", SYSTEMS)
def test_strain_is_unbiased_and_its_uncertainty_right(system):
    """Twelve grains with 1e-3 and noise: mean error within its uncertainty, errors as large as their esd say."""
    rng = np.random.default_rng(7)
    chosen = material(SYSTEMS[system])
    errors, pulls, turns = [], [], []
    for _ in range(12):
        ub, _, _, hkl, xy = grain(rng, chosen, 1e-3)
        xy = xy + rng.normal(scale=0.2, size=xy.shape)
        result = refine.measured(ub, hkl, xy, PLANE, chosen, sigma=0.2)
        back = np.linalg.inv(result.setting)
        truth = deviatoric_strain(ub @ back, chosen.cell)
        errors.append((result.strain - truth)[np.triu_indices(3)])
        pulls.append(errors[-1] / result.strain_esd[np.triu_indices(3)])
        turns.append(float(misorientation(result.u, u_from_ub(ub @ back))))
        assert 0.1 < result.rms < 0.3
    errors, pulls = np.array(errors), np.array(pulls)
    assert np.median(np.abs(errors)) < 1e-4
    assert (np.abs(errors.mean(0)) < 4 * errors.std(0) / np.sqrt(12) + 1e-6).all()
    assert 0.6 < pulls.std() < 1.6
    assert np.median(turns) < 0.02


@pytest.mark.parametrize("name", ["Si", "ZrO2"])
def test_the_size_of_a_strain_is_without_bias_and_none_is_real_where_there_is_none(name):
    """Squares of sizes are those of the truth on average, and a strain that is not real is below its norm and 2 esd."""
    rng, chosen = np.random.default_rng(8), material(name)
    for strain, share in ((0.0, 0.0), (1e-4, None), (1e-3, 1.0)):
        excess, real, below, noise = [], [], [], []
        for _ in range(60):
            ub, _, e, hkl, xy = grain(rng, chosen, strain)
            found = refine.measured(ub, hkl, xy + rng.normal(scale=0.2, size=xy.shape), PLANE, chosen, sigma=0.2)
            norm, esd = strain_norm(found.strain, found.strain_esd)
            size = float(strain_size(found.strain, found.strain_esd))
            assert size <= norm
            excess.append(norm**2 - (found.strain_esd**2).sum() - (e**2).sum())
            noise.append((found.strain_esd**2).sum())
            real.append(strain_is_real(found.ub, chosen.cell))
            below.append(real[-1] or np.linalg.norm(e) < norm + 2 * esd)
        assert abs(np.mean(excess)) < 3 * np.std(excess) / np.sqrt(60) + 0.15 * np.mean(noise), strain
        assert share is None or np.mean(real) == share
        assert np.mean(below) > 0.95


def test_strain_that_is_not_there_does_not_blur_the_orientation():
    rng = np.random.default_rng(8)
    chosen = material("Cu")
    plain, strained = [], []
    for _ in range(12):
        ub, u, _, hkl, xy = grain(rng, chosen)
        xy = xy + rng.normal(scale=0.2, size=xy.shape)
        result = refine.measured(ub, hkl, xy, PLANE, chosen, sigma=0.2)
        plain.append(float(misorientation(result.u, u, chosen.rotations)))
        free = refine.refined(ub, hkl, xy, PLANE, sigma=0.2, prior=1e-2, steps=4)
        strained.append(float(misorientation(u_from_ub(free.ub), u, chosen.rotations)))
        assert np.abs(result.strain).max() > 0 and (result.strain_esd > 0).all()  # measured all the same
    assert np.median(plain) < 0.004 and np.median(plain) < 0.6 * np.median(strained)


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6), name=st.sampled_from(["Cu", "Ti", "TiO2", "ZrO2", "CuWO4"]))
def test_equivalent_orientations_come_out_as_one(seed, name):
    rng = np.random.default_rng(seed)
    chosen = material(name)
    ub, _, _, hkl, _ = grain(rng, chosen)
    other = chosen.rotations[rng.integers(len(chosen.rotations))]
    turned = ub @ np.linalg.inv(chosen.b) @ other @ chosen.b
    both = []
    for one in (ub, turned):
        setting = refine.standard_setting(one, chosen)
        both.append(one @ np.linalg.inv(setting))
        assert round(np.linalg.det(setting)) == 1
        np.testing.assert_allclose(one @ hkl.T, both[-1] @ (setting @ hkl.T), atol=1e-9)
    np.testing.assert_allclose(both[0], both[1], atol=1e-9)
    angle = misorientation(u_from_ub(both[0]), np.eye(3))
    assert angle == pytest.approx(float(misorientation(np.eye(3), u_from_ub(ub), chosen.rotations)), abs=1e-6)
