"""Where a run stands, from its shards and journals alone, also while it runs."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlindex.records import InputError
from mlindex.runtime import inputs, journal, lock, rundir
from mlindex.runtime.master import Survey, survey
from mlindex.runtime.queue import Part
from mlindex.runtime.shards import STATUSES

NOW = 120.0  # seconds over which `rate_now` is taken
FAILURES = 20  # of the latest that are told


def status(run: Path | str) -> dict[str, Any]:
    """Where a run stands; raises `InputError` if `run` is no run directory, or its list of inputs is not whole.

    Keys: `run`, `name`, `stage`, `active`, `total` (an input that nobody has opened counts as one item), `done` =
    `solved` + `unsolved` + `failed`, `left`, `indexed` (solved of done), `rate` (items a second while jobs were at
    work), `rate_now` (in the last two minutes), `eta` (seconds or None), `started`, `last` (times since 1970 or None),
    `lost` (how many workers were lost), `missing` (shards that the journal names and that are gone) and `unreadable`
    (shards that are there and cannot be read: a resumed run does the items of both again), `failures` (dicts of `id`,
    `source`, `reason`; the latest), `ranks` (dicts of `job`, `rank`, `host`, `done`, `failed`, `seconds` of work,
    `last`) and `tasks`, one dict a part of the campaign: `part`, `parts`, `total`, `done`, `solved`, `unsolved`,
    `failed`, `left`, `rate`, `eta`, `active`, `lost`, `rounds` (jobs that started) and `why` (the last one ended, None
    if it did not say).
    """
    run = Path(run)
    sizes = np.ones(len(inputs.read(run)), np.int64)
    if not len(sizes):
        raise InputError(
            f"{run}: is not the directory of a run (it has no {inputs.MANIFEST}); give the one that a run wrote"
        )
    seen, events, settings = survey(run), journal.rank0_events(run), rundir.settings(run)
    of = seen.column("of")
    if seen.input.max(initial=-1) >= len(sizes):
        raise InputError(
            f"{run / inputs.MANIFEST}: has {len(sizes)} inputs, but the results are of {seen.input.max() + 1} or more; "
            "put back the one that belongs to this run"
        )
    sizes[seen.input] = of
    codes, ends, seconds = seen.column("status"), seen.column("time"), seen.column("seconds")
    counts = seen.counts()
    at_work = lock.active(run)
    busy, now = _busy(seen, ends, seconds), time.time() if at_work else float(ends.max(initial=0.0))
    recent = (ends > now - NOW) if busy else np.zeros(0, bool)
    rate = len(seen) / busy if busy else 0.0
    # right after the start the window holds less than its length of work
    window = min(NOW, max(now - float((ends - seconds)[recent].min(initial=now)), 1e-3)) if busy else NOW
    rate_now = float(recent.sum() / window)
    left = int(sizes.sum()) - len(seen)
    speed = rate_now or rate
    return {
        "run": str(run),
        "name": str(settings.get("campaign", {}).get("name", "")),
        "stage": str(settings.get("campaign", {}).get("stage", "")),
        "active": bool(at_work),
        "total": int(sizes.sum()),
        "done": len(seen),
        **counts,
        "left": left,
        "indexed": counts["solved"] / len(seen) if len(seen) else 0.0,
        "rate": rate,
        "rate_now": rate_now,
        "eta": left / speed if speed and left else None,
        "started": min((e["time"] for e in events if e.get("event") == "start"), default=None),
        "last": float(ends.max()) if len(seen) else None,
        "lost": sum(e.get("event") == "lost" for e in events),
        "missing": _missing(run),
        "unreadable": [path.name for path, _ in seen.unreadable],
        "failures": _latest_failures(seen, codes, ends),
        "ranks": _ranks(seen, codes, ends, seconds),
        "tasks": _tasks(seen, codes, ends, sizes, events, settings, at_work, now),
    }


def _busy(seen: Survey, ends: NDArray, seconds: NDArray) -> float:
    """Seconds in which some job was at work: from the start of its first item to the end of its last."""
    spans: dict[str, tuple[float, float]] = {}
    for number, shard in enumerate(seen.shards):
        mine = seen.shard == number
        if mine.any():
            job = str(shard.attributes.get("job", number))
            begin, end = spans.get(job, (np.inf, 0.0))
            spans[job] = min(begin, float((ends - seconds)[mine].min())), max(end, float(ends[mine].max()))
    total, reached = 0.0, 0.0
    for begin, end in sorted(spans.values()):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return max(total, 1e-3) if spans else 0.0


def left_out(run: Path, unreadable: Iterable[str]) -> list[str]:
    """A sentence for each shard whose items a reader of the run does not get: those that are `unreadable`, which come
    as sentences, and those that are gone."""
    gone = (f"{run / 'shards' / name}: is gone, and its items with it; resume the run" for name in _missing(run))
    return [*unreadable, *gone]


def _missing(run: Path) -> list[str]:
    named, noted = set[str](), set[str]()
    for path in (run / journal.FOLDER).glob("*.jsonl"):
        with path.open(errors="replace") as file:
            for text in file:  # there may be a million lines: they are not parsed
                _, found, rest = text.partition('"shard": "')
                if found:
                    (noted if text.startswith('{"event": "missing"') else named).add(rest.partition('"')[0])
    there = {path.name for path in (run / "shards").glob("*.h5")}  # looked for last: a run goes on meanwhile
    return sorted(named - noted - there)


def _latest_failures(seen: Survey, codes: NDArray, ends: NDArray) -> list[dict[str, str]]:
    places = np.flatnonzero(codes == STATUSES.index("failed"))
    chosen = np.zeros(len(seen), bool)
    chosen[places[np.argsort(-ends[places], kind="stable")[:FAILURES]]] = True
    return [dict(zip(("id", "source", "reason"), f, strict=True)) for f in seen.only(chosen).failures()]


def _ranks(seen: Survey, codes: NDArray, ends: NDArray, seconds: NDArray) -> list[dict[str, Any]]:
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    for number, shard in enumerate(seen.shards):
        mine = seen.shard == number
        if not mine.any():
            continue
        job, rank = str(shard.attributes.get("job", "")), int(shard.attributes.get("rank", 0))
        new = {
            "job": job,
            "rank": rank,
            "host": str(shard.attributes.get("host", "")),
            "done": 0,
            "failed": 0,
            "seconds": 0.0,
            "last": 0.0,
        }
        row = rows.setdefault((job, rank), new)
        row["done"] += int(mine.sum())
        row["failed"] += int((codes[mine] == STATUSES.index("failed")).sum())
        row["seconds"] += float(seconds[mine].sum())
        row["last"] = max(row["last"], float(ends[mine].max()))
    return [rows[key] for key in sorted(rows)]


def _tasks(
    seen: Survey,
    codes: NDArray,
    ends: NDArray,
    sizes: NDArray[np.int64],
    events: Sequence[Mapping[str, Any]],
    settings: Mapping[str, Any],
    at_work: Sequence[tuple[int, int]],
    now: float,
) -> list[dict[str, Any]]:
    """The parts of the campaign as it was divided last."""
    division = next((int(e["part"][1]) for e in reversed(events) if e.get("event") == "start"), 1)
    division = next((int(e["parts"]) for e in reversed(events) if e.get("event") == "submit"), division)
    chunk = str(settings.get("campaign", {}).get("chunk", "files"))
    number = Part(0, division, chunk).numbers(seen.input, seen.index, sizes[seen.input])
    rows = []
    for k in range(division):
        part, mine = Part(k, division, chunk), number == k
        found = np.bincount(codes[mine], minlength=len(STATUSES)).tolist()
        total = _share(part, sizes)
        own = [e for e in events if e.get("part") == [k, division]]
        jobs = {e["job"] for e in own if e.get("event") == "start"}
        stops = [e for e in own if e.get("event") in ("start", "stop")]
        active = (k, division) in at_work
        rate = float((ends[mine] > now - NOW).sum() / NOW) if active else 0.0
        left = total - int(mine.sum())
        rows.append(
            {
                "part": k,
                "parts": division,
                "total": total,
                "done": int(mine.sum()),
                **dict(zip(STATUSES, found, strict=True)),
                "left": left,
                "rate": rate,
                "eta": left / rate if rate and left else None,
                "active": active,
                "lost": sum(e.get("event") == "lost" and e.get("job") in jobs for e in events),
                "rounds": len(jobs),
                "why": stops[-1].get("why") if stops else None,
            }
        )
    return rows


def _share(part: Part, sizes: NDArray[np.int64]) -> int:
    """How many items a part has, unread inputs counting as one item."""
    if part.chunk == "files":
        return int(sizes[part.number :: part.of].sum())
    at = (part.number + np.arange(len(sizes))) % part.of
    return int((sizes * (at + 1) // part.of - sizes * at // part.of).sum())
