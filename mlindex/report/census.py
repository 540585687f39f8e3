"""What a run holds, each item once, as the columns that a report is made from.

Nothing here knows a method or a file: `collect` takes blocks of items as they are read, and keeps numbers for every
item but long texts only for those that failed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

STATUSES = ("solved", "unsolved", "failed")
SOLVED, UNSOLVED, FAILED = range(3)


@dataclass(frozen=True)
class Writer:
    """Who did some items: one rank of one job, which is part `part` of `parts` of the campaign (0 of 1: all of it)."""

    job: str
    host: str
    rank: int
    part: int = 0
    parts: int = 1


@dataclass(frozen=True)
class Block:
    """Some items as a results file holds them, and the first row of each in the stage's main table.

    `items` has at least id, source, input, index, status, reason, seconds and time, (n,) each; `writer` (n,) is a row
    of `writers`. `has` (n,) says which items have a first row; `best` has one row for each of these.
    """

    stage: str
    items: Mapping[str, NDArray]
    writers: Sequence[Writer]
    writer: NDArray[np.int64]
    has: NDArray[np.bool_]
    best: Mapping[str, NDArray]
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Census:
    """The items of a run in the order of the inputs, n of them.

    `status` is a row of `STATUSES`; `seconds` the time an item took; `time` when it was committed (s since 1970);
    `reason` maps the rows of failed items to the sentence. `best_of` (m,) are the rows of the items that have a
    solution, ascending, and each column of `best` has m rows. `attributes` maps each attribute of the results files to
    the distinct values it has there.
    """

    stages: tuple[str, ...]
    stage: NDArray[np.int64]
    id: NDArray[np.object_]
    source: NDArray[np.object_]
    status: NDArray[np.int8]
    seconds: NDArray[np.float64]
    time: NDArray[np.float64]
    writers: tuple[Writer, ...]
    writer: NDArray[np.int64]
    reason: Mapping[int, str]
    best_of: NDArray[np.int64]
    best: Mapping[str, NDArray]
    attributes: Mapping[str, Sequence[Any]]

    def __len__(self) -> int:
        return len(self.id)

    def counts(self, rows: Any = slice(None)) -> tuple[int, int, int]:
        """How many of the items in `rows` (a mask, indices or a slice) are solved, unsolved, failed."""
        solved, unsolved, failed = np.bincount(self.status[rows], minlength=3)[:3].tolist()
        return solved, unsolved, failed


def _values(attributes: Iterable[Mapping[str, Any]]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for one in attributes:
        for name, value in one.items():
            plain = value.tolist() if isinstance(value, np.generic | np.ndarray) else value
            if plain not in found.setdefault(name, []):
                found[name].append(plain)
    return found


def collect(blocks: Iterable[Block]) -> Census:
    """The census of all blocks; of an item that is in several, the first counts."""
    stages: dict[str, int] = {}
    writers: dict[Writer, int] = {}
    parts: dict[str, list[NDArray]] = {}
    best: dict[str, list[NDArray]] = {}
    reason: dict[int, str] = {}
    attributes: list[Mapping[str, Any]] = []
    read = 0
    for block in blocks:
        items, n = block.items, len(block.items["id"])
        status = np.array([STATUSES.index(name) for name in items["status"]], np.int8)
        own = np.array([writers.setdefault(w, len(writers)) for w in block.writers], np.int64)
        columns = {
            "stage": np.full(n, stages.setdefault(block.stage, len(stages))),
            "status": status,
            "writer": own[block.writer] if n else np.empty(0, np.int64),
            "has": block.has,
            **{name: np.asarray(items[name]) for name in ("id", "source", "input", "index", "seconds", "time")},
        }
        for name, values in columns.items():
            parts.setdefault(name, []).append(values)
        for name, values in block.best.items():
            best.setdefault(name, []).append(values)
        reason |= {read + int(row): str(items["reason"][row]) for row in np.flatnonzero(status == FAILED)}
        attributes.append(block.attributes)
        read += n
    kinds = {"id": object, "source": object, "status": np.int8, "seconds": float, "time": float, "has": bool}
    whole = {
        name: np.concatenate([np.empty(0, kinds.get(name, np.int64)), *parts.get(name, [])]).astype(
            kinds.get(name, np.int64)
        )
        for name in ("stage", "status", "writer", "has", "id", "source", "input", "index", "seconds", "time")
    }
    place = np.stack([whole["input"], whole["index"]], 1)
    _, kept = np.unique(place, axis=0, return_index=True)  # sorted by place; of equal ones the first
    row_of_best = np.cumsum(whole["has"]) - 1
    has = whole["has"][kept]
    renumbered = {int(old): new for new, old in enumerate(kept) if int(old) in reason}
    return Census(
        stages=tuple(stages),
        **{name: whole[name][kept] for name in ("stage", "id", "source", "status", "seconds", "time", "writer")},
        writers=tuple(writers),
        reason={new: reason[old] for old, new in renumbered.items()},
        best_of=np.flatnonzero(has),
        best={name: np.concatenate(values)[row_of_best[kept[has]]] for name, values in best.items()},
        attributes=_values(attributes),
    )
