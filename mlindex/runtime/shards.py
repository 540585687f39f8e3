"""Results on disk: a shard a rank and job that a kill at any moment leaves readable, and one master file over all.

Every dataset of a shard is contiguous, has its final extent, and is allocated in the (sparse) file before the file
gets its name; from then on no byte of HDF5's own structure is ever written again. A batch goes straight into the file
at the offsets that HDF5 gave: first the rows, then, after they are on the disk, the 8 bytes of `committed`, which
says how many items count. So a kill can only leave rows that `committed` does not cover. Nothing is open in HDF5
while a rank computes, hence no locks, no "open for write" marks, and no repair. A batch that fits neither the extents
nor the string lengths starts another file of the same rank; a rank that ends in order trims its files to what they
hold.

Layout: `/committed`; `/<stage>/items` (one row an item, with `<table>_offset` and `<table>_count`);
`/<stage>/<table>/<column>`.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from mlindex.records import Column, InputError, Item, Result, Schema, Status, failed
from mlindex.runtime.diskfile import new_hdf5
from mlindex.runtime.opening import opened
from mlindex.runtime.schema import (
    ITEMS,
    STATUS_DTYPE,
    STATUSES,
    describe,
    describe_column,
    item_columns,
    source_path,
    sources_of,
    tables_of,
    write_committed,
)

_BYTES, _ROWS = 1 << 25, (1024, 1 << 18)  # extent of a table: so many bytes, within so many rows
_STRING = 64  # bytes, the shortest extent of a text column; in the table of items, where reasons are long:
_REASON = 256
_TEXTS = ("id", "source", "reason")
VERSION = ("v110", "v110")  # of the HDF5 format: the first whose attributes may be longer than 64 kB
Columns = dict[str, NDArray]


@dataclass(frozen=True)
class Entry:
    """A result and its place: number of its input, its number in it, how many items that has, who did it, and when."""

    result: Result
    input: int
    index: int
    of: int
    rank: int = 0
    time: float = field(default_factory=time.time)

    @property
    def key(self) -> tuple[int, int]:
        """What is unique in a campaign."""
        return self.input, self.index


@dataclass(frozen=True)
class ShardData:
    """The committed content of a shard or master; `tables` is empty where only the items were asked for."""

    path: Path
    stage: str
    attributes: Mapping[str, Any]
    items: Columns
    tables: Mapping[str, Columns]
    columns: Mapping[str, Sequence[Column]]

    def places(self) -> list[tuple[int, int]]:
        """(input, index) of each item, in the order of the rows."""
        return list(zip(self.items["input"].tolist(), self.items["index"].tolist(), strict=True))


def _text(values: NDArray) -> NDArray:
    # a file name may hold bytes that are not UTF-8, and a zero byte ends a text of fixed length
    texts = [str(v).encode(errors="backslashreplace").replace(b"\0", b"") for v in np.asarray(values, object).ravel()]
    return np.array(texts, "S").reshape(np.shape(values))


def codes_from_statuses(values: NDArray) -> NDArray[np.int8]:
    """The numbers of status names; raises `ValueError` for a name that is no status."""
    return np.array([STATUSES.index(str(value)) for value in values], np.int8)


def _encoded(columns: Sequence[Column], table: Mapping[str, Any]) -> Columns:
    """The columns of one table in the form that the file holds; raises `ValueError` where they are not as described."""
    if set(table) != {c.name for c in columns}:
        raise ValueError(f"columns {sorted(table)} in place of {sorted(c.name for c in columns)}")
    done: Columns = {}
    for column in columns:
        values = np.asarray(table[column.name])
        if values.ndim != 1 + len(column.shape) or values.shape[1:] != column.shape:
            raise ValueError(f"column {column.name!r} has the shape {values.shape}, not (n, {column.shape})")
        if column.dtype == "str":
            done[column.name] = _text(values)
        elif column.dtype == "status":
            done[column.name] = codes_from_statuses(values)
        else:
            done[column.name] = np.ascontiguousarray(values.astype(column.dtype, casting="same_kind"))
    if len({len(values) for values in done.values()}) > 1:
        raise ValueError("columns of different lengths")
    return done


def _checked(entry: Entry, schema: Schema) -> tuple[Entry, dict[str, Columns]]:
    """The encoded tables of an entry; a result that breaks its stage's schema becomes a failed one."""
    result, tables = entry.result, {}
    try:
        if unknown := set(result.tables) - set(schema.tables):
            raise ValueError(f"unknown tables {sorted(unknown)}")
        for name, table in result.tables.items():
            tables[name] = _encoded(schema.tables[name], table)
        return entry, tables
    except (ValueError, TypeError) as error:
        broken = failed(
            Item(result.id, result.source), f"the stage's result breaks its schema: {error}", result.seconds
        )
        return Entry(broken, entry.input, entry.index, entry.of, entry.rank, entry.time), {}


