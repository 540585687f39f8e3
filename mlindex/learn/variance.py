"""Variance networks: regression that says how far it may be off, many small ones trained and asked as one stack.

Three perceptrons without common layers give, for each output u, a mean mu and the parameters alpha and beta of an
inverse-gamma distribution of the variance, so that u has a Student distribution. The mean is trained with the
likelihood weighted by the root of the variance (beta-NLL), which keeps badly predicted samples from being explained
away as noise; mean and variance are trained in turn. Every array has a leading axis, one entry a network.

Sources: D. A. Nix & A. S. Weigend, Proc. ICNN (1994) 55 (mean and variance); N. S. Detlefsen, M. Jorgensen &
S. Hauberg, NeurIPS (2019) (inverse-gamma heads, training in turn); M. Seitzer et al., ICLR (2022) (beta-NLL).
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.scipy.special import gammaln
from jaxtyping import Array, Float, PRNGKeyArray
from numpy.typing import NDArray

MEAN = (200, 100, 60)  # units of the hidden layers
SPREAD = (100, 60)
_WARM = 50  # steps until the full rate
_CHUNK = 50  # steps in one compiled call
_LARGEST = 10.0  # norm of a gradient, of one network


class Layer(NamedTuple):
    """A dense layer with the normalisation that follows it (of a head: without, `gain` and `shift` have no rows)."""

    kernel: Any  # (..., i, o)
    bias: Any  # (..., o)
    gain: Any
    shift: Any


class Networks(NamedTuple):
    """The layers of the three perceptrons, hidden ones first; stacked, or one network without the leading axis."""

    mean: tuple[Layer, ...]
    alpha: tuple[Layer, ...]
    beta: tuple[Layer, ...]


class Posterior(NamedTuple):
    """What a network says of its outputs: u is normal about `mu`, its variance inverse-gamma (`alpha`, `beta`)."""

    mu: Float[Array, "... o"]
    alpha: Float[Array, "... o"]
    beta: Float[Array, "... o"]


class Pool(NamedTuple):
    """Samples of every network: inputs (g, n, i), targets (g, n, o) and the weights (g, o) of the outputs, 0 or 1."""

    inputs: Any
    targets: Any
    weight: Any


class Trained(NamedTuple):
    """`steps` done, the mean negative log-likelihood of the last ones (g,), `seconds`, and whether time ended it."""

    networks: Networks
    steps: int
    loss: NDArray[np.float32]
    seconds: float
    cut: bool


def _perceptron(key: PRNGKeyArray, groups: int, sizes: tuple[int, ...]) -> tuple[Layer, ...]:
    layers = []
    for number, (inner, outer) in enumerate(itertools.pairwise(sizes)):
        last = number == len(sizes) - 2
        scale = (0.1 if last else 1.0) * np.sqrt(2.0 / inner)
        kernel = scale * jax.random.normal(jax.random.fold_in(key, number), (groups, inner, outer), jnp.float32)
        width = 0 if last else outer
        layers.append(
            Layer(
                kernel,
                jnp.zeros((groups, outer), jnp.float32),
                jnp.ones((groups, width), jnp.float32),
                jnp.zeros((groups, width), jnp.float32),
            )
        )
    return tuple(layers)


@partial(jax.jit, static_argnames=("groups", "n_in", "n_out"))
def initialised(key: PRNGKeyArray, groups: int, n_in: int, n_out: int) -> Networks:
    """A stack of `groups` networks with He-normal weights; the heads begin near zero."""
    mean, alpha, beta = jax.random.split(key, 3)
    return Networks(
        _perceptron(mean, groups, (n_in, *MEAN, n_out)),
        _perceptron(alpha, groups, (n_in, *SPREAD, n_out)),
        _perceptron(beta, groups, (n_in, *SPREAD, n_out)),
    )


def _forward(layers: tuple[Layer, ...], x: Any, dropout: float, key: PRNGKeyArray | None) -> Any:
    for number, layer in enumerate(layers[:-1]):
        x = x @ layer.kernel + layer.bias[..., None, :]
        centred = x - jnp.mean(x, -1, keepdims=True)
        x = centred * jax.lax.rsqrt(jnp.mean(centred**2, -1, keepdims=True) + 1e-5)
        x = jax.nn.gelu(x * layer.gain[..., None, :] + layer.shift[..., None, :])
        if key is not None and dropout > 0:
            kept = jax.random.bernoulli(jax.random.fold_in(key, number), 1 - dropout, x.shape)
            x = jnp.where(kept, x / (1 - dropout), 0.0)
    head = layers[-1]
    return x @ head.kernel + head.bias[..., None, :]


def predict(
    networks: Networks, inputs: Float[Array, "*g n i"], *, dropout: float = 0.0, key: PRNGKeyArray | None = None
) -> Posterior:
    """The posteriors (..., n, o) of `inputs`, of one network or of a stack of them at once; `dropout` with a `key`."""
    keys = [None] * 3 if key is None else list(jax.random.split(key, 3))
    raw = [_forward(layers, inputs, dropout, k) for layers, k in zip(networks, keys, strict=True)]
    return Posterior(raw[0], jax.nn.softplus(raw[1]) + 1.0, jax.nn.softplus(raw[2]) + 1e-6)


def negative_log_likelihood(u: Float[Array, "*b"], posterior: Posterior) -> Float[Array, "*b"]:
    """-ln of the density of u, nats: the normal with its inverse-gamma variance integrated out (write-up, eq. 20)."""
    mu, a, b = posterior
    return (
        0.5 * np.log(2 * np.pi)
        - a * jnp.log(b)
        - gammaln(a + 0.5)
        + gammaln(a)
        + (a + 0.5) * jnp.log(b + 0.5 * (u - mu) ** 2)
    )


def beta_nll(u: Float[Array, "*b"], posterior: Posterior, power: float = 0.5) -> Float[Array, "*b"]:
    """The likelihood weighted by the mean variance to `power`, through which no gradient flows (write-up, eq. 21)."""
    variance = jax.lax.stop_gradient(posterior.beta / (posterior.alpha - 1 + 1e-3))
    return variance**power * negative_log_likelihood(u, posterior)


def samples(key: PRNGKeyArray, posterior: Posterior, count: int) -> Float[Array, "k ... o"]:
    """`count` draws (count, ..., o): a variance from the inverse gamma, then a normal about the mean."""
    first, second = jax.random.split(key)
    shape = (count, *posterior.mu.shape)
    variance = posterior.beta / jax.random.gamma(first, posterior.alpha, shape, jnp.float32)
    return posterior.mu + jnp.sqrt(variance) * jax.random.normal(second, shape, jnp.float32)


def _clipped(gradient: Any) -> Any:
    """Each network's gradient no longer than `_LARGEST`."""
    squares = [jnp.sum(leaf**2, axis=tuple(range(1, leaf.ndim))) for leaf in jax.tree.leaves(gradient)]
    factor = jnp.minimum(1.0, _LARGEST * jax.lax.rsqrt(sum(squares) + 1e-12))
    return jax.tree.map(lambda leaf: leaf * factor.reshape(-1, *[1] * (leaf.ndim - 1)), gradient)


