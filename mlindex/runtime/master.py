"""All shards of a run as one: what is in them, and the master file that shows them as one file.

In the master the table of items is written out, each item once and in the order of the inputs; the tables of the stage
are virtual datasets over the shards (HDF5 1.10), so it is small, and built again at any time. It finds the shards
relative to itself: a run directory may be moved as a whole.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from mlindex.records import Column, InputError
from mlindex.runtime.shards import VERSION, ShardData, describe, describe_column, read_shard

MASTER = "results.h5"


@dataclass(frozen=True)
class Survey:
    """The items in the shards of a run.

    `rows` maps the (input, index) of each item to its shard and row there, in the order of the inputs, each item
    once; `of` maps an input to the number of its items; `unreadable` has the path of each file that cannot be read,
    and a sentence that says why.
    """

    shards: list[ShardData]
    unreadable: list[tuple[Path, str]]
    rows: Mapping[tuple[int, int], tuple[int, int]]
    of: Mapping[int, int]


def survey(run: Path, pattern: str = "*.h5") -> Survey:
    """What the shards of a run directory (those whose names match) hold now; reads the tables of items only."""
    shards: list[ShardData] = []
    unreadable: list[tuple[Path, str]] = []
    rows: dict[tuple[int, int], tuple[int, int]] = {}
    of: dict[int, int] = {}
    for path in sorted((run / "shards").glob(pattern)):
        try:
            data = read_shard(path, tables=False)
        except InputError as error:
            unreadable.append((path, str(error)))
            continue
        for row, key in enumerate(data.places()):
            rows.setdefault(key, (len(shards), row))
        of |= dict(zip(data.items["input"].tolist(), data.items["of"].tolist(), strict=True))
        shards.append(data)
    return Survey(shards, unreadable, dict(sorted(rows.items())), of)


def _rows_of(shard: ShardData, table: str) -> int:
    if f"{table}_offset" not in shard.items:
        return 0  # written by the dispatcher, which knows no tables
    return int((shard.items[f"{table}_offset"] + shard.items[f"{table}_count"]).max(initial=0))


def _virtual(group: h5py.Group, column: Column, table: str, seen: Survey, stage: str) -> None:
    """One column of one table, over all shards, in the order of the shards."""
    parts = [(shard, n) for shard in seen.shards if (n := _rows_of(shard, table))]
    dtypes, extents = [], []
    for shard, _ in parts:
        with h5py.File(shard.path, "r", locking=False) as file:
            dataset = file[f"{shard.stage}/{table}/{column.name}"]
            dtypes.append(dataset.dtype)
            extents.append(dataset.shape)
    if column.dtype == "str":
        dtype = h5py.string_dtype("utf-8", max((d.itemsize for d in dtypes), default=1))
    else:
        dtype = np.dtype(column.dtype)
    total, at = sum(n for _, n in parts), 0
    if not total:
        describe_column(group.create_dataset(column.name, (0, *column.shape), dtype), column)
        return
    layout = h5py.VirtualLayout((total, *column.shape), dtype)
    for (shard, n), extent, own in zip(parts, extents, dtypes, strict=True):
        source = h5py.VirtualSource(f"shards/{shard.path.name}", f"{stage}/{table}/{column.name}", extent, dtype=own)
        layout[at : at + n] = source[:n]
        at += n
    describe_column(group.create_virtual_dataset(column.name, layout), column)


def build_master(run: Path | str) -> Path:
    """Write `results.h5` of a run directory over the shards it has now, in one step; the path of the file.

    Shards that cannot be read are left out (`survey` names them). Raises `InputError` where no shard can be read.
    """
    run = Path(run)
    seen = survey(run)
    # the dispatcher's shard, if any, has the stage's name but no tables
    full = max(seen.shards, key=lambda shard: len(shard.columns), default=None)
    if full is None:
        why = f" ({seen.unreadable[0][1]})" if seen.unreadable else ""
        raise InputError(f"{run}: there are no results to build {MASTER} from{why}; run the campaign first")
    tables = sorted(set(full.columns) - {"items"})
    base = {table: np.cumsum([0, *(_rows_of(shard, table) for shard in seen.shards)]) for table in tables}
    partial = run / f".{MASTER}.partial"
    with h5py.File(partial, "w", libver=VERSION, locking=False) as file:
        describe(file, {**full.attributes, "kind": "master"}, full.stage, ["items", *tables])
        file["committed"] = np.array([len(seen.rows)], np.int64)
        file["shards"] = np.array([shard.path.name.encode() for shard in seen.shards], "S")
        for column in full.columns["items"]:
            table, _, what = column.name.rpartition("_")
            virtual = table in tables and what in ("offset", "count")
            parts = []
            for number, shard in enumerate(seen.shards):
                values = shard.items.get(column.name, np.zeros(len(shard.items["id"]), np.int64))
                parts.append(values + base[table][number] if virtual and what == "offset" else values)
            values = np.array([parts[shard][row] for shard, row in seen.rows.values()])
            if column.dtype == "str":
                values = np.array([str(v).encode() for v in values], "S")
                dtype = h5py.string_dtype("utf-8", max(values.dtype.itemsize, 1))
            else:
                dtype = np.dtype(column.dtype)
            dataset = file[full.stage]["items"].create_dataset(column.name, data=values.astype(dtype))
            describe_column(dataset, column)
        for table in tables:
            for column in full.columns[table]:
                _virtual(file[full.stage][table], column, table, seen, full.stage)
    os.replace(partial, run / MASTER)
    return run / MASTER
