"""Derivative lattices against the counts in the literature and the laws of sublattices."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlindex.crystal.derivatives import hermite_forms, superlattices_and_sublattices
from mlindex.crystal.metric import reciprocal_metric_from_cell, transform_metric, volume_from_reciprocal_metric
from mlindex.crystal.reduction import lattice_distance, primitive_metric
from tests.crystal.random_lattices import random_cell, random_unimodular


@pytest.mark.parametrize(("index", "count"), [(2, 7), (3, 13), (4, 35), (5, 31), (6, 91)])
def test_number_of_sublattices(index, count):
    """Sum over d | n of d sigma(d): sequence A001001."""
    forms = hermite_forms(index)
    assert len(forms) == count
    np.testing.assert_allclose(np.linalg.det(forms), index)
    # distinct: no form's lattice lies in another's
    inverse = np.linalg.inv(forms)
    relative = np.einsum("mij,njk->mnik", inverse, forms)
    integral = np.all(np.abs(relative - np.round(relative)) < 1e-9, axis=(2, 3))
    np.testing.assert_array_equal(integral, np.eye(count, dtype=bool))


@pytest.mark.parametrize(("centring", "counts"), [("P", {2: 3, 3: 3, 4: 9}), ("I", {2: 2, 3: 3, 4: 7}),
                                                  ("F", {2: 2, 3: 3, 4: 7})])  # fmt: skip
def test_cubic_superlattices_of_the_literature(centring, counts):
    """Hart & Forcade, Phys. Rev. B 77 (2008) 224115, table IV: superlattices that no rotation of the parent relates."""
    for derived in superlattices_and_sublattices(primitive_metric((4.0, 4.0, 4.0, 90, 90, 90), centring)):
        number, count = np.unique(derived.index, return_counts=True)
        assert dict(zip(number.tolist(), count.tolist(), strict=True)).keys() == counts.keys()
        assert sum(derived.count) == 7 + 13 + 35
    larger, _ = superlattices_and_sublattices(primitive_metric((4.0, 4.0, 4.0, 90, 90, 90), centring))
    number, count = np.unique(larger.index, return_counts=True)
    assert dict(zip(number.tolist(), count.tolist(), strict=True)) == counts


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_volumes_and_the_way_back(seed):
    rng = np.random.default_rng(seed)
    g = transform_metric(reciprocal_metric_from_cell(random_cell("aP", rng)), random_unimodular(rng, 2))
    larger, smaller = superlattices_and_sublattices(g, 3)
    volume = volume_from_reciprocal_metric(g)
    np.testing.assert_allclose(volume_from_reciprocal_metric(larger.metric) / volume, larger.index, rtol=1e-6)
    np.testing.assert_allclose(volume / volume_from_reciprocal_metric(smaller.metric), smaller.index, rtol=1e-6)
    # a superlattice of the smaller cell is the lattice itself, and a sublattice of the larger one too
    up, _ = superlattices_and_sublattices(smaller.metric[0], 2)
    _, down = superlattices_and_sublattices(larger.metric[3], 2)
    assert lattice_distance(up.metric, g).min() < 1e-6
    assert lattice_distance(down.metric, g).min() < 1e-6


def test_index_one_is_refused():
    with pytest.raises(ValueError, match="index 2"):
        superlattices_and_sublattices(np.array([1.0, 1.0, 1.0, 0.0, 0.0, 0.0]), 1)
