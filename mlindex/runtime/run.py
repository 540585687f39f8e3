"""A campaign from its TOML file to its results: in this process, on ranks that this process starts, or as one of them.

`--ranks N` starts N workers and one more process that only dispatches and sleeps in between. Inside an `mpiexec` or
`srun` of the user's, rank 0 dispatches and the other ranks work.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mlindex import stage as stages
from mlindex.config import read_campaign
from mlindex.records import InputError, Item, Schema
from mlindex.runtime import device, journal, launch, pool
from mlindex.runtime.master import MASTER, build_master, survey
from mlindex.runtime.pool import Done, Queue, Unit
from mlindex.runtime.rundir import Plan, note, prepare, resolved
from mlindex.runtime.shards import provenance
from mlindex.runtime.worker import Ledger, Worker, fail, shard_stem
from mlindex.runtime.world import Disconnected, World, join

Progress = Callable[[int, int, int], None]
_OUTCOME = "MLINDEX_OUTCOME"  # where rank 0 tells the process that started the ranks how it went
_CONDEMNED = "each of the {n} workers that took this item was killed (out of memory, or a crash in compiled code)"


@dataclass(frozen=True)
class Summary:
    """How a campaign ended. Counts are of the whole run directory; `skipped` of them were done before this job.

    `failures` has (id, source, reason); `problems` has a sentence for anything that kept the campaign from its end.
    Only rank 0 of many has the counts: the others have `rank` > 0, zeros, and nothing to print.
    """

    run: str = ""
    total: int = 0
    solved: int = 0
    unsolved: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0
    failures: list[tuple[str, str, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    lost: int = 0
    rank: int = 0

    @property
    def done(self) -> int:
        """Items with a result, be it a failure."""
        return self.solved + self.unsolved + self.failed

    @property
    def exit_status(self) -> int:
        """0 all items processed, 1 some failed or are missing."""
        return int(self.failed > 0 or bool(self.problems))


def _settings(plan: Plan) -> dict[str, Any]:
    return provenance(plan.campaign.campaign.stage, resolved(plan.campaign))


def _load(name: str, settings: Any) -> Any:
    """The stage; raises `InputError` where it cannot be made."""
    try:
        return stages.load(name, settings)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"stage {name!r} cannot be loaded ({type(error).__name__}: {error})") from error


class _Rank0:
    """What rank 0 knows and does beside handing out: names of units, failed items, progress, the end."""

    def __init__(self, plan: Plan, ledger: Callable[[], Ledger], progress: Progress | None) -> None:
        self.plan, self._ledger, self._progress = plan, ledger, progress
        self._start = time.monotonic()
        self._skipped = len(plan.seen.rows)
        self._lost = 0
        self._done = self._skipped
        statuses = (plan.seen.shards[s].items["status"][row] for s, row in plan.seen.rows.values())
        self._failed = sum(status == "failed" for status in statuses)
        kills = journal.kills(plan.run, plan.seen)
        batch = plan.campaign.campaign.batch
        self.queue = Queue(range(len(plan.inputs)), batch, plan.seen.rows.keys(), plan.seen.of, kills)
        self.progress([], self.queue.total)

    def item(self, unit: Unit) -> Item:
        """What travels for a unit: its input's label and source, and which of its items."""
        named = self.plan.inputs[unit.input]
        attrs = {"input": unit.input, "start": unit.start, "stop": unit.stop, "of": self.queue.of.get(unit.input)}
        return Item(named.label, named.source, {}, attrs)

    def ready(self, worker: int, hello: Mapping[str, Any]) -> None:
        note(self.plan.run, self.plan.job, f"rank {worker} on {hello['host']} is ready")

    def committed(self, worker: int) -> list[Done]:
        """What the shards of a lost worker hold; what it had no time to note in its journal is noted here."""
        seen = survey(self.plan.run, f"{shard_stem(self.plan.job, worker)}-*.h5")
        if missing := journal.unwritten(self.plan.run, seen):
            journal.Journal(self.plan.run, self.plan.job, 0).recover(missing)
        done = []
        for shard in seen.shards:
            columns = (shard.items[name].tolist() for name in ("input", "index", "of", "status"))
            done += [Done(i, k, of, status == "failed") for i, k, of, status in zip(*columns, strict=True)]
        return done

    def lost(self, worker: int, suspects: Sequence[Unit]) -> None:
        self._lost += 1
        keys = [(u.input, k) for u in suspects for k in range(u.start, u.start + 1 if u.stop is None else u.stop)]
        journal.Journal(self.plan.run, self.plan.job, 0).lost(worker, keys)
        names = ", ".join(dict.fromkeys(self.plan.inputs[i].source for i, _ in keys)) or "nothing"
        note(self.plan.run, self.plan.job, f"rank {worker} was lost; at hand were {names}")

    def condemn(self, unit: Unit) -> list[Done]:
        reason = _CONDEMNED.format(n=pool.KILLS)
        return self._ledger().commit(fail(self.item(unit), reason, 0))

    def progress(self, done: Sequence[Done], total: int) -> None:
        self._done += len(done)
        self._failed += sum(d.failed for d in done)
        if self._progress is not None:
            self._progress(self._done, self._failed, total)

    def finish(self) -> Summary:
        """Build the master file and count."""
        problems = []
        if not self.queue.finished:
            problems.append(
                f"all workers were lost with {self.queue.total - len(self.queue.done)} items to do; resume the run"
            )
        summary = summarise(self.plan.run, problems)
        note(self.plan.run, self.plan.job, f"{summary.done} of {self.queue.total} items done, {summary.failed} failed")
        own = {"skipped": self._skipped, "seconds": time.monotonic() - self._start, "lost": self._lost}
        return Summary(**{**asdict(summary), **own, "total": self.queue.total})


