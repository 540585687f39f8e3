"""Bravais lattices recovered from primitive cells, against gemmi and against the cell they were made from."""

from __future__ import annotations

import gemmi
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlindex.crystal.lattice import BRAVAIS, SYSTEMS, allowed, free_from_metric, metric_from_free
from mlindex.crystal.metric import (
    cell_from_reciprocal_metric,
    q2_from_hkl,
    reciprocal_metric_from_cell,
    transform_metric,
)
from mlindex.crystal.reduction import lattice_distance, primitive_metric
from mlindex.crystal.settings import centring_of, standard_setting
from mlindex.crystal.symmetry import conventional_cells, strain
from tests.crystal.random_lattices import random_cell, random_unimodular, strained

SEEDS = st.integers(0, 10**6)
ORDER = {
    "cubic": 24,
    "hexagonal": 12,
    "tetragonal": 8,
    "rhombohedral": 6,
    "orthorhombic": 4,
    "monoclinic": 2,
    "triclinic": 1,
}


def check_laws(found, g, tolerance):
    """What every answer must satisfy, whatever the lattice."""
    orders = [ORDER[BRAVAIS[c.bravais].system] for c in found]
    assert orders == sorted(orders, reverse=True) and found[-1].bravais == "aP" and found[-1].distortion < 1e-9
    for candidate in found:
        lattice = BRAVAIS[candidate.bravais]
        assert round(np.linalg.det(candidate.transform)) == lattice.multiplicity
        assert candidate.distortion <= tolerance
        # the transform leads to the metric, up to the distortion; and the metric is of its system
        moved = transform_metric(g, candidate.transform)
        assert strain(moved, candidate.metric) <= candidate.distortion + 1e-7
        projected = metric_from_free(free_from_metric(candidate.metric, lattice.system), lattice.system)
        np.testing.assert_allclose(projected, candidate.metric, atol=1e-9 * candidate.metric[:3].max())
        assert centring_of(candidate.transform) == lattice.centring
        # and the axes are those of the standard setting
        standard, _ = standard_setting(candidate.cell, candidate.bravais)
        np.testing.assert_allclose(standard, candidate.cell, rtol=1e-4)


@pytest.mark.parametrize("name", BRAVAIS)
@settings(max_examples=8, deadline=None)
@given(seed=SEEDS)
def test_lattice_and_cell_are_recovered(name, seed):
    rng = np.random.default_rng(seed)
    cell = random_cell(name, rng)
    expected, _ = standard_setting(cell, name)
    exact = transform_metric(primitive_metric(cell, BRAVAIS[name].centring), random_unimodular(rng))
    for noise, tolerance in ((0.0, 1e-6), (1e-4, 3e-3)):
        g = strained(exact, noise, rng)
        found = conventional_cells(g, tolerance)
        check_laws(found, g, tolerance)
        matches = [c for c in found if c.bravais == name]
        assert matches, f"{name} {cell} found as {[c.bravais for c in found]}"
        # beta of two equally oblique C-centred settings is decided by the noise; lattices cannot differ
        primitive = [transform_metric(c.metric, BRAVAIS[name].primitive) for c in matches]
        assert min(lattice_distance(p, exact) for p in primitive) < 2e-3
        if noise == 0:
            np.testing.assert_allclose(min(matches, key=lambda c: c.distortion).cell, expected, rtol=1e-5)


@pytest.mark.parametrize("name", BRAVAIS)
@settings(max_examples=10, deadline=None)
@given(seed=SEEDS)
def test_highest_symmetry_against_gemmi(name, seed):
    rng = np.random.default_rng(seed)
    cell = random_cell(name, rng)
    g = transform_metric(primitive_metric(cell, BRAVAIS[name].centring), random_unimodular(rng, 3))
    authority = gemmi.find_lattice_symmetry(gemmi.UnitCell(*cell_from_reciprocal_metric(g)), "P", 0.01)
    best = conventional_cells(g, 1e-6)[0]
    assert ORDER[BRAVAIS[best.bravais].system] == len(authority.sym_ops)


NEARLY = [
    ("tP", (5.0, 5.0, 5.003, 90, 90, 90), {"cP", "tP", "oS", "oP", "hR", "mP", "mC", "aP"}),
    ("oP", (5.0, 5.004, 8.0, 90, 90, 90), {"tP", "oP", "oS", "mP", "aP"}),
    ("mP", (5.0, 7.0, 9.0, 90, 90.05, 90), {"oP", "mP", "aP"}),
    ("hR", (5.0, 5.0, 5.0 * np.sqrt(6) * 1.001, 90, 90, 120), {"cF", "hR", "tI", "oI", "oF", "mC", "aP"}),
    ("hR", (5.0, 5.0, 5.0 * np.sqrt(6) / 2 * 1.001, 90, 90, 120), {"cP", "hR", "tP", "oS", "aP"}),
    ("hR", (5.0, 5.0, 5.0 * np.sqrt(6) / 4 * 1.001, 90, 90, 120), {"cI", "hR", "tI", "oF", "mC", "aP"}),
    ("oS", (5.0, 5.0 * np.sqrt(3) * 1.0005, 8.0, 90, 90, 90), {"hP", "oS", "mP", "mC", "aP"}),
    ("mC", (9.0, 5.0, 7.0, 90, 90.03, 90), {"oS", "mC", "mP", "aP"}),
    ("tI", (5.0, 5.0, 5.0 * np.sqrt(2) * 1.001, 90, 90, 120 - 30), {"cF", "tI", "oF", "oI", "hR", "mC", "aP"}),
    ("aP", (5.0, 6.0, 7.0, 90.02, 89.98, 90.03), {"oP", "mP", "aP"}),
]


