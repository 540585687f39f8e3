"""Training finds what is there to find, the same from the same seed, and ends in time."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mlindex.learn.fit import Batch, Progress, fit, weighted_cross_entropy


def batch(key, data):
    """Points whose class is the sign of one coordinate; every fifth has no weight and a wrong label."""
    x = jax.random.normal(key, (64, 3))
    label = (x @ data > 0).astype(jnp.int32)
    spoiled = jnp.arange(64) % 5 == 0
    return Batch((x,), jnp.where(spoiled, 1 - label, label), jnp.where(spoiled, 0.0, 1.0))


def trained(seed=0, **options):
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    options = {"steps": 300, "minutes": 5.0, "rate": 0.05} | options
    return model, fit(model, batch, jnp.array([1.0, 0.0, 0.0]), seed=seed, **options)


def test_a_linear_rule_is_learnt():
    seen: list[Progress] = []
    model, done = trained(progress=seen.append)
    x = np.random.default_rng(0).normal(size=(1000, 3)).astype(np.float32)
    assert np.mean(np.asarray(model(x)).argmax(1) == (x[:, 0] > 0)) > 0.98
    assert done.steps == 300
    assert not done.cut
    assert [p.step for p in seen] == list(range(25, 301, 25))
    assert seen[-1].done == 1
    assert seen[-1].loss == pytest.approx(done.loss)


def test_the_same_seed_gives_the_same_network_and_another_seed_another():
    (first, _), (second, _), (third, _) = trained(steps=40), trained(steps=40), trained(steps=40, seed=1)
    np.testing.assert_array_equal(first.kernel[...], second.kernel[...])
    assert np.abs(first.kernel[...] - third.kernel[...]).max() > 1e-4


def test_time_ends_a_training():
    _, done = trained(steps=10**6, minutes=1e-6)
    assert done.cut
    assert done.steps < 100


def test_weightless_rows_do_not_count():
    logits = jnp.array([[2.0, 0.0], [0.0, 9.0]])
    one = weighted_cross_entropy(logits, Batch((), jnp.array([0, 0]), jnp.array([1.0, 0.0])))
    assert float(one) == pytest.approx(np.log(1 + np.exp(-2.0)), rel=1e-5)
    assert float(weighted_cross_entropy(logits, Batch((), jnp.array([0, 0]), jnp.zeros(2)))) == 0


def test_bad_input():
    with pytest.raises(ValueError, match="needs steps and time"):
        trained(steps=0)
    with pytest.raises(ValueError, match="needs steps and time"):
        trained(minutes=0.0)


def test_a_loss_that_is_no_number_is_said():
    def bad(key, data):
        return Batch((jnp.full((4, 3), jnp.nan),), jnp.zeros(4, jnp.int32), jnp.ones(4))

    with pytest.raises(FloatingPointError, match="the loss is nan after 25 steps"):
        fit(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), bad, None, steps=50, minutes=1.0, seed=0)
