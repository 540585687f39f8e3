"""Rebuild `mlindex/models/powder_templates.npz` from the training families of the calculated patterns.

python -m benchmarks.quality.powder_templates --data DIR
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from pathlib import Path

import numpy as np

from benchmarks.quality.dataset import usable
from mlindex.powder import templates

COUNTS = {"oP": 1500, "oS": 1500, "oI": 1500, "oF": 1500, "mP": 2000, "mC": 2000, "aP": 2000}
FIRST = {"o": 12, "m": 12, "a": 11}


def main() -> None:
    """Write the archive and print what each lattice got."""
    parser = argparse.ArgumentParser(description=__doc__)
    known = os.environ.get("MLINDEX_DATA")
    parser.add_argument("--data", type=Path, default=known, required=known is None)
    parser.add_argument("--out", type=Path, default=Path(templates.__file__).parents[1] / "models" / templates.STORED)
    args = parser.parse_args()
    table = usable(Path(args.data))
    table = table[(table["set"] == "train") & (table["bravais"] == table["metric_bravais"])]
    digest = hashlib.sha256()
    for name in ("cells.parquet", "peaklists_calc.parquet"):
        digest.update((Path(args.data) / name).read_bytes())
    found = {}
    for bravais, count in COUNTS.items():
        patterns = [np.asarray(hkl).reshape(-1, 3) for hkl in table.loc[table["bravais"] == bravais, "hkl"]]
        found[bravais] = templates.build(patterns, bravais, count, FIRST[bravais[0]])
        print(f"{bravais}: {len(found[bravais])} templates from {len(patterns)} patterns", flush=True)
    card = {
        "command": "python -m benchmarks.quality.powder_templates --data DIR",
        "data_sha256": digest.hexdigest(),
        "first_lines": FIRST,
        "set": "train",
        "seed": None,
    }
    np.savez_compressed(args.out, card=json.dumps(card), **found)


if __name__ == "__main__":
    main()
