"""Inversion of patterns: derivatives against SciPy's Frechet derivative of the exponential, and laws of the origin."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import expm_frechet

from mlindex.bloch import beams, jacobian, judge, propagate, search, simulate

CELL = (3.905, 3.905, 3.905, 90.0, 90.0, 90.0)
CELL_OBLIQUE = (3.9, 5.1, 6.0, 90.0, 90.0, 104.0)


def geometry_of(count: int, steps: int, cell=CELL) -> beams.Geometry:
    tilt, _ = beams.tilt_disc(steps, 60.0)
    return beams.geometry(beams.shell_beams(cell, (0, 0, 1), count), tilt, cell=cell, zone=(0, 0, 1), voltage_kv=120.0)


def random_u(geometry: beams.Geometry, seed: int, largest: float = 0.08) -> np.ndarray:
    u = simulate.random_u(np.random.default_rng(seed), geometry.dhkl, largest)
    u[len(u) // 2] = 0.0
    return u


@pytest.mark.parametrize("strength", [0.0, 0.1])
def test_the_jacobian_is_the_frechet_derivative_also_at_equal_eigenvalues(strength):
    geometry = geometry_of(9, 1)
    how, phase = jacobian.unknowns(geometry), 7.3
    x = jacobian.parameters_from_u(random_u(geometry, 1, strength or 1e-3)) * bool(strength)
    rng = np.random.default_rng(2)
    for row in range(geometry.shape[0]):  # the untilted beam has equal diagonal elements on every shell
        with jax.enable_x64(True):
            value, slope = jacobian.intensity_and_jacobian(x, phase, geometry.excitation[row], how)
        direction = rng.normal(size=len(x) + 1)
        u, du = jacobian.u_from_parameters(x), jacobian.u_from_parameters(direction[:-1])
        a = u[geometry.index] + np.diag(geometry.excitation[row])
        da = phase * du[geometry.index] + direction[-1] * a
        psi, dpsi = (m[:, geometry.origin] for m in expm_frechet(1j * phase * a, 1j * da))
        np.testing.assert_allclose(value, np.abs(psi) ** 2, atol=1e-12)
        np.testing.assert_allclose(np.asarray(slope) @ direction, 2 * (psi.conj() * dpsi).real, atol=1e-10)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6))
def test_parameters_and_structure_factors_are_two_ways_to_say_the_same(seed):
    geometry = geometry_of(9, 1)
    u = random_u(geometry, seed)
    np.testing.assert_allclose(jacobian.u_from_parameters(jacobian.parameters_from_u(u)), u, atol=1e-15)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([CELL, CELL_OBLIQUE]))
def test_the_origin_that_is_reported_does_not_depend_on_the_origin(seed, cell):
    """U exp(2 pi i g.d) is the same crystal for every d: it has the same pattern, and is reported as the same."""
    geometry = geometry_of(9 if cell is CELL else 7, 1, cell)
    u = random_u(geometry, seed)
    shift = np.random.default_rng(seed).uniform(-1, 1, 3)
    moved = u * np.exp(2j * np.pi * geometry.dhkl @ shift)
    told = judge.with_origin(u, geometry)
    np.testing.assert_allclose(judge.with_origin(moved, geometry), told, atol=1e-12)
    pattern = propagate.intensities(u, geometry, 200.0)
    np.testing.assert_allclose(propagate.intensities(told, geometry, 200.0), pattern, atol=1e-12)
    np.testing.assert_allclose(told, told[::-1].conj(), atol=1e-15)


def test_fringes_name_the_thickness():
    geometry = geometry_of(9, 9)
    pattern = propagate.intensities(random_u(geometry, 3, 0.05), geometry, 320.0)
    candidates = search.thickness_candidates(pattern, geometry, (50.0, 600.0))
    assert np.abs(candidates - 320.0).min() < 6.0


@pytest.mark.parametrize("seed", [0, 1])
def test_a_pattern_is_inverted_blind(seed):
    geometry = geometry_of(5, 6)
    truth = judge.with_origin(random_u(geometry, seed), geometry)
    pattern = propagate.intensities(truth, geometry, 240.0)
    best = search.invert(pattern, geometry, thickness=(100.0, 500.0), seed=seed)[0]
    assert best.r_factor < 1e-6
    assert best.thickness == pytest.approx(240.0, abs=1e-3)
    assert best.undetermined == 0
    np.testing.assert_allclose(best.u, truth, atol=1e-6)


def test_noise_is_left_and_no_more():
    """With counting noise the fit is as near as the truth, and its errors are those that it states."""
    geometry = geometry_of(5, 6)
    truth = judge.with_origin(random_u(geometry, 2), geometry)
    clean = propagate.intensities(truth, geometry, 240.0)
    noisy = simulate.counted(np.random.default_rng(5), clean, 1e4)
    best = search.invert(noisy, geometry, thickness=(100.0, 500.0), start=truth, seconds=20.0)[0]
    assert best.r_factor == pytest.approx(judge.r_factor(noisy, clean), rel=0.1)
    assert abs(best.thickness - 240.0) < 4 * best.thickness_sigma
    known = best.sigma > 0
    pull = (best.u - truth)[known] / best.sigma[known]
    assert 0.3 < np.sqrt(np.mean(np.abs(pull) ** 2) / 2) < 2.0


def test_bad_input():
    geometry = geometry_of(5, 2)
    with pytest.raises(ValueError, match="do not match"):
        search.invert(np.ones((3, 5)), geometry)
    with pytest.raises(ValueError, match="limits of the thickness"):
        search.invert(np.ones(geometry.shape), geometry, thickness=(100.0, 50.0))
