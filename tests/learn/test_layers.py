"""The first weights of a classifier against the naive Bayes of SciPy's distributions."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from flax import nnx
from scipy import stats

from mlindex.learn.layers import CountClassifier, log_ratios, standardised


def test_log_ratios_are_those_of_poisson_counts():
    """With means of equal sum, the weighted sum of counts is the log-likelihood ratio up to a constant."""
    rng = np.random.default_rng(0)
    means = rng.gamma(2.0, size=(3, 40))
    means *= 30 / means.sum(1, keepdims=True)
    overall = means.mean(0)
    counts = rng.poisson(means[1] + 2 * overall, size=(50, 40))
    score = counts @ log_ratios(means, overall, background=2.0)
    exact = np.stack([stats.poisson.logpmf(counts, mean + 2 * overall).sum(1) for mean in means], 1)
    np.testing.assert_allclose(score - score[:, :1], exact - exact[:, :1], atol=0.05)


def test_a_classifier_that_was_started_sorts_counts_before_any_training():
    rng = np.random.default_rng(1)
    means = rng.gamma(0.3, size=(6, 200))  # counts of 0 and 1 for the most part, where the square root changes nothing
    means *= 25 / means.sum(1, keepdims=True)
    model = CountClassifier(200, 1, 6, hidden=16, rngs=nnx.Rngs(0))
    truth = rng.integers(0, 6, 300)
    counts = jnp.asarray(rng.poisson(means[truth] + 2 * means.mean(0)), jnp.float32)
    side = jnp.zeros((300, 1))
    before = np.mean(np.asarray(model(counts, side)).argmax(1) == truth)
    model.start(log_ratios(means, means.mean(0), background=2.0))
    after = np.mean(np.asarray(model(counts, side)).argmax(1) == truth)
    assert before < 0.5
    assert after > 0.95


def test_standardised_rows():
    rows = np.asarray(standardised(jnp.asarray(np.random.default_rng(2).normal(3.0, 5.0, (4, 50)))))
    np.testing.assert_allclose(rows.mean(1), 0, atol=1e-5)
    np.testing.assert_allclose(rows.std(1), 1, atol=1e-5)
    assert np.all(np.asarray(standardised(jnp.full((2, 5), 7.0))) == 0)
