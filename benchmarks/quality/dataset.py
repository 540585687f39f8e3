"""The lists that powder indexing is measured on: measured ones, and calculated ones split by isotype family.

The calculated lists come from `cells.parquet` and `peaklists_calc.parquet`. Isotypes (one `family`) are the same
structure with other atoms, so a family lies on one side of the split. Families of a Bravais lattice are dealt to
train, validation and test in turn, the one with the most usable lists first and ties by a hash, so that the three sets
have nearly the same size even where a lattice has 18 families. Develop on train, choose on validation; **test is held
out: it is run once, for a release, and nobody looks at its failures before**.

Errors are those of a laboratory diffractometer: 0.01 degrees in 2theta, normal, Cu K alpha 1. Every list draws from a
generator seeded by its uid, so that a list is the same whatever is run beside it, and the variants of one list share
the same line errors:

- `clean`: the errors alone;
- `impurity`: one to three lines that the cell does not explain, uniform in 2theta up to the twentieth line;
- `zero`: all lines shifted by +0.05 or -0.05 degrees in 2theta;
- `missing`: 30 % of the lines taken away at random, never leaving fewer than ten;
- `dirty`: two impurity lines, a zero shift of +0.05 or -0.05 degrees, and 20 % of the lines missing;
- `serial`: the errors of serial powders in place of the diffractometer's, q2 known to 0.0001 + 0.0006 q2 (normal), and
  no wavelength.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from benchmarks.quality.truth import centring_of, niggli

SETS = ("train", "validation", "test")
VARIANTS = ("clean", "impurity", "zero", "missing", "dirty", "serial")
LATTICES = ("cP", "cI", "cF", "tP", "tI", "hP", "hR", "oP", "oS", "oI", "oF", "mP", "mC", "aP")
WAVELENGTH = 1.5405929  # angstrom, Cu K alpha 1
ERROR = 0.01  # degrees 2theta, standard deviation
ZERO_SHIFT = 0.05  # degrees 2theta
MISSING, MISSING_DIRTY = 0.30, 0.20
SERIAL = (1e-4, 6e-4)  # standard deviation of q2: constant and slope
FEWEST, WANTED = 10, 20  # lines a list must have; lines asked for first where the symmetry is orthorhombic or lower


@dataclass(frozen=True)
class Entry:
    """One list with its truth: `q2` in 1/angstrom^2, ascending; `niggli` is the true primitive Niggli cell."""

    uid: str
    group: str  # clean, dirty, hard for a measured list; a variant for a calculated one
    bravais: str
    metric_bravais: str  # what line positions can show at most
    cell: tuple[float, ...]
    niggli: tuple[float, ...]
    q2: NDArray[np.float64]
    wavelength: float | None


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def split(table: pd.DataFrame) -> pd.Series:
    """The set of each row of `table` (columns bravais, family; a row is one usable list), one for a whole family."""
    sizes = table.groupby(["bravais", "family"]).size().reset_index(name="size")
    sizes["hash"] = [_hash(f"family {family}") for family in sizes["family"]]
    sizes = sizes.sort_values(["bravais", "size", "hash"], ascending=[True, False, True])
    sizes["set"] = [SETS[i % 3] for i in sizes.groupby("bravais").cumcount()]
    return table["family"].map(dict(zip(sizes["family"], sizes["set"], strict=True)))


def usable(data: Path) -> pd.DataFrame:
    """Cells joined with their lines, those with at least ten lines, with the column `set`."""
    table = pd.read_parquet(data / "cells.parquet").merge(pd.read_parquet(data / "peaklists_calc.parquet"), on="uid")
    table = table[table["n"] >= FEWEST].reset_index(drop=True)
    table["set"] = split(table)
    return table


def chosen(table: pd.DataFrame, which: str, per_lattice: int) -> pd.DataFrame:
    """`per_lattice` rows of each Bravais lattice from one set, in an order in which fewer are a prefix of more.

    A first list from every family, in the order of their hashes, then a second one, and so on. Orthorhombic and lower
    lattices use lists of twenty lines and more first; the others take what a list has: a cubic cell may show twelve.
    """
    parts = []
    for lattice in LATTICES:
        rows = table[(table["set"] == which) & (table["bravais"] == lattice)].copy()
        rows["hash"] = [_hash(uid) for uid in rows["uid"]]
        rows["family_hash"] = [_hash(f"order {family}") for family in rows["family"]]
        rows["short"] = (rows["n"] < WANTED) & (lattice[0] in "oma")
        rows = rows.sort_values("hash")
        rows["turn"] = rows.groupby(["short", "family"]).cumcount()
        parts.append(rows.sort_values(["short", "turn", "family_hash"]).head(per_lattice))
    return pd.concat(parts, ignore_index=True)


def measured(tth: NDArray[np.float64], variant: str, uid: str, seed: int) -> NDArray[np.float64]:
    """The 2theta (degrees, ascending) that a diffractometer would give for the true `tth`, shape (n,), of `uid`."""
    errors = np.random.default_rng([seed, _hash(uid)])
    dirt = np.random.default_rng([seed, _hash(uid), VARIANTS.index(variant)])
    if variant == "serial":
        q2 = (2 * np.sin(np.radians(tth / 2)) / WAVELENGTH) ** 2
        q2 = q2 + errors.normal(0, 1, tth.size) * (SERIAL[0] + SERIAL[1] * q2)
        lines = 2 * np.degrees(np.arcsin(np.sqrt(np.maximum(q2, 1e-6)) * WAVELENGTH / 2))
    else:
        lines = tth + errors.normal(0, ERROR, tth.size)
    if variant in ("zero", "dirty"):
        lines = lines + ZERO_SHIFT * dirt.choice([-1, 1])
    if variant in ("missing", "dirty"):
        share = MISSING if variant == "missing" else MISSING_DIRTY
        lost = min(round(share * lines.size), max(lines.size - FEWEST, 0))
        lines = np.delete(lines, dirt.choice(lines.size, lost, replace=False))
    if variant in ("impurity", "dirty"):
        first, last = lines.min(), np.sort(lines)[:20].max()
        count = 2 if variant == "dirty" else int(dirt.integers(1, 4))
        lines = np.append(lines, _strangers(lines, first, last, count, dirt))
    lines = np.sort(lines)
    return lines[np.append(True, np.diff(lines) > 1e-6)]


def _strangers(
    lines: NDArray[np.float64], first: float, last: float, count: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Impurity lines from half the first to the last angle, 0.07 degrees or more from others, as a search resolves."""
    found: list[float] = []
    for position in rng.uniform(0.5 * first, last, 1000):
        if np.abs(np.append(lines, found) - position).min() > 0.07:
            found.append(position)
        if len(found) == count:
            break
    return np.array(found)


