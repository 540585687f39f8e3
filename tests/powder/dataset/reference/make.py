"""Write `crystals.json` and `split.json`: a few crystals of the public domain with their lists, and a split of theirs.

python -m tests.powder.dataset.reference.make DATA

DATA has `cells.parquet` and `peaklists_calc.parquet`; only rows in the public domain are taken.
The split is that of `benchmarks/quality/dataset.py`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.quality.dataset import LATTICES, split

HERE = Path(__file__).parent
NUMBERS = ("a", "b", "c", "alpha", "beta", "gamma", "volume", "n_atoms")


def main(data: Path) -> None:
    """Choose the rows and write both files."""
    cells = pd.read_parquet(data / "cells.parquet")
    table = cells.merge(pd.read_parquet(data / "peaklists_calc.parquet"), on="uid")
    free = table[table["license"].str.startswith(("CC0", "public domain")) & table["hm"].notna()].sort_values("uid")
    rows = []
    for lattice in LATTICES:
        here = free[(free["bravais"] == lattice) & (free["volume"] < 2500)]
        true = here[here["metric_bravais"] == lattice].drop_duplicates("hm")
        rows.append(true.head(6 if lattice in ("mP", "mC", "oS", "oP") else 3))
        rows.append(here[here["metric_bravais"] != lattice].head(1))
    chosen = pd.concat(rows)
    records = []
    for row in chosen.itertuples():
        record = {name: getattr(row, name) for name in ("uid", "formula", "hm", "bravais", "metric_bravais", "license")}
        record |= {name: float(getattr(row, name)) for name in NUMBERS}
        record |= {"family": int(row.family), "tmax": float(row.tmax), "n": int(row.n)}
        record |= {"tth": [float(x) for x in row.tth], "hkl": [int(x) for x in np.ravel(row.hkl)]}
        records.append(record)
    (HERE / "crystals.json").write_text("[\n" + ",\n".join(json.dumps(r) for r in records) + "\n]\n")
    some = free.iloc[::4].reset_index(drop=True)
    usable = some[some["n"] >= 10].copy()
    usable["set"] = split(usable)
    dealt = [[r.bravais, int(r.family), int(r.n), r.set] for r in usable.itertuples()]
    rest = [[r.bravais, int(r.family), int(r.n), ""] for r in some[some["n"] < 10].itertuples()]
    (HERE / "split.json").write_text("[\n" + ",\n".join(json.dumps(r) for r in dealt + rest) + "\n]\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
