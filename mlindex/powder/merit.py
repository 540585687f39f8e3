"""The figures of merit that crystallographers compare: de Wolff M_N, Smith-Snyder F_N and an information figure.

They describe a solution; the ranking is by the evidence (`judge`). Only lines that are indexed count, and the number
of predicted lines is that of distinct positions without extinction, counted up to the last line used.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mlindex.powder.judge import Fit
from mlindex.powder.lines import Lines

LINES = 20


def _used(fit: Fit, n: int) -> tuple[NDArray[np.bool_], int]:
    """The indexed lines among the first n, and how many distinct lines the cell predicts up to the last of them."""
    use = fit.indexed.copy()
    use[n:] = False
    if not use.any():
        return use, 0
    distinct = np.unique(np.round(fit.q2 / fit.q2[-1], 9))
    last = fit.q2[fit.reflection[use]].max() / fit.q2[-1]
    return use, int((distinct <= last + 1e-9).sum())


def de_wolff(fit: Fit, lines: Lines, n: int = LINES) -> float:
    """M_N = q2_N / (2 <|dq2|> N_poss) over the first n lines; P. M. de Wolff, J. Appl. Cryst. 1 (1968) 108."""
    use, possible = _used(fit, n)
    if not possible:
        return 0.0
    difference = np.abs(fit.residual[use] * 2 * lines.q[use] * lines.w[use]).mean()
    return float(lines.q2[use].max() / (2 * max(difference, 1e-12) * possible))


def smith_snyder(fit: Fit, lines: Lines, n: int = LINES) -> float:
    """F_N = N / (<|d2theta|> N_poss), 2theta in degrees; NaN without a wavelength.

    G. S. Smith & R. L. Snyder, J. Appl. Cryst. 12 (1979) 60.
    """
    use, possible = _used(fit, n)
    if lines.wavelength is None or not possible:
        return float("nan")
    difference = np.abs(fit.residual[use]).mean() * lines.degrees
    return float(use.sum() / (max(difference, 1e-6) * possible))


def information(fit: Fit, lines: Lines, n: int = LINES) -> float:
    """Information in bits that the agreement of the first n lines carries, less that of the cell itself.

    A line |dq2| from a prediction is that close by chance with p = 1 - exp(-2 rho |dq2|), rho being the mean density
    of predicted lines, and tells -log2 p; each free parameter, fixed by a line, takes the information of one line
    back. After D. Taupin, J. Appl. Cryst. 21 (1988) 485.
    """
    use, possible = _used(fit, n)
    if not possible:
        return 0.0
    q2 = fit.q2[fit.reflection[use]]
    # In three dimensions the number of lines grows as q^3 at most; its density at a line is 3/2 N / q2_N (q / q_N)
    density = 1.5 * possible / q2.max() * np.sqrt(q2 / q2.max())
    floor = 0.2 * fit.error  # a line that agrees better than its error tells no more
    difference = np.maximum(np.abs(fit.residual[use]), floor) * 2 * lines.q[use] * lines.w[use]
    bits = -np.log2(-np.expm1(-2 * density * difference))
    free = len(fit.covariance)
    return float(bits.sum() * max(1 - free / max(int(use.sum()), 1), 0.0))
