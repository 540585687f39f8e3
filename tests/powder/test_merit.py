"""Figures of merit against values worked out by hand and by gemmi."""

from __future__ import annotations

import dataclasses

import gemmi
import numpy as np
import pytest

from mlindex.crystal.lattice import BRAVAIS
from mlindex.crystal.metric import reciprocal_metric_from_cell
from mlindex.powder import judge, merit
from mlindex.powder.lines import lines_from_q2
from tests.powder.patterns import CELLS, CU, measured, positions, reflections, tth_from_q2

# Sums of three squares up to 24, without 7, 15 and 23: the lines of a primitive cubic cell
SUMS = np.array([1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 13, 14, 16, 17, 18, 19, 20, 21, 22, 24])


def fit_of(q2, cell, bravais, wavelength=CU):
    lines = lines_from_q2(q2, wavelength)
    fit = judge.fit_cell(lines, reciprocal_metric_from_cell(np.array(cell, float)), bravais)
    assert fit is not None
    return fit, lines


def test_primitive_cubic_by_hand():
    a, seen = 8.0, np.array([1, 2, 3, 5, 6, 8, 9, 11, 12, 13, 14, 16, 17, 18, 19, 20, 21, 22, 24])
    off = 2e-5 * np.array([1, -1] * 9 + [0])
    q2 = seen / a**2 + off
    fit, lines = fit_of(q2, (a, a, a, 90, 90, 90), "cP")
    assert fit.indexed.all()
    fitted = 1 / np.sqrt(fit.g[0])
    difference = np.abs(q2 - seen / fitted**2)
    # de Wolff: Q_N over twice the mean discrepancy times the number of lines possible up to Q_N, here all 21
    assert merit.de_wolff(fit, lines) == pytest.approx(q2[-1] / (2 * difference.mean() * len(SUMS)), rel=1e-9)
    angles = np.abs(tth_from_q2(q2) - tth_from_q2(seen / fitted**2))
    assert merit.smith_snyder(fit, lines) == pytest.approx(19 / (angles.mean() * len(SUMS)), rel=2e-3)
    # M_10 counts up to the tenth line, N = 13: eleven sums and 12, 13
    assert merit.de_wolff(fit, lines, 10) == pytest.approx(q2[9] / (2 * difference[:10].mean() * 12), rel=1e-9)


@pytest.mark.parametrize("name", BRAVAIS)
def test_every_lattice_against_gemmi(name):
    q2 = measured(name, 20)
    fit, lines = fit_of(q2, CELLS[name][0], name)
    use = fit.indexed
    cell = np.array(gemmi.UnitCell(*cell_of(fit)).parameters)
    all_q2 = reflections(cell, CELLS[name][1], q2[-1] * 1.05)[1]
    distinct = all_q2[np.append(True, np.diff(all_q2) > 1e-9)]
    calculated = distinct[np.abs(q2[use][:, None] - distinct).argmin(1)]
    possible = (distinct <= calculated.max() + 1e-9).sum()
    m20 = q2[use].max() / (2 * np.abs(q2[use] - calculated).mean() * possible)
    assert merit.de_wolff(fit, lines) == pytest.approx(m20, rel=1e-3)
    angles = np.abs(tth_from_q2(q2[use]) - tth_from_q2(calculated))
    assert merit.smith_snyder(fit, lines) == pytest.approx(use.sum() / (angles.mean() * possible), rel=5e-3)


def cell_of(fit):
    """The direct cell by inverting the matrix of the metric."""
    a, b, c, d, e, f = fit.g
    direct = np.linalg.inv(np.array([[a, f / 2, e / 2], [f / 2, b, d / 2], [e / 2, d / 2, c]]))
    edges = np.sqrt(np.diag(direct))
    cosines = [direct[i, j] / edges[i] / edges[j] for i, j in ((1, 2), (0, 2), (0, 1))]
    return (*edges, *np.rad2deg(np.arccos(cosines)))


def test_units_and_scale():
    """M_N has no dimension; F_N needs an angle."""
    q2 = positions(*CELLS["oP"], 20, 0.06) * (1 + 1e-5 * np.random.default_rng(1).normal(size=20))
    fit, lines = fit_of(q2, CELLS["oP"][0], "oP", None)
    larger, scaled = fit_of(q2 / 4, np.array(CELLS["oP"][0]) * [2, 2, 2, 1, 1, 1], "oP", None)
    assert np.isnan(merit.smith_snyder(fit, lines))
    assert fit.indexed.all() and larger.indexed.all()
    assert merit.de_wolff(larger, scaled) == pytest.approx(merit.de_wolff(fit, lines), rel=1e-2)


@pytest.mark.parametrize("name", ["cP", "oI", "aP"])
def test_better_agreement_is_more_merit_and_more_information(name):
    sharp, blurred = (fit_of(measured(name, 20, error=e), CELLS[name][0], name) for e in (0.002, 0.012))
    for figure in (merit.de_wolff, merit.smith_snyder, merit.information):
        assert figure(*sharp) > figure(*blurred) > 0


def test_a_doubled_cell_has_less_merit():
    q2 = measured("oP", 20)
    right, doubled = fit_of(q2, CELLS["oP"][0], "oP"), fit_of(q2, (6.137, 8.291, 2 * 10.673, 90, 90, 90), "oP")
    for figure in (merit.de_wolff, merit.smith_snyder, merit.information):
        assert figure(*right) > figure(*doubled)


def test_information_by_its_formula_and_nothing_for_nothing():
    fit, lines = fit_of(measured("tP", 20), CELLS["tP"][0], "tP")
    distinct = np.unique(np.round(fit.q2, 12))
    last = fit.q2[fit.reflection[fit.indexed]].max()
    q2 = fit.q2[fit.reflection[fit.indexed]]
    count = (distinct <= last * (1 + 1e-9)).sum()
    # N(q) = N (q / q_last)^3 has the density dN/dq2 = 3/2 N q / q_last^3
    density = 1.5 * count * np.sqrt(q2) / last**1.5
    unit = (2 * lines.q * lines.w)[fit.indexed]
    miss = np.maximum(np.abs(fit.residual[fit.indexed]), 0.2 * fit.error) * unit
    bits = -np.log2(1 - np.exp(-2 * density * miss)).sum() * (1 - 2 / fit.indexed.sum())
    assert merit.information(fit, lines) == pytest.approx(bits, rel=1e-6)
    empty = dataclasses.replace(fit, indexed=np.zeros_like(fit.indexed))
    assert merit.de_wolff(empty, lines) == 0.0 == merit.information(empty, lines)
    assert np.isnan(merit.smith_snyder(empty, lines))
