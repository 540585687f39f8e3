"""One ordinary file from the shards of a run: each item once, in the order of the inputs, nothing virtual.

The numbers of the items, which say where each row goes, are in memory (some hundred bytes an item); everything else
passes through in slabs of one column. A run may go on meanwhile: what was committed when a shard was first looked at is
copied. A shard that its rank trims in between has the same rows as before.
"""

from __future__ import annotations

import contextlib
import os
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from mlindex.records import Column, InputError
from mlindex.runtime import schema as layout
from mlindex.runtime.diskfile import DiskFile
from mlindex.runtime.master import Survey, fullest, survey
from mlindex.runtime.shards import VERSION, ShardData

MERGED = "merged.h5"
_SLAB = 1 << 25  # bytes of one column that are in memory at a time
_NUMBERS = 64  # bytes that the numbers of a row take while it is copied; a narrow column is no longer a slab for that
_CHUNK = 1 << 18  # bytes of an HDF5 chunk
_OPEN = 64  # shards open at a time
_GAP = 64  # unwanted rows that are read along rather than read around
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Merged:
    """What `merge` did: the file, the items in it, the shards they are from, and a sentence for each left out."""

    path: Path
    items: int
    shards: int
    problems: list[str]


class _Files:
    """Shards, of which the last used are open."""

    def __init__(self, shards: list[ShardData]) -> None:
        self._shards = shards
        self._open: OrderedDict[int, h5py.File] = OrderedDict()

    def entry(self, number: int) -> h5py.Group:
        """The stage's group of a shard."""
        shard = self._shards[number]
        if number in self._open:
            self._open.move_to_end(number)
        else:
            self._open[number] = h5py.File(shard.path, "r", locking=False)
            if int(self._open[number]["committed"][0]) < len(shard.items["input"]):
                raise InputError(f"{shard.path}: has lost items while it was copied; resume the run and merge again")
            if len(self._open) > _OPEN:
                self._open.popitem(last=False)[1].close()
        return self._open[number][shard.stage]

    def close(self) -> None:
        while self._open:
            self._open.popitem()[1].close()


def _spans(rows: NDArray[np.int64]) -> Iterator[tuple[slice, int, int]]:
    """Ascending rows as stretches without large gaps: which of them, from what row to what."""
    ends = np.flatnonzero(np.diff(rows) > _GAP) + 1
    for a, b in zip(np.r_[0, ends], np.r_[ends, len(rows)], strict=True):
        yield slice(int(a), int(b)), int(rows[a]), int(rows[b - 1]) + 1


def _gather(dataset: h5py.Dataset, rows: NDArray[np.int64]) -> NDArray:
    """Rows of a dataset, in any order, each asked for once."""
    if len(rows) == rows[-1] - rows[0] + 1 and (np.diff(rows) == 1).all():  # the usual case
        return dataset[int(rows[0]) : int(rows[-1]) + 1]
    order = np.argsort(rows, kind="stable")
    ascending = rows[order]
    found = np.empty((len(rows), *dataset.shape[1:]), dataset.dtype)
    for part, start, stop in _spans(ascending):
        found[order[part]] = dataset[start:stop][ascending[part] - start]
    return found


