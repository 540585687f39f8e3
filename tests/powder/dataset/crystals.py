"""The stored crystals as the tables that `from_parquet` reads, and CIFs of well-known structures."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd

from mlindex.powder.dataset import Entries, from_parquet

REFERENCE = Path(__file__).parent / "reference"
LISTED = ("tmax", "tth", "hkl", "n")


@cache
def records() -> dict[str, dict[str, Any]]:
    """The stored rows by uid."""
    return {row["uid"]: row for row in json.loads((REFERENCE / "crystals.json").read_text())}


def symbol_of(row: dict[str, Any]) -> str:
    """The space group of a row in the axes of its cell: a few rows name rhombohedral axes beside a hexagonal cell."""
    return str(row["hm"]).replace(":R", ":H") if abs(row["gamma"] - 120) < 1e-3 else str(row["hm"])


def write_tables(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """`cells.parquet` and `peaklists_calc.parquet` of some rows."""
    cells = [{k: v for k, v in row.items() if k not in LISTED} for row in rows]
    lists = [{k: row[k] for k in ("uid", *LISTED)} for row in rows]
    pd.DataFrame(cells).to_parquet(folder / "cells.parquet")
    pd.DataFrame(lists).to_parquet(folder / "peaklists_calc.parquet")
    return folder


@cache
def stored_entries() -> Entries:
    """The entries of all stored crystals."""
    with TemporaryDirectory() as folder:
        return from_parquet(write_tables(Path(folder), list(records().values())))


# Textbook structures: space group, cell, sites (element, x, y, z)
STRUCTURES: dict[str, tuple[str, tuple[float, ...], tuple[tuple[str, float, float, float], ...]]] = {
    "halite": ("F m -3 m", (5.6402, 5.6402, 5.6402, 90, 90, 90), (("Na", 0, 0, 0), ("Cl", 0.5, 0.5, 0.5))),
    "pyrite": ("P a -3", (5.4166, 5.4166, 5.4166, 90, 90, 90), (("Fe", 0, 0, 0), ("S", 0.3848, 0.3848, 0.3848))),
    "rutile": ("P 42/m n m", (4.5937, 4.5937, 2.9587, 90, 90, 90), (("Ti", 0, 0, 0), ("O", 0.3053, 0.3053, 0))),
    "calcite": (
        "R -3 c:H",
        (4.988, 4.988, 17.061, 90, 90, 120),
        (("Ca", 0, 0, 0), ("C", 0, 0, 0.25), ("O", 0.2568, 0, 0.25)),
    ),
    "wurtzite": (
        "P 63 m c",
        (3.2498, 3.2498, 5.2066, 90, 90, 120),
        (("Zn", 1 / 3, 2 / 3, 0), ("O", 1 / 3, 2 / 3, 0.3819)),
    ),
    "baddeleyite": (
        "P 1 21/c 1",
        (5.1505, 5.2116, 5.3173, 90, 99.23, 90),
        (("Zr", 0.2754, 0.0395, 0.2083), ("O", 0.07, 0.3317, 0.3447), ("O", 0.4496, 0.7569, 0.4792)),
    ),
    "aragonite": (
        "P m c n",
        (4.9598, 7.9641, 5.7379, 90, 90, 90),
        (
            ("Ca", 0.25, 0.415, 0.7597),
            ("C", 0.25, 0.7622, 0.9138),
            ("O", 0.25, 0.9225, 0.9038),
            ("O", 0.4736, 0.681, 0.9128),
        ),
    ),
    "gypsum": (
        "I 1 2/a 1",
        (5.679, 15.202, 6.522, 90, 118.43, 90),
        (("Ca", 0.5, 0.0797, 0.25), ("S", 0, 0.0773, 0.75), ("O", 0.963, 0.132, 0.55), ("O", 0.758, 0.022, 0.667)),
    ),
    "kyanite-like": (
        "P -1",
        (7.126, 7.852, 5.572, 89.99, 101.11, 106.03),
        (("Al", 0.325, 0.704, 0.458), ("Si", 0.296, 0.065, 0.707), ("O", 0.11, 0.147, 0.129), ("O", 0.12, 0.69, 0.18)),
    ),
}


def cif_text(name: str) -> str:
    """A CIF of one of `STRUCTURES`."""
    group, cell, sites = STRUCTURES[name]
    keys = ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma")
    lines = [f"data_{name}", *(f"_cell_{k} {v}" for k, v in zip(keys, cell, strict=True))]
    lines += [f"_symmetry_space_group_name_H-M '{group}'", "loop_"]
    lines += [f"_atom_site_{k}" for k in ("label", "type_symbol", "fract_x", "fract_y", "fract_z")]
    lines += [f"{e}{n} {e} {x:.6f} {y:.6f} {z:.6f}" for n, (e, x, y, z) in enumerate(sites, 1)]
    return "\n".join(lines) + "\n"
