"""Where the frames of a scan lie: rows of equal length, in the order in which the inputs are named.

The place of a frame follows from its input file and its number in it, and not from how many results there are, so a
frame that failed, or is yet to be done, is a hole that shifts no other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int
from numpy.typing import NDArray

from mlindex.records import InputError


@dataclass(frozen=True)
class Scan:
    """A raster of `rows` times `columns` frames, `step` (dy, dx) micrometres apart: along a row first, x to the right.

    Rows follow each other along y.
    """

    rows: int
    columns: int
    step: tuple[float, float] = (1.0, 1.0)

    @property
    def size(self) -> int:
        """How many frames it has."""
        return self.rows * self.columns

    def checked(self, number: Int[np.ndarray, " n"], origin: str) -> Int[np.ndarray, " n"]:
        """`number` itself; raises `InputError`, beginning with `origin`, where a frame has no place in the scan."""
        needed = int(number.max(initial=-1)) + 1
        if needed > self.size:
            raise InputError(
                f"{origin}: has {needed} frames, and a scan of {self.rows} x {self.columns} has room for {self.size}; "
                "give the rows and columns of the scan, as --scan ROWS,COLUMNS"
            )
        return number


def frame_numbers(
    input_: Int[np.ndarray, " n"],
    index: Int[np.ndarray, " n"],
    of: Int[np.ndarray, " n"],
    unread: Bool[np.ndarray, " n"] | None = None,
) -> NDArray[np.int64]:
    """The number of each item in the scan, from 0, given its input file, its number in that, and the size of the file.

    A file of which nothing is known, or nothing but that it could not be read (`unread`), counts for as many frames as
    most files have.
    """
    if not len(input_):
        return np.empty(0, np.int64)
    hidden = np.zeros(len(input_), bool) if unread is None else unread & (of == 1)
    sizes = np.full(int(input_.max()) + 1, -1, np.int64)
    sizes[input_[~hidden]] = of[~hidden]
    known = sizes[sizes >= 0]
    usual = int(np.bincount(known).argmax()) if len(known) else 1
    sizes[sizes < 0] = usual
    start = np.cumsum(sizes) - sizes
    return (start[input_] + index).astype(np.int64)
