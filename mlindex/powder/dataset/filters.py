"""From crystals with their observable lines to entries: quality filters, standard setting, complete lists, duplicates.

The filters are those of the write-up of ML-Index (section 2.1.1) as far as a crystal can fail them here: a formula
(1), a space group in the table (2, 3), a cell of its symmetry (4), a Niggli reduction (5) and a volume that agree with
the volume that is stated (6), and between 1.8 and 180 A^3 an atom (7). A filter whose datum is not known (NaN) passes.

Duplicates are entries of one Bravais lattice and one formula (or, without one, one family) whose lattices agree within
`SAME`; the first is kept.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlindex.crystal.lattice import BRAVAIS
from mlindex.crystal.metric import (
    q2_from_hkl,
    reciprocal_metric_from_cell,
    transform_metric,
    volume_from_reciprocal_metric,
)
from mlindex.crystal.reduction import lattice_distance, niggli_from_cell
from mlindex.crystal.spacegroup import SpaceGroup
from mlindex.powder.dataset.entries import Entries
from mlindex.powder.dataset.lists import all_lines, extinction_symbol, where_in
from mlindex.powder.dataset.observable import LONGEST, q2_from_tth
from mlindex.powder.dataset.standard import lattice_letter, standard_axes

SAME = 0.002  # relative, of the Voronoi vectors of two lattices
VOLUME_AN_ATOM = 18.0  # A^3; the filter allows a factor of ten either way
VOLUME_ERROR = 0.01  # relative, between the stated volume and that of the cell


@dataclass(frozen=True, eq=False)
class Candidate:
    """A crystal as it was given: `cell` and the observable `hkl` (k, 3) in the axes of `group`.

    `volume` (A^3) and `atoms` of the cell are what the source states, NaN where it does not. `tth_max` (degrees) is
    where the pattern ends.
    """

    uid: str
    family: str
    set: str
    bravais: str
    group: SpaceGroup
    cell: NDArray[np.float64]
    formula: str
    volume: float
    atoms: float
    hkl: NDArray[np.int64]
    tth_max: float


def fault_of(candidate: Candidate) -> str:
    """Why a crystal is no entry: the name of the first filter that rejects it, or ""."""
    if not candidate.formula:
        return "no formula"
    if not len(candidate.hkl):
        return "no observable line"
    try:
        niggli, _ = niggli_from_cell(candidate.cell, lattice_letter(candidate.group))
    except ValueError:
        return "impossible cell"
    except (AssertionError, RuntimeError):
        return "no Niggli reduction"
    if candidate.group.misfit(candidate.cell) > 5e-3:
        return "cell not of its crystal system"
    volume = _volume(candidate.cell)
    reduced = _volume(niggli) * round(volume / _volume(niggli))
    stated = candidate.volume if np.isfinite(candidate.volume) else volume
    if abs(volume / stated - 1) > VOLUME_ERROR or abs(reduced / stated - 1) > VOLUME_ERROR:
        return "volume not that of the cell"
    if np.isfinite(candidate.atoms) and candidate.atoms > 0:
        share = stated / candidate.atoms / VOLUME_AN_ATOM
        if not 0.1 <= share <= 10:
            return "volume an atom"
    return ""


def _volume(cell: NDArray[np.float64]) -> float:
    return float(volume_from_reciprocal_metric(reciprocal_metric_from_cell(cell)))


def duplicates(g: NDArray[np.float64], bravais: NDArray, name: Sequence[str]) -> NDArray[np.bool_]:
    """True (n,) for entries whose lattice an earlier one of the same Bravais lattice and `name` (formula) has."""
    alike: dict[tuple[str, str], list[int]] = defaultdict(list)
    primitive = np.zeros_like(g)
    for i, lattice in enumerate(bravais):
        alike[str(lattice), name[i]].append(i)
        primitive[i] = transform_metric(g[i], BRAVAIS[str(lattice)].primitive)
    volume = volume_from_reciprocal_metric(primitive)
    found = np.zeros(len(g), bool)
    for members in alike.values():
        for n, i in enumerate(members[1:], 1):
            before = np.array([j for j in members[:n] if not found[j] and abs(volume[j] / volume[i] - 1) < 4 * SAME])
            if len(before):
                found[i] = bool(np.any(lattice_distance(primitive[before], primitive[i]) < SAME))
    return found


def entries_of(candidates: Sequence[Candidate], rejected: Counter[str]) -> Entries:
    """The entries of the crystals that pass every filter; the others are counted in `rejected` by reason."""
    rejected = Counter(rejected)
    good: list[Candidate] = []
    metrics: list[NDArray] = []
    bases: list[NDArray] = []
    symbols: list[str] = []
    known: dict[tuple[str, str, bytes], str] = {}
    for candidate in candidates:
        fault = fault_of(candidate)
        if fault:
            rejected[fault] += 1
            continue
        try:
            g, p = standard_axes(candidate.cell, candidate.group, candidate.bravais)
            operations = (candidate.group.rotation.tobytes() + candidate.group.shift.tobytes()).hex()
            key = (candidate.bravais, operations, p.tobytes())
            if key not in known:
                known[key] = extinction_symbol(candidate.bravais, candidate.group, p)
        except (ValueError, AssertionError):
            rejected["no standard setting"] += 1
            continue
        good.append(candidate)
        metrics.append(g)
        bases.append(p)
        symbols.append(known[key])
    g_all = np.array(metrics, np.float64).reshape(-1, 6)
    bravais = np.array([c.bravais for c in good], dtype="U2")
    twice = duplicates(g_all, bravais, [c.formula or c.family for c in good])
    if twice.any():
        rejected["duplicate"] += int(twice.sum())
    keep = np.flatnonzero(~twice)
    return _with_lines(
        [good[i] for i in keep],
        g_all[keep],
        np.array(bases).reshape(-1, 3, 3)[keep],
        [symbols[i] for i in keep],
        rejected,
    )


def _with_lines(
    good: Sequence[Candidate], g: NDArray, bases: NDArray, symbols: Sequence[str], rejected: Counter[str]
) -> Entries:
    bravais = [c.bravais for c in good]
    seen = [np.rint(c.hkl @ p).astype(np.int64) for c, p in zip(good, bases, strict=True)]
    last = np.array([q2_from_hkl(row, hkl).max() for row, hkl in zip(g, seen, strict=True)]).reshape(len(good))
    lines, complete = all_lines(g, bravais, [c.group for c in good], bases, last)
    rows: list[int] = []
    flags: list[NDArray] = []
    for i, (hkl, listed) in enumerate(zip(lines, seen, strict=True)):
        place = where_in(hkl, listed, bravais[i])
        inside = q2_from_hkl(g[i], listed) <= complete[i] * (1 - 1e-9)
        if np.any(place[inside] < 0):
            rejected["observable line that is absent"] += 1
            continue
        rows.append(i)
        flags.append(np.isin(np.arange(len(hkl)), place[place >= 0]))
    end = q2_from_tth(np.array([c.tth_max for c in good]))
    short = np.array([len(c.hkl) < LONGEST for c in good], bool)
    kept = [good[i] for i in rows]
    counts = [len(flag) for flag in flags]
    return Entries(
        uid=np.array([c.uid for c in kept], dtype=str),
        family=np.array([c.family for c in kept], dtype=str),
        set=np.array([c.set for c in kept], dtype="U10"),
        bravais=np.array([c.bravais for c in kept], dtype="U2"),
        symbol=np.array([c.group.name for c in kept], dtype=str),
        extinction=np.array([symbols[i] for i in rows], dtype=str),
        g=g[rows],
        known=np.minimum(np.where(short, end, last)[rows], complete[rows]),
        complete=complete[rows],
        first=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        hkl=np.concatenate([lines[i] for i in rows] or [np.zeros((0, 3), np.int64)]).astype(np.int16),
        observable=np.concatenate(flags or [np.zeros(0, bool)]),
        rejected=dict(sorted(rejected.items())),
    )
