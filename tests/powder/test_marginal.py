"""The likelihood over all assignments: as enumerated, its gradient as differenced, its climb monotone, to the cell."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from mlindex.crystal.lattice import BRAVAIS, SYSTEMS
from mlindex.crystal.metric import reciprocal_metric_from_cell
from mlindex.powder import marginal, refine
from mlindex.powder.lines import lines_from_q2
from tests.powder.patterns import CELLS, CU, measured
from tests.powder.test_refine import distance_from_truth, perturbed
from tests.powder.test_refine import problem_of as numpy_problem_of

COUNT = 20
em_step = jax.jit(marginal.em_step)


def problem_of(name, lines, **options):
    """The lines and the reference list on the device."""
    return jax.tree.map(jnp.asarray, numpy_problem_of(name, lines, **options))


def small(name, count, reflections):
    """A problem of the first `count` lines and the first `reflections` of the list."""
    problem = problem_of(name, lines_from_q2(measured(name, count), CU), size=count)
    return problem._replace(products=problem.products[:reflections])


def free(name):
    system = SYSTEMS[BRAVAIS[name].system]
    return jnp.asarray(system.project @ reciprocal_metric_from_cell(np.array(CELLS[name][0], float)), jnp.float32)


@pytest.mark.parametrize(("name", "width"), [("cP", 0.05), ("tP", 0.4), ("mP", 0.2), ("aP", 1.0)])
def test_is_the_sum_over_all_assignments(name, width):
    lines, reflections, impurities = 4, 7, 0.1
    problem = small(name, lines, reflections)
    x = free(name) * 1.01
    position = np.asarray(problem.products @ problem.embed @ x)
    q2, sigma = np.asarray(problem.q2), np.asarray(problem.sigma)
    span = q2[-1] / sigma.mean()
    z = (q2[:, None] - position) / sigma[:, None]
    density = (1 - impurities) / reflections * norm.pdf(z, scale=width)
    total = 0.0
    for assignment in itertools.product(range(reflections + 1), repeat=lines):  # the last one is an impurity
        product = 1.0
        for line, h in enumerate(assignment):
            product *= impurities / span if h == reflections else density[line, h]
        total += product
    found = marginal.log_likelihood(x, problem, jnp.full(lines, width), impurities)
    np.testing.assert_allclose(found, np.log(total), rtol=2e-5)


@settings(max_examples=15)
@given(name=st.sampled_from(["cI", "hP", "oP", "mC", "aP"]), seed=st.integers(0, 10**6), spread=st.floats(1e-3, 0.1))
def test_gradient_is_that_of_finite_differences(name, seed, spread):
    problem = problem_of(name, lines_from_q2(measured(name, COUNT), CU))
    x = (perturbed(name, 0.02, 1, seed)[0] @ SYSTEMS[BRAVAIS[name].system].project.T).astype(np.float64)
    with jax.enable_x64(True):
        exact = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), problem)
        value = jax.jit(marginal.log_likelihood)
        widths = marginal.line_widths(exact, jnp.float64(0.012), jnp.float64(spread))
        span = 1e-6 * np.abs(x).max()
        numeric = [
            (value(x + span * unit, exact, widths) - value(x - span * unit, exact, widths)) / (2 * span)
            for unit in np.eye(len(x))
        ]
        analytic = jax.jit(marginal.gradient)(x, exact, widths)
    np.testing.assert_allclose(analytic, numeric, rtol=1e-5, atol=1e-5 * np.abs(numeric).max())


@settings(max_examples=15)
@given(name=st.sampled_from(["cF", "tI", "oS", "mP", "aP"]), seed=st.integers(0, 10**6), spread=st.floats(0, 0.1))
def test_a_step_never_lowers_the_likelihood(name, seed, spread):
    problem = problem_of(name, lines_from_q2(measured(name, COUNT), CU))
    x = (perturbed(name, 0.03, 1, seed)[0] @ SYSTEMS[BRAVAIS[name].system].project.T).astype(np.float64)
    with jax.enable_x64(True):
        exact = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), problem)
        x, values = jnp.asarray(x), []
        widths = marginal.line_widths(exact, jnp.float64(0.012), jnp.float64(spread))
        for _ in range(6):
            x, value = em_step(x, exact, widths, jnp.ones(COUNT))
            values.append(float(value))
    assert np.diff(values).min() > -1e-3  # the damping alone may cost a little


@pytest.mark.parametrize("name", ["cF", "tP", "hR", "oP", "mC", "aP"])
def test_a_perturbed_cell_comes_back(name):
    problem = problem_of(name, lines_from_q2(measured(name, COUNT), CU))
    start = perturbed(name, 0.003, 64, seed=4)
    spreads, keeps = marginal.schedule(12, 0.005, 0.8)
    assert np.all(np.diff(spreads) <= 0) and spreads[-1] == 0 and keeps[-1] == 1
    project = SYSTEMS[BRAVAIS[name].system].project.astype(np.float32)
    g, score = marginal.climb(
        start, jax.random.split(jax.random.key(0), 64), problem, project, jnp.float32(0.012), spreads, keeps
    )
    away = distance_from_truth(name, np.asarray(g))
    assert away[np.argmax(score)] < 1e-3
    assert (away < 2e-3).mean() > 0.6, np.sort(away)


def test_narrow_widths_are_the_least_squares_of_the_nearest():
    problem = small("oP", 12, 60)
    x = free("oP")
    rows = problem.products.astype(float) @ problem.embed
    nearest = np.abs(problem.q2[:, None] - rows @ np.asarray(x)).argmin(1)
    weight = 1 / problem.sigma[:, None]
    wanted = np.linalg.lstsq(rows[nearest] * weight, problem.q2 * weight[:, 0], rcond=None)[0]
    found, _ = em_step(x, problem, jnp.full(12, 0.012), jnp.ones(12))
    np.testing.assert_allclose(found, wanted, rtol=2e-5)


def test_padding_and_impurities_weigh_nothing():
    lines = lines_from_q2(measured("oP", 15), CU)
    x, widths, chosen = free("oP") * 1.0002, jnp.full(COUNT, 0.012), jnp.ones(COUNT)
    found, value = em_step(x, problem_of("oP", lines), widths, chosen)
    again, same = em_step(x, problem_of("oP", lines, padding=3.3), widths, chosen)
    np.testing.assert_array_equal(found, again)
    assert value == same
    stranger = lines_from_q2(np.append(lines.q2, 0.5 * (lines.q2[3] + lines.q2[4])), CU)
    far, lower = em_step(x, problem_of("oP", stranger), widths, chosen)
    np.testing.assert_allclose(far, found, rtol=1e-4)
    assert lower < value


@pytest.mark.parametrize("name", ["tP", "aP"])
def test_score_is_that_of_refine(name):
    problem = problem_of(name, lines_from_q2(measured(name, COUNT), CU))
    project = SYSTEMS[BRAVAIS[name].system].project.astype(np.float32)
    start = perturbed(name, 0.002, 256, seed=4)
    scales = np.full(9, 0.012, np.float32)
    g, score = refine.refine(start, jax.random.split(jax.random.key(0), 256), problem, project, scales)
    again = jax.vmap(lambda g: marginal.surprise(project @ g, problem, jnp.float32(0.012)))(g)
    np.testing.assert_allclose(again, score, rtol=1e-3)
    assert marginal.surprise(-free(name), problem, jnp.float32(0.012)) == -np.inf
