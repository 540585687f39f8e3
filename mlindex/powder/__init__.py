"""Powder indexing: from line positions to ranked unit cells."""

from __future__ import annotations

from typing import Any

import numpy as np


def index_powder(q2: Any, *, wavelength: float | None = None, name: str = "list", **settings: Any) -> Any:
    """Ranked cells of one list of q2 = 1/d^2 (1/angstrom^2), as a `Result`.

    `wavelength` in angstrom lets a zero shift be fitted; `settings` are those of `PowderSettings`. Raises
    `mlindex.records.InputError` for unknown settings or too few lines.
    """
    from mlindex.config import PowderSettings, validated
    from mlindex.powder.stage import PowderStage
    from mlindex.records import InputError, Item, Status
    from mlindex.stage import solve

    stage = PowderStage(validated(PowderSettings, settings, "index_powder"))
    item = Item(name, name, {"q2": np.asarray(q2, np.float64)}, {"wavelength": wavelength})
    (result,) = solve(stage, [item])
    if result.status is Status.FAILED:
        raise InputError(result.reason)
    return result
