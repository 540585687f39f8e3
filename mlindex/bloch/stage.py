"""The inversion of LARBED patterns as a stage: patterns in, structure factors and thickness out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mlindex.bloch import noise, search
from mlindex.bloch.beams import Geometry, geometry
from mlindex.bloch.judge import Solution
from mlindex.bloch.record import bloch_record
from mlindex.bloch.simulate import crystal_u, given_u
from mlindex.bloch.verdict import why_not
from mlindex.config import BlochSettings
from mlindex.crystal.scattering import crystal_from_cif
from mlindex.formats.larbed import Larbed, read_larbed, read_u
from mlindex.records import Column, InputError, Item, Result, Schema, Status

BLIND = "blind"
_CELL = 0.05  # lengths and angles of a starting CIF may differ by this, relatively
_SUM = 0.02  # what the sum over the beams may differ from 1 by, where all of the incident beam is there
_FLAT = 1e-6  # 1/A: a beam that is no farther out belongs to the zero-order zone
_INSIDE = 0.98  # of the longest g: shells that differ by less are one, whatever strain the cell has

_PATTERNS = (
    Column("r_factor", "f8", long_name="R factor of the best solution"),
    Column("noise_r", "f8", long_name="R factor that counting noise explains"),
    Column("weighted_r", "f8", long_name="R factor of the amplitudes of the best solution"),
    Column("thickness", "f8", (), "angstrom", "thickness of the best solution"),
    Column("thickness_sigma", "f8", (), "angstrom", "standard uncertainty of the thickness"),
    Column("n_beams", "i8", long_name="beams"),
    Column("n_tilts", "i8", long_name="tilts"),
    Column("n_solutions", "i8", long_name="solutions that explain the pattern as well, or nearly so"),
    Column("agreement", "i8", long_name="starts that ended in the best solution"),
    Column("undetermined", "i8", long_name="combinations of unknowns that the pattern says nothing about"),
    Column("scale", "f8", long_name="what the intensities were divided by to be fractions of the incident beam"),
    Column("symmetry", "str", long_name="of the projection: order of the axis, m, g; p1: none"),
    Column("fitted_scale", "f8", long_name="fitted factor of the calculated fractions; 1: not fitted"),
    Column("background", "f8", long_name="fitted background of all beams, fraction of the incident beam"),
    Column("condition", "f8", long_name="smallest eigenvalue of J^T J that is determined over the largest"),
    Column("weakest_sigma", "f8", (), "1/angstrom^2", "standard uncertainty of the least determined combination of U"),
    Column("voltage", "f8", (), "kV", "accelerating voltage"),
    Column("cell", "f8", (6,), "angstrom, degrees", "unit cell"),
    Column("zone", "i8", (3,), "", "zone axis"),
)
_SOLUTIONS = (
    Column("r_factor", "f8", long_name="sum |I - I_fit| / sum I"),
    Column("weighted_r", "f8", long_name="sqrt(sum (sqrt I - sqrt I_fit)^2 / sum I)"),
    Column("thickness", "f8", (), "angstrom", "thickness of the slab"),
    Column("thickness_sigma", "f8", (), "angstrom", "standard uncertainty of the thickness"),
    Column("undetermined", "i8", long_name="combinations of unknowns that the pattern says nothing about"),
    Column("agreement", "i8", long_name="starts that ended here"),
    Column("symmetry", "str", long_name="of the projection: order of the axis, m, g; p1: none"),
    Column("fitted_scale", "f8", long_name="fitted factor of the calculated fractions; 1: not fitted"),
    Column("background", "f8", long_name="fitted background of all beams, fraction of the incident beam"),
    Column("condition", "f8", long_name="smallest eigenvalue of J^T J that is determined over the largest"),
    Column("weakest_sigma", "f8", (), "1/angstrom^2", "standard uncertainty of the least determined combination of U"),
)
_FACTORS = (
    Column("solution", "i8", long_name="rank of the solution, from 0"),
    Column("hkl", "i8", (3,), "", "difference of the indices of two beams"),
    Column("re", "f8", (), "1/angstrom^2", "real part of U"),
    Column("im", "f8", (), "1/angstrom^2", "imaginary part of U"),
    Column("sigma", "f8", (), "1/angstrom^2", "standard uncertainty of each part"),
    Column("weakest", "f8", long_name="part in the least determined combination of U"),
)
_BEAMS = (
    Column("hkl", "i8", (3,), "", "indices of the beam"),
    Column("r_beam", "f8", long_name="sum |I - I_fit| / sum I of the beam, of the best solution"),
)
_TILTS = (Column("tilt", "f8", (2,), "mrad", "tilt of the incident beam along x (along a*) and y"),)
_INTENSITIES = (
    Column("observed", "f4", long_name="fraction of the incident beam, tilt by tilt, in each all beams"),
    Column("fitted", "f4", long_name="the same, of the best solution"),
)


@dataclass(frozen=True, eq=False)
class Prepared:
    """A pattern that is ready, where the beams and tilts are, and the structure factors to start from (None: blind)."""

    pattern: Larbed
    geometry: Geometry
    start: NDArray[np.complex128] | None


def start_from_file(path: str, pattern: Larbed, at: Geometry) -> NDArray[np.complex128]:
    """Structure factors (1/A^2, at `at.dhkl`) of the crystal in a CIF, or from lines 'h k l re im'.

    Raises `InputError`, one sentence, for a file of neither kind, a crystal of another cell, and factors that are not
    Hermitian.
    """
    try:
        text = Path(path).read_text(errors="replace")
    except OSError as error:
        raise InputError(
            f"{path}: the start cannot be read ({error.strerror}); check the name, or begin without one: blind"
        ) from None
    if not any(line.lstrip().lower().startswith(("data_", "loop_")) for line in text.splitlines()):
        hkl, values = read_u(path)
        try:
            start = given_u(hkl, values, at.dhkl)
        except ValueError as error:
            raise InputError(f"{path}: {error}") from None
        if not np.any(start):
            raise InputError(f"{path}: has no structure factor of a difference of beams of {pattern.source}")
        return start
    try:
        crystal = crystal_from_cif(path)
        if not np.allclose(crystal.cell, pattern.cell, rtol=_CELL):
            cells = [" ".join(f"{x:g}" for x in cell) for cell in (crystal.cell, pattern.cell)]
            raise ValueError(f"its cell {cells[0]} is not that of {pattern.source}, {cells[1]}; give another CIF")
        return crystal_u(crystal, at, pattern.voltage_kv)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None


class BlochStage:
    """Structure factors and thickness from LARBED patterns (see `search`)."""

    name: ClassVar[str] = "bloch"
    schema: ClassVar[Schema] = Schema(
        {
            "patterns": _PATTERNS,
            "solutions": _SOLUTIONS,
            "factors": _FACTORS,
            "beams": _BEAMS,
            "tilts": _TILTS,
            "intensities": _INTENSITIES,
        }
    )

    def __init__(self, settings: BlochSettings | None = None) -> None:
        self.settings = settings or BlochSettings()
        start = self.settings.start
        if start is not None and start != BLIND and not Path(self.settings.located(start)).is_file():
            raise InputError(f"{self.settings.located(start)}: there is no such file to start from; check its name")

    def read(self, source: str) -> list[Item]:
        """The pattern in a file; raises `InputError` with one sentence for a file that cannot be used."""
        found = read_larbed(source)
        arrays = {name: getattr(found, name) for name in ("intensity", "hkl", "tilt", "cell", "zone")}
        return [Item(found.id, source, arrays, {n: getattr(found, n) for n in ("voltage_kv", "scale", "cif")})]

    def prepare(self, items: Sequence[Item]) -> list[Prepared]:
        """The pattern, geometry and start of each item; raises `InputError` for what cannot be inverted."""
        return [self._prepared(item) for item in items]

    def _prepared(self, item: Item) -> Prepared:
        arrays, attrs = item.arrays, item.attrs
        if not ({"intensity", "hkl", "tilt", "cell", "zone"} <= set(arrays) and "voltage_kv" in attrs):
            raise InputError(f"{item.source}: has no pattern; give an HDF5 file with a group /larbed")
        pattern = Larbed(
            item.id,
            item.source,
            np.asarray(arrays["intensity"], np.float64),
            np.asarray(arrays["hkl"], np.int64),
            np.asarray(arrays["tilt"], np.float64),
            float(attrs["voltage_kv"] or 0),
            np.asarray(arrays["cell"], np.float64),
            np.asarray(arrays["zone"], np.int64),
            float(attrs.get("scale") or 1),
            cif=str(attrs.get("cif") or ""),
        )
        try:
            at = geometry(
                pattern.hkl,
                pattern.tilt,
                cell=pattern.cell,
                zone=pattern.zone.tolist(),
                voltage_kv=pattern.voltage_kv,
            )
        except ValueError as error:
            raise InputError(f"{item.source}: {error}") from None
        _check_shells(pattern, at)
        m, n = at.shape
        unknown = self._unknown(at)
        if n < 2:
            raise InputError(f"{item.source}: has the direct beam alone, which tells no structure factor; record more")
        if m * n < unknown:
            raise InputError(
                f"{item.source}: {m} tilts of {n} beams are {m * n} intensities, too few for {unknown} unknowns; "
                "record more tilts"
            )
        return Prepared(pattern, at, self._start(pattern, at))

    def _unknown(self, at: Geometry) -> int:
        return len(at.dhkl) // (2 if self.settings.real else 1)  # Re and Im of half of them, and the thickness

    def _start(self, pattern: Larbed, at: Geometry) -> NDArray[np.complex128] | None:
        if self.settings.start == BLIND:
            return None
        if self.settings.start is not None:
            return start_from_file(self.settings.located(self.settings.start), pattern, at)
        if not pattern.cif:
            return None
        return start_from_file(str(Path(pattern.source).parent / pattern.cif), pattern, at)

    def kernel(self, prepared: list[Prepared]) -> list[list[Solution]]:
        """The solutions of each pattern, best first. One pattern fills the device, so they go one by one."""
        chosen = self.settings
        low, high = chosen.thickness_nm
        return [
            search.invert(
                one.pattern.intensity,
                one.geometry,
                start=one.start,
                thickness=(10 * low, 10 * high),
                seed=chosen.seed,
                seconds=chosen.seconds,
                real=chosen.real,
                symmetry=chosen.symmetry,
                cutoff=chosen.cutoff,
                scale=chosen.fit_scale,
                background=chosen.fit_background,
                poisson=chosen.weights == "poisson",
            )
            for one in prepared
        ]

    def finish(self, items: Sequence[Item], out: list[list[Solution]]) -> list[Result]:
        """One result an item, its solutions best first; unsolved where `verdict` says why."""
        results = []
        for item, ranked in zip(items, out, strict=True):
            pattern = self._prepared(item)
            found = ranked[: 1 + self.settings.alternatives]
            one = noise.quantum(pattern.pattern.intensity, pattern.geometry)
            explained = noise.r_of_noise(found[0].intensity, one)
            misses = not self.settings.fit_scale and not _adds_up(pattern.pattern)
            reason = why_not(
                found[0],
                pattern.pattern.intensity,
                pattern.geometry.origin,
                quantum=one,
                unknown=self._unknown(pattern.geometry),
                limits_nm=self.settings.thickness_nm,
                hint="; the intensities do not add up to the incident beam: fit their scale (fit_scale)" * misses,
            )
            tables = _tables(pattern, found, explained)
            status = Status.UNSOLVED if reason else Status.SOLVED
            results.append(Result(item.id, item.source, status, reason, tables=tables))
        return results

    def record(self, result: Result) -> dict[str, Any]:
        """The JSON object of one result."""
        return bloch_record(result)


def _check_shells(pattern: Larbed, at: Geometry) -> None:
    """Raises `InputError` where a beam is missing among others that are farther out; the last shell may have gaps."""
    listed = {tuple(hkl) for hkl in at.hkl.tolist()}
    place = np.unique(at.index, return_index=True)[1]
    g = (at.g[:, None] - at.g[None]).reshape(-1, 3)[place]
    length = np.linalg.norm(g, axis=1)
    flat = np.abs(at.g[:, 2]) < _FLAT
    outermost = float(np.linalg.norm(at.g[flat], axis=1).max())
    inside = np.flatnonzero((np.abs(g[:, 2]) < _FLAT) & (length < _INSIDE * outermost))
    missing = [k for k in inside[np.argsort(length[inside], kind="stable")] if tuple(at.dhkl[k].tolist()) not in listed]
    if missing:
        count = f"{len(missing)} beams are" if len(missing) > 1 else "a beam is"
        raise InputError(
            f"{pattern.source}: {count} missing among those that are farther out, as {at.dhkl[missing[0]].tolist()}; "
            "beams must fill their shells but the last: add them, or leave out what is beyond"
        )


def _adds_up(pattern: Larbed) -> bool:
    return pattern.scale == 1 and abs(float(np.median(pattern.intensity.sum(1))) - 1) < _SUM


def _of_solution(solution: Solution) -> dict[str, Any]:
    """The row of a solution: `scale` there is the fitted one, and not that of the file."""
    return {c.name: getattr(solution, "scale" if c.name == "fitted_scale" else c.name) for c in _SOLUTIONS}


def _tables(one: Prepared, found: Sequence[Solution], explained: float) -> dict[str, dict[str, np.ndarray]]:
    pattern, best, dhkl = one.pattern, found[0], one.geometry.dhkl
    row: dict[str, Any] = {
        **_of_solution(best),
        "noise_r": explained,
        "n_beams": len(pattern.hkl),
        "n_tilts": len(pattern.tilt),
        "n_solutions": len(found),
        "scale": pattern.scale,
        "voltage": pattern.voltage_kv,
        "cell": pattern.cell,
        "zone": pattern.zone,
    }
    observed, fitted = pattern.intensity, np.asarray(best.intensity)
    total = observed.sum(0)
    r_beam = np.divide(np.abs(observed - fitted).sum(0), total, out=np.full(len(total), np.nan), where=total > 0)
    u = np.concatenate([s.u for s in found])
    factors = {
        "solution": np.repeat(np.arange(len(found)), len(dhkl)).astype(np.int64),
        "hkl": np.tile(dhkl, (len(found), 1)).astype(np.int64),
        "re": u.real.astype(np.float64),
        "im": u.imag.astype(np.float64),
        "sigma": np.concatenate([s.sigma for s in found]).astype(np.float64),
        "weakest": np.concatenate([np.full(len(dhkl), np.nan) if s.weakest is None else s.weakest for s in found]),
    }
    return {
        "patterns": _table(_PATTERNS, [row]),
        "solutions": _table(_SOLUTIONS, [_of_solution(s) for s in found]),
        "factors": factors,
        "beams": {"hkl": pattern.hkl, "r_beam": r_beam},
        "tilts": {"tilt": pattern.tilt},
        "intensities": {
            "observed": observed.ravel().astype(np.float32),
            "fitted": fitted.ravel().astype(np.float32),
        },
    }


def _table(columns: Sequence[Column], rows: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    return {
        c.name: np.array([row[c.name] for row in rows], object if c.dtype == "str" else c.dtype).reshape(-1, *c.shape)
        for c in columns
    }
