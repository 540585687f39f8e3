"""Laue results for other programs: CSV with one row a grain, Lauetools' .fit and .cor, a .ctf map for MTEX."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from mlindex.crystal.metric import b_matrix_from_cell
from mlindex.crystal.strain import cell_from_ub
from mlindex.formats.ctf import Phase, write_ctf
from mlindex.formats.lauetools import Calibration, FitGrain, SpotList, write_cor, write_fit
from mlindex.laue.geometry import (
    Detector,
    angles_from_kf,
    direction_from_pixel,
    energy_from_q,
    kf_from_q,
    pixel_from_direction,
    sample_from_lab,
)
from mlindex.laue.maps.phases import orientation
from mlindex.laue.maps.scan import Scan
from mlindex.laue.record import FIELDS, laue_record
from mlindex.records import InputError, Result

_MATRICES = ("ub", "u", "strain", "strain_esd")
_SCALARS = tuple(name for name in FIELDS if name not in _MATRICES)
_PLACES = tuple(f"{i}{j}" for i in range(1, 4) for j in range(1, 4))
CSV_HEADER = (
    *("id", "source", "status", "reason", "seconds", "grain"),
    *_SCALARS,
    *(f"{name}_{place}" for name in _MATRICES for place in _PLACES),
)


def is_laue(results: Sequence[Result]) -> bool:
    """Whether results are those of Laue frames."""
    return any("grains" in result.tables for result in results)


def csv_rows(result: Result) -> Iterator[list[Any]]:
    """One row a grain, best first (grain 0); one row with a status for a frame without grains."""
    record = laue_record(result)
    head = [record["id"], record["source"], record["status"], record.get("reason", ""), record["seconds"]]
    for rank, grain in enumerate(record["grains"]):
        elements = [x for name in _MATRICES for row in grain[name] for x in row]
        yield [*head, rank, *(grain[name] for name in _SCALARS), *elements]
    if not record["grains"]:
        yield head + [None] * (len(CSV_HEADER) - len(head))


def detector_of(frame: Mapping[str, NDArray]) -> Detector:
    """The detector of a frame, from its row in the table "frames"."""
    shape = np.asarray(frame["shape"][0])
    detector = Detector(
        *(1.0, 0.0, 0.0, 0.0, 0.0),
        pixel=float(frame["pixel"][0]),
        shape=(int(shape[0]), int(shape[1])),
        kf_direction=str(frame["kf_direction"][0]),
    )
    return detector.with_parameters(frame["calibration"][0])


def calibration_of(detector: Detector) -> Calibration:
    """A detector as the files of Lauetools describe it."""
    d = detector
    return Calibration(d.distance, d.xcen, d.ycen, d.xbet, d.xgam, d.pixel, d.shape, d.kf_direction)


def _spot_list(result: Result) -> SpotList:
    detector = detector_of(result.tables["frames"])
    x, y, bright = (np.asarray(result.tables["spots"][name], float) for name in ("x", "y", "intensity"))
    angles = angles_from_kf(direction_from_pixel(x, y, detector))
    return SpotList(result.source, x, y, bright, *angles, calibration_of(detector))


def _lowest_order(
    hkl: Int[np.ndarray, "n 3"], energy: Float[np.ndarray, " n"], ub: Float[np.ndarray, "3 3"]
) -> NDArray[np.int64]:
    """The multiple of each primitive hkl that diffracts at `energy` (keV): the order that the spot is of, which is
    allowed where the primitive one may be extinct."""
    order = np.rint(energy / energy_from_q(hkl @ ub.T))
    return hkl * np.maximum(order, 1).astype(np.int64)[:, None]


def _fit_grains(result: Result) -> list[FitGrain]:
    grains, spots = result.tables["grains"], result.tables["spots"]
    detector, everything = detector_of(result.tables["frames"]), _spot_list(result)
    assert everything.two_theta is not None and everything.chi is not None
    found = []
    for rank, name in enumerate(grains["material"]):
        mine = np.flatnonzero(np.asarray(spots["grain"]) == rank)
        ub, cell = np.asarray(grains["ub"][rank], float), np.asarray(grains["cell"][rank], float)
        energy = np.asarray(spots["energy"], float)[mine]
        hkl = _lowest_order(np.asarray(spots["hkl"])[mine], energy, ub)
        x, y = everything.x[mine], everything.y[mine]
        at = pixel_from_direction(kf_from_q(hkl @ ub.T), detector)
        deviation = np.hypot(at[0] - x, at[1] - y)
        strained = np.asarray(cell_from_ub(ub), float)
        strained = np.concatenate([strained[:3] * cell[0] / strained[0], strained[3:]])  # Lauetools keeps a
        found.append(
            FitGrain(
                material=str(name),
                spot=mine,
                x=x,
                y=y,
                intensity=everything.intensity[mine],
                hkl=hkl,
                two_theta=everything.two_theta[mine],
                chi=everything.chi[mine],
                energy=energy,
                deviation=deviation,
                ub=ub,
                b0=np.asarray(b_matrix_from_cell(cell), float),
                strain=np.asarray(grains["strain"][rank], float),
                cell=strained,
                mean_deviation=float(deviation.mean()) if len(mine) else None,
                calibration=calibration_of(detector),
            )
        )
    return found


def _names(results: Sequence[Result], suffix: str) -> Iterator[tuple[Result, str]]:
    """A file name for each result, of characters that every system takes, no two alike."""
    taken: set[str] = set()
    for result in results:
        plain = re.sub(r"[^A-Za-z0-9._+-]", "_", result.id).lstrip(".") or "frame"
        name, n = plain, 2
        while name.lower() in taken:
            name, n = f"{plain}-{n}", n + 1
        taken.add(name.lower())
        yield result, f"{name}.{suffix}"


def _folder(output: Path | None, to: str) -> Path:
    if output is None:
        raise InputError(f"--to {to}: writes one file a frame; name a folder for them with -o")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{output}: is no folder that can be written to ({error.strerror}); give another") from None
    return output


def fit_files(results: Sequence[Result], output: Path | None) -> list[Path]:
    """One .fit in the folder `output` for each frame with grains; their paths."""
    folder, written = _folder(output, "fit"), []
    for result, name in _names([r for r in results if len(r.tables.get("grains", {}).get("ub", ()))], "fit"):
        write_fit(folder / name, _fit_grains(result), result.source)
        written.append(folder / name)
    return written


def cor_files(results: Sequence[Result], output: Path | None) -> list[Path]:
    """One .cor in the folder `output` for each frame with spots, with the calibration in its footer; their paths."""
    folder, written = _folder(output, "cor"), []
    for result, name in _names([r for r in results if len(r.tables.get("spots", {}).get("x", ()))], "cor"):
        write_cor(folder / name, _spot_list(result))
        written.append(folder / name)
    return written


def ctf_file(
    results: Sequence[Result],
    output: Path | None,
    scan: Scan | None = None,
    number: NDArray[np.int64] | None = None,
) -> list[Path]:
    """The best grain of each frame as a map; its path.

    With a `scan`, and the `number` of each result's frame in it, every place of the scan is a point at its coordinates
    (micrometres); else the frames lie in one row, a step apart, in the order of the results. Orientations are in the
    sample frame, which is LT turned by 40 degrees about y, and do not depend on the setting of a strained crystal.
    Frames without a grain, and those without a result, are points that are not indexed.
    """
    if output is None:
        raise InputError("--to ctf: writes a file; name it with -o")
    place = Scan(1, len(results)) if scan is None else scan
    where = np.arange(len(results)) if number is None else number
    n = place.size
    phases: dict[str, Phase] = {}
    phase, matched, deviation = np.zeros(n, np.int64), np.zeros(n, np.int64), np.zeros(n)
    u = np.broadcast_to(np.eye(3), (n, 3, 3)).copy()
    for i, result in zip(where, results, strict=True):
        grains = result.tables.get("grains", {})
        if not len(grains.get("u", ())):
            continue
        name = str(grains["material"][0])
        cell = np.asarray(grains["cell"][0], float)
        phases.setdefault(name, Phase(name, cell, str(grains["laue_group"][0]), int(grains["space_group"][0])))
        phase[i] = list(phases).index(name) + 1
        b0 = np.asarray(b_matrix_from_cell(cell), float)
        u[i] = sample_from_lab() @ orientation(np.asarray(grains["ub"][0], float), b0)
        matched[i], deviation[i] = grains["n_matched"][0], grains["rms_px"][0]
    row, column = np.divmod(np.arange(n), max(place.columns, 1))
    x, y = column * place.step[1], row * place.step[0]
    write_ctf(output, list(phases.values()), phase, u, x, y, matched=matched, deviation=deviation)
    return [output]
