"""What rank 0 knows and does beside handing out batches: names of units, failed items, progress, when to stop."""

from __future__ import annotations

import math
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mlindex.records import Item
from mlindex.runtime import batching, deadline, journal
from mlindex.runtime.disk import DiskProblem, disk_problem
from mlindex.runtime.master import survey
from mlindex.runtime.queue import KILLS, Done, Key, Queue, Unit
from mlindex.runtime.rundir import Plan, note
from mlindex.runtime.shards import STATUSES
from mlindex.runtime.worker import Ledger, fail, shard_stem

Progress = Callable[[int, int, int], None]
_KILLED = f"each of the {KILLS} workers that took this item was killed (out of memory, or a crash in compiled code)"
_LOOK = 0.2  # seconds between two looks at whether to stop
_COUNT = 60.0  # seconds between two counts of what the other parts have done


class Rank0:
    """The `Events` of one job (see `pool`), whose work is in `queue`.

    `ledger` makes the place for failures that no worker can record; `asked` says whether somebody wants the job to
    end; `progress` is called with (items done, items failed, items known); with `replaceable` workers the job ends
    early ("relaunch") when it is worth while to start them all again for those that were lost.
    """

    def __init__(
        self,
        plan: Plan,
        workers: int,
        ledger: Callable[[], Ledger],
        asked: Callable[[], bool],
        progress: Progress | None = None,
        replaceable: bool = False,
    ) -> None:
        self.plan, self._ledger, self._asked, self._progress = plan, ledger, asked, progress
        self._replaceable = replaceable
        self._settings = plan.campaign.campaign
        self._journal = journal.Journal(plan.run, plan.job, 0)
        self._late, shared = deadline.overdue(journal.events(plan.run))
        kills = {**(journal.kills(plan.run) | shared), **dict.fromkeys(self._late, KILLS)}  # the most, not the sum:
        # where the dispatcher outlived the loss it has counted it too
        seen = plan.seen
        self.queue = Queue(len(plan.inputs), self._settings.batch or 1, plan.part, seen.keys(), seen.of(), kills)
        mine = seen.only(plan.part.numbers(seen.input, seen.index, seen.column("of")) == plan.part.number)
        self.counts = mine.counts()
        self.skipped = self.queue.done
        self._solved_elsewhere = seen.counts()["solved"] - self.counts["solved"]
        self.lost_workers = 0
        self.stopped = ""
        self.problems: list[str] = []
        self._seconds: dict[int, float | None] = {}  # an item, by worker; its first batch compiles and does not count
        self._looked, self._counted = -math.inf, time.monotonic()
        self._workers, self._begun = workers, False
        self.progress([], self.queue.total)

    def _event(self, event: str, **values: Any) -> None:
        """Something for the journal; a disk that does not take it ends the job."""
        try:
            self._journal.event(event, **values)
        except OSError as error:
            self.trouble(0, str(disk_problem(self.plan.run, error) or error))

    def begin(self) -> None:
        """Say in the journal that the work begins; a job that never gets so far leaves no trace there."""
        if self._begun:
            return
        self._begun = True
        self._event(
            "start",
            job=self.plan.job,
            part=[self.plan.part.number, self.plan.part.of],
            host=socket.gethostname(),
            ranks=self._workers,
            slurm=_slurm(),
            total=self.queue.total,
            done=self.queue.done,
        )

    def item(self, unit: Unit) -> Item:
        """What travels for a unit: its input's label and source, and which of its items."""
        named = self.plan.inputs[unit.input]
        attrs = {
            "input": unit.input,
            "start": unit.start,
            "stop": unit.stop,
            "of": self.queue.size(unit.input),
            "batch": unit.first,
        }
        return Item(named.label, named.source, {}, attrs)

    def ready(self, worker: int, hello: Mapping[str, Any]) -> None:
        self.begin()
        note(self.plan.run, self.plan.job, f"rank {worker} on {hello['host']} is ready")

    def committed(self, worker: int) -> list[Done]:
        """What the shards of a lost worker hold; what it had no time to note in its journal is noted here."""
        stem = shard_stem(self.plan.job, worker)
        seen, told = survey(self.plan.run, f"{stem}-*.h5"), journal.promised(self.plan.run, f"{stem}.jsonl")
        done = []
        for shard in seen.shards:
            held = len(shard.items["input"])
            if held > told[shard.path.name]:
                self._event("recovered", shard=shard.path.name, items=held - told[shard.path.name])
            columns = (shard.items[name].tolist() for name in ("input", "index", "of", "status"))
            done += [Done(i, k, of, STATUSES[code]) for i, k, of, code in zip(*columns, strict=True)]
        return done

    def guilty(self, worker: int) -> list[Key]:
        """The items that a lost worker is known to have ended for: they took too long."""
        own = journal.events(self.plan.run, f"{shard_stem(self.plan.job, worker)}.jsonl")
        new, _ = deadline.overdue(own)
        self._late |= new
        return sorted(new)

    def lost(self, worker: int, suspects: Sequence[Unit]) -> None:
        self.lost_workers += 1
        keys = [(u.input, k) for u in suspects for k in range(u.start, u.start + 1 if u.stop is None else u.stop)]
        suspected = [] if any(key in self._late for key in keys) else keys
        self._event("lost", rank=worker, job=self.plan.job, items=[list(key) for key in suspected])
        names = ", ".join(dict.fromkeys(self.plan.inputs[i].source for i, _ in keys)) or "nothing"
        note(self.plan.run, self.plan.job, f"rank {worker} was lost; at hand were {names}")

    def condemn(self, unit: Unit) -> list[Done]:
        reason = self._late.get((unit.input, unit.start), _KILLED)
        try:
            return self._ledger().commit(fail(self.item(unit), reason, 0))
        except DiskProblem as error:
            self.trouble(0, str(error))
            return []

    def progress(self, done: Sequence[Done], total: int) -> None:
        for d in done:
            self.counts[d.status] += 1
        if self._progress is not None:
            self._progress(self.queue.done, self.counts["failed"], total)

    def timed(self, worker: int, items: int, seconds: float, workers: int) -> None:
        """Choose the size of batches from the time that items take, where the user does not."""
        before = self._seconds.get(worker)
        new = seconds / items
        self._seconds[worker] = None if worker not in self._seconds else new if before is None else (before + new) / 2
        if mean := self._item_seconds():
            if self._settings.batch is None:
                self.queue.batch = batching.batch_size(mean, workers)
            self.queue.ahead = 2 if mean * self.queue.batch < batching.BRIEF else 1

    def _item_seconds(self) -> float:
        """What an item takes on the average; 0 where that is not known yet."""
        known = [s for s in self._seconds.values() if s is not None]
        return sum(known) / len(known) if known else 0.0

    def _short(self) -> bool:
        """So much is left that it pays to start all workers again, with others for those that are lost."""
        left = self._workers - self.lost_workers
        if not self._replaceable or not self.lost_workers or not left:
            return False
        work = self._item_seconds() * (self.queue.total - self.queue.done)
        return work * (1 / left - 1 / self._workers) > self._settings.relaunch_seconds

    def trouble(self, worker: int, problem: str) -> None:
        if problem not in self.problems:
            self.problems.append(problem)
            note(self.plan.run, self.plan.job, f"rank {worker}: {problem}")

    def stop(self) -> bool:
        """Whether to begin nothing more: somebody asked, a limit of the campaign is reached, or the disk is full."""
        now = time.monotonic()
        if self.stopped or self.problems:
            return True
        wanted, allowed = self._settings.stop_after, self._settings.max_failures
        if wanted is not None and not self.plan.part.whole and now > self._counted + _COUNT:
            self._counted = now
            self._solved_elsewhere = survey(self.plan.run).counts()["solved"] - self.counts["solved"]
        if wanted is not None and self.counts["solved"] + self._solved_elsewhere >= wanted:
            self.stopped = "stop_after"
        elif allowed is not None and self.counts["failed"] > allowed:
            self.stopped = "max_failures"
        elif now > self._looked + _LOOK:
            self._looked = now
            if self._asked():
                self.stopped = "signal"
            elif self._short():
                self.stopped = "relaunch"
        return bool(self.stopped)

    def finish(self) -> None:
        """Say in the journal how it ended, and find the problems that it ended with."""
        left = self.queue.total - self.queue.done
        if not left:
            self.stopped = ""
        elif self.stopped == "max_failures":
            n = self.counts["failed"]
            self.problems.append(
                f"{n} items have failed, more than max_failures allows; see why (mlindex status), then --resume"
            )
        elif self.stopped == "signal":
            part = (self.plan.part.number, self.plan.part.of)
            rounds = journal.idle_rounds(self.plan.run, part, self.queue.done)
            if rounds >= self._settings.rounds:
                self.problems.append(
                    f"{rounds} jobs in a row were stopped before they had done an item; give a job more time"
                )
        elif not self.stopped and not self.problems:
            self.problems.append(f"all workers were lost with {left} items to do; resume the run")
        why = self.stopped or ("problem" if self.problems else "done")
        counts = {"done": self.queue.done, "failed": self.counts["failed"], "total": self.queue.total}
        self._event("stop", part=[self.plan.part.number, self.plan.part.of], why=why, **counts)
        note(self.plan.run, self.plan.job, f"{self.queue.done} of {self.queue.total} items done; {why}")


def _slurm() -> dict[str, str]:
    """What SLURM calls this job."""
    names = {
        "job": "SLURM_JOB_ID",
        "array": "SLURM_ARRAY_JOB_ID",
        "task": "SLURM_ARRAY_TASK_ID",
        "restarts": "SLURM_RESTART_COUNT",
    }
    return {key: os.environ[name] for key, name in names.items() if name in os.environ}
