"""The journal of a run: what happened, one line of JSON an event, one file a rank and job.

The shards say what became of every item; the journal tells what no shard can: when jobs began and why they ended, which
workers were lost and with what at hand, and which shards there should be. Events, all with `time`:

- rank 0: `start` (job, part, host, ranks, slurm, total, done), `lost` (rank, items), `stop` (why, done, failed, total),
  `missing` (shard, items: a shard that is gone; its items are done again), `recovered` (shard, items: committed by a
  rank that had no time to say so);
- workers: `batch` (shard, rank, host, items, solved, unsolved, failed, seconds, failures: id, source and reason),
  written after the shard has committed the batch;
- `mlindex submit`: `submit` (array, tasks, merge).

A torn line, the last of a killed rank, is passed over.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mlindex.runtime.queue import Key
from mlindex.runtime.shards import STATUSES, Entry

FOLDER = "journal"


def append(path: Path, line: dict[str, Any]) -> None:
    """Add an event, with the time, to a journal, as one whole line in one write."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    text = (json.dumps({**line, "time": round(time.time(), 3)}) + "\n").encode()
    try:
        if os.write(handle, text) < len(text):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    finally:
        os.close(handle)


class Journal:
    """The journal of one rank in one job."""

    def __init__(self, run: Path, job: str, rank: int) -> None:
        self._path, self._rank = run / FOLDER / f"{job}-r{rank:04d}.jsonl", rank
        self._host = socket.gethostname()

    def event(self, event: str, **values: Any) -> None:
        """Something that happened."""
        append(self._path, {"event": event, **values})

    def items(self, entries: Sequence[Entry], shard: str) -> None:
        """Items that `shard` has committed."""
        counts = Counter(str(entry.result.status) for entry in entries)
        failures = [
            {"id": r.id, "source": r.source, "reason": r.reason}
            for r in (entry.result for entry in entries)
            if r.status == "failed"
        ]
        self.event(
            "batch",
            shard=shard,
            rank=self._rank,
            host=self._host,
            items=len(entries),
            **{name: counts[name] for name in STATUSES},
            seconds=round(sum(entry.result.seconds for entry in entries), 6),
            failures=failures,
        )


def events(run: Path, pattern: str = "*.jsonl") -> Iterator[dict[str, Any]]:
    """Every whole line of the journals of a run (those whose names match), journal by journal."""
    for path in sorted((run / FOLDER).glob(pattern)):
        with path.open(errors="replace") as file:
            for text in file:
                try:
                    line = json.loads(text)
                except ValueError:
                    continue
                if isinstance(line, dict):
                    yield line


def rank0_events(run: Path) -> list[dict[str, Any]]:
    """What the dispatchers and `submit` wrote, in the order of time; the batches of the workers are left out."""
    found = [line for line in events(run, "*-r0000.jsonl") if line.get("event") != "batch"]
    return sorted([*found, *events(run, "submit.jsonl")], key=lambda line: line.get("time", 0.0))


def kills(run: Path) -> Counter[Key]:
    """How many workers each item was at hand of when they were lost, in the jobs so far."""
    count: Counter[Key] = Counter()
    for line in rank0_events(run):
        if line.get("event") == "lost":
            count.update((int(i), int(k)) for i, k in line["items"])
    return count


def promised(run: Path, pattern: str = "*.jsonl") -> Counter[str]:
    """How many items each shard should hold, as far as the journals (those whose names match) tell."""
    count: Counter[str] = Counter()
    for line in events(run, pattern):
        if line.get("event") in ("batch", "recovered"):
            count[line["shard"]] += line["items"]
        elif line.get("event") == "missing":
            count[line["shard"]] -= line["items"]
    return count


def idle_rounds(run: Path, part: Sequence[int], done: int) -> int:
    """How many jobs in a row, up to the last that started, began this part with `done` items done already."""
    starts = [e["done"] for e in rank0_events(run) if e.get("event") == "start" and list(e["part"]) == list(part)]
    count = 0
    while count < len(starts) and starts[-1 - count] == done:
        count += 1
    return count
