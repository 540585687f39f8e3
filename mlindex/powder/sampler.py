"""Two random walks over the assignments of the lines: that of the write-up of ML-Index, and one in detailed balance.

*walk*, as written up (section 2.4.3): one of the networks is picked; the reflections are drawn from its softmax
(resampling), or the most probable are taken and lines drawn by their probability (subsampling); one Gauss-Newton step
follows; it is accepted by the ratio of the likelihoods of the most probable assignments, eq. 34, with the variance
q2 |q2 - q2_calc + eps| of eq. 31. The move cannot be undone with the same probability, so the walk has no stationary
distribution that could be named.

*chain*: the state is the assignment H itself, each line a reflection or an impurity. Given H everything is linear and
normal, so the free parameters, with a normal prior about the start, are integrated out exactly and their mean is one
Gauss-Newton step. A random subset of the lines is drawn anew from the network's softmax at that mean, x_H, and accepted
by Metropolis and Hastings,

    min(1, pi(H') prod_k p_k(H_k | x_H') / (pi(H) prod_k p_k(H'_k | x_H))),

the products over the subset. Subset and network are drawn independently of the state, so pi is stationary.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray

from mlindex.powder import assign_network, marginal
from mlindex.powder.assign_network import Network
from mlindex.powder.refine import Problem

IMPURITIES = marginal.IMPURITIES
_SMALLEST = 1e-3  # degrees 2theta: eps of eq. 31


class WalkState(NamedTuple):
    """One candidate of the walk: free parameters, log probabilities of the assignment there, and its log likelihood."""

    x: Float[Array, " p"]
    log_p: Float[Array, "n m"]
    value: Float[Array, ""]
    best_x: Float[Array, " p"]
    best_value: Float[Array, ""]
    key: PRNGKeyArray


class ChainState(NamedTuple):
    """One candidate of the chain: the reflection of each line (m for an impurity), the mean of the free parameters, and
    the log density of the assignment."""

    hkl: Int[Array, " n"]
    x: Float[Array, " p"]
    value: Float[Array, ""]
    key: PRNGKeyArray


class Info(NamedTuple):
    """What a step did."""

    accepted: Bool[Array, ""]


class Prior(NamedTuple):
    """Normal prior of the free parameters of one candidate."""

    mean: Float[Array, " p"]
    sigma: Float[Array, " p"]


def _log_softmax(x: Float[Array, " p"], problem: Problem, network: Network) -> Float[Array, "n m"]:
    unit = jnp.max(jnp.where(problem.weight > 0, problem.q2, 0))
    q2_ref = problem.products @ (problem.embed @ x)
    return jax.nn.log_softmax(assign_network.logits(network, problem.q2, q2_ref, unit), -1)


def drawn(key: PRNGKeyArray, log_p: Float[Array, "n m"]) -> Int[Array, " n"]:
    """One index a line from its log probabilities: one random number a line, not one a reflection."""
    cumulative = jnp.cumsum(jnp.exp(log_p), -1)
    level = jax.random.uniform(key, (log_p.shape[0], 1)) * cumulative[:, -1:]
    return jnp.minimum(jnp.sum(cumulative < level, -1), log_p.shape[1] - 1).astype(jnp.int32)


def _variance(difference: Float[Array, " n"], problem: Problem) -> Float[Array, " n"]:
    """Eq. 31, in 1/angstrom^4."""
    return problem.q2 * (jnp.abs(difference) + _SMALLEST * problem.sigma)


def _most_probable(x: Float[Array, " p"], log_p: Float[Array, "n m"], problem: Problem) -> Float[Array, ""]:
    """Log likelihood of the lines under the most probable assignment, eqs. 30 and 31."""
    rows = (problem.products @ problem.embed)[jnp.argmax(log_p, -1)]
    difference = problem.q2 - rows @ x
    variance = _variance(difference, problem)
    value = -0.5 * jnp.sum(problem.weight * (jnp.log(variance) + difference**2 / variance))
    return jnp.where(jnp.all(jnp.isfinite(x)), value, -jnp.inf)


def walk_init(x: Float[Array, " p"], key: PRNGKeyArray, problem: Problem, network: Network) -> WalkState:
    """The state of a start x; `network` holds the weights of one level."""
    log_p = _log_softmax(x, problem, network)
    value = _most_probable(x, log_p, problem)
    return WalkState(x, log_p, value, x, value, key)


def walk_step(
    state: WalkState, problem: Problem, network: Network, *, resample: bool, keep: float = 0.8
) -> tuple[WalkState, Info]:
    """One move and its acceptance. `network` (one level) assigns at the new cell; `keep` is the mean share of the lines
    that subsampling leaves."""
    key, draw, toss = jax.random.split(state.key, 3)
    weight = problem.weight
    if resample:
        index = drawn(draw, state.log_p)
    else:
        index = jnp.argmax(state.log_p, -1)
        p = weight * jnp.exp(jnp.max(state.log_p, -1))
        share = jnp.minimum(1.0, keep * p * jnp.sum(weight) / jnp.maximum(jnp.sum(p), 1e-9))
        weight = weight * jax.random.bernoulli(draw, share)
    rows = (problem.products @ problem.embed)[index]
    difference = problem.q2 - rows @ state.x
    weight = weight / _variance(difference, problem)
    norm = jnp.sqrt(jnp.sum(weight[:, None] * rows**2, 0)) + 1e-20
    a = rows / norm
    normal = a.T @ (weight[:, None] * a) + 1e-5 * jnp.eye(a.shape[1])
    x = state.x + jnp.linalg.solve(normal, a.T @ (weight * difference)) / norm
    log_p = _log_softmax(x, problem, network)
    value = _most_probable(x, log_p, problem)
    accepted = jnp.log(jax.random.uniform(toss)) < value - state.value
    x, log_p, value = (
        jnp.where(accepted, new, old) for new, old in ((x, state.x), (log_p, state.log_p), (value, state.value))
    )
    better = value > state.best_value
    best_x, best = jnp.where(better, x, state.best_x), jnp.where(better, value, state.best_value)
    return WalkState(x, log_p, value, best_x, best, key), Info(accepted)


def assigned_density(
    hkl: Int[Array, " n"], prior: Prior, problem: Problem, width: Float[Array, ""]
) -> tuple[Float[Array, ""], Float[Array, " p"]]:
    """Log of eq. 26 for one assignment, the free parameters integrated out, and their mean. `width` in degrees 2theta.

    Index m, the number of reflections, is an impurity. The normalisation is that of `marginal.log_likelihood`: summed
    over all assignments it is that likelihood integrated over the prior.
    """
    table = problem.products @ problem.embed
    count = table.shape[0]
    used = problem.weight * (hkl < count)
    rows = table[jnp.minimum(hkl, count - 1)]
    a = used[:, None] * rows * prior.sigma / (problem.sigma * width)[:, None]  # in units of prior and line error
    r = used * (problem.q2 - rows @ prior.mean) / (problem.sigma * width)
    precision = jnp.eye(a.shape[1]) + a.T @ a
    root = jnp.linalg.cholesky(precision)
    move = jax.scipy.linalg.cho_solve((root, True), a.T @ r)
    misfit = jnp.sum((r - a @ move) ** 2) + jnp.sum(move**2)
    line = jnp.log((1 - IMPURITIES) / count) - jnp.log(width * jnp.sqrt(2 * jnp.pi))
    impurity = jnp.log(IMPURITIES / marginal.span(problem))
    terms = jnp.sum(jnp.where(used > 0, line, problem.weight * impurity))
    value = terms - 0.5 * misfit - jnp.sum(jnp.log(jnp.diagonal(root)))
    return value, prior.mean + prior.sigma * move


def _proposal(x: Float[Array, " p"], problem: Problem, network: Network) -> Float[Array, "n k"]:
    """Log probabilities (n, m + 1) from which a line is drawn anew; the last is that of an impurity."""
    log_p = _log_softmax(x, problem, network)
    other = jnp.full((log_p.shape[0], 1), jnp.log(IMPURITIES))
    return jnp.concatenate([log_p + jnp.log(1 - IMPURITIES), other], -1)


def chain_init(
    prior: Prior, key: PRNGKeyArray, problem: Problem, network: Network, width: Float[Array, ""]
) -> ChainState:
    """The state of a start: every line has its most probable reflection at the prior's mean."""
    hkl = jnp.argmax(_log_softmax(prior.mean, problem, network), -1).astype(jnp.int32)
    value, x = assigned_density(hkl, prior, problem, width)
    return ChainState(hkl, x, value, key)


