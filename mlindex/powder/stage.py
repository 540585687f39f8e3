"""Powder indexing as a stage: peak lists, patterns or spots in, ranked unit cells with the hkl of every line out."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mlindex.config import PowderSettings
from mlindex.formats import peaks
from mlindex.formats.crystfel import read_geometry
from mlindex.formats.pattern import holds_pattern, read_pattern
from mlindex.formats.spots import holds_spots
from mlindex.formats.wavelength import is_wavelength, wavelength_from_text
from mlindex.powder.lines import Lines, lines_from_q2
from mlindex.powder.pattern.lines import lines_of_pattern
from mlindex.powder.ranking import Judged
from mlindex.powder.record import powder_record
from mlindex.powder.search import search
from mlindex.powder.solution import Solution, solutions
from mlindex.powder.stills.lines import StillsOptions, lines_of_stills, usable_spots
from mlindex.powder.sweep import SEARCHED
from mlindex.records import Column, InputError, Item, PeakList, Result, Schema, Status

_SPACINGS = (0.05, 5000.0)  # angstrom, of lines of crystals
REPORTED_LINES = 60  # the last fit and the hkl list use these many lines

_SOLUTIONS = (
    Column("bravais", "str", long_name="Bravais lattice"),
    Column("cell", "f8", (6,), "angstrom, degrees", "conventional cell a b c alpha beta gamma, standard setting"),
    Column("cell_esd", "f8", (6,), "angstrom, degrees", "standard uncertainties of the cell"),
    Column("niggli", "f8", (6,), "angstrom, degrees", "Niggli-reduced cell"),
    Column("volume", "f8", (), "angstrom^3", "volume of the conventional cell"),
    Column("m20", "f8", long_name="de Wolff figure of merit"),
    Column("f20", "f8", long_name="Smith-Snyder figure of merit"),
    Column("information", "f8", (), "bits", "information figure of merit after Taupin"),
    Column("n_indexed", "i8", long_name="lines that are indexed"),
    Column("n_lines", "i8", long_name="lines that were to be indexed"),
    Column("score", "f8", long_name="log evidence over that of a uniform background"),
    Column("probability", "f8", long_name="posterior probability of the lattice"),
    Column("space_group", "str", long_name="a space group with the extinctions that explain the lines best"),
    Column("zero_shift", "f8", (), "degrees", "zero shift in 2theta"),
    Column("zero_shift_esd", "f8", (), "degrees", "standard uncertainty of the zero shift"),
    Column("ambiguity", "i8", long_name="number of the set of lattices with identical line positions, 0 for none"),
)
_LINES = (
    Column("solution", "i8", long_name="rank of the solution, from 0"),
    Column("q2", "f8", (), "1/angstrom^2", "observed 1/d^2"),
    Column("q2_calc", "f8", (), "1/angstrom^2", "calculated 1/d^2 of the nearest reflection, without the zero shift"),
    Column("hkl", "i8", (3,), "", "Miller indices of the nearest reflection"),
    Column("indexed", "bool", long_name="whether the reflection explains the line"),
)


def item_from_peaks(peak_list: PeakList) -> Item:
    """A peak list as an item of work."""
    return Item(peak_list.id, peak_list.source, {"q2": peak_list.q2}, {"wavelength": peak_list.wavelength})


def item_from_q2(q2: Any, wavelength: float | str | None, name: str) -> Item:
    """A list of q2 (1/angstrom^2) as an item of work; `wavelength` in angstrom or as "CuKa1".

    Raises `InputError` for what is no list of numbers, and for what is no wavelength.
    """
    try:
        values = np.asarray(q2, np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{name}: q2 is not a list of numbers; give 1/d^2 of each line in 1/angstrom^2") from None
    if values.ndim != 1:
        raise InputError(f"{name}: q2 has the shape {values.shape}; give one list of numbers")
    length = wavelength_from_text(str(wavelength)) if wavelength is not None else None
    if wavelength is not None and (length is None or not is_wavelength(length)):
        raise InputError(f"{name}: {wavelength!r} is no wavelength; give angstrom (1.5406), a line (CuKa1), or None")
    return Item(name, name, {"q2": values}, {"wavelength": length})


def _refuse_lines(source: str, q2: np.ndarray, wavelength: float | None) -> None:
    """Raise `InputError` for q2 (n,), distinct and ascending, that cannot be the lines of a crystal."""
    if not np.isfinite(q2).all():
        raise InputError(f"{source}: has a line that is no finite number; remove it")
    if len(q2) and q2[0] <= 0:
        raise InputError(f"{source}: has a line at q2 = {q2[0]:.6g} 1/angstrom^2, which is not positive; remove it")
    if len(q2) < peaks.MINIMUM_LINES:
        raise InputError(
            f"{source}: {len(q2)} usable lines; indexing needs at least {peaks.MINIMUM_LINES} distinct positions"
        )
    for value in q2[[0, -1]]:
        if not _SPACINGS[0] <= value**-0.5 <= _SPACINGS[1]:
            raise InputError(
                f"{source}: has a line at q2 = {value:.6g} 1/angstrom^2, where no crystal has one (d = "
                f"{value**-0.5:.4g} angstrom); give 1/d^2 in 1/angstrom^2"
            )
    if wavelength is not None and not (is_wavelength(wavelength) and q2[-1] * wavelength**2 <= 4):
        raise InputError(
            f"{source}: no line beyond q2 = 4/wavelength^2 can be seen, but the last is at {q2[-1]:.6g} 1/angstrom^2 "
            f"and the wavelength is {wavelength} angstrom; correct one of them"
        )


def seed_from_item(item: Item, seed: int) -> int:
    """A seed that depends on the item and the user's seed alone, so that ranks and batches do not matter."""
    digest = hashlib.sha256(f"{seed}:{item.id}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


class PowderStage:
    """Unit cells from peak lists (see `search`)."""

    name: ClassVar[str] = "powder"
    schema: ClassVar[Schema] = Schema({"solutions": _SOLUTIONS, "lines": _LINES})

    def __init__(self, settings: PowderSettings | None = None) -> None:
        self.settings = settings or PowderSettings()
        name = self.settings.geometry
        self._geometry = None if name is None else read_geometry(self.settings.located(name))

    def read(self, source: str) -> list[Item]:
        """The peak list in a file, or that of a measured pattern, or of the spots of stills that come with geometry.

        Raises `InputError` with one sentence for a file that cannot be used.
        """
        return [item_from_peaks(self._peaks(source))]

    def _peaks(self, source: str) -> PeakList:
        quantity, wavelength = self.settings.quantity, self.settings.wavelength
        if holds_spots(source):
            options = StillsOptions(geometry=self._geometry, wavelength=wavelength)
            return lines_of_stills([usable_spots(source, options)], Path(source).stem, options).peak_list()
        try:
            return peaks.read(source, quantity=quantity, wavelength=wavelength)
        except InputError:
            if quantity not in (None, "tth", "q") or not holds_pattern(source):
                raise
        return lines_of_pattern(read_pattern(source, scan=quantity, wavelength=wavelength)).peak_list()

    def prepare(self, items: Sequence[Item]) -> list[tuple[Lines, int]]:
        """Lines with their error model, and the seed, of each item; raises `InputError` for unusable lines."""
        prepared = []
        for item in items:
            q2 = np.unique(np.asarray(item.arrays["q2"], np.float64))
            said = item.attrs.get("wavelength")
            wavelength = None if said is None else float(said)
            _refuse_lines(item.source, q2, wavelength)
            lines = lines_from_q2(q2, wavelength)
            prepared.append((lines, seed_from_item(item, self.settings.seed)))
        return prepared

    def kernel(self, prepared: list[tuple[Lines, int]]) -> list[list[Judged]]:
        """The ranked lattices of each list. One list is already millions of candidates, so lists go one by one."""
        chosen = self.settings
        return [
            search(
                lines,
                effort=chosen.effort,
                lattices=chosen.lattice,
                max_volume=chosen.max_volume,
                impurities=chosen.impurities,
                fit_zero=chosen.zero_shift,
                seed=seed,
            )
            for lines, seed in prepared
        ]

    def finish(self, items: Sequence[Item], out: list[list[Judged]]) -> list[Result]:
        """One result an item, its solutions best first."""
        results = []
        for item, ranked, (lines, _) in zip(items, out, self.prepare(items), strict=True):
            used = lines.first(REPORTED_LINES)
            found = solutions(ranked, used, self.settings.solutions)
            solved = sum(one.probability for one in ranked) > 0.5
            reason = "" if solved else unsolved(ranked, used, self.settings.effort)
            status = Status.SOLVED if solved else Status.UNSOLVED
            results.append(Result(item.id, item.source, status, reason, tables=_tables(found, used)))
        return results

    def record(self, result: Result) -> dict[str, Any]:
        """The JSON object of one result."""
        return powder_record(result)


def unsolved(ranked: Sequence[Judged], lines: Lines, effort: str) -> str:
    """Why a list has no answer, and what may help."""
    if ranked:
        fit = ranked[0].fit
        left = f"{int((~fit.indexed).sum())} of {len(fit.indexed)} lines unexplained"
        why = f"none of the cells is probably right; the best one, {fit.bravais}, leaves {left}"
    else:
        why = "no cell fits the lines"
    hints = []
    if effort != "thorough":
        hints.append("searching longer (effort thorough)")
    if len(lines) < SEARCHED:
        hints.append(f"more lines ({SEARCHED} or more, from the first one on)")
    if lines.wavelength is None:
        hints.append("the wavelength, if there is one, for a zero shift to be fitted")
    hints.append("leaving out lines of a second phase")
    return f"{why}; what may help: {', '.join(hints)}"


def _tables(found: Sequence[Solution], lines: Lines) -> dict[str, dict[str, np.ndarray]]:
    table: dict[str, np.ndarray] = {}
    for column in _SOLUTIONS:
        dtype = object if column.dtype == "str" else column.dtype
        values = np.array([getattr(s, column.name) for s in found], dtype)
        table[column.name] = values.reshape(len(found), *column.shape)
    counts = [s.n_lines for s in found]
    rows = {
        "solution": np.repeat(np.arange(len(found)), counts).astype(np.int64),
        "q2": np.concatenate([lines.q2[:n] for n in counts] or [np.empty(0)]),
        "q2_calc": np.concatenate([s.q2_calc for s in found] or [np.empty(0)]),
        "hkl": np.concatenate([s.hkl for s in found] or [np.empty((0, 3), np.int64)]),
        "indexed": np.concatenate([s.indexed for s in found] or [np.empty(0, bool)]),
    }
    return {"solutions": table, "lines": rows}
