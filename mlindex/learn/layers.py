"""Networks: a classifier of counts that starts as naive Bayes and learns the rest.

For counts x drawn from the mean counts of one class, mixed with those of others, the logarithm of a likelihood ratio is
a weighted sum of counts. Those weights follow from the mean counts of the classes without any training, and as a first
layer they leave to gradient descent only what naive Bayes gets wrong. Source of the rule: T. Bayes as in Duda, Hart &
Stork, Pattern Classification (2001), section 2.9.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float


def log_ratios(
    means: Float[np.ndarray, "c n"], overall: Float[np.ndarray, " n"], background: float
) -> Float[np.ndarray, "n c"]:
    """The weights of naive Bayes, log((mean of the class + background) / (overall + background)).

    The counts of a class lie on top of `background` times the `overall` mean of what is not of the class.
    """
    floor = 1e-3 * max(float(overall.mean()), 1e-9)
    weights = np.log((means + background * overall + floor) / ((1 + background) * overall + floor))
    return np.ascontiguousarray(weights.T)


def standardised(x: Float[Array, "t c"]) -> Float[Array, "t c"]:
    """Each row with mean 0 and standard deviation 1 (0 where all are equal)."""
    centred = x - jnp.mean(x, 1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.mean(centred**2, 1, keepdims=True) + 1e-6)


class CountClassifier(nnx.Module):
    """Counts (t, n_in) and other inputs (t, n_side) to logits (t, n_out).

    `matched` is one linear layer on the square roots of the counts: their Poisson noise is the same everywhere, and
    where counts are 0 or 1 they are the counts. Its standardised outputs are the logits, plus what two further layers
    make of them and of the other inputs.
    """

    def __init__(self, n_in: int, n_side: int, n_out: int, *, hidden: int, rngs: nnx.Rngs):
        self.matched = nnx.Linear(n_in, n_out, rngs=rngs)
        self.inner = nnx.Linear(n_out + n_side, hidden, kernel_init=nnx.initializers.he_normal(), rngs=rngs)
        self.outer = nnx.Linear(hidden, n_out, kernel_init=nnx.initializers.normal(0.1 / hidden**0.5), rngs=rngs)

    def start(self, weights: Float[np.ndarray, "n c"]) -> None:
        """Put in the weights of `log_ratios`."""
        self.matched.kernel[...] = jnp.asarray(weights, jnp.float32)

    def __call__(self, counts: Float[Array, "t n"], side: Float[Array, "t s"]) -> Float[Array, "t c"]:
        """Logits of each row."""
        score = standardised(self.matched(jnp.sqrt(counts)))
        inner = nnx.relu(self.inner(jnp.concatenate([score, side], 1)))
        return 2 * score + self.outer(inner)
