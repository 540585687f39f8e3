"""Measured powder patterns: text of two or three columns (`.xy`, `.xye`, `.csv`): position, intensity, uncertainty.

Positions are 2theta in degrees or q in 1/angstrom, 1/d or 2 pi/d; a header or the caller says which, and the caller
overrides the file. Without either they are 2theta, which needs a wavelength.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from mlindex.formats import peaks
from mlindex.formats.peak_columns import INTENSITY_NAMES, Columns, columns_from_text
from mlindex.formats.wavelength import is_wavelength
from mlindex.records import InputError

SCANS = ("tth", "q", "2pi/d")  # what the positions of a pattern can be
FEWEST = 32  # points
_GAP = 20.0  # steps: a jump beyond is no scan
_PARTS, _COARSER = 10, 3.5  # parts of a scan, and how many times the step of one may be that of another


@dataclass(frozen=True)
class Pattern:
    """A scan: `x` (n,) ascending, 2theta in degrees (`scan` "tth") or q = 1/d in 1/angstrom ("q"), intensity `y` (n,),
    its standard uncertainties `sigma` (n,) or None, the `wavelength` in angstrom or None."""

    id: str
    source: str
    x: Float[np.ndarray, " n"]
    y: Float[np.ndarray, " n"]
    sigma: Float[np.ndarray, " n"] | None
    scan: str
    wavelength: float | None


def holds_pattern(path: Path | str) -> bool:
    """Whether a file is text with so many points at even steps that it is a pattern, not a list of lines."""
    try:
        said, x = peaks.columns(Path(path)).positions[0]
    except InputError:
        return False
    return peaks.is_scan(x, said)


def read_pattern(path: Path | str, *, scan: str | None = None, wavelength: float | None = None) -> Pattern:
    """The pattern in a file, ascending; points without a number are left out, those at one place averaged.

    `scan` ("tth", "q", "2pi/d") and `wavelength` (angstrom) override what the file says. Raises `InputError`, one
    sentence, for a file that cannot be used.
    """
    path = Path(path)
    if scan is not None and scan not in SCANS:
        raise InputError(f"{path}: unknown quantity {scan!r} of a pattern; use one of {', '.join(SCANS)}")
    columns = _columns(path)
    said, x = columns.positions[0]
    if scan is None and said in ("q2", "d"):
        raise InputError(f"{path}: is over {said}, not 2theta or q; give --quantity if that is wrong, or convert it")
    kind = scan or said or "tth"
    wavelength = wavelength if wavelength is not None else columns.wavelength
    if kind == "tth" and wavelength is None:
        raise InputError(f"{path}: needs a wavelength; give --wavelength, as 1.5406 or CuKa (or --quantity q)")
    if wavelength is not None and not is_wavelength(wavelength):
        raise InputError(f"{path}: the wavelength {wavelength:g} is not positive; give it in angstrom")
    if columns.intensity is None:
        raise InputError(
            f"{path}: has no column of intensities; name it {', '.join(INTENSITY_NAMES)} in the header, or give "
            "positions and intensities without one"
        )
    if kind == "2pi/d":
        x, kind = x / (2 * np.pi), "q"
    return _checked(path, x, columns.intensity, columns.error, kind, wavelength)


def _columns(path: Path) -> Columns:
    text = peaks.text(path)
    _, mark, points = text.partition("[Scan points]")  # PANalytical's CSV
    return columns_from_text(path, points if mark else text)


def _checked(
    path: Path,
    x: Float[np.ndarray, " n"],
    y: Float[np.ndarray, " n"],
    sigma: Float[np.ndarray, " n"] | None,
    kind: str,
    wavelength: float | None,
) -> Pattern:
    good = np.isfinite(x) & np.isfinite(y) & (x > 0)
    if kind == "tth" and np.any(x[good] >= 180):
        raise InputError(f"{path}: has 2theta up to {np.max(x[good]):g}; give --quantity q or 2pi/d, or correct it")
    if kind == "q" and wavelength is not None:
        good &= x * wavelength <= 2
    if sigma is not None and not np.all(np.isfinite(sigma[good]) & (sigma[good] > 0)):
        sigma = None
    x, place = np.unique(x[good], return_inverse=True)
    if len(x) < FEWEST:
        raise InputError(f"{path}: has {len(x)} points; a pattern has at least {FEWEST}")
    count = np.bincount(place)
    y = np.bincount(place, y[good]) / count
    if sigma is not None:
        sigma = np.sqrt(np.bincount(place, sigma[good] ** 2)) / count
    step = np.diff(x)
    if np.max(step) > _GAP * np.median(step):
        at = int(np.argmax(step))
        raise InputError(f"{path}: jumps from {x[at]:g} to {x[at + 1]:g}; give the parts as files of their own")
    steps = [float(np.median(part)) for part in np.array_split(step, _PARTS)]
    if max(steps) > _COARSER * min(steps):  # peaks are searched for by their width in points
        raise InputError(
            f"{path}: changes its step from {min(steps):.3g} to {max(steps):.3g}; give the parts as files of their own"
        )
    if not np.any(y > 0) or np.ptp(y) == 0:
        raise InputError(f"{path}: is without any intensity; check the columns")
    return Pattern(path.stem, str(path), x, y, sigma, kind, wavelength)
