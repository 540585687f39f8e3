"""Training of the networks that recognise reflections: how long it takes and how many spots are right.

    python benchmarks/quality/laue_network.py --frames 20 --json out.json
    python benchmarks/quality/laue_network.py --materials ZrO2 --threads 2 --minutes 3
    python benchmarks/quality/laue_network.py --real tests/reference/lauetools

Frames are those of `simulate_frame`, which the training does not use: 0.2 px noise, 15 % of the spots dropped, 10 %
spurious ones, 5-23 keV, a 2016 x 2018 detector at 79.6 mm. `right`: of the spots whose reflection is in a class of the
network, those whose most probable class is theirs. `strict`: the same where "in no class" counts as an answer, a wrong
one. `all`: of all spots, also spurious ones and those of no class, those with the right answer. `listed`: the share of
all spots whose reflection is in a class. `sure`: spots a frame with a probability of 0.8 or more, and the share of them
that is right. `grains`: those with a candidate orientation within 0.1 degrees, and `candidates` a frame. `strained`
frames have 1e-3; in `unequal` ones the logarithm of the grains' volumes has a standard deviation of 1; in `dim` ones
spots below that share of the brightest are not there; in `dealt` ones the intensities are dealt at random, which is
worse than any real frame can be. `named`: the share of the spots given a class that are right. In the JSON
`reliability` has, by tenths of the probability, the number of spots, the mean probability and the share that is right.
All other frames are complete down to the faintest ray and have the intensities of the structure. Spots of no class are
most of a dense frame: read `right` with `listed`. CPU seconds are those of this process.

With --real: measured frames of germanium with a solution by Lauetools; right means of the spots it has indexed.
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

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a script, from anywhere

PARTS: dict[str, dict[str, Any]] = {
    "1": {"grains": 1},
    "5": {"grains": 5},
    "20": {"grains": 20},
    "5 strained": {"grains": 5, "strain": 1e-3},
    "5 unequal": {"grains": 5, "volume": 1.0},
    "5 dim 0.3 %": {"grains": 5, "faintest": 0.003},
    "5 dim 1 %": {"grains": 5, "faintest": 0.01},
    "5 dim 3 %": {"grains": 5, "faintest": 0.03},
    "5 dealt": {"grains": 5, "dealt": True},
}


def options_of(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--materials", default="Cu,Si,Ti,ZrO2,CuWO4", help="comma list")
    parser.add_argument("--frames", type=int, default=10, help="of each kind")
    parser.add_argument("--minutes", type=float, default=3.0, help="for a training, at most")
    parser.add_argument("--steps", type=int, help="of a training; the usual number without")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2, help="CPUs to use")
    parser.add_argument("--real", type=Path, help="folder with .fit files of Lauetools, and a .cor beside each")
    parser.add_argument("--json", type=Path, help="write everything here")
    return parser.parse_args(arguments)


def judged(recogniser: Any, crystal: Any, frames: int, first: int, kind: dict[str, Any]) -> dict[str, Any]:
    """Counts over frames of one kind."""
    import numpy as np

    from mlindex.crystal.rotation import misorientation
    from mlindex.laue.classes import class_of_hkl
    from mlindex.laue.geometry import direction_from_pixel, q_from_kf
    from mlindex.laue.recognise import candidates, recognise
    from mlindex.laue.simulate import random_grains, simulate_frame

    rest = {k: v for k, v in kind.items() if k not in ("grains", "strain", "dealt", "volume")}
    total: dict[str, float] = dict.fromkeys(
        ["spots", "listed", "right", "strict", "all", "named", "sure", "sure_right", "grains", "candidates", "seconds"],
        0.0,
    )
    bins = np.zeros((10, 3))
    for seed in range(first, first + frames):
        rng = np.random.default_rng([seed, 77])
        grains = random_grains(rng, [crystal] * kind["grains"], kind.get("strain", 0.0))
        if "volume" in kind:
            rest["volumes"] = np.exp(kind["volume"] * rng.normal(size=kind["grains"]))
        frame = simulate_frame(rng, grains, recogniser.detector, recogniser.energy, **rest)
        intensity = rng.permutation(frame.intensity) if kind.get("dealt") else frame.intensity
        q = q_from_kf(direction_from_pixel(frame.x, frame.y, recogniser.detector))
        recognise(recogniser, q, intensity)  # compiled
        started = time.process_time()
        said = recognise(recogniser, q, intensity)
        found = candidates(recogniser, said, q)
        total["seconds"] += time.process_time() - started
        truth = np.where(frame.grain >= 0, class_of_hkl(recogniser.classes, frame.hkl), -1)
        listed, none = truth >= 0, said.none > said.probability
        hit, sure = said.label == truth, said.probability >= 0.8
        total["spots"] += len(truth)
        total["listed"] += listed.sum()
        total["right"] += (listed & hit).sum()
        total["strict"] += (listed & hit & ~none).sum()
        total["all"] += np.where(listed, hit & ~none, none).sum()
        total["named"] += (~none).sum()
        place = np.minimum((10 * said.probability).astype(int), 9)
        for column, weight in enumerate((np.ones(len(truth)), said.probability, hit & listed)):
            bins[:, column] += np.bincount(place, weight, minlength=10)
        total["sure"] += sure.sum()
        total["sure_right"] += (sure & hit & listed).sum()
        total["candidates"] += len(found.u)
        for grain in frame.grains:
            away = misorientation(found.u, grain.u, crystal.rotations)
            total["grains"] += bool(away.min(initial=180.0) < 0.1)
    listed_spots = max(total["listed"], 1)
    return {
        "spots": total["spots"] / frames,
        "listed": total["listed"] / total["spots"],
        "right": total["right"] / listed_spots,
        "strict": total["strict"] / listed_spots,
        "all": total["all"] / total["spots"],
        "named": total["strict"] / max(total["named"], 1),
        "reliability": [[n, p / max(n, 1), right / max(n, 1)] for n, p, right in bins.tolist()],
        "sure": total["sure"] / frames,
        "sure_right": total["sure_right"] / max(total["sure"], 1),
        "grains": total["grains"] / (frames * kind["grains"]),
        "candidates": total["candidates"] / frames,
        "cpu_seconds": total["seconds"] / frames,
    }


def trained(name: str, detector: Any, options: argparse.Namespace) -> tuple[Any, Any, dict[str, Any]]:
    """A network and what it has cost."""
    from mlindex.laue.materials import material
    from mlindex.laue.train import Settings, train

    crystal = material(name)
    settings = Settings() if options.steps is None else Settings(steps=options.steps)
    wall, cpu = time.perf_counter(), time.process_time()
    recogniser = train(crystal, detector, seed=options.seed, minutes=options.minutes, settings=settings)
    cost = {"wall_seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
    print(
        f"{name}: {recogniser.classes.number} classes, {recogniser.card['steps']} steps"
        f"{' (cut by the time)' if recogniser.card['cut'] else ''}, {cost['wall_seconds']:.0f} s, "
        f"{cost['cpu_seconds']:.0f} s of CPU",
        flush=True,
    )
    return recogniser, crystal, cost


def simulated(options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row a material."""
    from mlindex.laue.geometry import Detector

    rows = []
    for name in options.materials.split(","):
        recogniser, crystal, cost = trained(name, Detector(79.553, 979.32, 932.31, 0.37, 0.447), options)
        print("  grains       spots listed  right strict    all  named   sure  right grains candidates     ms")
        row = {"material": name, **cost, "card": dict(recogniser.card), "frames": {}}
        for label, kind in PARTS.items():
            f = judged(recogniser, crystal, options.frames, 1000 * (options.seed + 1), kind)
            row["frames"][label] = f
            print(
                f"  {label:<12} {f['spots']:5.0f} {f['listed']:6.3f} {f['right']:6.3f} {f['strict']:6.3f} "
                f"{f['all']:6.3f} {f['named']:6.3f} {f['sure']:6.0f} "
                f"{f['sure_right']:6.3f} {f['grains']:6.3f} {f['candidates']:10.0f} "
                f"{1e3 * f['cpu_seconds']:6.0f}",
                flush=True,
            )
        rows.append(row)
    return rows


