"""Lattice systems and Bravais lattices against gemmi's space groups."""

from __future__ import annotations

import gemmi
import numpy as np
import pytest

from mlindex.crystal.lattice import (
    BRAVAIS,
    SYSTEMS,
    allowed,
    free_from_metric,
    holohedry,
    metric_from_free,
    primitive_transform,
    symmetrised_metric,
)
from mlindex.crystal.metric import products_from_hkl, q2_from_hkl, transform_metric

# The symmorphic group of full point symmetry on each Bravais lattice
HOLOHEDRAL = {
    "cF": "F m -3 m",
    "cI": "I m -3 m",
    "cP": "P m -3 m",
    "hR": "R -3 m:H",
    "hP": "P 6/m m m",
    "tI": "I 4/m m m",
    "tP": "P 4/m m m",
    "oF": "F m m m",
    "oI": "I m m m",
    "oS": "C m m m",
    "oP": "P m m m",
    "mC": "C 1 2/m 1",
    "mP": "P 1 2/m 1",
    "aP": "P -1",
}


def operations(name):
    """The rotations of gemmi's group, as W with hkl' = hkl W."""
    found = gemmi.SpaceGroup(HOLOHEDRAL[name]).operations()
    return np.array([op.rot for op in found.sym_ops]) // gemmi.Op.DEN


def test_the_fourteen():
    assert set(BRAVAIS) == set(HOLOHEDRAL)
    assert sum(b.n_free for b in BRAVAIS.values()) == 3 * 1 + 2 * 4 + 3 * 4 + 4 * 2 + 6


@pytest.mark.parametrize("name", BRAVAIS)
def test_the_map_spans_the_metrics_that_the_holohedry_keeps(name):
    lattice, ops = BRAVAIS[name], operations(name)
    system = SYSTEMS[lattice.system]
    # the average over the group is a projection of rank n_free; its image is the span of the map
    average = np.stack([symmetrised_metric(e, ops) for e in np.eye(6)], 1)
    assert np.linalg.matrix_rank(average, tol=1e-9) == lattice.n_free == system.n_free
    np.testing.assert_allclose(average @ system.embed, system.embed, atol=1e-12)
    np.testing.assert_allclose(system.embed @ system.project, average, atol=1e-12)
    np.testing.assert_allclose(system.project @ system.embed, np.eye(system.n_free), atol=1e-12)


@pytest.mark.parametrize("name", BRAVAIS)
def test_holohedry_is_gemmis(name):
    ours = {tuple(w.ravel()) for w in holohedry(BRAVAIS[name].system)}
    assert ours == {tuple(w.ravel()) for w in operations(name)}


@pytest.mark.parametrize("name", BRAVAIS)
def test_free_parameters_round_trip(name):
    system = BRAVAIS[name].system
    free = np.random.default_rng(1).uniform(0.01, 0.02, (4, 5, SYSTEMS[system].n_free))
    g = metric_from_free(free, system)
    assert g.shape == (4, 5, 6)
    np.testing.assert_allclose(free_from_metric(g, system), free, rtol=1e-12)


@pytest.mark.parametrize("name", BRAVAIS)
def test_centring_against_gemmi(name):
    hkl = np.stack(np.meshgrid(*[np.arange(-4, 5)] * 3, indexing="ij"), -1).reshape(-1, 3)
    group = gemmi.SpaceGroup(HOLOHEDRAL[name]).operations()
    absent = group.systematic_absences(hkl.astype(np.int32))
    np.testing.assert_array_equal(allowed(hkl, BRAVAIS[name].centring), ~absent)


@pytest.mark.parametrize("name", BRAVAIS)
def test_primitive_basis_indexes_the_allowed_reflections_and_no_other(name):
    lattice = BRAVAIS[name]
    assert np.linalg.det(lattice.primitive) == pytest.approx(1 / lattice.multiplicity)
    hkl = np.stack(np.meshgrid(*[np.arange(-3, 4)] * 3, indexing="ij"), -1).reshape(-1, 3)
    primitive = hkl @ lattice.primitive
    integral = np.all(np.abs(primitive - np.round(primitive)) < 1e-9, axis=1)
    np.testing.assert_array_equal(integral, allowed(hkl, lattice.centring))
    free = np.random.default_rng(2).uniform(0.01, 0.02, SYSTEMS[lattice.system].n_free)
    g = metric_from_free(free, lattice.system)
    np.testing.assert_allclose(
        q2_from_hkl(transform_metric(g, lattice.primitive), primitive), products_from_hkl(hkl) @ g, rtol=1e-9
    )


def test_unknown_centring_is_named():
    with pytest.raises(ValueError, match="unknown centring 'X'"):
        primitive_transform("X")
    with pytest.raises(ValueError, match="unknown centring 'X'"):
        allowed(np.zeros((1, 3), np.int64), "X")
