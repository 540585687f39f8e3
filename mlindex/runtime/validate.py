"""Whether a results file has the layout of `schema`, and whether what it says of itself agrees; one sentence a fault.

A column is read one at a time, so the memory needed is that of the longest one.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from mlindex.records import Column, Schema
from mlindex.runtime import schema as layout
from mlindex.runtime.opening import check_heaps
from mlindex.stage import STAGES


def schema_of_stage(name: str) -> Schema | None:
    """The schema of a stage in `STAGES`; None for others, because what a file names is not imported."""
    if name not in STAGES:
        return None
    module, attribute = STAGES[name].split(":")
    return getattr(importlib.import_module(module), attribute).schema


def validate(path: Path | str, schema: Schema | None = None) -> list[str]:
    """What is wrong with a results file, a sentence each, which names the file and the place; empty: nothing.

    `schema`: of the stage's tables; without it that of the stage in the file, if it is one of mlindex's own.
    """
    path = Path(path)
    try:
        check_heaps(path)
        with h5py.File(path, "r", locking=False) as file:
            return _Check(path, file, schema).run()
    except (OSError, ValueError) as error:
        return [f"{path}: is not a readable HDF5 file ({str(error).splitlines()[0]})"]


class _Check:
    def __init__(self, path: Path, file: h5py.File, schema: Schema | None) -> None:
        self._path, self._file, self._schema = path, file, schema
        self._faults: list[str] = []
        self._n = 0  # committed items

    def _fault(self, place: str, what: str) -> None:
        self._faults.append(f"{self._path}: {place}: {what}")

    def run(self) -> list[str]:
        kind, stage = self._text(self._file, "kind"), self._text(self._file, "default")
        if kind not in layout.KINDS:
            self._fault("/", f"the attribute kind is {kind!r} and not one of {', '.join(layout.KINDS)}")
            return self._faults
        self._root_attributes(kind)
        if not isinstance(self._file.get(stage) if stage else None, h5py.Group):
            self._fault("/", f"there is no group {stage!r}, which the attribute default names")
            return self._faults
        for name in set(self._file) - {"committed", stage, *((layout.SHARDS,) if kind != "shard" else ())}:
            self._fault(f"/{name}", "is not part of the layout")
        entry = self._file[stage]
        self._class(entry, "NXentry")
        self._fields(entry)
        if self._schema is None:
            self._schema = schema_of_stage(self._text(self._file, "stage") or stage)
        if self._committed(entry):
            self._tables(entry, kind)
            self._items(entry, kind)
        return self._faults

    def _text(self, group: h5py.Group, name: str) -> str:
        value = group.attrs.get(name, "")
        return value if isinstance(value, str) else ""

    def _class(self, group: h5py.Group, wanted: str) -> None:
        if self._text(group, "NX_class") != wanted:
            self._fault(group.name, f"the attribute NX_class is {group.attrs.get('NX_class')!r} and not {wanted!r}")

    def _root_attributes(self, kind: str) -> None:
        for attribute in layout.ROOT:
            value = self._file.attrs.get(attribute.name)
            if value is None:
                if kind in attribute.required:
                    self._fault("/", f"the attribute {attribute.name} is missing ({attribute.text})")
            elif kind not in attribute.kinds:
                self._fault("/", f"the attribute {attribute.name} is not for a {kind} file")
            elif not _is(attribute.type, value) or (attribute.value and value != attribute.value):
                wanted = repr(attribute.value) if attribute.value else f"of the type {attribute.type}"
                self._fault("/", f"the attribute {attribute.name} is {str(value)[:40]!r} and not {wanted}")

    def _fields(self, entry: h5py.Group) -> None:
        for column in layout.FIELDS:
            field = entry.get(column.name)
            if field is None:
                self._fault(f"{entry.name}/{column.name}", f"is missing ({column.long_name})")
            elif not (isinstance(field, h5py.Dataset) and h5py.check_string_dtype(field.dtype) and field.shape == ()):
                self._fault(field.name, "is not one text")
        for name in set(entry) - set(layout.tables_of(entry)) - {c.name for c in layout.FIELDS}:
            self._fault(f"{entry.name}/{name}", "is not part of the layout")

    def _committed(self, entry: h5py.Group) -> bool:
        """Find how many items count; False where nothing more can be checked."""
        counter = self._file.get("committed")
        if not isinstance(counter, h5py.Dataset) or counter.shape != (1,) or counter.dtype != np.int64:
            self._fault("/committed", "is not one int64, the number of items that count")
            return False
        if "items" not in layout.tables_of(entry):
            self._fault(f"{entry.name}/items", "is missing")
            return False
        self._n = int(counter[0])
        columns = (entry["items"].get(column.name) for column in layout.ITEMS)
        extent = min((len(d) for d in columns if isinstance(d, h5py.Dataset) and d.shape), default=0)
        if not 0 <= self._n <= extent:
            self._fault("/committed", f"says {self._n} items, but the table of items has {extent} rows")
            return False
        return True

    def _tables(self, entry: h5py.Group, kind: str) -> None:
        there = [name for name in layout.tables_of(entry) if name != "items"]
        wanted: Mapping[str, Sequence[Column]] | None = self._schema.tables if self._schema else None
        if wanted is None or (kind == "shard" and not there):  # the dispatcher writes failed items, and no tables
            wanted = {name: [] for name in there}
        for name in set(wanted) ^ set(there):
            self._fault(f"{entry.name}/{name}", "is missing" if name in wanted else "is not a table of this stage")
        self._columns(entry["items"], layout.item_columns(there, kind))
        for name in there:
            self._columns(entry[name], wanted.get(name, ()))
        if kind == "shard":
            return
        if not isinstance(self._file.get(layout.SHARDS), h5py.Group):
            self._fault(f"/{layout.SHARDS}", "is missing")
        else:
            self._columns(self._file[layout.SHARDS], layout.SHARD_COLUMNS)

    def _columns(self, group: h5py.Group, wanted: Sequence[Column]) -> None:
        """The columns of one table; an empty `wanted` means that they are not known."""
        self._class(group, "NXcollection")
        for name in {c.name for c in wanted} ^ set(group) if wanted else ():
            self._fault(f"{group.name}/{name}", "is not part of the layout" if name in group else "is missing")
        known = {c.name: c for c in wanted}
        lengths = {}
        for name in group:
            dataset = group[name]
            if not isinstance(dataset, h5py.Dataset) or not dataset.shape:
                self._fault(dataset.name, "is not a column")
                continue
            lengths[name] = len(dataset)
            for attribute in ("units", "long_name"):
                value = dataset.attrs.get(attribute)
                due = getattr(known[name], attribute) if name in known else value
                if not isinstance(value, str) or (due and value != due):
                    self._fault(dataset.name, f"the attribute {attribute} is {value!r} and not {due!r}")
            if name in known:
                column = known[name]
                if not _is_stored(column.dtype, dataset.dtype) or dataset.shape[1:] != column.shape:
                    got = f"{dataset.dtype} with rows of shape {dataset.shape[1:]}"
                    self._fault(dataset.name, f"is {got} and not {column.dtype} with rows of shape {column.shape}")
            self._sources(dataset)
        if len(set(lengths.values())) > 1:
            self._fault(group.name, f"its columns have different lengths ({lengths})")

    def _sources(self, dataset: h5py.Dataset) -> None:
        for source in layout.sources_of(dataset):
            if not layout.source_path(self._path, source).is_file():
                self._fault(dataset.name, f"shows rows of {source}, which is not there")

    def _read(self, group: h5py.Group, name: str) -> NDArray | None:
        dataset = group.get(name)
        if not isinstance(dataset, h5py.Dataset) or not dataset.shape or len(dataset) < self._n:
            return None
        try:
            return np.asarray(dataset[: self._n])
        except OSError as error:
            self._fault(dataset.name, f"cannot be read ({str(error).splitlines()[0]})")
            return None

    def _some(self, place: str, bad: NDArray, what: str) -> None:
        """A fault if any row is bad, naming the first."""
        rows = np.flatnonzero(bad)
        if len(rows):
            self._fault(place, f"{what} (row {rows[0]}{f' and {len(rows) - 1} more' if len(rows) > 1 else ''})")

    def _items(self, entry: h5py.Group, kind: str) -> None:
        """What the committed items say, column by column."""
        items = entry["items"]
        place = items.name
        status = self._read(items, "status")
        if status is not None:
            texts = status.dtype.kind == "S"
            names = [name.encode() for name in layout.STATUSES]
            self._some(
                f"{place}/status",
                ~np.isin(status, names if texts else range(len(names))),
                "is none of solved, unsolved, failed",
            )
            failed = status == (b"failed" if texts else names.index(b"failed"))
            reason = self._read(items, "reason")
            if reason is not None and reason.dtype.kind == "S":
                self._some(f"{place}/reason", failed & (np.char.str_len(reason) == 0), "a failed item has no reason")
        number, index, of = (self._read(items, name) for name in ("input", "index", "of"))
        if number is not None and index is not None and of is not None:
            self._some(f"{place}/index", (index < 0) | (index >= of) | (number < 0), "is outside of its input")
            order = np.lexsort((index, number))
            again = np.zeros(self._n, bool)
            again[order[1:]] = (np.diff(number[order]) == 0) & (np.diff(index[order]) == 0)
            self._some(f"{place}/index", again, "an item is there twice")
            if kind != "shard":
                self._some(f"{place}/input", order != np.arange(self._n), "items are not in the order of the inputs")
        for name in layout.tables_of(entry):
            if name != "items":
                self._ranges(items, name, entry[name], kind)
        if kind != "shard" and isinstance(self._file.get(layout.SHARDS), h5py.Group):
            shard = self._read(items, "shard")
            rows = min((len(d) for d in self._file[layout.SHARDS].values() if d.shape), default=0)
            if shard is not None:
                self._some(f"{place}/shard", (shard < 0) | (shard >= rows), f"is no row of /{layout.SHARDS}")

    def _ranges(self, items: h5py.Group, name: str, table: h5py.Group, kind: str) -> None:
        offset, count = self._read(items, f"{name}_offset"), self._read(items, f"{name}_count")
        if offset is None or count is None:
            return
        rows = min((len(d) for d in table.values() if isinstance(d, h5py.Dataset) and d.shape), default=0)
        outside = (count < 0) | (offset < 0) | ((count > 0) & (offset + count > rows))
        self._some(f"{items.name}/{name}_offset", outside, f"points outside of the {rows} rows of {table.name}")
        if kind == "merged":
            due = np.cumsum(count) - count
            self._some(
                f"{items.name}/{name}_offset", offset != due, f"rows of {table.name} are not in the order of items"
            )


def _is(kind: str, value: Any) -> bool:
    if kind == "int":
        return isinstance(value, int | np.integer)
    if kind == "list":
        return isinstance(value, np.ndarray) and value.ndim == 1 and all(isinstance(v, str) for v in value)
    if not isinstance(value, str):
        return False
    if kind == "json":
        try:
            json.loads(value)
        except ValueError:
            return False
    return True


def _is_stored(dtype: str, stored: np.dtype) -> bool:
    """A column described as `dtype` may have this type in the file."""
    text = h5py.check_string_dtype(stored)
    fixed = text is not None and text.length is not None and text.encoding == "utf-8"
    if dtype == "str":
        return fixed
    if dtype == "status":  # a text in the files of version 0.1.0
        return fixed or h5py.check_enum_dtype(stored) == h5py.check_enum_dtype(layout.STATUS_DTYPE)
    return text is None and np.dtype(dtype) == stored and (dtype == "bool" or h5py.check_enum_dtype(stored) is None)
