"""Overlapping lines fitted together: Levenberg-Marquardt on the likelihood of the counts.

The model of a stretch of points is a given curve (background, and lines fitted elsewhere), a constant and a slope, and
m profiles. The step solves (F + mu diag F) s = g with the Fisher information F = J^T V^-1 J + priors and the score g =
J^T V^-1 (y - model) - priors, V the variance of the model, which for counts is the maximum of the Poisson likelihood
(Fisher scoring; More, Lecture Notes in Mathematics 630 (1978) 105). Widths and shapes are tied loosely to those of the
pattern as a whole, or a weak line would take any.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from mlindex.powder.pattern.noise import Noise
from mlindex.powder.pattern.profile import AREA, PARAMETERS, Doublet, peak

_STEPS = 40
_CONVERGED = 1e-3  # of a standard uncertainty, the largest step
_SKEWEST = 0.7
_WIDER = 0.7  # of ln(width), the most that a line may differ from the others


class Shape(NamedTuple):
    """What is known of the shapes of m lines before they are fitted: `expected` ln(width), eta and skew, (m, 3), and
    their `spread`, (3,); a spread of 0 holds them there."""

    expected: Float[np.ndarray, "m 3"]
    spread: Float[np.ndarray, " 3"]


class Fitted(NamedTuple):
    """A group of lines: `parameters` (m, 5) as in `profile`, `covariance` (5 m, 5 m) of them from the likelihood and
    the priors, and `reduced`, the deviance per degree of freedom."""

    parameters: Float[np.ndarray, "m 5"]
    covariance: Float[np.ndarray, "k k"]
    reduced: float


class _Group:
    """The likelihood of one group as a function of (5 m + 2) parameters; the last two are a constant and a slope."""

    def __init__(
        self,
        x: Float[np.ndarray, " n"],
        y: Float[np.ndarray, " n"],
        given: Float[np.ndarray, " n"],
        noise: Noise,
        shape: Shape,
        doublet: Doublet | None,
    ) -> None:
        self.x, self.y, self.given, self.noise, self.shape, self.doublet = x, y, given, noise, shape, doublet
        self.count = len(shape.expected)
        middle, half = 0.5 * (x[0] + x[-1]), max(0.5 * (x[-1] - x[0]), 1e-12)
        # The background is known from far beyond the group, which leaves little freedom to its slope here
        self.lines = np.stack([np.ones_like(x), (x - middle) / half])
        level = float(np.mean(noise.variance_of(given)))
        n = PARAMETERS * self.count
        self.weight, self.target = np.zeros(n + 2), np.zeros(n + 2)
        self.weight[-1] = len(x) / (9.0 * level)
        self.free = np.ones(n + 2, bool)
        for i in range(3):
            self.target[1 + i : n : PARAMETERS] = shape.expected[:, i]
            self.weight[1 + i : n : PARAMETERS] = shape.spread[i] ** -2.0 if shape.spread[i] > 0 else 0.0
            self.free[1 + i : n : PARAMETERS] = shape.spread[i] > 0

    def model(self, p: Float[np.ndarray, " k"]) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, "k n"]]:
        n = PARAMETERS * self.count
        value = self.given + p[n:] @ self.lines
        rows = []
        for i in range(self.count):
            each, slopes = peak(self.x, p[PARAMETERS * i : PARAMETERS * (i + 1)], self.doublet)
            value = value + each
            rows.append(slopes)
        return value, np.concatenate([*rows, self.lines])

    def prior(self, p: Float[np.ndarray, " k"]) -> tuple[float, Float[np.ndarray, " k"], Float[np.ndarray, " k"]]:
        """Twice the negative log prior, its half gradient, and its half curvature."""
        return float(np.sum(self.weight * (p - self.target) ** 2)), self.weight * (p - self.target), self.weight

    def cost(self, p: Float[np.ndarray, " k"], value: Float[np.ndarray, " n"]) -> float:
        return self.noise.deviance(self.y, value) + self.prior(p)[0]


def _bounded(p: Float[np.ndarray, " k"], shape: Shape, ends: tuple[float, float]) -> Float[np.ndarray, " k"]:
    p, n = p.copy(), PARAMETERS * len(shape.expected)
    p[0:n:PARAMETERS] = np.clip(p[0:n:PARAMETERS], *ends)
    # A line that grew beyond would take the place of the background
    width = shape.expected[:, 0]
    p[1:n:PARAMETERS] = np.clip(p[1:n:PARAMETERS], width - _WIDER, width + _WIDER)
    p[2:n:PARAMETERS] = np.clip(p[2:n:PARAMETERS], 0.0, 1.0)
    p[3:n:PARAMETERS] = np.clip(p[3:n:PARAMETERS], -_SKEWEST, _SKEWEST)
    p[AREA:n:PARAMETERS] = np.maximum(p[AREA:n:PARAMETERS], 0.0)
    return p


def fit_group(
    x: Float[np.ndarray, " n"],
    y: Float[np.ndarray, " n"],
    given: Float[np.ndarray, " n"],
    start: Float[np.ndarray, "m 5"],
    *,
    noise: Noise,
    shape: Shape,
    doublet: Doublet | None = None,
) -> Fitted:
    """The most likely lines in the points y(x) over the curve `given`; `start` as the answer's `parameters`.

    A position stays within the points. Where the points do not determine a parameter its variance is infinite.
    """
    group = _Group(x, y, given, noise, shape, doublet)
    count = group.count
    n = PARAMETERS * count
    free = group.free
    p = np.where(free, np.concatenate([start.ravel(), [0.0, 0.0]]), group.target)
    p = _bounded(p, shape, (x[0], x[-1]))
    value, slopes = group.model(p)
    cost, damping = group.cost(p, value), 1e-3
    for _ in range(_STEPS):
        variance = noise.variance_of(value)
        _, pull, stiff = group.prior(p)
        fisher = (slopes / variance) @ slopes.T + np.diag(stiff)
        gradient = slopes @ ((y - value) / variance) - pull
        # Each parameter in units of its own uncertainty: areas and positions differ by many powers of ten
        scale = np.sqrt(_positive(np.diag(fisher)))
        scaled = fisher / np.outer(scale, scale)
        moved = False
        while damping < 1e8:
            step = np.zeros(n + 2)
            damped = scaled + damping * np.eye(n + 2)
            step[free] = np.linalg.solve(damped[np.ix_(free, free)], (gradient / scale)[free]) / scale[free]
            # Profiles are nonlinear in width: no step may change it more than twofold, nor leave the line
            step[1:n:PARAMETERS] = np.clip(step[1:n:PARAMETERS], -0.7, 0.7)
            width = np.exp(p[1:n:PARAMETERS])
            step[0:n:PARAMETERS] = np.clip(step[0:n:PARAMETERS], -width, width)
            tried = _bounded(p + step, shape, (x[0], x[-1]))
            new, new_slopes = group.model(tried)
            new_cost = group.cost(tried, new)
            if new_cost <= cost * (1 + 1e-12):
                moved = True
                break
            damping *= 8.0
        if not moved:
            break
        small = float(np.max(np.abs(tried - p) * scale)) < _CONVERGED
        p, value, slopes, cost = tried, new, new_slopes, new_cost
        damping = max(damping / 8.0, 1e-9)
        if small:
            break
    variance = noise.variance_of(value)
    stiff = group.prior(p)[2]
    covariance = _inverse((slopes / variance) @ slopes.T + np.diag(stiff), free)[:n, :n]
    freedom = max(len(x) - int(np.count_nonzero(free)), 1)
    return Fitted(p[:n].reshape(count, PARAMETERS), covariance, float(np.sum((y - value) ** 2 / variance)) / freedom)


def _positive(diagonal: Float[np.ndarray, " k"]) -> Float[np.ndarray, " k"]:
    """The diagonal of an information matrix, 1 for parameters without effect."""
    return np.where(diagonal > 0, diagonal, 1.0)


def _inverse(fisher: Float[np.ndarray, "k k"], free: np.ndarray) -> Float[np.ndarray, "k k"]:
    """The inverse over the free parameters, zero for the others; infinite on the diagonal of one that has no effect."""
    out = np.diag(np.where(free, np.inf, 0.0))
    use = free & (np.diag(fisher) > 0)
    diagonal = np.sqrt(_positive(np.diag(fisher)))
    scaled = fisher[np.ix_(use, use)] / np.outer(diagonal[use], diagonal[use])
    inverse = np.linalg.inv(scaled + 1e-11 * np.eye(len(scaled)))
    out[np.ix_(use, use)] = inverse / np.outer(diagonal[use], diagonal[use])
    return out
