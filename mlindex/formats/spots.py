"""Spots of serial stills: CXI files, CrystFEL streams, and tables as those of DIALS in HDF5. Content decides which.

CXI (Maia, Nature Methods 9 (2012) 854; written by Cheetah, psocake, OM): `nPeaks` (frames,), `peakXPosRaw`,
`peakYPosRaw`, `peakTotalIntensity` (frames, most). Their positions are indices of pixels, to which half a pixel is
added, as CrystFEL does. A table has one row a spot: `xyzobs.px.value` (n, 3) in pixels from the corner of the first, or
`rlp` (n, 3) in 1/angstrom, or `d`, or `q` = 1/d; `intensity.sum.value`, `id`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from mlindex.formats.crystfel import EV_ANGSTROM, Geometry, read_stream
from mlindex.records import InputError

_HDF5 = b"\x89HDF\r\n\x1a\n"
_STREAM = b"CrystFEL stream format"
_INTENSITY = ("intensity.sum.value", "intensity", "intensities", "I")
_FRAME = ("id", "imageset_id", "frame", "image", "experiment_id")
_ENERGY = ("/LCLS/photon_energy_eV", "/entry_1/instrument_1/source_1/energy", "/entry/instrument/beam/incident_energy")
_WAVELENGTH = ("/entry/instrument/beam/incident_wavelength", "/entry_1/instrument_1/source_1/wavelength", "wavelength")
_JOULE = 6.241509074e18  # eV


@dataclass(frozen=True)
class Spots:
    """The spots of the stills in one file, (n,) each.

    `fs`, `ss`: pixels of the file from the corner of the first, NaN where it has none. `q` = 1/d in 1/angstrom as the
    file says, NaN where it does not. `wavelength` (angstrom) and `distance` (metres) of each spot's still, NaN
    likewise. `frame` counts the stills from 0, `frames` of them. `geometry`: that which came with the spots.
    """

    source: str
    frames: int
    frame: Int[np.ndarray, " n"]
    fs: Float[np.ndarray, " n"]
    ss: Float[np.ndarray, " n"]
    q: Float[np.ndarray, " n"]
    intensity: Float[np.ndarray, " n"]
    wavelength: Float[np.ndarray, " n"]
    distance: Float[np.ndarray, " n"]
    geometry: Geometry | None = None


def holds_spots(path: Path | str) -> bool:
    """Whether a file begins as one of spots does: HDF5, or a CrystFEL stream. False for what cannot be read."""
    try:
        with Path(path).open("rb") as file:
            return file.read(len(_STREAM)).startswith((_HDF5, _STREAM))
    except (OSError, ValueError):
        return False


def read_spots(path: Path | str, geometry: Geometry | None = None) -> Spots:
    """The spots in a file; `geometry` says where in an HDF5 file camera length and photon energy are, if it does.

    Raises `InputError`, one sentence, for a file without spots.
    """
    if not holds_spots(path):
        there = Path(path).exists()
        wrong = (
            "is no file of spots; give CXI, a CrystFEL .stream, or a table in HDF5"
            if there
            else "there is no such file; check the name"
        )
        raise InputError(f"{path}: {wrong}")
    with Path(path).open("rb") as file:
        text = file.read(len(_STREAM)) == _STREAM
    spots = _from_stream(path) if text else _from_hdf5(path, geometry)
    if not len(spots.fs):
        raise InputError(f"{path}: has {spots.frames} stills and no spot; leave it out")
    return spots


def _from_stream(path: Path | str) -> Spots:
    s = read_stream(path)
    return Spots(str(path), s.frames, s.frame, s.fs, s.ss, s.q, s.intensity, s.wavelength, s.distance, s.geometry)


def _from_hdf5(path: Path | str, geometry: Geometry | None) -> Spots:
    import h5py

    try:
        with h5py.File(path, "r") as h5:
            for name, read in (
                ("nPeaks", _from_cxi),
                *((key, _from_table) for key in ("xyzobs.px.value", "rlp", "d", "q")),
            ):
                group = _holder(h5, name)
                if group is not None:
                    return read(path, h5, group, geometry)
    except (OSError, KeyError, RuntimeError) as error:
        reason = str(error).partition("(")[2].rstrip(")") or str(error)
        raise InputError(f"{path}: is no HDF5 file that can be read ({reason}); copy it again") from None
    raise InputError(
        f"{path}: has neither nPeaks (CXI) nor xyzobs.px.value, rlp, d or q (a table of spots); give one that has"
    )


def _holder(h5: Any, name: str) -> Any:
    """The first group with a dataset of this name."""
    import h5py

    found: list[Any] = []

    def visit(place: str, node: Any) -> Any:
        if isinstance(node, h5py.Dataset) and place.rpartition("/")[2] == name:
            found.append(node.parent)
            return True
        return None

    h5.visititems(visit)
    return found[0] if found else None


def _values(
    path: Path | str, group: Any, name: str, shape: Callable[[tuple[int, ...]], bool], what: str
) -> NDArray[np.float64]:
    if name not in group:
        raise InputError(f"{path}: {group.name} has no {name}; write it {what}")
    values = np.asarray(group[name][()], np.float64)
    if not shape(values.shape):
        raise InputError(f"{path}: {group.name}/{name} has the shape {values.shape}; write it {what}")
    return values


def _from_cxi(path: Path | str, h5: Any, group: Any, geometry: Geometry | None) -> Spots:
    counts = _values(path, group, "nPeaks", lambda s: len(s) == 1, "as (frames,)").astype(np.int64)
    frames = len(counts)
    x, y = (
        _values(path, group, name, lambda s: len(s) == 2 and s[0] == frames, "as (frames, most peaks)")
        for name in ("peakXPosRaw", "peakYPosRaw")
    )
    if np.any(counts < 0) or np.any(counts > x.shape[1]) or x.shape != y.shape:
        raise InputError(f"{path}: nPeaks goes beyond the peaks that there are; write the file again")
    there = np.arange(x.shape[1]) < counts[:, None]
    frame = np.repeat(np.arange(frames), counts)
    intensity = np.ones(len(frame))
    if "peakTotalIntensity" in group:
        intensity = np.asarray(group["peakTotalIntensity"][()], np.float64)[there]
    return Spots(
        str(path),
        frames,
        frame,
        x[there] + 0.5,
        y[there] + 0.5,
        np.full(len(frame), np.nan),
        intensity,
        _wavelengths(h5, frames, geometry)[frame],
        _distances(h5, frames, geometry)[frame],
    )


def _from_table(path: Path | str, h5: Any, group: Any, geometry: Geometry | None) -> Spots:
    names = [name for name in ("xyzobs.px.value", "rlp", "d", "q") if name in group]
    n = len(group[names[0]])
    fs = ss = q = np.full(n, np.nan)
    for name in reversed(names):  # the first of them has the last word
        if name in ("d", "q"):
            value = _values(path, group, name, lambda s: s == (n,), "as (spots,)")
            q = value if name == "q" else 1 / np.where(value > 0, value, np.nan)
            continue
        value = _values(path, group, name, lambda s: s == (n, 3), "as (spots, 3)")
        if name == "rlp":
            q = np.linalg.norm(value, axis=1)
        else:
            fs, ss = value[:, 0], value[:, 1]
    intensity = next((np.asarray(group[k][()], np.float64) for k in _INTENSITY if k in group), np.ones(n))
    label = next((np.asarray(group[k][()]) for k in _FRAME if k in group), np.zeros(n, np.int64))
    _, frame = np.unique(label, return_inverse=True)
    frames = int(frame.max()) + 1 if n else 0
    return Spots(
        str(path),
        frames,
        frame.astype(np.int64),
        fs,
        ss,
        q,
        intensity if intensity.shape == (n,) else np.ones(n),
        _wavelengths(h5, frames, geometry)[frame],
        _distances(h5, frames, geometry)[frame],
    )


def _spread(values: Any, frames: int) -> NDArray[np.float64]:
    """One value a frame, from one for all or one each; NaN where neither."""
    flat = np.asarray(values, np.float64).ravel()
    return flat if len(flat) == frames else np.full(frames, flat[0] if len(flat) == 1 else np.nan)


def _at(h5: Any, name: str, frames: int) -> NDArray[np.float64] | None:
    try:
        return _spread(h5[name][()], frames)
    except (KeyError, OSError, ValueError, TypeError, AttributeError):
        return None


def _wavelengths(h5: Any, frames: int, geometry: Geometry | None) -> NDArray[np.float64]:
    for _, place, unit in (k for k in (geometry.keys if geometry else ()) if k[0] == "photon_energy"):
        if (energy := _at(h5, place, frames)) is not None:
            return EV_ANGSTROM / (energy * unit)
    for place in _WAVELENGTH:
        if (length := _at(h5, place, frames)) is not None:
            return np.where(length < 1e-3, length * 1e10, length)  # metres or angstrom
    for place in _ENERGY:
        if (energy := _at(h5, place, frames)) is not None:
            energy = np.where(energy < 1e-10, energy * _JOULE, energy)  # CXI has joules, LCLS eV
            return EV_ANGSTROM / np.where(energy > 0, energy, np.nan)
    return np.full(frames, np.nan)


def _distances(h5: Any, frames: int, geometry: Geometry | None) -> NDArray[np.float64]:
    for _, place, unit in (k for k in (geometry.keys if geometry else ()) if k[0] == "clen"):
        if (length := _at(h5, place, frames)) is not None:
            return length * unit
    return np.full(frames, np.nan)
