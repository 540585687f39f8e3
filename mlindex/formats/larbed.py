"""LARBED patterns (large-angle rocking-beam electron diffraction) in HDF5, and the truth of simulated ones.

Group `/larbed`: `intensity` (tilts, beams), `hkl` (beams, 3), `tilt` (tilts, 2) with the attribute `units` ("mrad",
"rad" or "deg"; components along x, parallel to a* where that is in the plane of the reciprocal zone, and y); attributes
`voltage_kV`, `cell` (six numbers, angstrom and degrees), `zone_axis` (three integers) and, if known, `composition`,
`cif` (a path) and `normalised` (true: the intensities are fractions of the incident beam, whatever they sum to).

A simulated pattern has a second group `/truth`: `dhkl` (differences, 3), `u` (1/A^2, complex, of each), `thickness` (A)
and `intensity` (without noise).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlindex.crystal.metric import checked_cell
from mlindex.records import InputError

_DEGREE = 1e3 * np.pi / 180
_MRAD = {"mrad": 1.0, "milliradian": 1.0, "rad": 1e3, "radian": 1e3, "deg": _DEGREE, "degree": _DEGREE}
_NORMALISED = 0.02  # sums over the beams this near 1 (median over the tilts) are left as they are
_SUM = 1.1  # and a fraction of the intensity may be in beams that were not recorded, but not more than all of it
_LARGEST_TILT = 500.0  # mrad
_SHORT = 1.5  # A: no crystal has all three edges below it, and most have in nm


@dataclass(frozen=True, eq=False)
class Larbed:
    """A pattern: `intensity` (m, n) float64, of tilts and beams, as fractions of the incident beam.

    `hkl` (n, 3); `tilt` (m, 2) in mrad; `voltage_kv`; `cell` (6,); `zone` (3,). The intensities in the file are `scale`
    times these: 1 where they were fractions already, else what makes the median sum over the beams 1 (fit it again
    where beams are missing). `composition` and `cif` are "" where the file does not say.
    """

    id: str
    source: str
    intensity: NDArray[np.float64]
    hkl: NDArray[np.int64]
    tilt: NDArray[np.float64]
    voltage_kv: float
    cell: NDArray[np.float64]
    zone: NDArray[np.int64]
    scale: float = 1.0
    composition: str = ""
    cif: str = ""


@dataclass(frozen=True, eq=False)
class Truth:
    """What a simulated pattern was made from: `u` (d,) complex, in 1/A^2, at `dhkl` (d, 3); `thickness` in A;
    `intensity` (m, n) without noise."""

    dhkl: NDArray[np.int64]
    u: NDArray[np.complex128]
    thickness: float
    intensity: NDArray[np.float64]


def read_larbed(path: Path | str) -> Larbed:
    """The pattern in a file; raises `InputError`, one sentence, for a file that cannot be used."""
    import h5py

    with _opened(path) as file:
        group = file.get("larbed")
        if not isinstance(group, h5py.Group):
            raise InputError(f"{path}: has no group /larbed; a LARBED pattern is stored there")
        try:
            intensity = _dataset(group, "intensity", "tilts by beams")
            hkl = _hkl(_dataset(group, "hkl", "beams by 3"))
            tilt = _tilt(group, _dataset(group, "tilt", "tilts by 2"))
            _matches(intensity, hkl, tilt)
            intensity, scale = _fractions(intensity, bool(group.attrs.get("normalised", False)))
            voltage = checked_voltage(float(_attribute(group, "voltage_kV", 1, "the accelerating voltage in kV")[0]))
            cell = checked_edges(
                _attribute(group, "cell", 6, "a, b, c, alpha, beta, gamma"), origin="the attribute cell"
            )
            zone = _zone(group, hkl)
            words = {name: _text(group.attrs.get(name, "")) for name in ("composition", "cif")}
        except ValueError as error:
            raise InputError(f"{path}: {error}") from None
        except OSError as error:
            raise InputError(f"{path}: is damaged ({str(error).splitlines()[0]}); copy it again") from None
    name = Path(path).name
    return Larbed(name, str(path), intensity, hkl, tilt, voltage, cell, zone, scale, **words)


def checked_voltage(value: float, *, origin: str = "voltage_kV") -> float:
    """The voltage (kV); raises `ValueError`, one sentence naming `origin`, for volts and for what is none."""
    if value >= 5000:
        raise ValueError(f"{origin} is {value:g}, which looks like volts; give kV")
    if not value >= 1:  # nan among them
        raise ValueError(f"{origin} is {value:g}; electrons of at least 1 kV are expected")
    return value


def checked_edges(cell: Sequence[float] | NDArray[np.float64], *, origin: str) -> NDArray[np.float64]:
    """The cell (6,); raises `ValueError`, one sentence naming `origin`, for one that is none or has edges in nm."""
    checked = checked_cell(cell, origin=origin)
    if np.all(checked[:3] < _SHORT):
        edges = ", ".join(f"{edge:g}" for edge in checked[:3])
        raise ValueError(f"{origin}: edges of {edges} look like nanometres; give them in angstrom")
    return checked


def read_truth(path: Path | str) -> Truth | None:
    """The truth of a simulated pattern, None where the file has none; raises `InputError` for a file that is no HDF5
    and for a truth without its parts."""
    with _opened(path) as file:
        if "truth" not in file:
            return None
        try:
            group = file["truth"]
            values = group["u"][...].astype(np.complex128)
            depth = float(group["thickness"][()])
            return Truth(group["dhkl"][...].astype(np.int64), values, depth, group["intensity"][...].astype(np.float64))
        except (KeyError, OSError, TypeError, ValueError) as error:
            raise InputError(f"{path}: the group /truth is not complete ({error}); simulate the pattern anew") from None


def write_larbed(path: Path | str, larbed: Larbed, truth: Truth | None = None, creator: str = "") -> None:
    """Write a pattern (its `intensity` times its `scale`), and the truth beside it; raises `InputError` where the file
    cannot be written."""
    import h5py

    try:
        with h5py.File(path, "w") as file:
            if creator:
                file.attrs["creator"] = creator
            group = file.create_group("larbed")
            group.attrs.update(NX_class="NXdata", voltage_kV=float(larbed.voltage_kv), cell=larbed.cell)
            group.attrs["zone_axis"] = larbed.zone
            group.attrs["normalised"] = larbed.scale == 1.0
            for word in ("composition", "cif"):
                if getattr(larbed, word):
                    group.attrs[word] = getattr(larbed, word)
            _write(group, "intensity", larbed.intensity * larbed.scale, "", "intensity, tilts by beams")
            _write(group, "hkl", larbed.hkl, "", "indices of the beams")
            _write(group, "tilt", larbed.tilt, "mrad", "tilt of the incident beam along x and y, x along a*")
            if truth is None:
                return
            group = file.create_group("truth")
            group.attrs["NX_class"] = "NXcollection"
            _write(group, "dhkl", truth.dhkl, "", "differences of the indices of two beams")
            _write(group, "u", truth.u, "1/angstrom^2", "structure factors U_g, relativistic")
            _write(group, "thickness", np.float64(truth.thickness), "angstrom", "thickness of the slab")
            _write(group, "intensity", truth.intensity, "", "intensity without noise, fractions of the incident beam")
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error}); give another file") from None


def read_u(path: Path | str) -> tuple[NDArray[np.int64], NDArray[np.complex128]]:
    """Indices (k, 3) and U (k,), 1/A^2, from lines `h k l re im` (or with commas; # starts a comment).

    Raises `InputError`, one sentence, for a file that has no such lines or others too.
    """
    try:
        lines = Path(path).read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        raise InputError(f"{path}: cannot be read as text; give lines 'h k l re im'") from None
    rows = []
    for number, line in enumerate(lines, 1):
        words = line.split("#")[0].replace(",", " ").split()
        if not words:
            continue
        try:
            h, k, l, re, im = (float(w) for w in words)  # noqa: E741  the field's names
            if not all(np.isfinite((h, k, l, re, im))) or any(i != int(i) for i in (h, k, l)):
                raise ValueError
        except ValueError:
            raise InputError(f"{path}: line {number} is not 'h k l re im', three integers and U in 1/A^2") from None
        rows.append((h, k, l, re, im))
    if not rows:
        raise InputError(f"{path}: has no structure factors; give lines 'h k l re im'")
    table = np.array(rows)
    return table[:, :3].astype(np.int64), table[:, 3] + 1j * table[:, 4]


def _opened(path: Path | str) -> Any:
    import h5py

    if not Path(path).is_file():
        raise InputError(f"{path}: there is no such file; correct the name")
    try:
        return h5py.File(path, "r")
    except OSError:
        raise InputError(f"{path}: is no HDF5 file; a LARBED pattern is an HDF5 file with a group /larbed") from None


def _write(group: Any, name: str, values: Any, units: str, long_name: str) -> None:
    data = group.create_dataset(name, data=values)
    if units:
        data.attrs["units"] = units
    data.attrs["long_name"] = long_name


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _dataset(group: Any, name: str, what: str) -> NDArray[np.float64]:
    import h5py

    node = group.get(name)
    if not isinstance(node, h5py.Dataset):
        raise ValueError(f"the dataset /larbed/{name} ({what}) is missing; add it")
    if node.ndim != 2 or node.dtype.kind not in "iuf":
        raise ValueError(f"/larbed/{name} must hold numbers, {what}, but is {node.dtype} of shape {node.shape}")
    return node[...].astype(np.float64)


def _attribute(group: Any, name: str, count: int, what: str) -> NDArray[np.float64]:
    if name not in group.attrs:
        raise ValueError(f"/larbed lacks the attribute {name} ({what}); add it")
    try:
        values = np.asarray(group.attrs[name], np.float64).ravel()
    except (TypeError, ValueError):
        values = np.empty(0)
    if len(values) != count or not np.all(np.isfinite(values)):
        given = _text(group.attrs[name])
        raise ValueError(f"the attribute {name} must hold {count} finite number{'s' * (count > 1)}, not {given}")
    return values


def _zone(group: Any, hkl: NDArray[np.int64]) -> NDArray[np.int64]:
    values = _attribute(group, "zone_axis", 3, "the indices u, v, w")
    zone = np.rint(values).astype(np.int64)
    if np.any(np.abs(values - zone) > 1e-6) or not zone.any():
        raise ValueError(f"zone_axis must be three integers, not all zero, not {values.tolist()}")
    out = hkl[hkl @ zone != 0]
    # Beams of higher zones may be the many; but where those in the zone span no plane, it is another zone
    if len(out) > len(hkl) / 2 and np.linalg.matrix_rank(hkl[hkl @ zone == 0]) < 2:
        raise ValueError(
            f"{len(out)} of the {len(hkl)} beams are not in the zone {zone.tolist()}, as {out[0].tolist()}; "
            "correct zone_axis or hkl"
        )
    return zone


def _hkl(values: NDArray[np.float64]) -> NDArray[np.int64]:
    if values.shape[1] != 3:
        raise ValueError(f"/larbed/hkl must be beams by 3, but has the shape {values.shape}")
    if not np.all(np.isfinite(values)) or np.any(np.abs(values - np.rint(values)) > 1e-6):
        raise ValueError("/larbed/hkl holds numbers that are no integers; index the beams")
    hkl = np.rint(values).astype(np.int64)
    kinds, count = np.unique(hkl, axis=0, return_counts=True)
    if np.any(count > 1):
        raise ValueError(f"the beam {kinds[count > 1][0].tolist()} is listed {count.max()} times; give each beam once")
    if np.all(hkl.any(1)):
        raise ValueError("the direct beam 0 0 0 is missing in /larbed/hkl; add it with its intensities")
    return hkl


def _tilt(group: Any, values: NDArray[np.float64]) -> NDArray[np.float64]:
    if values.shape[1] != 2:
        raise ValueError(f"/larbed/tilt must be tilts by 2, but has the shape {values.shape}")
    units = _text(group["tilt"].attrs.get("units", "")).strip().lower().rstrip("s")
    if units not in _MRAD:
        found = f"are in {units!r}" if units else "have no attribute units"
        raise ValueError(f'the tilts {found}; set units of /larbed/tilt to "mrad", "rad" or "deg"')
    tilt = values * _MRAD[units]
    if not np.all(np.isfinite(tilt)):
        raise ValueError(f"some tilts ({np.count_nonzero(~np.isfinite(tilt).all(1))}) are not finite; remove them")
    if np.abs(tilt).max(initial=0.0) > _LARGEST_TILT:
        raise ValueError(f"a tilt of {np.abs(tilt).max():g} mrad is too large; are its units ({units}) right?")
    return tilt


def _matches(intensity: NDArray, hkl: NDArray, tilt: NDArray) -> None:
    wanted = len(tilt), len(hkl)
    if intensity.shape == wanted and intensity.size:
        return
    if not intensity.size or not all(wanted):
        raise ValueError("there are no intensities, beams or tilts; the pattern is empty")
    turned = "; it is beams by tilts: transpose it" if intensity.shape == wanted[::-1] else "; correct one of them"
    there = f"there are {wanted[0]} tilts and {wanted[1]} beams"
    raise ValueError(f"/larbed/intensity has the shape {intensity.shape}, but {there}{turned}")


def _fractions(intensity: NDArray[np.float64], known: bool) -> tuple[NDArray[np.float64], float]:
    """The intensities as fractions of the incident beam, and what they were divided by."""
    bad = ~np.isfinite(intensity)
    if bad.any():
        tilt, beam = np.argwhere(bad)[0]
        raise ValueError(
            f"some intensities ({np.count_nonzero(bad)}) are not finite, the first at tilt {tilt}, beam {beam} "
            "(from 0); remove these tilts or beams"
        )
    if np.any(intensity < 0):
        tilt, beam = np.argwhere(intensity < 0)[0]
        raise ValueError(
            f"some intensities ({np.count_nonzero(intensity < 0)}) are negative, the first at tilt {tilt}, beam {beam} "
            "(from 0); subtract less background, or set them to zero"
        )
    total = intensity.sum(1)
    middle = float(np.median(total))
    if middle == 0:
        raise ValueError("most tilts have no intensity in any beam; the pattern is empty")
    if known or abs(middle - 1) < _NORMALISED or (0.5 < middle < 1 and total.max() < _SUM):
        return intensity, 1.0
    return intensity / middle, middle
