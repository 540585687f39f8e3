"""The search for one pattern: propose, screen and refine in every lattice, judge across lattices, look at relatives.

Passes go from the likely case to the unlikely one and stop when a solution convinces: first the lines as they are with
a narrow tolerance, then with wider tolerances and a grid of zero shifts, more lines and more templates.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray

from mlindex.crystal.extinctions import extinction_groups
from mlindex.crystal.lattice import BRAVAIS, SYSTEMS
from mlindex.crystal.metric import products_from_hkl, transform_metric, volume_from_reciprocal_metric
from mlindex.crystal.reduction import lattice_distance, vonorms
from mlindex.crystal.reflections import reference_hkl
from mlindex.powder import assign, judge, propose, refine, survey, zones
from mlindex.powder.lines import Lines
from mlindex.powder.relatives import relatives

SEARCHED = 20  # lines that the search uses
JUDGED = 40  # lines that the ranking uses
SHORTEST = 2.1  # angstrom: beryllium has 2.2, and no crystal that gets indexed a shorter lattice vector
SAME_LATTICE = 0.004  # largest relative difference of the Voronoi vectors of one lattice found twice
ORDER = ("cF", "cI", "cP", "hR", "hP", "tI", "tP", "oF", "oI", "oS", "oP", "mC", "mP", "aP")

_REFERENCE = {1: 100, 2: 200, 3: 300, 4: 400, 6: 400}  # reflections in refinement, by number of free parameters
_SCREENED_REFLECTIONS = 96
_SURVEYED = 8  # cells that a survey of several lattices leaves to be judged
_BEYOND = 20.0  # nats of a survey's score below the best at which the evidence never decides otherwise
_PROMISING = 2.0  # nats a line of a survey's score at which cells are judged before other lattices are surveyed
_PARAMETER = 5.0  # nats of a survey's score that a free parameter is worth


@dataclass(frozen=True)
class Pass:
    """One sweep over the lattices: `zeros` in degrees 2theta are tried one by one."""

    tolerance: float  # degrees 2theta, of the screening
    combined: dict[int, int]  # lines that templates combine, by number of free parameters
    templates: int
    screened: int = 256  # candidates of each lattice that are refined
    judged: int = 12  # distinct lattices of each Bravais type that are judged
    zeros: tuple[float, ...] = (0.0,)
    random: int = 0  # random cells added to the screened ones, three- and more-parameter lattices
    searched: int = SEARCHED  # lines that candidates are screened and refined against
    dominant: bool = False  # combine the lines outside a dominant row or zone; nothing to do where there is none
    surveyed: bool = False  # lattices of few parameters by `survey`, the others only where none of those convinces
    leaders: int = 6  # whose relatives are judged
    unless: float = 4.2  # left out where a solution gains so many nats a line over chance and explains the lines


_FEW = {1: 20, 2: 16, 3: 13, 4: 13, 6: 12}
_MORE = {1: 20, 2: 18, 3: 15, 4: 15, 6: 13}
_MANY = {1: 20, 2: 20, 3: 16, 4: 16, 6: 14}
_SHIFTS = (-0.05, 0.05, -0.1, 0.1)
EFFORTS: dict[str, tuple[Pass, ...]] = {
    "quick": (Pass(0.035, _FEW, 300, surveyed=True, leaders=1),),
    "normal": (
        Pass(0.035, _FEW, 500),
        Pass(0.06, _FEW, 500, searched=assign.MOST_LINES, dominant=True, unless=5.0),
        Pass(0.08, _FEW, 500),
        Pass(0.035, _FEW, 300, zeros=_SHIFTS),
    ),
    "thorough": (
        Pass(0.035, _MORE, 1500, screened=512),
        Pass(0.06, _MORE, 1500, screened=512, searched=assign.MOST_LINES, dominant=True, unless=5.0),
        Pass(0.08, _MORE, 1500, screened=512, random=1536),
        Pass(0.05, _FEW, 500, zeros=_SHIFTS),
        Pass(0.05, _MANY, 2000, screened=1024),
    ),
}


@dataclass(frozen=True)
class Judged:
    """A fit with its evidence, the extinction pattern that explains the lines best, and the evidence of chance."""

    fit: judge.Fit
    evidence: float
    space_group: str
    gain: float  # evidence over that of a uniform background
    absent: Bool[np.ndarray, " m"]  # reflections that the space group takes away


@cache
def _reference(bravais: str, count: int) -> Float[np.ndarray, "m 6"]:
    return products_from_hkl(reference_hkl(bravais, count).astype(np.float32))


def _padded(values: NDArray, value: float, size: int) -> NDArray[np.float32]:
    return np.pad(values, (0, size - len(values)), constant_values=value).astype(np.float32)


def refinement_scales(tolerance: float) -> Float[np.ndarray, " steps"]:
    """Scales of the robust loss, in degrees 2theta: from above the screening tolerance down to a third of it."""
    final = tolerance / 3
    return np.concatenate([np.geomspace(5 * final, final, 5), np.full(4, final)]).astype(np.float32)


def screened(
    lines: Lines,
    combined: Float[np.ndarray, " c"],
    bravais: str,
    sweep: Pass,
    max_volume: float | None,
    seed: int,
) -> Float[np.ndarray, "k 6"]:
    """The candidates of one lattice that explain `lines` best, at most `sweep.screened`, then the random ones.

    Cells are solved from the q2 values `combined`.
    """
    lattice = BRAVAIS[bravais]
    window = propose.volume_window(lines.first(SEARCHED), bravais, max_volume)
    if window.high <= window.low:
        return np.empty((0, 6), np.float32)
    g, count = propose.from_templates(
        combined,
        bravais,
        window=window,
        n_lines=sweep.combined[lattice.n_free],
        n_templates=sweep.templates,
        tile=assign.TILE,
    )
    best = np.empty((0, 6), np.float32)
    if count:
        width = sweep.tolerance * lines.w
        table, scale = assign.line_table(lines.q, width)
        density = 2 * np.pi * lines.q**2 / assign.NODES_PER_REFLECTION[lattice.system] / lattice.multiplicity
        expected = _padded(
            2 * width * density, 50.0, sweep.searched
        )  # padding is explained by chance: it weighs nothing
        score = np.asarray(assign.screen(g, _reference(bravais, _SCREENED_REFLECTIONS), table, scale, expected))[:count]
        keep = min(sweep.screened, count)
        order = np.argpartition(-score, keep - 1)[:keep]
        best = np.asarray(g)[order[np.argsort(-score[order], kind="stable")]]
    if sweep.random and lattice.n_free > 2:
        rng = np.random.default_rng([seed, ORDER.index(bravais)])
        best = np.concatenate([best, propose.at_random(lines, bravais, window=window, count=sweep.random, rng=rng)])
    return best


def refined(
    lines: Lines, bravais: str, candidates: Float[np.ndarray, "k 6"], sweep: Pass, seed: int
) -> Float[np.ndarray, "j 6"]:
    """The distinct lattices among the refined candidates, best first, at most `sweep.judged`."""
    if not len(candidates):
        return np.empty((0, 6))
    lattice = BRAVAIS[bravais]
    system = SYSTEMS[lattice.system]
    problem = refine.Problem(
        jnp.asarray(_padded(lines.q2, 1.0, sweep.searched)),
        jnp.asarray(_padded(2 * lines.q * lines.w, 1.0, sweep.searched)),
        jnp.asarray(_padded(np.ones(len(lines)), 0.0, sweep.searched)),
        jnp.asarray(_reference(bravais, _REFERENCE[lattice.n_free])),
        jnp.asarray(system.embed, jnp.float32),
    )
    size = propose.bucket(len(candidates), 256)
    batch = np.concatenate([candidates, np.repeat(candidates[-1:], size - len(candidates), 0)]).astype(np.float32)
    keys = jax.random.split(jax.random.key(seed), size)
    g, score = refine.refine(
        batch, keys, problem, system.project.astype(np.float32), refinement_scales(sweep.tolerance)
    )
    g, score = np.asarray(g, np.float64), np.asarray(score)
    order = np.argsort(-score, kind="stable")
    order = order[np.isfinite(score[order])]
    if not len(order):
        return np.empty((0, 6))
    norms = np.sort(vonorms(transform_metric(g[order], lattice.primitive)), axis=-1)
    kept: list[int] = []
    for i in range(len(order)):
        if len(kept) == sweep.judged:
            break
        if not kept or np.abs(norms[i] / norms[kept] - 1).max(1).min() > 2 * SAME_LATTICE:
            kept.append(i)
    return g[order[kept]]


def judged(
    lines: Lines, cells: Iterable[tuple[str, Float[np.ndarray, " 6"]]], *, fit_zero: bool, zero: float = 0.0
) -> list[Judged]:
    """Fit and evidence of each cell; those that cannot be fitted are left out."""
    chance = judge.chance_evidence(lines)
    found = []
    for bravais, g in cells:
        fit = judge.fit_cell(lines, g, bravais, zero=zero, fit_zero=fit_zero)
        if fit is None:
            continue
        groups = extinction_groups(bravais, fit.hkl)
        values = judge.evidence(fit, lines, groups.mask) + np.log(groups.counts / groups.counts.sum())
        total = float(np.logaddexp.reduce(values))
        if np.isfinite(total):
            best = int(values.argmax())
            found.append(Judged(fit, total, groups.names[best], total - chance, groups.mask[best]))
    return found


def merged(found: Sequence[Judged], *, tolerance: float = SAME_LATTICE, most: int = 60) -> list[Judged]:
    """Best first, each lattice once, at most `most`."""
    order = sorted(found, key=lambda j: (-j.evidence, ORDER.index(j.fit.bravais), j.fit.g.tolist()))
    if not order:
        return []
    primitive = np.array([transform_metric(j.fit.g, BRAVAIS[j.fit.bravais].primitive) for j in order])
    norms = np.sort(vonorms(primitive), axis=-1)  # sorting never parts equal lattices, so it serves to rule out
    kept: list[int] = []
    for i in np.flatnonzero(norms[:, 0] > SHORTEST**2).tolist():
        if len(kept) == most:
            break
        alike = [k for k in kept if np.abs(norms[i] / norms[k] - 1).max() <= 2.5 * tolerance]
        if not alike or lattice_distance(primitive[alike], primitive[i]).min() > tolerance:
            kept.append(i)
    return [order[i] for i in kept]


def with_superstructures(found: Sequence[Judged], lines: Lines, *, most: int = 20) -> list[Judged]:
    """The first `most` with the gain of `judge.superstructure_gain`, ranked anew."""
    gains = [judge.superstructure_gain(j.fit, lines, j.absent) for j in found[:most]]
    raised = [replace(j, evidence=j.evidence + gain, gain=j.gain + gain) for j, gain in zip(found, gains, strict=False)]
    return sorted(raised, key=lambda j: -j.evidence)


def volume_allowed(lines: Lines, bravais: str, g: Float[np.ndarray, " 6"], max_volume: float | None) -> bool:
    """False for a cell larger than the user allows, or far larger than the density of lines does."""
    volume = float(volume_from_reciprocal_metric(g))
    high = propose.volume_window(lines.first(SEARCHED), bravais).high
    return volume <= 1.5 * high * BRAVAIS[bravais].multiplicity and (max_volume is None or volume <= max_volume)


def convincing(best: Judged, lines: Lines, impurities: int, gain: float) -> bool:
    """True where nearly all lines are explained, at least `gain` nats a line better than by chance."""
    unexplained = int((~best.fit.indexed).sum())
    return unexplained <= impurities + len(lines) // 10 and best.gain > gain * len(lines)


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
    seen = survey.observed(lines)
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
    """The lattices that explain the lines, best first; one entry a lattice."""
    fit_zero = fit_zero and lines.wavelength is not None
    ranked = lines.first(JUDGED)
    wanted = [b for b in ORDER if not lattices or b in lattices]
    found: list[Judged] = []
    for sweep in EFFORTS[effort]:
        if found and convincing(found[0], ranked, impurities, sweep.unless):
            continue
        for zero in (z for z in sweep.zeros if fit_zero or z == 0.0):
            shifted = lines.shifted(zero).first(sweep.searched)
            if sweep.dominant:
                choices = zones.selections(shifted, max(sweep.combined.values()), sweep.tolerance)
            else:
                choices = [np.arange(len(shifted))]
            left = wanted
            if sweep.surveyed:
                found = surveyed(shifted, ranked, wanted, max_volume, seed, fit_zero=fit_zero, zero=zero)
                left = [b for b in wanted if BRAVAIS[b].n_free > survey.MOST_FREE]
                left = [] if settled(found, ranked, left) else left
            for choice, bravais in itertools.product(choices, left):
                candidates = screened(shifted, shifted.q2[choice], bravais, sweep, max_volume, seed)
                cells = refined(shifted, bravais, candidates, sweep, seed)
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
        found = merged(found)
    return with_superstructures(found, ranked)
