"""The thorough search in one lattice: cells solved from templates, screened by look-up, refined in two stages.

Many times more candidates than survive get a few steps with the low reflections; the best of them are refined to the
end. See `survey` for the quick way in lattices of few parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from mlindex.crystal.lattice import BRAVAIS, SYSTEMS, LatticeSystem
from mlindex.crystal.metric import metric_determinant, products_from_hkl, transform_metric
from mlindex.crystal.reduction import vonorms
from mlindex.crystal.reflections import reference_hkl
from mlindex.powder import assign, judge, proposals, propose, refine
from mlindex.powder.lines import Lines
from mlindex.powder.ranking import SAME_LATTICE

SEARCHED = 20  # lines that candidates are made from and screened with
JUDGED = 40  # that the best of them are refined to, and judged by

_REFERENCE = {1: 100, 2: 200, 3: 300, 4: 400, 6: 400}  # reflections in refinement, by number of free parameters
_SCREENED_REFLECTIONS = 96
_VOLUMES, _RANGE = 8, (0.005, 0.995)  # ranges of ln V that share the candidates, and quantiles where they end
_ALL_LINES, _MORE_CELLS = slice(4, 9), 4  # steps with all lines, and how many times the cells that are judged make them
_COARSE, _COARSE_REFLECTIONS = slice(1, 4), 200  # steps of all candidates, and reflections in them


@dataclass(frozen=True)
class Pass:
    """One sweep over the lattices: `zeros` in degrees 2theta are tried one by one."""

    tolerance: float  # degrees 2theta, of the screening
    combined: dict[int, int]  # lines that templates combine, by number of free parameters
    templates: int
    screened: int = 256  # candidates of each lattice that are refined
    finished: int = 256  # of these are refined to the end, the best after a few steps
    judged: int = 16  # distinct lattices of each Bravais type that are judged
    zeros: tuple[float, ...] = (0.0,)
    learned: tuple[int, int] = (0, 0)  # draws from the networks and trees (`proposals`) added to the screened cells
    searched: int = SEARCHED  # lines that candidates are screened and refined against
    dominant: bool = False  # combine the lines outside a dominant row or zone; nothing to do where there is none
    surveyed: bool = False  # lattices of few parameters by `survey`, the others only where none of those convinces
    leaders: int = 6  # whose relatives are judged
    free: tuple[int, ...] = (1, 2, 3, 4, 6)  # lattices of so many free parameters
    doubt: float = 0.1  # probability of "none of these" below which the search ends before this pass


@cache
def _reference(bravais: str, count: int) -> Float[np.ndarray, "m 6"]:
    return products_from_hkl(reference_hkl(bravais, count).astype(np.float32))


def best_of_volumes(g: Float[np.ndarray, "k 6"], score: Float[np.ndarray, " k"], count: int) -> NDArray[np.int64]:
    """The indices of the `count` best candidates, best first: of each range of volumes as many.

    Scores compare poorly between volumes. Low values of q2 give far more small cells than large ones, so that among the
    small ones chance reaches scores that a large cell, with its dense lines, cannot have even when it is right.
    """
    if len(g) <= count:
        return np.argsort(-score, kind="stable")
    size = np.log(np.maximum(metric_determinant(g.astype(np.float64)), 1e-300))
    low, high = np.quantile(size[np.isfinite(score)], _RANGE) if np.isfinite(score).any() else (0.0, 1.0)
    place = np.digitize(size, np.linspace(low, high, _VOLUMES + 1)[1:-1])
    chosen, turn = [], []
    for number in range(_VOLUMES):
        mine = np.flatnonzero(place == number)
        if len(mine) > count:
            mine = mine[np.argpartition(-score[mine], count)[:count]]
        chosen.append(mine[np.argsort(-score[mine], kind="stable")])
        turn.append(np.arange(len(mine)))
    index = np.concatenate(chosen)[np.argsort(np.concatenate(turn), kind="stable")[:count]]
    return index[np.argsort(-score[index], kind="stable")]


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
    """The candidates of one lattice that explain `lines` best, at most `sweep.screened`, then the learned ones.

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
        # Padding is explained by chance: it weighs nothing
        expected = _padded(2 * width * density, 50.0, sweep.searched)
        score = np.asarray(assign.screen(g, _reference(bravais, _SCREENED_REFLECTIONS), table, scale, expected))[:count]
        cells = np.asarray(g)[:count]
        best = cells[best_of_volumes(cells, score, sweep.screened)]
    if any(sweep.learned) and lattice.n_free > 1:
        best = np.concatenate([best, proposals.propose(lines, {bravais: sweep.learned}, seed)[bravais]])
    return best