@pytest.mark.parametrize(("name", "cell", "expected"), NEARLY)
@pytest.mark.parametrize("seed", range(4))
def test_nearly_special_lattices_come_with_both_symmetries(name, cell, expected, seed):
    rng = np.random.default_rng(seed)
    g = transform_metric(primitive_metric(np.array(cell), BRAVAIS[name].centring), random_unimodular(rng))
    g = strained(g, 1e-5, rng)
    found = conventional_cells(g, 0.01)
    check_laws(found, g, 0.01)
    assert expected <= {c.bravais for c in found}
    # without the tolerance only the true symmetry is left, as far as the noise allows
    own = conventional_cells(g, 2e-4)
    assert own[0].bravais == name


@pytest.mark.parametrize("name", BRAVAIS)
@settings(max_examples=8, deadline=None)
@given(seed=SEEDS)
def test_standard_setting(name, seed):
    rng = np.random.default_rng(seed)
    cell, lattice = random_cell(name, rng), BRAVAIS[name]
    found, p = standard_setting(cell, name)
    g = reciprocal_metric_from_cell(cell)
    np.testing.assert_allclose(cell_from_reciprocal_metric(transform_metric(g, p)), found, rtol=1e-7)
    assert np.linalg.det(p) == pytest.approx(1)
    # the centring is still the standard one, so allowed reflections remain allowed
    hkl = rng.integers(-5, 6, (200, 3))
    moved = hkl @ p
    np.testing.assert_array_equal(allowed(np.rint(moved).astype(int), lattice.centring), allowed(hkl, lattice.centring))
    np.testing.assert_allclose(q2_from_hkl(transform_metric(g, p), moved), q2_from_hkl(g, hkl), rtol=1e-7)
    np.testing.assert_allclose(standard_setting(found, name)[0], found, rtol=1e-6)
    if lattice.system == "monoclinic":
        assert found[4] >= 90 and found[3] == found[5] == pytest.approx(90)
        # no other choice of axes in the net is less oblique (P: has shorter axes)
        for i, j in ((1, 0), (-1, 0), (0, 1), (0, -1), (2, 0), (0, 2), (-2, 0), (0, -2)):
            other = np.array([[1, 0, j], [0, 1, 0], [i, 0, 1]])
            if round(np.linalg.det(other)) != 1 or (lattice.centring == "C" and j % 2 == 1 and i % 2 == 1):
                continue
            if lattice.centring == "C" and i % 2:  # a + c would no longer be centred by C
                continue
            tried = cell_from_reciprocal_metric(transform_metric(reciprocal_metric_from_cell(found), other))
            assert abs(tried[4] - 90) >= abs(found[4] - 90) - 1e-4
    if lattice.system == "orthorhombic":
        ordered = found[:2] if name == "oS" else found[:3]
        assert np.all(np.diff(ordered) >= 0)


def test_other_centrings_are_brought_to_the_standard_one():
    # the textbook change from I to C: a' = -a - c, c' = a (or the like); the lattice must stay and beta be obtuse
    cell, p = standard_setting((6.0, 8.0, 9.0, 90, 95, 90), "mC", centring="I")
    given_lattice = primitive_metric((6.0, 8.0, 9.0, 90, 95, 90), "I")
    assert lattice_distance(primitive_metric(cell, "C"), given_lattice) < 1e-9 and cell[4] >= 90
    assert np.linalg.det(p) == pytest.approx(1)
    cell, _ = standard_setting((9.0, 6.0, 5.0, 90, 90, 90), "oS", centring="A")
    np.testing.assert_allclose(cell, (5, 6, 9, 90, 90, 90))


def test_quartz_and_calcite_by_their_literature_cells():
    for name, cell in (("hP", (4.913, 4.913, 5.405, 90, 90, 120)), ("hR", (4.990, 4.990, 17.061, 90, 90, 120))):
        g = transform_metric(
            primitive_metric(cell, BRAVAIS[name].centring), np.array([[1, 1, 0], [0, 1, 1], [0, 0, 1]])
        )
        best = conventional_cells(g, 0.002)[0]
        assert best.bravais == name
        np.testing.assert_allclose(best.cell, cell, rtol=1e-9)


def test_each_bravais_lattice_has_its_free_parameters():
    assert {b.n_free for b in BRAVAIS.values()} == {s.n_free for s in SYSTEMS.values()}


def test_bad_requests_are_named():
    with pytest.raises(ValueError, match="not that of a lattice"):
        conventional_cells(np.array([1.0, 1.0, 1.0, 4.0, 0.0, 0.0]))
    with pytest.raises(ValueError, match="mC cannot have the centring 'F'"):
        standard_setting((5, 6, 7, 90, 95, 90), "mC", centring="F")
    with pytest.raises(ValueError, match="unknown Bravais lattice"):
        standard_setting((5, 6, 7, 90, 95, 90), "mX")
