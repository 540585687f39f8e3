"""Walks over assignments: the chain visits what enumeration says, its density is the integral, both find the cell."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import chi2, norm

from mlindex.crystal.lattice import BRAVAIS, SYSTEMS
from mlindex.powder import assign_network, marginal, sampler
from mlindex.powder.lines import lines_from_q2
from tests.powder.patterns import CELLS, CU, measured
from tests.powder.test_refine import distance_from_truth, perturbed
from tests.powder.test_refine import problem_of as numpy_problem_of

COUNT = 20


def problem_of(name, lines, **options):
    """The lines and the reference list on the device."""
    return jax.tree.map(jnp.asarray, numpy_problem_of(name, lines, **options))


def cubic(lines, reflections, off):
    """A few lines of a cubic crystal with a few reflections, and a prior whose mean is off by the relative `off`."""
    problem = problem_of("cP", lines_from_q2(measured("cP", lines), CU), size=lines)
    problem = problem._replace(products=problem.products[:reflections])
    truth = 1 / CELLS["cP"][0][0] ** 2
    return problem, sampler.Prior(jnp.array([truth * (1 + off)]), jnp.array([0.1 * truth]))


def enumerated(problem, prior, width):
    """All assignments and the log density of each."""
    lines, reflections = len(problem.q2), len(problem.products)
    every = np.array(list(itertools.product(range(reflections + 1), repeat=lines)), np.int32)
    values, _ = jax.vmap(lambda hkl: sampler.assigned_density(hkl, prior, problem, width))(every)
    return every, np.asarray(values)


@pytest.mark.parametrize("width", [0.3, 1.5])
def test_density_of_assignments_is_the_integral_over_the_cell(width):
    problem, prior = cubic(3, 5, 0.04)
    every, values = enumerated(problem, prior, jnp.float32(width))
    q2, sigma = np.asarray(problem.q2, float), np.asarray(problem.sigma, float)
    row = np.asarray(problem.products @ problem.embed, float)[:, 0]
    mean, spread = float(prior.mean[0]), float(prior.sigma[0])
    share = sampler.IMPURITIES
    for index in (0, 43, 86, 100, 215):
        known = every[index] < 5

        def density(x, hkl=every[index], known=known):
            z = (q2[known] - row[hkl[known]] * x) / sigma[known]
            return np.prod(norm.pdf(z, scale=width)) * norm.pdf(x, mean, spread)

        points = q2[known] / row[every[index][known]]
        integral = quad(density, mean - 8 * spread, mean + 8 * spread, points=points, limit=500)[0]
        factors = ((1 - share) / 5) ** known.sum() * (share * sigma.mean() / q2[-1]) ** (~known).sum()
        if integral > 1e-30:
            np.testing.assert_allclose(values[index], np.log(integral * factors), rtol=1e-3)
    # all of them together are the likelihood summed over the assignments, integrated over the prior
    x = np.linspace(mean - 6 * spread, mean + 6 * spread, 4001, dtype=np.float32)[:, None]
    summed = jax.vmap(lambda x: marginal.log_likelihood(x, problem, jnp.full(3, width)))(jnp.asarray(x))
    integral = np.trapezoid(np.exp(np.asarray(summed, float)) * norm.pdf(x[:, 0], mean, spread), x[:, 0])
    np.testing.assert_allclose(np.logaddexp.reduce(values), np.log(integral), rtol=1e-3)


@pytest.mark.parametrize("hidden", [(), (7,)])
def test_the_chain_visits_assignments_as_enumerated(hidden):
    problem, prior = cubic(3, 5, 0.06)
    width = jnp.float32(1.0)  # wide enough for several assignments of some weight
    _, values = enumerated(problem, prior, width)
    wanted = np.exp(values - np.logaddexp.reduce(values))
    assert (wanted > 0.01).sum() > 5  # a distribution, not one assignment
    # any network is right, untrained ones as well; a wide one lets the chain mix
    network = assign_network.initial(jax.random.key(5), 5, hidden, levels=(2.0, 1.0, 0.5, 0.3))
    chains, warm, steps = 256, 60, 240
    levels = jax.random.randint(jax.random.key(2), (warm + steps,), 0, 4)
    keys = jax.random.split(jax.random.key(1), chains)

    @jax.jit
    def visited(keys):
        first = assign_network.at_level(network, 0)
        states = jax.vmap(lambda key: sampler.chain_init(prior, key, problem, first, width))(keys)

        def body(states, level):
            now = assign_network.at_level(network, level)
            states, info = jax.vmap(lambda s: sampler.chain_step(s, prior, problem, now, width, 0.5))(states)
            return states, (states.hkl, info.accepted)

        return jax.lax.scan(body, states, levels)[1]

    hkl, accepted = (np.asarray(x) for x in visited(keys))
    assert 0.05 < accepted.mean() < 0.99
    index = (hkl[warm:].astype(int) @ np.array([36, 6, 1])).reshape(-1)
    share = np.bincount(index, minlength=216) / len(index)
    assert np.abs(share - wanted).sum() / 2 < 0.02
    # chains are independent of each other: their last states alone obey Pearson's test
    last = np.bincount(hkl[-1].astype(int) @ np.array([36, 6, 1]), minlength=216)
    common = wanted * chains > 5
    seen, expected = np.append(last[common], last[~common].sum()), np.append(wanted[common], wanted[~common].sum())
    statistic = ((seen - chains * expected) ** 2 / (chains * expected)).sum()
    assert statistic < chi2.ppf(0.9999, len(seen) - 1)


def test_draws_follow_their_probabilities():
    log_p = jax.nn.log_softmax(jax.random.normal(jax.random.key(0), (6, 5)) * 2, -1)
    index = jax.vmap(lambda key: sampler.drawn(key, log_p))(jax.random.split(jax.random.key(1), 20000))
    share = np.stack([np.bincount(column, minlength=5) for column in np.asarray(index).T]) / 20000
    np.testing.assert_allclose(share, np.exp(log_p), atol=5 * np.sqrt(0.25 / 20000))


@pytest.mark.parametrize("name", ["tP", "oP", "aP"])
@pytest.mark.parametrize("kind", ["resample", "subsample", "chain"])
def test_a_perturbed_cell_comes_back(name, kind):
    problem = problem_of(name, lines_from_q2(measured(name, COUNT), CU))
    start = jnp.asarray(perturbed(name, 0.003, 64, seed=4))
    project = jnp.asarray(SYSTEMS[BRAVAIS[name].system].project, jnp.float32)
    network = assign_network.naive(len(problem.products))
    keys = jax.random.split(jax.random.key(0), 64)
    levels = jnp.full(24, 3)
    if kind == "chain":
        widths = jnp.asarray(np.geomspace(0.1, 0.012, 24), jnp.float32)
        g, score = sampler.chain(start, keys, problem, project, network, levels, widths, jnp.float32(0.01))
    else:
        options = {"resample": kind == "resample"}
        g, score = sampler.walk(start, keys, problem, project, network, levels, jnp.float32(0.012), **options)
    away = distance_from_truth(name, np.asarray(g))
    assert away[np.argmax(score)] < 1e-3
    assert np.median(away) < 0.5 * np.median(distance_from_truth(name, np.asarray(start)))


def test_padding_weighs_nothing():
    lines = lines_from_q2(measured("oP", 15), CU)
    start = jnp.asarray(perturbed("oP", 0.003, 8, seed=4))
    project = jnp.asarray(SYSTEMS["orthorhombic"].project, jnp.float32)
    network = assign_network.naive(300)
    keys = jax.random.split(jax.random.key(0), 8)
    levels, widths = jnp.full(6, 3), jnp.full(6, 0.05, jnp.float32)
    found = []
    for padding in (1.0, 7.7):
        problem = problem_of("oP", lines, padding=padding)
        found.append(sampler.walk(start, keys, problem, project, network, levels, widths[0])[0])
        found.append(sampler.chain(start, keys, problem, project, network, levels, widths, jnp.float32(0.01))[0])
    np.testing.assert_array_equal(found[0], found[2])
    np.testing.assert_array_equal(found[1], found[3])