def calculated(data: Path, which: str, variant: str, per_lattice: int, seed: int = 0) -> Iterator[Entry]:
    """The calculated lists of one set in one variant."""
    for row in chosen(usable(data), which, per_lattice).itertuples():
        theta = np.radians(measured(np.asarray(row.tth, float), variant, row.uid, seed) / 2)
        yield Entry(
            uid=row.uid,
            group=variant,
            bravais=row.bravais,
            metric_bravais=row.metric_bravais,
            cell=(row.a, row.b, row.c, row.alpha, row.beta, row.gamma),
            niggli=(row.na, row.nb, row.nc, row.nalpha, row.nbeta, row.ngamma),
            q2=(2 * np.sin(theta) / WAVELENGTH) ** 2,
            wavelength=None if variant == "serial" else WAVELENGTH,
        )


def real(data: Path) -> Iterator[Entry]:
    """The measured lists, each in the group of its quality: clean, dirty or hard."""
    for path in sorted((data / "peaklists_real").glob("*.json")):
        record = json.loads(path.read_text())
        cell = tuple(record["cell"])
        yield Entry(
            uid=record["name"],
            group=record["quality"],
            bravais=record["bravais"],
            metric_bravais=record["bravais"],
            cell=cell,
            niggli=niggli(cell, centring_of(record["bravais"], cell)),
            q2=np.array(sorted(record["q2"]), float),
            wavelength=record["wavelength"],
        )
