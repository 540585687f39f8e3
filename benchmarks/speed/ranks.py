"""How `mlindex run` scales over ranks: wall time, memory of a rank, and whether the answers are the same.

    python benchmarks/speed/ranks.py --data DIR --ranks 1,2 --json out.json

The same validation lists (`benchmarks/quality/dataset.py`, clean) go through `mlindex run` once for each number of
ranks, every run on as many CPUs as it has ranks and with one thread a rank. A first run with one rank over lists of
differing lengths fills a compilation cache that the measured runs share; it is not counted. Wall time is that of the
whole command, start of the interpreters included; `sum s` adds up what the lists took. Memory is the largest resident
set (VmHWM) of each process of the run, sampled from /proc, so Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a script, from anywhere

from benchmarks.quality.dataset import Entry, calculated

ROOT = Path(__file__).resolve().parents[2]

CAMPAIGN = """[campaign]
name = "ranks"
stage = "powder"
inputs = ["{lists}/*.txt"]
output = "{output}"
batch = {batch}

[powder]
effort = "{effort}"
"""


def options_of() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("MLINDEX_DATA"), help="default: MLINDEX_DATA")
    parser.add_argument("--ranks", default="1,2", help="comma list; the first is what the others are compared with")
    parser.add_argument("--lists", type=int, default=40)
    parser.add_argument("--batch", type=int, default=1, help="lists a worker takes at a time")
    parser.add_argument("--effort", default="normal", choices=("quick", "normal", "thorough"))
    parser.add_argument("--warm", type=int, default=6, help="lists of the run that fills the compilation cache")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.data is None:
        parser.error("give the data folder with --data or in MLINDEX_DATA")
    return options


def lists_of(data: Path, count: int) -> list[Entry]:
    """`count` validation lists, all fourteen lattices in turn."""
    entries = list(calculated(data, "validation", "clean", -(-count // 14)))
    depth = {entry.uid: sum(e.bravais == entry.bravais for e in entries[:i]) for i, entry in enumerate(entries)}
    return sorted(entries, key=lambda entry: depth[entry.uid])[:count]


def write_lists(entries: list[Entry], folder: Path) -> None:
    """One text file a list, q2 in 1/angstrom^2, as a user would give it."""
    folder.mkdir()
    for i, entry in enumerate(entries):
        lines = "\n".join(f"{x:.8f}" for x in entry.q2)
        (folder / f"{i:03d}.txt").write_text(f"# wavelength = {entry.wavelength}\n# q2\n{lines}\n")


def descendants(root: int) -> Iterator[int]:
    """`root` and all processes below it, now."""
    parents: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                stat = (folder / "stat").read_text()
            except OSError:
                continue
            parents.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(folder.name))
    todo = [root]
    while todo:
        pid = todo.pop()
        yield pid
        todo += parents.get(pid, [])


def peak_memory(pid: int) -> float | None:
    """Largest resident set of a process so far in MiB; None where it is gone or is no Python."""
    try:
        if b"python" not in Path(f"/proc/{pid}/cmdline").read_bytes():
            return None
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM")), None)


def launch(campaign: Path, ranks: int, cache: Path) -> dict[str, Any]:
    """Run a campaign on `ranks` CPUs; wall seconds, exit status and peak MiB by process, largest first."""
    cpus = sorted(os.sched_getaffinity(0))[:ranks]
    if len(cpus) < ranks:
        raise SystemExit(f"{ranks} ranks of one thread need {ranks} CPUs, and this process may use {len(cpus)}")
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NPROC"), "1")
    environment = {
        **os.environ,
        **threads,
        "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])),
    }
    bound = ["taskset", "-c", ",".join(map(str, cpus))]
    command = [*bound, sys.executable, "-m", "mlindex.cli.main", "run", str(campaign), "--ranks", str(ranks)]
    log = campaign.with_suffix(".log")
    memory: dict[int, float] = {}
    start = time.perf_counter()
    with log.open("wb") as stream:
        process = subprocess.Popen(command, env=environment, stdout=stream, stderr=subprocess.STDOUT)
        while process.poll() is None:
            for pid in descendants(process.pid):
                if (size := peak_memory(pid)) is not None:
                    memory[pid] = max(size, memory.get(pid, 0.0))
            time.sleep(0.25)
    wall = time.perf_counter() - start
    if process.returncode not in (0, 1):
        raise SystemExit(f"the run with {ranks} ranks ended with {process.returncode}:\n{log.read_text()[-2000:]}")
    return {
        "ranks": ranks,
        "wall_s": round(wall, 2),
        "exit": process.returncode,
        "peak_mib": sorted((round(size) for size in memory.values()), reverse=True),
    }


def answers(output: Path) -> dict[str, dict[str, Any]]:
    """The records of a run by id, from `mlindex export`."""
    command = [sys.executable, "-m", "mlindex.cli.main", "export", str(output), "--to", "json"]
    text = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    records = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    return {Path(record["source"]).name: record for record in records}


def measure(entries: list[Entry], ranks: int, folder: Path, options: argparse.Namespace, name: str) -> dict[str, Any]:
    """One run: its time, its memory, and its records."""
    place = folder / name
    place.mkdir()
    write_lists(entries, place / "lists")
    campaign = place / "campaign.toml"
    campaign.write_text(CAMPAIGN.format(lists="lists", output="run", batch=options.batch, effort=options.effort))
    row = launch(campaign, ranks, folder / "cache")
    row["records"] = answers(place / "run")
    return row


def main() -> None:
    options = options_of()
    entries = lists_of(options.data, options.lists)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        by_size = sorted(entries, key=lambda entry: entry.q2.size)
        step = max(len(by_size) // max(options.warm, 1), 1)
        print("filling the compilation cache", file=sys.stderr)
        measure(by_size[::step], 1, folder, options, "warm")
        rows = []
        for ranks in map(int, options.ranks.split(",")):
            print(f"{len(entries)} lists with {ranks} ranks", file=sys.stderr)
            rows.append(measure(entries, ranks, folder, options, f"ranks{ranks}"))
    first = rows[0]["records"]
    for row in rows:
        records = row.pop("records")
        row["lists"] = len(records)
        row["solved"] = sum(record["status"] == "solved" for record in records.values())
        row["list_s"] = round(sum(record["seconds"] for record in records.values()), 2)
        row["same_answers"] = sum(r["solutions"] == records.get(k, {}).get("solutions") for k, r in first.items())
        row["speedup"] = round(rows[0]["wall_s"] / row["wall_s"], 2)
    print(" ranks  lists  solved   wall s    sum s  speed-up  MiB a rank  same")
    for row in rows:
        print(
            f"{row['ranks']:6}{row['lists']:7}{row['solved']:8}{row['wall_s']:9.1f}{row['list_s']:9.1f}"
            f"{row['speedup']:10.2f}{max(row['peak_mib'], default=0):12}{row['same_answers']:6}"
        )
    if options.json:
        settings = {key: value for key, value in vars(options).items() if key not in ("data", "json")}
        hardware = {"cores": os.cpu_count(), "load": os.getloadavg(), "python": platform.python_version()}
        options.json.write_text(json.dumps({"settings": settings, "hardware": hardware, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
