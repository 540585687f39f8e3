"""Structure factors and thickness fitted to a pattern: Levenberg-Marquardt on amplitudes, from one start.

Residuals are of sqrt(I): their derivative is bounded where an intensity vanishes, counting noise is alike in all of
them, and weak beams speak, which widens the way to the solution. The origin of the crystal is free, and with it two
combinations of the phases; damping leaves them where they are.

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


class State(NamedTuple):
    """A fit under way: `x` (p + 1,), the last is the phase pi t / k0 in units of `PHASE`; the damping `mu`; the normal
    matrix, the gradient and the cost (sum of squares) there, and the R factor."""

    x: Any
    mu: Any
    normal: Any
    gradient: Any
    cost: Any
    r_factor: Any


PHASE = 10.0  # A^2, so that a step of the phase is of the size of others


class Data(NamedTuple):
    """A pattern in blocks of tilts: `diagonal` (1/A^2) and `intensity` (b, _BLOCK, n); `weight` is 0 for padding."""

    diagonal: Any
    intensity: Any
    weight: Any


def blocked(geometry: Geometry, intensity: Float[np.ndarray, "m n"], tilts: Any = None) -> Data:
    """The chosen tilts (indices; None: all) of a pattern."""
    chosen = np.arange(len(intensity)) if tilts is None else np.asarray(tilts)
    blocks = -(-len(chosen) // _BLOCK)
    padded = np.resize(chosen, blocks * _BLOCK)
    weight = (np.arange(len(padded)) < len(chosen)).astype(np.float64)
    shape = (blocks, _BLOCK, intensity.shape[1])
    return Data(
        geometry.excitation[padded].reshape(shape), intensity[padded].reshape(shape), weight.reshape(blocks, _BLOCK)
    )


def _evaluated(x: Any, data: Data, how: Unknowns, free: Any) -> tuple[Any, Any, Any, Any]:
    def block(carry: Any, given: Any) -> Any:
        normal, gradient, cost, off, total = carry
        diagonal, observed, weight = given
        model, jacobian = jax.vmap(lambda d: intensity_and_jacobian(x[:-1], x[-1] * PHASE, d, how))(diagonal)
        amplitude = jnp.sqrt(model + _FLOOR)
        jacobian = jacobian.at[..., -1].multiply(PHASE) * (weight[:, None] / (2 * amplitude))[..., None] * free
        residual = (weight[:, None] * (jnp.sqrt(observed + _FLOOR) - amplitude)).ravel()
        flat = jacobian.reshape(-1, jacobian.shape[-1])
        off = off + (weight[:, None] * jnp.abs(observed - model)).sum()
        total = total + (weight[:, None] * observed).sum()
        return (normal + flat.T @ flat, gradient + flat.T @ residual, cost + residual @ residual, off, total), None

    p = x.shape[0]
    zero = jnp.zeros((), x.dtype)
    start = (jnp.zeros((p, p), x.dtype), jnp.zeros(p, x.dtype), zero, zero, zero)
    (normal, gradient, cost, off, total), _ = jax.lax.scan(block, start, data)
    return normal, gradient, cost, off / total


def init(x: Float[Any, " p1"], mu: Any, data: Data, how: Unknowns, free: Any) -> State:
    """The state at a start."""
    return State(x, mu, *_evaluated(x, data, how, free))


def step(state: State, data: Data, how: Unknowns, free: Any) -> State:
    """One step of Levenberg-Marquardt, taken where it lowers the cost."""
    scale = jnp.diag(state.normal)
    damping = state.mu * (scale + 1e-3 * scale.mean()) + 1e-15
    x = state.x + jnp.linalg.solve(state.normal + jnp.diag(damping), state.gradient)
    new = _evaluated(x, data, how, free)
    better = new[2] < state.cost
    old = (state.x, state.normal, state.gradient, state.cost, state.r_factor)
    x, *rest = (jnp.where(better, a, b) for a, b in zip((x, *new), old, strict=True))
    mu = jnp.clip(state.mu * jnp.where(better, _SHRINK, _GROW), *_DAMPINGS)
    return State(x, mu, *rest)


@partial(jax.jit, static_argnames=("steps",))
def fitted(x: Float[Any, " p1"], mu: Any, data: Data, how: Any, free: Any, steps: int) -> State:
    """`steps` steps from a start."""
    return jax.lax.fori_loop(0, steps, lambda _, s: step(s, data, how, free), init(x, mu, data, how, free))
