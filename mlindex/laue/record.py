"""A Laue result as the JSON object that `--json` and `export` print: plain Python, null where a number is missing."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from jaxtyping import Float

from mlindex.crystal.strain import deviatoric_strain
from mlindex.records import Result

_UNSTRAINED = 1e-6  # what the steps of a rotation leave is 1e-7; what is significant is 1e-5 or more

# In the order in which they are printed; all are columns of the table "grains"
FIELDS = (
    "material",
    "ub",
    "u",
    "strain",
    "n_matched",
    "match_rate",
    "score",
    "n_predicted",
    "rms_px",
    "strain_esd",
)


def strain_norm(strain: Float[np.ndarray, "3 3"], esd: Float[np.ndarray, "3 3"]) -> tuple[float, float]:
    """The Frobenius norm of a symmetric strain and its standard uncertainty, the six components taken as independent.

    Where the strain is nothing, the uncertainty is that of its components together. A norm is never negative: without
    any strain it is about twice its uncertainty, for all the errors of the components add to it (see `strain_size`).
    """
    norm = float(np.linalg.norm(strain))
    off = 2 - np.eye(3)  # a component off the diagonal stands there twice, and moves both
    upper = np.triu(np.ones((3, 3)))
    if norm == 0:
        return 0.0, float(np.sqrt(np.sum(upper * off * esd**2)))
    return norm, float(np.sqrt(np.sum(upper * (off * strain / norm * esd) ** 2)))


def strain_size(strain: Float[np.ndarray, "*n 3 3"], esd: Float[np.ndarray, "*n 3 3"]) -> Any:
    """The Frobenius norm of symmetric strains less what their errors add to it, (*n,).

    The square of a measured norm exceeds the true one by the sum of the variances, on average and however the errors
    are correlated. Zero where it is less than that.
    """
    return np.sqrt(np.maximum(np.sum(strain**2 - esd**2, (-1, -2)), 0.0))


def strain_is_real(ub: Float[np.ndarray, "3 3"], cell: Float[np.ndarray, " 6"]) -> bool:
    """Whether the F test of `refine.measured` found a grain strained: the reported `ub` is of its unstrained `cell`
    where it did not."""
    return bool(np.abs(deviatoric_strain(ub, cell)).max() > _UNSTRAINED)


def _plain(value: Any) -> Any:
    """A column's values as plain Python; None for what is not finite."""
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def laue_record(result: Result) -> dict[str, Any]:
    """The JSON object of one result: id, source, status, reason (if there is one), seconds, and grains, best first.

    A grain has `ub` (hkl to q in 1/angstrom in the LT frame), `u` (its rotation), `strain` (deviatoric, in the direct
    crystal axes) and what else is in `FIELDS`. `spots` are all those of the frame: `x`, `y` in pixels, `grain` the
    number of its grain from 0 (-1: none), `hkl` primitive (null: none), `energy` of the lowest order in keV (null:
    none), `intensity`.
    """
    grains, spots = result.tables.get("grains", {}), result.tables.get("spots", {})
    columns = {name: _plain(np.asarray(grains[name]).tolist()) for name in FIELDS if name in grains}
    count = len(columns.get("material", ()))
    place = {name: _plain(np.asarray(values).tolist()) for name, values in spots.items()}
    return {
        "id": result.id,
        "source": result.source,
        "status": str(result.status),
        **({"reason": result.reason} if result.reason else {}),
        "seconds": round(float(result.seconds), 4),
        "grains": [{name: values[rank] for name, values in columns.items()} for rank in range(count)],
        "spots": [
            {
                "x": round(place["x"][i], 4),
                "y": round(place["y"][i], 4),
                "grain": grain,
                "hkl": place["hkl"][i] if grain >= 0 else None,
                "energy": round(place["energy"][i], 5) if grain >= 0 else None,
                "intensity": place["intensity"][i],
            }
            for i, grain in enumerate(place.get("grain", ()))
        ],
    }
