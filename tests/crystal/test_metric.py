"""Metrics against gemmi's UnitCell, and the laws of a change of basis."""

from __future__ import annotations

import gemmi
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlindex.crystal import metric


@st.composite
def cells(draw):
    """Triclinic cells that are not too flat."""
    edges = [draw(st.floats(2.0, 60.0)) for _ in range(3)]
    alpha, beta = draw(st.floats(55.0, 125.0)), draw(st.floats(55.0, 125.0))
    low, high = abs(alpha - beta) + 15, min(alpha + beta, 360 - alpha - beta) - 15
    gamma = draw(st.floats(max(low, 40.0), min(high, 140.0)))
    return np.array([*edges, alpha, beta, gamma])


@st.composite
def unimodular(draw):
    """Integer matrices of determinant 1: products of shears."""
    matrix = np.eye(3, dtype=np.int64)
    for _ in range(draw(st.integers(1, 5))):
        i, j = draw(st.sampled_from([(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)]))
        shear = np.eye(3, dtype=np.int64)
        shear[i, j] = draw(st.integers(-2, 2))
        matrix = matrix @ shear
    return matrix


HKL = np.array([[1, 0, 0], [0, 2, 0], [1, 1, 0], [1, -2, 3], [-4, 1, 2], [0, 3, -1], [5, 5, 5]])


@settings(max_examples=60, deadline=None)
@given(cells())
def test_against_gemmi(cell):
    authority = gemmi.UnitCell(*cell)
    g = metric.reciprocal_metric_from_cell(cell)
    np.testing.assert_allclose(metric.volume_from_reciprocal_metric(g), authority.volume, rtol=1e-9)
    expected = [authority.calculate_1_d2(list(hkl)) for hkl in HKL]
    np.testing.assert_allclose(metric.q2_from_hkl(g, HKL), expected, rtol=1e-9)
    np.testing.assert_allclose(metric.cell_from_reciprocal_metric(g), cell, rtol=1e-8)
    b = metric.b_matrix_from_cell(cell)
    rows = np.array(authority.frac.mat.tolist())  # a*, b*, c* in another Cartesian frame
    np.testing.assert_allclose(b.T @ b, rows @ rows.T, atol=1e-9 * g[:3].max())
    assert np.all(np.tril(b, -1) == 0) and np.all(np.diag(b) > 0)
    np.testing.assert_allclose(((HKL @ b.T) ** 2).sum(1), expected, rtol=1e-9)


@settings(max_examples=60, deadline=None)
@given(cells(), unimodular())
def test_q2_does_not_depend_on_the_basis(cell, p):
    g = metric.reciprocal_metric_from_cell(cell)
    moved = metric.transform_metric(g, p)
    np.testing.assert_allclose(metric.q2_from_hkl(moved, HKL @ p), metric.q2_from_hkl(g, HKL), rtol=1e-6)
    back = metric.transform_metric(moved, np.linalg.inv(p))
    np.testing.assert_allclose(back, g, rtol=1e-6, atol=1e-6 * g[:3].max())


@settings(max_examples=40, deadline=None)
@given(cells())
def test_metric_and_matrix_are_one_thing(cell):
    g = metric.reciprocal_metric_from_cell(cell)
    matrix = metric.matrix_from_metric(g)
    np.testing.assert_array_equal(metric.metric_from_matrix(matrix), g)
    np.testing.assert_allclose(metric.metric_determinant(g), np.linalg.det(matrix), rtol=1e-9)
    direct = metric.matrix_from_metric(metric.inverted_metric(g))
    np.testing.assert_allclose(direct @ matrix, np.eye(3), atol=1e-9)


def test_jax_and_numpy_agree_in_a_batch():
    rng = np.random.default_rng(3)
    edges, angles = rng.uniform(3, 30, (7, 5, 3)), rng.uniform(75, 115, (7, 5, 3))
    cell = np.concatenate([edges, angles], -1).astype(np.float32)
    p = np.array([[1, 1, 0], [0, 1, -1], [0, 0, 1]], np.float32)

    @jax.jit
    def kernel(values):
        g = metric.transform_metric(metric.reciprocal_metric_from_cell(values), jnp.asarray(p))
        return metric.cell_from_reciprocal_metric(g), metric.q2_from_hkl(g, jnp.asarray(HKL))

    g = metric.transform_metric(metric.reciprocal_metric_from_cell(cell.astype(np.float64)), p)
    found_cell, found_q2 = kernel(jnp.asarray(cell))
    np.testing.assert_allclose(found_cell, metric.cell_from_reciprocal_metric(g), rtol=2e-3)
    np.testing.assert_allclose(found_q2, metric.q2_from_hkl(g, HKL), rtol=2e-3)
    assert found_q2.shape == (7, 5, len(HKL))


@pytest.mark.parametrize(
    ("cell", "word"),
    [
        ((5, 5, 5, 90, 90), "six numbers"),
        ((5, -5, 5, 90, 90, 90), "positive"),
        ((5, np.nan, 5, 90, 90, 90), "finite"),
        ((5, 5, 5, 30, 30, 90), "angles"),
        ((5, 5, 5, 90, 90, 180), "angles"),
    ],
)
def test_impossible_cells_are_named(cell, word):
    with pytest.raises(ValueError, match=rf"list\.txt.*{word}"):
        metric.checked_cell(cell, origin="list.txt")
