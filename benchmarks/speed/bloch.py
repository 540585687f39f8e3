"""Tilts a second of the dynamical intensities, by way, number of beams and precision, and peers on the same patterns.

    python benchmarks/speed/bloch.py --json bloch.json --abtem PYTHON --py4dstem PYTHON

PYTHON is the interpreter of an environment that has the peer (abTEM; py4DSTEM needs numpy < 2): see `peer_bloch.py`.
Everything runs on one core, unless --cores says otherwise for mlindex; on another device than the CPU the times are of
the wall. Times are the least of several, of the processor, from NumPy arrays in to NumPy arrays out, without the first
call, which compiles. `crystal` has the structure factors of the crystal, which are real along these zone axes;
`random` has complex ones. `LAPACK` is numpy.linalg.eigh, a batch at once. `error` is the largest difference from it.
mlindex takes both tilts k and -k from one series where both are there, as here, whatever the crystal; other symmetry of
crystal or tilts is not used. `mlindex, one half` has the tilts of half the disc, no two opposite.
"""

# ruff: noqa: E402
from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):  # before NumPy is imported
    os.environ[_name] = "1"

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a script, from anywhere

import numpy as np

CUBIC = (3.905, 3.905, 3.905, 90.0, 90.0, 90.0)
HEXAGONAL = (3.2498, 3.2498, 5.2066, 90.0, 90.0, 120.0)
SRTIO3 = ("P m -3 m", [("Sr", 0.0, 0.0, 0.0), ("Ti", 0.5, 0.5, 0.5), ("O", 0.5, 0.5, 0.0)])
ZNO = ("P 63 m c", [("Zn", 1 / 3, 2 / 3, 0.0), ("O", 1 / 3, 2 / 3, 0.382)])
# name, cell, sites, beams, steps of tilt, range mrad, thickness A, kV: cases of the thesis
CASES: list[tuple[str, Any, Any, int, int, float, float, float]] = [
    ("SrTiO3-1", CUBIC, SRTIO3, 13, 12, 70.0, 300.0, 120.0),
    ("SrTiO3-8", CUBIC, SRTIO3, 25, 12, 70.0, 300.0, 120.0),
    ("SrTiO3-10", CUBIC, SRTIO3, 69, 12, 70.0, 300.0, 120.0),
    ("ZnO-2", HEXAGONAL, ZNO, 97, 9, 80.0, 500.0, 60.0),
]
WAYS = ("eigenvectors", "squaring", "chebyshev", None)  # None: as `intensities` chooses


