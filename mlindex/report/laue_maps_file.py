"""The maps of a scan as HDF5, in NeXus' words: an NXdata of the maps, tables of the grains and of all points.

`/maps` (NXentry) has `data` (NXdata, every map over y and x, that of the likeliest grain a frame), `grains` (a row a
grain), `points` (a row for each grain of each frame, from which the map of any grain can be made), `phases` (a row a
phase), and `grain_0001`, ... (NXdata) with the maps of the largest grains.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

import mlindex
from mlindex.laue.maps.fields import POINTS, STATES, ScanMaps
from mlindex.records import Column, InputError

_GRAINS = (
    Column("number", "i8", (), "", "number of the grain"),
    Column("phase", "i8", (), "", "number of its phase, from 1"),
    Column("frames", "i8", (), "", "frames that it is in"),
    Column(
        "orientation", "f8", (3, 3), "", "mean rotation from Cartesian crystal axes (a* along x) to the sample axes"
    ),
)
_PHASES = (
    Column("name", "str", (), "", "name of the material"),
    Column("cell", "f8", (6,), "angstrom, degrees", "unstrained cell"),
    Column("laue_group", "str", (), "", "Laue class"),
    Column("space_group", "i8", (), "", "number of the space group; 0 for none"),
)
_WHERE = (
    Column("row", "i8", (), "", "row of the frame in the scan, from 0"),
    Column("column", "i8", (), "", "column of the frame in the scan, from 0"),
    Column("rank", "i8", (), "", "place of the grain among those of the frame by score, from 0"),
)
_FRAMES = (
    Column("state", "i1", (), "", f"state of the frame: {', '.join(f'{i} {s}' for i, s in enumerate(STATES))}"),
    Column("n_grains", "i8", (), "", "grains found in the frame"),
)


def _ipf(axis: str) -> Column:
    return Column(
        f"ipf_{axis}", "f4", (3,), "", f"red, green, blue of the crystal direction along {axis} of the sample"
    )


def _put(group: h5py.Group, column: Column, values: NDArray) -> None:
    if column.dtype == "str":
        data: Any = np.array([str(v) for v in values], object)
        dataset = group.create_dataset(column.name, data=data, dtype=h5py.string_dtype("utf-8"))
    else:
        data = np.ascontiguousarray(values).astype(column.dtype)
        small = data.nbytes < 1 << 12
        dataset = group.create_dataset(
            column.name, data=data, **({} if small else {"compression": "gzip", "shuffle": True})
        )
    dataset.attrs["units"] = column.units
    dataset.attrs["long_name"] = column.long_name


def _table(parent: h5py.Group, name: str, columns: Sequence[Column], values: Mapping[str, NDArray]) -> None:
    group = parent.create_group(name)
    group.attrs["NX_class"] = "NXcollection"
    for column in columns:
        _put(group, column, values[column.name])


def _data(parent: h5py.Group, name: str, title: str, maps: ScanMaps) -> h5py.Group:
    """An NXdata over the places of the scan."""
    group = parent.create_group(name)
    scan = maps.scan
    group.attrs.update({"NX_class": "NXdata", "signal": "grain", "axes": ["y", "x"]})
    group.attrs["y_indices"], group.attrs["x_indices"] = np.int64(0), np.int64(1)
    group["title"] = title
    for axis, n, step in (("y", scan.rows, scan.step[0]), ("x", scan.columns, scan.step[1])):
        _put(group, Column(axis, "f8", (), "micrometre", f"place of the frames along {axis}"), np.arange(n) * step)
    return group


def write_maps(
    path: Path,
    maps: ScanMaps,
    colours: Mapping[str, NDArray[np.float64]],
    *,
    origin: str,
    grains: int = 0,
    settings: str = "{}",
) -> None:
    """Write the maps; `colours` (n, 3) of the points by axis, and maps of their own for the `grains` largest grains.

    `origin` is the run or results file, `settings` those of its stage as JSON. The file appears in one step. Raises
    `InputError` where it cannot be written.
    """
    points = {**maps.points, **{f"ipf_{axis}": values for axis, values in colours.items()}}
    columns = (*POINTS, *(_ipf(axis) for axis in colours))
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with h5py.File(partial, "w") as file:
            file.attrs.update({"NX_class": "NXroot", "default": "maps", "creator": "mlindex", "file_name": path.name})
            file.attrs["file_time"] = datetime.now(UTC).isoformat(timespec="seconds")
            file.attrs["mlindex_version"] = mlindex.__version__
            file.attrs["origin"], file.attrs["settings"] = origin, settings
            entry = file.create_group("maps")
            entry.attrs.update({"NX_class": "NXentry", "default": "data"})
            entry["title"] = f"maps of {origin}"
            _put_scalar(entry, "tilt", maps.tilt, "degrees", "turn about y from the LT frame to the sample")
            _put_scalar(entry, "limit", maps.limit, "degrees", "misorientation of neighbouring frames within one grain")
            data = _data(entry, "data", "the likeliest grain of each frame", maps)
            for column in columns:
                _put(data, column, maps.strongest(points[column.name]))
            _put(data, _FRAMES[0], maps.state)
            _put(data, _FRAMES[1], maps.n_grains)
            _describe(entry, maps)
            row, column_ = np.divmod(maps.frame, maps.scan.columns)
            where = {"row": row, "column": column_, "rank": maps.rank}
            _table(entry, "points", (*_WHERE, *columns), {**points, **where})
            for number in range(1, min(grains, len(maps.pixels)) + 1):
                group = _data(entry, f"grain_{number:04d}", f"grain {number}", maps)
                for column in columns:
                    _put(group, column, maps.of_grain(points[column.name], number))
        os.replace(partial, path)
    except OSError as error:
        reason = error.strerror or str(error).splitlines()[0]
        raise InputError(f"{path}: cannot be written ({reason}); give another folder with -o") from None
    finally:
        partial.unlink(missing_ok=True)


def _put_scalar(group: h5py.Group, name: str, value: float, units: str, long_name: str) -> None:
    dataset = group.create_dataset(name, data=float(value))
    dataset.attrs["units"], dataset.attrs["long_name"] = units, long_name


def _describe(entry: h5py.Group, maps: ScanMaps) -> None:
    """The tables of grains and phases."""
    number = np.arange(1, len(maps.pixels) + 1)
    _table(
        entry,
        "grains",
        _GRAINS,
        {"number": number, "phase": maps.phase + 1, "frames": maps.pixels, "orientation": maps.u},
    )
    phases = {
        "name": np.array([p.name for p in maps.phases], object),
        "cell": np.array([p.cell for p in maps.phases], float).reshape(-1, 6),
        "laue_group": np.array([p.laue_group for p in maps.phases], object),
        "space_group": np.array([p.number for p in maps.phases], np.int64),
    }
    _table(entry, "phases", _PHASES, phases)
