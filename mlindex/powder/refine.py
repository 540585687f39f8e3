"""Batched Gauss-Newton refinement of candidate cells against the lines (float32, for the search).

Each step assigns every line to its nearest reference reflection, draws a random subset of the lines, solves the
weighted normal equations for the free parameters, and accepts the move by the likelihood ratio of *all* lines, as in
MALA: a move that worsens the fit is taken with probability exp(-loss), so the random subsets act as the noise. The best
state visited is what is returned. Weights fall off for lines far from any reflection (Geman-McClure), with a scale that
shrinks from step to step, so impurity lines lose their pull. A zero shift is a parameter of the fit like the others,
held near zero by what is usual of it.

SVD-Index: Coelho, J. Appl. Cryst. 36 (2003) 86-95. Random subsampling: ML-Index.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key, PRNGKeyArray

from mlindex.crystal.metric import metric_determinant
from mlindex.powder.assign import nearest


class Problem(NamedTuple):
    """The lines and the reference reflections of one lattice, as the device sees them (padding has weight 0)."""

    q2: Float[Array, " n"]
    sigma: Float[Array, " n"]  # of q2, for an error of one unit of s (a degree of 2theta)
    weight: Float[Array, " n"]  # 1 for a line, 0 for padding
    products: Float[Array, "m 6"]
    embed: Float[Array, "6 p"]
    zero: Any = np.float32(0.0)  # usual size of the zero shift in degrees 2theta; 0 where there can be none


class State(NamedTuple):
    """One candidate: free parameters and zero shift x (c,), c = p + 1, with its assignment, and the best x at this
    scale."""

    x: Float[Array, " c"]
    rows: Float[Array, "n p"]  # of the nearest reflections
    residual: Float[Array, " n"]  # degrees 2theta
    best_x: Float[Array, " c"]
    best_loss: Float[Array, ""]
    key: PRNGKeyArray


def _residuals(x: Float[Array, " c"], problem: Problem) -> tuple[Float[Array, "n p"], Float[Array, " n"]]:
    """Design rows of the nearest reflections and residuals in degrees of 2theta."""
    rows = problem.products @ problem.embed
    index, difference = nearest(problem.q2 - x[-1] * problem.sigma, rows @ x[:-1])
    return rows[index], difference / problem.sigma


def _unusual(x: Float[Array, " c"], problem: Problem) -> Float[Array, ""]:
    """What the zero shift costs, in nats."""
    return 0.5 * (x[-1] / jnp.maximum(problem.zero, 1e-9)) ** 2


def _loss(residual: Float[Array, " n"], weight: Float[Array, " n"], scale: Float[Array, ""]) -> Float[Array, ""]:
    """Robust misfit in nats: a line far from any reflection costs 4, whatever its distance."""
    z2 = (residual / scale) ** 2
    return jnp.sum(weight * 4 * z2 / (8 + z2))


def step(state: State, scale: Float[Array, ""], problem: Problem, keep: float) -> State:
    """One assignment, one subsampled Gauss-Newton move, one acceptance; `scale` in degrees 2theta."""
    key, k_sub, k_accept = jax.random.split(state.key, 3)
    rows, residual = state.rows, state.residual
    robust = 1 / (1 + (residual / (3 * scale)) ** 2) ** 2
    chosen = jax.random.bernoulli(k_sub, keep, residual.shape)
    weight = problem.weight * robust * chosen
    a = jnp.concatenate([rows / problem.sigma[:, None], jnp.ones_like(rows[:, :1])], 1)
    norm = jnp.sqrt(jnp.sum(weight[:, None] * a * a, 0)) + 1e-20  # columns differ by orders of magnitude
    a = a / norm
    # The prior of the zero shift against the errors of the lines
    held = jnp.zeros_like(norm).at[-1].set((scale / jnp.maximum(problem.zero, 1e-9)) ** 2)
    normal = a.T @ (weight[:, None] * a) + jnp.diag(1e-5 + held / norm**2)
    move = jnp.linalg.solve(normal, a.T @ (weight * residual) - held * state.x / norm) / norm
    x = state.x + move
    new_rows, new_residual = _residuals(x, problem)
    loss_now = _loss(residual, problem.weight, scale) + _unusual(state.x, problem)
    loss_new = _loss(new_residual, problem.weight, scale) + _unusual(x, problem)
    loss_new = jnp.where(jnp.all(jnp.isfinite(x)), loss_new, jnp.inf)
    accept = jnp.log(jax.random.uniform(k_accept)) < loss_now - loss_new
    x, rows, residual, loss = (
        jnp.where(accept, new, old)
        for new, old in ((x, state.x), (new_rows, rows), (new_residual, residual), (loss_new, loss_now))
    )
    better = loss < state.best_loss
    best_x, best_loss = jnp.where(better, x, state.best_x), jnp.where(better, loss, state.best_loss)
    return State(x, rows, residual, best_x, best_loss, key)


def _valid(g: Float[Array, " 6"]) -> Bool[Array, ""]:
    a, b, c, d, e, f = g
    plane = (4 * a * b > f * f) & (4 * a * c > e * e) & (4 * b * c > d * d)
    return plane & (metric_determinant(g) > 0) & (a > 0) & (b > 0) & (c > 0)


def surprise(
    g: Float[Array, " 6"], residual: Float[Array, " n"], problem: Problem, width: Float[Array, ""]
) -> Float[Array, ""]:
    """How surprising the fit of a metric is for a cell of its volume, in nats; -inf for a metric that is none.

    The sum of -ln(1 - exp(-2 |dq2| rho)) over the lines, rho being the density of reflections of the cell at the line:
    chance gives about 1 a line, whatever the volume. `residual` and `width`, the error of a line, in degrees 2theta.
    """
    q2_ref = problem.products @ g
    # Density of distinct reflections from the cell itself: count over a window around each line
    window = 0.25 * problem.q2
    near = jnp.abs(q2_ref[None] - problem.q2[:, None]) < window[:, None]
    density = (jnp.sum(near, 1) + 1) / (2 * window)
    expected = 2 * density * problem.sigma * jnp.sqrt(residual**2 + (0.5 * width) ** 2)
    score = jnp.sum(problem.weight * -jnp.log(-jnp.expm1(-expected)))
    return jnp.where(_valid(g), score, -jnp.inf)


def refine_one(
    g: Float[Array, " 6"],
    key: PRNGKeyArray,
    problem: Problem,
    project: Float[Array, "p 6"],
    scales: Float[Array, " steps"],
    keep: float,
) -> tuple[Float[Array, " 6"], Float[Array, ""]]:
    """The refined metric of one candidate and its score (`surprise`)."""
    x = jnp.append(project @ g, 0.0)
    infinity = jnp.float32(jnp.inf)

    def body(state: State, scale: Float[Array, ""]) -> tuple[State, None]:
        # The loss of another scale is not comparable: the best is sought at the final one only
        state = state._replace(best_loss=jnp.where(scale > scales[-1], infinity, state.best_loss))
        return step(state, scale, problem, keep), None

    state, _ = jax.lax.scan(body, State(x, *_residuals(x, problem), x, infinity, key), scales)
    g = problem.embed @ state.best_x[:-1]
    _, residual = _residuals(state.best_x, problem)
    return g, surprise(g, residual, problem, scales[-1])


@partial(jax.jit, static_argnames="keep")
def refine(
    g: Float[Array, "k 6"],
    keys: Key[Array, " k"],
    problem: Problem,
    project: Float[Array, "p 6"],
    scales: Float[Array, " steps"],
    keep: float = 0.8,
) -> tuple[Float[Array, "k 6"], Float[Array, " k"]]:
    """`refine_one` over a batch of candidates of one lattice."""
    return jax.vmap(refine_one, in_axes=(0, 0, None, None, None, None))(g, keys, problem, project, scales, keep)
