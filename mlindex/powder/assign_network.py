"""Which reflection a line is, as a probability over the reference list: networks on pairwise differences.

The input is the difference D = (q2_observed - q2_reference) / unit of one line to every reference reflection, where
unit is q2 of the last line, so that nothing depends on the size of the cell. It enters as e / (|D| + e), which is 1
where they agree. One multilayer perceptron over the reflections is shared by all lines; a softmax follows (write-up of
ML-Index, eq. 22). There is one set of weights for each noise level: how far, in relative units of the metric, the cells
that it was trained on are from the truth.

To the published form the networks add what is known without training: a normal likelihood of D, whose width grows with
the noise and with q2, and a prior for each reflection. Without hidden layers these two are all there is, a naive Bayes
classifier; without `widths` the network is the published one but for the last layer, which all lines share.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray
from numpy.typing import NDArray

from mlindex.learn import checkpoint

STORED = "powder_assign.safetensors"
LEVELS = (0.10, 0.05, 0.025, 0.01)  # relative error of the elements of the metric
REFERENCE = {1: 100, 2: 200, 3: 300, 4: 400, 6: 400}  # reflections, by number of free parameters
_FLAT = 1e-5  # of the variance, in the normalisation of a layer


class Layer(NamedTuple):
    """A dense layer and the scale and shift of the layer normalisation after it."""

    kernel: Float[Array, "... a b"]
    bias: Float[Array, "... b"]
    scale: Float[Array, "... b"]
    shift: Float[Array, "... b"]


class Network(NamedTuple):
    """Weights of one lattice; of all noise levels with a leading axis, or of one (`at_level`).

    `widths` (2,) are the logarithms of the constant and the slope in q2 of the standard deviation of D; None for the
    published form.
    """

    epsilon: Float[Array, " ..."]
    widths: Float[Array, "... 2"] | None
    hidden: tuple[Layer, ...]
    kernel: Float[Array, "... b m"] | None  # None without hidden layers
    prior: Float[Array, "... m"]


def reach(g: Float[Array, "... 6"]) -> Float[Array, "... 6"]:
    """What a relative error of the elements of a metric refers to: the element, off the diagonal sqrt(g_ii g_jj)."""
    a, b, c = (g[..., i] for i in range(3))
    return jnp.stack([a, b, c, jnp.sqrt(b * c), jnp.sqrt(a * c), jnp.sqrt(a * b)], -1)


def initial(
    key: PRNGKeyArray, count: int, hidden: Sequence[int], *, published: bool = False, levels: Sequence[float] = LEVELS
) -> Network:
    """Untrained weights for `count` reflections and the given sizes of hidden layers, all `levels` stacked.

    `published`: without likelihood, from the differences alone.
    """
    n = len(levels)
    sizes = [count, *hidden]
    keys = jax.random.split(key, len(sizes))
    layers = []
    for one, a, b in zip(keys[:-1], sizes[:-1], sizes[1:], strict=True):
        kernel = jax.random.normal(one, (n, a, b)) * np.sqrt(2 / a)
        layers.append(Layer(kernel, jnp.zeros((n, b)), jnp.ones((n, b)), jnp.zeros((n, b))))
    last = 1.0 if published else 0.1  # the likelihood alone is a good start
    kernel = jax.random.normal(keys[-1], (n, sizes[-1], count)) * last / np.sqrt(sizes[-1]) if hidden else None
    noise = jnp.asarray(levels, jnp.float32)
    widths = None if published else jnp.log(jnp.stack([0.1 * noise, 0.6 * noise], -1))
    return Network(0.1 * noise + 0.002, widths, tuple(layers), kernel, jnp.zeros((n, count)))


def at_level(network: Network, level: Int[Array, ""] | int) -> Network:
    """The weights of one noise level."""
    return jax.tree.map(lambda leaf: leaf[level], network)


def logits(
    network: Network, q2: Float[Array, " n"], q2_ref: Float[Array, " m"], unit: Float[Array, ""]
) -> Float[Array, "n m"]:
    """Unnormalised log probability of every reflection for every line, from the weights of one level; `unit` is q2 of
    the last line."""
    d = (q2[:, None] - q2_ref[None]) / unit
    out = jnp.broadcast_to(network.prior[None], d.shape)
    if network.hidden and network.kernel is not None:
        x = network.epsilon / (jnp.abs(d) + network.epsilon)
        for layer in network.hidden:
            x = x @ layer.kernel + layer.bias
            centred = x - jnp.mean(x, -1, keepdims=True)
            x = centred * jax.lax.rsqrt(jnp.mean(centred**2, -1, keepdims=True) + _FLAT)
            x = jax.nn.gelu(x * layer.scale + layer.shift)
        out = out + x @ network.kernel
    if network.widths is not None:
        constant, slope = jnp.exp(network.widths[0]), jnp.exp(network.widths[1])
        # a reflection moves with the error of the cell as its own q2 does
        width = constant + slope * jnp.maximum(q2_ref, 0) / unit
        out = out - 0.5 * (d / width[None]) ** 2 - jnp.log(width)[None]
    return out


def to_arrays(network: Network, name: str) -> dict[str, NDArray[np.float16]]:
    """The weights as arrays for a file, each name beginning with `name`."""
    leaves: dict[str, Array | None] = {"epsilon": network.epsilon, "widths": network.widths}
    leaves |= {"kernel": network.kernel, "prior": network.prior}
    for i, layer in enumerate(network.hidden):
        leaves |= {f"{i}.{part}": leaf for part, leaf in layer._asdict().items()}
    return {f"{name}.{part}": np.asarray(leaf, np.float16) for part, leaf in leaves.items() if leaf is not None}


def from_arrays(arrays: dict[str, NDArray], name: str) -> Network:
    """The network that `to_arrays` took apart."""
    start = f"{name}."
    mine: dict[str, Any] = {
        k.removeprefix(start): np.asarray(v, np.float32) for k, v in arrays.items() if k.startswith(start)
    }
    layers: list[Layer] = []
    while f"{len(layers)}.kernel" in mine:
        layers.append(Layer(**{part: mine[f"{len(layers)}.{part}"] for part in Layer._fields}))
    return Network(mine["epsilon"], mine.get("widths"), tuple(layers), mine.get("kernel"), mine["prior"])


@cache
def _stored() -> dict[str, NDArray]:
    with resources.as_file(resources.files("mlindex.models") / STORED) as path:
        return checkpoint.load(path)[0]


@cache
def shipped(bravais: str) -> Network:
    """The trained network of a Bravais lattice, all levels stacked, float32 on the host."""
    return from_arrays(_stored(), bravais)


def naive(count: int) -> Network:
    """The plain softmax of the normal likelihood, which has no weights, for `count` reflections."""
    return initial(jax.random.key(0), count, ())
