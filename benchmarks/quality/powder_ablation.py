"""What each part of powder indexing is worth: success and time with one part taken out, on the same lists.

    python benchmarks/quality/powder_ablation.py --per-lattice 3 --variant dirty,serial --json out.json

Lists are those of `dataset.py`, the lattice unknown, in one process; CPU seconds of a warm search. Parts:

- `posterior`: the search ends by the tempered evidence (a logistic of the gain a line) instead of the trained one;
- `stops`: every pass is made, whatever was found;
- `templates`: combinations of the lowest reflections, in their order, in place of those counted on the training
  families (three and more free parameters);
- `learned`: neither of the trained parts, `posterior` and `templates`;
- `networks`: draws from networks and trees of forests in place of cells solved from templates;
- `volumes`: the best candidates of all volumes together, instead of as many of every range of volumes;
- `survey`: no survey of the lattices of few parameters before the thorough sweep;
- `all lines`: the best candidates are refined to the first 20 lines only;
- `zero shift`: no zero shift is fitted or tried;
- `dominant`: no pass for patterns that begin with one row or zone.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from scipy.special import expit, softmax

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a script, from anywhere

from benchmarks.quality.dataset import SETS, VARIANTS, Entry, calculated
from benchmarks.quality.powder_calibration import is_true
from benchmarks.quality.powder_lists import surroundings
from mlindex.crystal.lattice import BRAVAIS
from mlindex.crystal.reflections import reference_hkl
from mlindex.powder import judge, posterior, proposals, propose, survey, sweep, templates
from mlindex.powder.lines import lines_from_q2
from mlindex.powder.posterior_train import SOLVED_GAIN, SOLVED_WIDTH
from mlindex.powder.search import EFFORTS, search

NORMAL = EFFORTS["normal"]


def by_evidence(of: posterior.Features, model: Any) -> tuple[np.ndarray, float]:
    solved = float(expit((of.whole[1] + 4.0 - SOLVED_GAIN) / SOLVED_WIDTH))
    return solved * softmax(of.difference / judge.TEMPERATURE), 1 - solved


@cache
def lowest(bravais: str, count: int) -> np.ndarray:
    """Templates of the lowest reflections: combinations ordered by the sum of their places."""
    p = BRAVAIS[bravais].n_free
    reach = {3: 16, 4: 16, 6: 14}[p]
    chosen = sorted(combinations(range(reach), p), key=lambda c: (sum(c), c))
    hkl = reference_hkl(bravais, reach)[np.array(chosen)]
    rows = templates.design(hkl, BRAVAIS[bravais].system)
    solvable = np.abs(np.linalg.det(rows)) > 0.5
    return np.linalg.inv(rows[solvable][:count]).astype(np.float32)


def lowest_templates(bravais: str, count: int, least: int | None = None) -> np.ndarray:
    if BRAVAIS[bravais].n_free < 3:
        return templates.solved_templates(bravais, count, least)
    return lowest(bravais, count)


def learned_cells(
    lines: Any, combined: Any, bravais: str, of: sweep.Pass, max_volume: float | None, seed: int
) -> np.ndarray:
    return proposals.propose(lines, {bravais: (of.screened, 80)}, seed)[bravais]


def best_of_all(g: np.ndarray, score: np.ndarray, count: int) -> np.ndarray:
    return np.argsort(-score, kind="stable")[:count]


def first_lines(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda lines, bravais, candidates, of, seed, **options: function(
        lines.first(of.searched), bravais, candidates, of, seed, **options
    )


def passes(change: Callable[[sweep.Pass], sweep.Pass | None]) -> Any:
    changed = tuple(one for one in map(change, NORMAL) if one is not None)
    return patch.dict(EFFORTS, {"normal": changed})


@contextmanager
def without(part: str) -> Iterator[None]:
    """The search with one part taken out."""
    with ExitStack() as stack:
        if part in ("posterior", "learned"):
            stack.enter_context(patch.object(posterior, "posterior", by_evidence))
        if part in ("templates", "learned"):
            stack.enter_context(patch.object(propose, "solved_templates", lowest_templates))
            stack.enter_context(patch.object(survey, "solved_templates", lowest_templates))
        if part == "stops":
            stack.enter_context(passes(lambda one: replace(one, doubt=0.0)))
        if part == "networks":
            stack.enter_context(patch("mlindex.powder.search.screened", learned_cells))
            stack.enter_context(passes(lambda one: None if one.dominant else replace(one, surveyed=False)))
        if part == "volumes":
            stack.enter_context(patch.object(sweep, "best_of_volumes", best_of_all))
        if part == "survey":
            stack.enter_context(passes(lambda one: replace(one, surveyed=False)))
        if part == "all lines":
            stack.enter_context(patch("mlindex.powder.search.refined", first_lines(sweep.refined)))
        if part == "dominant":
            stack.enter_context(passes(lambda one: None if one.dominant else one))
        survey._lattice.cache_clear()
        yield
    survey._lattice.cache_clear()


PARTS = (
    "",
    "posterior",
    "stops",
    "templates",
    "learned",
    "networks",
    "volumes",
    "survey",
    "all lines",
    "zero shift",
    "dominant",
)


def searched(entry: Entry, part: str) -> tuple[int, float]:
    """The rank of the true lattice (0: not found), and CPU seconds."""
    lines = lines_from_q2(entry.q2, entry.wavelength)
    start = time.process_time()
    found = search(lines, fit_zero=part != "zero shift")
    seconds = time.process_time() - start
    return next((i for i, one in enumerate(found, 1) if is_true(one, entry.niggli)), 0), seconds


def measured(entries: list[Entry], part: str) -> dict[str, Any]:
    with without(part):
        searched(entries[-1], part)
        outcomes = [searched(entry, part) for entry in entries]
    rank, seconds = (np.array(column) for column in zip(*outcomes, strict=True))
    return {
        "without": part or "nothing",
        "lists": len(entries),
        "first": int((rank == 1).sum()),
        "in_ten": int(((rank > 0) & (rank <= 10)).sum()),
        "median_s": round(float(np.median(seconds)), 3),
        "mean_s": round(float(seconds.mean()), 3),
        "rank": rank.tolist(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("MLINDEX_DATA"), help="default: MLINDEX_DATA")
    parser.add_argument("--set", default="validation", choices=SETS)
    parser.add_argument("--variant", default="dirty,serial", help=f"a comma list of {', '.join(VARIANTS)}")
    parser.add_argument("--per-lattice", type=int, default=3)
    parser.add_argument("--part", default=",".join(PARTS), help="a comma list of parts; the empty one is the whole")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.data is None:
        parser.error("give the data folder with --data or in MLINDEX_DATA")
    if unknown := set(options.part.split(",")) - set(PARTS):
        parser.error(f"--part: {', '.join(sorted(unknown))} is none of {', '.join(p for p in PARTS if p)}")
    rows = []
    print(f"{'variant':9}{'without':12}{'lists':>6}{'first':>7}{'in ten':>8}{'median s':>10}{'mean s':>8}")
    for variant in options.variant.split(","):
        entries = list(calculated(options.data, options.set, variant, options.per_lattice))
        for part in options.part.split(","):
            row = {"variant": variant} | measured(entries, part)
            rows.append(row)
            print(
                f"{variant:9}{row['without']:12}{row['lists']:6}{row['first']:7}{row['in_ten']:8}"
                f"{row['median_s']:10.2f}{row['mean_s']:8.2f}",
                flush=True,
            )
    if options.json:
        kept = ("set", "variant", "per_lattice", "part")
        settings = {key: getattr(options, key) for key in kept}
        options.json.write_text(json.dumps({"settings": settings, "rows": rows, "hardware": surroundings()}) + "\n")


if __name__ == "__main__":
    main()
