"""Laue frames a second, warm, by system and number of grains, and where the time goes.

    python benchmarks/speed/laue.py --json benchmarks/results/laue_speed.json
    python benchmarks/speed/laue.py --only frames --systems ZrO2 --grains 5 --frames 20

Part `frames`: spot lists of `benchmarks/quality/laue.py` through `index_frame` on the device that JAX has. Every frame
is indexed three times: cold, with nothing compiled and no cache on disk; warm, which gives the times; and warm with a
timer around each step, which gives the shares. `compile` is what the cold pass took longer than the warm one; the first
row of a material makes its tables in it too. `image`: the same from rendered 16-bit images in memory, the search for
spots included. `run`: `mlindex run` over spot lists with 1 and 2 ranks of one thread, as many CPUs as ranks, wall time
with the start of the interpreters; a first run fills the compilation cache that the others share.

Times are medians over the frames; wall time is what a detector waits for, CPU seconds are those of all threads and the
ones to compare on a busy machine. `found` is the share of true grains found within 0.1 degrees, `false` the number of
others. Steps: propose (pairs of spots against pairs of rays), screen (look-up by the hundred thousand), refine, judge,
end (all grains together at the end, with their judging), other. Shares are of CPU time, on a GPU of wall time.
`peak MiB`: largest resident set of the process so far, or of a rank.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a script, from anywhere

import jax
import numpy as np

import mlindex
from benchmarks.quality.laue import CRYSTALS, DETECTOR, ENERGY, SYSTEMS, compared, frame_of
from benchmarks.speed.ranks import answers, launch
from mlindex.formats.lauetools import Calibration, SpotList, write_cor
from mlindex.laue import propose, refine, search
from mlindex.laue.geometry import angles_from_kf, direction_from_pixel
from mlindex.laue.simulate import Frame, render_image
from mlindex.laue.spots import find_spots

PARTS = ("frames", "image", "run")
STEPS = ("spots", "propose", "screen", "refine", "judge", "end", "other")
# What is timed, as the name is looked up where it is called
TIMED: tuple[tuple[ModuleType, str, str], ...] = (
    (search, "screened", "screen"),
    (propose, "spot_pairs", "propose"),
    (propose, "candidates", "propose"),
    (search, "polished", "refine"),
    (refine, "refined", "refine"),
    (search, "judged", "judge"),
    (search, "impossible", "end"),
    (search, "pruned", "end"),
    (search, "finished", "end"),
)

CAMPAIGN = """[campaign]
name = "laue"
stage = "laue"
inputs = ["frames/*.cor"]
output = "run"