def _ranges(starts: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """The numbers start, start + 1, ... of each range, one range after the other."""
    before = np.cumsum(counts) - counts
    return np.arange(counts.sum()) + np.repeat(starts - before, counts)


def _pays(block: NDArray) -> bool:
    """Compression saves a tenth of a column that begins with this block."""
    plain = (
        np.ascontiguousarray(block).view(np.uint8).reshape(-1, block.dtype.itemsize)[: _CHUNK // block.dtype.itemsize]
    )
    return plain.nbytes > 1 << 12 and len(zlib.compress(plain.T.tobytes(), 1)) < 0.9 * plain.nbytes


class _Writer:
    """The datasets of the merged file, one after another, each filled slab by slab."""

    def __init__(self, file: h5py.File, sink: DiskFile, files: _Files, seen: Survey) -> None:
        self._file, self._sink, self._files, self._seen = file, sink, files, seen

    def _texts(self, table: str, name: str) -> int:
        """The length in bytes of the longest text of a column."""
        longest = 1
        for number, shard in enumerate(self._seen.shards):
            if table not in shard.columns:
                continue
            dataset = self._files.entry(number)[table][name]
            n = len(shard.items["input"])
            if table != "items":
                n = int((shard.items[f"{table}_offset"] + shard.items[f"{table}_count"]).max(initial=0))
            step = max(_SLAB // dataset.dtype.itemsize, 1)
            for at in range(0, n, step):
                longest = max(longest, int(np.char.str_len(dataset[at : min(at + step, n)]).max(initial=0)))
        return longest

    def column(self, table: str, column: Column, starts: NDArray[np.int64], counts: NDArray[np.int64]) -> None:
        """Copy one column: `counts` rows of each item, from row `starts` in its shard."""
        dtype = np.dtype(column.dtype) if column.dtype not in ("str", "status") else layout.STATUS_DTYPE
        if column.dtype == "str":
            dtype = h5py.string_dtype("utf-8", self._texts(table, column.name))
        width = dtype.itemsize * int(np.prod(column.shape, dtype=np.int64))
        ends = np.cumsum(counts)
        total = int(ends[-1]) if len(ends) else 0
        rows = max(_SLAB // max(width, _NUMBERS), 1)
        target: h5py.Dataset | None = None
        item = at = 0
        while at < total:
            stop = max(int(np.searchsorted(ends, at + rows, "right")), item + 1)
            block = self._block(table, column, slice(item, stop), starts, counts, dtype)
            if target is None:
                target = self._create(table, column, (total, *column.shape), dtype, block)
            target[at : at + len(block)] = block
            self._sink.check()
            item, at = stop, at + len(block)
        if target is None:
            self._group(table).create_dataset(column.name, (0, *column.shape), dtype)

    def _group(self, table: str) -> h5py.Group:
        return self._file[str(self._file.attrs["default"])][table]

    def _create(
        self, table: str, column: Column, shape: tuple[int, ...], dtype: np.dtype, block: NDArray
    ) -> h5py.Dataset:
        options: dict[str, Any] = {}
        if block.nbytes > _CHUNK:
            row = max(block[:1].nbytes, 1)
            options["chunks"] = (max(_CHUNK // row, 1), *column.shape)
        if _pays(block):
            options |= {"compression": "gzip", "compression_opts": 1, "shuffle": True}
        return self._group(table).create_dataset(column.name, shape, dtype, **options)

    def _block(
        self, table: str, column: Column, items: slice, starts: NDArray, counts: NDArray, dtype: np.dtype
    ) -> NDArray:
        shard, own = self._seen.shard[items], counts[items]
        owner = np.repeat(shard, own)
        rows = _ranges(starts[items], own)
        block = np.zeros((len(rows), *column.shape), dtype)
        for number in np.unique(owner):
            mine = owner == number
            values = _gather(self._files.entry(int(number))[table][column.name], rows[mine])
            if column.dtype == "status" and values.dtype.kind == "S":  # text, in the files of version 0.1.0
                values = np.array([layout.STATUSES.index(v.decode()) for v in values], np.int8)
            block[mine] = values
        return block

    def numbers(self, column: Column, values: NDArray[np.int64]) -> None:
        """A column of the table of items that is made here."""
        dataset = self._create("items", column, values.shape, values.dtype, values)
        dataset[:] = values


def _kinds(shard: ShardData) -> dict[str, list[Column]]:
    """The columns of each table without their descriptions, which may be other words in another version."""
    return {table: [replace(c, long_name="") for c in columns] for table, columns in shard.columns.items()}


def _fitting(seen: Survey, run: Path) -> ShardData:
    """A shard with all tables; raises `InputError` where another has other columns, or there is none."""
    full = fullest(seen, run)
    for shard in seen.shards:
        if len(shard.columns) > 1 and _kinds(shard) != _kinds(full):
            raise InputError(
                f"{shard.path}: has other columns than {full.path.name}, because another version of mlindex wrote it; "
                "merge what each version wrote on its own"
            )
    return full


def _write(sink: DiskFile, name: str, seen: Survey, full: ShardData, progress: Progress | None) -> None:
    tables = {name: columns for name, columns in full.columns.items() if name != "items"}
    attributes = {**layout.combined([shard.attributes for shard in seen.shards]), "kind": "merged"}
    start = float((seen.column("time") - seen.column("seconds")).min())
    files = _Files(seen.shards)
    try:
        with h5py.File(sink, "w", libver=VERSION) as file:
            layout.describe(file, attributes, full.stage, ["items", *tables], name, start)
            layout.write_committed(file, len(seen))
            layout.write_shard_table(file, [layout.shard_row(s.path.name, s.attributes) for s in seen.shards])
            writer = _Writer(file, sink, files, seen)
            done, todo = 0, len(layout.ITEMS) + sum(map(len, tables.values()))
            made = {"shard": seen.shard}
            for table, columns in {"items": layout.ITEMS, **tables}.items():
                starts, counts = seen.row, np.ones(len(seen), np.int64)
                if table != "items":
                    starts, counts = seen.column(f"{table}_offset"), seen.column(f"{table}_count")
                    made |= {f"{table}_offset": np.cumsum(counts) - counts, f"{table}_count": counts}
                for column in columns:
                    writer.column(table, column, starts, counts)
                    done += 1
                    if progress is not None:
                        progress(done, todo)
            items = layout.item_columns(tables, "merged")
            for column in items:
                if column.name in made:
                    writer.numbers(column, made[column.name])
            for table, columns in {"items": items, **tables}.items():  # their texts together, behind all data
                for column in columns:
                    layout.describe_column(file[full.stage][table][column.name], column)
    finally:
        files.close()


def merge(run: Path | str, output: Path | str | None = None, progress: Progress | None = None) -> Merged:
    """Copy what the shards of a run directory hold into one file (default `merged.h5` in it).

    The file appears in one step, at the end. `progress` is called with (columns done, columns in all). Shards that
    cannot be read are left out and named. Raises `InputError` where there is nothing to merge, where shards do not fit
    together, and where the file cannot be written.
    """
    run = Path(run)
    output = run / MERGED if output is None else Path(output)
    if not (run / "shards").is_dir():
        raise InputError(f"{run}: is not the directory of a run (it has no shards); give the one that a campaign wrote")
    if output.is_dir() or not output.parent.is_dir():
        raise InputError(f"{output}: cannot be written; give the name of a file in a folder that exists (-o)")
    seen = survey(run)
    problems = [sentence for _, sentence in seen.unreadable]
    if not len(seen):
        why = f" ({problems[0]})" if problems else ""
        raise InputError(f"{run}: there are no results to merge{why}; run the campaign first")
    if any(output.exists() and output.samefile(shard.path) for shard in seen.shards):
        raise InputError(f"{output}: is a shard of the run; give another name (-o)")
    full = _fitting(seen, run)
    partial = output.with_name(f".{output.name}.{os.getpid()}.partial")
    try:
        with contextlib.closing(DiskFile(partial)) as sink:
            _write(sink, output.name, seen, full, progress)
            sink.check()
            sink.sync()
        os.replace(partial, output)
    except OSError as error:
        detail = (error.strerror or str(error)).splitlines()[0]
        raise InputError(f"{output}: cannot be made ({detail}); free space, or give another file (-o)") from None
    finally:
        partial.unlink(missing_ok=True)
    return Merged(output, len(seen), len(seen.shards), problems)
