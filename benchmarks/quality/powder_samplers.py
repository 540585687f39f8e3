"""How well four ways of refinement bring candidate cells to the true lattice, and at what cost.

    python benchmarks/quality/powder_samplers.py --data DIR --json out.json

The lattice is known. Candidates are (a) the true cell with every free parameter moved by 1, 2, 5 and 10 % (normal,
relative; the figure is the share of them that arrive), (b) the 256 cells that the search screens out of its templates
(the figures are the lists for which a candidate arrives, and for which it is one of the twelve distinct ones with the
best score, which is what the search judges), and (c) --random cells of a likely volume (the same figures). Arrived:
within 1 % in all Voronoi vectors of the true lattice.

Ways: `refine` (Gauss-Newton on random subsets to the nearest reflections, robust loss, acceptance), `marginal` (climb
of the likelihood summed over all assignments), `subsample` and `resample` (walk of the write-up), `balance` (chain in
detailed balance); the last three with the trained networks where there are some, or with the plain softmax (`+plain`).
The start width is that of the first steps, in degrees of 2theta. CPU seconds are those of one list on one core, without
compilation; the program limits itself to one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a script, from anywhere

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from benchmarks.quality.dataset import SETS, Entry, calculated
from mlindex.crystal.lattice import BRAVAIS, SYSTEMS
from mlindex.crystal.metric import products_from_hkl, reciprocal_metric_from_cell, transform_metric
from mlindex.crystal.reduction import lattice_distance, primitive_metric, vonorms
from mlindex.crystal.reflections import reference_hkl
from mlindex.crystal.settings import standard_setting
from mlindex.powder import assign_network, marginal, propose, ranking, refine, sampler, search, sweep
from mlindex.powder.lines import Lines, lines_from_q2

LATTICES = ("tP", "hP", "oP", "mP", "mC", "aP")
VARIANTS = ("clean", "dirty", "serial")
LEVELS = (0.01, 0.02, 0.05, 0.10)
ARRIVED = 0.01  # relative, of the Voronoi vectors
SWEEP = replace(next(one for one in search.EFFORTS["normal"] if one.dominant), tolerance=0.035, screened=256)
FINAL = SWEEP.tolerance / 3  # degrees 2theta
SCREENED_WIDTH = 5 * FINAL  # of the first step from screened candidates: that of the search

Way = Callable[[NDArray, Any, refine.Problem, str], tuple[Any, Any]]


def options_of() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("MLINDEX_DATA"), help="default: MLINDEX_DATA")
    parser.add_argument("--set", default="validation", choices=SETS[:2])
    parser.add_argument("--per-lattice", type=int, default=10)
    parser.add_argument("--lattice", default=",".join(LATTICES))
    parser.add_argument("--variant", default=",".join(VARIANTS))
    parser.add_argument("--starts", type=int, default=32, help="moved cells of each list and size of move; 0: none")
    parser.add_argument("--random", type=int, default=0, help="random cells of each list; 0: no part c")
    parser.add_argument("--ways", default="all", help="a comma list of names, or of their beginnings")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", type=Path, help="folder to keep the screened candidates in")
    parser.add_argument("--no-screened", action="store_true", help="without part b")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def narrowing(start: float, steps: int) -> NDArray[np.float32]:
    """Widths from `start` to the final one over the first two thirds of the steps, then the final one."""
    falling = max(2 * steps // 3, 2)
    return np.concatenate([np.geomspace(start, FINAL, falling), np.full(steps - falling, FINAL)]).astype(np.float32)


def ways_of(start: float, spread: float, chosen: str) -> dict[str, Way]:
    """Every way by its name, the first steps `start` degrees wide, or for cells off by the relative `spread`."""

    def project(bravais: str) -> jax.Array:
        return jnp.asarray(SYSTEMS[BRAVAIS[bravais].system].project, jnp.float32)

    def refined(g: NDArray, keys: Any, problem: refine.Problem, bravais: str, *, steps: int) -> tuple[Any, Any]:
        return refine.refine(g, keys, problem, project(bravais), narrowing(start, steps))

    def climbed(g: NDArray, keys: Any, problem: Any, bravais: str, *, steps: int, keep: float) -> tuple[Any, Any]:
        schedule = marginal.schedule(steps, spread, keep)
        return marginal.climb(g, keys, problem, project(bravais), jnp.float32(FINAL), *schedule)

    def network(bravais: str, problem: Any, plain: bool) -> assign_network.Network:
        weights = assign_network.naive(len(problem.products)) if plain else assign_network.shipped(bravais)
        return jax.tree.map(jnp.asarray, weights)

    def levels(steps: int) -> jax.Array:
        return jax.random.randint(jax.random.key(steps), (steps,), 0, len(assign_network.LEVELS))

    def walked(
        g: NDArray, keys: Any, problem: Any, bravais: str, *, steps: int, plain: bool, resample: bool
    ) -> tuple[Any, Any]:
        weights = network(bravais, problem, plain)
        width = jnp.float32(FINAL)
        return sampler.walk(g, keys, problem, project(bravais), weights, levels(steps), width, resample=resample)

    def chained(g: NDArray, keys: Any, problem: Any, bravais: str, *, steps: int, plain: bool) -> tuple[Any, Any]:
        # The networks of the smaller noise later: the proposal follows the width
        falling = jnp.asarray(np.minimum(np.arange(steps) * 6 // steps, 3))
        weights, widths = network(bravais, problem, plain), jnp.asarray(narrowing(2 * start, steps))
        return sampler.chain(g, keys, problem, project(bravais), weights, falling, widths, jnp.float32(3 * spread))

    found: dict[str, Way] = {}
    for steps in (9, 36):
        found[f"refine {steps}"] = partial(refined, steps=steps)
    for steps, keep, suffix in ((9, 1.0, ""), (24, 1.0, ""), (24, 0.8, "+subsets")):
        found[f"marginal{suffix} {steps}"] = partial(climbed, steps=steps, keep=keep)
    for plain, suffix in ((True, "+plain"), (False, "")):
        found[f"subsample{suffix} 12"] = partial(walked, steps=12, plain=plain, resample=False)
        found[f"resample{suffix} 12"] = partial(walked, steps=12, plain=plain, resample=True)
        found[f"balance{suffix} 24"] = partial(chained, steps=24, plain=plain)
    if chosen == "all":
        return found
    return {name: way for name, way in found.items() if any(name.startswith(one) for one in chosen.split(","))}


def problem_of(lines: Lines, bravais: str) -> refine.Problem:
    """The first lines of a list and the reference reflections, as the search puts them on the device."""

    def padded(values: NDArray, value: float) -> jax.Array:
        return jnp.asarray(np.pad(values, (0, SWEEP.searched - len(values)), constant_values=value), jnp.float32)

    lattice = BRAVAIS[bravais]
    hkl = reference_hkl(bravais, assign_network.REFERENCE[lattice.n_free])
    return refine.Problem(
        padded(lines.q2, 1.0),
        padded(2 * lines.q * lines.w, 1.0),
        padded(np.ones(len(lines)), 0.0),
        jnp.asarray(products_from_hkl(hkl.astype(np.float32))),
        jnp.asarray(SYSTEMS[lattice.system].embed, jnp.float32),
    )


def true_metric(entry: Entry) -> NDArray[np.float64]:
    """The reciprocal metric (6,) of the standard setting; the centring is the one that gives the primitive cell."""
    truth = primitive_metric(entry.niggli, "P")
    for letter in {"mC": "CIA", "oS": "CAB"}.get(entry.bravais, BRAVAIS[entry.bravais].centring):
        cell, _ = standard_setting(np.asarray(entry.cell, float), entry.bravais, centring=letter)
        g = reciprocal_metric_from_cell(cell)
        if lattice_distance(transform_metric(g, BRAVAIS[entry.bravais].primitive), truth) < 1e-3:
            return g
    raise ValueError(f"{entry.uid}: no centring of its cell gives its primitive cell")


def moved(entry: Entry, level: float, count: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Metrics of the true cell with every free parameter off by the relative `level`, normal."""
    g = true_metric(entry)
    system = SYSTEMS[BRAVAIS[entry.bravais].system]
    size = np.abs(np.asarray(assign_network.reach(jnp.asarray(g, jnp.float32))) @ system.project.T)
    x = g @ system.project.T + level * size * rng.normal(0, 1, (count, system.n_free))
    return (x @ system.embed.T).astype(np.float32)


