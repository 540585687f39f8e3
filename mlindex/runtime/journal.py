"""The journal of a run: one line of JSON an item, one file a rank and job, and what can be told from it.

A line is written after the shard has committed the item, so an item may be in a shard and not in the journal (its
rank was killed in between), and a resumed run then writes the missing line. An item that is in the journal and in no
shard (its shard was deleted, or cannot be read) counts as not done. A torn line, the last of a killed rank, is passed
over.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mlindex.records import InputError
from mlindex.runtime import inputs
from mlindex.runtime.master import Survey
from mlindex.runtime.shards import Entry

FOLDER = "journal"
LOCK = "lock"


class Journal:
    """The journal of one rank in one job; each call appends whole lines in one write."""

    def __init__(self, run: Path, job: str, rank: int) -> None:
        self._path, self._rank = run / FOLDER / f"{job}-r{rank:04d}.jsonl", rank
        self._host = socket.gethostname()

    def _append(self, lines: Sequence[dict[str, Any]]) -> None:
        handle = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            os.write(handle, "".join(json.dumps(line) + "\n" for line in lines).encode())
        finally:
            os.close(handle)

    def items(self, entries: Sequence[Entry], shard: str) -> None:
        """Items that `shard` has committed."""
        self._append([self._line(e, shard) for e in entries])

    def _line(self, entry: Entry, shard: str) -> dict[str, Any]:
        result = entry.result
        return {
            "id": result.id,
            "source": result.source,
            "input": entry.input,
            "index": entry.index,
            "of": entry.of,
            "status": str(result.status),
            "reason": result.reason,
            "seconds": round(result.seconds, 6),
            "host": self._host,
            "rank": self._rank,
            "time": round(entry.time, 3),
            "shard": shard,
        }

    def lost(self, worker: int, suspects: Sequence[tuple[int, int]]) -> None:
        """A worker was lost while it had these items, by input and index."""
        self._append([{"event": "lost", "rank": worker, "items": [list(s) for s in suspects], "time": time.time()}])

    def recover(self, lines: Sequence[dict[str, Any]]) -> None:
        """Lines of items that a shard holds and that no journal has."""
        self._append([{**line, "recovered": True} for line in lines])


def lines(run: Path) -> Iterator[dict[str, Any]]:
    """Every whole line of every journal of a run."""
    for path in sorted((run / FOLDER).glob("*.jsonl")):
        for text in path.read_text(errors="replace").split("\n"):
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if isinstance(line, dict):
                yield line


def kills(run: Path, seen: Survey) -> dict[tuple[int, int], int]:
    """How many workers each item that is not done has taken with it, in the jobs so far."""
    count: Counter[tuple[int, int]] = Counter()
    for line in lines(run):
        if line.get("event") == "lost":
            count.update((int(i), int(k)) for i, k in line["items"])
    return {key: n for key, n in count.items() if key not in seen.rows}


def unwritten(run: Path, seen: Survey) -> list[dict[str, Any]]:
    """Lines for the items that a shard holds and no journal has."""
    known = {(line["input"], line["index"]) for line in lines(run) if "index" in line}
    missing = []
    for key, (shard, row) in seen.rows.items():
        if key not in known:
            data = seen.shards[shard]
            line = {name: data.items[name][row] for name in data.items if not name.endswith(("_offset", "_count"))}
            line = {name: value if isinstance(value, str) else value.item() for name, value in line.items()}
            missing.append({**line, "host": str(data.attributes.get("host", "")), "shard": data.path.name})
    return missing


def acquire(run: Path, patience: float = 10.0) -> int:
    """Take a run directory for this process and those that `share` it; the open file, to be closed at the end.

    The lock goes with the last of its processes, however they end. Raises `InputError` while another run holds it.
    """
    handle = os.open(run / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    end = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > end:
                os.close(handle)
                raise InputError(f"{run}: another run is at work on it; wait for it to end, or end it") from None
            time.sleep(0.2)
        except OSError:  # a file system without locks
            return handle
    fcntl.flock(handle, fcntl.LOCK_SH)
    return handle


def share(run: Path) -> int:
    """Hold the lock of a run that this process takes part in; the open file."""
    handle = os.open(run / LOCK, os.O_RDWR)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:  # a file system without locks
        return handle
    return handle


def settle(run: Path, patience: float = 15.0) -> None:
    """Wait until no process is at work on the run: ranks outlive the end of their launcher by a second or two."""
    end = time.monotonic() + patience
    while active(run) and time.monotonic() < end:
        time.sleep(0.1)


def active(run: Path) -> bool:
    """Some process is at work on the run (as far as the file system's locks tell)."""
    try:
        handle = os.open(run / LOCK, os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(handle)
    return False


def status(run: Path | str) -> dict[str, Any]:
    """Where a run stands, from its files alone, also while it runs; raises `InputError` if it is no run directory.

    Keys: `run`, `active`, `total` (an input that nobody has opened counts as one item), `done` = `solved` +
    `unsolved` + `failed`, `left`, `rate` (items a second in the latest job), `eta` (seconds or None), `ranks` (a list
    of dicts: `job`, `rank`, `host`, `done`, `failed`, `seconds` of work, `last` as a time since 1970), `lost` (how
    many workers were lost) and `missing` (shards that the journal names and that are gone: their items are done again
    by a resumed run).
    """
    run = Path(run)
    manifest = inputs.read(run)
    if not manifest:
        raise InputError(
            f"{run}: is not the directory of a run (it has no {inputs.MANIFEST}); give the one that a run wrote"
        )
    there = {path.name for path in (run / "shards").glob("*.h5")}
    items: dict[tuple[int, int], dict[str, Any]] = {}
    astray: list[tuple[tuple[int, int], str]] = []
    lost = 0
    for line in lines(run):
        if line.get("event") == "lost":
            lost += 1
        elif line.get("shard") in there:
            items.setdefault((line["input"], line["index"]), line)
        elif "shard" in line:
            astray.append(((line["input"], line["index"]), line["shard"]))
    of = {line["input"]: line["of"] for line in items.values()}
    total = sum(of.get(i, 1) for i in range(len(manifest)))
    counts = Counter(line["status"] for line in items.values())
    ranks: dict[tuple[str, int], dict[str, Any]] = {}
    for line in items.values():
        job = line["shard"].rpartition("-r")[0]
        new = {
            "job": job,
            "rank": line["rank"],
            "host": line["host"],
            "done": 0,
            "failed": 0,
            "seconds": 0.0,
            "last": 0.0,
        }
        row = ranks.setdefault((job, line["rank"]), new)
        row["done"] += 1
        row["failed"] += line["status"] == "failed"
        row["seconds"] += line["seconds"]
        row["last"] = max(row["last"], line["time"])
    rate = _rate(list(items.values()))
    left = total - len(items)
    return {
        "run": str(run),
        "active": active(run),
        "total": total,
        "done": len(items),
        "solved": counts["solved"],
        "unsolved": counts["unsolved"],
        "failed": counts["failed"],
        "left": left,
        "rate": rate,
        "eta": left / rate if rate and left else None,
        "ranks": [ranks[key] for key in sorted(ranks)],
        "lost": lost,
        "missing": sorted({shard for key, shard in astray if key not in items}),
    }


def _rate(items: Sequence[dict[str, Any]]) -> float:
    """Items a second in the latest job, from the start of its first item to the end of its last."""
    latest = max((line["shard"].rpartition("-r")[0] for line in items), default="")
    mine = [line for line in items if line["shard"].rpartition("-r")[0] == latest]
    if not mine:
        return 0.0
    start = min(line["time"] - line["seconds"] for line in mine)
    return len(mine) / max(max(line["time"] for line in mine) - start, 1e-3)
