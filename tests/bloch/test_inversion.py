"""Inversion of patterns: derivatives against SciPy's Frechet derivative of the exponential, and laws of the origin."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import expm_frechet

from mlindex.bloch import beams, jacobian, judge, propagate, search, simulate, starts, symmetry

CELL = (3.905, 3.905, 3.905, 90.0, 90.0, 90.0)
CELL_OBLIQUE = (3.9, 5.1, 6.0, 90.0, 90.0, 104.0)


def geometry_of(count: int, steps: int, cell=CELL) -> beams.Geometry:
    tilt, _ = beams.tilt_disc(steps, 60.0)
    return beams.geometry(beams.shell_beams(cell, (0, 0, 1), count), tilt, cell=cell, zone=(0, 0, 1), voltage_kv=120.0)


def random_u(geometry: beams.Geometry, seed: int, largest: float = 0.08) -> np.ndarray:
    u = simulate.random_u(np.random.default_rng(seed), geometry.dhkl, largest)
    u[len(u) // 2] = 0.0
    return u


def tie_of(geometry: beams.Geometry, name: str) -> symmetry.Tie:
    """The tie of that name; a pattern without tilts that could deny it allows all that the net has."""
    everything = symmetry.hypotheses(np.ones(geometry.shape), geometry, 1.0)
    return next(tie for tie in everything if tie.name == name)


@pytest.mark.parametrize("strength", [0.0, 0.1])
@pytest.mark.parametrize("name", ["p1", "p2", "p4m", "p4g"])
def test_the_jacobian_is_the_frechet_derivative_also_at_equal_eigenvalues(strength, name):
    geometry = geometry_of(9, 1)
    tie = tie_of(geometry, name)
    how, phase = jacobian.unknowns(geometry, tie), 7.3
    x = jacobian.parameters_from_u(random_u(geometry, 1, strength or 1e-3), tie) * bool(strength)
    rng = np.random.default_rng(2)
    for row in range(geometry.shape[0]):  # the untilted beam has equal diagonal elements on every shell
        with jax.enable_x64(True):
            value, slope = jacobian.intensity_and_jacobian(x, phase, geometry.excitation[row], how)
        direction = rng.normal(size=len(x) + 1)
        u, du = jacobian.u_from_parameters(x, tie), jacobian.u_from_parameters(direction[:-1], tie)
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
    for name in ("p1", "p2", "p4m", "p4g"):
        tie = tie_of(geometry, name)
        tied = tie.project(u)
        np.testing.assert_allclose(
            jacobian.u_from_parameters(jacobian.parameters_from_u(u, tie), tie), tied, atol=1e-15
        )
        np.testing.assert_allclose(tie.project(tied), tied, atol=1e-15)
        np.testing.assert_allclose(tied[::-1].conj(), tied, atol=1e-15)
        assert len(np.unique(np.abs(tied).round(12))) <= tie.unknowns + 1


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
    candidates = starts.thickness_candidates(pattern, geometry, (50.0, 600.0))
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
    assert best.symmetry == "p1"
    np.testing.assert_allclose(best.u, truth, atol=1e-6)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_symmetric_pattern_is_inverted_with_its_symmetry(seed):
    geometry = geometry_of(9, 6)
    u = tie_of(geometry, "p4m").project(random_u(geometry, seed))
    best = search.invert(propagate.intensities(u, geometry, 240.0), geometry, thickness=(100.0, 500.0), seed=seed)[0]
    assert best.symmetry == "p4m"
    assert best.r_factor < 1e-6
    assert best.thickness == pytest.approx(240.0, abs=1e-3)
    np.testing.assert_allclose(best.u, judge.with_origin(u, geometry), atol=1e-6)


def test_a_model_that_is_off_by_a_third_leads_to_the_solution():
    geometry = geometry_of(13, 6)
    truth = random_u(geometry, 4)
    rng = np.random.default_rng(0)
    half = truth[len(truth) // 2 + 1 :] * (1 + 0.3 * np.exp(2j * np.pi * rng.random(len(truth) // 2)))
    start = np.concatenate([half[::-1].conj(), [0.0], half])
    pattern = propagate.intensities(truth, geometry, 420.0)
    best = search.invert(pattern, geometry, start=start, thickness=(100.0, 800.0))[0]
    assert best.r_factor < 1e-6
    assert best.thickness == pytest.approx(420.0, abs=1e-3)


def test_a_scale_and_a_background_are_fitted():
    geometry = geometry_of(5, 6)
    truth = judge.with_origin(random_u(geometry, 0), geometry)
    seen = 0.9 * propagate.intensities(truth, geometry, 240.0) + 0.004
    best = search.invert(seen, geometry, thickness=(100.0, 500.0), scale=True, background=True)[0]
    assert best.scale == pytest.approx(0.9, abs=1e-5)
    assert best.background == pytest.approx(0.004, abs=1e-6)
    assert best.thickness == pytest.approx(240.0, abs=1e-3)
    np.testing.assert_allclose(best.u, truth, atol=1e-5)


def test_what_lies_beyond_the_cutoff_stays_as_it_was():
    geometry = geometry_of(9, 6)
    truth = judge.with_origin(random_u(geometry, 3), geometry)
    beyond = judge.lengths(geometry) > 0.6
    start = truth * np.where(beyond, 1.0, 1.1)
    pattern = propagate.intensities(truth, geometry, 240.0)
    best = search.invert(pattern, geometry, start=start, cutoff=0.6, symmetry=False)[0]
    assert best.r_factor < 1e-6
    np.testing.assert_allclose(np.abs(best.u), np.abs(truth), atol=1e-7)
    assert np.all(best.sigma[beyond] < 1e-20)


def test_uniform_weights_find_the_same():
    geometry = geometry_of(5, 6)
    truth = judge.with_origin(random_u(geometry, 2), geometry)
    noisy = simulate.counted(np.random.default_rng(5), propagate.intensities(truth, geometry, 240.0), 1e5)
    best = search.invert(noisy, geometry, thickness=(100.0, 500.0), start=truth, poisson=False, seconds=20.0)[0]
    assert abs(best.thickness - 240.0) < 5 * best.thickness_sigma
    np.testing.assert_allclose(best.u, truth, atol=2e-3)


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
