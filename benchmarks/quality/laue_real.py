"""The part `real` of `laue.py`: measured frames, as spot lists and as images, against their stored solutions.

Misorientations are up to symmetry. `spots` and `rms` are counted alike for every program: spots within 1.5 px of a ray
that its orientation predicts, and the rms of one coordinate of those. mlindex is timed warm; an image has been read by
then, and its spots are looked for in the time given. The peer gets the spots that mlindex finds in an image, because it
is its indexing that is compared; its seconds are those of one call and have no search for spots in them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from benchmarks.quality.laue_peer import Lauetools
from mlindex.crystal.rotation import misorientation
from mlindex.crystal.strain import u_from_ub
from mlindex.formats.images import read_image
from mlindex.formats.lauetools import read_cor, read_det, read_fit
from mlindex.laue.geometry import Detector, detector_from_calibration
from mlindex.laue.materials import Material, material, rays
from mlindex.laue.search import index_frame
from mlindex.laue.simulate import spots_of
from mlindex.laue.spots import find_spots

REAL_PARTS = ("real",)
_NEAR = 1.5  # px
_REPEATS = 5

Place = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]  # x, y, intensity


@dataclass(frozen=True)
class Real:
    """One frame: the file of the list or image, of the calibration, and the solution as UB (Lauetools') or .fit."""

    label: str
    material: str
    frame: str
    calibration: str
    energy: tuple[float, float]
    solution: str | tuple[tuple[float, ...], ...]


# Published for nw1_0000; of the sCMOS frame, Lauetools 3.2.19 on its list of 181 spots
_NW1 = ((-0.56963, 0.65044, -0.50273), (0.64399, -0.02695, -0.76466), (-0.51086, -0.75909, -0.40336))
_SCMOS = ((0.57652, -0.49558, -0.64975), (0.65961, 0.75144, 0.01203), (0.48238, -0.43541, 0.76008))
_BLANC_COR, _SCMOS_COR = "Ge_blanc_0000_LT_5.cor", "img_Ge_sCMOS_0000_181peaks.cor"
_BLANC_FIT = "Ge_blanc_0000_LT_5.fit"
FRAMES = (
    Real("Ge_blanc list", "Ge", _BLANC_COR, _BLANC_COR, (5.0, 23.0), _BLANC_FIT),
    Real("Ge_blanc image", "Ge", "Ge_blanc_0000.mccd.gz", _BLANC_COR, (5.0, 23.0), _BLANC_FIT),
    Real("Ge0001 list", "Ge", "Ge0001.cor", "Ge0001.cor", (5.0, 23.0), "Ge0001.fit"),  # the .fit has the cell of Si
    Real("Ge_sCMOS list", "Ge", _SCMOS_COR, _SCMOS_COR, (5.0, 27.0), _SCMOS),
    Real("Ge_sCMOS image", "Ge", "img_Ge_sCMOS_0000.tif.gz", _SCMOS_COR, (5.0, 27.0), _SCMOS),
    Real("nw1_0000 image", "Si", "nw1_0000.tif.gz", "nw1_calib.det", (5.0, 23.0), _NW1),
)


def agreement(
    place: Place, ub: NDArray[np.float64], crystal: Material, detector: Detector, energy: tuple[float, float]
) -> dict[str, float]:
    """How many spots an orientation explains, of how many there are and how many it predicts, and the rms (px)."""
    model = spots_of(ub, rays(crystal, energy[1], detector), detector, energy)
    distance, _ = cKDTree(np.stack([model.x, model.y], 1)).query(np.stack(place[:2], 1))
    near = distance < _NEAR
    rms = float(np.sqrt(np.mean(distance[near] ** 2) / 2)) if near.any() else float("nan")
    return {"spots": int(near.sum()), "of": len(near), "predicted": len(model.x), "rms": rms}


def _timed(call: Callable[[], Any]) -> tuple[Any, float, float]:
    """The result of warm calls, with the median of their CPU and wall seconds."""
    result = call()
    cpus, walls = [], []
    for _ in range(_REPEATS):
        cpu, wall = time.process_time(), time.perf_counter()
        result = call()
        cpus.append(time.process_time() - cpu)
        walls.append(time.perf_counter() - wall)
    return result, float(np.median(cpus)), float(np.median(walls))


def shown_measured(row: dict[str, Any]) -> str:
    """One line of the table."""
    text = f"{row['label']:18s} {row['program']:9s} {len(row['grains'])} grains"
    for g in row["grains"]:
        text += f"  deg {g['misorientation']:.4f}, {g['spots']}/{g['of']} spots ({g['predicted']} predicted)"
        text += f", rms {g['rms']:.3f} px"
    text += f"  CPU s {row['cpu']:.3f} wall {row['wall']:.3f}"
    return text + (f"  ({row['note']})" if row["note"] else "")


def _rows_of(real: Real, folder: Path, peer: Lauetools | None) -> list[dict[str, Any]]:
    crystal = material(real.material)
    at = folder / real.calibration
    calibration = read_det(at).calibration if at.suffix == ".det" else read_cor(at).calibration
    assert calibration is not None
    if isinstance(real.solution, str):
        stored = read_fit(folder / real.solution)[0].ub
        assert stored is not None
    else:
        stored = np.array(real.solution) @ crystal.b
    if real.frame.endswith(".cor"):
        image, listed = None, read_cor(folder / real.frame)
        shape = None
    else:
        image, listed = read_image(str(folder / real.frame)), None
        shape = (int(image.data.shape[0]), int(image.data.shape[1]))
    detector = detector_from_calibration(calibration, shape)

    def spots() -> Place:
        if image is None:
            assert listed is not None
            return listed.x, listed.y, listed.intensity
        found = find_spots(image.data, saturation=image.saturation)
        return found.x, found.y, np.asarray(found.intensity, np.float64)

    def ours() -> Any:
        return index_frame(*spots(), detector, [crystal], energy=real.energy)

    def row(program: str, grains: Any, cpu: float, wall: float, note: str = "") -> dict[str, Any]:
        told = []
        for grain in grains:
            angle = float(misorientation(grain.u, u_from_ub(stored), crystal.rotations))
            told.append({"misorientation": angle, "ub": np.asarray(grain.ub).tolist(), "score": grain.score})
            told[-1] |= agreement(place, grain.ub, crystal, detector, real.energy)
        made = {"part": "real", "label": real.label, "program": program, "energy": real.energy, "grains": told}
        made |= {"cpu": cpu, "wall": wall, "note": note}
        print(shown_measured(made), flush=True)
        return made

    place = spots()
    rows = [row("mlindex", *_timed(ours))]
    if peer is not None:
        answer = peer.solve(*place, detector, [crystal], [1], real.energy)
        rows.append(row(peer.name, answer.grains, answer.cpu, answer.seconds, answer.note))
        rows[-1]["settings"] = peer.settings_for([crystal])
    return rows


def measured_rows(folder: Path, peer: Lauetools | None) -> list[dict[str, Any]]:
    """A row for each measured frame in `folder` and each program; the peer is asked for one grain."""
    return [row for real in FRAMES for row in _rows_of(real, folder, peer)]
