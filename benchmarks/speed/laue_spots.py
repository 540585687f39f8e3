"""How fast the spots of a Laue frame are found, and how well, beside the same steps in SciPy.

    python benchmarks/speed/laue_spots.py --frame IMAGE [--frame IMAGE ...] --json benchmarks/results/laue_spots.json

Frames of 2018 x 2016 pixels are simulated with 60, 400 and 1500 spots; --frame adds measured ones. The peer does in
SciPy what one would write down first: background by a median filter on each eighth pixel, a Gaussian filter, a maximum
filter, and `curve_fit` of an elliptical Gaussian a spot. Times are those of warm calls with the frame in memory: the
least and the median of the wall clock, and the CPU seconds of the process. `found`, `extra` and `rms` (pixels) compare
with the truth.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a script, from anywhere

import jax
import numpy as np
import scipy
import scipy.ndimage
import scipy.optimize
from scipy.spatial import cKDTree

from mlindex.formats.images import read_image
from mlindex.laue.spots import SpotSettings, find_spots

SHAPE = (2018, 2016)
THRESHOLD = SpotSettings().threshold


def simulated(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A frame with a broad halo and Poisson noise, and the positions (x, y), from 1, of its spots, 8 pixels apart."""
    rng = np.random.default_rng(seed)
    ny, nx = SHAPE
    y, x = np.mgrid[:ny, :nx]
    frame = 200 + 800 * np.exp(-np.hypot(x - nx / 2, y - ny / 2) / 600)
    spots: list[np.ndarray] = []
    while len(spots) < count:
        spot = rng.uniform(10, np.array([nx, ny]) - 10)
        if all(np.hypot(*(spot - other)) > 8 for other in spots):
            spots.append(spot)
    for sx, sy in spots:
        size, width, flux = 12, rng.uniform(0.8, 1.5, 2), 10 ** rng.uniform(3.3, 5.3)
        j, i = round(sx), round(sy)
        rows, columns = slice(max(i - size, 0), i + size), slice(max(j - size, 0), j + size)
        u, v = (x[rows, columns] - sx) / width[0], (y[rows, columns] - sy) / width[1]
        frame[rows, columns] += flux / (2 * np.pi * width.prod()) * np.exp(-(u**2 + v**2) / 2)
    return rng.poisson(frame).astype(np.float32), np.array(spots) + 1


def peer(image: np.ndarray) -> np.ndarray:
    """Positions (x, y), from 1, by SciPy."""
    coarse = scipy.ndimage.median_filter(image[::8, ::8], 7, mode="nearest")
    net = image - scipy.ndimage.zoom(coarse, np.array(image.shape) / coarse.shape, order=1)
    smooth = scipy.ndimage.gaussian_filter(net, 1.0)
    noise = 1.4826 * np.median(np.abs(smooth))
    top = (scipy.ndimage.maximum_filter(smooth, 7) == smooth) & (smooth > THRESHOLD * noise)
    v, u = np.mgrid[-5:6, -5:6]

    def model(_: Any, a: float, b: float, x: float, y: float, p: float, q: float, r: float) -> np.ndarray:
        return (a * np.exp(-0.5 * (p * (u - x) ** 2 + 2 * q * (u - x) * (v - y) + r * (v - y) ** 2)) + b).ravel()

    found = []
    for i, j in np.argwhere(top):
        window = net[i - 5 : i + 6, j - 5 : j + 6]
        if window.shape != (11, 11):
            continue
        try:
            fit, _ = scipy.optimize.curve_fit(model, 0, window.ravel(), [net[i, j], 0, 0, 0, 0.7, 0, 0.7], maxfev=400)
        except RuntimeError:
            continue
        if max(abs(fit[2]), abs(fit[3])) < 3:
            found.append((j + fit[2] + 1, i + fit[3] + 1))
    return np.array(found).reshape(-1, 2)


def timed(call: Callable[[], Any], repeats: int) -> tuple[Any, dict[str, float]]:
    """The last result of warm calls, and milliseconds: least, median, CPU."""
    walls, cpus = [], []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        result = call()
        walls.append(1e3 * (time.perf_counter() - wall))
        cpus.append(1e3 * (time.process_time() - cpu))
    return result, {"least_ms": min(walls), "median_ms": statistics.median(walls), "cpu_ms": statistics.median(cpus)}


def compared(found: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """How many of the true spots were found within 1.5 pixels, how many more, and the distance."""
    if not len(found):
        return {"found": 0.0, "extra": 0.0, "rms": float("nan")}
    distance, index = cKDTree(found).query(truth)
    near = distance < 1.5
    return {
        "found": float(np.mean(near)),
        "extra": float(len(found) - len(np.unique(index[near]))),
        "rms": float(np.sqrt(np.mean(distance[near] ** 2))),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frame", action="append", default=[], help="a measured frame; may be given several times")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    load = os.getloadavg()
    frames: list[tuple[str, np.ndarray, float, np.ndarray | None]] = []
    for count in (60, 400, 1500):
        image, truth = simulated(count, count)
        frames.append((f"simulated {count}", image, np.inf, truth))
    for path in options.frame:
        measured = read_image(path)
        frames.append((Path(path).name, measured.data, measured.saturation or np.inf, None))
    rows: list[dict[str, Any]] = []
    print(f"{'frame':26}{'':9}{'cold s':>8}{'least ms':>10}{'median':>9}{'CPU':>9}  spots  found   extra    rms px")
    for name, image, saturation, truth in frames:
        start = time.perf_counter()
        find_spots(image, saturation=saturation)
        cold = time.perf_counter() - start
        spots, took = timed(lambda i=image, s=saturation: find_spots(i, saturation=s), options.repeats)  # type: ignore[misc]
        position, slow = timed(lambda i=image: peer(i), 1)  # type: ignore[misc]
        for who, first, found, times in (
            ("mlindex", cold, np.stack([spots.x, spots.y], 1), took),
            ("scipy", float("nan"), position, slow),
        ):
            row = {"frame": name, "program": who, "cold_s": first, "spots": len(found), **times}
            row |= compared(found, truth) if truth is not None else {}
            rows.append(row)
            quality = f"{row['found']:7.3f}{row['extra']:8.0f}{row['rms']:10.4f}" if truth is not None else ""
            print(
                f"{name:26}{who:9}{first:8.2f}{row['least_ms']:10.1f}{row['median_ms']:9.1f}{row['cpu_ms']:9.1f}"
                f"{row['spots']:7}{quality}"
            )
    if options.json:
        hardware = {
            "cores": os.cpu_count(),
            "load": load,
            "machine": platform.machine(),
            "device": jax.devices()[0].device_kind,
        }
        versions = {"python": platform.python_version(), "jax": jax.__version__, "numpy": np.__version__}
        versions["scipy"] = scipy.__version__
        written = {"repeats": options.repeats, "hardware": hardware, "versions": versions, "rows": rows}
        options.json.write_text(json.dumps(written, indent=1) + "\n")


if __name__ == "__main__":
    main()