def _refined_batch(
    candidates: Float[np.ndarray, "k 6"],
    problem: refine.Problem,
    system: LatticeSystem,
    scales: Float[np.ndarray, " steps"],
    seed: int,
) -> tuple[Float[np.ndarray, "k 6"], Float[np.ndarray, " k"]]:
    """`refine.refine` on a padded batch."""
    count = len(candidates)
    size = propose.bucket(count, 64)
    batch = np.concatenate([candidates, np.repeat(candidates[-1:], size - count, 0)]).astype(np.float32)
    keys = jax.random.split(jax.random.key(seed), size)
    g, score = refine.refine(batch, keys, problem, system.project.astype(np.float32), scales)
    return np.asarray(g)[:count], np.asarray(score)[:count]


def _problem(lines: Lines, bravais: str, size: int, reflections: int, *, fit_zero: bool) -> refine.Problem:
    """`lines`, padded to `size`, and so many reference reflections."""
    return refine.Problem(
        jnp.asarray(_padded(lines.q2, 1.0, size)),
        jnp.asarray(_padded(2 * lines.q * lines.w, 1.0, size)),
        jnp.asarray(_padded(np.ones(len(lines)), 0.0, size)),
        jnp.asarray(_reference(bravais, reflections)),
        jnp.asarray(SYSTEMS[BRAVAIS[bravais].system].embed, jnp.float32),
        jnp.float32(judge.ZERO_SIGMA if fit_zero else 0.0),
    )


def refined(
    lines: Lines, bravais: str, candidates: Float[np.ndarray, "k 6"], sweep: Pass, seed: int, *, fit_zero: bool
) -> Float[np.ndarray, "j 6"]:
    """The distinct lattices among the refined candidates, best first, at most `sweep.judged`.

    Candidates are refined to the first `sweep.searched` lines, the best of them then to all `lines`.
    """
    if not len(candidates):
        return np.empty((0, 6))
    lattice = BRAVAIS[bravais]
    system = SYSTEMS[lattice.system]
    count = _REFERENCE[lattice.n_free]
    problem = _problem(lines.first(sweep.searched), bravais, sweep.searched, count, fit_zero=fit_zero)
    scales = refinement_scales(sweep.tolerance)
    if len(candidates) > sweep.finished:
        few = problem._replace(products=problem.products[:_COARSE_REFLECTIONS])
        g, score = _refined_batch(candidates, few, system, scales[_COARSE], seed)
        candidates = g[best_of_volumes(g, score, sweep.finished)]
    g, score = _refined_batch(candidates, problem, system, scales, seed)
    if len(lines) > sweep.searched:
        g = g[best_of_volumes(g, score, _MORE_CELLS * sweep.judged)]
        problem = _problem(lines, bravais, JUDGED, 2 * count, fit_zero=fit_zero)
        g, score = _refined_batch(g, problem, system, scales[_ALL_LINES], seed)
    g, score = g[np.isfinite(score)].astype(np.float64), score[np.isfinite(score)]
    if not len(g):
        return np.empty((0, 6))
    order = np.argsort(-score, kind="stable")
    norms = np.sort(vonorms(transform_metric(g[order], lattice.primitive)), axis=-1)
    distinct: list[int] = []
    for i in range(len(order)):
        if not distinct or np.abs(norms[i] / norms[distinct] - 1).max(1).min() > 2 * SAME_LATTICE:
            distinct.append(i)
    g, score = g[order[distinct]], score[order[distinct]]
    return g[best_of_volumes(g, score, sweep.judged)]