def summarise(run: Path, problems: Sequence[str] = ()) -> Summary:
    """Build the master file of a run directory, and count what is in it."""
    seen = survey(run)
    if seen.rows:
        build_master(run)
    counts = {"solved": 0, "unsolved": 0, "failed": 0}
    failures = []
    for shard, row in seen.rows.values():
        items = seen.shards[shard].items
        counts[items["status"][row]] += 1
        if items["status"][row] == "failed":
            failures.append((items["id"][row], items["source"][row], items["reason"][row]))
    told = [*problems, *(sentence for _, sentence in seen.unreadable)]
    return Summary(run=str(run), total=len(seen.rows), failures=failures, problems=told, **counts)


def _serial(path: Path, resume: bool, progress: Progress | None) -> Summary:
    campaign = read_campaign(path)
    device.apply()
    stage = _load(campaign.campaign.stage, campaign.stage_settings())
    plan = prepare(path, resume)
    ledger = Ledger(plan.run, plan.job, 0, stage.name, stage.schema, _settings(plan))
    worker = Worker(stage, ledger, plan.base, campaign.campaign.batch)
    root = _Rank0(plan, lambda: ledger, progress)
    queue = root.queue
    try:
        while not queue.finished or queue.condemned:
            while queue.condemned:
                root.progress(queue.complete(0, -1, root.condemn(queue.condemned.pop())), queue.total)
            if (batch := queue.take(0, 1)) is not None:
                done = worker.work([root.item(unit) for unit in batch[1]], queue.opened)
                root.progress(queue.complete(0, batch[0], done), queue.total)
        ledger.close()
        return root.finish()
    except KeyboardInterrupt:  # what is done can be read, and the rest resumed
        ledger.close()
        summarise(plan.run)
        raise
    finally:
        os.close(plan.lock)


def _rank0(world: World, path: Path, resume: bool, progress: Progress | None) -> Summary:
    try:
        plan = prepare(path, resume)
    except InputError:
        pool.dismiss(world)
        raise
    ledgers: list[Ledger] = []

    def ledger() -> Ledger:  # rank 0 has a shard only if it has something to say
        if not ledgers:
            stage = plan.campaign.campaign.stage
            name = next((shard.stage for shard in survey(plan.run).shards), stage)
            ledgers.append(Ledger(plan.run, plan.job, 0, name, Schema({}), _settings(plan)))
        return ledgers[0]

    root = _Rank0(plan, ledger, progress)
    start = {"run": str(plan.run), "base": str(plan.base), "job": plan.job}
    try:
        pool.dispatch(world, root.queue, start, root.item, root)
        for own in ledgers:
            own.close()
        return root.finish()
    finally:
        os.close(plan.lock)


def _worker(world: World, path: Path) -> Summary:
    hello: dict[str, Any] = {"host": os.uname().nodename}
    open_: list[Worker] = []
    try:
        campaign = read_campaign(path)
        stage = _load(campaign.campaign.stage, campaign.stage_settings())
    except InputError as error:
        world.send(0, pool.HELLO, pool.pack({"error": str(error)}))
        return Summary(rank=world.rank)

    def begin(start: Mapping[str, Any]) -> pool.Work:
        run = Path(start["run"])
        journal.share(run)  # held until this process ends, so that nobody resumes while it may still write
        attributes = provenance(campaign.campaign.stage, resolved(campaign))
        ledger = Ledger(run, start["job"], world.rank, stage.name, stage.schema, attributes)
        open_.append(Worker(stage, ledger, Path(start["base"]), campaign.campaign.batch))
        return open_[0].work

    pool.serve(world, hello, begin)
    for worker in open_:
        worker.ledger.close()
    if pool.leave(world):
        world.expect_trouble_at_exit()
    return Summary(rank=world.rank)


