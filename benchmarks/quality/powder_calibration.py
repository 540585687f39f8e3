"""Whether the probabilities that powder indexing reports are right, and what the posterior does to the ranking.

    python benchmarks/quality/powder_calibration.py --per-lattice 20 --json out.json --plot out.png
    python benchmarks/quality/powder_calibration.py --outcomes validation.npz --json out.json

Every list is searched once; `evidence` rates what was judged by the tempered evidence alone, `posterior` by the trained
model (`mlindex.powder.posterior`). The probability is that of the first lattice; it is right where that is
the true one (`truth.py`). The calibration error is the mean over the lists of | stated - share right | in ten bins of
equal width; the reliability diagram is printed as a table. A list is lost to ranking where the true lattice is among
the candidates but not first, and never found where it is not among them. Besides the calculated lists of the chosen
variants there are lists of random lines, to which "not solved" is the answer; they enter no other figure.
Calibration is shown apart for answers of up to three free parameters and of more, because few lines fit many cells of
low symmetry: `--first 7,9,12` cuts the lists of each lattice to so many lines in turn.
`--outcomes` keeps what the searches gave, or uses what is there.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a script, from anywhere

from benchmarks.quality.dataset import LATTICES, SETS, VARIANTS, WAVELENGTH, Entry, calculated, usable
from benchmarks.quality.powder_lists import surroundings
from benchmarks.quality.truth import centring_of, niggli, same_lattice
from mlindex.crystal.lattice import BRAVAIS
from mlindex.crystal.metric import cell_from_reciprocal_metric, reciprocal_metric_from_cell
from mlindex.powder import judge
from mlindex.powder.lines import lines_from_q2
from mlindex.powder.posterior import LIST, WEIGHTS, weights
from mlindex.powder.posterior_train import (
    SOLVED_GAIN,
    SOLVED_WIDTH,
    Labelled,
    Outcomes,
    calibration_error,
    joined,
    load,
    outcome,
    probabilities,
)
from mlindex.powder.ranking import Judged
from mlindex.powder.search import states

BINS = 10
RANDOM = "random"


def options_of(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("MLINDEX_DATA"), help="default: MLINDEX_DATA")
    parser.add_argument("--set", default="validation", choices=SETS, help="test is held out: for releases only")
    parser.add_argument("--variant", default="clean,dirty,serial", help=f"a comma list of {', '.join(VARIANTS)}")
    parser.add_argument("--per-lattice", type=int, default=10, help="lists of each Bravais lattice and variant")
    parser.add_argument("--random", type=int, default=20, help="lists of random lines")
    parser.add_argument("--first", default="", help="lines to keep of each list, a comma list in turn; default: all")
    parser.add_argument("--seed", type=int, default=0, help="of the line errors and random lines")
    parser.add_argument("--effort", default="normal")
    parser.add_argument("--budget", type=float, default=0.0, help="wall seconds after which no list is begun; 0: none")
    parser.add_argument("--outcomes", type=Path, help="what the searches gave: used if it is there, else written")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="of the posterior")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path, help="write the reliability diagram (matplotlib)")
    options = parser.parse_args(arguments)
    if options.data is None and not (options.outcomes and options.outcomes.exists()):
        parser.error("give the data folder with --data or in MLINDEX_DATA, or outcomes that were kept")
    if unknown := set(options.variant.split(",")) - set(VARIANTS):
        parser.error(f"--variant: {', '.join(sorted(unknown))} is none of {', '.join(VARIANTS)}")
    return options


def random_lines(number: int, seed: int) -> NDArray[np.float64]:
    """q2 of 15 to 40 lines, uniform in 2theta from a first line at 4 to 20 degrees, no two closer than 0.07."""
    rng = np.random.default_rng([seed, number, 1])
    first = rng.uniform(4, 20)
    tth = np.sort(rng.uniform(first, first + rng.uniform(20, 60), int(rng.integers(15, 41))))
    tth = tth[np.append(True, np.diff(tth) > 0.07)]
    return (2 * np.sin(np.radians(tth / 2)) / WAVELENGTH) ** 2


Truth = tuple[float, ...] | None


def labelled(entry: Entry, family: str) -> tuple[Labelled, Truth]:
    lines = lines_from_q2(entry.q2, entry.wavelength)
    centring = centring_of(entry.bravais, entry.cell)
    # in rhombohedral axes the metric is no conventional one: such a cell has no lists of relatives
    usual = BRAVAIS[entry.bravais].centring == centring or entry.bravais == "oS"
    metric = reciprocal_metric_from_cell(np.array(entry.cell)) if usual else None
    return Labelled(entry.uid, family, entry.group, entry.bravais, lines, metric), entry.niggli


def lists_of(options: argparse.Namespace) -> Iterator[tuple[Labelled, Truth]]:
    """Every list to search with its true Niggli cell, lattices and variants in turn, so that a part of them is a fair
    sample."""
    variants = options.variant.split(",")
    lists = entries_of(options, options.per_lattice, options.seed)
    lengths = [int(n) for n in options.first.split(",") if n] or [None]
    for turn in range(max(options.per_lattice, options.random)):
        for variant, lattice in itertools.product(variants, LATTICES):
            for one, truth in lists.get((variant, lattice), [])[turn : turn + 1]:
                q2 = one.lines.q2[: lengths[turn % len(lengths)]]
                yield one._replace(lines=lines_from_q2(q2, one.lines.wavelength)), truth
        if turn < options.random:
            lines = lines_from_q2(random_lines(turn, options.seed), WAVELENGTH if turn % 2 else None)
            yield Labelled(f"random {turn}", f"random {turn}", RANDOM, "", lines, None), None


def entries_of(
    options: argparse.Namespace, per_lattice: int, seed: int
) -> dict[tuple[str, str], list[tuple[Labelled, Truth]]]:
    """The calculated lists by variant and lattice."""
    table = usable(options.data)
    family = dict(zip(table["uid"], table["family"].astype(str), strict=True))
    lists: dict[tuple[str, str], list[tuple[Labelled, Truth]]] = {}
    for variant in options.variant.split(","):
        for entry in calculated(options.data, options.set, variant, per_lattice, seed):
            lists.setdefault((variant, entry.bravais), []).append(labelled(entry, family[entry.uid]))
    return lists


def is_true(one: Judged, truth: Truth) -> bool:
    if truth is None:
        return False
    try:
        cell = niggli(cell_from_reciprocal_metric(one.fit.g), BRAVAIS[one.fit.bravais].centring)
    except ValueError:
        return False
    return same_lattice(truth, cell)


def searched(options: argparse.Namespace) -> Outcomes:
    """What the search gives for every list."""
    parts = []
    start = time.monotonic()
    for number, (one, truth) in enumerate(lists_of(options)):
        if options.budget and time.monotonic() - start > options.budget:
            print(f"the time allowed {number} lists; the others are not counted", file=sys.stderr)
            break
        began = time.process_time()
        *_, (turn, ranked) = enumerate(states(one.lines, effort=options.effort, seed=number))
        right = [is_true(j, truth) for j in ranked]
        rank = right.index(True) + 1 if any(right) else "-"
        seconds = time.process_time() - began
        print(f"{one.variant} {one.uid} {one.bravais} rank {rank} {seconds:.1f} s", file=sys.stderr, flush=True)
        if ranked:
            parts.append(outcome(one, ranked, right, turn=turn))
    return joined(parts)


def by_evidence(outcomes: Outcomes) -> NDArray[np.float64]:
    """Probabilities (n, k + 1) from the evidence alone: tempered, times a logistic of the gain a line."""
    values = np.where(outcomes.real, np.exp(outcomes.difference / judge.TEMPERATURE), 0.0)
    gain = outcomes.whole[:, 1] + 4.0  # a line; the feature is less 4
    solved = expit((gain - SOLVED_GAIN) / SOLVED_WIDTH)
    return np.column_stack([values / values.sum(1, keepdims=True) * solved[:, None], 1 - solved])


def ranks_of(outcomes: Outcomes) -> NDArray[np.int64]:
    """The rank (from 1) of the true lattice in each list, 0 where it is not among the candidates."""
    order = np.argsort(-np.where(outcomes.real, outcomes.difference, -np.inf), axis=1, kind="stable")
    right = np.take_along_axis(outcomes.right, order, 1)
    return np.where(right.any(1), right.argmax(1) + 1, 0)


def calibration_if_right(stated: NDArray[np.float64], draws: int = 400) -> float:
    """The calibration error that so few lists would show on average if every stated probability were exact."""
    rng = np.random.default_rng(0)
    return float(np.mean([calibration_error(stated, rng.random(len(stated)) < stated) for _ in range(draws)]))


def reliability(stated: NDArray[np.float64], hit: NDArray[np.bool_]) -> dict[str, Any]:
    """The table of the reliability diagram, the expected calibration error, and what that is without any fault."""
    place = np.minimum((stated * BINS).astype(int), BINS - 1)
    rows = []
    for b in range(BINS):
        mine = place == b
        if count := int(mine.sum()):
            rows.append([b / BINS, count, round(float(stated[mine].mean()), 4), round(float(hit[mine].mean()), 4)])
    return {
        "calibration_error": round(calibration_error(stated, hit, bins=BINS), 4),
        "if_exact": round(calibration_if_right(stated), 4),
        "bins": rows,
        "columns": ["from", "lists", "stated", "right"],
    }


def figures(outcomes: Outcomes, probability: NDArray[np.float64]) -> dict[str, Any]:
    """Ranking and calibration of the lists of one variant, or of all."""
    rank = ranks_of(outcomes)
    stated = probability[:, :-1].max(1)
    hit = rank == 1
    sure = stated >= 0.9
    return {
        "lists": len(outcomes),
        "first": int(hit.sum()),
        "top10": int(((rank > 0) & (rank <= 10)).sum()),
        "lost_to_ranking": int((rank > 1).sum()),
        "never_found": int((rank == 0).sum()),
        "stated_at_0.9": int(sure.sum()),
        "of_these_right": int((sure & hit).sum()),
        "brier": round(float(((stated - hit) ** 2).mean()), 4),
        **reliability(stated, hit),
    }


def unsolved(outcomes: Outcomes, probability: NDArray[np.float64]) -> dict[str, Any]:
    """How often "not solved" is the answer (its probability above one half): to random lists, to lists whose true
    lattice is among the candidates, and to those where it is not."""
    said = probability[:, -1] > 0.5
    random = outcomes.variant == RANDOM
    found = outcomes.right.any(1)
    parts = {"random": random, "found": found, "not_found": ~random & ~found}
    return {name: {"lists": int(use.sum()), "not_solved": int((said & use).sum())} for name, use in parts.items()}


def report_of(outcomes: Outcomes, model: dict[str, NDArray]) -> dict[str, Any]:
    """The figures of both ways, by variant and over all."""
    genuine = np.flatnonzero(outcomes.variant != RANDOM)
    report: dict[str, Any] = {}
    for name, probability in (("evidence", by_evidence(outcomes)), ("posterior", probabilities(outcomes, model))):
        parts = {"all": genuine}
        parts |= {v: genuine[outcomes.variant[genuine] == v] for v in dict.fromkeys(outcomes.variant[genuine].tolist())}
        parameters = outcomes.whole[genuine, LIST.index("free parameters of the best")]
        parts |= {"p <= 3": genuine[parameters <= 3], "p > 3": genuine[parameters > 3]}
        report[name] = {
            part: figures(outcomes.subset(use), probability[use]) for part, use in parts.items() if len(use)
        }
        report[name]["not solved"] = unsolved(outcomes, probability)
    return report


def show(report: dict[str, Any]) -> None:
    columns = ("lists", "first", "top10", "lost_to_ranking", "never_found", "stated_at_0.9", "of_these_right")
    print(f"{'':12}{'variant':10}" + "".join(f"{c:>16}" for c in columns) + f"{'Brier':>8}{'error':>8}{'exact':>8}")
    for name, parts in report.items():
        for part, f in parts.items():
            if part != "not solved":
                numbers = "".join(f"{f[c]:16}" for c in columns)
                print(f"{name:12}{part:10}{numbers}{f['brier']:8.3f}{f['calibration_error']:8.3f}{f['if_exact']:8.3f}")
    for name, parts in report.items():
        print(f"\n{name}: reliability of the first lattice over all lists")
        print(f"{'from':>6}{'lists':>7}{'stated':>8}{'right':>8}")
        for start, count, stated, right in parts["all"]["bins"]:
            print(f"{start:6.1f}{count:7}{stated:8.3f}{right:8.3f}")
        for what, f in parts["not solved"].items():
            print(f"{name}: not solved {f['not_solved']} of {f['lists']} lists ({what.replace('_', ' ')})")


def plot(report: dict[str, Any], path: Path) -> None:
    """The reliability diagram; the area of a marker is the number of lists."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(5, 5), layout="constrained")
    axis.plot([0, 1], [0, 1], color="grey", lw=1)
    for name, parts in report.items():
        _, count, stated, right = np.array(parts["all"]["bins"], float).T
        label = f"{name}, error {parts['all']['calibration_error']:.3f}"
        axis.plot(stated, right, lw=1)
        axis.scatter(stated, right, s=10 + 400 * count / count.sum(), label=label, alpha=0.7)
    axis.set(xlabel="stated probability of the first lattice", ylabel="share right", xlim=(0, 1), ylim=(0, 1))
    axis.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    options = options_of()
    if options.outcomes and options.outcomes.exists():
        outcomes = load(options.outcomes)
    else:
        outcomes = searched(options)
        if options.outcomes:
            outcomes.save(options.outcomes)
    report = report_of(outcomes, weights(options.weights))
    show(report)
    if options.plot:
        plot(report, options.plot)
    if options.json:
        kept = ("set", "variant", "per_lattice", "random", "first", "seed", "effort")
        settings = {key: getattr(options, key) for key in kept}
        document = {"settings": settings, "outcomes": outcomes.digest(), "report": report, "hardware": surroundings()}
        options.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
