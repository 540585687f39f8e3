"""One line list from the spots of many stills, with what its rings say of the beam centre and the distance."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from mlindex.formats.crystfel import Geometry
from mlindex.formats.spots import Spots, read_spots
from mlindex.powder.found import FoundLines
from mlindex.powder.stills.centre import Shift, centre_shift
from mlindex.powder.stills.distance import Distance, distance_from_lines
from mlindex.powder.stills.rings import histogram, lines_of, q_from_place, slope_of_q
from mlindex.records import InputError

FEWEST_LINES = 6  # that an index search needs
FEWEST_SPOTS = 200
_ROUNDING = 5e-4  # 1/angstrom: half the last digit of 1/d in a stream
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class StillsOptions:
    """How spots become lines. `geometry` and `wavelength` (angstrom) override what the files say; `known`: q of all
    lines of a known cell (1/angstrom), by which the distance is checked; `cut` in standard deviations."""

    geometry: Geometry | None = None
    wavelength: float | None = None
    by_intensity: bool = False
    refine_centre: bool = False
    refine_distance: bool = False
    known: Float[np.ndarray, " m"] | None = None
    cut: float = 5.0


@dataclass(frozen=True)
class _Located:
    """Spots with their q; `place` (n, 3) in metres is None where only q is known."""

    spots: Spots
    q: Float[np.ndarray, " n"]
    intensity: Float[np.ndarray, " n"]
    wavelength: Float[np.ndarray, " n"]
    place: Float[np.ndarray, "n 3"] | None = None
    geometry: Geometry | None = None


def usable_spots(path: Path | str, options: StillsOptions) -> Spots:
    """The spots in a file; raises `InputError` where it cannot be read or the q of its spots cannot be told."""
    return _located(read_spots(path, options.geometry), options).spots


def lines_of_stills(spots: Sequence[Spots], name: str, options: StillsOptions | None = None) -> FoundLines:
    """The lines of all the spots together; of files with the same geometry the beam centre is checked together.

    Raises `InputError` where the q of the spots cannot be told, or they are too few, or show no line.
    """
    options = options or StillsOptions()
    sources = tuple(s.source for s in spots)
    located = [_located(s, options) for s in spots]
    notes: list[str] = []
    centres: list[dict[str, Any]] = []
    if all(each.place is None for each in located):
        notes.append("no geometry is known, so the beam centre is not checked")
    for group in _by_geometry(located):
        shift = _shift_of(group)
        if shift is None:
            continue
        files = [each.spots.source for each in group]
        applied = options.refine_centre and shift.significant
        centres.append(_centre_record(files, shift, applied))
        if shift.significant:
            notes.append(_centre_sentence(files, shift, applied))
        if applied:
            located = [_moved(each, shift) if each.spots.source in files else each for each in located]
    q = np.concatenate([each.q for each in located])
    if len(q) < FEWEST_SPOTS:
        raise InputError(f"{sources[0]}: {len(q)} spots are too few for a powder; give {FEWEST_SPOTS} or more")
    found, peaks, step = _lines(located, options)
    distance = None
    if options.known is not None:
        distance = _distance(located, peaks.position, peaks.position_esd, options.known)
        notes.append(_distance_sentence(distance, options.refine_distance))
        if distance is not None and options.refine_distance and distance.significant:
            located = [_further(each, distance.factor) for each in located]
            found, peaks, step = _lines(located, options)
    elif any(each.place is not None for each in located):
        notes.append("the distance is not checked: an error of it scales the cell, and only a known one (--cell) tells")
    if not len(peaks):
        raise InputError(
            f"{sources[0]}: its {len(q)} spots show no line beyond {options.cut:g} standard deviations; "
            "give more stills, check the geometry, or lower --significance"
        )
    if len(peaks) < FEWEST_LINES:
        notes.append(f"indexing needs at least {FEWEST_LINES} lines, and these are {len(peaks)}")
    wavelength = np.concatenate([each.wavelength for each in located])
    beside: dict[str, Any] = {
        "stills": sum(s.frames for s in spots),
        "spots": len(q),
        "bin": float(f"{step:.6g}"),
        "reduced_deviance": float(f"{found:.4g}"),
        "beam_centre": centres,
        "distance": None if distance is None else _distance_record(distance, options.refine_distance),
    }
    return FoundLines(
        id=name,
        kind="stills",
        sources=sources,
        q2=peaks.position**2,
        q2_esd=2 * peaks.position * np.hypot(peaks.position_esd, 1e-9),
        intensity=peaks.area / step,
        intensity_esd=peaks.area_esd / step,
        height=peaks.height,
        width=peaks.width,
        significance=peaks.significance,
        wavelength=float(np.nanmedian(wavelength)) if np.any(np.isfinite(wavelength)) else None,
        angles=False,
        notes=tuple(notes),
        beside=beside,
    )


def _lines(located: Sequence[_Located], options: StillsOptions) -> tuple[float, Any, float]:
    q = np.concatenate([each.q for each in located])
    weight = np.concatenate([each.intensity for each in located]) if options.by_intensity else None
    if weight is not None:
        without = [each.spots.source for each in located if not np.any(each.intensity > 0)]
        if without:
            raise InputError(f"{without[0]}: its spots have no intensities to weigh them by; use --weight one")
        weight = np.where(np.isfinite(weight) & (weight > 0), weight, 0.0)
        weight = weight / np.mean(weight)
    slopes = [
        slope_of_q(each.place, each.wavelength) * each.geometry.pixel
        for each in located
        if each.place is not None and each.geometry is not None
    ]
    resolution = float(np.median(np.concatenate(slopes))) if slopes else None
    table = histogram(q, weight, resolution=resolution)
    found = lines_of(table, options.cut)
    return found.reduced, found.peaks, float(table.q[1] - table.q[0])


def _located(spots: Spots, options: StillsOptions) -> _Located:
    geometry = options.geometry or spots.geometry
    wavelength = _wavelength(spots, geometry, options)
    if geometry is None or not np.any(np.isfinite(spots.fs)):
        return _from_q(spots, wavelength)
    if not np.any(np.isfinite(wavelength)):
        raise InputError(f"{spots.source}: no wavelength is known; give --wavelength")
    unknown = any(p.distance is None for p in geometry.panels) and not np.any(np.isfinite(spots.distance))
    if unknown:
        raise InputError(
            f"{spots.source}: the distance of the detector is not known; give --distance, or clen in metres"
        )
    place = geometry.places(spots.fs, spots.ss, spots.distance)
    with np.errstate(invalid="ignore"):
        q = q_from_place(place, wavelength)
    good = np.isfinite(q) & (q > 0)
    if not np.any(good):
        raise InputError(f"{spots.source}: no spot lies on a panel of the geometry; give the geometry it was made with")
    if options.geometry is None and np.any(np.isfinite(spots.q)):
        off = float(np.median(np.abs(q - spots.q)[good & np.isfinite(spots.q)]))
        if off > 4 * _ROUNDING:
            _LOG.warning("%s: its geometry does not give the 1/d it lists; the column of 1/d is used", spots.source)
            return _from_q(spots, wavelength)
    return _Located(_chosen(spots, good), q[good], spots.intensity[good], wavelength[good], place[good], geometry)


def _chosen(spots: Spots, good: np.ndarray) -> Spots:
    names = ("frame", "fs", "ss", "q", "intensity", "wavelength", "distance")
    return replace(spots, **{name: getattr(spots, name)[good] for name in names})


def _from_q(spots: Spots, wavelength: Float[np.ndarray, " n"]) -> _Located:
    good = np.isfinite(spots.q) & (spots.q > 0)
    if not np.any(good):
        raise InputError(
            f"{spots.source}: has pixels and no q; give --geometry FILE.geom (in a campaign, geometry in [powder]), or "
            "to `mlindex peaks` --distance, --beam, --pixel and --wavelength"
        )
    return _Located(_chosen(spots, good), spots.q[good], spots.intensity[good], wavelength[good])


def _wavelength(spots: Spots, geometry: Geometry | None, options: StillsOptions) -> Float[np.ndarray, " n"]:
    if options.wavelength is not None:
        return np.full(len(spots.fs), options.wavelength)
    if geometry is not None and geometry.wavelength is not None:
        return np.full(len(spots.fs), geometry.wavelength)
    return spots.wavelength


def _by_geometry(located: Sequence[_Located]) -> list[list[_Located]]:
    groups: list[list[_Located]] = []
    for each in (e for e in located if e.place is not None):
        for group in groups:
            if group[0].geometry == each.geometry:
                group.append(each)
                break
        else:
            groups.append([each])
    return groups


def _shift_of(group: Sequence[_Located]) -> Shift | None:
    geometry = group[0].geometry
    assert geometry is not None
    place = np.concatenate([each.place for each in group if each.place is not None])
    return centre_shift(place, np.concatenate([each.wavelength for each in group]), geometry.pixel)


def _moved(each: _Located, shift: Shift) -> _Located:
    assert each.place is not None and each.geometry is not None
    move = np.array([shift.x, shift.y, 0.0]) * each.geometry.pixel
    place = each.place - move
    return replace(each, place=place, q=q_from_place(place, each.wavelength))


def _further(each: _Located, factor: float) -> _Located:
    if each.place is None:
        return each
    place = each.place * np.array([1.0, 1.0, factor])
    return replace(each, place=place, q=q_from_place(place, each.wavelength))


def _files(files: Sequence[str]) -> str:
    return files[0] if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"


def _centre_record(files: Sequence[str], shift: Shift, applied: bool) -> dict[str, Any]:
    sectors = [None if not np.isfinite(s) else round(float(s), 3) for s in shift.sectors]
    return {
        "sources": list(files),
        "x": round(shift.x, 4),
        "y": round(shift.y, 4),
        "x_esd": round(shift.esd[0], 4),
        "y_esd": round(shift.esd[1], 4),
        "sectors": sectors,
        "rings": shift.rings,
        "spots": shift.spots,
        "applied": applied,
    }


def _centre_sentence(files: Sequence[str], shift: Shift, applied: bool) -> str:
    error = float(np.hypot(*shift.esd))
    what = f"the rings put the beam ({shift.x:+.2f}, {shift.y:+.2f}) pixels from the given centre, +-{error:.2f}"
    return f"{_files(files)}: {what}; " + ("corrected" if applied else "--refine-centre corrects it")


def _distance(
    located: Sequence[_Located],
    q: Float[np.ndarray, " n"],
    esd: Float[np.ndarray, " n"],
    known: Float[np.ndarray, " m"],
) -> Distance | None:
    if all(each.place is None for each in located):
        return None
    wavelength = float(np.nanmedian(np.concatenate([each.wavelength for each in located])))
    return distance_from_lines(q, esd, known, wavelength)


def _distance_sentence(distance: Distance | None, refine: bool) -> str:
    if distance is None:
        return "the distance cannot be checked: too few lines lie on lines of the cell, or no geometry is known"
    off = f"{100 * (distance.factor - 1):+.3f} % from the given one, +-{100 * distance.esd:.3f} %"
    what = f"by {distance.matched} of {distance.lines} lines on those of the cell, the distance is {off}"
    if not distance.significant:
        return what
    return what + ("; corrected" if refine else "; --refine-distance corrects it")


def _distance_record(distance: Distance, refine: bool) -> dict[str, Any]:
    return {
        "factor": round(distance.factor, 7),
        "factor_esd": round(distance.esd, 7),
        "matched": distance.matched,
        "lines": distance.lines,
        "applied": refine and distance.significant,
    }
