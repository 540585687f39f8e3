"""Reductions against gemmi, and the laws they obey: idempotent, independent of the basis, continuous."""

from __future__ import annotations

from itertools import product

import gemmi
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlindex.crystal.lattice import BRAVAIS
from mlindex.crystal.metric import (
    cell_from_reciprocal_metric,
    inverted_metric,
    matrix_from_metric,
    products_from_hkl,
    reciprocal_metric_from_cell,
    transform_metric,
)
from mlindex.crystal.reduction import (
    delone_reduce,
    lattice_distance,
    niggli_from_cell,
    primitive_metric,
    reduced_signature,
    same_lattice,
    selling_scalars,
    vonorms,
)
from tests.crystal.random_lattices import random_cell, random_unimodular, strained

SEEDS = st.integers(0, 10**6)


@pytest.mark.parametrize("name", BRAVAIS)
@settings(max_examples=8, deadline=None)
@given(seed=SEEDS)
def test_niggli_against_gemmi(name, seed):
    rng = np.random.default_rng(seed)
    cell, centring = random_cell(name, rng), BRAVAIS[name].centring
    found, p = niggli_from_cell(cell, centring)
    authority = gemmi.GruberVector(gemmi.UnitCell(*cell), centring)
    authority.niggli_reduce(epsilon=1e-6)
    np.testing.assert_allclose(found, authority.cell_parameters(), rtol=1e-5)
    # the transform does what it says, and reducing again changes nothing
    moved = transform_metric(reciprocal_metric_from_cell(cell), p)
    np.testing.assert_allclose(cell_from_reciprocal_metric(moved), found, rtol=1e-7)
    assert np.linalg.det(p) == pytest.approx(1 / BRAVAIS[name].multiplicity)
    np.testing.assert_allclose(niggli_from_cell(found, "P")[0], found, rtol=1e-6)


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS)
def test_niggli_does_not_depend_on_the_basis(seed):
    rng = np.random.default_rng(seed)
    g = reciprocal_metric_from_cell(random_cell("aP", rng))
    other = cell_from_reciprocal_metric(transform_metric(g, random_unimodular(rng)))
    np.testing.assert_allclose(
        niggli_from_cell(other, "P")[0], niggli_from_cell(cell_from_reciprocal_metric(g), "P")[0], rtol=1e-5
    )


@pytest.mark.parametrize("name", BRAVAIS)
@settings(max_examples=8, deadline=None)
@given(seed=SEEDS)
def test_selling_reduction(name, seed):
    rng = np.random.default_rng(seed)
    g = transform_metric(primitive_metric(random_cell(name, rng), BRAVAIS[name].centring), random_unimodular(rng))
    direct = inverted_metric(g)[None]
    reduced, p = delone_reduce(direct)
    size = np.abs(reduced).max()
    assert round(np.linalg.det(p[0])) == 1
    np.testing.assert_allclose(inverted_metric(transform_metric(g, p[0])), reduced[0], atol=1e-7 * size)
    # obtuse: the three cross terms and those with the fourth vector
    r = matrix_from_metric(reduced[0])
    assert np.all(r[np.triu_indices(3, 1)] <= 1e-9 * size) and np.all(r.sum(1) >= -1e-9 * size)
    again, q = delone_reduce(reduced)
    np.testing.assert_allclose(np.sort(again[0][:3]), np.sort(reduced[0][:3]), rtol=1e-9)
    assert np.all(np.abs(q) <= 1)


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS)
def test_vonorms_are_the_shortest_vectors_of_their_classes(seed):
    rng = np.random.default_rng(seed)
    g = reciprocal_metric_from_cell(random_cell("aP", rng))
    reduced, _ = delone_reduce(inverted_metric(g)[None])
    vectors = np.array(list(product(range(-3, 4), repeat=3)))
    norms, parity = products_from_hkl(vectors) @ reduced[0], vectors % 2
    shortest = [norms[np.all(parity == c, axis=1)].min() for c in product((0, 1), repeat=3) if any(c)]
    np.testing.assert_allclose(np.sort(vonorms(g)), np.sort(shortest), rtol=1e-9)


@pytest.mark.parametrize("name", BRAVAIS)
@settings(max_examples=8, deadline=None)
@given(seed=SEEDS)
def test_signature_is_a_continuous_property_of_the_lattice(name, seed):
    rng = np.random.default_rng(seed)
    g = primitive_metric(random_cell(name, rng), BRAVAIS[name].centring)
    signature = reduced_signature(g)
    size = signature[6]
    np.testing.assert_allclose(
        reduced_signature(transform_metric(g, random_unimodular(rng))), signature, atol=1e-6 * size
    )
    # special lattices sit on the boundaries between reduced types: noise may change the type, not the signature
    nearly = transform_metric(strained(g, 1e-5, rng), random_unimodular(rng))
    np.testing.assert_allclose(reduced_signature(nearly), signature, atol=2e-3 * size)
    assert lattice_distance(nearly, g) < 1e-3


@pytest.mark.parametrize("name", BRAVAIS)
@settings(max_examples=10, deadline=None)
@given(seed=SEEDS)
def test_same_lattice(name, seed):
    rng = np.random.default_rng(seed)
    cell, centring = random_cell(name, rng), BRAVAIS[name].centring
    g = primitive_metric(cell, centring)
    noisy = cell_from_reciprocal_metric(transform_metric(strained(g, 1e-4, rng), random_unimodular(rng)))
    assert same_lattice(cell, centring, noisy, "P")
    assert same_lattice(niggli_from_cell(noisy, "P")[0], "P", cell, centring)
    doubled = transform_metric(g, np.diag([1, 1, 2]))
    assert not same_lattice(cell, centring, cell_from_reciprocal_metric(doubled), "P")
    stretched = cell * np.array([1.03, 1.03, 1.03, 1, 1, 1])
    assert not same_lattice(cell, centring, stretched, centring)


def test_lattices_with_equal_vonorms_are_told_apart():
    # Selling scalars sit on the edges of a tetrahedron; moving two of them keeps the sorted conorms
    scalars = np.array([[1.0, 2.0, 3.0, 4.5, 5.5, 7.0], [2.0, 1.0, 3.0, 4.5, 5.5, 7.0]])
    metrics = []
    for bc, ac, ab, ad, bd, cd in -scalars:
        direct = np.array([-(ab + ac + ad), -(ab + bc + bd), -(ac + bc + cd), 2 * bc, 2 * ac, 2 * ab])
        metrics.append(inverted_metric(direct))
    first, second = (reduced_signature(g) for g in metrics)
    np.testing.assert_allclose(first[7:], second[7:])
    assert np.abs(first - second).max() > 0.1
    assert lattice_distance(*metrics) > 0.01


def test_numpy_and_jax_agree():
    rng = np.random.default_rng(4)
    g = reciprocal_metric_from_cell(np.stack([random_cell("aP", rng) for _ in range(50)]))
    direct = inverted_metric(np.stack([transform_metric(one, random_unimodular(rng, 3)) for one in g]))
    compiled = jax.jit(lambda d: selling_scalars(d, steps=32))(jnp.asarray(direct, jnp.float32))
    size = np.abs(direct).max(1, keepdims=True)
    ours = selling_scalars(direct)
    assert np.all(ours <= 1e-9 * size)
    np.testing.assert_allclose(np.sort(compiled / size), np.sort(ours / size), atol=1e-4)
