"""Files of Lauetools: spot lists (.cor, .dat), calibrations (.det) and indexed grains (.fit), and .ctf maps for MTEX.

Columns are found by the names in the header line and never by their place, because their number and order differ from
one version and one window of Lauetools to the next. Pixels (X, Y) count from 1; matrices are in the LT frame (x along
the beam, z up to the detector). A .fit has UB, a rotation times a small distortion, and the B0 of the undeformed
crystal; here `ub` is their product, which takes hkl to q in 1/angstrom. Strains, which the file lists in 1e-3, are
plain numbers here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlindex.formats.ctf import write_ctf
from mlindex.records import InputError

__all__ = [
    "Calibration",
    "DetFile",
    "FitGrain",
    "SpotList",
    "read_cor",
    "read_dat",
    "read_det",
    "read_fit",
    "write_cor",
    "write_ctf",
    "write_det",
    "write_fit",
]

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_ALIASES = {  # lower-case names of columns, by what they hold
    "x": ("x", "peak_x", "xexp"),
    "y": ("y", "peak_y", "yexp"),
    "intensity": ("i", "peak_isub", "intensity", "itot", "peakamplitude", "peak_itot"),
    "two_theta": ("2theta", "2theta_exp", "2theta_theo"),
    "chi": ("chi", "chi_exp", "chi_theo"),
    "energy": ("energy", "energy(kev)", "etheor"),
    "deviation": ("pixdev", "pixdevcalib"),
    "x_model": ("xtheo",),
    "y_model": ("ytheo",),
    "spot": ("spot_index", "spot"),
}
_KEYS = ("dd", "xcen", "ycen", "xbet", "xgam")


@dataclass(frozen=True)
class Calibration:
    """A detector as Lauetools describes it: distance `dd` (mm), `xcen`, `ycen` (px), `xbet`, `xgam` (degrees).

    `pixel` (mm) and the `shape` (rows, columns) of the image are None where the file does not say; `label` names the
    camera; `kf_direction` is "Z>0" (top), "X>0" (transmission), ...
    """

    dd: float
    xcen: float
    ycen: float
    xbet: float
    xgam: float
    pixel: float | None = None
    shape: tuple[int, int] | None = None
    kf_direction: str = "Z>0"
    label: str = ""


@dataclass(frozen=True, eq=False)
class SpotList:
    """The spots of one frame, float64 (n,), in the order of the file: `x`, `y` (px), `intensity`.

    `two_theta` and `chi` (degrees) as the file lists them, or None; `columns` holds all columns by name.
    """

    source: str
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    intensity: NDArray[np.float64]
    two_theta: NDArray[np.float64] | None = None
    chi: NDArray[np.float64] | None = None
    calibration: Calibration | None = None
    columns: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class FitGrain:
    """One grain of a .fit: its spots, and its matrices where the file has them.

    `spot` (n,) numbers the spots in the spot list; `hkl` (n, 3); `energy` (keV); `deviation` (px). `ub` (3, 3) takes
    hkl to q (1/angstrom); `b0` is the undeformed crystal's; `strain` and `strain_sample` are deviatoric, in the direct
    crystal axes (x along a) and in the sample frame; `cell` is the strained one with Lauetools' choice of scale (a is
    kept).
    """

    material: str
    spot: NDArray[np.int64]
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    intensity: NDArray[np.float64]
    hkl: NDArray[np.int64]
    two_theta: NDArray[np.float64] | None = None
    chi: NDArray[np.float64] | None = None
    energy: NDArray[np.float64] | None = None
    deviation: NDArray[np.float64] | None = None
    ub: NDArray[np.float64] | None = None
    b0: NDArray[np.float64] | None = None
    strain: NDArray[np.float64] | None = None
    strain_sample: NDArray[np.float64] | None = None
    cell: NDArray[np.float64] | None = None
    mean_deviation: float | None = None
    calibration: Calibration | None = None


@dataclass(frozen=True)
class DetFile:
    """A .det: the calibration, the material it was made with, and UB of that crystal (rotation times distortion)."""

    calibration: Calibration
    material: str = ""
    ub_rotation: NDArray[np.float64] | None = None


def _lines(path: str | Path) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise InputError(f"{path}: the file cannot be read ({error.strerror}); check its name") from None


def _table(path: str | Path, names: Sequence[str], rows: Sequence[str]) -> NDArray[np.float64]:
    """The rows as numbers; a column that the header names and the rows lack is an error, spare columns are cut."""
    values = []
    for row in rows:
        try:
            values.append([float(v) for v in row.replace(",", " ").split()][: len(names)])
        except ValueError:
            raise InputError(f"{path}: the row {row.strip()[:60]!r} is not all numbers; correct or remove it") from None
        if len(values[-1]) < len(names):
            raise InputError(
                f"{path}: the row {row.strip()[:60]!r} has {len(values[-1])} numbers where the header names "
                f"{len(names)} columns; correct or remove it"
            )
    return np.array(values, np.float64).reshape(-1, len(names))


def _column(what: str, columns: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64] | None:
    lower = {name.lower(): values for name, values in columns.items()}
    return next((lower[name] for name in _ALIASES[what] if name in lower), None)


def _required(path: str | Path, what: str, columns: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64]:
    found = _column(what, columns)
    if found is None:
        raise InputError(f"{path}: there is no column {' or '.join(_ALIASES[what])} in its header; add it")
    return found


def _spots(path: str | Path, lines: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    rows = [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not rows:
        raise InputError(f"{path}: there is no header line and no spot; it is not a spot list")
    names = rows[0].split()
    if re.fullmatch(_NUMBER, names[0]):
        raise InputError(
            f"{path}: its first line names no columns; begin it with 2theta chi X Y I or peak_X peak_Y ..."
        )
    table = _table(path, names, rows[1:])
    if not np.isfinite(table).all():
        raise InputError(f"{path}: some numbers are not finite; remove those spots")
    return dict(zip(names, table.T, strict=True))


def _pairs(lines: Iterable[str]) -> dict[str, str]:
    """The `# key : value` lines."""
    found = (re.match(r"#\s*(\w+)\s*:\s*(.*\S)\s*$", line) for line in lines)
    return {match[1]: match[2] for match in found if match}


def _shape(text: str) -> tuple[int, int] | None:
    numbers = re.findall(r"\d+", text)
    return (int(numbers[0]), int(numbers[1])) if len(numbers) == 2 else None


def _calibration_of(
    five: Sequence[float], pixel: float | None, shape: tuple[int, int] | None, pairs: Mapping[str, str]
) -> Calibration:
    dd, xcen, ycen, xbet, xgam = (float(v) for v in five)
    direction, label = pairs.get("kf_direction", "Z>0"), pairs.get("CCDLabel", "")
    return Calibration(dd, xcen, ycen, xbet, xgam, pixel, shape, direction, label)


def _calibration(path: str | Path, pairs: Mapping[str, str]) -> Calibration | None:
    if not all(key in pairs for key in _KEYS):
        return None
    try:
        numbers = [float(pairs[key]) for key in _KEYS]
        pixel = float(pairs["pixelsize"]) if "pixelsize" in pairs else None
    except ValueError:
        raise InputError(f"{path}: a calibration parameter below the spots is no number; correct it") from None
    shape = _shape(pairs.get("framedim", ""))
    return _calibration_of(numbers, pixel, shape, pairs)


def read_cor(path: str | Path) -> SpotList:
    """A .cor: 2theta chi X Y I and more columns, with the calibration in its footer (None where it has none).

    The angles are those the file lists; X, Y and the calibration are what was measured. Raises `InputError`.
    """
    lines = _lines(path)
    columns = _spots(path, lines)
    x, y, bright = (_required(path, what, columns) for what in ("x", "y", "intensity"))
    angles = (_column("two_theta", columns), _column("chi", columns))
    return SpotList(str(path), x, y, bright, *angles, _calibration(path, _pairs(lines)), columns)


def read_dat(path: str | Path) -> SpotList:
    """A .dat: peak_X peak_Y peak_Itot peak_Isub ...; the intensity is peak_Isub. Raises `InputError`."""
    return read_cor(path)


def read_det(path: str | Path) -> DetFile:
    """A .det: the numbers of its first line, and the `# key : value` lines of newer files. Raises `InputError`."""
    lines = _lines(path)
    numbers = re.findall(_NUMBER, lines[0]) if lines else []
    if len(numbers) < 5 or not re.fullmatch(rf"[\s,]*(?:{_NUMBER}[\s,]*)+", lines[0]):
        raise InputError(f"{path}: its first line must be dd, xcen, ycen, xbet, xgam, pixelsize, rows, columns")
    values = [float(v) for v in numbers]
    pairs = _pairs(lines)
    pixel = values[5] if len(values) > 5 else None
    shape = (int(values[6]), int(values[7])) if len(values) > 7 else _shape(pairs.get("framedim", ""))
    named = re.search(r"Calibration done with (\S+)", "\n".join(lines))
    matrix = re.search(r"Orientation Matrix:\s*(\[\[.*\]\])", "\n".join(lines))
    ub = np.array([float(v) for v in re.findall(_NUMBER, matrix[1])]) if matrix else np.empty(0)
    calibration = _calibration_of(values[:5], pixel, shape, pairs)
    material = pairs.get("Material", named[1] if named else "")
    return DetFile(calibration, material, ub.reshape(3, 3) if ub.size == 9 else None)


def _block(lines: Sequence[str], start: str, count: int) -> NDArray[np.float64] | None:
    """The first `count` numbers in the comment lines that follow the one that begins with `start`."""
    at = next((i for i, line in enumerate(lines) if line.lstrip("# ").startswith(start)), None)
    if at is None:
        return None
    numbers: list[float] = []
    for line in lines[at + 1 : at + 8]:
        if re.fullmatch(rf"[#\s\[\],()]*(?:{_NUMBER}[\s\[\],()]*)+", line):
            numbers += [float(v) for v in re.findall(_NUMBER, line)]
        elif numbers or not line.startswith("#"):
            break
        if len(numbers) >= count:
            return np.array(numbers[:count])
    return None


def _after(lines: Sequence[str], start: str) -> str:
    """The text of the comment line after the one that is `start`."""
    at = next((i for i, line in enumerate(lines[:-1]) if line.strip("# \t") == start), None)
    return "" if at is None else lines[at + 1].strip("# \t")


def _fit_grain(path: str | Path, lines: Sequence[str]) -> FitGrain:
    header = next((line for line in lines if re.match(r"#*\s*spot(_index|#)?\s", line)), None)
    if header is None:
        raise InputError(f"{path}: a grain has no line that names its columns (#spot_index ...); it is not a .fit")
    names = header.lstrip("# ").replace("spot#", "spot").split()
    body = [line for line in lines if line.strip() and not line.startswith("#")]
    table = _table(path, names, body)
    columns = dict(zip(names, table.T, strict=True))
    try:
        hkl = np.rint(np.stack([columns[name] for name in "hkl"], 1)).astype(np.int64)
    except KeyError:
        raise InputError(f"{path}: there are no columns h k l among {' '.join(names)}; add them") from None
    energy = _column("energy", columns)
    if energy is not None and "etheor" in (name.lower() for name in names):
        energy = energy / 1000  # that layout lists eV
    spot = _column("spot", columns)
    ub, b0 = _block(lines, "UB matrix in", 9), _block(lines, "B0 matrix in", 9)
    strain, sample = _block(lines, "deviatoric strain in direct", 9), _block(lines, "deviatoric strain in sample", 9)
    parameters, pixel = _block(lines, "DetectorParameters", 5), _block(lines, "pixelsize", 1)
    deviation = re.search(rf"(?m)^#\s*Mean (?:Pixel )?Deviation(?:\(pixel\))?\s*:\s*({_NUMBER})", "\n".join(lines))
    calibration = None
    if parameters is not None:
        size = None if pixel is None else float(pixel[0])
        frame = _shape(_after(lines, "Frame dimensions"))
        calibration = _calibration_of(parameters.tolist(), size, frame, {"CCDLabel": _after(lines, "CCDLabel")})
    return FitGrain(
        _after(lines, "Element"),
        np.arange(len(table)) if spot is None else spot.astype(np.int64),
        _required(path, "x", columns),
        _required(path, "y", columns),
        _required(path, "intensity", columns),
        hkl,
        _column("two_theta", columns),
        _column("chi", columns),
        energy,
        _column("deviation", columns),
        None if ub is None or b0 is None else ub.reshape(3, 3) @ b0.reshape(3, 3),
        None if b0 is None else b0.reshape(3, 3),
        None if strain is None else strain.reshape(3, 3) * 1e-3,
        None if sample is None else sample.reshape(3, 3) * 1e-3,
        _block(lines, "new lattice parameters", 6),
        float(deviation[1]) if deviation else None,
        calibration,
    )


def read_fit(path: str | Path) -> list[FitGrain]:
    """The grains of a .fit: of a calibration, of a strain refinement (two layouts), of one or more grains.

    Raises `InputError`.
    """
    lines = _lines(path)
    starts = [i for i, line in enumerate(lines) if re.match(r"#\s*Number of indexed spots", line)]
    if not starts:
        raise InputError(f"{path}: there is no line '#Number of indexed spots'; it is not a .fit of Lauetools")
    return [_fit_grain(path, lines[a:b]) for a, b in zip(starts, [*starts[1:], len(lines)], strict=True)]


def _calibration_lines(calibration: Calibration) -> list[str]:
    lines = [f"# {key}     :   {float(getattr(calibration, key))!r}" for key in _KEYS]
    if calibration.pixel is not None:
        lines += [f"# {key}     :   {calibration.pixel!r}" for key in ("pixelsize", "xpixelsize", "ypixelsize")]
    if calibration.label:
        lines.append(f"# CCDLabel     :   {calibration.label}")
    if calibration.shape is not None:
        rows, columns = calibration.shape
        lines.append(f"# framedim     :   ({rows}, {columns})")
        if calibration.pixel is not None:
            lines.append(f"# detectordiameter     :   {max(rows, columns) * calibration.pixel!r}")
    return [*lines, f"# kf_direction     :   {calibration.kf_direction}"]


def write_cor(path: str | Path, spots: SpotList) -> None:
    """A .cor with the columns 2theta chi X Y I. The angles must be there; they are not computed here."""
    if spots.two_theta is None or spots.chi is None:
        raise ValueError("a .cor needs 2theta and chi of every spot; compute them from the pixels first")
    lines = ["2theta       chi         X           Y           I       "]
    rows = zip(spots.two_theta, spots.chi, spots.x, spots.y, spots.intensity, strict=True)
    lines += [f"{t:.6f}   {c:.6f}   {x:.6f}   {y:.6f}   {i:.6f}" for t, c, x, y, i in rows]
    lines.append("# File created by mlindex")
    if spots.calibration is not None:
        lines += ["# Calibration parameters", *_calibration_lines(spots.calibration)]
    Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_det(path: str | Path, found: DetFile, source: str = "") -> None:
    """A .det as Lauetools reads it: eight numbers, the matrix in the sixth line, and the `# key : value` lines.

    The pixel size, the shape and the matrix must be there. `source` names the frame of the crystal.
    """
    c = found.calibration
    if c.pixel is None or c.shape is None or found.ub_rotation is None:
        raise ValueError("a .det needs the pixel size, the shape of the image and the matrix of a crystal")
    numbers = [*(float(getattr(c, key)) for key in _KEYS), float(c.pixel), *c.shape]
    rows = [f"[{','.join(f'{v:.7f}' for v in row)}]" for row in np.asarray(found.ub_rotation)]
    lines = [
        ", ".join(repr(v) for v in numbers),
        "Sample-Detector distance(IM), xO, yO, angle1, angle2, pixelsize, dim1, dim2",
        f"Calibration done with {found.material or 'unknown'} with mlindex",
        f"Experimental Data file: {source}",
        "Orientation Matrix:",
        f"[{','.join(rows)}]",
        *([f"# Material : {found.material}"] if found.material else []),
        *_calibration_lines(c),
    ]
    Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _matrix_lines(matrix: NDArray[np.float64], digits: int) -> list[str]:
    rows = [" ".join(f"{v:.{digits}f}" for v in row) for row in np.asarray(matrix)]
    return [f"#[[{rows[0]}]", *(f"# [{row}]" for row in rows[1:-1]), f"# [{rows[-1]}]]"]


def write_fit(path: str | Path, grains: Sequence[FitGrain], source: str = "") -> None:
    """A .fit of one or more grains, in the layout that every version of Lauetools reads.

    Unknown angles, energies and deviations are zero. `ub` and `b0` of each grain must be there.
    """
    names = "##spot_index intensity h k l 2theta Chi Xexp Yexp Energy GrainIndex PixDev"
    lines: list[str] = []
    for index, grain in enumerate(grains):
        if grain.ub is None or grain.b0 is None:
            raise ValueError("a grain of a .fit needs ub and b0")
        nothing = np.zeros(len(grain.x))
        extra = [nothing if v is None else v for v in (grain.two_theta, grain.chi, grain.energy, grain.deviation)]
        mean = (
            grain.mean_deviation if grain.mean_deviation is not None else float(extra[3].mean()) if extra[3].size else 0
        )
        lines += [
            f"#Strain and Orientation Refinement from experimental file: {source}",
            "#File created by mlindex",
            f"#Number of indexed spots: {len(grain.x)}",
            "#Element",
            f"#{grain.material}",
            "#grainIndex",
            f"#G_{index}",
            f"#Mean Deviation(pixel): {mean:.3f}",
            names,
        ]
        columns = [grain.spot, grain.intensity, *grain.hkl.T, extra[0], extra[1], grain.x, grain.y, extra[2]]
        columns += [nothing + index, extra[3]]
        lines += [" ".join(f"{v:.6f}" for v in row) for row in zip(*columns, strict=True)]
        lines += ["#UB matrix in q= (UB) B0 G* ", *_matrix_lines(grain.ub @ np.linalg.inv(grain.b0), 9)]
        lines += ["#B0 matrix in q= UB (B0) G*", *_matrix_lines(grain.b0, 9)]
        lines += [
            "#UBB0 matrix in q= (UB B0) G* i.e. recip. basis vectors are columns in LT frame: astar = UBB0[:,0], "
            "bstar = UBB0[:,1], cstar = UBB0[:,2]. (abcstar as columns on xyzlab1, xlab1 = ui, "
            "ui = unit vector along incident beam)",
            *_matrix_lines(grain.ub, 9),
        ]
        for title, strain in (("direct crystal", grain.strain), ("sample2", grain.strain_sample)):
            if strain is not None:
                lines += [f"#deviatoric strain in {title} frame (10-3 unit)", *_matrix_lines(strain * 1e3, 4)]
        if grain.cell is not None:
            lines += ["#new lattice parameters", f"#[{' '.join(f'{v:.7f}' for v in grain.cell)}]"]
        if (calibration := grain.calibration) is not None:
            lines += ["#CCDLabel", f"#{calibration.label}", "#DetectorParameters"]
            lines.append(f"#[{', '.join(repr(float(getattr(calibration, key))) for key in _KEYS)}]")
            if calibration.pixel is not None:
                lines += ["#pixelsize", f"#{calibration.pixel!r}"]
            if calibration.shape is not None:
                lines += ["#Frame dimensions", f"#({calibration.shape[0]}, {calibration.shape[1]})"]
        lines.append("#")
    Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")
