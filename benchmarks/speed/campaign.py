"""A campaign of simulated peak lists through an array job of SLURM, undisturbed and disturbed, and what became of it.

    python benchmarks/speed/campaign.py --work DIR --json benchmarks/results/campaign.json
    python benchmarks/speed/campaign.py --work DIR --count 200 --phase make,plain

`DIR` must be on a file system that the nodes of the cluster see. The phases, each of which a stopped benchmark can
repeat:

- `make`: the lists as text files, 1,000 a folder, and their truth in `truth.json`. Cells are those of known crystals,
  cubic to orthorhombic, each free edge times a random factor between 0.9 and 1.1: from the training families of
  `cells.parquet` (`quality/dataset.py`) where there is `--data` or MLINDEX_DATA, otherwise log-normal edges around 8
  angstrom (a factor of 1.5). A list is the first twenty lines that the centring allows, 0.06 degrees apart at least,
  with normal errors of 0.01 degrees in 2theta, Cu K alpha 1. Every list draws from a generator seeded by its number.
- `plain`: the campaign through `mlindex submit`, left alone. A few lists go through `mlindex run` before, so that
  neither run pays for compilation.
- `disturbed`: the same, but at a fifth of the lists a worker of a running task is killed (SIGKILL), and at half of them
  a running task is cancelled (`scancel`) and the campaign submitted again. The killed worker is sought on this machine:
  run it on a one-node cluster, or on the node where the tasks are.
- `check`: both runs: every list in the shards once and in the merged file once; the two runs' first cells are the same
  to the last bit; how many are the true lattice.

The cluster is the one that answers `sinfo`; where none does and this is root, one of a single node is started for the
benchmark, as for the tests. Wall time is from the first `start` to the last `stop` in the journals.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a script, from anywhere

import h5py
import numpy as np

from benchmarks.quality.truth import centring_of, niggli, same_lattice
from mlindex.crystal.lattice import BRAVAIS
from mlindex.crystal.metric import q2_from_hkl, reciprocal_metric_from_cell
from mlindex.crystal.reflections import hkl_within
from mlindex.runtime import journal
from mlindex.runtime.master import survey
from mlindex.runtime.status import status
from tests.slurm import cluster as clusters
from tests.slurm.cluster import Cluster

ROOT = Path(__file__).resolve().parents[2]
LATTICES = ("cP", "cI", "cF", "tP", "tI", "hP", "hR", "oP", "oS", "oI", "oF")
WAVELENGTH, ERROR = 1.5405929, 0.01  # angstrom, degrees of 2theta
LINES, FEWEST, APART, LAST = 20, 10, 0.06, 150.0  # lines of a list, degrees between them, last 2theta
PHASES = ("make", "plain", "disturbed", "check")
PATIENCE = 12 * 3600.0  # seconds that a run may take

CAMPAIGN = """[campaign]
name = "{name}"
inputs = ["{inputs}"]
output = "{name}"

[powder]
effort = "quick"
lattice = [{lattices}]

