"""Lauetools as an engine of `laue.py`: frames written as .cor files, its grains read back.

It runs in a process of its own (`peer_lauetools.py`), by the interpreter that has it. It is told how many grains of
each material to look for, which mlindex is not. Its settings are those it ships (`DEFAULT_CONFIG` of
`LaueTools.indexing_batch`), but for the entries of `SETTINGS`, which replace them by system; the cells are those of
mlindex, so that both look for the same crystal.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlindex.crystal.strain import deviatoric_strain, u_from_ub
from mlindex.formats.lauetools import Calibration, SpotList, write_cor
from mlindex.laue.geometry import Detector, angles_from_kf, direction_from_pixel
from mlindex.laue.materials import Material

# Lauetools' names for what is extinct, as its own table of materials has them
EXTINCTION = {
    "Cu": "fcc",
    "Si": "dia",
    "Ge": "dia",
    "Ti": "wurtzite",
    "GaN": "wurtzite",
    "ZrO2": "VO2_mono",
    "CuWO4": "no",
}
# Chosen on frames with seeds from 1000 on. The smaller table of angles is that of its own example of a hexagonal metal
# (Zr). A search ends at the first orientation with so many matches; the shipped 40 is reached by chance in patterns of
# hundreds of spots, and a number that the true grain does not reach makes it try every candidate
SETTINGS: dict[str, dict[str, Any]] = {
    "Ti": {"nlutmax": 3},
    "GaN": {"nlutmax": 3},
    "ZrO2": {"stop_Nb_Matches": 150},
    "CuWO4": {"stop_Nb_Matches": 150},
}


@dataclass(frozen=True, eq=False)
class Reported:
    """A grain of the peer, with the names that a `Grain` of mlindex has; `score` is its matching rate (percent)."""

    material: Material
    ub: NDArray[np.float64]
    u: NDArray[np.float64]
    strain: NDArray[np.float64]
    n_matched: int
    n_predicted: int
    score: float


@dataclass(frozen=True)
class Answer:
    """The grains of one frame, processor and wall seconds, and what went wrong."""

    grains: list[Reported]
    cpu: float
    seconds: float
    note: str = ""


def _key(crystal: Material) -> str:
    """A name that Lauetools' own table lacks: under a name of that table it takes the cell from there."""
    return f"{crystal.name}_of_mlindex"


def _cpu_of(pid: int) -> float:
    """CPU seconds of a process so far, of all its threads (from /proc, so Linux only)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _reported(grain: dict[str, Any], materials: Sequence[Material]) -> Reported:
    crystal = next(m for m in materials if _key(m) == grain["material"])
    ub = np.array(grain["ub"], np.float64)
    ub = ub if np.linalg.det(ub) > 0 else -ub  # a left-handed setting is its own inverse, by Friedel's law
    predicted = round(100 * grain["matched"] / grain["match_rate"]) if grain["match_rate"] else 0
    strain = deviatoric_strain(ub, crystal.cell)
    return Reported(crystal, ub, u_from_ub(ub), strain, grain["matched"], predicted, grain["match_rate"])


class Lauetools:
    """The peer's process; `limit` is CPU seconds a frame, after which the frame is lost and it is started again.

    They are not wall seconds, of which a busy machine gives it less.
    """

    name = "Lauetools"

    def __init__(self, python: Path, limit: float, settings: dict[str, Any]) -> None:
        self.limit, self.settings = limit, settings
        self._command = [str(python), str(Path(__file__).with_name("peer_lauetools.py"))]
        self._process: subprocess.Popen | None = None
        self._folder = tempfile.TemporaryDirectory()
        self.about = self._asked({"about": True}, 300.0)
        if "lauetools" not in self.about:
            raise SystemExit(f"{python} does not run Lauetools: {self.about['error']}")

    def _asked(self, request: dict[str, Any], limit: float) -> dict[str, Any]:
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        wall, cpu = time.perf_counter(), _cpu_of(process.pid)
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
            while not (ready := bool(select.select([process.stdout], [], [], 0.2)[0])):
                if _cpu_of(process.pid) - cpu > limit:
                    break
            line = process.stdout.readline() if ready else b""
        except BrokenPipeError:
            ready, line = True, b""
        if line:
            return json.loads(line)
        spent = {"cpu": _cpu_of(process.pid) - cpu, "seconds": time.perf_counter() - wall}  # what it took all the same
        self.close()
        return {"grains": [], "error": "its process ended" if ready else f"no answer in {limit:g} CPU s", **spent}

    def settings_for(self, materials: Sequence[Material]) -> dict[str, Any]:
        """What it is told beside its defaults, for a frame of these materials."""
        return {k: v for m in materials for k, v in SETTINGS.get(m.name, {}).items()} | self.settings

    def solve(
        self,
        x: NDArray[np.float64],
        y: NDArray[np.float64],
        intensity: NDArray[np.float64],
        detector: Detector,
        materials: Sequence[Material],
        counts: Sequence[int],
        energy: tuple[float, float],
    ) -> Answer:
        """The grains in a frame, where `counts` of each of the materials are sought."""
        path = Path(self._folder.name) / "frame_0000.cor"
        d, order = detector, np.argsort(-intensity, kind="stable")  # its sets are the first spots of the list
        place = (x[order], y[order], intensity[order])
        angles = angles_from_kf(direction_from_pixel(place[0], place[1], d))
        # No name of a camera: with one, Lauetools takes the size of a pixel from a table and not from the file
        footer = Calibration(d.distance, d.xcen, d.ycen, d.xbet, d.xgam, d.pixel, d.shape, d.kf_direction)
        write_cor(path, SpotList(path.name, *place, *angles, footer))
        wanted = [
            {"name": _key(m), "lattice": m.cell.tolist(), "extinction": EXTINCTION[m.name], "grains": n}
            for m, n in zip(materials, counts, strict=True)
        ]
        request = {"cor": str(path), "materials": wanted, "energy": energy, "settings": self.settings_for(materials)}
        reply = self._asked(request, self.limit)
        grains = [_reported(grain, materials) for grain in reply["grains"]]
        return Answer(grains, reply["cpu"], reply["seconds"], reply.get("error", ""))

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
