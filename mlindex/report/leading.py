"""The first row of each item in a table of a results file: its best solution, without the others in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

CHUNK = 1 << 16  # rows read at a time


def _spans(rows: NDArray[np.int64]) -> Iterator[tuple[int, int, NDArray[np.int64]]]:
    """Stretches of the file of at most CHUNK rows that hold some of the ascending `rows`, and which of them."""
    at = 0
    while at < len(rows):
        stop = int(np.searchsorted(rows, rows[at] + CHUNK))
        yield int(rows[at]), int(rows[stop - 1]) + 1, rows[at:stop]
        at = stop


def _read(dataset: h5py.Dataset, rows: NDArray[np.int64]) -> NDArray:
    is_text = h5py.check_string_dtype(dataset.dtype) is not None
    parts = [dataset[start:stop][wanted - start] for start, stop, wanted in _spans(rows)]
    if not parts:
        return np.empty((0, *dataset.shape[1:]), object if is_text else dataset.dtype)
    values = np.concatenate(parts)
    if not is_text:
        return values
    return np.array([v.decode(errors="replace") for v in values.ravel()], object).reshape(values.shape)


def leading_rows(
    path: Path, stage: str, table: str, names: Iterable[str], rows: NDArray[np.int64]
) -> dict[str, NDArray]:
    """`names` of the columns of `/<stage>/<table>` at `rows` (any order); columns that the file lacks are left out.

    Reads at most 65,536 rows of one column at a time. Raises `OSError` where the file cannot be read.
    """
    order = np.argsort(rows, kind="stable")
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    with h5py.File(path, "r", locking=False) as file:
        group = file[f"{stage}/{table}"]
        return {name: _read(group[name], rows[order])[back] for name in names if name in group}
