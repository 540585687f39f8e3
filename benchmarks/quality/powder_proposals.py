"""Where candidate cells should come from: yield per candidate and per CPU second of every source.

    python benchmarks/quality/powder_proposals.py --per-lattice 8 --variant clean,dirty --json out.json
    python benchmarks/quality/powder_proposals.py --part narrowing --per-lattice 20

Lists are those of `dataset.py` (validation families, that no weight has seen), the true lattice is known. Sources:
`templates` (solved from templates, the best by screening first: `sweep.screened`), `random` (`propose.at_random`),
`networks` and `forests` (`proposals.propose`), `mixed` (half templates, a quarter networks, a quarter forests). A list
is met when one of the first k candidates refines (`refine.refine`, as in a search) to the true lattice: Voronoi vectors
within 2 %. CPU seconds a list are those of making and refining k candidates (median, which leaves out the few lists
that compile).

`narrowing`: how much of the volume window (in ln V) the networks' interval keeps at each coverage, how many lists then
lose the true volume, what share of the templates' solved cells is left to be screened; and, where these are ranked by
the networks' density before screening, the share of them within which the first cell near the truth (3 %) comes.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a script, from anywhere

from benchmarks.quality.dataset import VARIANTS, Entry, calculated
from mlindex.crystal.lattice import BRAVAIS, SYSTEMS
from mlindex.crystal.metric import reciprocal_metric_from_cell, transform_metric, volume_from_reciprocal_metric
from mlindex.crystal.reduction import lattice_distance
from mlindex.powder import assign, proposals, propose, refine, search, sweep
from mlindex.powder.lines import Lines, lines_from_q2

LATTICES = ("hP", "tP", "oP", "oS", "oI", "oF", "mP", "mC", "aP")
SOURCES = ("templates", "random", "networks", "forests")
COUNTS = (64, 256, 1024)
MIXED = {"templates": 0.5, "networks": 0.25, "forests": 0.25}
NEAR = 0.02  # relative difference of the Voronoi vectors of a lattice that is met
COVERAGES = (0.9, 0.99, 0.999)
# Outputs of the networks that do not depend on the choice of axes, or whose axes can be sorted
RANKED = {"t": (0, 2), "h": (0, 2), "o": (0, 1, 2, 6), "m": (1, 6), "a": (6,)}


def truth_of(entry: Entry) -> NDArray[np.float64]:
    return reciprocal_metric_from_cell(np.array(entry.niggli))


def met(g: NDArray, bravais: str, truth: NDArray, tolerance: float) -> NDArray[np.bool_]:
    """Which of the conventional metrics are the true lattice; those of another volume are ruled out first."""
    g = np.asarray(g, np.float64)
    out = np.zeros(len(g), bool)
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = volume_from_reciprocal_metric(g) / BRAVAIS[bravais].multiplicity / volume_from_reciprocal_metric(truth)
    near = np.flatnonzero(np.abs(np.log(ratio)) < 3 * tolerance)
    if len(near):
        primitive = transform_metric(g[near], BRAVAIS[bravais].primitive)
        out[near] = lattice_distance(primitive, truth) < tolerance
    return out


def refined(lines: Lines, bravais: str, candidates: NDArray, of: sweep.Pass) -> NDArray:
    """The metrics after refinement, as `sweep.refined` does it, in the order of the candidates."""
    lattice = BRAVAIS[bravais]
    system = SYSTEMS[lattice.system]
    problem = refine.Problem(
        jnp.asarray(sweep._padded(lines.q2, 1.0, of.searched)),
        jnp.asarray(sweep._padded(2 * lines.q * lines.w, 1.0, of.searched)),
        jnp.asarray(sweep._padded(np.ones(len(lines)), 0.0, of.searched)),
        jnp.asarray(sweep._reference(bravais, sweep._REFERENCE[lattice.n_free])),
        jnp.asarray(system.embed, jnp.float32),
    )
    g, _ = refine.refine(
        candidates.astype(np.float32),
        jax.random.split(jax.random.key(0), len(candidates)),
        problem,
        system.project.astype(np.float32),
        sweep.refinement_scales(of.tolerance),
    )
    return np.asarray(g, np.float64)


def candidates_of(
    source: str, lines: Lines, bravais: str, count: int, of: sweep.Pass, model: proposals.Model
) -> NDArray[np.float32]:
    if source == "templates":
        return sweep.screened(lines, lines.q2, bravais, of, None, 0)
    if source == "random":
        window = propose.volume_window(lines, bravais)
        return propose.at_random(lines, bravais, window=window, count=count, rng=np.random.default_rng(0))
    wanted = (count, 0) if source == "networks" else (0, count)
    found = proposals.propose(lines, {bravais: wanted}, 0, model)[bravais]
    return np.random.default_rng(1).permutation(found)  # groups come one after the other


def yields(
    entry: Entry, model: proposals.Model, counts: tuple[int, ...], sources: tuple[str, ...] = SOURCES
) -> dict[str, Any]:
    """For each source the number of candidates until the truth is met (None: never), of how many, and CPU seconds."""
    most = max(counts)
    of = sweep.Pass(0.035, search.FEW, 500, screened=most)
    lines = lines_from_q2(entry.q2, entry.wavelength).first(sweep.SEARCHED)
    truth, out = truth_of(entry), {}
    for source in sources:
        start = time.process_time()
        found = candidates_of(source, lines, entry.bravais, most, of, model)[:most]
        made = time.process_time() - start
        if not len(found):
            out[source] = {"first": None, "of": 0, "make": made, "refine": 0.0}
            continue
        padded = np.concatenate([found, np.repeat(found[-1:], most - len(found), 0)])
        start = time.process_time()
        hits = np.flatnonzero(met(refined(lines, entry.bravais, padded, of)[: len(found)], entry.bravais, truth, NEAR))
        out[source] = {
            "first": int(hits[0]) + 1 if len(hits) else None,
            "hits": len(hits),
            "of": len(found),
            "make": round(made, 4),
            "refine": round((time.process_time() - start) * len(found) / most, 4),
        }
    return out


def narrowing(entry: Entry, model: proposals.Model) -> dict[str, Any]:
    """What the networks' volumes and densities leave of the templates' solved cells."""
    bravais = entry.bravais
    lines = lines_from_q2(entry.q2, entry.wavelength).first(sweep.SEARCHED)
    truth = truth_of(entry)
    true_volume = float(volume_from_reciprocal_metric(truth))
    window = propose.volume_window(lines, bravais)
    start = time.process_time()
    said = proposals.opinion(lines, model)
    out: dict[str, Any] = {"ask": time.process_time() - start, "inside": window.low < true_volume < window.high}
    g, count = propose.from_templates(
        lines.q2,
        bravais,
        window=window,
        n_lines=search.FEW[BRAVAIS[bravais].n_free],
        n_templates=500,
        tile=assign.TILE,
    )
    g = np.asarray(g)[:count]
    out["solved"] = count
    volumes = volume_from_reciprocal_metric(g.astype(np.float64)) / BRAVAIS[bravais].multiplicity
    for coverage in COVERAGES:
        part = proposals.narrowed(window, said, bravais, coverage)
        out[f"kept {coverage}"] = float(np.log(max(part.high / part.low, 1.0)) / np.log(window.high / window.low))
        out[f"inside {coverage}"] = part.low < true_volume < part.high
        out[f"screened {coverage}"] = float(np.mean((volumes > part.low) & (volumes < part.high))) if count else 0.0
    right = met(g, bravais, truth, 0.03)
    out["right"] = int(right.sum())
    if right.any():
        places = RANKED[bravais[0]]
        rows = g.copy()
        if bravais[0] == "o":  # axes in the order of the standard setting
            axes = 2 if bravais == "oS" else 3
            rows[:, :axes] = -np.sort(-rows[:, :axes], axis=1)
        start = time.process_time()
        density = proposals.log_density(said, bravais, rows, places)
        out["rank_seconds"] = time.process_time() - start
        order = np.argsort(-density, kind="stable")
        out["first_right"] = float((np.flatnonzero(right[order])[0] + 1) / count)
        by_chance = np.random.default_rng(0).permutation(count)
        out["first_right_by_chance"] = float((np.flatnonzero(right[by_chance])[0] + 1) / count)
    return out


def _reached(row: dict[str, Any], source: str, k: int) -> bool:
    if source == "mixed":
        return any(_reached(row, s, round(k * share)) for s, share in MIXED.items())
    first = row[source]["first"]
    return first is not None and first <= k


def _seconds(row: dict[str, Any], source: str, k: int) -> float:
    """CPU seconds of k candidates: making them (templates must all be solved and screened) and refining k."""
    if source == "mixed":
        return sum(_seconds(row, s, round(k * share)) for s, share in MIXED.items())
    part = row[source]
    share = min(1.0, k / part["of"]) if part["of"] else 0.0
    return part["make"] * (1.0 if source != "random" else share) + part["refine"] * share


def show_yields(rows: list[dict[str, Any]], counts: tuple[int, ...]) -> list[dict[str, Any]]:
    table = []
    sources = [s for s in SOURCES if s in rows[0]["yields"]]
    sources += ["mixed"] if len(sources) == len(SOURCES) else []
    print(f"\n{'variant':9}{'lattice':8}{'lists':>6}  " + "".join(f"{s:>24}" for s in sources))
    print(" " * 25 + "".join(f"{' '.join(f'{k:>6}' for k in counts):>24}" for _ in sources) + "   % met; CPU s below")
    keys = sorted({(r["variant"], r["bravais"]) for r in rows}, key=lambda x: (x[0], LATTICES.index(x[1])))
    for variant, bravais in [*keys, *((v, "all") for v in sorted({k[0] for k in keys}))]:
        mine = [r for r in rows if r["variant"] == variant and bravais in ("all", r["bravais"])]
        line: dict[str, Any] = {"variant": variant, "bravais": bravais, "lists": len(mine)}
        for source in sources:
            line[source] = {
                "met": [sum(_reached(r["yields"], source, k) for r in mine) / len(mine) for k in counts],
                "cpu": [round(float(np.median([_seconds(r["yields"], source, k) for r in mine])), 3) for k in counts],
            }
        table.append(line)
        for name, form in (("met", "{:6.0%}"), ("cpu", "{:6.2f}")):
            head = f"{variant:9}{bravais:8}{len(mine):6}  " if name == "met" else " " * 25
            cells = (" ".join(form.format(v) for v in line[s][name]) for s in sources)
            print(head + "".join(f"{c:>24}" for c in cells))
    return table


def show_narrowing(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    table = []
    head = "".join(f"{f'inside / ln V / cells at {c}':>32}" for c in COVERAGES)
    print(f"\n{'variant':9}{'lattice':8}{'lists':>6}{'window':>8}{head}{'right in first: median, 90 %, by chance':>42}")
    keys = sorted({(r["variant"], r["bravais"]) for r in rows}, key=lambda x: (x[0], LATTICES.index(x[1])))
    for variant, bravais in [*keys, *((v, "all") for v in sorted({k[0] for k in keys}))]:
        mine = [r["narrowing"] for r in rows if r["variant"] == variant and bravais in ("all", r["bravais"])]
        line: dict[str, Any] = {"variant": variant, "bravais": bravais, "lists": len(mine)}
        line["inside"] = float(np.mean([m["inside"] for m in mine]))
        for c in COVERAGES:
            for what in ("inside", "kept", "screened"):
                line[f"{what} {c}"] = round(float(np.mean([m[f"{what} {c}"] for m in mine])), 4)
        firsts = np.array([m["first_right"] for m in mine if "first_right" in m])
        chance = np.array([m["first_right_by_chance"] for m in mine if "first_right" in m])
        line["first_right"] = [round(float(q), 5) for q in np.quantile(firsts, [0.5, 0.9])] if len(firsts) else None
        line["by_chance"] = [round(float(q), 5) for q in np.quantile(chance, [0.5, 0.9])] if len(chance) else None
        table.append(line)
        text = f"{variant:9}{bravais:8}{len(mine):6}{line['inside']:8.0%}"
        for c in COVERAGES:
            cell = f"{line[f'inside {c}']:.1%} {line[f'kept {c}']:.2f} {line[f'screened {c}']:.2f}"
            text += f"{cell:>32}"
        print(text + f"{line['first_right']!s:>24}{line['by_chance']!s:>24}")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("MLINDEX_DATA"), help="default: MLINDEX_DATA")
    parser.add_argument("--model", type=Path, help="weights to measure; default: those of the package")
    parser.add_argument("--part", default="yields,narrowing")
    parser.add_argument("--source", default=",".join(SOURCES), help="of the candidates")
    parser.add_argument("--variant", default="clean", help=f"a comma list of {', '.join(VARIANTS)}")
    parser.add_argument("--lattice", default=",".join(LATTICES))
    parser.add_argument("--per-lattice", type=int, default=8)
    parser.add_argument("--most", type=int, default=max(COUNTS), help="candidates of each source")
    parser.add_argument("--budget", type=float, default=0.0, help="CPU seconds after which no list is begun; 0: none")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.data is None:
        parser.error("give the data folder with --data or in MLINDEX_DATA")
    sources = tuple(options.source.split(","))
    model = proposals.load(options.model) if options.model else proposals.shipped()
    counts = tuple(k for k in COUNTS if k <= options.most)
    parts, wanted = options.part.split(","), options.lattice.split(",")
    work = [
        (variant, entry)
        for variant in options.variant.split(",")
        for entry in calculated(Path(options.data), "validation", variant, options.per_lattice)
        if entry.bravais in wanted and entry.bravais == entry.metric_bravais
    ]
    rows: list[dict[str, Any]] = []
    warm: set[str] = set()
    # one list of every lattice after the other, so that a run that is cut short has measured all lattices
    met_before: Counter[tuple[str, str]] = Counter()
    turns = []
    for variant, entry in work:
        turns.append(met_before[variant, entry.bravais])
        met_before[variant, entry.bravais] += 1
    work = [work[i] for i in np.argsort(turns, kind="stable")]
    for variant, entry in work:
        if options.budget and time.process_time() > options.budget:
            print(f"the time allowed {len(rows)} of {len(work)} lists", file=sys.stderr)
            break
        row: dict[str, Any] = {"variant": variant, "uid": entry.uid, "bravais": entry.bravais}
        for part, function in (
            ("yields", lambda e: yields(e, model, counts, sources)),
            ("narrowing", lambda e: narrowing(e, model)),
        ):
            if part in parts:
                if entry.bravais not in warm:
                    function(entry)
                row[part] = function(entry)
        warm.add(entry.bravais)
        rows.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
    document: dict[str, Any] = {"card": {k: v for k, v in model.card.items() if k != "groups"}, "counts": counts}
    if "yields" in parts:
        document["yields"] = show_yields(rows, counts)
    if "narrowing" in parts:
        document["narrowing"] = show_narrowing(rows)
    if options.json:
        options.json.write_text(json.dumps(document | {"rows": rows}, indent=1))


if __name__ == "__main__":
    main()