def _dtype(column: Column, length: int) -> Any:
    if column.dtype == "status":
        return STATUS_DTYPE
    return h5py.string_dtype("utf-8", length) if column.dtype == "str" else np.dtype(column.dtype)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class _Segment:
    """One file of fixed extents, open for appending; it has a temporary name until `publish`."""

    def __init__(
        self,
        path: Path,
        stage: str,
        columns: Mapping[str, Sequence[Column]],
        sizes: Mapping[str, int],
        lengths: Mapping[tuple[str, str], int],
        attributes: Mapping[str, Any],
    ) -> None:
        self.path, self._sizes, self._columns = path, sizes, columns
        self.rows = dict.fromkeys(columns, 0)
        self._at: dict[tuple[str, str], int] = {}
        self._dtypes = {
            (t, c.name): _dtype(c, lengths.get((t, c.name), _STRING)) for t, cs in columns.items() for c in cs
        }
        plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plan.set_layout(h5py.h5d.CONTIGUOUS)
        plan.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        plan.set_fill_time(h5py.h5d.FILL_TIME_NEVER)  # leaves holes, which read as zeros and take no space
        partial = path.with_name(f".{path.name}.partial")
        with new_hdf5(partial, VERSION) as file:
            describe(file, attributes, stage, columns, path.name)
            write_committed(file, 0)
            self._committed = file["committed"].id.get_offset()
            for table, cs in columns.items():
                for c in cs:
                    kind = h5py.h5t.py_create(self._dtypes[table, c.name], logical=True)
                    space = h5py.h5s.create_simple((sizes[table], *c.shape))
                    dataset = h5py.Dataset(h5py.h5d.create(file[stage][table].id, c.name.encode(), kind, space, plan))
                    self._at[table, c.name] = dataset.id.get_offset()
            for table, cs in columns.items():  # their texts together, behind all data: see `opening`
                for c in cs:
                    describe_column(file[stage][table][c.name], c)
        self._partial = partial
        self._file = os.open(partial, os.O_WRONLY)

    def publish(self) -> None:
        """Give the file its name, in place of another that had it."""
        os.fsync(self._file)
        os.replace(self._partial, self.path)
        _sync_folder(self.path.parent)

    def fits(self, block: Mapping[str, Columns]) -> bool:
        """There is room for these rows, and for their longest texts."""
        return all(
            self.rows[table] + len(values) <= self._sizes[table]
            and (values.dtype.kind != "S" or values.dtype.itemsize <= self._dtypes[table, name].itemsize)
            for table, columns in block.items()
            for name, values in columns.items()
        )

    def append(self, block: Mapping[str, Columns]) -> None:
        """Write rows, wait for the disk, then let them count."""
        for table, columns in block.items():
            for name, values in columns.items():
                dtype = self._dtypes[table, name]
                data = np.ascontiguousarray(values.astype(dtype)).tobytes()
                row = dtype.itemsize * int(np.prod(values.shape[1:], dtype=np.int64))
                self._write(data, self._at[table, name] + self.rows[table] * row)
        os.fdatasync(self._file)
        for table, columns in block.items():
            self.rows[table] += len(next(iter(columns.values())))
        self._write(np.int64(self.rows["items"]).tobytes(), self._committed)
        os.fdatasync(self._file)

    def _write(self, data: bytes, at: int) -> None:
        view = memoryview(data)
        while view:
            n = os.pwrite(self._file, view, at)
            view, at = view[n:], at + n

    def close(self) -> None:
        os.close(self._file)


