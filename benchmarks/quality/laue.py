"""Laue indexing on simulated frames with known truth, on frames without a crystal, on frames of other crystals, and on
measured frames; Lauetools beside mlindex on the same frames.

    python benchmarks/quality/laue.py --frames 20 --json out.json
    python benchmarks/quality/laue.py --only others,noise --frames 50
    python benchmarks/quality/laue.py --only clean,real --frames 20 --peer-python LT/bin/python --peer-frames 5
    python benchmarks/quality/laue.py --merge a.json b.json -o all.json

Frames have 0.2 px noise, 15 % of the spots dropped and 10 % spurious ones, on a 2016 x 2018 detector at 79.6 mm, 5-23
keV, grains of different volumes (log-normal, 0.5). A grain is found when one reported of its material lies within 0.1
degrees (up to symmetry; each true grain counts once); every other grain reported is false. The errors of orientation
and strain are those of the grains found, in the setting of the one reported; those of strain are the largest element.
Seconds are CPU seconds of the process that indexes, after one frame of warming up (mlindex) or with its tables made
(Lauetools). Every frame with its seed, every miss (by the spots the grain had) and every false grain is in the JSON.

`--systems`, `--grains`, `--only` and `--first-seed` cut a long run into pieces; `--merge` puts their JSONs together and
prints the table of all, in which a frame that is in two pieces is refused. The peer gets the first `--peer-frames` of
each row, and is told how many grains there are; a frame that it does not end in `--peer-limit` CPU seconds has its
grains counted as missed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a script, from anywhere

import mlindex
from benchmarks.quality.laue_peer import Answer, Lauetools, Reported
from benchmarks.quality.laue_real import REAL_PARTS, measured_rows, shown_measured
from mlindex.crystal.rotation import misorientation
from mlindex.crystal.strain import deviatoric_strain, u_from_ub
from mlindex.laue.geometry import Detector
from mlindex.laue.materials import Material, material
from mlindex.laue.search import Grain, index_frame
from mlindex.laue.simulate import Frame, random_grains, simulate_frame

DETECTOR = Detector(79.553, 979.32, 932.31, 0.37, 0.447)
ENERGY = (5.0, 23.0)  # keV
FOUND = 0.1  # degrees
SYSTEMS: dict[str, tuple[str, ...]] = {
    "Cu": ("Cu",),
    "Si": ("Si",),
    "Ti": ("Ti",),
    "GaN+Si": ("GaN", "Si"),
    "ZrO2": ("ZrO2",),
    "CuWO4": ("CuWO4",),
}
PARTS = ("clean", "strained", "noise", "others", *REAL_PARTS)


def options_of(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=20, help="of each system and number of grains")
    parser.add_argument("--systems", default=",".join(SYSTEMS), help="comma list")
    parser.add_argument("--grains", default="1,5,20", help="comma list; of each material of a system")
    parser.add_argument("--only", default=",".join(PARTS), help="comma list of parts")
    parser.add_argument("--first-seed", type=int, default=0, help="seeds run from here on")
    parser.add_argument("--strain", type=float, default=1e-3, help="of the part strained")
    parser.add_argument("--data", type=Path, default=os.environ.get("MLINDEX_DATA"), help="default: MLINDEX_DATA")
    parser.add_argument("--peer-python", type=Path, help="an interpreter that has Lauetools: it is measured too")
    parser.add_argument("--peer-frames", type=int, default=5, help="of each row")
    parser.add_argument("--peer-limit", type=float, default=300.0, help="CPU seconds a frame")
    parser.add_argument("--peer-set", action="append", default=[], metavar="KEY=VALUE", help="a setting of Lauetools")
    parser.add_argument("--merge", type=Path, nargs="+", help="JSONs of earlier runs; nothing is run")
    parser.add_argument("-o", "--json", type=Path, help="write everything here")
    options = parser.parse_args(arguments)
    if unknown := set(options.only.split(",")) - set(PARTS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}; the parts are {', '.join(PARTS)}")
    if unknown := set(options.systems.split(",")) - set(SYSTEMS):
        parser.error(f"there is no system {', '.join(sorted(unknown))}; the systems are {', '.join(SYSTEMS)}")
    if options.merge is None and "real" in options.only.split(",") and options.data is None:
        parser.error("the part real needs the data folder: give it with --data or in MLINDEX_DATA, or leave out real")
    return options


def frame_of(names: tuple[str, ...], count: int, seed: int, strain: float = 0.0) -> Frame:
    """A frame of `count` grains of each material."""
    rng = np.random.default_rng(seed)
    grains = random_grains(rng, [CRYSTALS[name] for name in names for _ in range(count)], strain)
    return simulate_frame(rng, grains, DETECTOR, volumes=np.exp(0.5 * rng.normal(size=len(grains))))


def noise_of(seed: int) -> Frame:
    """Random spots all over the detector or, with an odd seed, in a ring as of an amorphous body."""
    rng = np.random.default_rng(seed)
    n = int(10 ** rng.uniform(1, 3.3))
    x, y = rng.uniform(0.5, [[2016.5], [2018.5]], (2, n))
    if seed % 2:
        radius, angle = 600 + 30 * rng.normal(size=n), rng.uniform(0, 2 * np.pi, n)
        x, y = 1008 + radius * np.cos(angle), 1009 + radius * np.sin(angle)
    none, zero = np.zeros(n), np.zeros((n, 3), np.int64)
    return Frame(x, y, rng.exponential(size=n), none.astype(np.int64) - 1, zero, none, x, y, DETECTOR)


class _Crystals(dict[str, Material]):
    def __missing__(self, name: str) -> Material:
        self[name] = material(name)
        return self[name]


CRYSTALS = _Crystals()


def in_setting(ub: np.ndarray, u: np.ndarray, grain: Grain | Reported) -> np.ndarray:
    """The matrix `ub`, whose rotation is `u`, in the setting equivalent by symmetry that is nearest to `grain`."""
    rotations, b = grain.material.rotations, grain.material.b
    which = int(np.argmax(np.einsum("jk,mjk->m", u.T @ grain.u, rotations)))
    return ub @ np.linalg.inv(b) @ rotations[which] @ b


def compared(frame: Frame, found: Sequence[Grain | Reported]) -> dict[str, Any]:
    """Which true grain each reported one is, how far off, and what is false or missing."""
    used: dict[int, dict[str, Any]] = {}
    false = []
    for grain in found:
        # The truth in the equivalent setting of the answer: with strain, u and the strain depend on it
        truths = [in_setting(true.ub, true.u, grain) for true in frame.grains]
        same = [true.material is grain.material for true in frame.grains]
        angles = [
            float(misorientation(grain.u, u_from_ub(ub))) if one else 180.0
            for ub, one in zip(truths, same, strict=True)
        ]
        best = int(np.argmin(angles)) if angles else -1
        if best < 0 or angles[best] > FOUND or best in used:
            false.append({"score": grain.score, "matched": grain.n_matched, "predicted": grain.n_predicted})
            false[-1] |= {"material": grain.material.name, "nearest": angles[best] if best >= 0 else None}
            continue
        error = grain.strain - deviatoric_strain(truths[best], grain.material.cell)
        used[best] = {
            "misorientation": angles[best],
            "strain_error": error[np.triu_indices(3)].tolist(),
            "score": grain.score,
        }
    missed = [g.n_spots for i, g in enumerate(frame.grains) if i not in used]
    return {"true": len(frame.grains), "found": list(used.values()), "false": false, "missed_spots": missed}


class Mlindex:
    """The engine of this checkout, in this process."""

    name = "mlindex"

    def solve(self, frame: Frame, names: tuple[str, ...], counts: Sequence[int]) -> Answer:
        """The grains, and the seconds they took; `counts` is not looked at."""
        wall, cpu = time.perf_counter(), time.process_time()
        crystals = [CRYSTALS[name] for name in names]
        found = index_frame(frame.x, frame.y, frame.intensity, DETECTOR, crystals, energy=ENERGY)
        return Answer(found, time.process_time() - cpu, time.perf_counter() - wall)  # type: ignore[arg-type]


class Peer:
    """Lauetools, on as many frames of a row as it is given."""

    name = Lauetools.name

    def __init__(self, options: argparse.Namespace) -> None:
        settings = dict(pair.split("=", 1) for pair in options.peer_set)
        self.engine = Lauetools(
            options.peer_python, options.peer_limit, {key: json.loads(value) for key, value in settings.items()}
        )
        self.frames = options.peer_frames

    def solve(self, frame: Frame, names: tuple[str, ...], counts: Sequence[int]) -> Answer:
        """The grains, of which it is told the number."""
        crystals = [CRYSTALS[name] for name in names]
        return self.engine.solve(frame.x, frame.y, frame.intensity, DETECTOR, crystals, counts, ENERGY)


def summary_of(frames: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The figures of a row from its frames."""
    found = [one for r in frames for one in r["found"]]
    seconds = [r["cpu"] for r in frames]
    summary: dict[str, Any] = {
        "true": sum(r["true"] for r in frames),
        "found": len(found),
        "false": sum(len(r["false"]) for r in frames),
        "reported": len(found) + sum(len(r["false"]) for r in frames),
        "frames_failed": sum(bool(r["note"]) for r in frames),
        "cpu_median": float(np.median(seconds)),
        "cpu_worst": float(np.max(seconds)),
        "wall_median": float(np.median([r["wall"] for r in frames])),
    }
    if found:
        angles = np.array([one["misorientation"] for one in found])
        errors = np.array([one["strain_error"] for one in found])
        summary |= {
            "misorientation_median": float(np.median(angles)),
            "misorientation_worst": float(angles.max()),
            "strain_error_median": float(np.median(np.abs(errors).max(1))),
            "strain_bias": errors.mean(0).tolist(),
            "strain_bias_esd": (errors.std(0) / np.sqrt(len(errors))).tolist(),
            "lowest_score": float(min(one["score"] for one in found)),
        }
    return summary


