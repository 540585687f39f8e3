"""Run directories made by the runtime's own writers, from made-up results, for the tests of the report."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from mlindex.records import Result, Status
from mlindex.runtime import inputs, journal
from mlindex.runtime.rundir import to_toml
from mlindex.runtime.shards import Entry, provenance
from mlindex.runtime.worker import Ledger
from tests.report.results import SCHEMA, solved, unsolved

START = 1_790_000_000.0  # s since 1970
SETTINGS = {"campaign": {"name": "night <shift>", "stage": "powder"}, "powder": {"effort": "quick", "seed": 7}}
REASONS = ("has {n} distinct lines; indexing needs at least 6", "is empty; give a list of line positions")


def results(n: int, seed: int = 0) -> list[Result]:
    """n results: of each ten seven solved, one unsolved, two failed for one of two reasons; times differ."""
    rng = np.random.default_rng(seed)
    made = []
    for k in range(n):
        name = f"item{k:05d}"
        source = f"lists/{name}.txt"
        seconds = float(rng.uniform(0.5, 3))
        if k % 10 in (4, 8):
            reason = f"/data/{source}: " + REASONS[k % 4 == 0].format(n=k % 6)
            made.append(Result(name, source, Status.FAILED, reason, 0.0))
        elif k % 10 == 9:
            made.append(Result(name, source, Status.UNSOLVED, "no cell", seconds, unsolved(name).tables))
        else:
            m20 = np.array([float(rng.uniform(10, 90)), 5.0])
            made.append(Result(name, source, Status.SOLVED, "", seconds, solved(name, m20=m20).tables))
    return made


def make(run: Path, found: Sequence[Result], ranks: int = 2, inputs_more: int = 0, close: bool = True) -> Path:
    """A run directory in which two array tasks of `ranks` ranks each, a day after another, gave `found`.

    `inputs_more` inputs are not done. Without `close`, the shards stay as they are while a run writes them.
    """
    for folder in ("journal", "shards", "log"):
        (run / folder).mkdir(parents=True)
    (run / "campaign.toml").write_text(to_toml(SETTINGS))
    names = [(r.id, r.source) for r in found] + [(f"more{k}", f"lists/more{k}.txt") for k in range(inputs_more)]
    inputs.write(run, [inputs.Input(*name) for name in names])
    for number in range(2):
        begun = datetime.fromtimestamp(START + 86400.0 * number, UTC)
        job = f"{begun:%Y%m%dT%H%M%S}-77-{number}of2-00a{number}"
        events = journal.Journal(run, job, 0)
        part = {"part": [number, 2], "job": job}
        events.event("start", **part, host="h", ranks=ranks, total=0, done=0)
        every = range(number, len(found), 2)
        for rank in range(1, ranks + 1):
            ledger = Ledger(
                run, job, rank, "powder", SCHEMA, provenance("powder", SETTINGS) | {"part": number, "parts": 2}
            )
            mine = every[rank - 1 :: ranks]
            for at in range(0, len(mine), 4):
                ledger.commit([Entry(found[k], k, 0, 1, rank, _time(k, number)) for k in mine[at : at + 4]])
            if close:
                ledger.close()
        events.event("stop", **part, why="signal" if inputs_more else "done")
    return run


def _time(k: int, job: int) -> float:
    return START + 86400.0 * job + 2.0 * k
