"""A campaign from its TOML file to its results: in this process, on ranks that this process starts, or as one of them.

`--ranks N` starts N workers and one more process that only dispatches and sleeps in between. Inside an `mpiexec` or
`srun` of the user's, rank 0 dispatches and the other ranks work. `--part K/N` does one of N parts, as a task of a SLURM
array does; the parts share a run directory.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlindex import stage as stages
from mlindex.config import read_campaign
from mlindex.records import InputError, Schema
from mlindex.runtime import device, journal, launch, lock, pool, stopping
from mlindex.runtime.disk import DiskProblem
from mlindex.runtime.master import survey
from mlindex.runtime.queue import Part
from mlindex.runtime.rank0 import Progress, Rank0
from mlindex.runtime.rundir import Plan, prepare, resolved
from mlindex.runtime.shards import provenance
from mlindex.runtime.status import status
from mlindex.runtime.summary import Summary, counted
from mlindex.runtime.worker import Ledger, Worker
from mlindex.runtime.world import Disconnected, World, join

_OUTCOME = "MLINDEX_OUTCOME"  # where rank 0 tells the process that started the ranks how it went
_DISPATCHER = "dispatcher"  # the file beside it that rank 0 holds the lock of, as long as it lives
Asked = Callable[[], bool]


def _attributes(plan: Plan) -> dict[str, Any]:
    own = {"part": plan.part.number, "parts": plan.part.of}
    return {**provenance(plan.campaign.campaign.stage, resolved(plan.campaign)), **own}


def _load(name: str, settings: Any) -> Any:
    """The stage; raises `InputError` where it cannot be made."""
    try:
        return stages.load(name, settings)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"stage {name!r} cannot be loaded ({type(error).__name__}: {error})") from error


def _ended(plan: Plan, root: Rank0, start: float) -> Summary:
    """Note the end of a job, and count."""
    root.finish()
    summary = counted(plan.run, plan.part, root.queue.total, root.problems)
    seconds = time.monotonic() - start
    return replace(
        summary,
        skipped=root.skipped,
        seconds=seconds,
        lost=root.lost_workers,
        stopped=root.stopped,
        notes=plan.notes,
    )


def _serial(path: Path, resume: bool, part: Part, asked: Asked, progress: Progress | None) -> Summary:
    start = time.monotonic()
    campaign = read_campaign(path)
    device.apply()
    stage = _load(campaign.campaign.stage, campaign.stage_settings())
    plan = prepare(path, resume, part)
    ledger = Ledger(plan.run, plan.job, 0, stage.name, stage.schema, _attributes(plan))
    worker = Worker(stage, ledger, plan.base, plan.part, campaign.campaign.item_seconds)
    root = Rank0(plan, 1, lambda: ledger, asked, progress)
    root.begin()
    queue = root.queue
    try:
        while not queue.finished or queue.condemned:
            if root.stop():
                queue.abandon()
            while queue.condemned:
                root.progress(queue.complete(0, -1, root.condemn(queue.condemned.pop())), queue.total)
            if (batch := queue.take(0, 1)) is not None:
                begun = time.monotonic()
                try:
                    done = worker.work([root.item(unit) for unit in batch[1]], queue.opened)
                except DiskProblem as error:
                    done = []
                    root.trouble(0, str(error))
                new = queue.complete(0, batch[0], done)
                if done:
                    root.timed(0, len(done), time.monotonic() - begun, 1)
                root.progress(new, queue.total)
        ledger.close()
        return _ended(plan, root, start)
    except KeyboardInterrupt:  # what is done can be read, and the rest resumed
        ledger.close()
        counted(plan.run, plan.part, queue.total)
        raise
    finally:
        os.close(plan.lock)


def _rank0(world: World, path: Path, resume: bool, part: Part, asked: Asked, progress: Progress | None) -> Summary:
    begun = time.monotonic()
    try:
        plan = prepare(path, resume, part, rescan=_OUTCOME not in os.environ)
    except InputError:
        pool.dismiss(world)
        raise
    ledgers: list[Ledger] = []

    def ledger() -> Ledger:  # rank 0 has a shard only if it has something to say
        if not ledgers:
            stage = plan.campaign.campaign.stage
            name = next((shard.stage for shard in survey(plan.run).shards), stage)
            ledgers.append(Ledger(plan.run, plan.job, 0, name, Schema({}), _attributes(plan)))
        return ledgers[0]

    root = Rank0(plan, world.size - 1, ledger, asked, progress, replaceable=_OUTCOME in os.environ)
    start = {"run": str(plan.run), "base": str(plan.base), "job": plan.job, "attributes": _attributes(plan)}
    try:
        pool.dispatch(world, root.queue, start, root.item, root)
        for own in ledgers:
            own.close()
        return _ended(plan, root, begun)
    finally:
        os.close(plan.lock)


def _worker(world: World, path: Path, part: Part, masks: Mapping[int, frozenset[int]]) -> Summary:
    hello: dict[str, Any] = {"host": os.uname().nodename}
    open_: list[Worker] = []
    try:
        device.apply(masks)
        campaign = read_campaign(path)
        stage = _load(campaign.campaign.stage, campaign.stage_settings())
    except InputError as error:
        world.send(0, pool.HELLO, pool.pack({"error": str(error)}))
        world.flush()
        return Summary(rank=world.rank)
    own = replace(part, chunk=campaign.campaign.chunk)

    def begin(start: Mapping[str, Any]) -> pool.Work:
        run = Path(start["run"])
        lock.share(run, own)  # held until this process ends, so that nobody resumes while it may still write
        ledger = Ledger(run, start["job"], world.rank, stage.name, stage.schema, start["attributes"])
        open_.append(Worker(stage, ledger, Path(start["base"]), own, campaign.campaign.item_seconds))
        return open_[0].work

    pool.serve(world, hello, begin)
    for worker in open_:
        worker.ledger.close()
    if pool.leave(world):
        world.expect_trouble_at_exit()
    return Summary(rank=world.rank)


def _joined(world: World, path: Path, resume: bool, part: Part, asked: Asked, progress: Progress | None) -> Summary:
    try:
        masks = world.worker_masks()
        if world.rank == 0:
            if outcome := os.environ.get(_OUTCOME):
                lock.hold(Path(outcome).with_name(_DISPATCHER))
            try:
                return _rank0(world, path, resume, part, asked, progress)
            finally:
                pool.release(world)
                if world.lost:
                    world.expect_trouble_at_exit()
        return _worker(world, path, part, masks)
    except InputError:
        raise
    except Disconnected as error:
        print(f"rank {world.rank}: {error}", file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    world.abort()  # the others would wait for this rank for ever
    raise SystemExit(1)


def _environment(folder: Path, ranks: int) -> dict[str, str]:
    env = {
        **launch.environment(os.environ),
        _OUTCOME: str(folder / "outcome.json"),
        stopping.FILE: str(folder / "stop"),
    }
    if int(env.get("SLURM_JOB_NUM_NODES", "1")) > 1:
        return env
    share = max(1, len(device.available_cpus()) // ranks)  # BLAS counts its threads when NumPy is imported
    return {**{name: str(share) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}, **env}


def _over(path: Path) -> Callable[[], bool]:
    """Whether the lock of `path`, asked for again and again, was held once and is no longer."""
    begun = False

    def over() -> bool:
        nonlocal begun
        alive = lock.held(path)
        begun = begun or alive
        return begun and not alive

    return over


def _launched(path: Path, ranks: int, resume: bool, part: Part, progress: Progress | None) -> Summary:
    start = time.monotonic()
    mpiexec = launch.find_mpiexec()
    plan = prepare(path, resume, part)
    os.close(plan.lock)  # for rank 0 to take
    log = plan.run / "log" / f"{plan.job}.mpiexec.log"

    def poll() -> float:
        if progress is None:
            return 0.5
        begun = time.monotonic()
        now = status(plan.run)
        mine = next((task for task in now["tasks"] if task["part"] == part.number), now) if not part.whole else now
        progress(mine["done"], mine["failed"], mine["total"])
        return max(0.5, 10 * (time.monotonic() - begun))

    def state() -> tuple[int, int]:
        now = status(plan.run)
        return now["done"], sum(journal.kills(plan.run).values())

    def total() -> int:
        now = status(plan.run)
        return now["total"] if part.whole else sum(t["total"] for t in now["tasks"] if t["part"] == part.number)

    lost, problems = 0, list[str]()
    with tempfile.TemporaryDirectory(prefix="mlindex-") as folder, stopping.listening(Path(folder) / "stop") as asked:
        outcome = Path(folder) / "outcome.json"
        env = _environment(Path(folder), ranks)
        program = [sys.executable, "-m", "mpi4py", "-m", "mlindex.runtime.run", str(path), "--resume"]
        program += [] if part.whole else ["--part", f"{part.number}/{part.of}"]
        arguments = launch.command(mpiexec, launch.version_of(mpiexec), ranks + 1, program, env)
        while True:
            outcome.unlink(missing_ok=True)
            before = state()
            exit_status, stopped = launch.run(arguments, log, env, poll, _over(outcome.with_name(_DISPATCHER)))
            lock.settle(plan.run, plan.part)
            if stopped is not None:
                counted(plan.run, plan.part, 0)
                if stopped == launch.signal.SIGINT:
                    raise KeyboardInterrupt
                raise SystemExit(128 + stopped)
            if not outcome.exists():
                problem = f"mpiexec ended with status {exit_status} before the run did; see {log}, and resume the run"
                told: dict[str, Any] = {"problems": [problem], "stopped": "", "lost": 0, "total": total()}
            else:
                told = json.loads(outcome.read_text())
            if "error" in told:
                raise InputError(told["error"])
            lost += told["lost"]
            if told["stopped"] == "relaunch" and not told["problems"]:
                continue
            if not told["problems"] or told["lost"] < ranks or state() == before or asked():
                break
            # every worker is lost, but not in vain: some items are done or known to be deadly; start others
    problems += told["problems"]
    summary = counted(plan.run, plan.part, told["total"], problems)
    seconds = time.monotonic() - start
    return replace(
        summary, skipped=_skipped(plan), seconds=seconds, lost=lost, stopped=told["stopped"], notes=plan.notes
    )


def _skipped(plan: Plan) -> int:
    seen = plan.seen
    return int((plan.part.numbers(seen.input, seen.index, seen.column("of")) == plan.part.number).sum())


def part_from_text(text: str) -> Part:
    """The part that "K/N" names; raises `InputError` for anything else."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or int(match[1]) >= int(match[2]):
        raise InputError(f"--part {text}: give K/N, the number of a part from 0 to N-1 and the number of parts")
    return Part(int(match[1]), int(match[2]))