def measured(options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row a .fit file with a .cor beside it: what the network says of the spots that Lauetools has indexed."""
    import numpy as np
    from scipy.spatial import cKDTree

    from mlindex.formats.lauetools import read_cor, read_fit
    from mlindex.laue.classes import class_of_hkl
    from mlindex.laue.geometry import detector_from_calibration, direction_from_pixel, q_from_kf
    from mlindex.laue.recognise import recognise

    rows = []
    for path in sorted(options.real.glob("*.fit")):
        if not path.with_suffix(".cor").is_file():
            continue
        spots, fit = read_cor(path.with_suffix(".cor")), read_fit(path)[0]
        detector = detector_from_calibration(spots.calibration)
        recogniser, _, cost = trained("Ge", detector, options)
        said = recognise(recogniser, q_from_kf(direction_from_pixel(spots.x, spots.y, detector)), spots.intensity)
        away, at = cKDTree(np.stack([spots.x, spots.y], 1)).query(np.stack([fit.x, fit.y], 1))
        hkl = np.rint(fit.hkl).astype(np.int64)
        truth = class_of_hkl(recogniser.classes, hkl // np.maximum(np.gcd.reduce(hkl, axis=1), 1)[:, None])
        listed = (truth >= 0) & (away < 0.5)
        hit = (said.label[at] == truth) & listed
        sure = said.probability[at] >= 0.8
        row = {"file": path.name, "spots": len(spots.x), "indexed": len(truth), "listed": int(listed.sum())}
        row |= {
            "right": int(hit.sum()),
            "sure": int((sure & listed).sum()),
            "sure_right": int((sure & hit).sum()),
            **cost,
        }
        print(
            f"  {path.name}: of {row['spots']} spots Lauetools has indexed {row['indexed']}, "
            f"{row['listed']} in a class; right {row['right']}, sure {row['sure']}, of these right {row['sure_right']}",
            flush=True,
        )
        rows.append(row)
    return rows


def main(arguments: list[str] | None = None) -> None:
    options = options_of(arguments)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[: options.threads]))
    rows = measured(options) if options.real else simulated(options)
    if options.json:
        import jax

        about = {
            "python": platform.python_version(),
            "jax": jax.__version__,
            "devices": [str(d) for d in jax.devices()],
        }
        given = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()}
        options.json.write_text(json.dumps({"options": given, "machine": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
