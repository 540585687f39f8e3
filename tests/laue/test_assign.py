"""The look-up against brute force in float64, and visible rays against the simulator."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import cKDTree

from mlindex.crystal.rotation import random_rotations
from mlindex.laue import assign, propose
from mlindex.laue.geometry import DIRECTIONS, Detector, direction_from_pixel, kf_from_q, pixel_from_direction, q_from_kf
from mlindex.laue.materials import material, rays
from mlindex.laue.simulate import spots_of

DETECTOR = Detector(79.553, 979.32, 932.31, 0.37, 0.447)
BAND = (5.0, 23.0)


@pytest.mark.parametrize("where", DIRECTIONS)
def test_pixels_agree_with_the_geometry(where):
    detector = Detector(80.0, 1000.0, 950.0, 0.3, -0.5, kf_direction=where)
    q = np.random.default_rng(0).normal(size=(4000, 3))
    xy, sine, on = assign.projected(detector.plane, q)
    x, y, expected = pixel_from_direction(kf_from_q(q), detector)
    expected &= q[:, 0] < 0  # a vector along the beam diffracts as its opposite
    np.testing.assert_array_equal(on, expected)
    np.testing.assert_allclose(xy[on], np.stack([x, y], 1)[on], atol=1e-8)
    np.testing.assert_allclose(sine, -q[:, 0] / np.linalg.norm(q, axis=1), atol=1e-12)


@pytest.mark.parametrize("name", ["Si", "GaN", "ZrO2"])
def test_visible_rays_are_those_of_the_simulator(name):
    chosen = material(name)
    crystal = propose.crystal_of(chosen, DETECTOR, BAND)
    ub = random_rotations(np.random.default_rng(1), 1)[0] @ chosen.b
    ray, xy = assign.visible(ub, crystal.hkl, crystal.orders, DETECTOR.plane, BAND)
    expected = spots_of(ub, rays(chosen, BAND[1], DETECTOR), DETECTOR, BAND)
    ours = {tuple(h): tuple(p) for h, p in zip(crystal.hkl[ray].astype(int).tolist(), xy, strict=True)}
    theirs = {tuple(h): (x, y) for h, x, y in zip(expected.hkl.tolist(), expected.x, expected.y, strict=True)}
    assert ours.keys() == theirs.keys() and len(ours) > 80
    for key, place in ours.items():
        assert place == pytest.approx(theirs[key], abs=1e-6)
    some, _ = assign.visible(ub, crystal.hkl, crystal.orders, DETECTOR.plane, BAND, ray[:7])
    np.testing.assert_array_equal(some, ray[:7])


@settings(max_examples=10)
@given(seed=st.integers(0, 10**6), radius=st.floats(1.5, 6.0))
def test_table_knows_where_spots_are_near(seed, radius):
    rng = np.random.default_rng(seed)
    shape = (150, 220)
    xy = rng.uniform(0.5, [220.5, 150.5], (30, 2))
    table, chance = assign.near_table(xy, shape, radius)
    ny, nx = (n // assign.CELL + 1 for n in shape)
    assert table[0] == assign.OUTSIDE and len(table) == 1 + ny * nx
    cy, cx = np.meshgrid((np.arange(ny) + 0.5) * assign.CELL, (np.arange(nx) + 0.5) * assign.CELL, indexing="ij")
    far = np.hypot(cx.ravel()[:, None] - xy[:, 0], cy.ravel()[:, None] - xy[:, 1]).min(1)
    np.testing.assert_array_equal(table[1:] == assign.NEAR, far <= radius)
    assert chance == pytest.approx((far <= radius).mean())


def expected_score(u, directions, least_sine, xy, radius, gain, loss):
    """The score of one orientation from the definition, in float64; and whether no ray is at an edge."""
    at, sine, on = assign.projected(DETECTOR.plane, directions @ u.T)
    on &= sine >= least_sine
    centre = (np.floor(at[on] / assign.CELL) + 0.5) * assign.CELL
    hit = cKDTree(xy).query(centre)[0] <= radius
    return gain * hit.sum() - loss * (~hit).sum()


@settings(max_examples=4)
@given(seed=st.integers(0, 10**6))
def test_screening_scores_as_brute_force(seed):
    rng = np.random.default_rng(seed)
    chosen = material("ZrO2")
    crystal = propose.crystal_of(chosen, DETECTOR, BAND)
    u = random_rotations(rng, 32)
    seen = spots_of(u[0] @ chosen.b, rays(chosen, BAND[1], DETECTOR), DETECTOR, BAND)
    xy = np.stack([seen.x, seen.y], 1)
    radius, gain, loss = 3.0, np.float32(3.0), np.float32(0.8)
    table, _ = assign.near_table(xy, DETECTOR.shape, radius)
    directions, least = crystal.directions[:300], crystal.least_sine[:300]
    matrix = DETECTOR.plane.to_pixel.astype(np.float32)
    score = np.asarray(
        assign.screen_all(
            u.astype(np.float32),
            directions.astype(np.float32),
            least.astype(np.float32),
            matrix,
            jnp.asarray(table),
            gain,
            loss,
            DETECTOR.shape,
        )
    )
    exact = np.array([expected_score(one, directions, least, xy, radius, 3.0, 0.8) for one in u])
    # In float32 a ray on the edge of a cell, or of the band, may fall to the other side
    assert np.abs(score - exact).max() <= 3 * 3.8 and np.mean(np.abs(score - exact) < 0.01) > 0.8
    assert score.argmax() == 0 and score[0] > 3 * np.sort(score)[-2]


def test_lists_hold_the_strongest_rays_near_the_detector():
    """With all rays in the list and a cone over the whole sphere the two screens agree; a short list still tells."""
    rng = np.random.default_rng(2)
    chosen = material("Cu")
    crystal = propose.crystal_of(chosen, DETECTOR, BAND)
    u = random_rotations(rng, 64)
    seen = spots_of(u[5] @ chosen.b, rays(chosen, BAND[1], DETECTOR), DETECTOR, BAND)
    table, _ = assign.near_table(np.stack([seen.x, seen.y], 1), DETECTOR.shape, 3.0)
    table = jnp.asarray(table)
    n = 200
    directions, least = crystal.directions[:n].astype(np.float32), crystal.least_sine[:n].astype(np.float32)
    matrix = DETECTOR.plane.to_pixel.astype(np.float32)
    centre = q_from_kf(direction_from_pixel(np.array(1008.5), np.array(1009.5), DETECTOR)).astype(np.float32)
    identity = np.broadcast_to(np.eye(3, dtype=np.float32), (1, 3, 3))
    weigh = (np.float32(3.0), np.float32(0.8), DETECTOR.shape)
    every = assign.screen_all(u.astype(np.float32), directions, least, matrix, table, *weigh)

    def listed(cone, most):
        lists = assign.ray_lists(crystal.directions[:n], crystal.least_sine[:n], cone=cone, most=most)
        pair, entry = np.arange(64, dtype=np.int32), np.zeros(64, np.int32)
        return np.asarray(
            assign.screen(
                u.astype(np.float32), identity, pair, entry, lists.rays, lists.least_sine, centre, matrix, table, *weigh
            )
        )

    np.testing.assert_allclose(listed(180.0, n), np.asarray(every), atol=1e-3)
    short = listed(35.0, 24)
    assert short.argmax() == 5 and short[5] > 2 * np.sort(short)[-2]


def test_a_spot_belongs_to_the_nearest_ray():
    tree = cKDTree(np.array([[10.0, 10.0], [50.0, 50.0]]))
    xy = np.array([[11.0, 10.0], [10.2, 10.0], [50.0, 53.0], [90.0, 90.0]])
    match = assign.matched(np.array([4, 5, 6, 7]), xy, tree, 2.0)
    np.testing.assert_array_equal(match.spot, [-1, 0, -1, -1])
    np.testing.assert_allclose(match.distance, [np.inf, 0.2, np.inf, np.inf])
    empty = assign.matched(np.empty(0, np.int64), np.empty((0, 2)), tree, 2.0)
    assert len(empty.spot) == len(empty.distance) == 0