def run_campaign(
    path: Path | str,
    ranks: int | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    part: Part | None = None,
) -> Summary:
    """Run the campaign in the TOML file `path`, and leave a run directory beside it (`campaign.output`).

    `ranks`: start so many worker ranks with mpiexec (None or 1: this process does the work; ignored inside an MPI
    job, which this process then joins). `resume`: go on with a run directory that has results. `progress` is called
    with (items done, items failed, items known) now and then. `part`: do only this part. SIGUSR1 ends the run early,
    in order. Raises `InputError` for what the user has to change; an item that fails does not raise.
    """
    path, part = Path(path), part or Part()
    if ranks is not None and ranks < 1:
        raise InputError(f"--ranks {ranks}: give a number of workers from 1 up")
    with stopping.listening() as asked:
        world = join(os.environ)
        if world is not None:
            return _joined(world, path, resume, part, asked, progress)
        if ranks is None or ranks == 1:
            return _serial(path, resume, part, asked, progress)
    return _launched(path, ranks, resume, part, progress)


def main(argv: Sequence[str] | None = None) -> int:
    """What the ranks run that `run_campaign` starts: `python -m mlindex.runtime.run CAMPAIGN.toml`; the status."""
    parser = argparse.ArgumentParser(prog="python -m mlindex.runtime.run", description=run_campaign.__doc__)
    parser.add_argument("campaign", type=Path)
    parser.add_argument("--ranks", type=int)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--part", default="0/1")
    chosen = parser.parse_args(argv)
    told: dict[str, Any]
    try:
        summary = run_campaign(chosen.campaign, chosen.ranks, chosen.resume, part=part_from_text(chosen.part))
        told = {name: getattr(summary, name) for name in ("problems", "stopped", "lost", "total")}
        lines, exit_status = summary.lines(), summary.exit_status
    except InputError as error:
        summary, told, lines, exit_status = None, {"error": str(error)}, [str(error)], 2
    if summary is not None and summary.rank:
        return 0
    if device.place(os.environ).rank == 0:
        if outcome := os.environ.get(_OUTCOME):
            Path(outcome).write_text(json.dumps(told))
            return 0  # mpiexec takes another status for a crash, and says so at length
        for line in lines:
            print(line, file=sys.stderr)
    return exit_status


if __name__ == "__main__":
    sys.exit(main())