def arrived(entry: Entry, g: NDArray) -> NDArray[np.bool_]:
    """Which of the metrics (k, 6) are the true lattice."""
    g = np.asarray(g, np.float64)
    out = np.zeros(len(g), bool)
    valid = np.isfinite(g).all(1)
    primitive = transform_metric(g[valid], BRAVAIS[entry.bravais].primitive)
    with np.errstate(all="ignore"):  # a metric of no cell is no match
        away = lattice_distance(primitive, primitive_metric(entry.niggli, "P"))
    out[valid] = away < ARRIVED
    return out


def judged(g: NDArray, score: NDArray, bravais: str) -> NDArray[np.int64]:
    """Indices of the distinct lattices of best score that the search would judge (`sweep.refined`)."""
    order = np.argsort(-score, kind="stable")
    order = order[np.isfinite(score[order])]
    norms = np.sort(vonorms(transform_metric(np.asarray(g, float)[order], BRAVAIS[bravais].primitive)), axis=-1)
    kept: list[int] = []
    for i in range(len(order)):
        if len(kept) == SWEEP.judged:
            break
        if not kept or np.abs(norms[i] / norms[kept] - 1).max(1).min() > 2 * ranking.SAME_LATTICE:
            kept.append(i)
    return order[kept]


def timed(way: Way, g: NDArray, keys: Any, problem: refine.Problem, bravais: str) -> tuple[NDArray, NDArray, float]:
    """Metrics, scores and CPU seconds."""
    begun = time.process_time()
    found, score = jax.block_until_ready(way(g, keys, problem, bravais))
    return np.asarray(found), np.asarray(score), time.process_time() - begun


