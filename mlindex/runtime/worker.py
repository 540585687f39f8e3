"""What a worker does with a batch: read, solve, commit to the shard, note in the journal; in this order.

Reading and solving have a time limit where the campaign sets one (`deadline`). A disk that takes no more is no fault of
an item: it ends the run, with what is committed.
"""

from __future__ import annotations

import dataclasses
import functools
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from mlindex import stage as stages
from mlindex.records import InputError, Item, Result, Schema, failed
from mlindex.runtime import inputs
from mlindex.runtime.deadline import Limit
from mlindex.runtime.disk import DiskProblem, disk_problem
from mlindex.runtime.journal import FOLDER, Journal
from mlindex.runtime.queue import Done, Key, Part
from mlindex.runtime.shards import Entry, Shard

T = TypeVar("T")


def shard_stem(job: str, rank: int) -> str:
    """How the names of a rank's shards in a job begin."""
    return f"{job}-r{rank:04d}"


class Ledger:
    """Where one rank in one job puts what it has done: its shard, then its journal."""

    def __init__(
        self, run: Path, job: str, rank: int, stage: str, schema: Schema, attributes: Mapping[str, Any]
    ) -> None:
        own = {**attributes, "host": socket.gethostname(), "rank": rank, "job": job}
        self._shard = Shard(run / "shards", shard_stem(job, rank), stage, schema, own)
        self._journal = Journal(run, job, rank)
        self._problem: DiskProblem | None = None
        self.run, self.rank = run, rank
        self.journal = run / FOLDER / f"{shard_stem(job, rank)}.jsonl"

    def commit(self, entries: Sequence[Entry]) -> list[Done]:
        """Write entries for good; raises `DiskProblem` where the disk does not take them.

        The shard then holds what it held before, or all of them, where only the journal could not be written; and
        nothing more is taken: a batch that is not known to be on the disk must not be followed by another.
        """
        if self._problem is not None:
            raise self._problem
        try:
            written, name = self._shard.commit(entries)
            self._journal.items(written, name)
        except (OSError, RuntimeError) as error:
            self._problem = disk_problem(self.run, error)
            if self._problem is None:
                raise
            raise self._problem from error
        return [Done(e.input, e.index, e.of, str(e.result.status)) for e in written]

    def close(self) -> None:
        """Trim the shard to what it holds; where there is no room for that it stays as it is, and can be read."""
        try:
            self._shard.close()
        except (OSError, RuntimeError) as error:
            if disk_problem(self.run, error) is None:
                raise


def fail(unit: Item, reason: str, rank: int) -> list[Entry]:
    """Failed entries for all items of a unit (an `Item` with the attributes `input`, `start`, `stop`, `of`)."""
    start, of = int(unit.attrs["start"] or 0), int(unit.attrs["of"] or 1)
    stop = start + 1 if unit.attrs["stop"] is None else int(unit.attrs["stop"])
    entries = []
    for k in range(start, stop):
        named = dataclasses.replace(unit, id=inputs.numbered(unit.id, k, of))
        entries.append(Entry(failed(named, reason), int(unit.attrs["input"] or 0), k, of, rank))
    return entries


class Worker:
    """One rank at work, with a stage and a ledger.

    `base` is the folder that the sources of items are relative to; `part` the part of the campaign that the job does;
    `item_seconds` the time that an item may take (None: any), and so may the reading of a file.
    """

    def __init__(self, stage: Any, ledger: Ledger, base: Path, part: Part, item_seconds: float | None = None) -> None:
        self._stage, self.ledger, self._base, self._part = stage, ledger, base, part
        self._last: tuple[str, list[Item]] = ("", [])
        self._limit = None if item_seconds is None else Limit(item_seconds, ledger.journal, ledger.rank)

    def _read(self, label: str, source: str) -> list[Item]:
        """The items of an input, renamed for the campaign; the last input is remembered, for its other parts."""
        if self._last[0] != source:
            path = self._base / source
            if not path.is_file():  # a FIFO that nobody writes to would be waited for for ever
                what = "is no longer a file" if path.exists() else "has vanished since the run was made"
                raise InputError(f"{source}: {what}; put it back and index it in another run")
            items = self._stage.read(str(path))
            if not items:
                raise InputError(f"{source}: has no items; remove it from the inputs")
            names = [inputs.item_id(label, item, len(items)) for item in items]
            if len(set(names)) < len(names):
                names = [inputs.numbered(label, k, len(items)) for k in range(len(items))]
            self._last = (
                source,
                [dataclasses.replace(item, id=name, source=source) for item, name in zip(items, names, strict=True)],
            )
        return self._last[1]

    def work(self, batch: Sequence[Item], opened: Callable[[int, int], None]) -> list[Done]:
        """Do a batch of units: items with the attributes `input`, `start`, `stop` (see `queue.Unit`), `of` and `batch`.

        `opened` is called with (input, number of items) for an input that was not read before and has more than one
        item, or none of this part.
        """
        ready: list[tuple[Item, int, int, int]] = []
        spoiled: list[Entry] = []
        for unit in batch:
            number, start, stop = int(unit.attrs["input"] or 0), int(unit.attrs["start"] or 0), unit.attrs["stop"]
            try:
                items = self._within(
                    [(number, k) for k in range(start, start + 1 if stop is None else int(stop))],
                    [unit.source],
                    functools.partial(self._read, unit.id, unit.source),
                )
                if unit.attrs["of"] not in (None, len(items)):
                    raise InputError(
                        f"{unit.source}: had {unit.attrs['of']} items and has {len(items)}; start a new run"
                    )
            except (Exception, SystemExit) as error:  # an input that cannot be read must not take the others with it
                reason = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
                spoiled += fail(unit, reason, self.ledger.rank)
                continue
            chosen = range(start, start if stop is None else int(stop))
            if stop is None:
                chosen = self._part.items(number, len(items))[: int(unit.attrs["batch"] or 1)]
                if len(items) > 1 or not chosen:  # should one of them end this process, the others need not suffer
                    opened(number, len(items))
            ready += [(items[k], number, k, len(items)) for k in chosen]
        done = self.ledger.commit(spoiled) if spoiled else []
        if ready:
            results = self._solve([item for item, *_ in ready], [(number, k) for _, number, k, _ in ready])
            entries = [
                Entry(result, number, k, of, self.ledger.rank)
                for result, (_, number, k, of) in zip(results, ready, strict=True)
            ]
            done += self.ledger.commit(entries)
        return done

    def _within(self, places: Sequence[Key], names: Sequence[str], work: Callable[[], T], limits: int = 1) -> T:
        """`work` on the items at `places`, within so many times the time limit."""
        if self._limit is None:
            return work()
        return self._limit(places, names, work, allowed=self._limit.seconds * limits)

    def _solve(self, items: Sequence[Item], places: Sequence[Key]) -> list[Result]:
        place = dict(zip([item.id for item in items], places, strict=True))

        def guard(some: Sequence[Item], work: Callable[[], list[Result]]) -> list[Result]:
            return self._within([place[i.id] for i in some], [i.id for i in some], work, len(some))

        results = stages.solve(self._stage, items, guard)
        if [r.id for r in results] != [i.id for i in items]:
            reason = f"the stage gave results for {[r.id for r in results]} in place of {[i.id for i in items]}"
            return [failed(item, reason) for item in items]
        return results
