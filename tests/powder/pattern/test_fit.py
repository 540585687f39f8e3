"""The fit of a group against SciPy's least squares and against its own scatter."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import least_squares

from mlindex.powder.pattern.fit import Shape, fit_group
from mlindex.powder.pattern.noise import Noise
from mlindex.powder.pattern.profile import peak

X = np.arange(29.0, 31.0, 0.02)
TRUE = np.array([[29.9, np.log(0.12), 0.5, 0.0, 300.0], [30.1, np.log(0.12), 0.5, 0.0, 150.0]])
LOOSE = Shape(TRUE[:, 1:4], np.array([10.0, 10.0, 10.0]))


def curve(rows):
    return 50.0 + sum(peak(X, row)[0] for row in rows)


def test_agrees_with_least_squares_where_the_variance_is_known():
    y = np.random.default_rng(0).normal(curve(TRUE), 20.0)
    noise = Noise(variance=np.full(len(X), 400.0))
    mine = fit_group(X, y, np.full(len(X), 50.0), TRUE, noise=noise, shape=LOOSE)
    middle, half = X.mean(), (X[-1] - X[0]) / 2

    def misfit(p):
        model = curve(p[:10].reshape(2, 5)) + p[10] + p[11] * (X - middle) / half
        prior = np.concatenate([(p[:10].reshape(2, 5)[:, 1:4] - TRUE[:, 1:4]).ravel() / 10, [p[11] / 60]])
        return np.concatenate([(y - model) / 20.0, prior])

    theirs = least_squares(misfit, np.concatenate([TRUE.ravel(), [0.0, 0.0]]), x_scale="jac", xtol=1e-12)
    found = theirs.x[:10].reshape(2, 5)
    np.testing.assert_allclose(mine.parameters[:, 0], found[:, 0], atol=2e-4)
    np.testing.assert_allclose(mine.parameters[:, 4], found[:, 4], rtol=5e-3)
    esd = np.sqrt(np.diag(np.linalg.inv(theirs.jac.T @ theirs.jac)))[:10].reshape(2, 5)
    np.testing.assert_allclose(np.sqrt(np.diag(mine.covariance)).reshape(2, 5)[:, 0], esd[:, 0], rtol=0.1)


def test_the_uncertainty_is_the_scatter_also_at_few_counts():
    shape = Shape(TRUE[:1, 1:4], np.array([0.1, 0.0, 0.0]))
    start = TRUE[:1] * np.array([1, 1, 1, 1, 0.02])
    given = np.full(len(X), 0.5)
    places, errors = [], []
    for seed in range(200):
        y = np.random.default_rng(seed).poisson(0.5 + peak(X, start[0])[0]).astype(float)
        fitted = fit_group(X, y, given, start, noise=Noise(), shape=shape)
        places.append(fitted.parameters[0, 0])
        errors.append(np.sqrt(fitted.covariance[0, 0]))
    pull = (np.array(places) - 29.9) / np.array(errors)
    assert abs(pull.mean()) < 0.25
    assert 0.8 < pull.std() < 1.25


@pytest.mark.parametrize("scale", [1e-9, 1e-6, 1e6, 1e9])
def test_the_unit_of_the_intensity_does_not_matter(scale):
    y = np.random.default_rng(0).poisson(curve(TRUE)).astype(float)
    unit = np.array([1, 1, 1, 1, scale])
    start = TRUE * np.array([1.0005, 1, 1, 1, 0.5])
    here = fit_group(X, y, np.full(len(X), 50.0), start, noise=Noise(), shape=LOOSE)
    there = fit_group(X, scale * y, np.full(len(X), 50.0) * scale, start * unit, noise=Noise(scale), shape=LOOSE)
    np.testing.assert_allclose(there.parameters / unit, here.parameters, atol=1e-6, rtol=1e-4)
    ours, theirs = np.sqrt(np.diag(here.covariance)), np.sqrt(np.diag(there.covariance))
    np.testing.assert_allclose(theirs / np.tile(unit, 2), ours, rtol=1e-3)


def test_a_line_that_is_not_there_has_no_area_and_no_certainty():
    fitted = fit_group(X, np.full(len(X), 40.0), np.full(len(X), 50.0), TRUE, noise=Noise(), shape=LOOSE)
    assert np.all(fitted.parameters[:, 4] < 3 * np.sqrt(np.diag(fitted.covariance))[4::5] + 1e-6)
