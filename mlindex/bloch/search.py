"""Blind inversion of a pattern: many starts, at thicknesses that the fringes name, with ties of the pattern's symmetry.

A start is a crystal of a few atoms whose pattern is near (see `crystals`); or it has structure factors of the sizes
that the kinematic tilts tell, with random signs or phases, or small random ones. It is fitted in stages: to some of the
tilts where the direct beam is strong, to more, to all; only the better part goes on to the next. Every symmetry that
the pattern allows, none among them, is searched in turn (see `symmetry`): ties make the problem small, and freedom
makes its valleys wide. In the end a solution has the highest symmetry with which it explains the pattern as well as
without.

The search ends when the pattern is explained but for its counting noise, or when the time or the starts are used up.
Few beams at a square grid of tilts are explained nearly as well at several thicknesses: then the solution is fitted
again from others, and the best of all counts.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Complex, Float
from numpy.typing import NDArray

from mlindex.bloch import refine
from mlindex.bloch.arms import BESIDE, STAGES, Arm, arms_of
from mlindex.bloch.beams import Geometry
from mlindex.bloch.crystals import likely
from mlindex.bloch.jacobian import parameters_from_u, u_from_parameters
from mlindex.bloch.judge import Solution, origin_pair, r_factor, uncertainties, uniqueness, weighted_r, with_origin
from mlindex.bloch.noise import diffracted, largest_r, quantum, r_of_noise
from mlindex.bloch.propagate import intensities
from mlindex.bloch.starts import simplest_first
from mlindex.bloch.symmetry import centred, hypotheses, twofold

_LIGHT = (1e-2, 1e-4)  # damping of the first steps on all tilts, and of the others
_MANY = 3  # times the tilts of a stage, before all are taken
_ROUNDS, _ROUND = 4, 10  # on all tilts, and the steps in each
_NEAR = 0.12  # R factor, beyond that of noise, of a start that is worth the time that all tilts take
_EXACT = 1e-6  # R factor where nothing is left to explain
_QUICK = 100  # unknowns without ties up to which a fit to all tilts costs little
_SOLVED = 1e-4  # R factor at which the search ends: far below that of any measurement
_PROMISING, _SAME = 1.25, 0.02  # cost against the best, to go on with a start; and to be the same solution
_STARTS = 3000
_KEPT, _ALIKE = 2.0, 0.3  # cost against the best of what is reported; share of a residual that is no other solution
_REPORTED = 5
_NOISE = 1.2  # R factor against that of the counting noise where nothing is left to explain
_EQUIVALENT = 3.0  # R factor between equivalent intensities, against the largest R of a solution
_CRYSTALS = 0.4  # how often a start is a crystal of a few atoms
_FEW = 30  # unknowns without ties up to which other thicknesses are tried, as few beams may leave several
_FREED = 3.0  # F ratio beyond which ties are given up


@dataclass(frozen=True, eq=False)
class _Problem:
    """A pattern, the order of its tilts, its quantum, and whether intensities have Poisson weights or all the same.

    `limits` of the thickness, and the `width` of what a fit at one thickness covers (A).
    """

    observed: NDArray[np.float64]
    geometry: Geometry
    order: NDArray[np.int64]
    quantum: float
    poisson: bool
    limits: tuple[float, float]
    width: float

    def weighted(self, x: Any, arm: Arm) -> tuple[refine.Data, bool]:
        """All of it with weights for residuals near a fit, and whether these are of sqrt(I)."""
        if self.poisson and not self.quantum:
            return refine.blocked(self.geometry, self.observed), True
        weights = np.ones(self.observed.shape)
        if self.poisson:
            weights = refine.poisson_weights(_modelled(x, arm, self), self.quantum)
        return refine.blocked(self.geometry, self.observed, weights=weights), False


def _modelled(x: Any, arm: Arm, problem: _Problem) -> NDArray[np.float64]:
    """The pattern of a fit."""
    u = u_from_parameters(np.asarray(x)[: -refine.EXTRA], arm.tie)
    depth, scale, background = (float(value) for value in np.asarray(x)[-refine.EXTRA :])
    return scale * intensities(u, problem.geometry, depth * refine.PHASE * problem.geometry.k0 / np.pi) + background


def _begun(
    arm: Arm, problem: _Problem, rng: np.random.Generator
) -> tuple[NDArray[np.float64], float, float, int | None]:
    """Structure factors, damping and thickness of a start, and the place that this was taken from."""
    geometry = problem.geometry
    y, damping, beside = arm.start(rng)
    if beside and arm.best is not None:
        return y, damping, refine.thickness_of(arm.best, geometry.k0), None
    if arm.given is None and rng.random() < _CRYSTALS:
        crystal = likely(
            problem.observed,
            geometry,
            arm.tie,
            sizes=arm.sizes,
            order=problem.order,
            limits=problem.limits,
            step=problem.width,
            rng=rng,
        )
        if crystal is not None:
            y = parameters_from_u(crystal[0], arm.tie) * arm.free[: -refine.EXTRA]
            return y, 1e-2, crystal[1], None
    which = arm.places.next(rng)
    return y, damping, float(arm.places.depth[which]) + problem.width * rng.uniform(-1, 1), which


def _grown(arm: Arm, problem: _Problem, rng: np.random.Generator) -> refine.State | None:
    """One start through its stages; None where it was not among the better part."""
    geometry = problem.geometry
    y, damping, depth, which = _begun(arm, problem, rng)
    arm.turns += 1
    x = refine.parameters(y, depth, geometry.k0)
    state = None
    for stage, (share, steps) in enumerate(STAGES):
        pool = problem.order[: max(arm.size, round(share * len(problem.order)))]
        tilts = np.sort(rng.permutation(pool)[: arm.size])
        data = refine.blocked(geometry, problem.observed, tilts)
        state = refine.fitted(x, damping, data, arm.how, arm.free, steps)
        cost = float(state.cost) / len(tilts)
        passes = arm.passes(stage, cost)
        if stage == 0 and which is not None:
            arm.places.learn(which, cost / float(np.median(arm.scores[0])))
        if not passes:
            return None
        x, damping = state.x, min(damping, 0.1)
    return state


def _polished(x: Any, arm: Arm, problem: _Problem, best: float, rng: np.random.Generator) -> refine.State:
    """A start after steps on some tilts and then on all, as many as it needs; fewer far behind the cost `best`."""
    some = np.sort(rng.permutation(len(problem.observed))[: _MANY * arm.size])
    data = refine.blocked(problem.geometry, problem.observed, some)
    now = refine.fitted(x, _LIGHT[0], data, arm.how, arm.free, _ROUNDS * _ROUND)
    every, roots = problem.weighted(now.x, arm)
    now = refine.fitted(now.x, _LIGHT[1], every, arm.how, arm.free, 1, roots)
    for _ in range(_ROUNDS):
        before = float(now.cost)
        now = refine.fitted(now.x, _LIGHT[1], every, arm.how, arm.free, _ROUND, roots)
        cost = float(now.cost)
        done = float(now.r_factor) < _EXACT or cost > (1 - 1e-4) * before
        # The rate at which the cost falls says where it may end
        if done or (cost > _PROMISING * best and cost > 0.7 * before):
            break
    return now


def invert(
    intensity: Float[np.ndarray, "m n"],
    geometry: Geometry,
    *,
    start: Complex[np.ndarray, " d"] | None = None,
    thickness: tuple[float, float] = (50.0, 1000.0),
    seed: int = 0,
    seconds: float | None = None,
    real: bool = False,
    scale: bool = False,
    background: bool = False,
    poisson: bool = True,
    symmetry: bool = True,
    cutoff: float | None = None,
) -> list[Solution]:
    """The structure factors and the thickness of a pattern, best first, then others that explain it nearly as well.

    `intensity` as fractions of the incident beam; `start`: structure factors (1/A^2, at `geometry.dhkl`) to begin with,
    else the search is blind; `thickness`: lowest and highest (A); `real`: the projection has a centre. `scale` and
    `background` are fitted where asked for. `poisson`: weights in the end, else all alike. `symmetry`: whether ties are
    tried. `cutoff` (1/A): structure factors of longer g stay as in `start`, or zero without one.
    After `seconds` no new start is begun. Raises `ValueError` for shapes that do not match and for limits of the
    thickness that are none.
    """
    observed = np.asarray(intensity, np.float64)
    if observed.shape != geometry.shape:
        raise ValueError(f"intensities of shape {observed.shape} do not match {geometry.shape} tilts and beams")
    if not 0 < thickness[0] < thickness[1]:
        raise ValueError(f"limits of the thickness must be positive and in order (A), not {thickness}")
    given = None if start is None else np.asarray(start, np.complex128)
    began, rng = time.monotonic(), np.random.default_rng(seed)
    # A peak of the transform is as wide as the range of excitation errors is narrow
    width = geometry.k0 / max(float(np.ptp(geometry.excitation)), 1e-9)
    one = quantum(observed, geometry)
    noise = r_of_noise(observed, one)
    enough, near = max(_SOLVED, _NOISE * noise), _NEAR + 2 * noise
    with jax.enable_x64(True):
        order = simplest_first(observed, geometry)
        problem = _Problem(observed, geometry, order, one, poisson, thickness, width)
        ties = hypotheses(observed, geometry, _EQUIVALENT * largest_r(noise))
        if real:
            ties = [tie for tie in ties if not tie.imaginary.any()] or [twofold(geometry)]
        varied = np.append(1.0, [scale, background])
        ties = ties if symmetry else ties[-1:]
        arms = arms_of(observed, geometry, ties, start=given, limits=thickness, varied=varied, cutoff=cutoff)
        found: list[tuple[refine.State, int, Arm]] = []
        lowest = np.inf
        for _ in range(_STARTS):
            arm = min(arms, key=lambda a: a.spent / a.share)
            clock = time.monotonic()
            state = _grown(arm, problem, rng)
            if state is not None:
                if arm.best is None or float(state.r_factor) < float(arm.best.r_factor):
                    arm.best = state
                if float(state.r_factor) < near:
                    state = _polished(state.x, arm, problem, lowest, rng)
                    lowest = min(lowest, float(state.cost))
                    found = _ranked(found, state, arm)
                    if enough <= float(state.r_factor) < BESIDE:
                        best = float(state.cost) <= lowest
                        for beside, its in _elsewhere(state, arm, arms, problem, rng, lifted=best):
                            lowest = min(lowest, float(beside.cost))
                            found = _ranked(found, beside, its)
            # The first start of an arm compiles, which says nothing of what the next one takes
            arm.spent += (time.monotonic() - clock) if arm.turns > 1 else 1e-3
            over = seconds is not None and time.monotonic() - began > seconds
            if over or (found and float(found[0][0].r_factor) < enough and _tells_all(*found[0], problem)):
                break
        if found and float(found[0][0].r_factor) < enough and arms[-1].free.sum() <= _FEW:
            solved, _, arm = found[0]
            for state in _at_other_thicknesses(solved, arm, problem, rng):
                lowest = min(lowest, float(state.cost))
                found = _ranked(found, state, arm, number=0)  # no start of its own
                if seconds is not None and time.monotonic() - began > seconds:
                    break
        if not found:  # nothing came near: the best of what there is, as good as it gets
            arm, state = min(((a, a.best) for a in arms if a.best), key=lambda one: float(one[1].r_factor))
            found = [(_polished(state.x, arm, problem, 0.0, rng), 1, arm)]
            lowest = float(found[0][0].cost)
        kept = [one for one in found if float(one[0].cost) <= _KEPT * lowest + 1e-12][:_REPORTED]
        return _distinct([_solution(*_settled(*one, arms, problem, rng), problem) for one in kept])


def _tells_all(state: refine.State, _agreement: int, arm: Arm, problem: _Problem) -> bool:
    """Whether the diffracted beams are explained too, where the direct beam makes R small; dark ones have no more."""
    off, most = diffracted(problem.observed, _modelled(state.x, arm, problem), problem.quantum, problem.geometry.origin)
    return not off > most


def _with(
    arm: Arm, u: NDArray, state: refine.State, problem: _Problem, best: float, rng: np.random.Generator
) -> refine.State:
    """A solution fitted again with the unknowns of another arm, from structure factors `u`."""
    x = np.append(parameters_from_u(u, arm.tie), np.asarray(state.x)[-refine.EXTRA :])
    return _polished(x, arm, problem, best, rng)


def _elsewhere(
    state: refine.State, arm: Arm, arms: list[Arm], problem: _Problem, rng: np.random.Generator, *, lifted: bool
) -> Iterator[tuple[refine.State, Arm]]:
    """A good solution fitted with the unknowns of other arms, which do not share the valley that holds it.

    With more symmetry (`lifted`) errors of equivalent U average out. Without any, the complex plane has a way around
    the wrong sign of a weak U; that is tried where it costs little.
    """
    u = with_origin(u_from_parameters(np.asarray(state.x)[: -refine.EXTRA], arm.tie), problem.geometry)
    for higher in arms[: arms.index(arm)] if lifted else []:
        yield _with(higher, centred(u, higher.tie, problem.geometry), state, problem, float(state.cost), rng), higher
    if arms[-1].free.sum() < _QUICK:
        loose, _, its = _released(state, 1, arm, arms[-1], problem, rng)
        yield loose, its


def _at_other_thicknesses(
    state: refine.State, arm: Arm, problem: _Problem, rng: np.random.Generator
) -> Iterator[refine.State]:
    """A solution fitted again from each thickness, with structure factors that scatter as much there."""
    best, own = float(state.cost), refine.thickness_of(state, problem.geometry.k0)
    for depth in np.arange(*problem.limits, 2 * problem.width):
        x, ratio = np.array(state.x), depth / own
        x[: -refine.EXTRA] /= ratio
        x[-refine.EXTRA] *= ratio
        fitted = _polished(x, arm, problem, best, rng)
        best = min(best, float(fitted.cost))
        yield fitted


def _explains_more(free: refine.State, tied: refine.State, more: float, left: float) -> bool:
    """Whether `more` unknowns explain more than noise would let them (F test)."""
    if float(tied.r_factor) < _EXACT or left <= 0:
        return False
    return bool((float(tied.cost) - float(free.cost)) / more > _FREED * float(free.cost) / left)


def _settled(
    state: refine.State, agreement: int, arm: Arm, arms: list[Arm], problem: _Problem, rng: np.random.Generator
) -> tuple[refine.State, int, Arm]:
    """A solution with the highest symmetry that explains the pattern as well, and without any where none does."""
    if arm is not arms[-1] and float(state.r_factor) > _SOLVED:
        # A wrong sign of a weak U is a valley from which the real axis has no way out, and the complex plane has
        state, _, arm = _released(state, agreement, arm, arms[-1], problem, rng)
    u = with_origin(u_from_parameters(np.asarray(state.x)[: -refine.EXTRA], arm.tie), problem.geometry)
    for higher in arms[: arms.index(arm)]:
        tied = _with(higher, centred(u, higher.tie, problem.geometry), state, problem, float(state.cost), rng)
        left = problem.observed.size - arm.free.sum()
        if not _explains_more(state, tied, arm.free.sum() - higher.free.sum(), left):
            return tied, agreement, higher
    return state, agreement, arm


def _released(
    state: refine.State, agreement: int, arm: Arm, untied: Arm, problem: _Problem, rng: np.random.Generator
) -> tuple[refine.State, int, Arm]:
    """A solution without its ties, where that explains significantly more."""
    u = u_from_parameters(np.asarray(state.x)[: -refine.EXTRA], arm.tie)
    loose = _with(untied, u, state, problem, float(state.cost), rng)
    more = untied.free.sum() - arm.free.sum()
    if more > 0 and _explains_more(loose, state, more, problem.observed.size - untied.free.sum()):
        return loose, agreement, untied
    return state, agreement, arm


def _solution(state: refine.State, agreement: int, arm: Arm, problem: _Problem) -> Solution:
    geometry, observed, tie = problem.geometry, problem.observed, arm.tie
    depth = refine.thickness_of(state, geometry.k0)
    scale, background = (float(value) for value in np.asarray(state.x)[-2:])
    u = with_origin(u_from_parameters(np.asarray(state.x)[: -refine.EXTRA], tie), geometry)
    model = _modelled(state.x, arm, problem)
    at, free = state, arm.free.copy()
    if not tie.holds_origin:
        # Uncertainties are those beside an origin that is fixed: two phases are no unknowns any more
        for place in origin_pair(u, geometry):
            free[tie.count + abs(place - tie.count) - 1] = 0.0
        x = np.append(parameters_from_u(u, tie), np.asarray(state.x)[-refine.EXTRA :])
        data, roots = problem.weighted(state.x, arm)
        at = refine.init(x, 1.0, data, arm.how, free, roots)
    normal, cost = np.asarray(at.normal), float(at.cost)
    sigma, missing = uncertainties(normal, cost, observed.size, free)
    unique = uniqueness(normal, cost, observed.size, free, tie.orbit, others=refine.EXTRA)
    parts = [(tie.real, sigma[: tie.count])]
    if arm.how.imaginary is not None:
        parts.append((tie.imaginary, sigma[tie.count : 2 * tie.count]))
    square = sum(np.abs(sign) * part[tie.orbit] ** 2 for sign, part in parts)
    each = np.sqrt(square / np.maximum(sum(np.abs(sign) for sign, _ in parts), 1))
    return Solution(
        u,
        np.concatenate([each[::-1], [0.0], each]),
        depth,
        float(sigma[-refine.EXTRA]) * refine.PHASE * geometry.k0 / np.pi,
        r_factor(observed, model),
        weighted_r(observed, np.maximum(model, 0.0)),
        model,
        missing,
        agreement,
        tie.name,
        scale,
        background,
        unique.condition,
        unique.share,
        unique.sigma,
    )


def _distinct(solutions: list[Solution]) -> list[Solution]:
    """The solutions, best first, without those whose pattern is that of a better one but for a part of its residual."""
    kept: list[Solution] = []
    for one in sorted(solutions, key=lambda s: s.r_factor):
        if all(r_factor(other.intensity, one.intensity) > _ALIKE * other.r_factor + _EXACT for other in kept):
            kept.append(one)
    return kept


def _ranked(
    found: list[tuple[refine.State, int, Arm]], state: refine.State, arm: Arm, number: int = 1
) -> list[tuple[refine.State, int, Arm]]:
    """The solutions with one more, best first; of those that are the same the better, with the `number` of starts."""
    cost, phase = float(state.cost), float(state.x[-refine.EXTRA])
    kept, best = [], arm
    for other, agreement, its in found:
        alike = abs(float(other.cost) - cost) <= _SAME * max(cost, float(other.cost)) + 1e-12
        if alike and abs(float(other.x[-refine.EXTRA]) - phase) < 1e-3 * phase:
            number += agreement
            state, best = (state, best) if cost <= float(other.cost) else (other, its)
        else:
            kept.append((other, agreement, its))
    return sorted([*kept, (state, max(number, 1), best)], key=lambda one: float(one[0].cost))
