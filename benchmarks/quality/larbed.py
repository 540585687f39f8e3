"""Inversion of LARBED patterns: R factor, thickness and time on the twelve cases of Chen's thesis, blind and otherwise.

    python benchmarks/quality/larbed.py --data DATA --json larbed.json [--only blind,start,noise,random] [--cases ...]

DATA holds `bloch/*_thesisformula_lobato.npz`. Rows, for each seed (of the search, and of random data):

- `blind`: from the intensities alone, every U within the search's limits, thickness 50 to 1000 A.
- `start`: from a model in which every U of the truth has an error of 30 % of its size in a random direction of the
  complex plane (U_-g its conjugate), the thickness unknown.
- `noise`: blind, with Poisson noise of 1e5 and 1e4 counts in the brightest place; `R truth` is the R factor of the
  pattern without noise.
- `random`: blind, random U (Hermitian, uniform within +-0.05 1/A^2) and thickness, 13 and 25 beams, 441 tilts, 70 mrad.

`U error` is sum |U - U_true| / sum |U_true| over all differences of beams, both with their origin at the same place.
Seconds are of the wall; the first of a kind of row compiles. `published` is the best R of the thesis.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a script, from anywhere

import jax
import numpy as np

from mlindex.bloch import beams, judge, propagate, search, simulate

CUBIC = (3.905, 3.905, 3.905, 90.0, 90.0, 90.0)
# Best published R factor, by the CNN or the ANN
PUBLISHED = {
    "SrTiO3-1": 0.303,
    "SrTiO3-2": 0.197,
    "SrTiO3-3": 0.176,
    "SrTiO3-4": 0.353,
    "SrTiO3-5": 0.510,
    "SrTiO3-6": 0.177,
    "SrTiO3-7": 0.169,
    "SrTiO3-8": 0.479,
    "SrTiO3-9": 0.262,
    "SrTiO3-10": 0.630,
    "ZnO-1": 0.495,
    "ZnO-2": 0.666,
}
LARGE = ("SrTiO3-10", "ZnO-1", "ZnO-2")
NOISY = ("SrTiO3-1", "SrTiO3-3", "SrTiO3-8")
COUNTS = (1e5, 1e4)
LIMITS = (50.0, 1000.0)
OFF = 0.3


def stored(data: Path, name: str) -> tuple[beams.Geometry, np.ndarray, np.ndarray, float]:
    """Geometry, intensities, U at the differences (U_000 = 0) and thickness (A) of a reference pattern."""
    with np.load(data / "bloch" / f"{name}_thesisformula_lobato.npz") as file:
        g = np.column_stack([file["g"], np.zeros(len(file["g"]))])
        dhkl, index = beams.differences(file["hkl"])
        at = beams.Geometry(file["hkl"], g, file["kt"], 1 / float(file["wavelength"]), dhkl, index)
        table = {tuple(h): u for h, u in zip(file["dhkl"].tolist(), file["U_d"], strict=True)}
        u = np.array([table[tuple(h)] for h in dhkl.tolist()], np.complex128)
        u[len(u) // 2] = 0.0
        return at, file["I"], u, float(file["thickness_A"])


def model(u: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Structure factors with an error of 30 % of their size each."""
    upper = u[len(u) // 2 + 1 :]
    upper = upper * (1 + OFF * np.exp(2j * np.pi * rng.random(len(upper))))
    return np.concatenate([upper[::-1].conj(), [0.0], upper])


def problems(data: Path, kinds: list[str], cases: list[str], seeds: range) -> Iterator[dict[str, Any]]:
    """Every row that is asked for, with its pattern and truth."""
    for kind in kinds:
        if kind == "random":
            tilt, _ = beams.tilt_disc(12, 70.0)
            for count in (13, 25):
                shells = beams.shell_beams(CUBIC, (0, 0, 1), count)
                at = beams.geometry(shells, tilt, cell=CUBIC, zone=(0, 0, 1), voltage_kv=120.0)
                for seed in seeds:
                    rng = np.random.default_rng(1000 + seed)
                    depth = rng.uniform(*LIMITS)
                    u = simulate.random_u(rng, at.dhkl, 0.05)
                    u[len(u) // 2] = 0.0
                    pattern = propagate.intensities(u, at, depth)
                    row = {"kind": kind, "case": f"random-{count}", "seed": seed, "at": at, "i": pattern, "u": u}
                    yield row | {"t": depth}
            continue
        for name in cases:
            if (kind == "start" and name not in LARGE) or (kind == "noise" and name not in NOISY):
                continue
            at, pattern, u, depth = stored(data, name)
            for seed in seeds:
                rng = np.random.default_rng(100 + seed)
                row = {"kind": kind, "case": name, "seed": seed, "at": at, "i": pattern, "u": u, "t": depth}
                if kind == "noise":
                    for counts in COUNTS:
                        seen = simulate.counted(rng, pattern, counts)
                        yield row | {"i": seen, "counts": counts, "r_truth": judge.r_factor(seen, pattern)}
                else:
                    yield row | ({"start": model(u, rng)} if kind == "start" else {})


def solved(row: dict[str, Any], seconds: float) -> dict[str, Any]:
    """The figures of one row."""
    at = row["at"]
    wall, cpu = time.perf_counter(), time.process_time()
    best = search.invert(row["i"], at, start=row.get("start"), thickness=LIMITS, seed=row["seed"], seconds=seconds)[0]
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    truth = judge.with_origin(row["u"], at)
    # The strongest basis may be another one of the same strength: all origins at halves of the cell are tried
    off = min(
        float(np.abs(best.u * np.exp(1j * np.pi * (at.dhkl @ np.array(shift))) - truth).sum())
        for shift in np.ndindex(2, 2, 2)
    )
    return {
        **{k: row[k] for k in ("kind", "case", "seed", "counts", "r_truth") if k in row},
        "beams": at.shape[1],
        "tilts": at.shape[0],
        "r_factor": best.r_factor,
        "published": PUBLISHED.get(row["case"]),
        "thickness_nm": best.thickness / 10,
        "thickness_error_nm": abs(best.thickness - row["t"]) / 10,
        "thickness_sigma_nm": best.thickness_sigma / 10,
        "u_error": off / float(np.abs(truth).sum()),
        "symmetry": best.symmetry,
        "agreement": best.agreement,
        "undetermined": best.undetermined,
        "seconds": wall,
        "cpu_seconds": cpu,
    }


def main() -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("MLINDEX_DATA"))
    parser.add_argument("--only", default="blind,start,noise,random")
    parser.add_argument("--cases", default=",".join(PUBLISHED))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=1200.0, help="of the search of one pattern")
    parser.add_argument("--json", type=Path, default=None)
    asked = parser.parse_args()
    if asked.data is None:
        parser.error("where is the data? give --data or set MLINDEX_DATA")
    told: dict[str, Any] = {
        "command": " ".join(["benchmarks/quality/larbed.py", *(a for a in sys.argv[1:] if not a.startswith("/"))]),
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores, {jax.default_backend()}",
        "versions": {"jax": jax.__version__, "numpy": np.__version__, "python": platform.python_version()},
        "rows": [],
    }
    print("kind   case        seed         R  R truth  publ.  t err nm    U err  sym.     s")
    seeds = range(asked.first_seed, asked.first_seed + asked.seeds)
    for row in problems(asked.data, asked.only.split(","), asked.cases.split(","), seeds):
        one = solved(row, asked.seconds)
        told["rows"].append(one)
        truth = f"{one['r_truth']:.4f}" if "r_truth" in one else ""
        published = f"{one['published']:.3f}" if one["published"] else ""
        print(
            f"{one['kind']:7s}{one['case']:11s}{one['seed']:5d}{one['r_factor']:10.2g}{truth:>9s}{published:>7s}"
            f"{one['thickness_error_nm']:10.2g}{one['u_error']:9.2g}  {one['symmetry']:4s}{one['seconds']:6.1f}",
            flush=True,
        )
        if asked.json:
            asked.json.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
