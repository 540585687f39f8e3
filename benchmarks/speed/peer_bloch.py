"""Peers of `bloch.py`: dynamical intensities by abTEM or py4DSTEM for the beams, tilts and U of a file.

    PYTHON benchmarks/speed/peer_bloch.py abtem|py4dstem CASE.npz

Run by the interpreter of an environment of its own that has the peer, on one core. Both decompose one matrix a tilt.
What does not depend on the tilt is prepared before the clock starts: structure factors (given, so that all programs
have the same), beams, caches. Of abTEM that is called which its class `BlochWaves` calls, without the selection of
beams; its ensembles call the same, one orientation after the other, and with its precision float32 the matrix is
complex128 all the same. Prints one JSON line: milliseconds a tilt, of the processor and of the wall; the largest
difference from the intensities in the file at tilt zero and anywhere (the geometries of a tilt differ).
"""

# ruff: noqa: E402
from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ[_name] = "1"

import json
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np


def abtem(case: Any) -> Callable[[int], np.ndarray]:
    """The intensities of one tilt by abTEM: the crystal is turned."""
    import abtem as package
    from abtem.bloch.dynamical import calculate_dynamical_scattering, calculate_structure_matrix
    from abtem.core.constants import kappa
    from abtem.core.energy import energy2sigma, energy2wavelength
    from ase.cell import Cell
    from scipy.spatial.transform import Rotation

    package.config.set({"precision": "float64"})
    energy = float(case["voltage_kv"]) * 1e3
    unit = energy2sigma(energy) / (kappa * energy2wavelength(energy) * np.pi)
    factors, dhkl, hkl = case["u"].conj() / unit, case["dhkl"], case["hkl"]  # abTEM has exp(-2 pi i k.r)
    grid = tuple(int(n) for n in 2 * np.abs(dhkl).max(0) + 1)
    tilt = case["tilt"] / 1e3
    size = np.maximum(np.linalg.norm(tilt, axis=1, keepdims=True), 1e-300)
    turned = tilt * np.arcsin(size) / size
    turns = Rotation.from_rotvec(np.column_stack([turned[:, 1], -turned[:, 0], 0 * size])).as_matrix()
    thickness = np.array(float(case["thickness"]))

    def one(k: int) -> np.ndarray:
        cell = Cell(case["lattice"] @ turns[k].T)
        matrix = calculate_structure_matrix(factors, dhkl, hkl, cell, energy, grid)
        return np.abs(calculate_dynamical_scattering(matrix, hkl, cell, energy, thickness)) ** 2

    return one


def py4dstem(case: Any) -> Callable[[int], np.ndarray]:
    """The intensities of one tilt by py4DSTEM: the beam is turned, the surface stays."""
    from py4DSTEM.process.diffraction import Crystal
    from py4DSTEM.process.diffraction.crystal_bloch import DynamicalMatrixCache

    crystal = Crystal(np.zeros((1, 3)), np.array([1]), case["lattice"])
    crystal.setup_diffraction(float(case["voltage_kv"]) * 1e3)
    # its matrix has U_(g_q - g_p) at p, q
    crystal.Ug_dict = {tuple(h): u for h, u in zip(case["dhkl"].tolist(), case["u"].conj(), strict=True)}
    crystal.Ug_dict[(0, 0, 0)] = 0j

    class Beams:
        """As a PointList: a structured array that can be copied."""

        def __init__(self, data: np.ndarray):
            self.data = data

        def copy(self) -> Beams:
            return Beams(self.data.copy())

    data = np.zeros(len(case["hkl"]), [(k, float) for k in ("qx", "qy", "intensity")] + [(k, int) for k in "hkl"])
    for column, name in enumerate("hkl"):
        data[name] = case["hkl"][:, column]
    data["qx"], data["qy"] = case["g"][:, 0], case["g"][:, 1]
    beams, cache, thickness = Beams(data), DynamicalMatrixCache(), float(case["thickness"])
    axes = np.column_stack([-case["tilt"] / 1e3, np.ones(len(case["tilt"]))])
    axes[:, 2] = np.sqrt(1 - np.sum(axes[:, :2] ** 2, 1))

    def one(k: int) -> np.ndarray:
        found = crystal.generate_dynamical_diffraction_pattern(
            beams,
            thickness,
            zone_axis_cartesian=axes[k],
            foil_normal_cartesian=np.array([0.0, 0.0, 1.0]),
            dynamical_matrix_cache=cache,
        )
        return found.data["intensity"]

    return one


def main() -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    case = np.load(sys.argv[2])
    one = {"abtem": abtem, "py4dstem": py4dstem}[sys.argv[1]](case)
    one(0)
    wall, cpu = time.perf_counter(), time.process_time()
    found = np.array([one(k) for k in range(len(case["tilt"]))])
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    away = np.abs(found - case["intensity"]).max(1)
    zero = int(np.linalg.norm(case["tilt"], axis=1).argmin())
    told = {"version": version("abtem" if sys.argv[1] == "abtem" else "py4DSTEM"), "numpy": np.__version__}
    told |= {"cpu_ms": 1e3 * cpu / len(found), "wall_ms": 1e3 * wall / len(found)}
    print(json.dumps(told | {"at_zero": float(away[zero]), "anywhere": float(away.max())}))


if __name__ == "__main__":
    main()
