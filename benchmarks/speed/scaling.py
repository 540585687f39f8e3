"""One to 4,096 ranks, simulated: where rank 0 saturates, and what batches should be.

    python benchmarks/speed/scaling.py --json benchmarks/results/scaling.json
    python benchmarks/speed/scaling.py --run RUN         # the times of the items of a run of yours

An event simulation of the pull scheduler: rank 0 serves one request at a time and takes the dispatch cost for each;
a worker asks, works as long as its items take, writes (`batching.COMMIT`), and asks again; batches get smaller towards
the end as in `queue.Queue.take`. Item times are drawn from those measured: of powder indexing at `--effort normal`
(benchmarks/results/powder_mlindex_clean.json), the same a hundred times faster (a GPU, or frames), and of 1 ms. The
dispatch cost is the CPU time of rank 0 a batch, from benchmarks/results/dispatch.json. `efficiency` is work done over
ranks times wall time; `busy` is the share of the time that rank 0 is busy; with `batch` "auto" the size that
`batching.batch_size` chooses. Saturation is the number of ranks at which rank 0 is busy all the time with batches of
one item.
"""

from __future__ import annotations

import argparse
import heapq
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a script, from anywhere

from mlindex.runtime import batching
from mlindex.runtime.master import survey

RESULTS = Path(__file__).resolve().parents[1] / "results"
RANKS = tuple(4**k for k in range(7))
ROUNDS = 40  # batches a rank, at least


def simulated(
    times: NDArray[np.float64], ranks: int, batch: int, items: int, dispatch: float, seed: int
) -> dict[str, float]:
    """Wall time, efficiency and load of rank 0 for `items` items in batches of `batch` on `ranks` workers."""
    rng = np.random.default_rng(seed)
    single = rng.choice(times, 20000)
    full = rng.choice(times, (2000, batch)).sum(1)
    left, free, served, work, end = items, 0.0, 0, 0.0, 0.0
    requests = [(0.0, worker) for worker in range(ranks)]
    while left and requests:
        asked, worker = heapq.heappop(requests)
        room = batch
        while room > 1 and room * ranks > left:
            room = (room + 1) // 2
        size = min(room, left)
        left -= size
        free = max(free, asked) + dispatch
        if size == batch:
            seconds = float(full[served % len(full)])
        else:
            seconds = float(single[np.arange(served, served + size) % len(single)].sum())
        served += 1
        work += seconds
        done = free + seconds + batching.COMMIT
        end = max(end, done)
        heapq.heappush(requests, (done, worker))
    return {"wall_s": end, "efficiency": work / (ranks * end), "busy": served * dispatch / end, "batches": served}


def measured_times(options: argparse.Namespace) -> dict[str, NDArray[np.float64]]:
    """Seconds an item, of each kind of work."""
    if options.run is not None:
        return {f"{options.run}": survey(options.run).column("seconds")}
    rows = json.loads((RESULTS / "powder_mlindex_clean.json").read_text())["rows"]["mlindex"]
    powder = np.array([row["seconds"] for row in rows])
    return {"powder, normal": powder, "powder, 100 times faster": powder / 100, "1 ms an item": np.full(100, 1e-3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="a run directory whose item times are to be used")
    parser.add_argument("--dispatch", type=float, help="seconds of rank 0 a batch; default: measured")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    dispatch = options.dispatch
    if dispatch is None:
        rate = json.loads((RESULTS / "dispatch.json").read_text())["rate"]
        dispatch = max(row["cpu_us"] for row in rate) / 1e6
    out: dict[str, Any] = {"dispatch_s": dispatch, "commit_s": batching.COMMIT, "seed": options.seed, "tables": {}}
    print(f"dispatch {1e6 * dispatch:.0f} us, commit {1e3 * batching.COMMIT:.0f} ms a batch")
    for name, times in measured_times(options).items():
        mean = float(times.mean())
        saturation = (mean + batching.COMMIT) / dispatch
        rows = []
        print(f"\n{name}: {mean:.3g} s an item; with batches of one, rank 0 saturates at {saturation:.0f} ranks")
        print(
            f"{'ranks':>6}{'batch':>7}{'efficiency':>12}{'busy':>7}   {'batch auto':>10}{'efficiency':>12}{'busy':>7}"
        )
        for ranks in RANKS:
            auto = batching.batch_size(mean, ranks)
            items = ROUNDS * ranks * auto
            one = simulated(times, ranks, 1, min(items, 400 * ranks), dispatch, options.seed)
            best = simulated(times, ranks, auto, items, dispatch, options.seed)
            rows.append({"ranks": ranks, "one": one, "auto": {"batch": auto, **best}})
            print(
                f"{ranks:6d}{1:7d}{one['efficiency']:12.3f}{one['busy']:7.3f}   "
                f"{auto:10d}{best['efficiency']:12.3f}{best['busy']:7.3f}",
                flush=True,
            )
        out["tables"][name] = {"item_s": mean, "saturation_ranks": saturation, "rows": rows}
    if options.json:
        options.json.write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main()
