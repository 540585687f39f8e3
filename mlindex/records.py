"""What crosses a boundary: items that go to a worker, results that come back, and the schema of their tables.

Everything here is frozen, of fixed dtype, and independent of MPI, HDF5 and JAX. The HDF5 layout of a run derives
from `Schema`; `items_to_buffer` gives the one contiguous buffer that the MPI layer sends.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Scalar = str | int | float | bool | None


class InputError(ValueError):
    """An input that cannot be used; the message is one sentence: the file, what is wrong, what to do."""


class Status(enum.StrEnum):
    """How the work on one item ended."""

    SOLVED = "solved"
    UNSOLVED = "unsolved"  # processed without error, and no solution is good enough to be called one
    FAILED = "failed"  # bad input or an error; the reason says which


@dataclass(frozen=True)
class PeakList:
    """The line positions of one powder pattern.

    `q2` = 1/d^2 in 1/angstrom^2, float64, shape (n,), strictly ascending and positive. `intensity` has the same shape
    or is None. `wavelength` in angstrom is None where the positions were not measured as angles.
    """

    id: str
    source: str
    q2: NDArray[np.float64]
    wavelength: float | None = None
    intensity: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class Item:
    """One unit of work, as a stage's `read` makes it: named arrays and scalars, nothing that needs pickling."""

    id: str
    source: str
    arrays: Mapping[str, NDArray] = field(default_factory=dict)
    attrs: Mapping[str, Scalar] = field(default_factory=dict)


@dataclass(frozen=True)
class Column:
    """One column of a result table: `shape` is that of one row; a dtype of "str" is variable-length UTF-8.

    A dtype of "status" is a `Status`.
    """

    name: str
    dtype: str
    shape: tuple[int, ...] = ()
    units: str = ""
    long_name: str = ""


@dataclass(frozen=True)
class Schema:
    """The tables that a stage fills for each item, each a sequence of columns."""

    tables: Mapping[str, tuple[Column, ...]]


Table = Mapping[str, NDArray]


@dataclass(frozen=True)
class Result:
    """What became of one item: `tables` maps a table's name to its columns, all with the same number of rows.

    A failed item has a one-sentence `reason` and may lack tables.
    """

    id: str
    source: str
    status: Status
    reason: str = ""
    seconds: float = 0.0
    tables: Mapping[str, Table] = field(default_factory=dict)


def failed(item: Item, reason: str, seconds: float = 0.0) -> Result:
    """The result of an item that could not be processed."""
    return Result(item.id, item.source, Status.FAILED, reason, seconds)


def _pack(records: Sequence[tuple[dict, Mapping[str, NDArray]]]) -> NDArray[np.uint8]:
    head: list[Any] = []
    blocks: list[NDArray[np.uint8]] = []
    for meta, arrays in records:
        specs: list[list[Any]] = []
        for key, value in arrays.items():
            array = np.asarray(value)
            if array.dtype.kind in "OU":  # text travels as JSON, inside the header
                specs.append([key, "str", list(array.shape), [str(v) for v in array.ravel()]])
            else:
                array = np.ascontiguousarray(array)
                specs.append([key, array.dtype.str, list(array.shape), None])
                blocks.append(array.view(np.uint8).ravel() if array.size else np.empty(0, np.uint8))
        head.append([meta, specs])
    text = np.frombuffer(json.dumps(head).encode(), np.uint8)
    size = np.frombuffer(np.int64(text.size).tobytes(), np.uint8)
    return np.concatenate([size, text, *blocks])


def _unpack(buffer: NDArray[np.uint8]) -> list[tuple[dict, dict[str, NDArray]]]:
    buffer = np.ascontiguousarray(buffer)
    size = int(buffer[:8].view(np.int64)[0])
    at = 8 + size
    records = []
    for meta, specs in json.loads(buffer[8:at].tobytes().decode()):
        arrays: dict[str, NDArray] = {}
        for key, dtype, shape, text in specs:
            if dtype == "str":
                arrays[key] = np.array(text, dtype=object).reshape(shape)
                continue
            count = int(np.prod(shape)) * np.dtype(dtype).itemsize
            arrays[key] = np.frombuffer(buffer[at : at + count].tobytes(), dtype).reshape(shape)
            at += count
        records.append((meta, arrays))
    return records


def items_to_buffer(items: Sequence[Item]) -> NDArray[np.uint8]:
    """One contiguous buffer for a batch of items (header as JSON, then the arrays); inverse of `items_from_buffer`."""
    return _pack([({"id": i.id, "source": i.source, "attrs": dict(i.attrs)}, i.arrays) for i in items])


def items_from_buffer(buffer: NDArray[np.uint8]) -> list[Item]:
    """The items of a buffer made by `items_to_buffer`."""
    return [Item(m["id"], m["source"], arrays, m["attrs"]) for m, arrays in _unpack(buffer)]
