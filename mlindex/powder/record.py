"""A powder result as the JSON object that `--json` and `export` print: plain Python, null where a number is missing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlindex.records import Result

# In the order in which they are printed; all are columns of the table "solutions"
FIELDS = (
    "bravais",
    "cell",
    "cell_esd",
    "niggli",
    "volume",
    "m20",
    "f20",
    "information",
    "n_indexed",
    "n_lines",
    "score",
    "probability",
    "space_group",
    "zero_shift",
    "zero_shift_esd",
    "ambiguity",
)


def plain(value: Any) -> Any:
    """A NumPy scalar or array as plain Python: lists, numbers, text; None for what is not finite."""
    if isinstance(value, np.ndarray):
        return [plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bytes):
        return value.decode()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _unindexed(lines: Mapping[str, NDArray] | None, rank: int) -> list[float]:
    if not lines:
        return []
    own = np.asarray(lines["solution"]) == rank
    return plain(np.asarray(lines["q2"])[own & ~np.asarray(lines["indexed"], bool)])


def powder_record(result: Result) -> dict[str, Any]:
    """The JSON object of one result: id, source, status, reason (if there is one), seconds, and solutions, best first.

    A solution has every column of the table "solutions" (lengths in angstrom, angles in degrees, volume in cubic
    angstrom, zero_shift in degrees of 2theta, score as a logarithm) and `unindexed`, the q2 = 1/d^2 in 1/angstrom^2
    of the lines it leaves unexplained.
    """
    solutions = result.tables.get("solutions", {})
    lines = result.tables.get("lines")
    count = len(solutions["bravais"]) if "bravais" in solutions else 0
    return {
        "id": result.id,
        "source": result.source,
        "status": str(result.status),
        **({"reason": result.reason} if result.reason else {}),
        "seconds": round(float(result.seconds), 4),
        "solutions": [
            {
                **{name: plain(np.asarray(solutions[name])[rank]) for name in FIELDS if name in solutions},
                "unindexed": _unindexed(lines, rank),
            }
            for rank in range(count)
        ],
    }