def screened(entry: Entry, lines: Lines, options: argparse.Namespace) -> NDArray[np.float32]:
    """The candidates of the search, from the cache where they are in it."""
    path = options.cache / f"{entry.uid}-{entry.group}-{options.seed}.npy" if options.cache else None
    if path is not None and path.is_file():
        return np.load(path)
    g = sweep.screened(lines, lines.q2, entry.bravais, SWEEP, None, options.seed)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, g)
    return g


def padded_to(g: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    return np.concatenate([g, np.repeat(g[-1:], count - len(g), 0)])


def table_of(rows: dict[Any, list[tuple[float, ...]]], columns: tuple[str, ...]) -> list[dict[str, Any]]:
    """Means of the columns for every key (part, lattice, variant, way), and for all lattices together."""
    out = []
    for (lattice, variant, way, level), values in rows.items():
        mean = dict(zip(columns, np.mean(values, 0).round(4).tolist(), strict=True))
        out.append({"lattice": lattice, "variant": variant, "way": way, "level": level, "lists": len(values)} | mean)
    return out


def shown(title: str, table: list[dict[str, Any]], columns: tuple[str, ...], ways: list[str]) -> None:
    """Print one table: a row a way, for each variant the means over all lists."""
    print(f"\n{title}")
    groups = sorted({(row["variant"], row["level"]) for row in table}, key=str)
    for variant, level in groups:
        print(f"  {variant}" + (f", moved by {level:.0%}" if level else ""))
        for way in ways:
            mine = [r for r in table if (r["variant"], r["level"], r["way"]) == (variant, level, way)]
            if not mine:
                continue
            lists = [r["lists"] for r in mine]
            means = "  ".join(f"{c} {np.average([r[c] for r in mine], weights=lists):.3f}" for c in columns)
            each = " ".join(f"{r['lattice']} {r[columns[0]]:.2f}" for r in mine)
            print(f"    {way:22s} {means}   ({each})", flush=True)


def main() -> None:
    """Run what was asked for, print the tables, write them as JSON."""
    options = options_of()
    wide, near = ways_of(0.3, 0.03, options.ways), ways_of(SCREENED_WIDTH, 0.008, options.ways)
    lattices = options.lattice.split(",")
    moves: dict[Any, list[tuple[float, ...]]] = defaultdict(list)
    screens: dict[Any, list[tuple[float, ...]]] = defaultdict(list)
    randoms: dict[Any, list[tuple[float, ...]]] = defaultdict(list)
    warm: set[Any] = set()
    for variant in options.variant.split(","):
        for entry in calculated(options.data, options.set, variant, options.per_lattice, options.seed):
            if entry.bravais not in lattices:
                continue
            lines = lines_from_q2(entry.q2, entry.wavelength).first(SWEEP.searched)
            problem = problem_of(lines, entry.bravais)
            rng = np.random.default_rng([options.seed, len(entry.q2)])
            jobs: list[tuple[str, Any, NDArray, dict[str, Way]]] = []
            if options.starts:
                starts = np.concatenate([moved(entry, level, options.starts, rng) for level in LEVELS])
                jobs.append(("a", entry.bravais, starts, wide))
            if not options.no_screened:
                g = screened(entry, lines, options)
                if len(g):
                    jobs.append(("b", entry.bravais, padded_to(g, SWEEP.screened), near))
                else:
                    for name in near:
                        screens[entry.bravais, variant, name, None].append((0.0, 0.0, 0.0, 0.0))
            if options.random:
                window = propose.volume_window(lines, entry.bravais)
                g = propose.at_random(lines, entry.bravais, window=window, count=options.random, rng=rng)
                jobs.append(("c", entry.bravais, g, wide))
            for part, bravais, g, ways in jobs:
                keys = jax.random.split(jax.random.key(options.seed), len(g))
                for name, way in ways.items():
                    if (part, bravais, name) not in warm:
                        timed(way, g, keys, problem, bravais)
                        warm.add((part, bravais, name))
                    found, score, seconds = timed(way, g, keys, problem, bravais)
                    right = arrived(entry, found)
                    if part == "a":
                        for level, share in zip(LEVELS, right.reshape(len(LEVELS), -1).mean(1), strict=True):
                            moves[bravais, variant, name, level].append((float(share), seconds / len(LEVELS)))
                    else:
                        first = right[judged(found, score, bravais)]
                        (screens if part == "b" else randoms)[bravais, variant, name, None].append(
                            (float(first.any()), float(right.any()), float(right.mean()), seconds)
                        )
    columns_a, columns_b = ("arrived", "seconds"), ("judged", "reached", "share", "seconds")
    tables = {
        "moved": table_of(moves, columns_a),
        "screened": table_of(screens, columns_b),
        "random": table_of(randoms, columns_b),
    }
    shown("(a) moved true cells: share that arrives", tables["moved"], columns_a, list(wide))
    shown("(b) screened candidates: lists", tables["screened"], columns_b, list(near))
    shown("(c) random cells: lists", tables["random"], columns_b, list(wide))
    if options.json:
        settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()}
        options.json.write_text(json.dumps({"options": settings, **tables}, indent=1))


if __name__ == "__main__":
    main()