def _joined(world: World, path: Path, resume: bool, progress: Progress | None) -> Summary:
    try:
        masks = world.worker_masks()
        if world.rank == 0:
            try:
                return _rank0(world, path, resume, progress)
            finally:
                pool.release(world)
                if world.lost:
                    world.expect_trouble_at_exit()
        device.apply(masks)
        return _worker(world, path)
    except InputError:
        raise
    except Disconnected as error:
        print(f"rank {world.rank}: {error}", file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    world.abort()  # the others would wait for this rank for ever
    raise SystemExit(1)


def _launched(path: Path, ranks: int, resume: bool, progress: Progress | None) -> Summary:
    start = time.monotonic()
    mpiexec = launch.find_mpiexec()
    plan = prepare(path, resume)
    os.close(plan.lock)  # for rank 0 to take
    log = plan.run / "log" / f"{plan.job}.mpiexec.log"

    def poll() -> float:
        if progress is None:
            return 0.5
        begun = time.monotonic()
        now = journal.status(plan.run)
        progress(now["done"], now["failed"], now["total"])
        return max(0.5, 10 * (time.monotonic() - begun))

    lost = 0
    with tempfile.TemporaryDirectory(prefix="mlindex-") as folder:
        outcome = Path(folder) / "outcome.json"
        env = {**launch.environment(os.environ), _OUTCOME: str(outcome)}
        share = max(1, len(device.available_cpus()) // ranks)
        if int(env.get("SLURM_JOB_NUM_NODES", "1")) == 1:  # BLAS counts its threads when NumPy is imported
            env = {
                **{name: str(share) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")},
                **env,
            }
        program = [sys.executable, "-m", "mpi4py", "-m", "mlindex.runtime.run", str(path), "--resume"]
        arguments = launch.command(mpiexec, launch.version_of(mpiexec), ranks + 1, program, env)
        while True:
            outcome.unlink(missing_ok=True)
            before = len(survey(plan.run).rows), sum(journal.kills(plan.run, survey(plan.run)).values())
            status, stopped = launch.run(arguments, log, env, poll)
            journal.settle(plan.run)
            if stopped is not None:
                summarise(plan.run)
                if stopped == launch.signal.SIGINT:
                    raise KeyboardInterrupt
                raise SystemExit(128 + stopped)
            if not outcome.exists():
                problem = f"mpiexec ended with status {status} before the run did; see {log}, and resume the run"
                return Summary(**{**asdict(summarise(plan.run, [problem])), "total": journal.status(plan.run)["total"]})
            told = json.loads(outcome.read_text())
            if "error" in told:
                raise InputError(told["error"])
            summary = Summary(**{**told, "failures": [tuple(f) for f in told["failures"]]})
            lost += summary.lost
            after = summary.done, sum(journal.kills(plan.run, survey(plan.run)).values())
            if not summary.problems or summary.lost < ranks or after == before:
                own = {"skipped": len(plan.seen.rows), "seconds": time.monotonic() - start, "lost": lost}
                return Summary(**{**asdict(summary), **own})
            # every worker is lost, but not in vain: some items are done or known to be deadly; start others


def run_campaign(
    path: Path | str, ranks: int | None = None, resume: bool = False, progress: Progress | None = None
) -> Summary:
    """Run the campaign in the TOML file `path`, and leave a run directory beside it (`campaign.output`).

    `ranks`: start so many worker ranks with mpiexec (None or 1: this process does the work; ignored inside an MPI
    job, which this process then joins). `resume`: go on with a run directory that has results. `progress` is called
    with (items done, items failed, items known) now and then. Raises `InputError` for what the user has to change; an
    item that fails does not raise.
    """
    path = Path(path)
    if ranks is not None and ranks < 1:
        raise InputError(f"--ranks {ranks}: give a number of workers from 1 up")
    world = join(os.environ)
    if world is not None:
        return _joined(world, path, resume, progress)
    if ranks is None or ranks == 1:
        return _serial(path, resume, progress)
    return _launched(path, ranks, resume, progress)


def main(argv: Sequence[str] | None = None) -> int:
    """What the ranks run that `run_campaign` starts: `python -m mlindex.runtime.run CAMPAIGN.toml`; the status."""
    parser = argparse.ArgumentParser(prog="python -m mlindex.runtime.run", description=run_campaign.__doc__)
    parser.add_argument("campaign", type=Path)
    parser.add_argument("--ranks", type=int)
    parser.add_argument("--resume", action="store_true")
    chosen = parser.parse_args(argv)
    told: dict[str, Any]
    try:
        summary = run_campaign(chosen.campaign, chosen.ranks, chosen.resume)
        told, status = asdict(summary), summary.exit_status
    except InputError as error:
        told, status = {"error": str(error)}, 2
    if device.place(os.environ).rank == 0:
        if outcome := os.environ.get(_OUTCOME):
            Path(outcome).write_text(json.dumps(told))
            return 0  # mpiexec takes another status for a crash, and says so at length
        for line in _report(told):
            print(line, file=sys.stderr)
    return 0 if told.get("rank") else status


def _report(told: Mapping[str, Any]) -> list[str]:
    if "error" in told:
        return [told["error"]]
    counts = ", ".join(f"{told[name]} {name}" for name in ("solved", "unsolved", "failed"))
    lines = [f"{told['run']}/{MASTER}: {told['total']} items: {counts}; {told['seconds']:.1f} s"]
    return [*lines, *(f"{name} ({source}): {reason}" for name, source, reason in told["failures"]), *told["problems"]]


if __name__ == "__main__":
    sys.exit(main())
