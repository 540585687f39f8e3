"""What rank 0 costs: batches a second, the share of a run that dispatch takes, and the memory of rank 0.

    python benchmarks/speed/dispatch.py --json benchmarks/results/dispatch.json

Real MPI processes and the real dispatcher (`pool.dispatch` with `rank0.Rank0` on a run directory); the workers do no
work and write nothing, so that rank 0 alone is measured. `--rate`: workers that answer at once; batches a second by
the clock, while workers and rank 0 share the machine, and by the CPU time of rank 0 alone, which is what one core of
its own would serve. `--overhead`: workers that sleep for 100 ms a batch; the share of the time from their first batch
to their last that is not sleep.
`--memory`: the resident set of rank 0 before the first batch and after the last, for campaigns of 10^4, 10^5 and 10^6
items, one item a file and a thousand items a file. `--status`: how long `mlindex status` takes on a run of 10^6 items.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a script, from anywhere

from mlindex.records import Item, Result, Status
from mlindex.runtime import inputs, journal, launch, pool
from mlindex.runtime.queue import Done
from mlindex.runtime.rank0 import Rank0
from mlindex.runtime.rundir import prepare
from mlindex.runtime.shards import Entry, Shard, provenance
from mlindex.runtime.world import join

ROOT = Path(__file__).resolve().parents[2]
SMALL = 1000  # items of a file that has many


def resident() -> float:
    """The resident set of this process, MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def make_campaign(folder: Path, items: int, of: int, batch: int) -> Path:
    """A campaign of `items` items in files of `of`, of which only the names exist."""
    (folder / "in").mkdir()
    (folder / "in" / "f0000000.txt").write_text("1\n")
    campaign = folder / "campaign.toml"
    campaign.write_text(f'[campaign]\ninputs = ["in/*.txt"]\nbatch = {batch}\n')
    os.close(prepare(campaign, False).lock)
    named = [inputs.Input(f"f{i:07d}", f"in/f{i:07d}.txt") for i in range(items // of)]
    inputs.write(folder / "run", named)
    journal.append(folder / "run" / journal.FOLDER / "submit.jsonl", {"event": "submit", "parts": 1})  # it has begun
    return campaign


def rank(campaign: Path, of: int, sleep: float) -> None:
    """One rank of the measured job; rank 0 prints its figures as JSON."""
    world = join(os.environ)
    assert world is not None, "start this with mpiexec"
    world.worker_masks()
    if world.rank:
        spans: list[tuple[float, float]] = []

        def work(batch: Sequence[Item], opened: Callable[[int, int], None]) -> list[Done]:
            if sleep:
                start = time.perf_counter()
                time.sleep(sleep)
                spans.append((start, time.perf_counter()))
            done = []
            for unit in batch:
                i, start_, stop = int(unit.attrs["input"] or 0), int(unit.attrs["start"] or 0), unit.attrs["stop"]
                if stop is None:
                    opened(i, of)
                    stop = min(int(unit.attrs["batch"] or 1), of)
                done += [Done(i, k, of, "solved") for k in range(start_, int(stop))]
            return done

        def begin(start: Mapping[str, Any]) -> pool.Work:
            return work

        pool.serve(world, {"host": os.uname().nodename}, begin)
        if sleep:
            gaps = [after[0] - before[1] for before, after in pairwise(spans)]
            told = {"share": sum(gaps) / (spans[-1][1] - spans[0][0]), "median_ms": 1e3 * sorted(gaps)[len(gaps) // 2]}
            (campaign.parent / f"overhead-{world.rank}.json").write_text(json.dumps(told))
        pool.leave(world)
        return
    plan = prepare(campaign, True, rescan=False)
    root = Rank0(plan, world.size - 1, lambda: None, lambda: False)  # type: ignore[arg-type, return-value]
    batches = 0
    first: list[float] = []

    def item(unit: Any) -> Item:
        return root.item(unit)

    real = root.timed

    def timed(worker: int, items: int, seconds: float, workers: int) -> None:
        nonlocal batches
        batches += 1
        if not first:
            first.extend([time.perf_counter(), time.process_time()])
        real(worker, items, seconds, workers)

    root.timed = timed  # type: ignore[method-assign]
    before = resident()
    pool.dispatch(world, root.queue, {"run": str(plan.run)}, item, root)
    wall, cpu = time.perf_counter() - first[0], time.process_time() - first[1]
    told = {
        "batches": batches,
        "items": root.queue.done,
        "wall_s": wall,
        "cpu_s": cpu,
        "before_mb": before,
        "after_mb": resident(),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
    }
    (campaign.parent / "told.json").write_text(json.dumps(told))
    pool.release(world)


def measured(items: int, of: int, batch: int, workers: int, sleep: float = 0.0) -> dict[str, Any]:
    """The figures of rank 0 in one job."""
    with tempfile.TemporaryDirectory() as name:
        campaign = make_campaign(Path(name), items, of, batch)
        mpiexec = launch.find_mpiexec()
        env = launch.environment(os.environ)
        program = [sys.executable, str(Path(__file__).resolve()), "--rank", str(campaign), str(of), str(sleep)]
        command = launch.command(mpiexec, launch.version_of(mpiexec), workers + 1, program, env)
        subprocess.run(command, cwd=ROOT, env=env, check=True, timeout=1200)
        told = json.loads((campaign.parent / "told.json").read_text())
        waits = [json.loads(path.read_text()) for path in campaign.parent.glob("overhead-*.json")]
        return {**told, "overhead": {key: max(w[key] for w in waits) for key in waits[0]} if waits else {}}


def big_run(folder: Path, items: int, ranks: int) -> Path:
    """A run directory with the results of `items` items in files of a thousand, on many ranks, as a run leaves it."""
    campaign = make_campaign(folder, items, SMALL, 64)
    from mlindex.powder.stage import PowderStage

    for r in range(ranks):
        job = "20260101T000000-1-0of1-0000"
        attributes = {**provenance("powder", {}), "host": f"node{r // 32}", "job": job, "rank": r + 1}
        shard = Shard(folder / "run" / "shards", f"{job}-r{r + 1:04d}", "powder", PowderStage.schema, attributes)
        own = journal.Journal(folder / "run", job, r + 1)
        mine = range(r, items // SMALL, ranks)
        for i in mine:
            for at in range(0, SMALL, 200):
                rows = [
                    Entry(Result(f"f{i}:{k}", f"in/f{i}.txt", Status.SOLVED, "", 0.1), i, k, SMALL, r + 1, 1e9 + i + k)
                    for k in range(at, at + 200)
                ]
                written, name = shard.commit(rows)
                own.items(written, name)
        shard.close()
    return campaign.parent / "run"


def seconds_of_status(items: int, ranks: int) -> dict[str, Any]:
    """Wall time of the command, start of the interpreter included, of five."""
    with tempfile.TemporaryDirectory() as name:
        run = big_run(Path(name), items, ranks)
        times = []
        for _ in range(5):
            start = time.perf_counter()
            done = subprocess.run(
                [sys.executable, "-m", "mlindex.cli.main", "status", str(run), "--json"],
                cwd=ROOT,
                capture_output=True,
                check=True,
            )
            times.append(time.perf_counter() - start)
            assert json.loads(done.stdout)["done"] == items
        return {"items": items, "ranks": ranks, "median_s": sorted(times)[2], "all_s": times}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("rate", "overhead", "memory", "status"):
        parser.add_argument(f"--{name}", action="store_true", help="only this (and what else is named)")
    parser.add_argument("--items", default="10000,100000,1000000", help="campaigns of --memory, comma list")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rank", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank:
        rank(Path(options.rank[0]), int(options.rank[1]), float(options.rank[2]))
        return
    everything = not (options.rate or options.overhead or options.memory or options.status)
    out: dict[str, Any] = {"machine": platform.platform(), "cpus": os.cpu_count(), "python": platform.python_version()}
    if options.json and options.json.exists():
        out = {**json.loads(options.json.read_text()), **out}
    if everything or options.rate:
        out["rate"] = []
        print(f"{'workers':>8}{'batches/s':>11}{'us CPU a batch':>16}{'batches/s of CPU':>18}")
        for workers in (1, 2, 4, 8):
            told = measured(40000, 1, 1, workers)
            row = {
                "workers": workers,
                "per_s": told["batches"] / told["wall_s"],
                "cpu_us": 1e6 * told["cpu_s"] / told["batches"],
            }
            out["rate"].append(row)
            print(f"{workers:8d}{row['per_s']:11.0f}{row['cpu_us']:16.0f}{1e6 / row['cpu_us']:18.0f}")
    if everything or options.overhead:
        told = measured(2 * 200, 1, 1, 2, 0.1)
        out["overhead"] = {"workers": 2, "batch_s": 0.1, **told["overhead"]}
        share, wait = 100 * told["overhead"]["share"], told["overhead"]["median_ms"]
        print(f"2 workers, batches of 100 ms: {share:.2f} % of the time is not work (median wait {wait:.2f} ms)")
    if everything or options.memory:
        out["memory"] = []
        print(f"{'items':>9}{'items a file':>14}{'before MB':>11}{'after MB':>10}{'peak MB':>9}")
        for items in map(int, options.items.split(",")):
            for of in (1, SMALL):
                told = measured(items, of, 100, 2)
                assert told["items"] == items
                out["memory"].append({"of": of, **told})
                print(
                    f"{items:9d}{of:14d}{told['before_mb']:11.1f}{told['after_mb']:10.1f}{told['peak_mb']:9.1f}",
                    flush=True,
                )
    if everything or options.status:
        out["status"] = seconds_of_status(1_000_000, 64)
        print(f"status of a run of 10^6 items on 64 ranks: {out['status']['median_s']:.2f} s")
    if options.json:
        options.json.write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main()
