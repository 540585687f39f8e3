"""Relatives of a cell: the true lattice is among those of its doubled, halved and unsymmetrical descriptions."""

from __future__ import annotations

import numpy as np
import pytest

from mlindex.crystal.lattice import BRAVAIS, SYSTEMS
from mlindex.crystal.metric import reciprocal_metric_from_cell, transform_metric, volume_from_reciprocal_metric
from mlindex.crystal.reduction import lattice_distance, primitive_metric
from mlindex.powder import judge
from mlindex.powder.lines import lines_from_q2
from mlindex.powder.relatives import relatives
from tests.powder.patterns import CELLS, CU, measured, positions


def fit_of(name, g, bravais, count=30):
    fit = judge.fit_cell(lines_from_q2(measured(name, count), CU), np.asarray(g, float), bravais)
    assert fit is not None
    return fit


def truth_of(name):
    return primitive_metric(np.array(CELLS[name][0], float), BRAVAIS[name].centring)


def distances(found, name):
    """How far each relative of the right Bravais lattice is from the truth."""
    near = [transform_metric(g, BRAVAIS[b].primitive) for b, g in found if b == name]
    return lattice_distance(np.array(near), truth_of(name)) if near else np.array([np.inf])


def check(found):
    for bravais, g in found:
        system = SYSTEMS[BRAVAIS[bravais].system]
        np.testing.assert_allclose(system.embed @ (system.project @ g), g, atol=1e-9 * g[:3].max())


@pytest.mark.parametrize(
    ("name", "index"), [(n, 2) for n in BRAVAIS] + [(n, 3) for n in ("oP", "oF", "mP", "mC", "aP")]
)
def test_the_true_lattice_is_a_relative_of_its_superlattice(name, index):
    """The superlattice has the primitive axis a times `index`, and no symmetry that would give it away."""
    larger = transform_metric(truth_of(name), np.diag([index, 1, 1]))
    found = relatives(fit_of(name, larger, "aP"), tolerance=0.004, missing=3)
    check(found)
    assert distances(found, name).min() < 2e-3


@pytest.mark.parametrize("name", ["cP", "tP", "oP", "oF", "mP", "mC", "aP"])
def test_the_true_lattice_is_a_relative_of_its_sublattice(name):
    smaller = transform_metric(truth_of(name), np.diag([1, 1, 0.5]))
    fit = fit_of(name, smaller, "aP")
    assert not fit.indexed.all()
    found = relatives(fit, tolerance=0.006, missing=3)
    check(found)
    assert distances(found, name).min() < 5e-3


@pytest.mark.parametrize("name", [n for n in BRAVAIS if n != "aP"])
def test_higher_metric_symmetry_is_found(name):
    found = relatives(fit_of(name, truth_of(name), "aP"), tolerance=0.004, missing=3)
    assert distances(found, name).min() < 1e-3


def test_tetragonal_within_the_tolerance_only():
    def described(tolerance):
        g = reciprocal_metric_from_cell(np.array([7.421, 7.445, 9.836, 90, 90, 90]))
        q2 = positions((7.421, 7.445, 9.836, 90, 90, 90), "P m m m", 30, 0.02)
        fit = judge.fit_cell(lines_from_q2(q2, CU), g, "oP")
        return {b for b, _ in relatives(fit, tolerance=tolerance, missing=0)}

    assert "tP" in described(0.01) and "tP" not in described(0.001)


def test_a_cell_that_explains_all_is_neither_doubled_nor_halved():
    q2 = positions(*CELLS["oP"], 20)
    g = reciprocal_metric_from_cell(np.array(CELLS["oP"][0], float))
    fit = judge.fit_cell(lines_from_q2(q2, CU), g, "oP")
    assert fit.indexed.all()
    found = relatives(fit, tolerance=0.004, missing=0)
    assert "oP" in {b for b, _ in found}
    for bravais, other in found:
        primitive = transform_metric(other, BRAVAIS[bravais].primitive)
        np.testing.assert_allclose(
            volume_from_reciprocal_metric(primitive), volume_from_reciprocal_metric(g), rtol=1e-6
        )
    # with lines to spare smaller cells are tried, with lines left over larger ones
    volumes = [
        volume_from_reciprocal_metric(transform_metric(other, BRAVAIS[b].primitive))
        for b, other in relatives(fit, tolerance=0.004, missing=20)
    ]
    assert min(volumes) < 0.34 * volume_from_reciprocal_metric(g)
    alien = judge.fit_cell(lines_from_q2(np.append(q2, 0.5 * (q2[0] + q2[1])), CU), g, "oP")
    volumes = [
        volume_from_reciprocal_metric(transform_metric(other, BRAVAIS[b].primitive))
        for b, other in relatives(alien, tolerance=0.004, missing=0)
    ]
    assert max(volumes) > 2.9 * volume_from_reciprocal_metric(g)
