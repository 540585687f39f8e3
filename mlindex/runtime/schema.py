"""The layout of a results file as one table: what is written, what the documentation says, and what `validate` checks.

Three kinds of file have it: a *shard* (what one rank wrote in one job), the *master* `results.h5` of a run directory
(virtual datasets over the shards) and a *merged* file (`mlindex merge`: everything copied, nothing virtual). The
columns of a stage's own tables come from its `Schema`. Groups and attributes follow NeXus where it has a word (NXroot,
NXentry, NXcollection, `default`, `units`, `long_name`). `NeXus_version` is not written: it is the version of NeXus' own
library, which did not write the file. `layout_text` gives all of it as text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mlindex.records import Column, Schema, Status

KINDS = ("shard", "master", "merged")
SHARDS = "shards"  # the group that tells of each shard, in a master and a merged file
STATUSES = tuple(str(status) for status in Status)  # an item's status is stored as the number of its name here
STATUS_DTYPE = h5py.enum_dtype({name: code for code, name in enumerate(STATUSES)}, np.int8)
VERSIONS = ("mlindex", "jax", "numpy", "h5py", "mpi4py")

ITEMS = (
    Column("id", "str", long_name="name of the item, unique in the campaign"),
    Column("source", "str", long_name="input file, relative to the campaign file"),
    Column("input", "int64", long_name="number of the input file in inputs.jsonl"),
    Column("index", "int64", long_name="number of the item in its file"),
    Column("of", "int64", long_name="number of items in the file"),
    Column("status", "status", long_name="solved, unsolved or failed"),
    Column("reason", "str", long_name="why the item failed or is unsolved, or a note on its solution"),
    Column("seconds", "float64", (), "s", "time the item took"),
    Column("rank", "int64", long_name="rank that worked on the item"),
    Column("time", "float64", (), "s", "when the item was committed, since 1970-01-01 UTC"),
)
ORIGIN = Column("shard", "int64", long_name="row in /shards of the file that the item came from")
SHARD_COLUMNS = (
    Column("name", "str", long_name="file in the folder shards of the run"),
    Column("host", "str", long_name="host of the rank that wrote it"),
    Column("job", "str", long_name="job that the rank was of"),
    Column("rank", "int64", long_name="rank in that job"),
    Column("part", "int64", long_name="part of the campaign that the job worked on"),
    Column("parts", "int64", long_name="number of parts; 1 for the whole campaign"),
)


@dataclass(frozen=True)
class Attribute:
    """One attribute: `type` is str, int or json, or list for several texts; `value`, if any, is the only one allowed.

    It must be there in the kinds of file `required`, and may be in those of `kinds`.
    """

    name: str
    type: str
    text: str
    value: str = ""
    required: tuple[str, ...] = KINDS
    kinds: tuple[str, ...] = KINDS


_OPTIONAL: tuple[str, ...] = ()
ROOT = (
    Attribute("NX_class", "str", "class of the group in NeXus", "NXroot"),
    Attribute("default", "str", "name of the entry, that is the stage"),
    Attribute("kind", "str", "shard, master or merged"),
    Attribute("file_name", "str", "name that the file was written under"),
    Attribute("file_time", "str", "when it was first written, ISO 8601"),
    Attribute("HDF5_Version", "str", "version of the HDF5 library that wrote it"),
    Attribute("creator", "str", "program that wrote it", "mlindex"),
    Attribute("stage", "str", "the stage as the campaign names it", required=_OPTIONAL),
    Attribute("settings", "json", "all settings in force, as JSON", required=_OPTIONAL),
    Attribute("seed", "int", "seed of the random search, if the stage has one", required=_OPTIONAL),
    *(Attribute(f"{name}_version", "str", f"version of {name}", required=_OPTIONAL) for name in VERSIONS),
    Attribute("host", "str", "host that the rank was on", "", _OPTIONAL, ("shard",)),
    Attribute("job", "str", "job of the rank", "", _OPTIONAL, ("shard",)),
    Attribute("rank", "int", "number of the rank in its job", "", _OPTIONAL, ("shard",)),
    Attribute("part", "int", "part of the campaign that the job worked on", "", _OPTIONAL, ("shard",)),
    Attribute("parts", "int", "number of parts of the campaign", "", _OPTIONAL, ("shard",)),
    Attribute("hosts", "list", "hosts that took part", "", ("master", "merged"), ("master", "merged")),
    Attribute("software", "list", "versions that took part, each once", "", ("master", "merged"), ("master", "merged")),
)
# of the NXentry: texts of one value each
FIELDS = (
    Column("title", "str", long_name="name of the campaign, or of the stage"),
    Column("start_time", "str", long_name="when the work began, ISO 8601"),
    Column("program_name", "str", long_name="program that did the work"),
)
_COUNT = Column("committed", "int64", (), "", "items that count")


def item_columns(tables: Iterable[str], kind: str = "shard") -> tuple[Column, ...]:
    """The columns of `/<stage>/items` for a stage with these tables."""
    offsets = [
        Column(f"{name}_{what}", "int64", long_name=f"{long} of the item in {name}")
        for name in tables
        for what, long in (("offset", "first row"), ("count", "number of rows"))
    ]
    return (*ITEMS, *offsets, *(() if kind == "shard" else (ORIGIN,)))


def tables_of(entry: h5py.Group) -> list[str]:
    """The names of the tables in a stage's group, `items` among them: its groups. Its datasets are NeXus' fields."""
    return [name for name in entry if entry.get(name, getclass=True) is h5py.Group]


def sources_of(dataset: h5py.Dataset) -> list[str]:
    """The files whose rows a dataset shows, relative to its own file, each once; none where it has rows of its own."""
    if not dataset.is_virtual:
        return []
    plan = dataset.id.get_create_plist()  # `virtual_sources` would make two data spaces of each
    return list(dict.fromkeys(plan.get_virtual_filename(i) for i in range(plan.get_virtual_count())))


def source_path(path: Path, source: str) -> Path:
    """Where HDF5 finds a source of the file at `path`: beside it, or beside what it is a link to."""
    beside = path.parent / source
    return beside if beside.exists() else path.resolve().parent / source


def iso_time(seconds: float) -> str:
    """Seconds since 1970-01-01 UTC as ISO 8601."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def describe(
    file: h5py.File,
    attributes: Mapping[str, Any],
    stage: str,
    tables: Iterable[str],
    name: str,
    start: float | None = None,
) -> None:
    """Give a new file its attributes, a group for the stage with NeXus' fields, and one for each table.

    `attributes` are kept as they are, `file_time` too: a file that is written anew keeps its time. `name`: what the
    file will be called; `start`: when the work began, in seconds since 1970 (None: at `file_time`).
    """
    now = datetime.now(UTC).isoformat(timespec="seconds")
    own = {
        "file_time": now,
        **attributes,
        "NX_class": "NXroot",
        "default": stage,
        "file_name": name,
        "HDF5_Version": h5py.version.hdf5_version,
        "creator": "mlindex",
    }
    for key, value in own.items():
        file.attrs[key] = value.tolist() if isinstance(value, np.ndarray) else value
    entry = file.create_group(stage)
    entry.attrs["NX_class"] = "NXentry"
    title = json.loads(str(attributes.get("settings", "{}"))).get("campaign", {}).get("name", stage)
    values = (title, own["file_time"] if start is None else iso_time(start), "mlindex")
    for column, value in zip(FIELDS, values, strict=True):
        describe_column(entry.create_dataset(column.name, data=str(value)), column)
    entry["program_name"].attrs["version"] = str(attributes.get("mlindex_version", "unknown"))
    for table in tables:
        entry.create_group(table).attrs["NX_class"] = "NXcollection"


