"""The score: its definition on small cases, what chance and true grains get, and the signs of a mere likeness."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.spatial import cKDTree

from mlindex.laue import judge

SIZE = np.array([2016.0, 2018.0])


def scored(rng, spots, predicted, sigma=0.2):
    distance, _ = cKDTree(spots).query(predicted, distance_upper_bound=2.0)
    density = judge.density_at(judge.spot_density(spots, SIZE), predicted)
    return judge.log_likelihood_ratio(distance, np.zeros(len(predicted), bool), density, sigma)


def test_the_density_of_errors_is_one_in_all():
    total = quad(lambda d: 2 * np.pi * d * judge.error_density(np.array([d]), 0.3)[0], 0, 20, limit=200)[0]
    assert total == pytest.approx(1.0, abs=1e-6)
    assert judge.error_density(np.array([np.inf]), 0.3)[0] == 0


@given(seed=st.integers(0, 10**6), n=st.integers(0, 3000))
def test_the_map_holds_all_spots(seed, n):
    rng = np.random.default_rng(seed)
    xy = rng.uniform(0.5, SIZE + 0.5, (n, 2))
    density = judge.spot_density(xy, SIZE)
    assert (density.blocks > 0).all()
    assert density.blocks.mean() * SIZE.prod() == pytest.approx(max(n, 1), rel=0.25 if n > 200 else 2.0)
    corner = judge.density_at(density, np.array([[0.5, 0.5], [2016.5, 2018.5]]))
    np.testing.assert_array_equal(corner, density.blocks[[0, -1], [0, -1]])


def test_density_follows_the_spots():
    rng = np.random.default_rng(0)
    xy = rng.uniform([0.5, 0.5], [504.5, 504.5], (2000, 2))  # one quarter by one quarter of the image
    density = judge.spot_density(xy, SIZE)
    inside, outside = judge.density_at(density, np.array([[200.0, 200.0], [1800.0, 1800.0]]))
    assert inside > 10 * outside > 0


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6), n=st.integers(20, 4000), rays=st.integers(20, 400))
def test_chance_scores_next_to_nothing(seed, n, rays):
    rng = np.random.default_rng(seed)
    spots = rng.uniform(0.5, SIZE + 0.5, (n, 2))
    assert scored(rng, spots, rng.uniform(0.5, SIZE + 0.5, (rays, 2))) < 20


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6), n=st.integers(20, 4000))
def test_a_true_grain_scores_high_however_dense_the_frame(seed, n):
    """Thirty rays, 85 % seen: far beyond the threshold of 40, and weak rays that are not seen take little of it."""
    rng = np.random.default_rng(seed)
    predicted = rng.uniform(0.5, SIZE + 0.5, (30, 2))
    seen = predicted[:26] + rng.normal(scale=0.2, size=(26, 2))
    spots = np.concatenate([rng.uniform(0.5, SIZE + 0.5, (n, 2)), seen])
    strong = scored(rng, spots, predicted)
    assert strong > 100
    weak = scored(rng, spots, np.concatenate([predicted, rng.uniform(0.5, SIZE + 0.5, (200, 2))]))
    assert strong - 40 < weak < strong + 20


def test_spots_of_other_grains_count_nothing():
    distance, density = np.full(20, 0.1), np.full(20, 1e-4)
    none = np.zeros(20, bool)
    whole = judge.log_likelihood_ratio(distance, none, density, 0.2)
    half = judge.log_likelihood_ratio(distance, np.arange(20) < 10, density, 0.2)
    assert 0.4 * whole < half < 0.6 * whole
    assert judge.log_likelihood_ratio(distance, ~none, density, 0.2) == 0
    missing = np.where(np.arange(20) < 10, np.inf, distance)  # a ray without its spot counts against it
    assert judge.log_likelihood_ratio(missing[::-1], none, density, 0.2) < half


def test_coverage_is_that_of_the_strongest():
    hit = np.concatenate([np.ones(20, bool), np.zeros(400, bool)])
    assert judge.coverage(hit) == pytest.approx(20 / 20.5)
    assert judge.coverage(hit[::-1]) < 0.06
    assert judge.coverage(np.ones(5, bool)) == pytest.approx(5 / 5.5)
    assert judge.coverage(np.zeros(0, bool)) == 0
    third = np.arange(300) % 3 == 0
    assert 0.3 < judge.coverage(third) < 0.35
    few = np.arange(300) < 4  # four bright rays alone are no sign of a grain
    assert judge.coverage(few) == pytest.approx(4 / 16.5)


def test_spots_that_cannot_be_betray_a_grain():
    assert judge.betrayed(30, 12, 0.5, 0.1)
    assert not judge.betrayed(30, 2, 0.5, 0.1)  # too few to be sure
    assert not judge.betrayed(300, 12, 0.5, 0.1)  # too few for what it explains
    assert not judge.betrayed(30, 60, 50.0, 0.1)  # chance


@pytest.mark.parametrize("ends,early", [(23.0, False), (19.0, False), (15.0, True)])
def test_spots_that_end_far_below_the_highest_energy_are_of_another_crystal(ends: float, early: bool) -> None:
    """A law: rays are seen with one probability below an energy and not beyond; only a cut a third below counts."""
    rng = np.random.default_rng(3)
    for _ in range(50):
        energy = rng.uniform(6, 23, 60)
        hit = (energy < ends) & (rng.random(60) < 0.85)
        assert judge.ends_early(hit, energy, 23.0) == early
