"""Laue indexing on simulated frames with known truth, on frames without a crystal, and on frames of other crystals.

    python benchmarks/quality/laue.py --frames 20 --json out.json
    python benchmarks/quality/laue.py --only others,noise --frames 50

Frames have 0.2 px noise, 15 % of the spots dropped and 10 % spurious ones, on a 2016 x 2018 detector at 79.6 mm, 5-23
keV, grains of different volumes (log-normal, 0.5). A grain is found when one reported of its material lies within 0.1
degrees (up to symmetry; each true grain counts once); every other grain reported is false. The errors of orientation
and strain are those of the grains found, in the setting of the one reported. Seconds are CPU seconds of this process,
after one frame of warming up; every miss and every false grain is listed in the JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a script, from anywhere

from mlindex.crystal.rotation import misorientation
from mlindex.crystal.strain import deviatoric_strain, u_from_ub
from mlindex.laue.geometry import Detector
from mlindex.laue.materials import Material, material
from mlindex.laue.search import Grain, index_frame
from mlindex.laue.simulate import Frame, random_grains, simulate_frame

DETECTOR = Detector(79.553, 979.32, 932.31, 0.37, 0.447)
FOUND = 0.1  # degrees
SYSTEMS: dict[str, tuple[str, ...]] = {
    "Cu": ("Cu",),
    "Si": ("Si",),
    "Ti": ("Ti",),
    "GaN+Si": ("GaN", "Si"),
    "ZrO2": ("ZrO2",),
    "CuWO4": ("CuWO4",),
}
PARTS = ("clean", "strained", "noise", "others")


def options_of(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=20, help="of each system and number of grains")
    parser.add_argument("--systems", default=",".join(SYSTEMS), help="comma list")
    parser.add_argument("--grains", default="1,5,20", help="comma list; of each material of a system")
    parser.add_argument("--only", default=",".join(PARTS), help="comma list of parts")
    parser.add_argument("--first-seed", type=int, default=0, help="seeds run from here on")
    parser.add_argument("--strain", type=float, default=1e-3, help="of the part strained")
    parser.add_argument("--json", type=Path, help="write everything here")
    return parser.parse_args(arguments)


def frame_of(names: tuple[str, ...], count: int, seed: int, strain: float = 0.0) -> Frame:
    """A frame of `count` grains of each material."""
    rng = np.random.default_rng(seed)
    grains = random_grains(rng, [CRYSTALS[name] for name in names for _ in range(count)], strain)
    return simulate_frame(rng, grains, DETECTOR, volumes=np.exp(0.5 * rng.normal(size=len(grains))))


class _Crystals(dict[str, Material]):
    def __missing__(self, name: str) -> Material:
        self[name] = material(name)
        return self[name]


CRYSTALS = _Crystals()


def indexed(frame: Frame, names: tuple[str, ...]) -> tuple[list[Grain], float]:
    """The grains, and the CPU seconds they took."""
    start = time.process_time()
    found = index_frame(frame.x, frame.y, frame.intensity, DETECTOR, [CRYSTALS[name] for name in names])
    return found, time.process_time() - start


def in_setting(ub: np.ndarray, u: np.ndarray, grain: Grain) -> np.ndarray:
    """The matrix `ub`, whose rotation is `u`, in the setting equivalent by symmetry that is nearest to `grain`."""
    rotations, b = grain.material.rotations, grain.material.b
    which = int(np.argmax(np.einsum("jk,mjk->m", u.T @ grain.u, rotations)))
    return ub @ np.linalg.inv(b) @ rotations[which] @ b


def compared(frame: Frame, found: list[Grain]) -> dict[str, Any]:
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
            continue
        error = grain.strain - deviatoric_strain(truths[best], grain.material.cell)
        used[best] = {
            "misorientation": angles[best],
            "strain_error": error[np.triu_indices(3)].tolist(),
            "score": grain.score,
        }
    missed = [g.n_spots for i, g in enumerate(frame.grains) if i not in used]
    return {"true": len(frame.grains), "found": list(used.values()), "false": false, "missed_spots": missed}


def row(label: str, results: list[dict[str, Any]], seconds: list[float]) -> dict[str, Any]:
    """One line of the table."""
    true = sum(r["true"] for r in results)
    found = [one for r in results for one in r["found"]]
    false = sum(len(r["false"]) for r in results)
    summary: dict[str, Any] = {
        "label": label,
        "true": true,
        "found": len(found),
        "false": false,
        "cpu_median": float(np.median(seconds)),
        "cpu_worst": float(np.max(seconds)),
    }
    text = f"{label:18s} found {len(found):5d}/{true:5d}  false {false:3d}"
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
        text += f"  deg {np.median(angles):.4f} / {angles.max():.4f}"
        text += f"  strain {summary['strain_error_median']:.1e}, bias {np.abs(errors.mean(0)).max():.1e}"
    print(f"{text}  CPU s {summary['cpu_median']:.3f} / {summary['cpu_worst']:.3f}", flush=True)
    return summary


def with_crystals(options: argparse.Namespace, strain: float) -> list[dict[str, Any]]:
    """Frames of each system, with each number of grains."""
    rows = []
    for system in options.systems.split(","):
        names = SYSTEMS[system]
        for count in map(int, options.grains.split(",")):
            indexed(frame_of(names, count, options.first_seed), names)  # compiles
            results, seconds = [], []
            for seed in range(options.first_seed, options.first_seed + options.frames):
                frame = frame_of(names, count, seed, strain)
                found, cpu = indexed(frame, names)
                results.append({"seed": seed, **compared(frame, found)})
                seconds.append(cpu)
            label = f"{system} {count}" + (f" e={strain:g}" if strain else "")
            rows.append(row(label, results, seconds) | {"frames": results})
    return rows


def noise(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Random spots all over the detector, and in a ring as of an amorphous body."""
    rows = []
    for system in options.systems.split(","):
        results, seconds = [], []
        for seed in range(options.first_seed, options.first_seed + options.frames):
            rng = np.random.default_rng(seed)
            n = int(10 ** rng.uniform(1, 3.3))
            x, y = rng.uniform(0.5, [[2016.5], [2018.5]], (2, n))
            if seed % 2:
                radius, angle = 600 + 30 * rng.normal(size=n), rng.uniform(0, 2 * np.pi, n)
                x, y = 1008 + radius * np.cos(angle), 1009 + radius * np.sin(angle)
            none, zero = np.zeros(n), np.zeros((n, 3), np.int64)
            bright = rng.exponential(size=n)
            frame = Frame(x, y, bright, none.astype(np.int64) - 1, zero, none, x, y, DETECTOR)
            found, cpu = indexed(frame, SYSTEMS[system])
            results.append({"seed": seed, **compared(frame, found)})
            seconds.append(cpu)
        rows.append(row(f"noise as {system}", results, seconds) | {"frames": results})
    return rows


