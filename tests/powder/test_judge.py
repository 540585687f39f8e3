"""The final fit against SciPy and a Monte Carlo; the evidence by the laws that it has to obey."""

from __future__ import annotations

from dataclasses import replace

import gemmi
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import least_squares
from scipy.special import binom
from scipy.stats import betabinom

from mlindex.crystal.extinctions import extinction_groups
from mlindex.crystal.lattice import BRAVAIS, SYSTEMS
from mlindex.crystal.metric import reciprocal_metric_from_cell
from mlindex.powder import judge
from mlindex.powder.lines import lines_from_q2
from mlindex.powder.ranking import judged
from tests.powder.patterns import CELLS, CU, measured, positions, q2_from_tth, reflections, tth_from_q2


def metric(cell):
    return reciprocal_metric_from_cell(np.array(cell, float))


def fitted(lines, cell, bravais, **options):
    fit = judge.fit_cell(lines, metric(cell), bravais, **options)
    assert fit is not None
    return fit


def gain(lines, cell, bravais, **options):
    """Evidence over chance, without extinctions."""
    (value,) = judge.evidence(fitted(lines, cell, bravais, **options), lines)
    return value - judge.chance_evidence(lines)


@pytest.mark.parametrize("fit_zero", [False, True])
@pytest.mark.parametrize("name", BRAVAIS)
def test_fit_is_that_of_scipy(name, fit_zero):
    lines = lines_from_q2(measured(name, 25, zero=0.02 if fit_zero else 0.0), CU)
    system = SYSTEMS[BRAVAIS[name].system]
    truth = metric(CELLS[name][0])
    # enough rounds for the choice of lines to settle
    fit = fitted(lines, CELLS[name][0], name, fit_zero=fit_zero, rounds=12)
    unit = 2 * lines.q * lines.w
    hkl = fit.hkl[fit.reflection].astype(float)
    h, k, m = hkl.T
    rows = np.stack([h * h, k * k, m * m, k * m, h * m, h * k], 1) @ system.embed
    use = fit.indexed

    def residual(p):
        zero = p[-1] if fit_zero else 0.0
        misfit = ((lines.q2 - rows @ p[: system.n_free]) / unit - zero)[use]
        # the weak prior of the zero shift counts as one more observation
        return np.append(misfit, zero * fit.error / judge.ZERO_SIGMA) if fit_zero else misfit

    start = np.append(system.project @ truth, 0.0) if fit_zero else system.project @ truth
    found = least_squares(residual, start, x_scale="jac", xtol=1e-15, ftol=1e-15, gtol=1e-15)
    esd = np.sqrt(np.diag(fit.covariance))
    ours = np.append(system.project @ fit.g, fit.zero) if fit_zero else system.project @ fit.g
    np.testing.assert_array_less(np.abs(found.x - ours) / esd, 0.15)
    expected = fit.error**2 * np.linalg.inv(found.jac.T @ found.jac)
    np.testing.assert_allclose(esd, np.sqrt(np.diag(expected)), rtol=0.05)
    np.testing.assert_allclose(fit.residual[use], residual(ours)[: use.sum()], atol=1e-9)
    assert use.sum() >= 23 and (np.diff(fit.q2) >= 0).all()


@pytest.mark.parametrize(("name", "fit_zero"), [("cF", True), ("hP", False), ("oP", True), ("mP", False), ("aP", True)])
def test_standard_uncertainties_are_honest(name, fit_zero):
    tth = tth_from_q2(positions(*CELLS[name], 25, 0.25))
    rng = np.random.default_rng(11)
    found, claimed = [], []
    for _ in range(200):
        lines = lines_from_q2(q2_from_tth(tth + rng.normal(0, 0.008, 25)), CU)
        fit = fitted(lines, CELLS[name][0], name, fit_zero=fit_zero)
        x = SYSTEMS[BRAVAIS[name].system].project @ fit.g
        found.append(np.append(x, fit.zero) if fit_zero else x)
        claimed.append(np.diag(fit.covariance))
    ratio = np.std(found, axis=0) / np.sqrt(np.mean(claimed, axis=0))
    assert ((ratio > 0.75) & (ratio < 1.3)).all(), ratio
    truth = SYSTEMS[BRAVAIS[name].system].project @ metric(CELLS[name][0])
    bias = (np.mean(found, axis=0)[: len(truth)] - truth) / np.std(found, axis=0)[: len(truth)]
    assert np.abs(bias).max() < 0.35, bias


@pytest.mark.parametrize("zero", [-0.05, 0.03, 0.05])
@pytest.mark.parametrize("name", ["cP", "tI", "oP", "mP", "aP"])
def test_zero_shift_is_recovered(name, zero):
    lines = lines_from_q2(measured(name, 30, error=0.003, zero=zero), CU)
    fit = fitted(lines, CELLS[name][0], name, fit_zero=True)
    esd = np.sqrt(fit.covariance[-1, -1])
    assert abs(fit.zero - zero) < 4 * esd + abs(zero) * (esd / judge.ZERO_SIGMA) ** 2 and esd < 0.02


