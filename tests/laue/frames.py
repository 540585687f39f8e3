"""Simulated frames, and the grains that a search without error would find in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mlindex.formats.lauetools import Calibration, SpotList, write_cor
from mlindex.laue import search
from mlindex.laue.geometry import Detector, angles_from_kf, direction_from_pixel
from mlindex.laue.materials import material
from mlindex.laue.simulate import Frame, random_grains, simulate_frame

DETECTOR = Detector(79.553, 979.32, 932.31, 0.37, 0.447)
SMALL = Detector(30.0, 130.0, 120.0, 0.37, 0.447, pixel=0.2, shape=(256, 260))
BAND = (5.0, 23.0)


def frame_of(*names: str, seed: int = 0, detector: Detector = DETECTOR, strain: float = 0.0, **dirt: float) -> Frame:
    """A frame with one grain for each name of a material."""
    rng = np.random.default_rng(seed)
    return simulate_frame(rng, random_grains(rng, [material(n) for n in names], strain), detector, BAND, **dirt)


def calibration(detector: Detector) -> Calibration:
    return Calibration(*detector.parameters.tolist(), detector.pixel, detector.shape, detector.kf_direction)


def write_frame(path: Path, frame: Frame, footer: bool = True) -> Path:
    """A .cor of the frame, with its calibration or without."""
    angles = angles_from_kf(direction_from_pixel(frame.x, frame.y, frame.detector))
    known = calibration(frame.detector) if footer else None
    write_cor(path, SpotList(path.stem, frame.x, frame.y, frame.intensity, *angles, known))
    return path


def true_grains(frame: Frame) -> list[search.Grain]:
    """The truth in the form of what the search finds."""
    found = []
    for number, grain in enumerate(frame.grains):
        mine = np.flatnonzero(frame.grain == number)
        rms = float(np.sqrt(np.mean((frame.x - frame.x_true)[mine] ** 2)))
        esd = np.full((3, 3), 1e-4)
        found.append(
            search.Grain(
                grain.material,
                grain.ub,
                grain.u,
                grain.strain,
                esd,
                mine,
                frame.hkl[mine],
                len(mine),
                len(mine) + 3,
                len(mine) / (len(mine) + 3),
                100.0 * len(mine),
                rms,
            )
        )
    return found