def least(run: Callable[[], Any], seconds: float, clock: Callable[[], float]) -> float:
    """The least time of a call, from repeats for at least so many seconds, and three at least."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        start = clock()
        run()
        times.append(clock() - start)
    return min(times)


def by_lapack(u: np.ndarray, at: Any, thickness: float) -> np.ndarray:
    """Intensities by NumPy, a batch of all tilts at once."""
    matrix = u[at.index] + at.excitation[:, :, None] * np.eye(len(at.hkl))
    if not np.abs(matrix.imag).max() > 1e-14:
        matrix = matrix.real
    w, v = np.linalg.eigh(matrix)
    psi = v @ (np.exp(1j * np.pi * thickness / at.k0 * w) * v[:, at.origin].conj())[..., None]
    return np.abs(psi[..., 0]) ** 2


def peer(name: str, python: str, case: dict[str, Any]) -> dict[str, Any]:
    """What `peer_bloch.py` says of a case."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "case.npz"
        np.savez(path, **case)
        script = str(Path(__file__).with_name("peer_bloch.py"))
        answer = subprocess.run([python, script, name, str(path)], capture_output=True, text=True, check=False)
    if answer.returncode:
        raise SystemExit(f"{name} failed:\n{answer.stderr}")
    return json.loads(answer.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--cores", type=int, default=1, help="for mlindex; LAPACK and the peers have one")
    parser.add_argument("--seconds", type=float, default=1.0, help="of repeats for each figure")
    parser.add_argument("--abtem", metavar="PYTHON")
    parser.add_argument("--py4dstem", metavar="PYTHON")
    options = parser.parse_args()
    os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[: options.cores]))

    import jax

    from mlindex.bloch.beams import geometry, shell_beams, tilt_disc
    from mlindex.bloch.propagate import intensities
    from mlindex.bloch.simulate import random_u
    from mlindex.crystal.electrons import electron_structure_factors
    from mlindex.crystal.metric import b_matrix_from_cell
    from mlindex.crystal.scattering import structure_from_sites
    from mlindex.crystal.spacegroup import space_group

    device = jax.default_backend()
    clock = time.process_time if device == "cpu" else time.perf_counter
    load, rows = os.getloadavg(), []
    print(f"{'case':10}{'U':9}{'beams':>6}{'tilts':>6}  {'program':18}{'precision':11}{'tilts/s':>10}{'error':>10}")

    def told(row: dict[str, Any]) -> None:
        rows.append(row)
        what = f"{row['case']:10}{row['u']:9}{row['beams']:6}{row['tilts']:6}  {row['program']:18}{row['precision']:11}"
        print(f"{what}{row['tilts_per_s']:10.0f}{row['error']:10.1e}", flush=True)

    for name, cell, (group, sites), beams, steps, angle, thickness, kv in CASES:
        hkl, tilt = shell_beams(cell, (0, 0, 1), beams), tilt_disc(steps, angle)[0]
        at = geometry(hkl, tilt, cell=cell, zone=(0, 0, 1), voltage_kv=kv)
        atoms = structure_from_sites(space_group(group), sites)
        crystal = electron_structure_factors(atoms, cell, at.dhkl, kv)
        crystal[len(crystal) // 2] = 0  # the mean potential, a phase
        m, n = at.shape
        for kind, u in (("crystal", crystal), ("random", random_u(np.random.default_rng(0), at.dhkl))):
            here = {"case": name, "u": kind, "beams": n, "tilts": m}
            wanted = by_lapack(u, at, thickness)
            took = least(partial(by_lapack, u, at, thickness), options.seconds, time.process_time)
            told(here | {"program": "LAPACK", "precision": "double", "tilts_per_s": m / took, "error": 0.0})
            half = at.part(np.arange(m // 2))
            error = float(np.abs(intensities(u, half, thickness) - wanted[: m // 2]).max())
            row = {"program": "mlindex, one half", "precision": "double", "tilts": m // 2, "error": error}
            took = least(partial(intensities, u, half, thickness), options.seconds, clock)
            told(here | row | {"tilts_per_s": (m // 2) / took})
            for way in WAYS:
                for single in (False, True):
                    run = partial(intensities, u, at, thickness, method=way, single=single)
                    error = float(np.abs(run() - wanted).max())
                    row = {"program": way or "mlindex", "precision": "single" if single else "double", "error": error}
                    told(here | row | {"tilts_per_s": m / least(run, options.seconds, clock)})
            case = {"hkl": at.hkl, "g": at.g, "dhkl": at.dhkl, "u": u, "tilt": tilt, "thickness": thickness}
            case |= {
                "voltage_kv": kv,
                "lattice": np.linalg.inv(b_matrix_from_cell(np.array(cell))),
                "intensity": wanted,
            }
            for program, python in (("abtem", options.abtem), ("py4dstem", options.py4dstem)):
                if python is None:
                    continue
                answer = peer(program, python, case)
                answer |= {"tilts_per_s": 1e3 / answer["cpu_ms"], "error": answer["at_zero"]}
                told(here | {"program": program, "precision": "double"} | answer)
                best = next(r for r in rows[::-1] if r["program"] == "mlindex" and r["precision"] == "double")
                rows[-1]["times_slower"] = best["tilts_per_s"] / rows[-1]["tilts_per_s"]
                print(f"{'':49}mlindex is {rows[-1]['times_slower']:.0f} times faster")
    if options.json:
        hardware = {"cores": options.cores, "load": load, "machine": platform.machine()}
        hardware["device"] = jax.devices()[0].device_kind
        versions = {"python": platform.python_version(), "jax": jax.__version__, "numpy": np.__version__}
        options.json.write_text(json.dumps({"hardware": hardware, "versions": versions, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
