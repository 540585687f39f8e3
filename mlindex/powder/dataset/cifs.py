"""Training entries from a folder of CIFs with atoms.

Isotypes are told by a key: Bravais lattice, number of the space group, the numbers of atoms of each element in the
primitive cell (largest first, hydrogen left out where there is anything else), and the shape of the standard cell, the
ratios b/a and c/a in steps of 15 % and the angles in steps of 8 degrees. Two isotypes on either side of a step get
different keys; a key never joins structures of different symmetry or composition type.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlindex.crystal.lattice import BRAVAIS
from mlindex.crystal.metric import cell_from_reciprocal_metric, reciprocal_metric_from_cell, transform_metric
from mlindex.crystal.metric import volume_from_reciprocal_metric as volume_of
from mlindex.crystal.scattering import Crystal, Structure, crystal_from_cif
from mlindex.crystal.symmetry import conventional_cells
from mlindex.powder.dataset.entries import Entries
from mlindex.powder.dataset.filters import Candidate, entries_of, fault_of
from mlindex.powder.dataset.observable import observable_hkl
from mlindex.powder.dataset.split import split
from mlindex.powder.dataset.standard import bravais_of, standard_axes
from mlindex.records import InputError

TOLERANCE = 1e-3  # of q2: a lattice that agrees this well with one of higher symmetry cannot show its own
NAMED = 10  # files that are not used and are told one by one
RATIO, ANGLE = 0.15, 8.0  # steps of the shape in the key of isotypes: logarithm, degrees


def _to_standard_error(text: str) -> None:
    print(text, file=sys.stderr)


def _counts(structure: Structure) -> dict[str, float]:
    counts: dict[str, float] = {}
    for symbol, share in zip(structure.element, structure.occupancy, strict=True):
        name = "H" if symbol == "D" else symbol
        counts[name] = counts.get(name, 0.0) + float(share)
    return counts


def formula_of(structure: Structure) -> str:
    """The atoms of the cell, elements in alphabetic order, with their numbers: "Cl4 Na4"."""
    return " ".join(f"{symbol}{round(n, 2):g}" for symbol, n in sorted(_counts(structure).items()))


def isotype_key(bravais: str, number: int, structure: Structure, g: NDArray[np.float64]) -> str:
    """The name of a family of isotypes; `g` is the metric in the standard setting."""
    counts = _counts(structure)
    if len(counts) > 1:
        counts.pop("H", None)
    atoms = sorted((round(n / BRAVAIS[bravais].multiplicity, 1) for n in counts.values()), reverse=True)
    cell = cell_from_reciprocal_metric(g)
    shape = [*np.rint(np.log(cell[1:3] / cell[0]) / RATIO), *np.rint(cell[3:] / ANGLE)]
    return f"{bravais} {number} {'-'.join(f'{n:g}' for n in atoms)} {'/'.join(f'{x:.0f}' for x in shape)}"


def candidate_of(crystal: Crystal, uid: str) -> Candidate:
    """A crystal with its observable lines, its family named and its set still open ("").

    Raises `ValueError` (one sentence without the file's name) where it has no atoms, no standard setting, or a lattice
    of higher symmetry than its own.
    """
    if crystal.structure is None:
        raise ValueError("it has no atoms, which the intensities of lines need; add them or leave the file out")
    bravais = bravais_of(crystal.group)
    g, p = standard_axes(crystal.cell, crystal.group, bravais)
    shown = conventional_cells(transform_metric(g, BRAVAIS[bravais].primitive), TOLERANCE)[0].bravais
    if shown != bravais:
        raise ValueError(f"its lattice is {bravais} and cannot be told from {shown} by line positions; leave it out")
    lines, end = observable_hkl(g, bravais, p, crystal.structure, crystal.cell)
    return Candidate(
        uid=uid,
        family=isotype_key(bravais, crystal.group.number, crystal.structure, g),
        set="",
        bravais=bravais,
        group=crystal.group,
        cell=crystal.cell,
        formula=formula_of(crystal.structure),
        volume=float(volume_of(reciprocal_metric_from_cell(crystal.cell))),
        atoms=float(crystal.structure.occupancy.sum()),
        hkl=np.rint(lines @ np.linalg.inv(p)).astype(np.int64),
        tth_max=end,
    )


def from_cifs(folder: str | Path, *, report: Callable[[str], None] = _to_standard_error) -> Entries:
    """The entries of all files *.cif in a folder and below it, named by their paths.

    The files that cannot be used, and those that a filter leaves out, are told to `report` in one sentence each (by
    default on standard error), the first ten of them, then their number, and counted in `rejected`. Raises `InputError`
    where no file can be used.
    """
    root = Path(folder)
    paths = sorted(path for path in root.rglob("*") if path.suffix.lower() == ".cif")
    if not paths:
        raise InputError(f"{root}: there is no .cif file in it; give a folder with CIFs")
    candidates: dict[Path, Candidate] = {}
    reasons: dict[Path, str] = {}
    for path in paths:
        try:
            uid = path.relative_to(root).with_suffix("").as_posix()
            candidates[path] = candidate_of(crystal_from_cif(path), uid)
        except (ValueError, AssertionError, RuntimeError, OSError) as error:
            reasons[path] = str(error)
    if not candidates:
        _tell(root, reasons, report)
        raise InputError(f"{root}: none of its {len(paths)} CIFs can be used; the reasons were given above")
    usable = list(candidates.values())
    dealt = split(
        np.array([c.bravais for c in usable]),
        np.array([c.family for c in usable]),
        np.array([len(c.hkl) for c in usable]),
    )
    rejected = Counter({"file that cannot be used": len(reasons)} if reasons else {})
    entries = entries_of([replace(c, set=str(s)) for c, s in zip(usable, dealt, strict=True)], rejected)
    kept = set(entries.uid.tolist())
    for path, candidate in candidates.items():
        if candidate.uid not in kept:
            reasons[path] = f"left out ({fault_of(candidate) or 'a duplicate, or its lines do not fit its symmetry'})"
    _tell(root, reasons, report)
    return entries


def _tell(root: Path, reasons: Mapping[Path, str], report: Callable[[str], None]) -> None:
    for path, reason in list(reasons.items())[:NAMED]:
        report(f"{path}: {reason}")
    if len(reasons) > NAMED:
        report(f"{root}: {len(reasons) - NAMED} more of its CIFs are not used")