def describe_column(dataset: h5py.Dataset, column: Column) -> None:
    """Give a dataset its units and name."""
    dataset.attrs["units"] = column.units
    dataset.attrs["long_name"] = column.long_name or column.name


def software(attributes: Mapping[str, Any]) -> str:
    """The versions in a shard's attributes, as one text."""
    return ", ".join(f"{name} {attributes.get(f'{name}_version', 'unknown')}" for name in VERSIONS)


def shard_row(name: str, attributes: Mapping[str, Any]) -> dict[str, Any]:
    """What `/shards` says of the shard with this file name and these attributes."""
    return {
        "name": name,
        "host": str(attributes.get("host", "")),
        "job": str(attributes.get("job", "")),
        "rank": int(attributes.get("rank", 0)),
        "part": int(attributes.get("part", 0)),
        "parts": int(attributes.get("parts", 1)),
    }


def combined(attributes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The attributes of a file over several shards, given theirs: those of the latest job, and who else took part."""
    latest = max(attributes, key=lambda a: str(a.get("job", "")))
    # what is true of one rank, or of that one file
    of_one = {a.name for a in ROOT if a.kinds == ("shard",)} | {"file_name", "file_time", "hosts", "software", "kind"}
    return {
        **{name: value for name, value in latest.items() if name not in of_one},
        "hosts": sorted({str(a.get("host", "unknown")) for a in attributes}),
        "software": sorted({software(a) for a in attributes}),
    }


def write_committed(file: h5py.File, items: int) -> None:
    """Write `/committed`, the number of items that count."""
    describe_column(file.create_dataset(_COUNT.name, data=np.array([items], np.int64)), _COUNT)


def write_shard_table(file: h5py.File, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write `/shards`, one row a shard, each as `shard_row` gives it."""
    group = file.create_group(SHARDS)
    group.attrs["NX_class"] = "NXcollection"
    for column in SHARD_COLUMNS:
        values = [row[column.name] for row in rows]
        if column.dtype == "str":
            texts = np.array([str(v).encode() for v in values] or [b""], "S")
            kind = h5py.string_dtype("utf-8", max(texts.dtype.itemsize, 1))
            dataset = group.create_dataset(column.name, data=texts[: len(values)].astype(kind))
        else:
            dataset = group.create_dataset(column.name, data=np.array(values, column.dtype))
        describe_column(dataset, column)


def _type_text(dtype: str) -> str:
    if dtype == "status":
        return "enum int8 (" + ", ".join(f"{name} {code}" for code, name in enumerate(STATUSES)) + ")"
    return "text, UTF-8, fixed length" if dtype == "str" else str(np.dtype(dtype))


def _row(column: Column, kinds: Sequence[str] = KINDS) -> str:
    shape = f" ({', '.join(map(str, column.shape))})" if column.shape else ""
    units = f" [{column.units}]" if column.units else ""
    where = "" if tuple(kinds) == KINDS else f" *({', '.join(kinds)})*"
    return f"- `{column.name}`: {_type_text(column.dtype)}{shape}{units}: {column.long_name or column.name}{where}\n"


def layout_text(stage: str, schema: Schema) -> str:
    """The layout of a results file of this stage, as Markdown."""
    text = "`/` (NXroot), attributes:\n\n"
    for a in ROOT:
        where = "" if a.kinds == KINDS else f" *({', '.join(a.kinds)})*"
        text += f"- `{a.name}`: {a.value or a.type}: {a.text}{where}\n"
    text += f"\nand one dataset:\n\n{_row(_COUNT)}"
    text += f"\n`/{stage}` (NXentry), one text each:\n\n" + "".join(map(_row, FIELDS))
    text += f"\n`/{stage}/items` (NXcollection), one row an item, in the order of the inputs *(master, merged)*:\n\n"
    text += "".join(map(_row, item_columns(schema.tables))) + _row(ORIGIN, ("master", "merged"))
    for table, columns in schema.tables.items():
        text += f"\n`/{stage}/{table}` (NXcollection), `{table}_count` rows an item, from row `{table}_offset`:\n\n"
        text += "".join(map(_row, columns))
    text += f"\n`/{SHARDS}` (NXcollection), one row a shard *(master, merged)*:\n\n"
    return text + "".join(map(_row, SHARD_COLUMNS))