@pytest.mark.parametrize("name", ["cP", "tP", "oP", "mP", "aP"])
def test_doubling_the_cell_costs_evidence(name):
    lines = lines_from_q2(measured(name, 25), CU)
    a, b, c, *angles = CELLS[name][0]
    doubled = (2 * a, 2 * b, 2 * c, *angles) if name == "cP" else (a, b, 2 * c, *angles)
    assert gain(lines, CELLS[name][0], name) > gain(lines, doubled, name) + 3


@pytest.mark.parametrize(
    ("name", "lower"), [("cP", "tP"), ("cF", "tI"), ("tP", "oP"), ("hP", "aP"), ("oP", "mP"), ("mP", "aP")]
)
def test_a_parameter_that_explains_nothing_costs_evidence(name, lower):
    lines = lines_from_q2(measured(name, 25), CU)
    cell = CELLS[name][0]
    same = (cell[0] / np.sqrt(2), cell[0] / np.sqrt(2), cell[2], 90, 90, 90) if lower == "tI" else cell
    assert gain(lines, cell, name) > gain(lines, same, lower) + 2


@pytest.mark.parametrize("name", BRAVAIS)
def test_an_unexplained_line_costs_evidence(name):
    q2 = measured(name, 25)
    q2_ref = reflections(*CELLS[name], q2[-1] * 1.02)[1]
    between = np.linspace(q2[2], q2[-1], 4000)
    alien = between[np.abs(between[:, None] - q2_ref).min(1).argmax()]
    clean, added = lines_from_q2(q2, CU), lines_from_q2(np.append(q2, alien), CU)
    fit = fitted(added, CELLS[name][0], name)
    assert not fit.indexed[np.searchsorted(added.q2, alien)]
    (with_alien,), (without,) = judge.evidence(fit, added), judge.evidence(fitted(clean, CELLS[name][0], name), clean)
    assert with_alien < without - 2
    # chance explains the added line as well as the cell does; in place of a line of the cell it is a loss
    assert gain(added, CELLS[name][0], name) <= gain(clean, CELLS[name][0], name) + 0.1
    moved = lines_from_q2(np.append(np.delete(q2, 8), alien), CU)
    assert gain(moved, CELLS[name][0], name) < gain(clean, CELLS[name][0], name) - 4


@pytest.mark.parametrize("name", ["cI", "oP", "mC", "aP"])
def test_missing_lines_and_larger_errors_cost_evidence(name):
    q2 = measured(name, 30)
    full, thinned = lines_from_q2(q2, CU), lines_from_q2(np.delete(q2, [3, 4, 8, 9, 12, 17]), CU)
    cell = CELLS[name][0]
    assert gain(thinned, cell, name) / len(thinned) < gain(full, cell, name) / len(full)
    assert gain(lines_from_q2(measured(name, 30, error=0.02), CU), cell, name) < gain(full, cell, name)


@pytest.mark.parametrize("name", ["hR", "aP"])
def test_order_of_the_lines_does_not_matter(name):
    q2 = measured(name, 25)
    mixed = np.random.default_rng(0).permutation(q2)
    assert gain(lines_from_q2(q2, CU), CELLS[name][0], name) == gain(lines_from_q2(mixed, CU), CELLS[name][0], name)


def test_a_cell_that_cannot_be_fitted_is_none():
    lines = lines_from_q2(measured("oP", 25), CU)
    assert judge.fit_cell(lines, metric((1.1, 1.2, 1.3, 90, 90, 90)), "oP") is None  # no reflection in range
    assert judge.fit_cell(lines, np.array([0.02, 0.02, 0.02, 0.05, 0.05, 0.05]), "aP") is None  # no cell


@given(
    position=st.lists(st.floats(0, 5), min_size=1, max_size=60),
    width=st.floats(0.01, 0.5),
)
def test_clusters_are_never_wider_than_the_resolution(position, width):
    position = np.sort(np.array(position))
    cluster = judge._clusters(position, width)
    assert cluster[0] == 0 and set(np.diff(cluster)) <= {0, 1}
    for number in range(cluster[-1] + 1):
        own = position[cluster == number]
        assert own[-1] - own[0] <= width * (1 + 1e-9)
    assert (np.diff(cluster)[np.diff(position) > width * (1 + 1e-9)] == 1).all()


@given(seed=st.integers(0, 10**6))
def test_one_line_a_reflection(seed):
    rng = np.random.default_rng(seed)
    reflection, residual = rng.integers(0, 8, 15), rng.normal(size=15)
    keep = judge._one_line_a_reflection(reflection, residual)
    for number in np.unique(reflection):
        own = np.flatnonzero(reflection == number)
        assert keep[own].sum() == 1 and np.abs(residual[own[keep[own]]])[0] == np.abs(residual[own]).min()


