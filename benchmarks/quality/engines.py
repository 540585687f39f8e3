"""Engines under test: a list of positions in, ranked cells out, each behind the same call.

`engine.solve(uid, q2, wavelength)` gives an `Answer`. Peers are separate processes with an interpreter of their own,
one JSON line a list; a peer that crashes or overruns its limit loses that list and is started again.
"""

from __future__ import annotations

import json
import select
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from benchmarks.quality.truth import centring_of

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Cell:
    """One ranked solution: conventional cell (angstrom, degrees), centring letter for gemmi, Bravais symbol."""

    cell: tuple[float, ...]
    centring: str
    bravais: str


@dataclass(frozen=True)
class Answer:
    """The ranked cells of one list, wall and processor seconds, what went wrong or was left out, and the probability of
    the first cell where the engine gives one."""

    cells: list[Cell]
    seconds: float
    cpu: float | None = None
    note: str = ""
    probability: float | None = None


class Engine(Protocol):
    name: str
    settings: dict[str, Any]

    def solve(self, uid: str, q2: NDArray[np.float64], wavelength: float | None) -> Answer: ...

    def close(self) -> None: ...


@dataclass
class Peer:
    """An engine in a process of its own; `lines` is how many of the first lines it is given."""

    name: str
    command: Sequence[str]
    limit: float  # wall seconds a list
    lines: int = 20
    settings: dict[str, Any] = field(default_factory=dict)
    _process: subprocess.Popen | None = None

    def solve(self, uid: str, q2: NDArray[np.float64], wavelength: float | None) -> Answer:
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        start = time.perf_counter()
        request = {"id": uid, "q2": [float(x) for x in q2[: self.lines]], "wavelength": wavelength}
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
            ready = select.select([process.stdout], [], [], self.limit)[0]
            line = process.stdout.readline() if ready else b""
        except BrokenPipeError:
            ready, line = [process.stdout], b""
        if not line:
            self.close()
            note = "the peer's process ended" if ready else f"no answer in {self.limit:g} s"
            return Answer([], time.perf_counter() - start, None, note)
        reply = json.loads(line)
        cells = [Cell(tuple(row[:6]), row[6], row[7]) for row in reply["cells"]]
        unfinished = ",".join(reply.get("unfinished", ()))
        note = reply.get("error", "") or (f"out of time before {unfinished}" if unfinished else "")
        return Answer(cells, reply["seconds"], reply["cpu"], note)

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


class MlindexEngine:
    """`mlindex` in this process, one list at a time, as `mlindex index powder` would do it."""

    name = "mlindex"

    def __init__(self, settings: dict[str, Any]) -> None:
        from mlindex.config import PowderSettings, validated
        from mlindex.stage import load

        resolved = validated(PowderSettings, settings, "benchmark settings")
        self.settings = resolved.model_dump(mode="json")
        self.stage = load("powder", resolved)

    def solve(self, uid: str, q2: NDArray[np.float64], wavelength: float | None) -> Answer:
        from mlindex.records import Item
        from mlindex.stage import solve

        attrs = {} if wavelength is None else {"wavelength": wavelength}
        wall, cpu = time.perf_counter(), time.process_time()
        result = solve(self.stage, [Item(uid, uid, {"q2": np.asarray(q2, np.float64)}, attrs)])[0]
        seconds, spent = time.perf_counter() - wall, time.process_time() - cpu
        table = result.tables.get("solutions", {"cell": (), "bravais": ()})
        cells = [
            Cell(tuple(float(x) for x in cell), centring_of(str(kind), cell), str(kind))
            for cell, kind in zip(table["cell"], table["bravais"], strict=True)
        ]
        probability = float(table["probability"][0]) if cells else None
        return Answer(cells, seconds, spent, result.reason, probability)

    def close(self) -> None:
        """Nothing to end."""