[slurm]
tasks = {tasks}
ranks = {ranks}
time = "12:00:00"
python = "{python}"
environment = {{ {environment} }}
"""


def options_of() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of the lists and the runs")
    parser.add_argument("--phase", default=",".join(PHASES), help="comma list")
    parser.add_argument("--data", type=Path, default=os.environ.get("MLINDEX_DATA"), help="default: MLINDEX_DATA")
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--tasks", type=int, default=4)
    parser.add_argument("--ranks", type=int, default=2, help="workers a task")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if unknown := set(options.phase.split(",")) - set(PHASES):
        parser.error(f"--phase: {', '.join(sorted(unknown))} is none of {', '.join(PHASES)}")
    options.work = options.work.resolve()
    options.data = options.data and Path(options.data)
    return options


def known_edges(data: Path | None) -> dict[str, np.ndarray] | None:
    """Edges (n, 3) of the crystals of the training families, by Bravais lattice; None without data."""
    if data is None:
        return None
    from benchmarks.quality.dataset import usable  # needs pandas

    table = usable(data)
    table = table[table["set"] == "train"]
    return {b: table.loc[table["bravais"] == b, ["a", "b", "c"]].to_numpy(float) for b in LATTICES}


def free_edges(bravais: str) -> list[int]:
    """For each edge the number of the free edge that it is equal to."""
    return {"c": [0, 0, 0], "o": [0, 1, 2]}.get(bravais[0], [0, 0, 2])


def lines_of(bravais: str, cell: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """2theta (degrees, ascending) of the first lines of a cell, with errors."""
    g = reciprocal_metric_from_cell(cell)
    volume = float(np.sqrt(1 / np.linalg.det(np.diag(g[:3])))) if cell[5] == 90 else float(cell[:3].prod() * 0.866)
    q2_last = (2 * np.sin(np.radians(LAST / 2)) / WAVELENGTH) ** 2
    q2_max = min((10 * LINES * BRAVAIS[bravais].multiplicity / volume) ** (2 / 3), q2_last)
    while True:
        q2 = np.sort(q2_from_hkl(g, hkl_within(g, bravais, q2_max)))
        tth = 2 * np.degrees(np.arcsin(np.sqrt(q2) * WAVELENGTH / 2))
        kept: list[float] = []
        for position in tth:
            if not kept or position - kept[-1] > APART:
                kept.append(position)
        if len(kept) >= LINES or q2_max >= q2_last:
            break
        q2_max = min(2 * q2_max, q2_last)
    found = np.array(kept[:LINES])
    return np.sort(found + rng.normal(0, ERROR, len(found)))


def simulated(number: int, seed: int, known: dict[str, np.ndarray] | None) -> tuple[str, np.ndarray, np.ndarray]:
    """Bravais lattice, conventional cell and 2theta of one list."""
    rng = np.random.default_rng([seed, number])
    bravais = LATTICES[int(rng.integers(len(LATTICES)))]
    while True:
        free = free_edges(bravais)
        if known is None:
            edges = np.clip(8 * np.exp(rng.normal(0, np.log(1.5), 3)), 3, 40)[free]
        else:
            edges = known[bravais][int(rng.integers(len(known[bravais])))]
        edges = edges * rng.uniform(0.9, 1.1, 3)[free]
        cell = np.array([*edges, 90, 90, 120 if bravais[0] == "h" else 90])
        tth = lines_of(bravais, cell, rng)
        if len(tth) >= FEWEST:
            return bravais, cell, tth


def make(options: argparse.Namespace) -> None:
    """Phase `make`."""
    known, truth = known_edges(options.data), {}
    for number in range(options.count):
        bravais, cell, tth = simulated(number, options.seed, known)
        folder = options.work / "lists" / f"{number // 1000:03d}"
        if number % 1000 == 0:
            folder.mkdir(parents=True, exist_ok=True)
        text = "\n".join(f"{x:.4f}" for x in tth)
        (folder / f"{number:06d}.txt").write_text(f"# wavelength = {WAVELENGTH}\n# tth\n{text}\n")
        reduced = niggli(cell, centring_of(bravais, cell))
        truth[f"{number:06d}"] = {"bravais": bravais, "cell": cell.round(5).tolist(), "niggli": reduced}
    origin = "cells.parquet, training families" if known else "log-normal edges"
    document = {"seed": options.seed, "count": options.count, "cells": origin, "lists": truth}
    (options.work / "truth.json").write_text(json.dumps(document))
    print(f"{options.count} lists in {options.work / 'lists'}")


def truth_of(options: argparse.Namespace) -> dict[str, Any]:
    """What phase `make` wrote."""
    try:
        return json.loads((options.work / "truth.json").read_text())
    except OSError:
        raise SystemExit(f"{options.work}: holds no truth.json; run the phase make first") from None


def campaign(options: argparse.Namespace, name: str, inputs: str = "lists/*/*.txt") -> Path:
    """A campaign file."""
    variables = {"PYTHONPATH": ROOT, "MLINDEX_CACHE": options.work / "cache", "JAX_PLATFORMS": "cpu"}
    if os.geteuid() == 0:
        variables |= {"OMPI_ALLOW_RUN_AS_ROOT": 1, "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": 1}
    path = options.work / f"{name}.toml"
    path.write_text(
        CAMPAIGN.format(
            name=name,
            inputs=inputs,
            lattices=", ".join(f'"{b}"' for b in LATTICES),
            tasks=options.tasks,
            ranks=options.ranks,
            python=sys.executable,
            environment=", ".join(f'{key} = "{value}"' for key, value in variables.items()),
        )
    )
    return path


def mlindex(options: argparse.Namespace, cluster: Cluster, *words: str | Path) -> str:
    """The standard output of a command of mlindex, which must succeed."""
    env = {**os.environ, **cluster.variables, "PYTHONPATH": str(ROOT), "MLINDEX_CACHE": str(options.work / "cache")}
    env |= {"JAX_PLATFORMS": "cpu"}
    if os.geteuid() == 0:
        env |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    command = [sys.executable, "-m", "mlindex.cli.main", *map(str, words)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"mlindex {' '.join(map(str, words))} ended with {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout


def submitted(text: str) -> list[str]:
    """The array job and the merge job that `mlindex submit` names."""
    return re.findall(r"^(?:array|merge) job (\d+)", text, re.MULTILINE)


def wait(condition: Callable[[], bool], what: str, every: float = 0.5) -> None:
    """Wait until something is so."""
    until = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > until:
            raise SystemExit(f"waited {PATIENCE:g} s for {what}")
        time.sleep(every)


def states(cluster: Cluster, jobs: list[str]) -> list[str]:
    """The states of what is left in the queue of some jobs."""
    lines = [line.split() for line in cluster.run("squeue", "--array", "--noheader", "--format=%F %T").splitlines()]
    return [state for job, state in lines if job in jobs]


def workers(path: Path) -> Iterator[tuple[int, str]]:
    """(process, array task) of the workers on this machine that are at work on a campaign file."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            text = (folder / "environ").read_bytes().decode(errors="replace")
        except OSError:
            continue
        env = dict(line.split("=", 1) for line in text.split("\0") if "=" in line)
        rank = env.get("OMPI_COMM_WORLD_RANK", env.get("PMI_RANK", "0"))
        if str(path).encode() in words and b"mlindex.runtime.run" in words and int(rank) > 0:
            yield int(folder.name), env.get("SLURM_ARRAY_TASK_ID", "")


