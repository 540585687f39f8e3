"""How often the lines of a true cell are seen, and how often a cell is a superstructure: the constants of `judge`.

    python benchmarks/quality/powder_visibility.py --data DATA --per-lattice 80

For each training list (clean, dirty and serial) the true cell is fitted and its predicted lines are counted, seen and
not seen, all of them and those of each distinct sublattice of index 2, 3 and 4. By maximum likelihood over the lists
the script finds the Beta distribution of the share seen, one a lattice system (`judge.SEEN`), that of the lines that a
superstructure adds (`judge.SEEN_WEAK`), and the shares of structures that are superstructures of each index
(`judge.SUPERSTRUCTURE`), each shared equally by the sublattices of that index. It prints them beside those in use.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a script, from anywhere

import numpy as np
from scipy.optimize import minimize

from benchmarks.quality.dataset import calculated
from benchmarks.quality.powder_lists import surroundings
from mlindex.crystal.lattice import BRAVAIS
from mlindex.crystal.metric import reciprocal_metric_from_cell
from mlindex.powder import judge, ranking
from mlindex.powder.lines import lines_from_q2

SYSTEMS = tuple(judge.SEEN)
INDICES = tuple(judge.SUPERSTRUCTURE)
Counts = tuple[int, np.ndarray, dict[int, np.ndarray]]  # system; seen, not seen; by index (k, 2), of the sublattices


def counts(data: Path, variants: list[str], per_lattice: int) -> list[Counts]:
    """What of the predicted lines of each true cell is seen."""
    found: list[Counts] = []
    for variant in variants:
        for entry in calculated(data, "train", variant, per_lattice):
            lines = lines_from_q2(entry.q2, entry.wavelength).first(40)
            cell = reciprocal_metric_from_cell(np.array(entry.cell))
            for one in ranking.judged(lines, [(entry.bravais, cell)], fit_zero=entry.wavelength is not None):
                visible, present, seen = judge.predicted(one.fit, lines, one.absent)
                rows = {k: judge.basic_lines(one.fit, visible, present, k) for k in INDICES}
                by = {k: judge.counted(basic, present, seen) for k, basic in rows.items()}
                system = SYSTEMS.index(BRAVAIS[one.fit.bravais].system)
                found.append((system, judge.counted(present, present, seen), by))
    return found


def log_likelihood(x: np.ndarray, lists: list[Counts]) -> float:
    """Of logarithms of the Beta parameters (two a system, two of weak lines), and of the odds of each index."""
    beta = np.exp(x[: 2 * len(SYSTEMS) + 2]).reshape(-1, 2)
    share = np.exp(np.append(0, x[2 * len(SYSTEMS) + 2 :]))
    share /= share.sum()
    total = 0.0
    for system, both, by in lists:
        terms = [np.log(share[0]) + judge.log_seen(both, beta[system])]
        for weight, basic in zip(share[1:], by.values(), strict=True):
            if len(basic):
                each = judge.log_seen(basic, beta[system]) + judge.log_seen(both - basic, beta[-1])
                terms.append(np.log(weight / len(basic)) + np.logaddexp.reduce(each))
        total += float(np.logaddexp.reduce(terms))
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("MLINDEX_DATA", "data")))
    parser.add_argument("--variant", default="clean,dirty,serial")
    parser.add_argument("--per-lattice", type=int, default=80)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    lists = counts(options.data, options.variant.split(","), options.per_lattice)
    shares = np.array(list(judge.SUPERSTRUCTURE.values()))
    now = np.log([*judge.SEEN.values(), judge.SEEN_WEAK]).ravel()
    used = np.concatenate([now, np.log(shares / (1 - shares.sum()))])
    before = log_likelihood(used, lists)
    found = minimize(lambda x: -log_likelihood(x, lists), used, method="BFGS", options={"gtol": 2.0, "maxiter": 60})
    beta = np.exp(found.x[: 2 * len(SYSTEMS) + 2]).reshape(-1, 2)
    share = np.exp(found.x[2 * len(SYSTEMS) + 2 :]) / (1 + np.exp(found.x[2 * len(SYSTEMS) + 2 :]).sum())
    print(f"{len(lists)} lists; nats a list: in use {before / len(lists):.3f}, best {-found.fun / len(lists):.3f}")
    rows = [
        {"what": name, "in use": list(now), "best": best.tolist()}
        for name, now, best in zip((*SYSTEMS, "weak"), (*judge.SEEN.values(), judge.SEEN_WEAK), beta, strict=True)
    ]
    rows += [
        {"what": f"index {k}", "in use": judge.SUPERSTRUCTURE[k], "best": float(p)}
        for k, p in zip(INDICES, share, strict=True)
    ]
    for row in rows:
        print(f"{row['what']:14}{row['in use']!s:>14}   {np.round(row['best'], 3)!s}")
    if options.json:
        settings = {"variant": options.variant, "per_lattice": options.per_lattice}
        figures = {"in use": before / len(lists), "best": -float(found.fun) / len(lists)}
        document = {"settings": settings, "lists": len(lists), "nats a list": figures, "rows": rows}
        options.json.write_text(json.dumps(document | {"hardware": surroundings()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
