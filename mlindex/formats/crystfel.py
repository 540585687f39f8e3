"""CrystFEL: the geometry of a detector (`.geom`) and the peak lists in a `.stream`.

Source: the manual pages crystfel_geometry(5) and the stream format 2.3, https://www.desy.de/~twhite/crystfel. A panel's
pixel (fs, ss), counted from the corner of its first pixel, lies at corner + fs f + ss s, in pixels, times 1/res metres,
at z = clen + coffset. The peaks of a stream are in the coordinates of the file that the images are in, (min_fs, min_ss)
being the panel's first pixel. Its column of 1/d is rounded to 0.01 nm^-1: where the stream has its geometry, positions
are better computed from the pixels.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from mlindex.records import InputError

EV_ANGSTROM = 12398.41984  # photon energy times wavelength
_SKIPPED = re.compile(r"(?i)^(bad|group|rigid_group|dim|data$|mask|saturation|peak_list|bandwidth|beam|profile|adu)")
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"


@dataclass(frozen=True)
class Panel:
    """One flat part of a detector. `corner`, `fast`, `slow` (x, y, z) in pixels; `span` (min_fs, max_fs, min_ss,
    max_ss), inclusive; `pixel` and `offset` (z beyond the camera length) in metres; `distance` in metres, None: that of
    the images."""

    name: str
    corner: tuple[float, float] = (0.0, 0.0)
    fast: tuple[float, float, float] = (1.0, 0.0, 0.0)
    slow: tuple[float, float, float] = (0.0, 1.0, 0.0)
    span: tuple[float, float, float, float] = (-np.inf, np.inf, -np.inf, np.inf)
    pixel: float = 0.0
    offset: float = 0.0
    distance: float | None = None


@dataclass(frozen=True)
class Geometry:
    """A detector of flat panels. `wavelength` in angstrom, None: that of the images. `keys`: where in an HDF5 file of
    images "clen" (with its unit in metres) and "photon_energy" (in eV) are."""

    panels: tuple[Panel, ...]
    wavelength: float | None = None
    keys: tuple[tuple[str, str, float], ...] = ()

    def panel_of(self, fs: Float[np.ndarray, " n"], ss: Float[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """The panel that each pixel of the file is in; -1 for none."""
        out = np.full(len(fs), -1)
        for i, p in enumerate(self.panels):
            low_f, high_f, low_s, high_s = p.span
            out[(fs >= low_f) & (fs < high_f + 1) & (ss >= low_s) & (ss < high_s + 1)] = i
        return out

    def places(
        self, fs: Float[np.ndarray, " n"], ss: Float[np.ndarray, " n"], distance: Float[np.ndarray, " n"]
    ) -> Float[np.ndarray, "n 3"]:
        """x, y and z in metres from the sample of positions in the file; NaN outside every panel.

        `distance`, the camera length in metres, is used by panels that do not say theirs.
        """
        at = self.panel_of(fs, ss)
        out = np.full((len(fs), 3), np.nan)
        for i, p in enumerate(self.panels):
            mine = at == i
            f, s = (v[mine] - (low if np.isfinite(low) else 0.0) for v, low in ((fs, p.span[0]), (ss, p.span[2])))
            place = np.array([*p.corner, 0.0]) + f[:, None] * np.array(p.fast) + s[:, None] * np.array(p.slow)
            place *= p.pixel
            place[:, 2] += (distance[mine] if p.distance is None else p.distance) + p.offset
            out[mine] = place
        return out

    @property
    def pixel(self) -> float:
        """The size of a pixel in metres: the median over the panels."""
        return float(np.median([p.pixel for p in self.panels]))

    def shifted(self, x: float, y: float) -> Geometry:
        """The same with the beam at (x, y) metres of where it was."""
        moved = [replace(p, corner=(p.corner[0] - x / p.pixel, p.corner[1] - y / p.pixel)) for p in self.panels]
        return replace(self, panels=tuple(moved))

    def further(self, factor: float) -> Geometry:
        """The same with every camera length that is said times `factor`."""
        scaled = [
            p if p.distance is None else replace(p, distance=(p.distance + p.offset) * factor - p.offset)
            for p in self.panels
        ]
        return replace(self, panels=tuple(scaled))


def flat_geometry(
    distance: float, beam: tuple[float, float], pixel: float, wavelength: float | None = None
) -> Geometry:
    """One panel across the beam: `distance` and `pixel` in metres, `beam` in pixels from the corner of the first."""
    return Geometry((Panel("detector", (-beam[0], -beam[1]), pixel=pixel, distance=distance),), wavelength)


def read_geometry(path: Path | str) -> Geometry:
    """The geometry in a `.geom` file; raises `InputError`, one sentence, for a file that is none."""
    try:
        text = Path(path).read_text(errors="replace")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give a CrystFEL geometry file") from None
    return geometry_from_text(text, str(path))


@dataclass
class _Reading:
    defaults: dict[str, str] = field(default_factory=dict)
    panels: dict[str, dict[str, str]] = field(default_factory=dict)


def geometry_from_text(text: str, origin: str) -> Geometry:
    """The geometry in a text; raises `InputError` naming `origin` for one without panels, sizes or directions."""
    read = _Reading()
    for line in text.splitlines():
        key, equals, value = line.partition(";")[0].partition("=")
        key, value = key.strip(), value.strip()
        if not equals or _SKIPPED.match(key):
            continue
        name, slash, what = key.partition("/")
        if slash:
            read.panels.setdefault(name, dict(read.defaults))[what] = value
        else:
            read.defaults[key] = value
    if not read.panels:
        raise InputError(f"{origin}: has no panels (lines as 'p0/min_fs = 0'); give a CrystFEL geometry file")
    panels = tuple(_panel(name, values, origin) for name, values in read.panels.items())
    wavelength, keys = _beam(read.defaults)
    clen = read.defaults.get("clen") or next(iter(read.panels.values())).get("clen", "")
    if clen.startswith("/"):
        place, _, unit = clen.partition(" ")
        keys.append(("clen", place, {"m": 1.0}.get(unit.strip(), 1e-3)))  # millimetres where it does not say
    return Geometry(panels, wavelength, tuple(keys))


def _beam(values: Mapping[str, str]) -> tuple[float | None, list[tuple[str, str, float]]]:
    stated = values.get("wavelength", "")
    if found := re.match(rf"({_NUMBER})\s*(m|A)?", stated):
        return float(found[1]) * (1e10 if found[2] == "m" else 1.0), []
    energy = values.get("photon_energy", "")
    if found := re.match(rf"({_NUMBER})\s*(eV|keV|MeV)?", energy):
        return EV_ANGSTROM / (float(found[1]) * {"keV": 1e3, "MeV": 1e6}.get(found[2] or "eV", 1.0)), []
    if energy.startswith("/"):
        place, _, unit = energy.partition(" ")
        return None, [("photon_energy", place, {"keV": 1e3}.get(unit.strip(), 1.0))]
    return None, []


def _vector(text: str, origin: str) -> tuple[float, float, float]:
    out = {"x": 0.0, "y": 0.0, "z": 0.0}
    found = re.findall(r"([-+]?)\s*(\d*\.?\d*(?:[eE][-+]?\d+)?)\s*([xyz])", text)
    if not found:
        raise InputError(f"{origin}: {text!r} is no direction of pixels; write it as '+1.0x -0.001y'")
    for sign, number, axis in found:
        out[axis] += (-1.0 if sign == "-" else 1.0) * (float(number) if number else 1.0)
    return out["x"], out["y"], out["z"]


def _panel(name: str, values: Mapping[str, str], origin: str) -> Panel:
    def number(key: str, default: float | None = None) -> float:
        found = re.match(_NUMBER, values.get(key, ""))
        if found is None:
            if default is not None:
                return default
            raise InputError(f"{origin}: panel {name} has no {key}; add it")
        return float(found[0])

    resolution = number("res")
    if resolution <= 0:
        raise InputError(f"{origin}: panel {name} has res = {resolution:g}; give pixels a metre")
    clen = values.get("clen", "")
    unit = 1e-3 if re.fullmatch(rf"{_NUMBER}\s*mm", clen) else 1.0
    return Panel(
        name,
        (number("corner_x"), number("corner_y")),
        _vector(values.get("fs", "x"), origin),
        _vector(values.get("ss", "y"), origin),
        (number("min_fs"), number("max_fs"), number("min_ss"), number("max_ss")),
        1.0 / resolution,
        number("coffset", 0.0),
        number("clen") * unit if re.match(_NUMBER, clen) else None,
    )


@dataclass(frozen=True)
class StreamPeaks:
    """The peaks of all images of a stream, (n,) each: `frame` from 0, `fs` and `ss` in pixels of the file, `q` = 1/d in
    1/angstrom as the stream says, `intensity`; `wavelength` (angstrom) and `distance` (metres), NaN where it does
    not say. `frames` counts the images; `geometry` is what the stream was made with."""

    frames: int
    frame: Int[np.ndarray, " n"]
    fs: Float[np.ndarray, " n"]
    ss: Float[np.ndarray, " n"]
    q: Float[np.ndarray, " n"]
    intensity: Float[np.ndarray, " n"]
    wavelength: Float[np.ndarray, " n"]
    distance: Float[np.ndarray, " n"]
    geometry: Geometry | None


def read_stream(path: Path | str) -> StreamPeaks:
    """The peak lists of a `.stream`, not its predicted reflections; raises `InputError` for a file without any."""
    rows: list[tuple[float, ...]] = []
    geometry_lines: list[str] = []
    frames, energy, length, within = 0, np.nan, np.nan, ""
    try:
        with Path(path).open(errors="replace") as file:
            for line in file:
                if within == "peaks":
                    if line.startswith("End of peak list"):
                        within = ""
                    elif not line.lstrip().startswith("fs/px"):
                        fields = line.split()
                        try:
                            rows.append((frames - 1, *map(float, fields[:4]), energy, length))
                        except ValueError:
                            raise InputError(f"{path}: {line.strip()!r} is no peak; is the stream cut off?") from None
                elif within == "geometry":
                    within = "" if line.startswith("----- End geometry") else within
                    geometry_lines.append(line)
                elif line.startswith("Peaks from peak search"):
                    within = "peaks"
                elif line.startswith("----- Begin geometry"):
                    within, geometry_lines = "geometry", []
                elif line.startswith("----- Begin chunk"):
                    frames, energy, length = frames + 1, np.nan, np.nan
                elif line.startswith("photon_energy_eV"):
                    energy = float(line.partition("=")[2])
                elif line.startswith("average_camera_length"):
                    length = float(line.partition("=")[2].split()[0])
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the name and its permissions") from None
    if not rows or any(len(row) != 7 for row in rows):
        raise InputError(f"{path}: has no peak lists; let indexamajig write them (leave out --no-peaks-in-stream)")
    table = np.array(rows, np.float64)
    geometry = geometry_from_text("".join(geometry_lines), f"{path} (its geometry)") if geometry_lines else None
    frame, fs, ss, per_nm, intensity, energies, distance = table.T
    return StreamPeaks(
        frames, frame.astype(np.int64), fs, ss, per_nm / 10, intensity, EV_ANGSTROM / energies, distance, geometry
    )