def disturb(options: argparse.Namespace, cluster: Cluster, path: Path, run: Path, jobs: list[str]) -> dict[str, Any]:
    """Kill a worker at a fifth, cancel a task at half, and submit again; what was done."""

    def reached(part: float) -> Callable[[], bool]:
        return lambda: status(run)["done"] >= part * options.count or not states(cluster, jobs)

    every = min(2.0, options.count / 2000)
    wait(reached(0.2), "a fifth of the lists", every)
    victims = sorted(workers(path))
    if not victims:
        raise SystemExit("no worker of the campaign runs on this machine: nothing to kill")
    process, task = victims[0]
    told: dict[str, Any] = {"killed": {"task": task, "done": status(run)["done"], "time": time.time()}}
    os.kill(process, signal.SIGKILL)
    wait(reached(0.5), "half of the lists", every)
    at_work = [row for row in status(run)["tasks"] if row["active"] and row["left"]]
    if not at_work:
        raise SystemExit("no task has work left at half of the lists: nothing to cancel; take more lists")
    # rather one that has not lost a worker
    part = max(at_work, key=lambda row: (str(row["part"]) != task, row["left"]))["part"]
    told["cancelled"] = {"task": part, "done": status(run)["done"], "time": time.time()}
    name = f"{jobs[0]}_{part}"
    cluster.run("scancel", name)
    wait(lambda: name not in cluster.run("squeue", "--array", "--noheader", "--format=%i").split(), f"{name} to end")
    told["resubmitted_after_s"] = round(time.time() - told["cancelled"]["time"], 2)
    jobs += submitted(mlindex(options, cluster, "submit", path))
    return told


def measure(options: argparse.Namespace, cluster: Cluster, name: str) -> dict[str, Any]:
    """Phase `plain` or `disturbed`: one run from `mlindex submit` to an empty queue."""
    truth_of(options)
    path, run = campaign(options, name), options.work / name
    if run.exists():
        raise SystemExit(f"{run}: there is such a run already; remove it to measure again")
    if not (options.work / "warm").exists():
        warm = campaign(options, "warm", "lists/000/0000[0-3]*.txt")
        mlindex(options, cluster, "run", warm, "--ranks", options.ranks)
        time.sleep(60)  # a worker adopts what others have compiled once it is a minute old
    jobs = submitted(mlindex(options, cluster, "submit", path))
    told = disturb(options, cluster, path, run, jobs) if name == "disturbed" else {}
    wait(lambda: not states(cluster, jobs), "the queue to be empty")
    events = journal.rank0_events(run)
    starts = [line["time"] for line in events if line["event"] == "start"]
    stops = [line["time"] for line in events if line["event"] == "stop"]
    now = status(run)
    wall = max(stops) - min(starts)
    row = {
        "name": name,
        "wall_s": round(wall, 2),
        "rate": round(now["done"] / wall, 3),
        "done": now["done"],
        "left": now["left"],
        "jobs_started": len(starts),
        "workers_lost": now["lost"],
        "items_of_lost_workers": sum(len(line["items"]) for line in events if line["event"] == "lost"),
        "item_s": round(sum(line["seconds"] for line in now["ranks"]), 2),
        "disturbed": told,
        "load_at_end": [round(x, 2) for x in os.getloadavg()],
    }
    (options.work / f"{name}.json").write_text(json.dumps(row))
    return row


