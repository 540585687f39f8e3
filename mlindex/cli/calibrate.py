"""Calibrate a detector on the command line: frames of a reference crystal in, a new .det and how good it is out."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from mlindex.cli.index import files_from, progress_bar
from mlindex.config import LaueSettings
from mlindex.formats.cif import number_with_esd
from mlindex.formats.lauetools import DetFile, write_det
from mlindex.laue.calibrate import PARAMETERS, UNITS, Calibrated, calibrated
from mlindex.laue.frame import Spots, crowded, with_spots
from mlindex.laue.geometry import Detector
from mlindex.laue.search import positions
from mlindex.laue.stage import LaueStage
from mlindex.records import InputError, Item
from mlindex.report.laue_export import calibration_of
from mlindex.report.tables import printer, say
from mlindex.runtime import device

_NOTABLE = 0.5  # correlations that are worth a line
_ROUGH = 20  # degrees of freedom below which the scatter of the spots says little about their errors
_DIGITS = (4, 2, 2, 4, 4)


def _read(stage: LaueStage, files: Sequence[str]) -> tuple[list[tuple[Item, Spots]], int]:
    """The frames with their spots, and how many files or frames are of no use; each of those is said."""
    frames: list[tuple[Item, Spots]] = []
    bad = 0
    for path in files:
        try:
            items = stage.read(path)
        except InputError as error:
            say(f"failed: {error}")
            bad += 1
            continue
        for item in items:
            try:
                (frame,) = stage.prepare([item])
                frame = with_spots(frame, stage.settings)
                try:
                    positions(frame.x, frame.y, frame.detector)
                except InputError as error:
                    raise InputError(f"{item.source}: {error}") from None
                if frame.crowded:
                    say(f"{item.source}: {crowded(frame, stage.settings)}")
                frames.append((item, frame))
            except InputError as error:
                say(f"failed: {error}")
                bad += 1
    return frames, bad


def _start(frames: Sequence[tuple[Item, Spots]]) -> Detector:
    """The detector that all frames share; raises `InputError` where they are of different cameras."""
    first_item, first = frames[0]
    start = first.detector
    different = 0
    for item, frame in frames[1:]:
        other = frame.detector
        if (other.pixel, other.shape, other.kf_direction) != (start.pixel, start.shape, start.kf_direction):
            raise InputError(
                f"{item.source}: is of another camera than {first_item.source} (pixel, size or position); "
                "calibrate the frames of one camera at a time"
            )
        different += other != start
    if different:
        say(f"the frames come with different calibrations; the start is that of {first_item.source}")
    return start


def _named(values: np.ndarray) -> dict[str, float | None]:
    return {k: float(v) if math.isfinite(v) else None for k, v in zip(PARAMETERS, values.tolist(), strict=True)}


def calibration_record(result: Calibrated, frames: Sequence[tuple[Item, Spots]]) -> dict[str, Any]:
    """The JSON object of a calibration; what is not determined has no uncertainty (null)."""
    detector = result.detector
    camera = {"pixel": detector.pixel, "shape": list(detector.shape), "kf_direction": detector.kf_direction}
    correlation = [[round(v, 4) if math.isfinite(v) else None for v in row] for row in result.correlation.tolist()]
    shown = [
        {
            "id": item.id,
            "source": item.source,
            "n_spots": len(frame.x),
            "grains": [
                {
                    "material": g.material.name,
                    "ub": g.ub.tolist(),
                    "u": g.u.tolist(),
                    "n_matched": g.n_matched,
                    "score": round(float(g.score), 2),
                    "rms_px": round(g.rms_px, 4),
                }
                for g in grains
            ],
        }
        for (item, frame), grains in zip(frames, result.grains, strict=True)
    ]
    return {
        "detector": _named(detector.parameters) | camera,
        "start": _named(result.start.parameters) | camera,
        "esd": _named(result.esd),
        "correlation": correlation,
        "determined": dict(zip(PARAMETERS, result.determined.tolist(), strict=True)),
        "rms_before_px": round(result.rms_before, 4),
        "rms_after_px": round(result.rms_after, 4),
        "n_spots": result.n_spots,
        "n_grains": sum(len(g) for g in result.grains),
        "widened": result.widened,
        "frames": shown,
    }


def _table(result: Calibrated) -> Table:
    table = Table(box=None, padding=(0, 1))
    table.collapse_padding, table.pad_edge = True, False
    for name in ("", "start", "refined", "change", ""):
        table.add_column(name, justify="right" if name else "left")
    rows = zip(PARAMETERS, UNITS, result.start.parameters, result.detector.parameters, result.esd, _DIGITS, strict=True)
    for name, unit, old, new, esd, digits in rows:
        told = number_with_esd(new, esd) if math.isfinite(esd) else f"{new:.{digits}f} (held)"
        table.add_row(name, f"{old:.{digits}f}", told, f"{new - old:+.{digits}f}", unit)
    return table


def remarks(result: Calibrated) -> list[str]:
    """What there is to say of a calibration, a sentence each."""
    said = [f"rms {result.rms_before:.3f} -> {result.rms_after:.3f} px of one coordinate"]
    pairs = [
        (PARAMETERS[i], PARAMETERS[j], float(result.correlation[i, j]))
        for i in range(5)
        for j in range(i + 1, 5)
        if abs(result.correlation[i, j]) > _NOTABLE  # false where one is not determined
    ]
    if pairs:
        said.append("correlations: " + ", ".join(f"{a} with {b} {value:+.2f}" for a, b, value in pairs))
    held = [name for name, known in zip(PARAMETERS, result.determined, strict=True) if not known]
    if held:
        said.append(
            f"not determined by these spots, and held at the start: {', '.join(held)}; the uncertainties of the others "
            "hold for that value alone. Give more frames, or grains that fill the detector"
        )
    freedom = 2 * result.n_spots - 3 * sum(len(g) for g in result.grains) - int(result.determined.sum())
    if freedom < _ROUGH:
        said.append(f"{result.n_spots} spots leave {freedom} degrees of freedom: the uncertainties are rough")
    if result.widened:
        said.append("the start was too far off to index with; a wider search over geometries found this one")
    return said


def calibrate_laue(settings: LaueSettings, names: Sequence[str], output: Path | None, as_json: bool) -> int:
    """Refine the detector on frames of a reference crystal, print old and new, write a .det; the exit status.

    A file of no use is said, and the others are used (status 1). Raises `InputError` for arguments that cannot be used,
    and where no frame shows the crystal.
    """
    files = files_from(names)
    if output is not None and (output.is_dir() or not output.parent.is_dir() or not os.access(output.parent, os.W_OK)):
        raise InputError(f"{output}: cannot be written; give the name of a .det in a folder that exists")
    device.apply()
    stage = LaueStage(settings)
    bar = progress_bar()
    bar.add_task("calibrating", total=None)
    with bar:
        frames, bad = _read(stage, files)
        if not frames:
            raise InputError("there is no frame to calibrate on; give spot lists or images of a reference crystal")
        start = _start(frames)
        result = calibrated(
            [frame for _, frame in frames], start, stage.materials, energy=settings.energy, grains=settings.grains
        )
    if output is not None:
        at = max(range(len(frames)), key=lambda i: max((g.score for g in result.grains[i]), default=0.0))
        best = result.grains[at][0]
        matrix = best.ub @ np.linalg.inv(best.material.b)
        found = DetFile(calibration_of(result.detector), best.material.name, matrix)
        try:
            write_det(output, found, frames[at][0].source)
        except OSError as error:
            raise InputError(f"{output}: cannot be written ({error.strerror}); give another file") from None
    if as_json:
        print(json.dumps(calibration_record(result, frames), allow_nan=False, ensure_ascii=False))
    else:
        grains, used = sum(len(g) for g in result.grains), sum(bool(g) for g in result.grains)
        total = sum(len(frame.x) for _, frame in frames)
        crystals = ", ".join(sorted({g.material.name for one in result.grains for g in one}))
        print(
            f"{crystals}: {result.n_spots} of {total} spots, {grains} grain{'s' * (grains != 1)} "
            f"in {used} of {len(frames)} frame{'s' * (len(frames) != 1)}"
        )
        printer().print(_table(result))
        for sentence in remarks(result):
            print(sentence)
    if output is not None:
        say(f"calibration in {output}")
    return int(bad > 0)