def chain_step(
    state: ChainState, prior: Prior, problem: Problem, network: Network, width: Float[Array, ""], share: float
) -> tuple[ChainState, Info]:
    """A draw of the lines of a random subset (each with probability `share`), and its acceptance.

    `network` holds the weights of one level. `state.value` must be of the same `width`.
    """
    key, choose, draw, toss = jax.random.split(state.key, 4)
    chosen = jax.random.bernoulli(choose, share, state.hkl.shape) & (problem.weight > 0)
    forward = _proposal(state.x, problem, network)
    hkl = jnp.where(chosen, drawn(draw, forward), state.hkl)
    value, x = assigned_density(hkl, prior, problem, width)
    back = _proposal(x, problem, network)
    there = jnp.take_along_axis(forward, hkl[:, None], -1)[:, 0]
    return_ = jnp.take_along_axis(back, state.hkl[:, None], -1)[:, 0]
    ratio = value - state.value + jnp.sum(jnp.where(chosen, return_ - there, 0.0))
    accepted = jnp.log(jax.random.uniform(toss)) < ratio
    hkl, x, value = (
        jnp.where(accepted, new, old) for new, old in ((hkl, state.hkl), (x, state.x), (value, state.value))
    )
    return ChainState(hkl, x, value, key), Info(accepted)


