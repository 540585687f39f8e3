"""Rotations against SciPy, and misorientation against its laws."""

from __future__ import annotations

import gemmi
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from mlindex.crystal import rotation
from mlindex.crystal.spacegroup import space_group

seeds = st.integers(0, 2**32 - 1)


@given(seeds)
def test_quaternions_and_vectors_against_scipy(seed):
    rng = np.random.default_rng(seed)
    quaternion, vector = rng.normal(size=(4, 4)), rng.normal(size=(4, 3)) * 10.0 ** rng.uniform(-6, 0.4)
    authority = Rotation.from_quat(quaternion[:, [1, 2, 3, 0]])
    found = rotation.rotation_from_quaternion(quaternion)
    np.testing.assert_allclose(found, authority.as_matrix(), atol=1e-12)
    np.testing.assert_allclose(rotation.rotation_angle(found), np.degrees(authority.magnitude()), atol=1e-9)
    np.testing.assert_allclose(
        rotation.rotation_from_vector(vector), Rotation.from_rotvec(vector).as_matrix(), atol=1e-12
    )


def test_small_and_large_angles_are_accurate():
    for angle in (1e-9, 1e-6, 1e-3, 1.0, 90.0, 179.9999, 180.0):
        turn = rotation.rotation_from_vector(np.radians(angle) * np.array([0.6, 0.0, 0.8]))
        assert np.isclose(rotation.rotation_angle(turn), angle, rtol=1e-6, atol=1e-12)


def test_random_rotations_are_uniform():
    """Each column is uniform on the sphere, and the angle has the density (1 - cos t) / pi."""
    found = rotation.random_rotations(np.random.default_rng(1), 40_000)
    np.testing.assert_allclose(np.linalg.det(found), 1, atol=1e-12)
    np.testing.assert_allclose(found.mean(0), 0, atol=0.02)
    np.testing.assert_allclose((found**2).mean(0), 1 / 3, atol=0.01)
    angle = np.radians(rotation.rotation_angle(found))
    for t in (0.5, 1.0, 2.0, 3.0):
        assert abs(np.mean(angle < t) - (t - np.sin(t)) / np.pi) < 0.01


@given(seeds)
def test_nearest_rotation_against_the_polar_decomposition_of_scipy(seed):
    rng = np.random.default_rng(seed)
    matrix = rotation.random_rotations(rng, 3) @ (np.eye(3) + 0.2 * rng.normal(size=(3, 3, 3)))
    found = rotation.nearest_rotation(matrix)
    np.testing.assert_allclose(np.linalg.det(found), 1, atol=1e-12)
    for m, r in zip(matrix, found, strict=True):
        if np.linalg.det(m) > 0:
            np.testing.assert_allclose(r, scipy.linalg.polar(m)[0], atol=1e-10)


@pytest.mark.parametrize(
    ("laue", "symbol", "cell"),
    [
        ("-1", "P -1", (4.7, 5.8, 4.9, 91.7, 92.5, 82.8)),
        ("2/m", "P 1 21/c 1", (5.15, 5.21, 5.32, 90, 99.2, 90)),
        ("mmm", "P n m a", (7.7, 5.8, 7.5, 90, 90, 90)),
        ("4/m", "I 4/m", (5, 5, 11, 90, 90, 90)),
        ("4/mmm", "P 42/m n m", (4.6, 4.6, 2.96, 90, 90, 90)),
        ("-3", "R -3:H", (5, 5, 14, 90, 90, 120)),
        ("-3m1", "P -3 m 1", (4, 4, 5, 90, 90, 120)),
        ("-31m", "P -3 1 m", (4, 4, 5, 90, 90, 120)),
        ("6/m", "P 63/m", (9, 9, 7, 90, 90, 120)),
        ("6/mmm", "P 63/m m c", (2.95, 2.95, 4.7, 90, 90, 120)),
        ("m-3", "P a -3", (5.4, 5.4, 5.4, 90, 90, 90)),
        ("m-3m", "F d -3 m:1", (5.4, 5.4, 5.4, 90, 90, 90)),
    ],
)
def test_laue_classes_are_those_of_the_space_groups(laue, symbol, cell):
    """Two ways to the same group: generators in Cartesian axes, and gemmi's operations through B."""
    found = rotation.laue_rotations(laue)
    operations = gemmi.SpaceGroup(symbol).operations()
    assert 2 * len(found) == len({str(op.rot) for op in operations.sym_ops}) * (
        1 if operations.is_centrosymmetric() else 2
    )
    expected = space_group(symbol).rotations(cell)
    distance = np.abs(found[:, None] - expected[None]).max((2, 3))
    assert np.all(distance.min(0) < 1e-9) and np.all(distance.min(1) < 1e-9)


@given(seeds, st.sampled_from(["-1", "2/m", "mmm", "-3m", "6/mmm", "m-3m"]))
def test_misorientation_knows_the_symmetry(seed, laue):
    rng = np.random.default_rng(seed)
    group = rotation.laue_rotations(laue)
    u, v, common = rotation.random_rotations(rng, 3)
    angle = rotation.misorientation(u, v, laue)
    np.testing.assert_allclose(rotation.misorientation(u @ group, v, group), angle, atol=1e-6)
    np.testing.assert_allclose(rotation.misorientation(v, u, laue), angle, atol=1e-6)
    np.testing.assert_allclose(rotation.misorientation(common @ u, common @ v, laue), angle, atol=1e-6)
    assert angle <= rotation.misorientation(u, v) + 1e-9
    small = rotation.rotation_from_vector(np.radians(1e-4) * np.array([0, 0.6, 0.8]))
    np.testing.assert_allclose(rotation.misorientation(u, small @ u @ group[-1], laue), 1e-4, rtol=1e-5)
    np.testing.assert_allclose(rotation.rotation_angle(small @ u @ u.T), 1e-4, rtol=1e-6)


def test_the_largest_cubic_misorientation():
    """62.80 degrees (Handscomb, Canad. J. Math. 10 (1958) 85)."""
    u = rotation.random_rotations(np.random.default_rng(3), 20_000)
    angle = rotation.misorientation(u, np.eye(3), "m-3m")
    assert 60 < angle.max() <= 62.81


def test_jax_and_numpy_agree():
    rng = np.random.default_rng(5)
    vector = rng.normal(size=(6, 3))
    matrix = rotation.random_rotations(rng, 6) @ (np.eye(3) + 0.1 * rng.normal(size=(6, 3, 3)))
    with jax.enable_x64(True), jax.numpy_rank_promotion("raise"):
        turn = jax.jit(rotation.rotation_from_vector)(jnp.asarray(vector))
        nearest = jax.jit(rotation.nearest_rotation)(jnp.asarray(matrix))
        angle = jax.jit(rotation.rotation_angle)(turn)
        slope = np.asarray(jax.jacobian(rotation.rotation_from_vector)(jnp.zeros(3)))
    np.testing.assert_allclose(turn, rotation.rotation_from_vector(vector), atol=1e-12)
    np.testing.assert_allclose(nearest, rotation.nearest_rotation(matrix), atol=1e-12)
    np.testing.assert_allclose(angle, rotation.rotation_angle(rotation.rotation_from_vector(vector)), atol=1e-9)
    np.testing.assert_allclose(np.moveaxis(slope, -1, 0), rotation.cross_matrix(np.eye(3)), atol=1e-12)


def test_an_unknown_class_is_named():
    with pytest.raises(ValueError, match=r"m-3m"):
        rotation.laue_rotations("432")
