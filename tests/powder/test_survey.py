"""The search of one lattice in one program: it finds what is there, once, inside the window, as the slow way does."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from mlindex.crystal.lattice import BRAVAIS, SYSTEMS
from mlindex.crystal.metric import reciprocal_metric_from_cell, transform_metric
from mlindex.crystal.reduction import lattice_distance
from mlindex.powder import assign, propose, survey
from mlindex.powder.judge import PARAMETER, most_to_gain
from mlindex.powder.lines import lines_from_q2
from mlindex.powder.ranking import judged
from mlindex.powder.search import search, settled
from tests.powder.patterns import CELLS, CU, measured

LATTICES = tuple(name for name in BRAVAIS if BRAVAIS[name].n_free <= survey.MOST_FREE)


def listed(name, count=25):
    return lines_from_q2(measured(name, count, 0.005), CU)


def surveyed(name, lines, seed=1):
    window = propose.volume_window(lines.first(20), name)
    return survey.survey(survey.observed(lines), name, window, seed)


def distances(cells, name):
    primitive = BRAVAIS[name].primitive
    truth = transform_metric(reciprocal_metric_from_cell(np.array(CELLS[name][0], float)), primitive)
    return lattice_distance(transform_metric(cells, primitive), truth)


@pytest.mark.parametrize("name", LATTICES)
@pytest.mark.parametrize("count", [12, 25])
def test_the_true_cell_is_first(name, count):
    cells, score = surveyed(name, listed(name, count))
    assert (np.diff(score) <= 0).all()
    assert distances(cells[:1], name)[0] < 3e-3


@pytest.mark.parametrize("name", LATTICES)
def test_cells_are_distinct_and_of_the_lattice(name):
    cells, _ = surveyed(name, listed(name))
    system = SYSTEMS[BRAVAIS[name].system]
    np.testing.assert_allclose(cells @ system.project.T @ system.embed.T, cells, rtol=1e-6, atol=1e-12)
    x = cells @ system.project.T
    for i in range(1, len(x)):
        assert np.abs(x[:i] / x[i] - 1).max(1).min() > 2e-3


def test_nothing_is_found_outside_the_window():
    lines = listed("oP")
    low = propose.Window(1.0, 2.0)
    cells, score = survey.survey(survey.observed(lines), "oP", low, 0)
    assert len(cells) == len(score) == 0


@pytest.mark.parametrize("name", ["cI", "hR", "oS"])
def test_the_screen_is_that_of_the_slow_search(name):
    """From free parameters as from metrics: `assign.screen` is the authority."""
    lines = listed(name)
    lattice = BRAVAIS[name]
    constants, seen = survey._lattice(name), survey.observed(lines)
    rng = np.random.default_rng(3)
    x = rng.uniform(0.005, 0.05, (assign.TILE, lattice.n_free)).astype(np.float32)
    g = x @ np.asarray(constants.embed).T
    first = lines.first(survey.LINES)
    density = 2 * np.pi * first.q**2 / assign.NODES_PER_REFLECTION[lattice.system] / lattice.multiplicity
    expected = (2 * survey.TOLERANCE * first.w * density).astype(np.float32)
    products = np.zeros((constants.screened.shape[0], 6), np.float32)
    products[:] = np.asarray(constants.screened) @ np.asarray(constants.project)
    slow = assign.screen(g, products, seen.table, seen.scale, expected)
    fast = survey._screen(jnp.asarray(x), seen, constants)
    close = np.isclose(np.asarray(fast), np.asarray(slow), rtol=1e-4, atol=1e-4)
    assert close.mean() > 0.99  # a reflection on the edge of a bin may fall into either
    assert np.asarray(slow).max() > 5


@pytest.mark.parametrize("truth", ["mP", "mC", "aP"])
def test_a_cell_of_too_high_symmetry_never_settles_the_search(truth):
    lines = listed(truth)
    (true,) = judged(lines, [(truth, reciprocal_metric_from_cell(np.array(CELLS[truth][0], float)))], fit_zero=True)
    wrong = search(lines, effort="quick", lattices=LATTICES, seed=2)
    assert wrong
    for cell in wrong:
        assert true.evidence > cell.evidence and not settled([cell], lines, ("mC", "mP", "aP"))


@pytest.mark.parametrize("name", LATTICES)
def test_an_unexplained_or_an_absent_line_leaves_more_to_gain(name):
    lines = listed(name)
    (true,) = judged(lines, [(name, reciprocal_metric_from_cell(np.array(CELLS[name][0], float)))], fit_zero=True)
    gaps = np.diff(lines.q)
    gap = gaps.argmax()
    lonely = 1 + np.argsort(np.minimum(gaps[:-1], gaps[1:]))[-2:]  # the resolution of the list stays what it is
    alien = lines_from_q2(np.append(lines.q2, (lines.q[gap : gap + 2].mean()) ** 2), CU)
    fewer = lines_from_q2(np.delete(lines.q2, lonely), CU)
    least = most_to_gain(true.fit, lines, true.absent, 1)
    for worse in (alien, fewer):
        (fit,) = judged(worse, [(name, true.fit.g)], fit_zero=True)
        assert most_to_gain(fit.fit, worse, fit.absent, 1) > least
    assert most_to_gain(true.fit, lines, true.absent, 2) == least - PARAMETER


@pytest.mark.parametrize("name", ["cF", "cP", "hP", "tI"])
def test_a_true_cell_of_high_symmetry_settles_the_search(name):
    lines = listed(name)
    found = search(lines, effort="quick", lattices=LATTICES, seed=1)
    assert found[0].fit.bravais == name and found[0].probability > 0.5
    assert settled(found, lines, ("mC", "mP", "aP"))
    assert settled(found, lines, ()) and not settled([], lines, ())