def shown(row: dict[str, Any]) -> str:
    """One line of the table."""
    text = f"{row['label']:18s} {row['program']:9s} {len(row['frames']):4d} frames  "
    text += f"found {row['found']:5d}/{row['true']:5d}  false {row['false']:3d}"
    if row["found"]:
        text += f"  deg {row['misorientation_median']:.4f} / {row['misorientation_worst']:.4f}"
        text += f"  strain {row['strain_error_median']:.1e}, bias {np.abs(row['strain_bias']).max():.1e}"
    text += f"  CPU s {row['cpu_median']:.3f} / {row['cpu_worst']:.3f}"
    return text + (f"  ({row['frames_failed']} frames without an answer)" if row["frames_failed"] else "")


Case = tuple[int, Frame, Sequence[int]]  # seed, frame, grains of each material sought


def measured(
    part: str, label: str, names: tuple[str, ...], cases: Iterable[Case], engines: Sequence[Mlindex | Peer]
) -> list[dict[str, Any]]:
    """The rows of the engines over the same frames; a frame without a true grain of `names` has only false ones."""
    results: dict[str, list[dict[str, Any]]] = {engine.name: [] for engine in engines}
    for number, (seed, frame, counts) in enumerate(cases):
        for engine in engines:
            if isinstance(engine, Peer) and number >= engine.frames:
                continue
            if isinstance(engine, Mlindex) and number == 0:
                engine.solve(frame, names, counts)  # compiles
            answer = engine.solve(frame, names, counts)
            result = {"seed": seed, **compared(frame, answer.grains), "spots": len(frame.x)}
            if part == "others":
                result |= {"true": 0, "missed_spots": []}
            results[engine.name].append(result | {"cpu": answer.cpu, "wall": answer.seconds, "note": answer.note})
    rows = []
    for engine in engines:
        if not (frames := results[engine.name]):
            continue
        row: dict[str, Any] = {"part": part, "label": label, "program": engine.name, "materials": list(names)}
        if isinstance(engine, Peer):
            row["settings"] = engine.engine.settings_for([CRYSTALS[name] for name in names])
        rows.append(row | summary_of(frames) | {"frames": frames})
        print(shown(rows[-1]), flush=True)
    return rows


