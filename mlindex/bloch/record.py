"""The result of an inversion as the JSON object that `--json` and `export` print: plain Python, null where a number is
missing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlindex.records import Result

_LEADING, _PART = 4, 0.25  # structure factors that are named, and their part against that of the first


def _number(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None


def weakest_hkl(hkl: NDArray[np.int64], part: NDArray[np.float64]) -> list[list[int]]:
    """The hkl (of g and -g one) that dominate the least determined combination of structure factors, first the one with
    the greatest part. `hkl` (d, 3) and `part` (d,) as in the table of structure factors of one solution."""
    upper = np.arange(len(part) // 2 + 1, len(part))
    upper = upper[np.isfinite(part[upper]) & (part[upper] > 0)]
    order = upper[np.argsort(-part[upper].round(9), kind="stable")][:_LEADING]
    return [hkl[k].tolist() for k in order if part[k] >= _PART * part[order[0]]]


def _solution(solutions: Mapping[str, NDArray], factors: Mapping[str, NDArray], rank: int) -> dict[str, Any]:
    mine = np.flatnonzero(np.asarray(factors["solution"]) == rank)
    of = {name: np.asarray(factors[name])[mine] for name in ("hkl", "re", "im", "sigma", "weakest")}
    rows = zip(*(of[name].tolist() for name in ("hkl", "re", "im", "sigma")), strict=True)
    return {
        "r_factor": _number(solutions["r_factor"][rank]),
        "thickness_nm": _number(solutions["thickness"][rank] / 10),
        "thickness_sigma_nm": _number(solutions["thickness_sigma"][rank] / 10),
        "symmetry": str(solutions["symmetry"][rank]),
        "agreement": int(solutions["agreement"][rank]),
        "fitted_scale": _number(solutions["fitted_scale"][rank]),
        "background": _number(solutions["background"][rank]),
        "undetermined": int(solutions["undetermined"][rank]),
        "condition": _number(solutions["condition"][rank]),
        "weakest": weakest_hkl(of["hkl"], of["weakest"]),
        "weakest_sigma": _number(solutions["weakest_sigma"][rank]),
        "u": [
            {"hkl": hkl, "re": _number(re), "im": _number(im), "sigma": _number(sigma)} for hkl, re, im, sigma in rows
        ],
    }


_NOTHING: dict[str, Any] = {
    **dict.fromkeys(("r_factor", "thickness_nm", "thickness_sigma_nm", "symmetry", "agreement", "fitted_scale")),
    **dict.fromkeys(("background", "undetermined", "condition")),
    "weakest": [],
    "weakest_sigma": None,
    "u": [],
}


def bloch_record(result: Result) -> dict[str, Any]:
    """The JSON object of one result: id, source, status, reason (if there is one), seconds, and the best solution.

    Of a solution: `r_factor`; `thickness_nm` and its standard uncertainty; `symmetry` of the projection; `agreement`,
    the starts that ended there; `fitted_scale` and `background` (1 and 0 where not fitted); how unique it is:
    `undetermined`, combinations of U that the pattern says nothing about, `condition`, the ratio of the eigenvalues of
    J^T J, `weakest`, the hkl that dominate the least determined combination, and `weakest_sigma`, its uncertainty in
    1/angstrom^2; `u`, the structure factors (1/angstrom^2) at all differences of two beams with the standard
    uncertainty of each component. Of the pattern: `scale`, what its intensities were divided by, `noise_r`, the R that
    counting noise explains, and `beams`, the R of each. `alternatives` are solutions too. A pattern that failed has
    null and nothing in their places.
    """
    solutions, factors = result.tables.get("solutions", {}), result.tables.get("factors", {})
    ranked = [_solution(solutions, factors, rank) for rank in range(len(solutions.get("r_factor", ())))]
    pattern, beams = result.tables.get("patterns", {}), result.tables.get("beams", {})
    each = zip(*(np.asarray(beams.get(name, ())).tolist() for name in ("hkl", "r_beam")), strict=True)
    return {
        "id": result.id,
        "source": result.source,
        "status": str(result.status),
        **({"reason": result.reason} if result.reason else {}),
        "seconds": round(float(result.seconds), 4),
        **(ranked[0] if ranked else _NOTHING),
        "alternatives": ranked[1:],
        **{name: _number(pattern[name][0]) if pattern else None for name in ("scale", "noise_r")},
        "beams": [{"hkl": hkl, "r": _number(r)} for hkl, r in each],
    }
