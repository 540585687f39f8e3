"""Orientations that many candidates agree on: a grain's candidates fall together, those of chance are scattered."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

CONSIDERED = 4000  # candidates, the most probable


def agreed(
    u: Float[np.ndarray, "k 3 3"],
    weight: Float[np.ndarray, " k"],
    rotations: Float[np.ndarray, "m 3 3"],
    *,
    within: float = 0.6,
    votes: int = 2,
    most: int = 24,
) -> NDArray[np.float64]:
    """The orientations (j, 3, 3) that at least `votes` of the candidates `u` lie `within` degrees of, each once.

    `rotations` are those of the crystal, which make orientations equivalent; `weight` says how likely a candidate is.
    At most `most` of them, the largest sum of weights first; each is one of the candidates, the likeliest of its kind.
    """
    order = np.argsort(-weight, kind="stable")[:CONSIDERED]
    u, weight = np.asarray(u, np.float64)[order], np.asarray(weight, np.float64)[order]
    least = 1 + 2 * np.cos(np.radians(within))  # of the trace of the rotation between the two
    alive = np.ones(len(u), bool)
    chosen: list[tuple[float, int]] = []
    for first in range(len(u)):
        if not alive[first]:
            continue
        rest = np.flatnonzero(alive)
        equivalent = (u[first] @ rotations).reshape(-1, 9)
        near = rest[(u[rest].reshape(-1, 9) @ equivalent.T).max(1) >= least]
        alive[near] = alive[first] = False
        if len(near) >= votes:
            chosen.append((float(weight[near].sum()), first))
    chosen.sort(key=lambda one: (-one[0], one[1]))
    return u[[first for _, first in chosen[:most]]].reshape(-1, 3, 3)
