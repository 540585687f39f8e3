"""Batched refinement: to the true cell in every lattice, as SciPy refines it, the same with padding and in float32."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import least_squares

from mlindex.crystal.lattice import BRAVAIS, SYSTEMS
from mlindex.crystal.metric import products_from_hkl, reciprocal_metric_from_cell, transform_metric
from mlindex.crystal.reduction import lattice_distance, primitive_metric
from mlindex.crystal.reflections import reference_hkl
from mlindex.powder import refine
from mlindex.powder.lines import lines_from_q2
from tests.powder.patterns import CELLS, CU, measured

SCALES = np.concatenate([np.geomspace(0.06, 0.012, 5), np.full(4, 0.012)]).astype(np.float32)
COUNT = 20
BATCH = 256
REFLECTIONS = {1: 100, 2: 200, 3: 300, 4: 400, 6: 400}  # with BATCH and COUNT the shapes that a search compiles anyway


def problem_of(name, lines, size=COUNT, padding=1.0):
    """The lines as the device sees them, padded to `size` with the value `padding`."""

    def padded(values, value):
        return np.pad(values, (0, size - len(values)), constant_values=value).astype(np.float32)

    system = SYSTEMS[BRAVAIS[name].system]
    return refine.Problem(
        padded(lines.q2, padding),
        padded(2 * lines.q * lines.w, padding),
        padded(np.ones(len(lines)), 0.0),
        products_from_hkl(reference_hkl(name, REFLECTIONS[system.n_free]).astype(np.float32)),
        system.embed.astype(np.float32),
    )


def perturbed(name, size, count, seed):
    """Metrics of the system, free parameters off by the relative `size` (off-diagonal ones by that of a diagonal)."""
    system = SYSTEMS[BRAVAIS[name].system]
    x = system.project @ reciprocal_metric_from_cell(np.array(CELLS[name][0], float))
    reach = np.where(np.abs(x) > 0.5 * x.max(), np.abs(x), np.minimum(np.abs(x) + 0.3 * x.max(), x.max()))
    noise = np.random.default_rng(seed).normal(0, size, (count, len(x)))
    return ((x + noise * reach) @ system.embed.T).astype(np.float32)


def refined(name, g, problem, seed=0, **options):
    project = SYSTEMS[BRAVAIS[name].system].project.astype(np.float32)
    keys = jax.random.split(jax.random.key(seed), len(g))
    g, score = refine.refine(g, keys, problem, project, SCALES, **options)
    return np.asarray(g), np.asarray(score)


def distance_from_truth(name, g):
    truth = primitive_metric(np.array(CELLS[name][0], float), BRAVAIS[name].centring)
    return lattice_distance(transform_metric(g.astype(np.float64), BRAVAIS[name].primitive), truth)


@pytest.mark.parametrize("name", BRAVAIS)
def test_a_perturbed_cell_comes_back(name):
    lines = lines_from_q2(measured(name, COUNT), CU)
    start = perturbed(name, 0.002, BATCH, seed=4)
    g, score = refined(name, start, problem_of(name, lines))
    away = distance_from_truth(name, g)
    assert away[score.argmax()] < 1e-3
    assert (away < 2e-3).mean() > 0.6, np.sort(away)
    assert np.median(away) < 0.5 * np.median(distance_from_truth(name, start))
    # a cell that is right scores far better than chance, which gives about one a line
    assert score.max() > 3 * COUNT


@pytest.mark.parametrize("name", ["cF", "hR", "tP", "oI", "mC", "aP"])
def test_agrees_with_scipy_on_the_same_assignment(name):
    lines = lines_from_q2(measured(name, COUNT, seed=2), CU)
    problem = problem_of(name, lines)
    system = SYSTEMS[BRAVAIS[name].system]
    truth = reciprocal_metric_from_cell(np.array(CELLS[name][0], float))
    g, _ = refined(name, np.stack([truth, truth]).astype(np.float32), problem, keep=1.0)
    x = system.project @ g[0].astype(np.float64)
    rows = problem.products.astype(np.float64) @ system.embed
    unit = 2 * lines.q * lines.w
    nearest = np.abs(lines.q2[:, None] - rows @ x).argmin(1)

    def residual(x):
        return (lines.q2 - rows[nearest] @ x) / unit

    def geman_mcclure(z):
        return np.stack([z / (1 + z), (1 + z) ** -2.0, -2 * (1 + z) ** -3.0])

    found = least_squares(
        residual, x, x_scale="jac", loss=geman_mcclure, f_scale=3 * SCALES[-1], xtol=1e-14, ftol=1e-14
    )
    jacobian = rows[nearest] / unit[:, None]
    esd = 0.005 * np.sqrt(np.diag(np.linalg.inv(jacobian.T @ jacobian)))
    np.testing.assert_array_less(np.abs(found.x - x) / esd, 0.15)


@pytest.mark.parametrize("name", ["cP", "mP"])
def test_padding_weighs_nothing(name):
    lines = lines_from_q2(measured(name, 17), CU)
    start = perturbed(name, 0.002, BATCH, seed=7)
    g, score = refined(name, start, problem_of(name, lines))
    for padding in (7.7, 0.02):
        again, score_again = refined(name, start, problem_of(name, lines, padding=padding))
        np.testing.assert_array_equal(g, again)
        np.testing.assert_array_equal(score, score_again)
    # With every line in every step nothing random depends on the size of the arrays
    g, score = refined(name, start, problem_of(name, lines, size=20), keep=1.0)
    more, score_more = refined(name, start, problem_of(name, lines, size=32), keep=1.0)
    good = score > 3 * len(lines)
    assert good.any()
    np.testing.assert_allclose(more[good], g[good], rtol=1e-4, atol=1e-5 * g[:, :3].max())
    np.testing.assert_allclose(score_more[good], score[good], rtol=0.02)


@pytest.mark.parametrize("name", ["tI", "oP", "mP", "aP"])
def test_float32_score_and_order_are_those_of_float64(name):
    lines = lines_from_q2(measured(name, COUNT), CU)
    problem = problem_of(name, lines)
    g, score = refined(name, perturbed(name, 0.01, BATCH, seed=9), problem)
    q2_ref = g.astype(np.float64) @ problem.products.astype(np.float64).T
    residual = np.abs(lines.q2[:, None] - q2_ref[:, None, :]).min(2) / (2 * lines.q * lines.w)
    width = 0.25 * lines.q2
    density = ((np.abs(q2_ref[:, None, :] - lines.q2[:, None]) < width[:, None]).sum(2) + 1) / (2 * width)
    # the error of a line is at least half the last scale: `refine_one`
    expected = 2 * density * (2 * lines.q * lines.w) * np.hypot(residual, 0.5 * SCALES[-1])
    exact = -np.log(-np.expm1(-expected)).sum(1)
    valid = np.isfinite(score)
    np.testing.assert_allclose(score[valid], exact[valid], rtol=3e-3)
    best, best_exact = np.argsort(-score[valid])[:12], np.argsort(-exact[valid])[:12]
    assert len(np.intersect1d(best, best_exact)) >= 11


def test_candidates_do_not_see_each_other():
    lines = lines_from_q2(measured("oP", COUNT), CU)
    problem = problem_of("oP", lines)
    start = perturbed("oP", 0.002, BATCH, seed=5)
    project = SYSTEMS["orthorhombic"].project.astype(np.float32)
    keys = jax.random.split(jax.random.key(1), BATCH)
    order = np.random.default_rng(0).permutation(BATCH)
    g, score = (np.asarray(x) for x in refine.refine(start, keys, problem, project, SCALES))
    again, score_again = (np.asarray(x) for x in refine.refine(start[order], keys[order], problem, project, SCALES))
    np.testing.assert_allclose(again, g[order], rtol=1e-5)
    np.testing.assert_allclose(score_again, score[order], rtol=1e-4)


def test_impossible_metrics_never_win():
    lines = lines_from_q2(measured("aP", COUNT), CU)
    start = perturbed("aP", 0.002, BATCH, seed=5)
    start[:, 3:] = 3 * start[:, :3].max()  # no angle has such a cosine
    start[0] = np.nan
    _, score = refined("aP", start, problem_of("aP", lines))
    assert not np.isnan(score).any() and score[0] == -np.inf


@settings(max_examples=5)
@given(seed=st.integers(0, 10**6), count=st.integers(8, COUNT))
def test_one_bucket_compiles_once(seed, count):
    lines = lines_from_q2(measured("oP", count, seed=seed), CU)
    refined("oP", perturbed("oP", 0.002, BATCH, seed=1), problem_of("oP", lines_from_q2(measured("oP", COUNT), CU)))
    traces = refine.refine._cache_size()
    refined("oP", perturbed("oP", 0.01, BATCH, seed), problem_of("oP", lines, padding=2.0), seed=seed)
    assert refine.refine._cache_size() == traces


@pytest.mark.parametrize("name", ["cF", "tP", "oI", "mP", "aP"])
@pytest.mark.parametrize("zero", [-0.05, 0.04])
def test_a_zero_shift_is_fitted_where_there_may_be_one(name, zero):
    lines = lines_from_q2(measured(name, COUNT), CU)
    moved = lines.shifted(-zero)
    start = perturbed(name, 0.002, BATCH, seed=6)
    allowed = problem_of(name, moved)._replace(zero=np.float32(0.025))
    g, score = refined(name, start, allowed)
    held, score_held = refined(name, start, problem_of(name, moved))
    away = distance_from_truth(name, g)
    assert away[score.argmax()] < 2e-3
    assert score.max() > score_held.max()
    assert away[score.argmax()] < distance_from_truth(name, held)[score_held.argmax()]