@given(seed=st.integers(0, 10**6))
def test_nearest_of_an_ascending_list(seed):
    rng = np.random.default_rng(seed)
    reference, q2 = np.sort(rng.uniform(0, 1, 20)), rng.uniform(-0.2, 1.2, 30)
    distance = np.abs(q2[:, None] - reference)
    found = judge._nearest(q2, reference)
    np.testing.assert_allclose(distance[np.arange(30), found], distance.min(1))


@pytest.mark.parametrize(
    ("bravais", "cell", "group"),
    [
        ("mP", (7.313, 9.127, 8.461, 90, 103.21, 90), "P 1 21/c 1"),
        ("oP", (6.137, 8.291, 10.673, 90, 90, 90), "P n m a"),
        ("tI", (7.137, 7.137, 13.217, 90, 90, 90), "I 41/a m d:2"),
        ("cF", (12.331, 12.331, 12.331, 90, 90, 90), "F d -3 m:2"),
        ("hP", (8.129, 8.129, 6.731, 90, 90, 120), "P 63/m m c"),
    ],
)
def test_extinctions_raise_the_evidence_of_the_right_group(bravais, cell, group):
    tth = tth_from_q2(positions(cell, group, 30, 0.06))
    lines = lines_from_q2(q2_from_tth(tth + np.random.default_rng(3).normal(0, 0.005, 30)), CU)
    fit = fitted(lines, cell, bravais)
    operations = gemmi.SpaceGroup(group).operations()
    absent = np.array([operations.is_systematically_absent(h) for h in fit.hkl.tolist()])
    right, none, wrong = judge.evidence(fit, lines, np.stack([absent, np.zeros_like(absent), ~absent]))
    assert right > none + 1 > wrong + 10
    found = judged(lines, [(bravais, metric(cell))], fit_zero=False)[0].space_group
    operations = gemmi.SpaceGroup(found).operations()
    # another group may have the same extinctions, or differ by reflections that hide behind others
    said = np.array([operations.is_systematically_absent(h) for h in fit.hkl.tolist()])
    seen = fit.q2 < lines.q2[-1]
    assert (said == absent)[seen].mean() > 0.9
    possible = {int(cluster) for cluster in fit.cluster[~said]}
    assert possible.issuperset(fit.cluster[fit.reflection[fit.indexed]].tolist())
    groups = extinction_groups(bravais, fit.hkl)
    assert judge.evidence(fit, lines, groups.mask).max() >= right - 1


@given(seen=st.integers(0, 60), missed=st.integers(0, 60), a=st.floats(0.3, 20), b=st.floats(0.3, 20))
def test_lines_seen_and_missed_are_beta_binomial(seen, missed, a, b):
    """SciPy's distribution is of the number seen, whatever the order."""
    got = judge.log_seen(np.array([[seen, missed]]), (a, b))[0]
    n = seen + missed
    assert got == pytest.approx(betabinom(n, a, b).logpmf(seen) - np.log(binom(n, seen)), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize(("index", "count"), [(2, 7), (3, 13), (4, 35)])
def test_sublattices_of_a_triclinic_cell_keep_one_reflection_in_so_many(index, count):
    """Their numbers are those of subgroups of Z^3; of a lattice's many reflections one in `index` is kept."""
    name = "aP"
    lines = lines_from_q2(positions(*CELLS[name], 400), CU)
    fit = fitted(lines, CELLS[name][0], name)
    visible = np.sqrt(fit.q2) <= lines.q[-1]
    # every reflection a line of its own, so that lines stand for reflections
    alone = replace(fit, cluster=np.arange(len(fit.hkl)))
    kept = judge.basic_lines(alone, visible, visible, index)
    assert len(kept) == count
    np.testing.assert_allclose(kept.sum(1) / visible.sum(), 1 / index, rtol=0.25)
    assert not kept[:, ~visible].any()
    if index == 2:  # those of the planes h + k + l = 2n and so on: every row is a parity
        parity = {tuple((fit.hkl @ np.array(w) % 2 == 0)[visible]) for w in np.ndindex(2, 2, 2) if any(w)}
        assert {tuple(row[visible]) for row in kept} == parity


def test_a_superstructure_with_few_lines_of_its_own_gains_more_than_one_with_many():
    """A doubled cell whose own lines are nearly all unseen is one, and one whose own lines are all seen is not."""
    name = "oP"
    a, b, c, *angles = CELLS[name][0]
    doubled = metric([a, b, 2 * c, *angles])
    basic = positions(*CELLS[name], 20)
    fit = judge.fit_cell(lines_from_q2(basic, CU), doubled, name)
    own = np.flatnonzero(fit.hkl[:, 2] % 2 == 1)
    gains = []
    for share in (0.1, 1.0):
        chosen = own[: max(1, round(share * len(own)))]
        lines = lines_from_q2(np.unique(np.concatenate([basic, fit.q2[chosen]])), CU)
        again = judge.fit_cell(lines, doubled, name)
        gains.append(judge.superstructure_gain(again, lines, np.zeros(len(again.hkl), bool)))
    assert gains[0] > 2 and gains[1] < 0.5, gains
