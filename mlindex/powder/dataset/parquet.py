"""Training entries from tables of cells and calculated line lists (Apache Parquet, by pandas).

`cells.parquet` has the columns uid, family, formula, hm, bravais, metric_bravais, a ... gamma, volume, n_atoms;
`peaklists_calc.parquet` has uid, tmax (degrees 2theta), tth, hkl (in the setting of the cell) and n, for Cu K alpha 1.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlindex.crystal.spacegroup import space_group
from mlindex.powder.dataset.entries import Entries
from mlindex.powder.dataset.filters import Candidate, entries_of
from mlindex.powder.dataset.split import FEWEST, split
from mlindex.powder.dataset.standard import TO_HEXAGONAL
from mlindex.records import InputError

_MISSING = "reading Parquet needs pandas and pyarrow; install them with: pip install 'mlindex-hpc[train]'"


def _tables(folder: Path) -> Any:
    try:
        import pandas as pd
        import pyarrow  # noqa: F401  the engine
    except ImportError:
        raise InputError(_MISSING) from None
    frames = []
    for name in ("cells.parquet", "peaklists_calc.parquet"):
        if not (folder / name).is_file():
            raise InputError(f"{folder}: it has no {name}; give the folder with the cells and their lists")
        try:
            frames.append(pd.read_parquet(folder / name))
        except (ValueError, OSError) as error:
            raise InputError(
                f"{folder / name}: it cannot be read ({str(error).splitlines()[0]}); copy it again"
            ) from None
    cells, lists = frames
    return cells.merge(lists, on="uid")


def from_parquet(folder: str | Path) -> Entries:
    """The entries of a folder with `cells.parquet` and `peaklists_calc.parquet`.

    Crystals whose metric has a higher symmetry than their structure are left out, and those that a quality filter
    rejects (`rejected` counts them); the split is that of all crystals with lists. Raises `InputError` for a missing
    table, or missing pandas.
    """
    table = _tables(Path(folder))
    family = table["family"].astype(str).to_numpy(dtype=str)
    which = split(table["bravais"].to_numpy(dtype=str), family, table["n"].to_numpy())
    rejected: Counter[str] = Counter()
    candidates = []
    rows = zip(table.itertuples(), family, which, strict=True)
    for row, name, dealt in rows:
        if row.bravais != row.metric_bravais:
            rejected["metric of higher symmetry"] += 1
            continue
        cell = np.array([row.a, row.b, row.c, row.alpha, row.beta, row.gamma])
        try:
            # a symbol of rhombohedral axes beside a cell that was brought to hexagonal ones, without its indices
            turned = row.hm.endswith(":R") and abs(row.gamma - 120) < 1e-3
            group = space_group(row.hm.removesuffix(":R") if turned else row.hm, row.alpha, row.gamma)
        except ValueError:
            rejected["unknown space group"] += 1
            continue
        hkl = np.asarray(row.hkl, np.int64).reshape(-1, 3)
        candidates.append(
            Candidate(
                uid=row.uid,
                family=name,
                set=str(dealt),
                bravais=row.bravais,
                group=group,
                cell=cell,
                formula=row.formula or "",
                volume=float(row.volume),
                atoms=float(row.n_atoms),
                hkl=hkl @ TO_HEXAGONAL.astype(np.int64) if turned else hkl,
                tth_max=float(row.tmax),
            )
        )
    return entries_of(candidates, rejected)


def listed(folder: str | Path, set: str) -> dict[str, list[NDArray[np.int64]]]:
    """The reflections (k, 3) of the lines of each crystal in a set, by Bravais lattice, as the tables have them.

    In the axes of the cell, duplicates and all; lists of fewer than ten lines, and crystals whose metric has a higher
    symmetry than their structure, are left out. Raises `InputError` as `from_parquet` does.
    """
    table = _tables(Path(folder))
    family = table["family"].astype(str).to_numpy(dtype=str)
    which = split(table["bravais"].to_numpy(dtype=str), family, table["n"].to_numpy())
    good = (which == set) & (table["n"] >= FEWEST).to_numpy() & (table["bravais"] == table["metric_bravais"]).to_numpy()
    found: dict[str, list[NDArray[np.int64]]] = defaultdict(list)
    for row in table[good].itertuples():
        found[row.bravais].append(np.asarray(row.hkl, np.int64).reshape(-1, 3))
    return dict(found)
