"""Peer: the model-free ("analytic") engine of the reference ML-Index, `mlindex==0.1.3`; one JSON line in, one out.

Run by the interpreter of an environment of its own that has the reference package: it owns the import name `mlindex`.
In: `{"id", "q2": [...], "wavelength"}`. Out: `{"cells": [[a, b, c, alpha, beta, gamma, centring, bravais, M20], ...],
"seconds", "cpu", "unfinished": [lattices that the time did not allow]}`, best first; angstrom and degrees. The steps
are those of its command `mlindex.run_analytical` in its serial mode with its defaults: ten reference hkl, seed 12345.
"""

# ruff: noqa: E402
from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ[_name] = "1"

# cctbx before anything that brings SciPy: in the other order the first use of sgtbx ends in a segmentation fault
from cctbx import crystal, sgtbx, uctbx  # noqa: F401 isort: skip
from cctbx.array_family import flex  # noqa: F401 isort: skip
from cctbx.sgtbx.lattice_symmetry import metric_subgroups  # noqa: F401 isort: skip

import argparse
import json
import signal
import sys
import time

import numpy as np
from mlindex.command_line.run import BRAVAIS_LATTICES, _collect_results, _conventional_cell
from mlindex.optimization.AnalyticOptimizer import AnalyticOptimizer
from mlindex.optimization.MPOptimizer import LocalComm


class OutOfTime(Exception):
    """The processor time of a list is spent."""


def _alarm(*_: object) -> None:
    raise OutOfTime


def solve(request: dict, options: argparse.Namespace) -> dict:
    """The ranked cells of one list, from the lattices that were finished in time."""
    q2 = np.sort(np.array(request["q2"], float))
    found: list[dict] = []
    left = options.lattices.split(",")
    signal.setitimer(signal.ITIMER_PROF, options.cap)
    try:
        while left:
            optimizer = AnalyticOptimizer(
                bravais_lattice=left[0], comm=LocalComm(n_ranks=1), n_peaks=q2.size, n_ref_hkl_guess=10, seed=12345
            )
            zero = options.zero_error and request["wavelength"] is not None
            optimizer.run(q2=q2.copy(), zero_error=zero, wavelength=request["wavelength"])
            found = _collect_results(optimizer, left[0], found)
            del left[0]
    except OutOfTime:
        pass
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    found = _conventional_cell(found)
    return {"cells": [row(entry) for entry in found[:40]], "unfinished": left}


def row(entry: dict) -> list:
    """One cell of the answer; a hexagonal cell that kept the engine's own order has its 120 degrees put on gamma."""
    cell = [float(entry[key]) for key in ("a", "b", "c", "alpha", "beta", "gamma")]
    kind = entry["bravais_lattice"]
    if kind == "hP" and abs(cell[3] - 120) < 0.01:
        cell[3], cell[5] = cell[5], cell[3]
    return [*cell, kind[1], "oS" if kind == "oC" else kind, float(entry["M20"])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cap", type=float, default=60.0, help="seconds of processor time a list")
    parser.add_argument("--lattices", default=",".join(BRAVAIS_LATTICES), help="in the order in which they are tried")
    parser.add_argument("--zero-error", action="store_true", help="fit a zero shift where the wavelength is known")
    options = parser.parse_args()
    signal.signal(signal.SIGPROF, _alarm)
    answers = os.fdopen(os.dup(1), "w")  # the engine prints on standard output
    os.dup2(2, 1)
    for line in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            reply = solve(json.loads(line), options)
        except Exception as error:  # a list the peer cannot take is a failure of that list, not of the run
            reply = {"cells": [], "error": f"{type(error).__name__}: {error}"}
        reply |= {"seconds": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        print(json.dumps(reply), file=answers, flush=True)


if __name__ == "__main__":
    main()
