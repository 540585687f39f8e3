"""Peer: FOX's dichotomy indexing (`pyobjcryst.indexing.quick_index`), one JSON line in, one JSON line out.

Run by the interpreter that has Debian's `python3-pyobjcryst`, never by the environment of mlindex. In:
`{"id", "q2": [...], "wavelength"}`. Out: `{"cells": [[a, b, c, alpha, beta, gamma, centring, bravais, score], ...],
"seconds", "cpu"}`, best first; angstrom and degrees.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time

import numpy as np
from pyobjcryst.indexing import PeakList, quick_index

LETTER = {"CUBIC": "c", "TETRAGONAL": "t", "RHOMBOEDRAL": "h", "HEXAGONAL": "h", "ORTHOROMBIC": "o", "MONOCLINIC": "m"}


def peak_list(q2: list[float], wavelength: float | None, sigma: float) -> PeakList:
    """FOX's peaks from q2 (1/angstrom^2); `sigma` in degrees 2theta, 0 for FOX's own default of 0.0001 1/angstrom."""
    q = np.sqrt(np.array(q2))
    peaks = PeakList()
    if sigma:
        half = np.arcsin(np.clip(q * (wavelength or 1.5406) / 2, 0, 1))
        width = 2 * np.cos(half) / (wavelength or 1.5406) * np.radians(sigma / 2)
        rows = "".join(f"{1 / x:.7f} {s / x**2:.7f} 100\n" for x, s in zip(q, width, strict=True))  # d, sigma(d)
        path = f"/dev/shm/fox-{os.getpid()}.dat" if os.path.isdir("/dev/shm") else f"fox-{os.getpid()}.dat"
        with open(path, "w") as stream:
            stream.write(rows)
        try:
            peaks.ImportDhklDSigmaIntensity(path)
        finally:
            os.unlink(path)
    else:
        peaks.set_dobs_list([float(x) for x in q])
    return peaks


def solve(request: dict, options: argparse.Namespace) -> list[list]:
    """The ranked cells of one list."""
    peaks = peak_list(request["q2"], request["wavelength"], options.sigma)
    # In pyobjcryst 2.2.5 the option reads the wrong way round: True stops each system after the primitive lattice.
    explorer = quick_index(
        peaks,
        nb_refl=len(request["q2"]),
        try_centered_lattice=not options.centred,
        continue_on_sol=options.go_on,
        max_nb_spurious=options.spurious,
        verbose=False,
    )
    cells = []
    for lattice, score in sorted(explorer.GetSolutions(), key=lambda pair: -pair[1]):
        system, centring = str(lattice.lattice), str(lattice.centering).rsplit("_", 1)[1]
        kind = "R" if system == "RHOMBOEDRAL" else centring
        if system == "MONOCLINIC" and centring != "P":
            kind = "C"
        elif system == "ORTHOROMBIC" and centring in "ABC":
            kind = "S"
        cell = [float(x) for x in lattice.DirectUnitCell(degrees=True)[:6]]
        cells.append([*cell, centring, LETTER[system] + kind, float(score)])
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--centred", action="store_true", help="try centred lattices too")
    parser.add_argument("--go-on", action="store_true", help="FOX's continue_on_sol")
    parser.add_argument("--spurious", type=int, default=0, help="impurity lines allowed, tried from 0 upwards")
    parser.add_argument("--sigma", type=float, default=0.0, help="error in degrees 2theta; 0: FOX's default")
    options = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w")  # the C++ library prints on standard output
    os.dup2(2, 1)
    for line in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        reply: dict = {}
        try:
            reply["cells"] = solve(json.loads(line), options)
        except Exception as error:  # a list the peer cannot take is a failure of that list, not of the run
            reply = {"cells": [], "error": f"{type(error).__name__}: {error}"}
        reply |= {"seconds": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        print(json.dumps(reply), file=answers, flush=True)


if __name__ == "__main__":
    main()
