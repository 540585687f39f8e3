"""All shards of a run as one: what is in them, and the master file that shows them as one file.

In the master the table of items is written out, each item once and in the order of the inputs; the tables of the stage
are virtual datasets over the shards (HDF5 1.10), so it is small, and built again at any time. It finds the shards
relative to itself: a run directory may be moved as a whole. `/shards` says which shard, and so which host, job and
rank, each item came from.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from mlindex.records import Column, InputError
from mlindex.runtime.diskfile import new_hdf5
from mlindex.runtime.queue import Key
from mlindex.runtime.schema import (
    ORIGIN,
    STATUS_DTYPE,
    STATUSES,
    combined,
    describe,
    describe_column,
    shard_row,
    write_committed,
    write_shard_table,
)
from mlindex.runtime.shards import (
    VERSION,
    ShardData,
    read_numbers,
    read_texts,
)

MASTER = "results.h5"


@dataclass(frozen=True)
class Survey:
    """The items in the shards of a run, each once, in the order of the inputs.

    `shards` as `read_numbers` gives them; `unreadable` has the path of each file that cannot be read, and a sentence
    that says why; `input`, `index`, `shard` (number in `shards`) and `row` (in that shard) have one entry an item.
    """

    shards: list[ShardData]
    unreadable: list[tuple[Path, str]]
    input: NDArray[np.int64]
    index: NDArray[np.int64]
    shard: NDArray[np.int64]
    row: NDArray[np.int64]
    at: NDArray[np.int64]  # place of each item in the shards laid end to end

    def __len__(self) -> int:
        return len(self.input)

    def column(self, name: str) -> NDArray:
        """A column of the table of items (no text; the status is a number of `STATUSES`); 0 where a shard lacks it."""
        parts = [s.items[name] if name in s.items else np.zeros(len(s.items["input"]), np.int64) for s in self.shards]
        return np.concatenate(parts)[self.at] if parts else np.empty(0, np.int64)

    def keys(self) -> Iterator[Key]:
        """(input, index) of each item."""
        return zip(self.input.tolist(), self.index.tolist(), strict=True)

    def of(self) -> dict[int, int]:
        """The number of items of each input that has one here."""
        _, first = np.unique(self.input, return_index=True)
        return dict(zip(self.input[first].tolist(), self.column("of")[first].tolist(), strict=True))

    def counts(self) -> dict[str, int]:
        """How many items have each status."""
        found = np.bincount(self.column("status"), minlength=len(STATUSES))
        return dict(zip(STATUSES, found.tolist(), strict=True))

    def only(self, chosen: NDArray[np.bool_]) -> Survey:
        """The survey of some of the items."""
        rows = (self.input, self.index, self.shard, self.row, self.at)
        return Survey(self.shards, self.unreadable, *(values[chosen] for values in rows))

    def failures(self) -> list[tuple[str, str, str]]:
        """(id, source, reason) of each failed item."""
        places = np.flatnonzero(self.column("status") == STATUSES.index("failed"))
        found: dict[int, tuple[str, str, str]] = {}
        for number in np.unique(self.shard[places]).tolist():
            mine = places[self.shard[places] == number]
            mine = mine[np.argsort(self.row[mine])]
            texts = read_texts(self.shards[number].path, self.row[mine])
            found |= dict(
                zip(mine.tolist(), zip(texts["id"], texts["source"], texts["reason"], strict=True), strict=True)
            )
        return [found[place] for place in sorted(found)]


def survey(run: Path, pattern: str = "*.h5") -> Survey:
    """What the shards of a run directory (those whose names match) hold now."""
    shards: list[ShardData] = []
    unreadable: list[tuple[Path, str]] = []
    for path in sorted((run / "shards").glob(pattern)):
        try:
            shards.append(read_numbers(path))
        except InputError as error:
            if path.exists():  # else another job has just set it aside
                unreadable.append((path, str(error)))
    empty = [np.empty(0, np.int64)]
    inputs = np.concatenate([s.items["input"] for s in shards] or empty)
    index = np.concatenate([s.items["index"] for s in shards] or empty)
    number = np.repeat(np.arange(len(shards)), [len(s.items["input"]) for s in shards])
    row = np.concatenate([np.arange(len(s.items["input"])) for s in shards] or empty)
    _, at = np.unique(inputs << 32 | index, return_index=True)  # the first of equals, in the order of the shards
    return Survey(shards, unreadable, inputs[at], index[at], number[at], row[at], at)


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


def fullest(seen: Survey, run: Path) -> ShardData:
    """A shard that has all tables of the stage; raises `InputError` where there is no shard."""
    # the dispatcher's shard, if any, has the stage's name but no tables
    full = max(seen.shards, key=lambda shard: len(shard.columns), default=None)
    if full is None:
        why = f" ({seen.unreadable[0][1]})" if seen.unreadable else ""
        raise InputError(f"{run}: there are no results to build {MASTER} from{why}; run the campaign first")
    return full


def _texts(seen: Survey, name: str) -> Iterator[tuple[NDArray[np.int64], NDArray[np.bytes_]]]:
    """A text of all items, shard by shard, as bytes: the places in the survey, and the values."""
    for number, shard in enumerate(seen.shards):
        mine = np.flatnonzero(seen.shard == number)
        with h5py.File(shard.path, "r", locking=False) as file:
            yield mine, file[f"{shard.stage}/items/{name}"][: len(shard.items["input"])][seen.row[mine]]


def write_items(group: h5py.Group, seen: Survey, columns: Sequence[Column], replaced: dict[str, NDArray]) -> None:
    """The table of items, each once; the values of some columns are `replaced`."""
    for column in columns:
        if column.dtype == "str":
            width = max(int(np.char.str_len(v).max(initial=1)) for _, v in _texts(seen, column.name))
            values: NDArray = np.zeros(len(seen), f"S{width}")
            for places, found in _texts(seen, column.name):
                values[places] = found
            dataset = group.create_dataset(column.name, data=values.astype(h5py.string_dtype("utf-8", width)))
        else:
            values = replaced[column.name] if column.name in replaced else seen.column(column.name)
            dtype = STATUS_DTYPE if column.dtype == "status" else np.dtype(column.dtype)
            dataset = group.create_dataset(column.name, data=np.asarray(values).astype(dtype))
        describe_column(dataset, column)
    describe_column(group.create_dataset(ORIGIN.name, data=seen.shard), ORIGIN)


def build_master(run: Path | str) -> Path:
    """Write `results.h5` of a run directory over the shards it has now, in one step; the path of the file.

    Shards that cannot be read are left out (`survey` names them). Raises `InputError` where no shard can be read.
    """
    run = Path(run)
    seen = survey(run)
    full = fullest(seen, run)
    tables = sorted(set(full.columns) - {"items"})
    moved = {}
    for table in tables:
        base = np.cumsum([0, *(_rows_of(shard, table) for shard in seen.shards)])
        moved[f"{table}_offset"] = seen.column(f"{table}_offset") + base[seen.shard]
    partial = run / f".{MASTER}.{os.getpid()}.partial"
    with new_hdf5(partial, VERSION) as file:
        attributes = {**combined([shard.attributes for shard in seen.shards]), "kind": "master"}
        start = float((seen.column("time") - seen.column("seconds")).min()) if len(seen) else None
        describe(file, attributes, full.stage, ["items", *tables], MASTER, start)
        write_committed(file, len(seen))
        write_shard_table(file, [shard_row(shard.path.name, shard.attributes) for shard in seen.shards])
        write_items(file[full.stage]["items"], seen, full.columns["items"], moved)
        for table in tables:
            for column in full.columns[table]:
                _virtual(file[full.stage][table], column, table, seen, full.stage)
    os.replace(partial, run / MASTER)
    return run / MASTER