def answers(options: argparse.Namespace, cluster: Cluster, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """How often each list is in the shards and in the merged file of a run, and its (status, first cell)."""
    run = options.work / name
    if not (run / "merged.h5").exists():
        mlindex(options, cluster, "merge", run)
    seen = survey(run)
    held = Counter(
        (int(i), int(k)) for s in seen.shards for i, k in zip(s.items["input"], s.items["index"], strict=True)
    )
    found: dict[str, Any] = {}
    times: Counter[str] = Counter()
    with h5py.File(run / "merged.h5") as file:
        group = file["powder"]
        names = {code: name for name, code in h5py.check_enum_dtype(group["items/status"].dtype).items()}
        columns = (group[f"items/{name}"][:] for name in ("source", "status", "solutions_offset", "solutions_count"))
        bravais, cells = group["solutions/bravais"][:], group["solutions/cell"][:]
        for source, code, at, count in zip(*columns, strict=True):
            key = Path(source.decode()).stem
            times[key] += 1
            first = (bravais[at].decode(), *map(float, cells[at])) if count else None
            found[key] = (names[int(code)], first)
    counts = {
        "in_shards_once": sum(n == 1 for n in held.values()),
        "in_shards_more": sum(n > 1 for n in held.values()),
        "merged_once": sum(n == 1 for n in times.values()),
        "merged_more": sum(n > 1 for n in times.values()),
        **Counter(status for status, _ in found.values()),
    }
    return counts, found


def check(options: argparse.Namespace, cluster: Cluster) -> dict[str, Any]:
    """Phase `check`."""
    truth, rows, cells = truth_of(options), [], {}
    for name in ("plain", "disturbed"):
        path = options.work / f"{name}.json"
        if not path.exists():
            continue
        counts, found = answers(options, cluster, name)
        right: Counter[str] = Counter()
        for key, (_, first) in found.items():
            known = truth["lists"][key]
            if first and same_lattice(known["niggli"], niggli(first[1:], centring_of(first[0], first[1:]))):
                right[known["bravais"]] += 1
        missing = sorted(set(truth["lists"]) - set(found))
        row = {**json.loads(path.read_text()), **counts, "missing": len(missing), "right": sum(right.values())}
        total = Counter(one["bravais"] for one in truth["lists"].values())
        row["right_by_lattice"] = {b: [right[b], total[b]] for b in LATTICES}
        row["all_once"] = (
            not missing and row["in_shards_once"] == row["merged_once"] == truth["count"] and not row["in_shards_more"]
        )
        rows.append(row)
        cells[name] = found
    document: dict[str, Any] = {"count": truth["count"], "seed": truth["seed"], "cells": truth["cells"], "runs": rows}
    if len(rows) == 2:
        document["same_answers"] = sum(cells["plain"][key] == cells["disturbed"].get(key) for key in cells["plain"])
        document["wall_ratio"] = round(rows[1]["wall_s"] / rows[0]["wall_s"], 4)
    return document


def show(document: dict[str, Any]) -> None:
    print("run         lists    wall s   lists/s  each once  solved  unsolved  failed    right  workers lost  jobs")
    for row in document["runs"]:
        print(
            f"{row['name']:10}{row['done']:7}{row['wall_s']:10.1f}{row['rate']:10.2f}{row['all_once']!s:>11}"
            f"{row.get('solved', 0):8}{row.get('unsolved', 0):10}{row.get('failed', 0):8}{row['right']:9}"
            f"{row['workers_lost']:14}{row['jobs_started']:6}"
        )
    if "wall_ratio" in document:
        same = document["same_answers"]
        print(f"same answers: {same} of {document['count']}; disturbed over plain: {document['wall_ratio']:.3f}")


def main() -> None:
    options = options_of()
    options.work.mkdir(parents=True, exist_ok=True)
    phases = options.phase.split(",")
    if "make" in phases:
        make(options)
    if phases == ["make"]:
        return
    options.count = truth_of(options)["count"]
    with clusters.running() as cluster:
        for name in ("plain", "disturbed"):
            if name in phases:
                row = measure(options, cluster, name)
                print(f"{name}: {row['done']} lists in {row['wall_s']:.1f} s", flush=True)
        if "check" not in phases:
            return
        document, slurm = check(options, cluster), cluster.run("sinfo", "--version").strip()
    show(document)
    packages = ("numpy", "jax", "jaxlib", "h5py", "mpi4py", "openmpi")
    found = {dist.metadata["Name"] for dist in importlib.metadata.distributions()}
    words = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=False).stdout.strip()
    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    document |= {
        "settings": {"tasks": options.tasks, "ranks": options.ranks, "effort": "quick", "lattices": LATTICES},
        "hardware": {"cpu": model[0].split(":", 1)[1].strip() if model else "", "cores": os.cpu_count()},
        "versions": {
            "python": platform.python_version(),
            "slurm": slurm,
            **{name: importlib.metadata.version(name) for name in packages if name in found},
            "commit": commit,
        },
    }
    if options.json:
        options.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