def train(
    networks: Networks,
    pool_of: Callable[[int], Pool],
    *,
    cycles: int,
    steps: int,
    minutes: float,
    seed: int,
    batch: int = 64,
    rate: float = 1e-3,
    dropout: float = 0.1,
    progress: Callable[[float, float], None] | None = None,
) -> Trained:
    """Train a stack: `cycles` times `steps` of the means and then `steps` of the variances.

    `pool_of(cycle)` makes the samples of a cycle, of one shape, so that no sample is seen in two cycles; each step
    draws `batch` of them for every network. The rate falls as a cosine of the share of the steps or of the `minutes`
    that is done, whichever is further, so a slow machine ends in time with an annealed stack. `progress` gets that
    share and the mean loss. Raises `ValueError` where there is nothing to do, and `FloatingPointError` where a loss
    is no longer a number.
    """
    if cycles < 1 or steps < _CHUNK or not minutes > 0:
        raise ValueError(f"a training needs cycles, {_CHUNK} steps and time; got {cycles}, {steps} and {minutes} min")
    rule = optax.adam(1.0, b2=0.99)

    @partial(jax.jit, static_argnames="of_mean", donate_argnums=(0, 1))
    def chunk(networks: Networks, moments: Any, pool: Pool, key: Any, rates: Any, of_mean: bool) -> Any:
        def loss(part: Any, others: Networks, inputs: Any, targets: Any, key: Any) -> Any:
            whole = others._replace(mean=part) if of_mean else others._replace(alpha=part[0], beta=part[1])
            posterior = predict(whole, inputs, dropout=dropout, key=key)
            weight = pool.weight[:, None, :]
            plain = jnp.sum(weight * negative_log_likelihood(targets, posterior), (1, 2)) / batch
            objective = jnp.sum(weight * beta_nll(targets, posterior)) / batch if of_mean else jnp.sum(plain)
            return objective, plain

        def step(state: Any, given: Any) -> Any:
            networks, moments = state
            key, rate = given
            pick, drop = jax.random.split(key)
            rows = jax.random.randint(pick, (pool.inputs.shape[0], batch, 1), 0, pool.inputs.shape[1])
            inputs, targets = (jnp.take_along_axis(a, rows, 1) for a in (pool.inputs, pool.targets))
            part = networks.mean if of_mean else (networks.alpha, networks.beta)
            gradient, plain = jax.grad(loss, has_aux=True)(part, networks, inputs, targets, drop)
            change, moments = rule.update(_clipped(gradient), moments, part)
            part = jax.tree.map(lambda p, c: p + rate * c, part, change)
            networks = networks._replace(mean=part) if of_mean else networks._replace(alpha=part[0], beta=part[1])
            return (networks, moments), plain

        (networks, moments), plain = jax.lax.scan(step, (networks, moments), (jax.random.split(key, len(rates)), rates))
        return networks, moments, jnp.mean(plain, 0)

    keys = jax.random.key(seed)
    moments = {True: rule.init(networks.mean), False: rule.init((networks.alpha, networks.beta))}
    networks = jax.tree.map(jnp.array, networks)  # the caller keeps his own: ours are overwritten in place
    chunks = max(1, steps // _CHUNK)
    total, finished, done = 2 * cycles * chunks, 0, 0.0
    mean = np.full(networks.mean[0].kernel.shape[0], np.nan, np.float32)
    started = time.perf_counter()
    for cycle in range(cycles):
        if done >= 1:
            break
        pool = jax.tree.map(jnp.asarray, pool_of(cycle))
        for of_mean in (True, False):
            for _ in range(chunks):
                warm = np.minimum(1.0, (np.arange(_CHUNK) + finished * _CHUNK + 1) / _WARM)
                rates = (rate * warm * (0.5 * (1 + np.cos(np.pi * min(done, 1.0))) + 1e-3)).astype(np.float32)
                key = jax.random.fold_in(keys, finished)
                networks, moments[of_mean], plain = chunk(networks, moments[of_mean], pool, key, rates, of_mean)
                mean = np.asarray(plain)
                finished += 1
                if not np.all(np.isfinite(mean)):
                    raise FloatingPointError(f"a loss is no number at step {finished * _CHUNK}; lower the rate {rate}")
                done = max(finished / total, (time.perf_counter() - started) / (60 * minutes))
                if progress is not None:
                    progress(min(done, 1.0), float(mean.mean()))
                if done >= 1:
                    break
    seconds = time.perf_counter() - started
    return Trained(networks, finished * _CHUNK, mean, seconds, finished < total)


def arrays_of(networks: Networks, dtype: Any = np.float16) -> dict[str, NDArray]:
    """The parameters by name ("mean.0.kernel"), on the host."""
    named: dict[str, NDArray] = {}
    for part, layers in networks._asdict().items():
        for number, layer in enumerate(layers):
            named |= {f"{part}.{number}.{name}": np.asarray(a).astype(dtype) for name, a in layer._asdict().items()}
    return named


def from_arrays(arrays: Mapping[str, NDArray]) -> Networks:
    """The inverse of `arrays_of`, float32 on the host. Raises `ValueError` where a parameter is missing."""

    def layers(part: str) -> tuple[Layer, ...]:
        count = len(MEAN if part == "mean" else SPREAD) + 1
        return tuple(
            Layer(*(np.asarray(arrays[f"{part}.{n}.{name}"], np.float32) for name in Layer._fields))
            for n in range(count)
        )

    try:
        return Networks(*(layers(part) for part in Networks._fields))
    except KeyError as error:
        raise ValueError(f"the parameter {error} of a variance network is missing") from None
