"""Structure factors and thickness fitted to a pattern: Levenberg-Marquardt, from one start.

Residuals are of sqrt(I): their derivative is bounded where an intensity vanishes, counting noise is nearly alike in all
of them, and weak beams speak, which widens the way to the solution. Or they are of I, with weights: those of a Poisson
distribution, because the roots of few counts are too small in the mean, or all alike. The origin of the crystal is
free, and with it two combinations of the phases; damping leaves them where they are.

Source: Marquardt, J. Soc. Indust. Appl. Math. 11 (1963) 431.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from mlindex.bloch.beams import Geometry
from mlindex.bloch.jacobian import Unknowns, intensity_and_jacobian

_FLOOR = 1e-8  # added to intensities under the root
_BLOCK = 16  # tilts at a time: bounds the memory of the Jacobian
_SHRINK, _GROW, _DAMPINGS = 0.3, 3.0, (1e-9, 1e6)
_STUCK = 1e5  # a damping from which no step comes
_GAIN = 1e-7  # of the cost, in a step after which no more is to be had
_NOTHING = 1e-26  # cost, of the intensity, where nothing is left to explain


class State(NamedTuple):
    """A fit under way: `x` (p + 3,) as `parameters` makes it; the damping `mu`; the normal matrix, the gradient and the
    cost (sum of squares) there, and the R factor."""

    x: Any
    mu: Any
    normal: Any
    gradient: Any
    cost: Any
    r_factor: Any


EXTRA = 3  # parameters beside the structure factors: the phase, the scale and the background
PHASE = 10.0  # A^2: the phase pi t / k0 is in this unit, so that a step of it is of the size of others


def parameters(
    u: Float[Any, " p"], thickness: float, k0: float, scale: float = 1.0, background: float = 0.0
) -> Float[np.ndarray, " p3"]:
    """What a fit varies: structure factors, phase, and observed = scale I + background (of the incident beam)."""
    return np.append(np.asarray(u), [np.pi * thickness / k0 / PHASE, scale, background])


def thickness_of(state: State, k0: float) -> float:
    """The thickness (A) of a fit."""
    return float(state.x[-EXTRA]) * PHASE * k0 / np.pi


class Data(NamedTuple):
    """A pattern in blocks of tilts: `diagonal` (1/A^2) and `intensity` (b, _BLOCK, n); `weight` of the residuals
    (b, _BLOCK, 1 or n), 0 for padding."""

    diagonal: Any
    intensity: Any
    weight: Any


def blocked(geometry: Geometry, intensity: Float[np.ndarray, "m n"], tilts: Any = None, weights: Any = None) -> Data:
    """The chosen tilts (indices; None: all) of a pattern; `weights` (m, n) of the residuals, None: all 1."""
    chosen = np.arange(len(intensity)) if tilts is None else np.asarray(tilts)
    blocks = -(-len(chosen) // _BLOCK)
    padded = np.resize(chosen, blocks * _BLOCK)
    each = np.ones((len(intensity), 1)) if weights is None else weights
    weight = each[padded] * (np.arange(len(padded)) < len(chosen))[:, None]
    shape = (blocks, _BLOCK, -1)
    return Data(geometry.excitation[padded].reshape(shape), intensity[padded].reshape(shape), weight.reshape(shape))


def poisson_weights(model: Float[np.ndarray, "m n"], quantum: float) -> Float[np.ndarray, "m n"]:
    """Weights of residuals of I, on the scale of residuals of sqrt(I), for counts of `quantum` each.

    From a model, not from the counts: weights of the counts themselves prefer those that came out low."""
    return 1 / (2 * np.sqrt(np.maximum(model, 0.0) + quantum))


def _evaluated(x: Any, data: Data, how: Unknowns, free: Any, amplitudes: bool) -> tuple[Any, Any, Any, Any]:
    phase, scale, background = x[-EXTRA] * PHASE, x[-2], x[-1]

    def block(carry: Any, given: Any) -> Any:
        normal, gradient, cost, off, total = carry
        diagonal, observed, weight = given
        # One tilt after the other stays in the nearest cache, which a batch of them leaves
        model, slope = jax.lax.map(lambda d: intensity_and_jacobian(x[:-EXTRA], phase, d, how), diagonal)
        slope = slope.at[..., -1].multiply(PHASE) * scale
        slope = jnp.concatenate([slope, model[..., None], jnp.ones_like(model)[..., None]], -1)
        seen = jnp.maximum(scale * model + background, 0.0)
        if amplitudes:
            amplitude = jnp.sqrt(seen + _FLOOR)
            slope, residual = slope / (2 * amplitude)[..., None], jnp.sqrt(observed + _FLOOR) - amplitude
        else:
            residual = observed - seen
        flat = (weight[..., None] * slope * free).reshape(-1, len(x))
        residual = (weight * residual).ravel()
        off = off + jnp.where(weight > 0, jnp.abs(observed - seen), 0.0).sum()
        total = total + jnp.where(weight > 0, observed, 0.0).sum()
        return (normal + flat.T @ flat, gradient + flat.T @ residual, cost + residual @ residual, off, total), None

    p = x.shape[0]
    zero = jnp.zeros((), x.dtype)
    start = (jnp.zeros((p, p), x.dtype), jnp.zeros(p, x.dtype), zero, zero, zero)
    (normal, gradient, cost, off, total), _ = jax.lax.scan(block, start, data)
    return normal, gradient, cost, off / total


def init(x: Float[Any, " p3"], mu: Any, data: Data, how: Unknowns, free: Any, amplitudes: bool = True) -> State:
    """The state at a start."""
    return State(x, mu, *_evaluated(x, data, how, free, amplitudes))


def step(state: State, data: Data, how: Unknowns, free: Any, amplitudes: bool = True) -> State:
    """One step of Levenberg-Marquardt, taken where it lowers the cost."""
    scale = jnp.diag(state.normal)
    damping = state.mu * (scale + 1e-3 * scale.mean()) + 1e-15
    x = state.x + jnp.linalg.solve(state.normal + jnp.diag(damping), state.gradient)
    new = _evaluated(x, data, how, free, amplitudes)
    better = new[2] < state.cost
    old = (state.x, state.normal, state.gradient, state.cost, state.r_factor)
    x, *rest = (jnp.where(better, a, b) for a, b in zip((x, *new), old, strict=True))
    mu = jnp.clip(state.mu * jnp.where(better, _SHRINK, _GROW), *_DAMPINGS)
    return State(x, mu, *rest)


@partial(jax.jit, static_argnames=("amplitudes",))
def fitted(
    x: Float[Any, " p3"], mu: Any, data: Data, how: Any, free: Any, steps: Any, amplitudes: bool = True
) -> State:
    """At most `steps` steps from a start; fewer where nothing is left to explain, or no step helps any more.

    `free` (p + 3,) is 0 for what stays as it is. `amplitudes`: residuals of sqrt(I), else of I.
    """
    least = _NOTHING * jnp.where(data.weight > 0, data.intensity, 0.0).sum()

    def goes_on(carry: Any) -> Any:
        k, state, gain = carry
        return (k < steps) & (state.cost > least) & (state.mu < _STUCK) & (gain > _GAIN)

    def body(carry: Any) -> Any:
        k, state, gain = carry
        new = step(state, data, how, free, amplitudes)
        # A step that is not taken says nothing of what the next one gains
        return k + 1, new, jnp.where(new.cost < state.cost, 1 - new.cost / state.cost, gain)

    first = init(x, mu, data, how, free, amplitudes)
    return jax.lax.while_loop(goes_on, body, (0, first, jnp.ones_like(first.cost)))[1]
