"""Made-up results in the shape that the powder stage gives, for the tests of what is printed and exported."""

from __future__ import annotations

import numpy as np

from mlindex.records import Column, Result, Schema, Status

SCHEMA = Schema(
    {
        "solutions": (
            Column("bravais", "str"),
            Column("cell", "float64", (6,), "angstrom, degrees"),
            Column("cell_esd", "float64", (6,)),
            Column("niggli", "float64", (6,)),
            Column("volume", "float64"),
            Column("m20", "float64"),
            Column("f20", "float64"),
            Column("information", "float64"),
            Column("n_indexed", "int64"),
            Column("n_lines", "int64"),
            Column("score", "float64"),
            Column("probability", "float64"),
            Column("space_group", "str"),
            Column("zero_shift", "float64"),
            Column("zero_shift_esd", "float64"),
            Column("ambiguity", "int64"),
        ),
        "lines": (
            Column("solution", "int64"),
            Column("q2", "float64"),
            Column("q2_calc", "float64"),
            Column("hkl", "int64", (3,)),
            Column("indexed", "bool"),
        ),
    }
)
CELLS = np.array([[4.7589, 4.7589, 12.992, 90, 90, 120], [24.681, 15.356, 4.458, 90, 95.11, 90]])
ESD = np.array([[0.0002, 0.0002, 0.0013, 0, 0, 0], [0.003, 0.002, 0.00061, 0, 0.012, 0]])


def solved(name: str = "corundum", status: Status = Status.SOLVED, reason: str = "", **columns) -> Result:
    """Two solutions, hR and mP, of five lines; the first leaves one line unindexed, the second has no zero shift."""
    solutions = {
        "bravais": np.array(["hR", "mP"], object),
        "cell": CELLS,
        "cell_esd": ESD,
        "niggli": CELLS[::-1].copy(),
        "volume": np.array([254.81, 1682.87]),
        "m20": np.array([54.32, 12.0]),
        "f20": np.array([80.0, 9.0]),
        "information": np.array([60.0, np.inf]),
        "n_indexed": np.array([4, 5]),
        "n_lines": np.array([5, 5]),
        "score": np.array([-10.5, -30.25]),
        "probability": np.array([0.98, 0.02]),
        "space_group": np.array(["R -3 c", ""], object),
        "zero_shift": np.array([0.0123, np.nan]),
        "zero_shift_esd": np.array([0.002, np.nan]),
        "ambiguity": np.array([0, 0]),
    } | columns
    q2 = np.array([0.0826, 0.1537, 0.1777, 0.2, 0.2312])
    lines = {
        "solution": np.repeat([0, 1], 5),
        "q2": np.tile(q2, 2),
        "q2_calc": np.tile(q2, 2) + 1e-5,
        "hkl": np.array([[0, 1, 2], [1, 0, 4], [1, 1, 0], [0, 0, 0], [1, 1, 3]] * 2),
        "indexed": np.array([True, True, True, False, True] + [True] * 5),
    }
    return Result(name, f"lists/{name}.txt", status, reason, 1.25, {"solutions": solutions, "lines": lines})


def failed(name: str = "broken") -> Result:
    return Result(name, f"lists/{name}.txt", Status.FAILED, f"lists/{name}.txt: is empty; give a list", 0.0)


def unsolved(name: str = "noise") -> Result:
    empty = {
        c.name: np.empty((0, *c.shape), object if c.dtype == "str" else c.dtype) for c in SCHEMA.tables["solutions"]
    }
    return Result(name, f"lists/{name}.txt", Status.UNSOLVED, "", 2.0, {"solutions": empty})
