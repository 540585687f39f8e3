"""Training on batches that are made on the device as they are needed, so that none is seen twice.

Adam (Kingma & Ba 2015; AdamW where there is weight decay) with a rate that rises over the first steps and falls as a
cosine. The rate follows the steps that are done or the time that is gone, whichever is further: a fast machine does all
steps, the same from the same seed, and a slow one ends in time with a network that is annealed all the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

_WARM = 50  # steps until the full rate
_EVERY = 25  # steps between two looks at the clock


class Batch(NamedTuple):
    """`inputs` to the network, `label` (t,) the right outputs, `weight` (t,) of each row, 0 for one to leave out."""

    inputs: Any
    label: Any
    weight: Any


class Progress(NamedTuple):
    """Where a training stands: `done` from 0 to 1, the steps so far, the mean loss of the last of them, seconds."""

    done: float
    step: int
    loss: float
    seconds: float


class Fit(NamedTuple):
    """`steps` done, the mean `loss` of the last ones, `seconds`, and whether the time ended it before all steps."""

    steps: int
    loss: float
    seconds: float
    cut: bool


def weighted_cross_entropy(logits: Any, batch: Batch) -> Any:
    """The weighted mean of the cross entropy over the rows of a batch; 0 for one without weight."""
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch.label)
    return jnp.sum(batch.weight * loss) / jnp.maximum(jnp.sum(batch.weight), 1e-9)


def fit(
    model: nnx.Module,
    make_batch: Callable[[Any, Any], Batch],
    data: Any,
    *,
    steps: int,
    minutes: float,
    seed: int,
    rate: float = 1e-3,
    decay: float = 0.0,
    progress: Callable[[Progress], None] | None = None,
) -> Fit:
    """Train `model` in place on `make_batch(key, data)`, which is compiled into the step; `data` is any pytree.

    The clock starts when the first step is compiled. Raises `ValueError` where there is nothing to do, and
    `FloatingPointError` where the loss is no longer a number.
    """
    if steps < 1 or not minutes > 0:
        raise ValueError(f"a training needs steps and time, got {steps} steps and {minutes} minutes")
    definition, parameters, *others = nnx.split(model, nnx.Param, ...)
    rest = others[0]
    rule = optax.adamw(1.0, b2=0.99, weight_decay=decay)

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(parameters: Any, moments: Any, rest: Any, data: Any, key: Any, rate: Any) -> tuple[Any, Any, Any]:
        batch = make_batch(key, data)

        def loss(parameters: Any) -> Any:
            return weighted_cross_entropy(nnx.merge(definition, parameters, rest)(*batch.inputs), batch)

        value, gradient = jax.value_and_grad(loss)(parameters)
        change, moments = rule.update(gradient, moments, parameters)
        change = jax.tree.map(lambda leaf: rate * leaf, change)
        return optax.apply_updates(parameters, change), moments, value

    keys = jax.random.key(seed)
    moments = rule.init(parameters)
    losses: list[Any] = []
    started, done, mean = time.perf_counter(), 0.0, float("nan")
    for i in range(steps):
        now = rate * min(1.0, (i + 1) / _WARM) * 0.5 * (1 + np.cos(np.pi * done))
        parameters, moments, value = step(
            parameters, moments, rest, data, jax.random.fold_in(keys, i), jnp.float32(now + 1e-3 * rate)
        )
        losses.append(value)
        done = max(done, (i + 1) / steps)
        if i == 0:
            value.block_until_ready()
            started = time.perf_counter()
        elif (i + 1) % _EVERY == 0 or i + 1 == steps:
            mean = float(np.mean(jax.device_get(losses[-_EVERY:])))
            if not np.isfinite(mean):
                raise FloatingPointError(f"the loss is {mean} after {i + 1} steps; a lower rate than {rate} is needed")
            seconds = time.perf_counter() - started
            done = max(done, seconds / (60 * minutes))
            if progress is not None:
                progress(Progress(min(done, 1.0), i + 1, mean, seconds))
            if done >= 1:
                break
    seconds = time.perf_counter() - started
    mean = float(np.mean(jax.device_get(losses[-_EVERY:])))
    nnx.update(model, parameters)
    return Fit(len(losses), mean, seconds, len(losses) < steps)
