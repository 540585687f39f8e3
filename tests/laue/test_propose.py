"""Candidates from pairs of spots: laws of frames and orbits, and brute force over all pairs of rays."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlindex.crystal.rotation import misorientation, random_rotations
from mlindex.laue import propose
from mlindex.laue.geometry import KEV_ANGSTROM, Detector
from mlindex.laue.materials import material, rays
from mlindex.laue.simulate import spots_of

DETECTOR = Detector(79.553, 979.32, 932.31, 0.37, 0.447)
BAND = (5.0, 23.0)
KYANITE = "kyanite:P-1:7.112,7.853,5.575,89.99,101.11,106.03"


def units(rng, n):
    v = rng.normal(size=(n, 3))
    return v / np.linalg.norm(v, axis=1, keepdims=True)


@given(seed=st.integers(0, 10**6))
def test_frames_turn_with_their_vectors(seed):
    rng = np.random.default_rng(seed)
    a, b = units(rng, 20), units(rng, 20)
    frames = propose.pair_frames(a, b)
    np.testing.assert_allclose(frames @ np.swapaxes(frames, 1, 2), np.broadcast_to(np.eye(3), (20, 3, 3)), atol=1e-9)
    np.testing.assert_allclose(np.linalg.det(frames), 1, atol=1e-9)
    u = random_rotations(rng, 1)[0]
    turned = propose.pair_frames(a @ u.T, b @ u.T)
    np.testing.assert_allclose(turned @ np.swapaxes(frames, 1, 2), np.broadcast_to(u, (20, 3, 3)), atol=1e-9)
    # The pair turned round has the same first axis and the opposites of the others
    np.testing.assert_allclose(propose.pair_frames(b, a), frames * np.array([1, -1, -1]), atol=1e-12)


@pytest.mark.parametrize(("name", "orbits"), [("Cu", 1), ("ZrO2", None), ("CuWO4", None)])
def test_representatives_stand_for_every_ray(name, orbits):
    crystal = propose.crystal_of(material(name), DETECTOR, BAND)
    directions = crystal.directions[:60]
    first = propose.orbit_representatives(directions, crystal.rotations)
    images = np.einsum("gij,mj->mgi", crystal.rotations, directions[first])
    distance = np.linalg.norm(images[:, :, None] - directions, axis=-1).min(1)
    assert distance.min(0).max() < 1e-5  # every ray is the image of a representative
    assert (distance[:, first] + np.eye(len(first))).min() > 1e-3  # and no representative is that of another
    if orbits:  # the twelve (110) of a cube, or the eight (111), are one
        assert len(propose.orbit_representatives(directions[:6], crystal.rotations)) == orbits


@settings(max_examples=6)
@given(seed=st.integers(0, 10**6))
def test_candidates_are_those_of_brute_force(seed):
    rng = np.random.default_rng(seed)
    crystal = propose.crystal_of(material("ZrO2"), DETECTOR, BAND)
    strong = crystal.directions[:40]
    table = propose.ray_pairs(strong, crystal.rotations, 70.0)
    anchors = units(rng, 5)
    spots = propose.spot_pairs(anchors, 120.0)
    tolerance = np.radians(0.3)
    pair, entry, _ = propose.candidates(spots, table, tolerance, 10**6)
    assert np.abs(spots.angle[pair % len(spots.angle)] - table.angle[entry]).max(initial=0) <= tolerance
    first = propose.orbit_representatives(strong, crystal.rotations)
    angle = np.arccos(np.clip(strong[first] @ strong.T, -1, 1))
    usable = (angle > np.radians(propose.LEAST_ANGLE)) & (angle < np.radians(70.0))
    expected = sum(2 * int((usable & (np.abs(angle - a) <= tolerance)).sum()) for a in spots.angle)
    assert len(pair) == len(entry) == expected
    assert len(propose.candidates(spots, table, tolerance, expected // 2)[0]) <= expected // 2


@pytest.mark.parametrize("name", ["Cu", "GaN", "ZrO2", "CuWO4"])
def test_the_orientation_is_among_the_candidates(name):
    """Noise-free spots of one grain: the pairs of its brightest spots propose it, up to symmetry, many times."""
    rng = np.random.default_rng(3)
    chosen = material(name)
    crystal = propose.crystal_of(chosen, DETECTOR, BAND)
    u = random_rotations(rng, 1)[0]
    seen = spots_of(u @ chosen.b, rays(chosen, BAND[1], DETECTOR), DETECTOR, BAND)
    bright = np.argsort(-seen.intensity)[:10]
    q = seen.hkl[bright] @ chosen.b.T @ u.T
    spots = propose.spot_pairs(q / np.linalg.norm(q, axis=1, keepdims=True), 75.0)
    table = propose.ray_pairs(crystal.directions[:150], crystal.rotations, 75.0)
    pair, entry, frames = propose.candidates(spots, table, np.radians(0.02), 10**6)
    proposed = frames[pair] @ np.swapaxes(table.frames[entry], 1, 2)
    equivalent = (u @ crystal.rotations).reshape(-1, 9)
    right = (proposed.reshape(-1, 9) @ equivalent.T).max(1) > 1 + 2 * np.cos(np.radians(0.01))
    assert right.sum() >= 10


def test_rays_of_a_crystal():
    chosen = material("Si")
    crystal = propose.crystal_of(chosen, DETECTOR, BAND)
    assert crystal.hkl.shape == crystal.directions.shape and 90 < crystal.typical < 130
    np.testing.assert_array_equal(crystal.hkl[1::2], -crystal.hkl[::2])
    q = crystal.hkl @ chosen.b.T
    np.testing.assert_allclose(q / np.linalg.norm(q, axis=1, keepdims=True), crystal.directions, atol=1e-12)
    by_hkl = dict(zip(map(tuple, crystal.hkl.astype(int).tolist()), crystal.least_sine, strict=True))
    # 111 is there in the first order, 100 in the fourth: 200 is extinct
    edge = 5.431020511
    assert by_hkl[1, 1, 1] == pytest.approx(np.sqrt(3) / edge * KEV_ANGSTROM / 46)
    assert by_hkl[1, 0, 0] == pytest.approx(4 / edge * KEV_ANGSTROM / 46)
    # The brightest are of low index
    assert {tuple(sorted(np.abs(h))) for h in crystal.hkl[:8].astype(int)} <= {(1, 1, 1), (0, 1, 1), (1, 1, 3)}


def test_directions_of_a_lattice_are_primitive_and_complete():
    chosen = material("Cu")
    hkl = propose.lattice_directions(chosen, 1.0)
    every = {
        (h, k, m)
        for h in range(-4, 5)
        for k in range(-4, 5)
        for m in range(-4, 5)
        if np.gcd.reduce((h, k, m)) == 1 and h * h + k * k + m * m <= 3.61496**2
    }
    assert {tuple(h) for h in hkl.astype(int).tolist()} == every
    assert len(propose.lattice_directions(material("ZrO2"), 5.0)) == pytest.approx(6000, rel=0.1)


def test_pseudo_symmetry_keeps_the_strong_rays_and_is_no_symmetry():
    """Kyanite's oxygens are nearly close-packed in a cube; no rotation but its own does that to copper."""
    assert propose.pseudo_rotations(material("Cu"), DETECTOR, BAND).shape == (0, 3, 3)
    chosen = material(KYANITE)
    crystal = propose.crystal_of(chosen, DETECTOR, BAND)
    relatives = propose.pseudo_rotations(chosen, DETECTOR, BAND)
    assert len(relatives) >= 1
    for one in relatives:
        np.testing.assert_allclose(one @ one.T, np.eye(3), atol=1e-6)
        assert float(misorientation(np.eye(3), one, chosen.rotations)) > 3
        cosine = (crystal.directions[:40] @ one.T @ crystal.directions[:150].T).max(1)
        assert (cosine > np.cos(np.radians(1.6))).mean() > 0.6
