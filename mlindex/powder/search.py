"""The search for one pattern: propose, screen and refine in every lattice, judge across lattices, look at relatives.

Passes go from the likely case to the unlikely one and stop when the posterior leaves little room for "none of these":
first a survey of the lattices of few parameters, then the others, with the lines as they are and a narrow tolerance,
then what needs more candidates (long axes, low symmetry, zero shifts), then wide tolerances.

Candidates come from templates: of as many that are refined, those meet the true lattice of 95 to 97 lists of a hundred,
draws from the networks 32, single trees of the forests 6 (`benchmarks/quality/powder_proposals.py`); so the learned
ones are left to the last pass of a thorough search.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float

from mlindex.crystal.lattice import BRAVAIS
from mlindex.crystal.metric import volume_from_reciprocal_metric
from mlindex.powder import assign, judge, posterior, propose, survey, zones
from mlindex.powder.lines import Lines
from mlindex.powder.ranking import ORDER, Judged, judged, merged, with_superstructures
from mlindex.powder.relatives import relatives
from mlindex.powder.sweep import JUDGED, SEARCHED, Pass, refined, screened

_SURVEYED = 8  # cells that a survey of several lattices leaves to be judged
_BEYOND = 20.0  # nats of a survey's score below the best at which the evidence never decides otherwise
_PROMISING = 2.0  # nats a line of a survey's score at which cells are judged before other lattices are surveyed
_PARAMETER = 5.0  # nats of a survey's score that a free parameter is worth


# Lines that templates combine, by number of free parameters
FEW = {1: 20, 2: 16, 3: 13, 4: 13, 6: 12}
MORE = {1: 20, 2: 18, 3: 15, 4: 15, 6: 13}
MANY = {1: 20, 2: 20, 3: 16, 4: 16, 6: 14}
_SHIFTS = (-0.045, 0.045)
# Every search begins with the survey: the posterior knows its state as that of the first pass
_QUICK = (
    Pass(0.035, FEW, 300, surveyed=True, leaders=1, free=(1, 2, 3)),
    Pass(0.035, FEW, 300, leaders=1, free=(4, 6), doubt=0.02),
)
EFFORTS: dict[str, tuple[Pass, ...]] = {
    "quick": _QUICK,
    "normal": (
        *_QUICK,
        Pass(0.035, FEW, 300, screened=1024, searched=32, dominant=True, free=(4, 6), doubt=0.002),
        Pass(0.05, FEW, 500, screened=4096, free=(4, 6), doubt=0.1),
        Pass(0.05, FEW, 300, screened=2048, zeros=_SHIFTS, surveyed=True, doubt=0.25),
        Pass(0.06, FEW, 500, searched=assign.MOST_LINES, dominant=True, free=(2, 3), doubt=0.5),
        Pass(0.08, FEW, 500, screened=1024, free=(1, 2, 3), doubt=0.5),
        Pass(0.06, MORE, 1500, screened=8192, finished=512, free=(4, 6), doubt=0.5),
    ),
    "thorough": (
        *_QUICK,
        Pass(0.06, FEW, 500, screened=4096, searched=assign.MOST_LINES, dominant=True, doubt=0.01),
        Pass(0.05, MORE, 1500, screened=8192, finished=1024, doubt=0.01),
        Pass(0.05, MANY, 2000, screened=16384, finished=1024, zeros=(-0.1, *_SHIFTS, 0.1), surveyed=True),
        Pass(0.08, MORE, 1500, screened=8192, finished=1024, learned=(1024, 80)),
    ),
}


def volume_allowed(lines: Lines, bravais: str, g: Float[np.ndarray, " 6"], max_volume: float | None) -> bool:
    """False for a cell larger than the user allows, or far larger than the density of lines does."""
    volume = float(volume_from_reciprocal_metric(g))
    high = propose.volume_window(lines.first(SEARCHED), bravais).high
    return volume <= 1.5 * high * BRAVAIS[bravais].multiplicity and (max_volume is None or volume <= max_volume)


def by_posterior(found: Sequence[Judged], lines: Lines, *, surveyed_only: bool = False) -> tuple[list[Judged], float]:
    """The lattices by their evidence, with the probabilities of the posterior, and that of "none of these"."""
    found = with_superstructures(found, lines)
    probability, none = posterior.probabilities_of(found, lines, surveyed_only=surveyed_only)
    return [replace(j, probability=float(p)) for j, p in zip(found, probability, strict=True)], none


def settled(found: Sequence[Judged], lines: Lines, lattices: Sequence[str]) -> bool:
    """True where none of `lattices`, however well it fits, can have more evidence than the best that is `found`."""
    if not found or not lattices:
        return bool(found)
    best = found[0]
    more = min(BRAVAIS[b].n_free for b in lattices) - BRAVAIS[best.fit.bravais].n_free
    return judge.most_to_gain(best.fit, lines, best.absent, more) < 0


def surveyed(
    lines: Lines,
    ranked: Lines,
    wanted: Sequence[str],
    max_volume: float | None,
    seed: int,
    *,
    fit_zero: bool,
    zero: float,
) -> list[Judged]:
    """The best cells of the lattices of few parameters by `survey.survey`, fitted to `ranked`.

    Lattices of more parameters are left out once they cannot win. The scores of a survey compare between lattices when
    every free parameter, which the cell has fitted to chance, is paid for; only the best few cells are judged.
    """
    seen = survey.observed(lines, judge.ZERO_SIGMA if fit_zero else 0.0)
    stages = [[b for b in wanted if BRAVAIS[b].n_free == p] for p in range(1, survey.MOST_FREE + 1)]
    cells: list[tuple[str, np.ndarray]] = []
    worth: list[float] = []
    found: list[Judged] = []
    known: set[int] = set()
    for number, stage in enumerate(stages):
        for bravais in stage:
            window = propose.volume_window(lines.first(SEARCHED), bravais, max_volume)
            if window.high <= window.low:
                continue
            g, score = survey.survey(seen, bravais, window, seed)
            if max_volume is not None:  # the volume moves in refinement
                small = volume_from_reciprocal_metric(g) <= max_volume
                g, score = g[small], score[small]
            cells += [(bravais, one) for one in g[:_SURVEYED]]
            worth += (score[:_SURVEYED] - _PARAMETER * BRAVAIS[bravais].n_free).tolist()
        order = np.argsort(-np.array(worth), kind="stable")[:_SURVEYED].tolist()
        last = number == len(stages) - 1
        if not order or not (last or worth[order[0]] > _PROMISING * len(lines)):
            continue
        new = [i for i in order if i not in known and worth[i] > worth[order[0]] - _BEYOND]
        known.update(new)
        found = merged(found + judged(ranked, [cells[i] for i in new], fit_zero=fit_zero, zero=zero))
        if settled(found, ranked, [b for b in wanted if BRAVAIS[b].n_free > number + 1]):
            break
    return found


def swept(
    found: Sequence[Judged],
    lines: Lines,
    sweep: Pass,
    wanted: Sequence[str],
    *,
    max_volume: float | None,
    impurities: int,
    fit_zero: bool,
    seed: int,
) -> list[Judged]:
    """What one pass adds to what is `found`, best first."""
    ranked = lines.first(JUDGED)
    found = list(found)
    for zero in (z for z in sweep.zeros if fit_zero or z == 0.0):
        every = ranked.shifted(zero)
        shifted = every.first(sweep.searched)
        if sweep.dominant:
            choices = zones.selections(shifted, max(sweep.combined.values()), sweep.tolerance)
        else:
            choices = [np.arange(len(shifted))]
        left = [b for b in wanted if BRAVAIS[b].n_free in sweep.free]
        if sweep.surveyed:
            new = surveyed(shifted, ranked, left, max_volume, seed, fit_zero=fit_zero, zero=zero)
            found = merged([*found, *new])
            left = [b for b in left if BRAVAIS[b].n_free > survey.MOST_FREE]
        left = [] if settled(found, ranked, left) else left
        for choice, bravais in itertools.product(choices, left):
            candidates = screened(shifted, shifted.q2[choice], bravais, sweep, max_volume, seed)
            cells = refined(every, bravais, candidates, sweep, seed, fit_zero=fit_zero)
            if max_volume is not None:  # the volume moves in refinement
                cells = cells[volume_from_reciprocal_metric(cells) <= max_volume]
            found += judged(ranked, [(bravais, g) for g in cells], fit_zero=fit_zero, zero=zero)
    found = merged(found)
    for leader in found[: sweep.leaders]:
        if sweep.surveyed and judge.most_to_gain(leader.fit, ranked, leader.absent, 1) < 0:
            continue  # nothing that is not its like can win, and what is like it has been surveyed
        tolerance = max(0.004, 6 * leader.fit.error * float(lines.w[0] / lines.q[0]))
        near = [
            (b, g)
            for b, g in relatives(leader.fit, tolerance=tolerance, missing=impurities)
            if b in wanted and volume_allowed(ranked, b, g, max_volume)
        ]
        found += judged(ranked, near, fit_zero=fit_zero, zero=leader.fit.zero)
    return merged(found)


def states(
    lines: Lines,
    *,
    effort: str = "normal",
    lattices: Sequence[str] = (),
    max_volume: float | None = None,
    impurities: int = 3,
    fit_zero: bool = True,
    seed: int = 0,
    patience: float = 1.0,
) -> Iterator[list[Judged]]:
    """What is found after each pass, most probable first, until the posterior ends the search.

    `patience` divides the doubt at which it does; the others as for `search`.
    """
    wanted = [b for b in ORDER if not lattices or b in lattices]
    found: list[Judged] = []
    none = 1.0
    for number, sweep in enumerate(EFFORTS[effort]):
        if found and none < sweep.doubt / patience:
            return
        found = swept(
            found,
            lines,
            sweep,
            wanted,
            max_volume=max_volume,
            impurities=impurities,
            fit_zero=fit_zero and lines.wavelength is not None,
            seed=seed,
        )
        told, none = by_posterior(found, lines.first(JUDGED), surveyed_only=number == 0)
        yield told


def search(
    lines: Lines,
    *,
    effort: str = "normal",
    lattices: Sequence[str] = (),
    max_volume: float | None = None,
    impurities: int = 3,
    fit_zero: bool = True,
    seed: int = 0,
) -> list[Judged]:
    """The lattices that explain the lines, most probable first; one entry a lattice.

    `effort`: a key of `EFFORTS`. `lattices`: the Bravais lattices to try, all if empty. `max_volume`: largest
    conventional cell in cubic angstrom. `impurities`: lines that a smaller relative of a good cell may leave
    unexplained. `fit_zero`: fit a zero shift where the wavelength is known.
    """
    *_, found = states(
        lines,
        effort=effort,
        lattices=lattices,
        max_volume=max_volume,
        impurities=impurities,
        fit_zero=fit_zero,
        seed=seed,
    )
    return found
