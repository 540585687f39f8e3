"""Line lists made by `mlindex peaks` from simulated stills and measured patterns, and what they are worth indexed.

    python benchmarks/quality/powder_peaks.py --data DIR --json out.json
    python benchmarks/quality/powder_peaks.py --only stills --per-lattice 2 --spots 20000

Stills: structures of the validation families, |F|^2 by gemmi; a line of multiplicity m at q has spots in proportion to
(m / q) (1 - exp(-|F|^2 / (2 <|F|^2>))); places are 0.5 pixels off, q by 0.05 % of bandwidth, a fifth more spots lie
anywhere on the detector, and the given beam centre is (1.3, -0.8) pixels off, to be found. A true line counts where
30 spots or more are expected, and lines nearer than 0.7 widths to each other count as one, at their mean by spots.
Patterns: the RockJock minerals whose cell is graded A or B in `patterns/index.csv`, with Cu K alpha; a line is
explained where the cell has one within 0.06 degrees after the displacement of the sample, fitted here, is taken off.
A list is solved where the first cell of the answer is the true lattice (`truth.py`).
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gemmi
import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a script, from anywhere

from benchmarks.quality.dataset import LATTICES, calculated
from benchmarks.quality.truth import centring_of, niggli, same_lattice
from mlindex.config import PowderSettings
from mlindex.formats.crystfel import flat_geometry
from mlindex.formats.pattern import Pattern
from mlindex.powder.found import FoundLines
from mlindex.powder.pattern.lines import lines_of_pattern
from mlindex.powder.stage import PowderStage, item_from_peaks
from mlindex.powder.stills.lines import StillsOptions, lines_of_stills, usable_spots
from mlindex.records import InputError
from mlindex.stage import solve

WAVELENGTH, DISTANCE, PIXEL, SIDE = 1.3, 0.15, 75e-6, 4000  # angstrom, metres, metres, pixels
NOISE, BAND, FALSE, OFF = 0.5, 5e-4, 0.2, (1.3, -0.8)
LINES = 20  # the first, which are what an index search goes by


def reflections(row: Any, q_max: float) -> tuple[NDArray, NDArray, NDArray]:
    """q (1/angstrom), multiplicity and |F|^2 of the distinct reflections of a structure, by gemmi."""
    small = gemmi.SmallStructure()
    small.cell = gemmi.UnitCell(*row.cell)
    small.spacegroup = gemmi.find_spacegroup_by_name(row.xhm) or gemmi.symops_from_hall(row.hall)
    for element, xyz, occ, u in zip(row.element, np.reshape(row.xyz, (-1, 3)), row.occ, row.uiso, strict=True):
        site = gemmi.SmallStructure.Site()
        site.element, site.fract, site.occ = gemmi.Element(element), gemmi.Fractional(*xyz), float(occ)
        site.u_iso = float(u) if np.isfinite(u) else 0.01
        small.add_site(site)
    calculator = gemmi.StructureFactorCalculatorX(small.cell)
    group = small.spacegroup
    hkl = gemmi.make_miller_array(small.cell, group, 1 / q_max)
    operations = group.operations()
    f2 = np.array([abs(calculator.calculate_sf_from_small_structure(small, h)) ** 2 for h in hkl.tolist()])
    # as many images as the point group makes, and Friedel mates
    images = [
        {tuple(s) for op in operations.sym_ops for s in (op.apply_to_hkl(h), [-v for v in op.apply_to_hkl(h)])}
        for h in hkl.tolist()
    ]
    q = np.sqrt(small.cell.calculate_1_d2_array(hkl))
    return q, np.array([len(i) for i in images], float), f2


def simulated(row: Any, path: Path, spots: int, q_max: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Write the stills of a structure as CXI; the true lines as rows of q and expected spots."""
    q, multiplicity, f2 = reflections(row, q_max)
    seen = multiplicity / q * (1 - np.exp(-f2 / (2 * np.mean(f2))))
    keep = f2 > 1e-6 * f2.max()
    q, expected = q[keep], (seen / seen.sum() * spots)[keep]
    measured = np.repeat(q, rng.poisson(expected))
    measured = measured * (1 + rng.normal(0, BAND, len(measured)))
    r = DISTANCE * np.tan(2 * np.arcsin(measured * WAVELENGTH / 2)) / PIXEL
    phi = rng.uniform(0, 2 * np.pi, len(r))
    middle = SIDE / 2 + np.array(OFF)
    xy = middle + np.stack([r * np.cos(phi), r * np.sin(phi)], 1) + rng.normal(0, NOISE, (len(r), 2))
    r_max = DISTANCE * np.tan(2 * np.arcsin(q_max * WAVELENGTH / 2)) / PIXEL
    n = int(FALSE * spots)
    where, angle = r_max * np.sqrt(rng.uniform(0.001, 1, n)), rng.uniform(0, 2 * np.pi, n)
    stray = middle + np.stack([where * np.cos(angle), where * np.sin(angle)], 1)
    xy = rng.permutation(np.concatenate([xy, stray]))
    frames = 500
    count = np.full(frames, len(xy) // frames)
    count[: len(xy) % frames] += 1
    table = np.zeros((2, frames, count.max()))
    table[:, np.arange(count.max()) < count[:, None]] = xy.T - 0.5
    with h5py.File(path, "w") as h5:
        group = h5.create_group("/entry_1/result_1")
        group["nPeaks"], group["peakXPosRaw"], group["peakYPosRaw"] = count, table[0], table[1]
    return np.stack([q, expected], 1)


def merged(lines: NDArray[np.float64], width: float, least: float) -> NDArray[np.float64]:
    """Lines nearer than 0.7 widths as one, at their mean by spots; those of fewer spots than `least` left out."""
    lines = lines[np.argsort(lines[:, 0])]
    groups = np.cumsum(np.diff(lines[:, 0], prepend=-1.0) > 0.7 * width)
    total = np.bincount(groups, lines[:, 1])[1:]
    mean = np.bincount(groups, lines[:, 0] * lines[:, 1])[1:] / np.maximum(total, 1e-12)
    return mean[total >= least]


def indexed(found: FoundLines, cell: tuple[float, ...], bravais: str) -> tuple[int | None, float]:
    """The rank (from 1) of the true lattice in the answer to a list, and the CPU seconds it took."""
    start = time.process_time()
    (result,) = solve(PowderStage(PowderSettings()), [item_from_peaks(found.peak_list())])
    spent = time.process_time() - start
    truth = niggli(cell, centring_of(bravais, cell))
    table = result.tables.get("solutions", {"niggli": []})
    rank = next((i for i, n in enumerate(table["niggli"], 1) if same_lattice(tuple(n), truth)), None)
    return rank, spent


def stills_rows(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """One row a simulated set of stills."""
    structures = pd.read_parquet(options.data / "structures.parquet").set_index("uid")
    wanted = set(options.lattice.split(","))
    rows = []
    for entry in calculated(options.data, "validation", "clean", 40, options.seed):
        mine = [r for r in rows if r["bravais"] == entry.bravais]
        if entry.bravais not in wanted or len(mine) >= options.per_lattice or entry.uid not in structures.index:
            continue
        rng = np.random.default_rng([options.seed, len(rows)])
        q_max = min(float(np.sqrt(np.sort(entry.q2)[min(34, len(entry.q2) - 1)])) * 1.1, 0.7)
        path = folder / "stills.cxi"
        try:
            truth = simulated(structures.loc[entry.uid], path, options.spots, q_max, rng)
        except (RuntimeError, ValueError, TypeError, AttributeError) as error:
            print(f"# {entry.uid}: cannot be simulated ({error})", file=sys.stderr)
            continue
        row: dict[str, Any] = {"uid": entry.uid, "bravais": entry.bravais}
        rows.append(row | {"true": 0, "found": 0, "rank": None})
        start = time.process_time()
        try:
            geometry = flat_geometry(DISTANCE, (SIDE / 2, SIDE / 2), PIXEL, WAVELENGTH)
            how = StillsOptions(geometry, refine_centre=True)
            found = lines_of_stills([usable_spots(path, how)], "stills", how)
        except InputError as error:
            rows[-1]["reason"] = str(error)
            continue
        row["seconds"] = time.process_time() - start
        width = float(np.median(found.width))
        lines = merged(truth, width, 30)
        q, esd = np.sqrt(found.q2), found.q2_esd / (2 * np.sqrt(found.q2))
        first = q[: 2 * LINES]
        true = lines[lines < first[-1] + width][: 2 * LINES]
        near = np.abs(true[:, None] - q).min(axis=1) if len(true) else np.empty(0)
        anything = merged(truth, 0.0, 5)
        away = np.abs(first[:, None] - anything).min(axis=1)
        nearest = lines[np.abs(first[:, None] - lines).argmin(axis=1)]
        miss = first - nearest
        own = np.abs(miss) < 0.5 * width
        centre = found.beside["beam_centre"][0] if found.beside["beam_centre"] else {"x": np.nan, "y": np.nan}
        row |= {
            "true": len(true),
            "recovered": int(np.sum(near < 0.5 * width)),
            "found": len(first),
            "false": int(np.sum(away > 0.7 * width)),
            "error_q": float(np.sqrt(np.median(miss[own] ** 2))),
            "pull": float(np.sqrt(np.median((miss[own] / esd[: len(first)][own]) ** 2)) / 0.6745),
            "centre_error_pixels": float(np.hypot(centre["x"] - OFF[0], centre["y"] - OFF[1])),
        }
        row["rank"], row["index_seconds"] = indexed(found, entry.cell, entry.bravais)
        rows[-1] = row
        print(" ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in row.items()), file=sys.stderr)
    return rows


def calculated_tth(row: dict[str, str], wavelength: float) -> NDArray[np.float64]:
    """2theta (degrees) of the reflections that the space group of a reference cell allows, by gemmi."""
    cell = gemmi.UnitCell(*(float(row[k]) for k in ("a", "b", "c", "alpha", "beta", "gamma")))
    group = gemmi.find_spacegroup_by_name(row["sg"]) or gemmi.SpaceGroup(int(float(row["sg_number"])))
    hkl = gemmi.make_miller_array(cell, group, wavelength / 2 / np.sin(np.radians(33.5)))
    absent = group.operations().systematic_absences(hkl)
    q = np.sqrt(cell.calculate_1_d2_array(hkl[~np.asarray(absent, bool)]))
    return np.sort(2 * np.degrees(np.arcsin(q * wavelength / 2)))


def pattern_rows(options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row a mineral."""
    folder = options.data / "patterns"
    library = np.load(folder / "powdr_rockjock.npz")
    names = {str(n): i for i, n in enumerate(library["phase_id"])}
    rows = []
    with (folder / "index.csv").open() as file:
        entries = [
            r
            for r in csv.DictReader(file)
            if r["file"].startswith("powdr_rockjock/") and r["grade"] in options.grade.split(",")
        ]
    for entry in entries:
        at = names.get(entry["phase"])
        if at is None:
            continue
        row: dict[str, Any] = {"phase": entry["phase"], "bravais": entry["bravais"], "grade": entry["grade"]}
        start = time.process_time()
        y = library["counts"][at].astype(float)
        pattern = Pattern(entry["phase"], entry["phase"], library["tth"].astype(float), y, None, "tth", 1.5405929)
        try:
            found = lines_of_pattern(pattern, anode="Cu", weakest=options.weakest / 100)
        except InputError as error:
            rows.append(row | {"found": 0, "explained": 0, "rank": None, "reason": str(error)})
            continue
        row["seconds"] = time.process_time() - start
        first = found.two_theta[:LINES]
        known = calculated_tth(entry, 1.5405929)
        shift = 0.0
        for reach in (0.15, 0.1, 0.06, 0.06):
            miss = first - shift * np.cos(np.radians(first) / 2)
            miss = miss - known[np.abs(miss[:, None] - known).argmin(axis=1)]
            near = np.abs(miss) < reach
            shift += float(np.median(miss[near])) if np.any(near) else 0.0
        strong = found.intensity[:LINES]
        explained = np.abs(miss) < 0.06
        row |= {
            "found": len(first),
            "explained": int(explained.sum()),
            "intensity_explained": float(strong[explained].sum() / strong.sum()),
            "rms_tth": float(np.sqrt(np.mean(miss[explained] ** 2))) if np.any(explained) else None,
            "displacement": shift,
            "reduced_deviance": found.beside["reduced_deviance"],
        }
        if len(rows) < options.indexed:
            cell = tuple(float(entry[k]) for k in ("a", "b", "c", "alpha", "beta", "gamma"))
            row["rank"], row["index_seconds"] = indexed(found, cell, entry["bravais"])
        rows.append(row)
        print(" ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in row.items()), file=sys.stderr)
    return rows


def summary(rows: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    """What a table shows of a set of rows."""
    ok = [r for r in rows if r["found"]]
    out: dict[str, Any] = {"lists": len(rows), "without lines": len(rows) - len(ok)}
    if kind == "stills":
        true, found = sum(r["true"] for r in ok), sum(r["found"] for r in ok)
        out |= {
            "true lines recovered": f"{sum(r['recovered'] for r in ok)} of {true}",
            "false lines": f"{sum(r['false'] for r in ok)} of {found}",
            "median error of q (1/A)": float(np.median([r["error_q"] for r in ok])),
            "scatter in units of esd, median list": float(np.median([r["pull"] for r in ok])),
            "worst error of the centre (pixels)": float(np.nanmax([r["centre_error_pixels"] for r in ok])),
        }
    else:
        out |= {
            "lines explained": f"{sum(r['explained'] for r in ok)} of {sum(r['found'] for r in ok)}, the first {LINES}",
            "of their intensity, median list": float(np.median([r["intensity_explained"] for r in ok])),
            "rms of 2theta (degrees), median list": float(np.median([r["rms_tth"] for r in ok if r["rms_tth"]])),
        }
    ranked = [r for r in rows if "index_seconds" in r]
    if ranked:
        first, ten = (sum((r["rank"] or 99) <= most for r in ranked) for most in (1, 10))
        # Stills that gave no list count as missed; of the patterns only some are indexed
        out["true lattice first / in ten"] = f"{first} / {ten} of {len(ranked if kind == 'patterns' else rows)}"
    out["CPU seconds a list, median"] = float(np.median([r["seconds"] for r in ok]))
    return out


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("MLINDEX_DATA"), help="default: MLINDEX_DATA")
    parser.add_argument("--only", choices=("stills", "patterns"))
    parser.add_argument("--lattice", default=",".join(LATTICES))
    parser.add_argument("--per-lattice", type=int, default=2, help="simulated structures of each Bravais lattice")
    parser.add_argument("--spots", type=int, default=20_000, help="of each set of stills")
    parser.add_argument("--grade", default="A,B", help="of the minerals' reference cells")
    parser.add_argument("--weakest", type=float, default=1.0, help="patterns: least height, percent of the highest")
    parser.add_argument("--indexed", type=int, default=1000, help="patterns: index the lists of the first so many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    if options.data is None:
        parser.error("give the data folder with --data or in MLINDEX_DATA")
    out: dict[str, Any] = {
        "settings": {k: v for k, v in vars(options).items() if k not in ("data", "json")},
        "versions": {n: version(n) for n in ("mlindex-hpc", "numpy", "scipy", "jax", "gemmi")},
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores",
    }
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("stills", "patterns"):
            if options.only in (None, kind):
                rows = stills_rows(options, Path(folder)) if kind == "stills" else pattern_rows(options)
                out[kind] = {"summary": summary(rows, kind), "rows": rows}
                print(kind)
                for name, value in out[kind]["summary"].items():
                    print(f"  {name:40} {value:.3g}" if isinstance(value, float) else f"  {name:40} {value}")
    if options.json:
        options.json.write_text(json.dumps(out, indent=1, allow_nan=False, default=str) + "\n")


if __name__ == "__main__":
    main()