def simulated_rows(options: argparse.Namespace, engines: Sequence[Mlindex | Peer]) -> Iterator[dict[str, Any]]:
    """The parts on simulated frames, as chosen."""
    parts, systems = options.only.split(","), options.systems.split(",")
    seeds = range(options.first_seed, options.first_seed + options.frames)
    for part, strain in (("clean", 0.0), ("strained", options.strain)):
        for system in systems if part in parts else ():
            names = SYSTEMS[system]
            for count in map(int, options.grains.split(",")):
                cases = ((seed, frame_of(names, count, seed, strain), [count] * len(names)) for seed in seeds)
                label = f"{system} {count}" + (f" e={strain:g}" if strain else "")
                yield from measured(part, label, names, cases, engines)
    for system in systems if "noise" in parts else ():
        names = SYSTEMS[system]
        blank = ((seed, noise_of(seed), [1] * len(names)) for seed in seeds)
        yield from measured("noise", f"noise as {system}", names, blank, engines)
    crystals = sorted({name for system in systems for name in SYSTEMS[system]}) if "others" in parts else []
    for there, sought in ((a, b) for a in crystals for b in crystals if a != b):
        wrong = ((seed, frame_of((there,), 1 + seed % 5, seed), [1 + seed % 5]) for seed in seeds)
        yield from measured("others", f"{there} as {sought}", (sought,), wrong, engines)


