"""Cells of 25 to 60 angstrom, whose lines are close: with their wavelength and without, which is first.

    python benchmarks/quality/powder_large_cells.py --per-lattice 3 --json out.json

Edges are uniform, free angles between 92 and 115 degrees. A pattern shows the lines that are 1.5e-4 1/angstrom apart,
85 % of the first 45 of them, 32 at most, with normal errors of `--errors` in q = 1/d (1/angstrom). An answer is right
where its lattice is the true one within 1 % of the Voronoi vectors. Seconds are of the CPU.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a script, from anywhere

from benchmarks.quality.powder_lists import surroundings
from mlindex.crystal.lattice import BRAVAIS
from mlindex.crystal.metric import q2_from_hkl, reciprocal_metric_from_cell, transform_metric
from mlindex.crystal.reduction import lattice_distance
from mlindex.crystal.reflections import hkl_within
from mlindex.powder.lines import lines_from_q2
from mlindex.powder.search import search

LATTICES = ("cF", "cI", "tP", "tI", "hP", "hR", "oP", "oS", "mP", "mC", "aP")
SHORTEST, LONGEST = 25.0, 60.0  # angstrom
APART, FIRST, SEEN, MOST = 1.5e-4, 45, 0.85, 32
WAVELENGTH = 0.8  # angstrom
SAME = 0.01


def random_cell(bravais: str, rng: np.random.Generator) -> NDArray[np.float64]:
    a, b, c = rng.uniform(SHORTEST, LONGEST, 3)
    match bravais[0]:
        case "c":
            return np.array([a, a, a, 90, 90, 90])
        case "t":
            return np.array([a, a, c, 90, 90, 90])
        case "h":
            return np.array([a, a, c, 90, 90, 120])
        case "o":
            return np.array([a, b, c, 90, 90, 90])
        case "m":
            return np.array([a, b, c, 90, rng.uniform(92, 115), 90])
    return np.array([a, b, c, *rng.uniform(92, 110, 3)])


def seen(g: NDArray[np.float64], bravais: str, error: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """q2 (1/angstrom^2) of the lines of a pattern."""
    q, most = np.empty(0), 0.001
    while len(q) < FIRST:
        most *= 1.3
        hkl = hkl_within(g, bravais, most)
        every = np.sqrt(np.sort(q2_from_hkl(g, hkl))) if len(hkl) else np.empty(0)
        q = every[np.diff(every, prepend=-1.0) > APART]
    q = q[:FIRST][rng.random(FIRST) < SEEN][:MOST]
    return (q + rng.normal(0, error, len(q))) ** 2


def row(bravais: str, number: int, error: float, wavelength: float | None) -> dict[str, Any]:
    rng = np.random.default_rng([number, LATTICES.index(bravais)])
    cell = random_cell(bravais, rng)
    g = np.asarray(reciprocal_metric_from_cell(cell))
    lines = lines_from_q2(seen(g, bravais, error, rng), wavelength)
    began = time.process_time()
    found = search(lines, seed=number)
    seconds = time.process_time() - began
    primitive = [transform_metric(j.fit.g, BRAVAIS[j.fit.bravais].primitive) for j in found]
    truth = transform_metric(g, BRAVAIS[bravais].primitive)
    right = (lattice_distance(np.array(primitive), truth) < SAME).tolist() if found else []
    return {
        "bravais": bravais,
        "error": error,
        "wavelength": wavelength,
        "cell": cell.round(3).tolist(),
        "rank": right.index(True) + 1 if any(right) else None,
        "probability": round(found[0].probability, 4) if found else 0.0,
        "seconds": round(seconds, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--per-lattice", type=int, default=3)
    parser.add_argument("--errors", default="2e-5,6e-5", help="of q in 1/angstrom, a comma list")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    print(f"{'error':>8}{'wavelength':>12}{'lists':>7}{'first':>7}{'wrong at 0.9':>14}{'median s':>10}")
    for error in map(float, options.errors.split(",")):
        for wavelength in (None, WAVELENGTH):
            mine = [row(b, n, error, wavelength) for b in LATTICES for n in range(options.per_lattice)]
            sure = sum(r["rank"] != 1 and r["probability"] >= 0.9 for r in mine)
            first = sum(r["rank"] == 1 for r in mine)
            middle = np.median([r["seconds"] for r in mine])
            print(f"{error:8.0e}{wavelength or 'none':>12}{len(mine):7}{first:7}{sure:14}{middle:10.2f}", flush=True)
            rows += mine
    if options.json:
        settings = {"per_lattice": options.per_lattice, "errors": options.errors}
        options.json.write_text(json.dumps({"settings": settings, "rows": rows, "hardware": surroundings()}) + "\n")


if __name__ == "__main__":
    main()
