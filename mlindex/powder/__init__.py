"""Powder indexing: from line positions to ranked unit cells."""

from __future__ import annotations

from typing import Any


def index_powder(q2: Any, *, wavelength: float | str | None = None, name: str = "list", **settings: Any) -> Any:
    """Ranked cells of one list of q2 = 1/d^2 (1/angstrom^2), as a `Result`.

    `wavelength`, in angstrom or as "CuKa1", lets a zero shift be fitted; `settings` are those of `PowderSettings`.
    Raises `mlindex.records.InputError` for unknown settings, and for lines or a wavelength that cannot be used.
    """
    from mlindex.config import PowderSettings, validated
    from mlindex.powder.stage import PowderStage, item_from_q2
    from mlindex.records import InputError, Status
    from mlindex.stage import solve

    stage = PowderStage(validated(PowderSettings, settings, "index_powder"))
    (result,) = solve(stage, [item_from_q2(q2, wavelength, name)])
    if result.status is Status.FAILED:
        raise InputError(result.reason)
    return result