def about(options: argparse.Namespace, peer: Peer | None) -> dict[str, Any]:
    """What a reader needs to run a piece again: settings, versions, hardware."""
    import jax

    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items() if k not in ("json", "merge")}
    cpu = Path("/proc/cpuinfo")
    model = (
        next((line.split(":")[1].strip() for line in cpu.read_text().splitlines() if "model name" in line), "")
        if (cpu.exists())
        else platform.processor()
    )
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False, cwd=Path(__file__).parent
    ).stdout.strip()
    return {
        "settings": settings | {"data": None},
        "versions": {name: version(name) for name in ("jax", "numpy", "scipy")}
        | {"mlindex": mlindex.__version__, "commit": commit, "python": platform.python_version()},
        "hardware": {"cpu": model, "cores": os.cpu_count(), "load": os.getloadavg()}
        | {"device": jax.devices()[0].device_kind, "threads": os.environ.get("OMP_NUM_THREADS")},
        "peer": None if peer is None else peer.engine.about,
    }


def merged(files: Sequence[Path]) -> dict[str, Any]:
    """The pieces of a run as one: rows of the same name with the frames of all; a seed must not be there twice."""
    pieces: list[dict[str, Any]] = []
    rows: dict[tuple[str, str, str], dict[str, Any]] = {}
    for path in files:
        record = json.loads(path.read_text())
        pieces += record["pieces"]
        for row in record["rows"]:
            key = (row["part"], row["label"], row["program"])
            if row["part"] in REAL_PARTS:  # the frame is always the same: the last piece counts
                rows[key] = row
                continue
            if key in rows and (row.get("settings") != rows[key].get("settings")):
                raise SystemExit(f"{path}: {' '.join(key)} was run with other settings of the peer than before")
            frames = [*rows.get(key, {"frames": []})["frames"], *row["frames"]]
            seeds = [frame["seed"] for frame in frames]
            if len(set(seeds)) < len(seeds):
                raise SystemExit(f"{path}: {' '.join(key)} has seeds that another of these files has too")
            frames.sort(key=lambda frame: frame["seed"])
            rows[key] = {k: row[k] for k in ("part", "label", "program", "materials")} | (
                {"settings": row["settings"]} if "settings" in row else {}
            )
            rows[key] |= summary_of(frames) | {"frames": frames}
    for key, row in rows.items():
        print(shown_measured(row) if key[0] in REAL_PARTS else shown(row))
    return {"pieces": pieces, "rows": list(rows.values())}


def run(options: argparse.Namespace) -> dict[str, Any]:
    """All parts that were chosen."""
    peer = None if options.peer_python is None else Peer(options)
    engines: list[Mlindex | Peer] = [Mlindex(), *([] if peer is None else [peer])]
    piece = about(options, peer)
    start = time.perf_counter()
    rows = list(simulated_rows(options, engines))
    if "real" in options.only.split(","):
        rows += measured_rows(options.data / "laue" / "real", None if peer is None else peer.engine)
    if peer is not None:
        peer.engine.close()
    piece["wall_seconds"] = time.perf_counter() - start
    return {"pieces": [piece], "rows": rows}


def main() -> None:
    """Run the parts, or put pieces together, and print the table."""
    options = options_of()
    record = run(options) if options.merge is None else merged(options.merge)
    if options.json:
        options.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
