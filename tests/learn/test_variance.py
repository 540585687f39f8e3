"""Variance networks against SciPy's distributions, numerical integration and data of known noise."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from mlindex.learn import variance
from mlindex.learn.variance import Pool, Posterior


@settings(max_examples=20)
@given(
    u=st.floats(-3, 3),
    mu=st.floats(-2, 2),
    alpha=st.floats(1.05, 20),
    beta=st.floats(0.02, 5),
)
def test_the_likelihood_is_a_normal_integrated_over_an_inverse_gamma_variance(u, mu, alpha, beta):
    def integrand(log_variance):
        v = np.exp(log_variance)
        return stats.norm.pdf(u, mu, np.sqrt(v)) * stats.invgamma.pdf(v, alpha, scale=beta) * v

    centre = np.log(beta / (alpha + 1))
    density = integrate.quad(integrand, centre - 12, centre + 25, limit=400, points=[centre, centre + 3])[0]
    posterior = Posterior(*(jnp.float32(x) for x in (mu, alpha, beta)))
    assert float(variance.negative_log_likelihood(jnp.float32(u), posterior)) == pytest.approx(
        -np.log(density), abs=2e-3
    )


def test_samples_are_those_of_a_student_distribution():
    posterior = Posterior(*(jnp.asarray([x], jnp.float32) for x in (0.4, 2.5, 0.3)))
    draw = jax.jit(variance.samples, static_argnums=2)
    drawn = np.asarray(draw(jax.random.key(0), posterior, 20000))[:, 0]
    student = stats.t(5.0, 0.4, np.sqrt(0.3 / 2.5))
    assert stats.kstest(drawn, student.cdf).pvalue > 1e-3


def test_the_weight_of_the_beta_likelihood_carries_no_gradient():
    def loss(beta, power):
        return variance.beta_nll(jnp.float32(1.0), Posterior(jnp.float32(0.0), jnp.float32(3.0), beta), power)

    plain = jax.grad(lambda b: loss(b, 0.0))(jnp.float32(2.0))
    weighted = jax.grad(lambda b: loss(b, 0.5))(jnp.float32(2.0))
    assert float(weighted / plain) == pytest.approx((2.0 / 2.0) ** 0.5, rel=1e-3)
    assert float(loss(jnp.float32(8.0), 0.5) / loss(jnp.float32(8.0), 0.0)) == pytest.approx(2.0, rel=1e-3)


def test_a_network_of_a_stack_is_the_network_alone():
    stack = variance.initialised(jax.random.key(1), 3, 5, 2)
    x = jax.random.normal(jax.random.key(2), (3, 4, 5), jnp.float32)
    predict = jax.jit(variance.predict)
    together = predict(stack, x)
    for n in (0, 2):
        alone = predict(jax.tree.map(lambda a, n=n: a[n], stack), x[n])
        for a, b in zip(alone, together, strict=True):
            np.testing.assert_allclose(a, b[n], rtol=2e-5, atol=2e-5)
    assert float(together.alpha.min()) > 1 and float(together.beta.min()) > 0


def test_parameters_survive_storage():
    stack = variance.initialised(jax.random.key(1), 2, 5, 3)
    arrays = variance.arrays_of(stack, np.float32)
    back = variance.from_arrays(arrays)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), stack, back))
    del arrays["beta.0.bias"]
    with pytest.raises(ValueError, match=r"beta\.0\.bias"):
        variance.from_arrays(arrays)


def made(cycle):
    """One network with noise that depends on the input, one whose second output is to be left alone."""
    rng = np.random.default_rng(cycle)
    x = rng.uniform(-1, 1, (2, 1024, 3)).astype(np.float32)
    noise = np.where(x[..., 1:2] > 0, 0.5, 0.05) * rng.normal(size=(2, 1024, 1))
    y = np.concatenate([x[..., :1] + noise, np.full((2, 1024, 1), 100.0)], -1).astype(np.float32)
    return Pool(x, y, np.array([[1, 0], [1, 0]], np.float32))


def test_training_finds_the_mean_and_the_noise_where_it_is():
    stack = variance.initialised(jax.random.key(0), 2, 3, 2)
    seen = []
    trained = variance.train(
        stack,
        made,
        cycles=2,
        steps=150,
        minutes=5.0,
        seed=0,
        rate=3e-3,
        dropout=0.0,
        progress=lambda d, _: seen.append(d),
    )
    assert trained.steps == 600 and not trained.cut and seen == sorted(seen) and seen[-1] == 1.0
    fresh = made(99)
    posterior = jax.jit(variance.predict)(trained.networks, jnp.asarray(fresh.inputs))
    said = np.asarray(jnp.sqrt(posterior.beta / (posterior.alpha - 1)))[..., 0]
    loud = fresh.inputs[..., 1] > 0
    assert np.median(said[loud]) > 4 * np.median(said[~loud])
    error = np.abs(np.asarray(posterior.mu)[..., 0] - fresh.inputs[..., 0])
    assert np.median(error) < 0.12
    nll = np.asarray(variance.negative_log_likelihood(jnp.asarray(fresh.targets), posterior))[..., 0].mean()
    best = 0.5 * (np.log(0.5) + np.log(0.05)) + 0.5 * np.log(2 * np.pi * np.e)
    assert best - 0.1 < nll < best + 0.6


def test_training_refuses_what_cannot_be_done():
    stack = variance.initialised(jax.random.key(0), 2, 3, 2)
    with pytest.raises(ValueError, match="needs cycles"):
        variance.train(stack, made, cycles=1, steps=10, minutes=1.0, seed=0)

    def broken(cycle):
        pool = made(cycle)
        return pool._replace(targets=pool.targets * np.nan)

    with pytest.raises(FloatingPointError, match="lower the rate"):
        variance.train(stack, broken, cycles=1, steps=50, minutes=1.0, seed=0)
