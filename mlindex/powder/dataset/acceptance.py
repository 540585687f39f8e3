"""The probability that a line is seen, from its distance to the next line and its position.

rho(d, q2) = c(q2) [1 - exp(-k d)], c = c0 + c1 q2 within 0 and 1, for a line whose nearer neighbour is d = |difference
of q2| away. Source: the write-up of ML-Index, eq. 19, with r0^(-r1 d) = exp(-k d). Beyond it, crystals differ in how
many of their lines are strong: the odds rho / (1 - rho) of all lines of a crystal are multiplied by exp(s z), z normal.
The four numbers are those of the largest likelihood, with z integrated out for each crystal (Gauss-Hermite), and every
line counts for itself, not as part of a histogram.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from scipy.optimize import minimize

SEPARATION = 0.1 / 1.5  # degrees 2theta: of two nearer lines one is seen (FWHM 0.1 degrees)
DEFAULT = (0.75, 0.0, 2000.0, 0.7)  # c0, c1 (angstrom^2), k (angstrom^2), s, where there is nothing to fit
STEEPEST = 1e5  # angstrom^2, of k: at this the nearer neighbour of a line that stands alone does not matter
FIRST = 24  # positions of the first seen line that are told apart
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(9)
_ENOUGH = 400  # crystals to fit to


def acceptance(law: Any, gap: Float[Any, "*n"], q2: Float[Any, "*n"]) -> Float[Any, "*n"]:
    """rho in [0, 1] for `law` = (c0, c1, k, s), gap and q2 in 1/angstrom^2; NumPy or JAX arrays."""
    xp = gap.__array_namespace__()
    return xp.clip(law[0] + law[1] * q2, 0.0, 1.0) * (1 - xp.exp(-law[2] * gap))


def with_odds(rho: Float[Any, "*#n"], factor: Any) -> Any:
    """The probability whose odds are `factor` times those of `rho`, broadcast; NumPy or JAX arrays."""
    return rho * factor / (1 - rho + rho * factor)


def fitted_acceptance(
    gap: Float[np.ndarray, " n"],
    q2: Float[np.ndarray, " n"],
    seen: Bool[np.ndarray, " n"],
    crystal: Int[np.ndarray, " n"],
) -> NDArray[np.float64]:
    """(c0, c1, k, s) of the largest likelihood; `DEFAULT` where fewer than a hundred lines are given.

    `crystal` (n,), ascending: to which crystal each line belongs. Of more than 400 crystals an even choice is used.
    """
    if len(gap) < 100:
        return np.array(DEFAULT)
    names = np.unique(crystal)
    chosen = np.isin(crystal, names[:: max(1, len(names) // _ENOUGH)])
    gap, q2, seen = gap[chosen], q2[chosen], seen[chosen]
    starts = np.flatnonzero(np.diff(crystal[chosen], prepend=-1))
    scale = float(np.median(q2))
    factors = np.exp(np.outer(np.ones(len(gap)), _NODES))  # (n, 9), to the power s below

    def law(z: NDArray) -> NDArray:
        return np.array([z[0], z[1] / scale, np.exp(min(z[2], np.log(STEEPEST))), abs(z[3])])

    def loss(z: NDArray) -> float:
        found = law(z)
        rho = np.clip(acceptance(found, gap, q2), 1e-4, 1 - 1e-4)[:, None]
        each = with_odds(rho, factors ** found[3])
        log = np.add.reduceat(np.where(seen[:, None], np.log(each), np.log1p(-each)), starts, axis=0)
        top = log.max(1, keepdims=True)
        return -float(np.mean(top[:, 0] + np.log(np.exp(log - top) @ _WEIGHTS)))

    start = np.array([min(1.0, float(seen.mean()) * 1.2), -0.1, np.log(2000.0), 0.7])
    simplex = start + np.vstack([np.zeros(4), np.diag([-0.2, -0.3, 1.5, 0.5])])
    options = {"maxiter": 300, "xatol": 1e-3, "fatol": 1e-4, "initial_simplex": simplex}
    return law(minimize(loss, start, method="Nelder-Mead", options=options).x)


def first_shares(position: NDArray[np.int64]) -> NDArray[np.float64]:
    """The cumulative share (FIRST,) of the positions of the first seen line in a list; the last is 1."""
    counts = np.bincount(np.minimum(position, FIRST - 1), minlength=FIRST).astype(float)
    if not counts.sum():
        counts[0] = 1.0
    return np.cumsum(counts) / counts.sum()