[laue]
materials = {materials}
energy = [{low}, {high}]
"""


def options_of() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS), help="comma list of parts")
    parser.add_argument("--systems", default="Cu,Si,Ti,GaN+Si,ZrO2", help="comma list")
    parser.add_argument("--grains", default="1,5,20", help="comma list; of each material of a system")
    parser.add_argument("--frames", type=int, default=20, help="of each row")
    parser.add_argument("--image-frames", type=int, default=5, help="of each row of the part image")
    parser.add_argument("--run-systems", default="Si,ZrO2", help="comma list, of the part run")
    parser.add_argument("--run-grains", type=int, default=5, help="of each material of a system, of the part run")
    parser.add_argument("--run-frames", type=int, default=100)
    parser.add_argument("--ranks", default="1,2", help="comma list; the first is what the others are compared with")
    parser.add_argument("--first-seed", type=int, default=0, help="seeds run from here on")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    for given, known, what in ((options.only, PARTS, "part"), (options.systems, SYSTEMS, "system")):
        if unknown := set(given.split(",")) - set(known):
            parser.error(f"there is no {what} {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    return options


class Steps:
    """Time by step; what runs within another step is the inner one's, but within `end` all is the end's."""

    def __init__(self) -> None:
        self.wall: dict[str, float] = defaultdict(float)
        self.cpu: dict[str, float] = defaultdict(float)
        self._stack: list[str] = []
        self._since = (0.0, 0.0)

    def _charge(self) -> None:
        now = (time.perf_counter(), time.process_time())
        if self._stack:
            name = "end" if "end" in self._stack else self._stack[-1]
            self.wall[name] += now[0] - self._since[0]
            self.cpu[name] += now[1] - self._since[1]
        self._since = now

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Charge what is done inside to `name`."""
        self._charge()
        self._stack.append(name)
        try:
            yield
        finally:
            self._charge()
            self._stack.pop()

    def around(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        """The function with its time charged to `name`."""

        def timed(*arguments: Any, **named: Any) -> Any:
            with self.step(name):
                return function(*arguments, **named)

        return timed

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Put timers around the functions of `TIMED`, and take them off again."""
        kept = [(module, name, getattr(module, name)) for module, name, _ in TIMED]
        try:
            for module, name, step in TIMED:
                setattr(module, name, self.around(getattr(module, name), step))
            yield
        finally:
            for module, name, function in kept:
                setattr(module, name, function)

    def shares(self) -> dict[str, dict[str, float]]:
        """Fractions of the wall and of the CPU time."""
        both = {"wall": self.wall, "cpu": self.cpu}
        return {clock: {s: t[s] / (sum(t.values()) or 1.0) for s in STEPS} for clock, t in both.items()}


def peak_memory() -> dict[str, float | None]:
    """MiB: the largest resident set of this process so far, and of the device where it tells."""
    stats = jax.devices()[0].memory_stats() or {}
    device = stats.get("peak_bytes_in_use")
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"peak_mib": resident, "device_peak_mib": None if device is None else device / 2**20}


def row_of(
    kind: str,
    label: str,
    frames: Sequence[tuple[int, Frame]],
    index: Callable[[int, Steps | None], Sequence[search.Grain]],
) -> dict[str, Any]:
    """The figures of one row; `index` gives the grains of the frame of that number, with timers if there are any."""

    def passed(steps: Steps | None = None) -> list[tuple[float, float, Sequence[search.Grain]]]:
        taken = []
        for number in range(len(frames)):
            wall, cpu = time.perf_counter(), time.process_time()
            found = index(number, steps)
            taken.append((time.perf_counter() - wall, time.process_time() - cpu, found))
        return taken

    jax.clear_caches()
    cold, warm, steps = passed(), passed(), Steps()
    with steps.watching():
        passed(steps)
    results = [compared(frame, found) for (_, frame), (_, _, found) in zip(frames, warm, strict=True)]
    walls, cpus = [one[0] for one in warm], [one[1] for one in warm]
    row: dict[str, Any] = {"part": kind, "label": label, "frames": len(frames)}
    row |= {"wall_median": statistics.median(walls), "wall_worst": max(walls), "frames_per_second": 1 / np.mean(walls)}
    row |= {"cpu_median": statistics.median(cpus), "cpu_worst": max(cpus)}
    row |= {"spots_median": statistics.median(len(frame.x) for _, frame in frames)}
    row |= {"true": sum(r["true"] for r in results), "found": sum(len(r["found"]) for r in results)}
    row |= {"false": sum(len(r["false"]) for r in results)}
    row |= {"compile_s": max(sum(one[0] for one in cold) - sum(walls), 0.0), "shares": steps.shares(), **peak_memory()}
    row["seeds"] = [
        {"seed": seed, "wall": w, "cpu": c, "found": len(r["found"]), "false": r["false"], "missed": r["missed_spots"]}
        for (seed, _), w, c, r in zip(frames, walls, cpus, results, strict=True)
    ]
    shares = row["shares"]["cpu" if jax.default_backend() == "cpu" else "wall"]
    print(
        f"{kind:7}{label:11}{row['spots_median']:6.0f}{row['found'] / max(row['true'], 1):7.3f}{row['false']:6}"
        f"{row['frames_per_second']:9.2f}{1e3 * row['wall_median']:9.1f}{1e3 * row['cpu_median']:9.1f}"
        f"{row['compile_s']:9.1f}{row['peak_mib']:9.0f}  " + " ".join(f"{shares[s]:7.2f}" for s in STEPS),
        flush=True,
    )
    return row


def listed_row(system: str, count: int, options: argparse.Namespace, *, image: bool) -> dict[str, Any]:
    """A row of the part `frames`, or of the part `image`."""
    names = SYSTEMS[system]
    crystals = [CRYSTALS[name] for name in names]
    n = options.image_frames if image else options.frames
    seeds = range(options.first_seed, options.first_seed + n)
    frames = [(seed, frame_of(names, count, seed)) for seed in seeds]
    pictures = [render_image(np.random.default_rng(seed), frame) for seed, frame in frames] if image else []

    def index(number: int, steps: Steps | None) -> Sequence[search.Grain]:
        def work() -> Sequence[search.Grain]:
            frame = frames[number][1]
            x, y, bright = frame.x, frame.y, frame.intensity
            if image:
                look = find_spots if steps is None else steps.around(find_spots, "spots")
                spots = look(pictures[number], saturation=65_535)
                x, y, bright = spots.x, spots.y, np.asarray(spots.intensity, np.float64)
            return search.index_frame(x, y, bright, DETECTOR, crystals, energy=ENERGY)

        return work() if steps is None else steps.around(work, "other")()

    return row_of("image" if image else "frames", f"{system} {count}", frames, index)


def write_frames(folder: Path, frames: Sequence[tuple[int, Frame]]) -> None:
    """The spot lists as .cor files."""
    folder.mkdir()
    d = DETECTOR
    footer = Calibration(d.distance, d.xcen, d.ycen, d.xbet, d.xgam, d.pixel, d.shape, d.kf_direction)
    for seed, frame in frames:
        angles = angles_from_kf(direction_from_pixel(frame.x, frame.y, d))
        name = f"frame_{seed:05d}.cor"
        write_cor(folder / name, SpotList(name, frame.x, frame.y, frame.intensity, *angles, footer))


def campaign_rows(system: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """`mlindex run` over the same frames with each number of ranks."""
    names, count = SYSTEMS[system], options.run_grains
    seeds = range(options.first_seed, options.first_seed + options.run_frames)
    frames = [(seed, frame_of(names, count, seed)) for seed in seeds]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def measure(label: str, some: Sequence[tuple[int, Frame]], ranks: int) -> tuple[dict[str, Any], dict[str, Any]]:
            place = folder / label
            place.mkdir()
            write_frames(place / "frames", some)
            campaign = place / "campaign.toml"
            text = CAMPAIGN.format(materials=json.dumps(list(names)), low=ENERGY[0], high=ENERGY[1])
            campaign.write_text(text)
            row = launch(campaign, ranks, folder / "cache")
            return row, answers(place / "run")

        print(f"filling the compilation cache for {system} {count}", file=sys.stderr)
        measure("warm", frames, 1)
        first: dict[str, Any] = {}
        for ranks in map(int, options.ranks.split(",")):
            row, records = measure(f"ranks{ranks}", frames, ranks)
            row = {"part": "run", "label": f"{system} {count}", "frames": len(records), **row}
            row["solved"] = sum(record["status"] == "solved" for record in records.values())
            row["frame_s"] = sum(record["seconds"] for record in records.values())
            row["frame_median_s"] = statistics.median(record["seconds"] for record in records.values())
            row["frames_per_second"] = len(records) / row["wall_s"]
            first = first or records
            row["speedup"] = (rows[0]["wall_s"] if rows else row["wall_s"]) / row["wall_s"]
            row["same_answers"] = sum(r["grains"] == records.get(k, {}).get("grains") for k, r in first.items())
            rows.append(row)
            print(
                f"run    {row['label']:11}{ranks:3} ranks{row['frames']:6} frames{row['solved']:6} solved"
                f"{row['wall_s']:9.1f} s wall{row['frame_s']:9.1f} s frames{row['frame_median_s']:8.3f} s median"
                f"{row['frames_per_second']:8.2f} /s"
                f"{row['speedup']:7.2f} x{max(row['peak_mib'], default=0):7} MiB{row['same_answers']:6} same",
                flush=True,
            )
    return rows


def about(options: argparse.Namespace) -> dict[str, Any]:
    """Settings, versions and hardware."""
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False, cwd=Path(__file__).parent
    ).stdout.strip()
    versions = {name: version(name) for name in ("jax", "numpy", "scipy")}
    versions |= {"mlindex": mlindex.__version__, "commit": commit, "python": platform.python_version()}
    hardware = {"cores": os.cpu_count(), "usable": len(os.sched_getaffinity(0)), "load": os.getloadavg()}
    hardware |= {"machine": platform.machine(), "device": jax.devices()[0].device_kind}
    hardware["threads"] = os.environ.get("OMP_NUM_THREADS")
    return {
        "settings": {k: v for k, v in vars(options).items() if k != "json"},
        "versions": versions,
        "hardware": hardware,
    }


def main() -> None:
    options = options_of()
    jax.config.update("jax_enable_compilation_cache", False)  # or the cold pass would not compile
    record = about(options)
    parts = options.only.split(",")
    rows: list[dict[str, Any]] = []
    if {"frames", "image"} & set(parts):
        head = f"{'':7}{'':11}{'spots':>6}{'found':>7}{'false':>6}{'frames/s':>9}{'wall ms':>9}{'CPU ms':>9}"
        print(f"{head}{'compile':>9}{'peak MiB':>9}  " + " ".join(f"{s:>7}" for s in STEPS))
    for kind in ("frames", "image"):
        for system in options.systems.split(",") if kind in parts else ():
            for count in map(int, options.grains.split(",")):
                rows.append(listed_row(system, count, options, image=kind == "image"))
    for system in options.run_systems.split(",") if "run" in parts else ():
        rows += campaign_rows(system, options)
    record["load_after"] = os.getloadavg()
    if options.json:
        options.json.write_text(json.dumps(record | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
