"""The likelihood of a cell summed over all assignments of the lines, and its climb: expectation-maximisation.

Every line is a reflection of the reference list with a normal error, or an impurity that is uniform over the pattern,

    p(line k | x) = (1 - e) sum_h rho(h) N(z_kh; 0, w_k) + e / range,    z_kh = (q2_k - a_h . x) / sigma_k,

so that the product over the lines is the sum over all assignments (eq. 28 of the write-up of ML-Index). The shares of
the terms of a line, its responsibilities, are the weights of one linear least-squares problem in the free parameters x;
solving it never lowers the likelihood (Dempster, Laird & Rubin, J. R. Stat. Soc. B 39 (1977) 1-38). The widths w_k are
annealed: w_k^2 = w^2 + (r q2_k / sigma_k)^2 with the error w of a line and the relative error r of the cell, which
falls. A cell that is off by r predicts the first lines well and the last ones badly: the first lead, the others follow.

Noise that leaves poor maxima is that of `refine`, a random subset of the lines in each step, without an acceptance: the
last steps have all lines, and each of them improves the fit.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PRNGKeyArray

from mlindex.powder import refine
from mlindex.powder.assign import nearest
from mlindex.powder.refine import Problem

IMPURITIES = 0.05  # share of the lines that no reflection explains, a priori
_DAMPING = 1e-5  # of the normal equations, relative: lines in one zone leave parameters open


class State(NamedTuple):
    """One candidate: free parameters x (p,) and its random numbers."""

    x: Float[Array, " p"]
    key: PRNGKeyArray


class Info(NamedTuple):
    """The log likelihood at which a step began."""

    value: Float[Array, ""]


def schedule(
    steps: int, spread: float, keep: float = 1.0
) -> tuple[Float[np.ndarray, " steps"], Float[np.ndarray, " steps"]]:
    """Relative errors of the cell and shares of the lines for `climb`, (steps,) each.

    Over two thirds of the steps the error falls from `spread` to a tenth of it, with the share `keep`; the others are
    with all lines at the width of the lines themselves. Cells that are off by 1, 2 and 5 % come back best from `spread`
    0.01, 0.03 and 0.04; a larger one than a cell needs costs steps, and beyond twice that may lead it away.
    """
    falling = max(2 * steps // 3, 1)
    spreads = np.append(np.geomspace(spread, 0.1 * spread, falling), np.zeros(steps - falling))
    keeps = np.where(np.arange(steps) < falling, keep, 1.0)
    return spreads.astype(np.float32), keeps.astype(np.float32)


def line_widths(problem: Problem, width: Float[Array, ""], spread: Float[Array, ""]) -> Float[Array, " n"]:
    """w_k (n,) in degrees 2theta for lines in error by `width` degrees and a cell by the relative `spread`."""
    return jnp.sqrt(width**2 + (spread * problem.q2 / problem.sigma) ** 2)


class Terms(NamedTuple):
    """What eq. 28 consists of at one cell, in densities per degree of 2theta."""

    z: Float[Array, "n m"]  # degrees 2theta, observed - calculated
    joint: Float[Array, "n m"]  # of line and reflection
    total: Float[Array, " n"]  # of line, impurity included


def span(problem: Problem) -> Float[Array, ""]:
    """The range in degrees 2theta over which an impurity may lie: up to the last line, at the mean q2 a degree."""
    last = jnp.max(jnp.where(problem.weight > 0, problem.q2, 0))
    mean = jnp.sum(problem.weight * problem.sigma) / jnp.maximum(jnp.sum(problem.weight), 1)
    return last / mean


def terms(
    x: Float[Array, " p"], rows: Float[Array, "m p"], problem: Problem, widths: Float[Array, " n"], impurities: float
) -> Terms:
    """Densities of every line and reflection at the cell x; `rows` give q2 = rows @ x, `widths` are in degrees."""
    z = (problem.q2[:, None] - (rows @ x)[None]) / problem.sigma[:, None]
    peak = (1 - impurities) / (rows.shape[0] * widths * jnp.sqrt(2 * jnp.pi))
    joint = peak[:, None] * jnp.exp(-0.5 * (z / widths[:, None]) ** 2)
    return Terms(z, joint, jnp.sum(joint, 1) + impurities / span(problem))


def log_likelihood(
    x: Float[Array, " p"], problem: Problem, widths: Float[Array, " n"], impurities: float = IMPURITIES
) -> Float[Array, ""]:
    """The logarithm of eq. 28 (each line's density is one per degree of 2theta), every reflection as likely a priori.

    `impurities` must be above 0, or a line far from all reflections has no likelihood in float32.
    """
    found = terms(x, problem.products @ problem.embed, problem, widths, impurities)
    return jnp.sum(problem.weight * jnp.log(found.total))


def gradient(
    x: Float[Array, " p"], problem: Problem, widths: Float[Array, " n"], impurities: float = IMPURITIES
) -> Float[Array, " p"]:
    """The derivative of `log_likelihood`: the sum of share z / (w^2 sigma) times the row of a reflection."""
    rows = problem.products @ problem.embed
    found = terms(x, rows, problem, widths, impurities)
    share = found.joint * (problem.weight / found.total / problem.sigma / widths**2)[:, None]
    return jnp.sum(share * found.z, 0) @ rows


def em_step(
    x: Float[Array, " p"],
    problem: Problem,
    widths: Float[Array, " n"],
    chosen: Float[Array, " n"],
    impurities: float = IMPURITIES,
) -> tuple[Float[Array, " p"], Float[Array, ""]]:
    """x after the least squares of the lines with all reflections, weighted by responsibility, and the log likelihood
    before.

    `chosen` (n,) are 0 for lines to leave out of the step; with all 1 it never lowers the likelihood.
    """
    rows = problem.products @ problem.embed
    found = terms(x, rows, problem, widths, impurities)
    value = jnp.sum(problem.weight * jnp.log(found.total))
    share = found.joint * (problem.weight * chosen / found.total / (problem.sigma * widths) ** 2)[:, None]
    pull = jnp.sum(share * found.z * problem.sigma[:, None], 0) @ rows
    p = rows.shape[1]
    normal = (jnp.sum(share, 0) @ (rows[:, :, None] * rows[:, None, :]).reshape(-1, p * p)).reshape(p, p)
    norm = jnp.sqrt(jnp.diagonal(normal)) + 1e-20  # columns differ by orders of magnitude
    scaled = normal / (norm[:, None] * norm[None, :]) + _DAMPING * jnp.eye(p)
    return x + jnp.linalg.solve(scaled, pull / norm) / norm, value


def init(x: Float[Array, " p"], key: PRNGKeyArray) -> State:
    """The state of a start x."""
    return State(x, key)


def step(state: State, widths: Float[Array, " n"], keep: Float[Array, ""], problem: Problem) -> tuple[State, Info]:
    """One step of a candidate at `widths` (degrees 2theta), with the share `keep` of the lines drawn at random."""
    key, subset = jax.random.split(state.key)
    chosen = jax.random.bernoulli(subset, keep, problem.weight.shape).astype(state.x.dtype)
    x, value = em_step(state.x, problem, widths, chosen)
    return State(jnp.where(jnp.all(jnp.isfinite(x)), x, state.x), key), Info(value)


def surprise(x: Float[Array, " p"], problem: Problem, width: Float[Array, ""]) -> Float[Array, ""]:
    """The score of `refine.surprise` for the nearest reflections."""
    g = problem.embed @ x
    _, difference = nearest(problem.q2, problem.products @ g)
    return refine.surprise(g, difference / problem.sigma, problem, width)


def climb_one(
    g: Float[Array, " 6"],
    key: PRNGKeyArray,
    problem: Problem,
    project: Float[Array, "p 6"],
    width: Float[Array, ""],
    spreads: Float[Array, " steps"],
    keeps: Float[Array, " steps"],
) -> tuple[Float[Array, " 6"], Float[Array, ""]]:
    """The metric of one candidate after steps with lines in error by `width` (degrees 2theta) and cells by `spreads`
    (relative), the shares `keeps` of the lines drawn; and its score."""

    def body(state: State, now: tuple[Float[Array, ""], Float[Array, ""]]) -> tuple[State, None]:
        return step(state, line_widths(problem, width, now[0]), now[1], problem)[0], None

    state, _ = jax.lax.scan(body, init(project @ g, key), (spreads, keeps))
    return problem.embed @ state.x, surprise(state.x, problem, width)


@jax.jit
def climb(
    g: Float[Array, "k 6"],
    keys: Key[Array, " k"],
    problem: Problem,
    project: Float[Array, "p 6"],
    width: Float[Array, ""],
    spreads: Float[Array, " steps"],
    keeps: Float[Array, " steps"],
) -> tuple[Float[Array, "k 6"], Float[Array, " k"]]:
    """`climb_one` over a batch of candidates of one lattice."""
    axes = (0, 0, None, None, None, None, None)
    return jax.vmap(climb_one, in_axes=axes)(g, keys, problem, project, width, spreads, keeps)
