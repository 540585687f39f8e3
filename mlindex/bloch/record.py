"""The result of an inversion as the JSON object that `--json` and `export` print: plain Python, null where a number is
missing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlindex.records import Result


def _number(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None


def _solution(solutions: Mapping[str, NDArray], factors: Mapping[str, NDArray], rank: int) -> dict[str, Any]:
    mine = np.flatnonzero(np.asarray(factors["solution"]) == rank)
    rows = zip(*(np.asarray(factors[name])[mine].tolist() for name in ("hkl", "re", "im", "sigma")), strict=True)
    return {
        "r_factor": _number(solutions["r_factor"][rank]),
        "thickness_nm": _number(solutions["thickness"][rank] / 10),
        "u": [
            {"hkl": hkl, "re": _number(re), "im": _number(im), "sigma": _number(sigma)} for hkl, re, im, sigma in rows
        ],
    }


def bloch_record(result: Result) -> dict[str, Any]:
    """The JSON object of one result: id, source, status, reason (if there is one), seconds, and the best solution.

    `r_factor`, `thickness_nm` and `u`, the structure factors (1/angstrom^2) at all differences of two beams with the
    standard uncertainty of each component; `alternatives` have the same three. A pattern that failed has null and
    nothing in their places.
    """
    solutions, factors = result.tables.get("solutions", {}), result.tables.get("factors", {})
    ranked = [_solution(solutions, factors, rank) for rank in range(len(solutions.get("r_factor", ())))]
    best = ranked[0] if ranked else {"r_factor": None, "thickness_nm": None, "u": []}
    return {
        "id": result.id,
        "source": result.source,
        "status": str(result.status),
        **({"reason": result.reason} if result.reason else {}),
        "seconds": round(float(result.seconds), 4),
        **best,
        "alternatives": ranked[1:],
    }
