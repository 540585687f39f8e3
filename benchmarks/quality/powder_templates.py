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
from numpy.typing import NDArray

from benchmarks.quality.dataset import usable
from mlindex.crystal.lattice import BRAVAIS, allowed
from mlindex.powder import templates

COUNTS = {"oP": 1500, "oS": 1500, "oI": 1500, "oF": 1500, "mP": 2000, "mC": 2000, "aP": 2000}
FIRST = {"o": 12, "m": 12, "a": 11}


# hkl' = hkl P to the C-centred setting, from A, from B, and from I (monoclinic, b unique)
_AXES = np.array(
    [
        np.eye(3),
        [[0, 0, -1], [0, 1, 0], [1, 0, 0]],
        [[1, 0, 0], [0, 0, 1], [0, -1, 0]],
        [[1, 0, 0], [0, 1, 0], [1, 0, -1]],
    ]
)


def in_standard_axes(hkl: NDArray[np.int64], bravais: str) -> NDArray[np.int64] | None:
    """The indices in the axes in which all of them obey the centring; None where there are none such."""
    centring = BRAVAIS[bravais].centring
    for p in _AXES if centring == "C" else _AXES[:1]:
        turned = hkl @ p.astype(np.int64)
        if allowed(turned, centring).all() and not (bravais == "mC" and (p[1] != [0, 1, 0]).any()):
            return turned
    return None


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
        listed = [np.asarray(hkl).reshape(-1, 3) for hkl in table.loc[table["bravais"] == bravais, "hkl"]]
        patterns = [p for p in (in_standard_axes(hkl, bravais) for hkl in listed) if p is not None]
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