@partial(jax.jit, static_argnames=("resample", "keep"))
def walk(
    g: Float[Array, "k 6"],
    keys: Key[Array, " k"],
    problem: Problem,
    project: Float[Array, "p 6"],
    networks: Network,
    levels: Int[Array, " steps"],
    width: Float[Array, ""],
    resample: bool = False,
    keep: float = 0.8,
) -> tuple[Float[Array, "k 6"], Float[Array, " k"]]:
    """A batch of candidates after a walk in which all use the network `levels[i]` in step i; and their scores.

    `networks` are the weights of all levels; `width` (degrees 2theta) is that of the score, `marginal.surprise`.
    """
    first = assign_network.at_level(networks, levels[0])
    states = jax.vmap(walk_init, in_axes=(0, 0, None, None))(g @ project.T, keys, problem, first)
    one = partial(walk_step, resample=resample, keep=keep)

    def body(states: WalkState, level: Int[Array, ""]) -> tuple[WalkState, None]:
        network = assign_network.at_level(networks, level)
        return jax.vmap(one, in_axes=(0, None, None))(states, problem, network)[0], None

    states, _ = jax.lax.scan(body, states, levels)
    score = jax.vmap(marginal.surprise, in_axes=(0, None, None))(states.best_x, problem, width)
    return states.best_x @ problem.embed.T, score


@partial(jax.jit, static_argnames="share")
def chain(
    g: Float[Array, "k 6"],
    keys: Key[Array, " k"],
    problem: Problem,
    project: Float[Array, "p 6"],
    networks: Network,
    levels: Int[Array, " steps"],
    widths: Float[Array, " steps"],
    spread: Float[Array, ""],
    share: float = 0.25,
) -> tuple[Float[Array, "k 6"], Float[Array, " k"]]:
    """A batch of candidates after an annealed chain, step i at `widths[i]` (degrees 2theta) with the network
    `levels[i]`; and their scores.

    `spread` is the relative standard deviation of the prior about each start.
    """
    sigma = spread * jnp.abs(assign_network.reach(g) @ project.T)
    priors = Prior(g @ project.T, sigma)
    first = assign_network.at_level(networks, levels[0])
    states = jax.vmap(chain_init, in_axes=(0, 0, None, None, None))(priors, keys, problem, first, widths[0])

    def one(state: ChainState, prior: Prior, network: Network, width: Float[Array, ""]) -> ChainState:
        value, x = assigned_density(state.hkl, prior, problem, width)  # of the width of this step
        return chain_step(state._replace(value=value, x=x), prior, problem, network, width, share)[0]

    def body(states: ChainState, now: tuple[Int[Array, ""], Float[Array, ""]]) -> tuple[ChainState, None]:
        network = assign_network.at_level(networks, now[0])
        return jax.vmap(one, in_axes=(0, 0, None, None))(states, priors, network, now[1]), None

    states, _ = jax.lax.scan(body, states, (levels, widths))
    score = jax.vmap(marginal.surprise, in_axes=(0, None, None))(states.x, problem, widths[-1])
    return states.x @ problem.embed.T, score
