"""How unique a solution is, against the singular values of numerical derivatives of the intensities."""

from __future__ import annotations

import numpy as np
import pytest

from mlindex.bloch import judge
from mlindex.bloch.beams import Geometry, geometry, shell_beams, tilt_disc
from mlindex.bloch.propagate import intensities
from mlindex.bloch.simulate import random_u

CUBIC = (3.905, 3.905, 3.905, 90.0, 90.0, 90.0)
DEPTH, STEP = 180.0, 1e-5


def at(beams: int, steps: int) -> Geometry:
    tilt = tilt_disc(steps, 60.0)[0]
    return geometry(shell_beams(CUBIC, (0, 0, 1), beams), tilt, cell=CUBIC, zone=(0, 0, 1), voltage_kv=120.0)


def derivatives(u: np.ndarray, place: Geometry) -> np.ndarray:
    """Of sqrt(I), by central differences: along Re U and Im U of the upper half, and along the thickness."""
    half = len(u) // 2
    columns = []
    for part in (1.0, 1j):
        for k in range(half):
            off = np.zeros(len(u), complex)
            off[half + 1 + k], off[half - 1 - k] = STEP * part, STEP * np.conj(part)
            up, down = (np.sqrt(intensities(u + sign * off, place, DEPTH)) for sign in (1, -1))
            columns.append((up - down).ravel() / (2 * STEP))
    up, down = (np.sqrt(intensities(u, place, DEPTH + sign * 1e-3)) for sign in (1, -1))
    return np.stack([*columns, (up - down).ravel() / 2e-3], 1)


def test_the_least_determined_combination_is_that_of_the_smallest_singular_value():
    place = at(9, 4)
    u = random_u(np.random.default_rng(4), place.dhkl, 0.1)
    half = len(u) // 2
    slope = derivatives(u, place)
    free = np.ones(2 * half + 1)
    for fixed in judge.origin_pair(u, place):  # the origin
        free[half + abs(fixed - half) - 1] = 0.0
    cost = 2.5
    slope = slope * free
    found = judge.uniqueness(slope.T @ slope, cost, slope.shape[0], free, np.arange(half), others=1)
    # The law: with the thickness projected out, singular values of what is left
    alone = slope[:, :-1] - np.outer(slope[:, -1], slope[:, -1] @ slope[:, :-1]) / (slope[:, -1] @ slope[:, -1])
    _, values, turned = np.linalg.svd(alone[:, free[:-1] > 0], full_matrices=False)
    assert found.condition == pytest.approx((values[-1] / values[0]) ** 2, rel=1e-4)
    assert found.sigma == pytest.approx(np.sqrt(cost / (slope.shape[0] - free.sum())) / values[-1], rel=1e-4)
    weight = np.zeros(2 * half)
    weight[free[:-1] > 0] = turned[-1] ** 2
    expected = weight[:half] + weight[half:]
    np.testing.assert_allclose(found.share[half + 1 :], expected, atol=1e-6)
    np.testing.assert_array_equal(found.share, found.share[::-1])


def test_what_the_pattern_says_nothing_about_is_named():
    """One structure factor that no intensity depends on, among others that are determined."""
    rng = np.random.default_rng(0)
    slope = rng.normal(size=(200, 13))
    slope[:, [2, 8]] = 0  # Re and Im of the third of six
    found = judge.uniqueness(slope.T @ slope, 1.0, 200, np.ones(13), np.arange(6), others=1)
    assert found.sigma == np.inf and 0.1 < found.condition < 1
    np.testing.assert_allclose(found.share, [0, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0], atol=1e-12)


def test_tied_structure_factors_share_their_part():
    slope = np.diag([3.0, 1.0, 5.0])  # two orbits of real U, and the thickness
    orbit = np.array([0, 1, 1, 0, 1])
    found = judge.uniqueness(slope.T @ slope, 1.0, 3, np.ones(3), orbit, others=1)
    np.testing.assert_allclose(found.share[6:], [0, 1 / 3, 1 / 3, 0, 1 / 3], atol=1e-12)
    assert found.condition == pytest.approx(1 / 9)


def test_without_structure_factors_nothing_is_said():
    found = judge.uniqueness(np.eye(3), 1.0, 10, np.array([0.0, 0.0, 1.0]), np.array([0]), others=1)
    assert np.isnan(found.condition) and np.isnan(found.sigma) and not found.share.any()