class Shard:
    """What one rank writes in one job: `<stem>-000.h5`, `-001`, ... in `folder`, the first at the first commit."""

    def __init__(self, folder: Path, stem: str, stage: str, schema: Schema, attributes: Mapping[str, Any]) -> None:
        self._folder, self._stem, self._stage, self._schema = folder, stem, stage, schema
        self._attributes = {"kind": "shard", **attributes}
        self._columns = {"items": item_columns(schema.tables), **{t: tuple(cs) for t, cs in schema.tables.items()}}
        self._segment: _Segment | None = None
        self._paths: list[Path] = []
        self._lengths: dict[tuple[str, str], int] = {}  # of texts, in the file being written; they only grow

    def commit(self, entries: Sequence[Entry]) -> tuple[list[Entry], str]:
        """Write a batch for good; the entries as written (one that breaks the schema has failed), and the file's name.

        Raises `OSError` where the disk does not take it.
        """
        checked = [_checked(entry, self._schema) for entry in entries]
        block = self._block(checked)
        if self._segment is None or not self._segment.fits(block):
            self._start(block)
        assert self._segment is not None
        for table in self._schema.tables:
            block["items"][f"{table}_offset"] += self._segment.rows[table]
        self._segment.append(block)
        return [entry for entry, _ in checked], self._segment.path.name

    def _block(self, checked: Sequence[tuple[Entry, Mapping[str, Columns]]]) -> dict[str, Columns]:
        block: dict[str, Columns] = {}
        rows = [
            (r.id, r.source, e.input, e.index, e.of, str(r.status), r.reason, r.seconds, e.rank, e.time)
            for e, r in ((e, e.result) for e, _ in checked)
        ]
        items: dict[str, Any] = {
            c.name: np.array([row[i] for row in rows], object if c.dtype in ("str", "status") else c.dtype)
            for i, c in enumerate(ITEMS)
        }
        for table, columns in self._schema.tables.items():
            parts = [tables[table] for _, tables in checked if table in tables]
            counts = np.array([len(next(iter(t[table].values()))) if table in t else 0 for _, t in checked], np.int64)
            items |= {f"{table}_offset": np.cumsum(counts) - counts, f"{table}_count": counts}
            if parts:
                block[table] = {c.name: np.concatenate([part[c.name] for part in parts]) for c in columns}
        return {"items": _encoded(self._columns["items"], items), **block}

    def _start(self, block: Mapping[str, Columns]) -> None:
        """Another file, wide enough for the block and its like."""
        if self._segment is not None:
            self._segment.close()
        for table, columns in block.items():
            for name, values in columns.items():
                if values.dtype.kind == "S":
                    least = self._lengths.get((table, name), _REASON if table == "items" else _STRING)
                    self._lengths[table, name] = max(least, 2 * values.dtype.itemsize)
        lengths = self._lengths
        sizes = {}
        for table, described in self._columns.items():
            width = sum(
                _dtype(c, lengths.get((table, c.name), _STRING)).itemsize * int(np.prod(c.shape)) for c in described
            )
            need = max((len(values) for values in block.get(table, {}).values()), default=0)
            sizes[table] = max(min(max(_BYTES // max(width, 1), _ROWS[0]), _ROWS[1]), 2 * need)
        path = self._folder / f"{self._stem}-{len(self._paths):03d}.h5"
        self._segment = _Segment(path, self._stage, self._columns, sizes, lengths, self._attributes)
        self._segment.publish()
        self._paths.append(path)

    def close(self) -> None:
        """End: each file is replaced, in one step, by one that is exactly as large as its content."""
        if self._segment is not None:
            self._segment.close()
            self._segment = None
        for path in self._paths:
            data = read_shard(path)
            content = {"items": data.items, **data.tables}
            block = {table: _encoded(data.columns[table], columns) for table, columns in content.items()}
            lengths = {
                (t, n): max(v.dtype.itemsize, 1) for t, c in block.items() for n, v in c.items() if v.dtype.kind == "S"
            }
            sizes = {t: max(len(next(iter(c.values()))), 1) for t, c in block.items()}
            trimmed = _Segment(path, data.stage, data.columns, sizes, lengths, data.attributes)
            trimmed.append(block)
            trimmed.publish()
            trimmed.close()
        self._paths = []


def _decoded(dataset: h5py.Dataset, rows: int | NDArray) -> NDArray:
    raw = np.asarray(dataset[:rows] if isinstance(rows, int) else dataset[rows])
    if h5py.check_enum_dtype(dataset.dtype) == h5py.check_enum_dtype(STATUS_DTYPE):
        return np.array(STATUSES, object)[raw]
    if h5py.check_string_dtype(dataset.dtype) is None:
        return raw
    return np.array([v.decode() for v in raw.ravel()], object).reshape(raw.shape)


def _column(dataset: h5py.Dataset) -> Column:
    dtype = "str" if h5py.check_string_dtype(dataset.dtype) is not None else str(dataset.dtype)
    if h5py.check_enum_dtype(dataset.dtype) == h5py.check_enum_dtype(STATUS_DTYPE):
        dtype = "status"
    name = dataset.name.rpartition("/")[2]
    return Column(name, dtype, dataset.shape[1:], str(dataset.attrs["units"]), str(dataset.attrs["long_name"]))


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[tuple[h5py.File, h5py.Group, int]]:
    """An open results file, its stage's group, and the number of its items; `InputError` where it is none."""
    with opened(path) as file:
        group = file[str(file.attrs["default"])]
        for source in {source for sources in _sources(group).values() for source in sources}:
            if not source_path(path, source).is_file():
                raise InputError(
                    f"{path}: shows {source}, which is not there; keep it in its run (and resume the run if it is "
                    "there), or give the merged.h5 that mlindex merge makes of the run"
                )
        n, extents = int(file["committed"][0]), {len(group["items"][c.name]) for c in ITEMS if c.name in group["items"]}
        if not 0 <= n <= min(extents, default=0):
            raise ValueError(f"{n} items are said to be in {min(extents, default=0)} rows")
        yield file, group, n


def _sources(group: h5py.Group) -> dict[str, list[str]]:
    """The files whose rows each table of a master shows: the same for all of its columns; none in another file."""
    firsts = ((table, next(iter(group[table].values()), None)) for table in tables_of(group))
    return {table: sources_of(first) for table, first in firsts if isinstance(first, h5py.Dataset)}


def _check_sources(path: Path, group: h5py.Group, columns: Mapping[str, Sequence[Column]]) -> None:
    """Raise `InputError` for a source that cannot be opened: HDF5 would show its rows as zeros, without a word."""
    wanted: dict[Path, list[str]] = {}
    for table, sources in _sources(group).items():
        for source in sources:
            wanted.setdefault(source_path(path, source), []).append(table)
    for where, tables in wanted.items():
        with opened(where) as file:
            for table in tables:
                for column in columns[table]:
                    h5py.h5d.open(file.id, f"{group.name}/{table}/{column.name}".encode())


def _tables(group: h5py.Group) -> dict[str, tuple[Column, ...]]:
    """The columns of each table of a stage, that of the items first; what else lies beside them is no table."""
    names = [name for name in tables_of(group) if name != "items"]
    return {table: tuple(_column(d) for d in group[table].values()) for table in ["items", *names]}


def _check_numbers(items: Columns) -> None:
    """Raise `ValueError` for numbers that no writer gives: those of a block that the disk has lost, say."""
    if ((items["index"] < 0) | (items["index"] >= items["of"]) | (items["input"] < 0)).any():
        raise ValueError("an item is outside of its input")
    if items["status"].dtype.kind == "i" and not np.isin(items["status"], range(len(STATUSES))).all():
        raise ValueError("a status is none of those there are")
    if any((values < 0).any() for name, values in items.items() if name.endswith(("_offset", "_count"))):
        raise ValueError("an item has rows that cannot be")


def read_shard(path: Path, tables: bool = True) -> ShardData:
    """What a shard or master file holds; raises `InputError` for a file that is not one, or not whole."""
    with _reading(path) as (file, group, n):
        columns = _tables(group)
        items = {c.name: _decoded(group["items"][c.name], n) for c in columns["items"]}
        _check_numbers(items)
        content = {}
        if tables:
            _check_sources(path, group, columns)
        for table in sorted(set(columns) - {"items"}) if tables else ():
            rows = int((items[f"{table}_offset"] + items[f"{table}_count"]).max(initial=0))
            content[table] = {c.name: _decoded(group[table][c.name], rows) for c in columns[table]}
        return ShardData(path, group.name.strip("/"), dict(file.attrs), items, content, columns)


def read_numbers(path: Path) -> ShardData:
    """What a shard holds of its items but for their texts, the status as a number; fast. Raises like `read_shard`."""
    with _reading(path) as (file, group, n):
        columns = _tables(group)
        items = {c.name: np.asarray(group["items"][c.name][:n]) for c in columns["items"] if c.name not in _TEXTS}
        _check_numbers(items)
        return ShardData(path, group.name.strip("/"), dict(file.attrs), items, {}, columns)


def read_texts(path: Path, rows: NDArray[np.int64], names: Sequence[str] = _TEXTS) -> Columns:
    """The id, source and reason of some items of a shard, by row, ascending; raises like `read_shard`."""
    with _reading(path) as (_, group, _n):
        return {name: _decoded(group["items"][name], np.asarray(rows)) for name in names}


def read_results(path: Path | str) -> list[Result]:
    """The results in a shard or master file; those of a master are in the order of the inputs.

    Raises `InputError` naming the file if it cannot be read.
    """
    data = read_shard(Path(path))
    results = []
    for row in range(len(data.items["id"])):
        at = {name: int(data.items[f"{name}_offset"][row]) for name in data.tables}
        n = {name: int(data.items[f"{name}_count"][row]) for name in data.tables}
        status = Status(data.items["status"][row])
        tables = {
            name: {key: values[at[name] : at[name] + n[name]] for key, values in columns.items()}
            for name, columns in data.tables.items()
            if n[name] or status is not Status.FAILED
        }
        item = {key: data.items[key][row] for key in ("id", "source", "reason", "seconds")}
        results.append(Result(item["id"], item["source"], status, item["reason"], float(item["seconds"]), tables))
    return results


def write_results(
    path: Path | str, stage: str, schema: Schema, results: Sequence[Result], attributes: Mapping[str, Any] | None = None
) -> Path:
    """A results file on its own, in the layout of a shard, from results in memory; read it with `read_results`.

    Raises `OSError` where it cannot be written, and leaves nothing half made.
    """
    path = Path(path)
    stem = f".{path.stem}-{os.getpid()}"
    try:
        shard = Shard(path.parent, stem, stage, schema, attributes or {})
        shard.commit([Entry(result, i, 0, 1) for i, result in enumerate(results)])
        shard.close()
        os.replace(path.parent / f"{stem}-000.h5", path)
    except BaseException:
        for left in path.parent.glob(f"*{glob.escape(stem)}-*"):
            left.unlink(missing_ok=True)
        raise
    return path


def provenance(stage: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes of every results file: versions, the resolved settings as JSON, and the seed if there is one."""
    from importlib.metadata import PackageNotFoundError, version

    import mlindex

    versions = {}
    for package in ("jax", "numpy", "h5py", "mpi4py"):
        try:
            versions[f"{package}_version"] = version(package)
        except PackageNotFoundError:
            versions[f"{package}_version"] = "none"
    seed = settings.get(stage, {}).get("seed")
    return {
        "creator": "mlindex",
        "mlindex_version": mlindex.__version__,
        "stage": stage,
        "settings": json.dumps(settings, sort_keys=True),
        **versions,
        **({} if seed is None else {"seed": seed}),
    }
