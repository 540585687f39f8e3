"""The probability that a line is seen, from its distance to the next line and its position.

rho(d, q2) = c(q2) [1 - exp(-k d)], c = c0 + c1 q2 within 0 and 1, for a line whose nearer neighbour is d = |difference
of q2| away. Source: the write-up of ML-Index, eq. 19, with r0^(-r1 d) = exp(-k d), fitted here by maximum likelihood
to every line and not to a histogram.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from scipy.optimize import minimize

SEPARATION = 0.1 / 1.5  # degrees 2theta: of two nearer lines one is seen (FWHM 0.1 degrees)
DEFAULT = (0.75, 0.0, 2000.0)  # c0, c1 (angstrom^2), k (angstrom^2), where there is nothing to fit
STEEPEST = 1e5  # angstrom^2, of k: at this the nearer neighbour of a line that stands alone does not matter
FIRST = 24  # positions of the first seen line that are told apart


def acceptance(law: Any, gap: Float[Any, "*n"], q2: Float[Any, "*n"]) -> Float[Any, "*n"]:
    """rho in [0, 1] for `law` = (c0, c1, k), gap and q2 in 1/angstrom^2; NumPy or JAX arrays."""
    xp = gap.__array_namespace__()
    return xp.clip(law[0] + law[1] * q2, 0.0, 1.0) * (1 - xp.exp(-law[2] * gap))


def fitted_acceptance(
    gap: Float[np.ndarray, " n"], q2: Float[np.ndarray, " n"], seen: Bool[np.ndarray, " n"]
) -> NDArray[np.float64]:
    """(c0, c1, k) of the largest likelihood; `DEFAULT` where fewer than a hundred lines are given."""
    if len(gap) < 100:
        return np.array(DEFAULT)
    scale = float(np.median(q2))

    def law(z: NDArray) -> NDArray:
        return np.array([z[0], z[1] / scale, np.exp(min(z[2], np.log(STEEPEST)))])

    def loss(z: NDArray) -> float:
        rho = np.clip(acceptance(law(z), gap, q2), 1e-4, 1 - 1e-4)
        return -float(np.mean(np.where(seen, np.log(rho), np.log1p(-rho))))

    starts = [np.array([min(1.0, float(seen.mean()) * 1.2), 0.0, np.log(k)]) for k in (300.0, 1000.0, 4000.0)]
    best = min((minimize(loss, start, method="Nelder-Mead", options={"maxiter": 400}) for start in starts), key=_fun)
    return law(best.x)


def _fun(result: Any) -> float:
    return float(result.fun)


def first_shares(position: NDArray[np.int64]) -> NDArray[np.float64]:
    """The cumulative share (FIRST,) of the positions of the first seen line in a list; the last is 1."""
    counts = np.bincount(np.minimum(position, FIRST - 1), minlength=FIRST).astype(float)
    if not counts.sum():
        counts[0] = 1.0
    return np.cumsum(counts) / counts.sum()