def others(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Frames of one material, asked for another; `frames` of each pair, with 1 to 5 grains."""
    names = sorted({name for system in options.systems.split(",") for name in SYSTEMS[system]})
    rows = []
    for there in names:
        for sought in names:
            if there == sought:
                continue
            results, seconds = [], []
            for seed in range(options.first_seed, options.first_seed + options.frames):
                frame = frame_of((there,), 1 + seed % 5, seed)
                found, cpu = indexed(frame, (sought,))
                results.append({"seed": seed, **compared(frame, found), "true": 0})
                seconds.append(cpu)
            rows.append(row(f"{there} as {sought}", results, seconds) | {"frames": results})
    return rows


def main() -> None:
    """Run the parts and print the table."""
    options = options_of()
    parts = options.only.split(",")
    start = time.perf_counter()
    record: dict[str, Any] = {
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()},
        "machine": {"python": platform.python_version(), "cores": os.cpu_count()},
    }
    if "clean" in parts:
        record["clean"] = with_crystals(options, 0.0)
    if "strained" in parts:
        record["strained"] = with_crystals(options, options.strain)
    if "noise" in parts:
        record["noise"] = noise(options)
    if "others" in parts:
        record["others"] = others(options)
    record["wall_seconds"] = time.perf_counter() - start
    if options.json:
        options.json.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
