"""Background and noise against what they were made from."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import diags
from scipy.sparse.linalg import spsolve

from mlindex.powder.pattern.background import background, background_beneath, smoothed, snip
from mlindex.powder.pattern.detect import maxima, typical_width
from mlindex.powder.pattern.noise import Noise, noise_of_pattern, sums
from tests.powder.pattern.scans import lines_of, scan


def test_the_smoother_against_a_sparse_solution():
    rng = np.random.default_rng(0)
    y, weight = rng.normal(size=200), rng.uniform(0, 1, 200)
    bend = diags([1.0, -2.0, 1.0], [0, 1, 2], shape=(198, 200))
    penalty = (30 / (2 * np.pi)) ** 4 * weight.mean()
    system = (diags(weight) + penalty * (bend.T @ bend)).tocsc()
    np.testing.assert_allclose(smoothed(y, weight, 30.0), spsolve(system, weight * y), atol=1e-8)


@given(st.integers(0, 1000))
def test_the_envelope_is_below(seed):
    y = np.random.default_rng(seed).poisson(20, 100).astype(float)
    assert np.all(snip(y, 10) <= y + 1e-6)


def test_peaks_do_not_lift_the_background():
    tth, area = lines_of("oP", separation=0.3)
    x, y = scan(tth, area)
    true = 60 * (1 + 2 * np.exp(-(x - 8) / 8))
    first = background(y, Noise(), 5.0)
    assert np.median(np.abs(first - true) / true) < 0.05
    clean = y - (scan(tth, area, seed=1)[1] - scan(np.empty(0), np.empty(0), seed=1)[1])
    again = background_beneath(clean, np.zeros_like(y), first, Noise(variance=y + 60), 5.0)
    assert np.median(np.abs(again - true) / true) < 0.03


@given(st.floats(0.1, 30.0), st.integers(0, 50))
def test_the_gain_of_scaled_counts(gain, seed):
    _, y = scan(*lines_of("tP"), seed=seed, level=200.0)
    noise = noise_of_pattern(y * gain)
    assert noise.variance is None
    assert noise.gain == pytest.approx(gain, rel=0.6)


def test_counts_are_counts_and_uncertainties_are_taken():
    _, y = scan(*lines_of("tP"))
    assert noise_of_pattern(y) == Noise()
    np.testing.assert_array_equal(noise_of_pattern(y, np.full(len(y), 3.0)).variance, np.full(len(y), 9.0))
    below = y - 100.0  # a background taken off: values below zero
    assert np.median(noise_of_pattern(below).variance) == pytest.approx(np.median(y), rel=0.6)


def test_counts_of_which_most_are_none_are_counts():
    rng = np.random.default_rng(2)
    assert noise_of_pattern(rng.poisson(0.02, 4000).astype(float)) == Noise()
    sparse = rng.poisson(np.where(np.arange(4000) % 400 < 8, 20.0, 0.0)).astype(float)
    assert noise_of_pattern(sparse) == Noise()


def test_significance_is_that_of_a_normal_law_at_many_counts_and_exact_at_none():
    y, mean = np.full(50, 110.0), np.full(50, 100.0)
    z = Noise().significance(y, mean, 4)[25]
    assert z == pytest.approx(9 * 10 / np.sqrt(9 * 100), rel=0.03)
    assert Noise().significance(np.zeros(9), np.full(9, 1.0), 0)[4] == pytest.approx(-np.sqrt(2.0))
    np.testing.assert_array_equal(sums(np.ones(5), 1), [2, 3, 3, 3, 2])


@pytest.mark.parametrize("width", [0.06, 0.12, 0.3])
def test_the_width_is_known_before_any_fit(width):
    tth = np.array([15.0, 22.0, 31.0, 39.0, 50.0, 62.0])
    x, y = scan(tth, np.full(6, 20_000.0), width=width)
    true = width * 1.0 / 0.02  # about: sigma = width / 3.6, gamma = width / 5
    points = typical_width(y, Noise())
    assert points == pytest.approx(true, rel=0.5)
    tops = maxima(y, background(y, Noise(), points), Noise(), points, 5.0)
    assert len(tops) == 6
    np.testing.assert_allclose(x[tops], tth, atol=0.3 * width + 0.02)
