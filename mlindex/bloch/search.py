"""Blind inversion of a pattern: many starts, at thicknesses that the fringes name, with ties of the pattern's symmetry.

A start has structure factors of the sizes that the kinematic tilts tell, with random signs or phases, or small random
ones. It is fitted in stages: to some of the tilts where the direct beam is strong, to more, to all; only the better
part goes on to the next. Every symmetry that the pattern allows, none among them, is searched in turn (see `symmetry`):
ties make the problem small, and freedom makes its valleys wide. In the end a solution has the highest symmetry with
which it explains the pattern as well as without.

The search ends when the pattern is explained but for its counting noise, or when the time or the starts are used up.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jaxtyping import Complex, Float
from numpy.typing import NDArray

from mlindex.bloch import refine
from mlindex.bloch.beams import Geometry
from mlindex.bloch.jacobian import Unknowns, parameters_from_u, u_from_parameters, unknowns
from mlindex.bloch.judge import Solution, origin_pair, r_factor, uncertainties, weighted_r, with_origin
from mlindex.bloch.noise import largest_r, quantum, r_of_noise
from mlindex.bloch.propagate import intensities
from mlindex.bloch.starts import kinematic_sizes, simplest_first, thickness_candidates
from mlindex.bloch.symmetry import Tie, centred, hypotheses, twofold

_STAGES = ((0.25, 20), (0.5, 15), (1.0, 30))  # share of the tilts, the simplest first, and steps
_BETTER, _FEW = 0.4, 1  # share of the starts that goes on to the next stage; so many go on in any case
_TILTS, _PER_UNKNOWN = 32, 8  # of a stage; intensities an unknown
_SIZED = 0.6  # how often a start has the kinematic sizes
_SMALL = 0.01  # 1/A^2 of a random start
_KINDS = ((_SMALL, 1.0), (3 * _SMALL, 1e-2), (_SMALL, 10.0), (3 * _SMALL, 0.1))  # sizes and dampings of random starts
_LIGHT = (1e-2, 1e-4)  # damping of the first steps on all tilts, and of the others
_MANY = 3  # times the tilts of a stage, before all are taken
_ROUNDS, _ROUND = 4, 10  # on all tilts, and the steps in each
_BEST = 0.5  # how often a start is at the thickness that served best, when each has had one
_HOPS, _DISTURBED = 0.3, (0.3, 1.0)  # how often a start is the best solution disturbed, and by what fraction
_HOPEFUL = 0.35  # R factor of a solution that is worth disturbing
_NEAR = 0.12  # R factor, beyond that of noise, of a start that is worth the time that all tilts take
_BESIDE = 0.02  # R factor of a solution that its ties may keep from the right one
_FIRST, _LAST, _OTHERS = 4.0, 2.0, 1.0  # shares of the time: the highest symmetry, none, those between
_EXACT = 1e-6  # R factor where nothing is left to explain
_PROMISING, _SAME = 1.25, 0.02  # cost against the best, to go on with a start; and to be the same solution
_STARTS = 3000
_KEPT, _ALIKE = 2.0, 0.3  # cost against the best of what is reported; share of a residual that is no other solution
_REPORTED = 5
_NOISE = 1.15  # R factor against that of the counting noise where nothing is left to explain
_EQUIVALENT = 3.0  # R factor between equivalent intensities, against the largest R of a solution
_OFF = 0.5  # of a starting model: how far it may be from a symmetry that is tried with it, in the root of squares
_FREED = 3.0  # F ratio beyond which ties are given up


class _Thicknesses:
    """Where the next start is made: all candidates in turn, then mostly those that served best."""

    def __init__(self, candidates: Float[np.ndarray, " k"]) -> None:
        self.depth = np.array(candidates)
        self.cost = np.full(len(candidates), np.inf)
        self.turn = 0

    def next(self, rng: np.random.Generator) -> int:
        """The number of a candidate."""
        self.turn += 1
        if self.turn <= len(self.depth):
            return self.turn - 1
        # Each next best half as often as the one before
        return int(np.argsort(self.cost, kind="stable")[min(int(rng.geometric(_BEST)), len(self.depth)) - 1])

    def learn(self, which: int, cost: float) -> None:
        """What a start came to, against what is usual with its symmetry."""
        self.cost[which] = min(self.cost[which], cost)


@dataclass(eq=False)
class _Arm:
    """The search with one symmetry: its unknowns, how long it took, and what it found."""

    tie: Tie
    how: Unknowns
    free: NDArray[np.float64]
    size: int
    share: float
    places: _Thicknesses
    given: NDArray[np.float64] | None
    sizes: NDArray[np.float64]
    spent: float = 0.0
    turns: int = 0
    scores: list[list[float]] = field(default_factory=lambda: [[] for _ in _STAGES])
    best: refine.State | None = None

    def start(self, rng: np.random.Generator) -> tuple[NDArray[np.float64], float, bool]:
        """Structure factors, damping, and whether they are the best solution so far, disturbed."""
        count = len(self.free) - refine.EXTRA
        free = self.free[:count]
        hopeful = self.best is not None and float(self.best.r_factor) < _HOPEFUL
        if self.best is not None and hopeful and rng.random() < _HOPS:
            known = np.asarray(self.best.x)[:count]
            size = np.abs(known) * rng.choice(_DISTURBED) + _SMALL / 3
            return (known + size * rng.normal(size=count)) * free, _KINDS[0][1], True
        if self.given is not None:
            off = 0.0 if self.turns < len(self.places.depth) else 0.2
            return self.given * (1 + off * rng.normal(size=count)) * free, 1e-2, False
        if rng.random() < _SIZED:
            angle = rng.uniform(0, 2 * np.pi, len(self.sizes))
            parts = [np.cos(angle), np.sin(angle)] if self.how.imaginary is not None else [np.sign(np.cos(angle))]
            x = np.concatenate([self.sizes * part for part in parts]) + _SMALL / 3 * rng.normal(size=count)
            return x * free, float(rng.choice((0.1, 0.01))), False
        scale, damping = _KINDS[rng.integers(len(_KINDS))]
        return rng.normal(size=count) * scale * free, damping, False

    def passes(self, stage: int, cost: float) -> bool:
        """Whether a start is among the better part of those that came to a stage."""
        seen = self.scores[stage]
        seen.append(cost)
        return len(seen) <= _FEW or cost <= float(np.quantile(seen, _BETTER))


@dataclass(frozen=True, eq=False)
class _Problem:
    """A pattern, the order of its tilts, its quantum, and whether intensities have Poisson weights or all the same."""

    observed: NDArray[np.float64]
    geometry: Geometry
    order: NDArray[np.int64]
    quantum: float
    poisson: bool

    def weighted(self, x: Any, arm: _Arm) -> tuple[refine.Data, bool]:
        """All of it with weights for residuals near a fit, and whether these are of sqrt(I)."""
        if self.poisson and not self.quantum:
            return refine.blocked(self.geometry, self.observed), True
        weights = np.ones(self.observed.shape)
        if self.poisson:
            weights = refine.poisson_weights(_modelled(x, arm, self), self.quantum)
        return refine.blocked(self.geometry, self.observed, weights=weights), False


def _modelled(x: Any, arm: _Arm, problem: _Problem) -> NDArray[np.float64]:
    """The pattern of a fit."""
    u = u_from_parameters(np.asarray(x)[: -refine.EXTRA], arm.tie)
    depth, scale, background = (float(value) for value in np.asarray(x)[-refine.EXTRA :])
    return scale * intensities(u, problem.geometry, depth * refine.PHASE * problem.geometry.k0 / np.pi) + background


def _arms(
    problem: _Problem, start: NDArray | None, limits: tuple[float, float], real: bool, varied: NDArray, noise: float
) -> list[_Arm]:
    observed, geometry = problem.observed, problem.geometry
    ties = hypotheses(observed, geometry, _EQUIVALENT * largest_r(noise))
    if real:
        ties = [tie for tie in ties if not tie.imaginary.any()] or [twofold(geometry)]
    sizes = kinematic_sizes(observed, geometry)[len(geometry.dhkl) // 2 + 1 :]
    candidates = thickness_candidates(observed, geometry, limits)
    places = _Thicknesses(candidates)
    arms: list[_Arm] = []
    for number, tie in enumerate(ties):
        given = None
        if start is not None:
            tied = centred(start, tie, geometry)
            off = np.linalg.norm(np.abs(tied) - np.abs(start)) / max(float(np.linalg.norm(start)), 1e-12)
            if off > _OFF and number < len(ties) - 1:
                continue
            given = parameters_from_u(tied, tie)
        how = unknowns(geometry, tie)
        fixed = [tie.real] if how.imaginary is None else [tie.real, tie.imaginary]
        free = np.concatenate([np.bincount(tie.orbit, np.abs(part), tie.count) > 0 for part in fixed])
        many = -(-_PER_UNKNOWN * int(free.sum()) // geometry.shape[1])
        orbit_size = np.bincount(tie.orbit, sizes > 0, tie.count)
        arms.append(
            _Arm(
                tie,
                how,
                np.append(free, [1.0, *varied]).astype(np.float64),
                min(len(observed), max(_TILTS, -(-many // 16) * 16)),
                _FIRST if number == 0 else _LAST if number == len(ties) - 1 else _OTHERS,
                places,
                given,
                np.bincount(tie.orbit, sizes, tie.count) / np.maximum(orbit_size, 1),
            )
        )
    if start is not None:
        near = _Thicknesses(_model_thicknesses(arms[-1], problem, limits, candidates))
        for arm in arms:
            arm.places = near
    return arms


def _model_thicknesses(
    arm: _Arm, problem: _Problem, limits: tuple[float, float], candidates: NDArray
) -> Float[np.ndarray, " k"]:
    """The thicknesses at which a starting model itself is nearest to the pattern, and those that the fringes name."""
    geometry = problem.geometry
    tilts = np.sort(problem.order[: min(len(problem.order), 2 * _TILTS)])
    trial = np.arange(limits[0], limits[1] + 1.0)
    u = u_from_parameters(np.asarray(arm.given), arm.tie)
    model = intensities(u, geometry.part(tilts), trial, method="eigenvectors")
    off = np.sum((np.sqrt(model) - np.sqrt(problem.observed[tilts])) ** 2, (1, 2))
    inner = np.flatnonzero((off[1:-1] < off[:-2]) & (off[1:-1] <= off[2:])) + 1
    near = trial[inner[np.argsort(off[inner])][: len(candidates)]]
    both = np.concatenate([np.ravel(pair) for pair in zip(near, candidates, strict=False)] or [candidates])
    return np.concatenate([both, candidates[len(near) :]])


def _grown(arm: _Arm, problem: _Problem, rng: np.random.Generator, width: float) -> refine.State | None:
    """One start through its stages; None where it was not among the better part."""
    geometry = problem.geometry
    y, damping, hop = arm.start(rng)
    which = arm.places.next(rng)
    depth = float(arm.places.depth[which]) + width * rng.uniform(-1, 1)
    if hop and arm.best is not None:
        depth = refine.thickness_of(arm.best, geometry.k0)
    arm.turns += 1
    x = refine.parameters(y, depth, geometry.k0)
    state = None
    for stage, (share, steps) in enumerate(_STAGES):
        pool = problem.order[: max(arm.size, round(share * len(problem.order)))]
        tilts = np.sort(rng.permutation(pool)[: arm.size])
        data = refine.blocked(geometry, problem.observed, tilts)
        state = refine.fitted(x, damping, data, arm.how, arm.free, steps)
        cost = float(state.cost) / len(tilts)
        passes = arm.passes(stage, cost)
        if stage == 0 and not hop:
            arm.places.learn(which, cost / float(np.median(arm.scores[0])))
        if not passes:
            return None
        x, damping = state.x, min(damping, 0.1)
    return state


def _polished(x: Any, arm: _Arm, problem: _Problem, best: float, rng: np.random.Generator) -> refine.State:
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
) -> list[Solution]:
    """The structure factors and the thickness of a pattern, best first, then others that explain it nearly as well.

    `intensity` as fractions of the incident beam; `start`: structure factors (1/A^2, at `geometry.dhkl`) to begin with,
    else the search is blind; `thickness`: lowest and highest (A); `real`: the projection has a centre. `scale` and
    `background` are fitted where asked for. `poisson`: weights in the end, else all alike.
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
    one = quantum(observed)
    noise = r_of_noise(observed, one)
    enough, near = max(_EXACT, _NOISE * noise), _NEAR + 2 * noise
    with jax.enable_x64(True):
        order = simplest_first(observed, geometry)
        problem = _Problem(observed, geometry, order, one, poisson)
        arms = _arms(problem, given, thickness, real, np.array([scale, background], np.float64), noise)
        found: list[tuple[refine.State, int, _Arm]] = []
        lowest = np.inf
        for _ in range(_STARTS):
            arm = min(arms, key=lambda a: a.spent / a.share)
            clock = time.monotonic()
            state = _grown(arm, problem, rng, width)
            if state is not None:
                if arm.best is None or float(state.r_factor) < float(arm.best.r_factor):
                    arm.best = state
                if float(state.r_factor) < near:
                    state = _polished(state.x, arm, problem, lowest, rng)
                    lowest = min(lowest, float(state.cost))
                    found = _ranked(found, state, arm)
                    if enough <= float(state.r_factor) < _BESIDE:  # a pseudo-symmetry may hold it there
                        state, _, beside = _released(state, 1, arm, arms[-1], problem, rng)
                        lowest = min(lowest, float(state.cost))
                        found = _ranked(found, state, beside)
            # The first start of an arm compiles, which says nothing of what the next one takes
            arm.spent += (time.monotonic() - clock) if arm.turns > 1 else 1e-3
            over = seconds is not None and time.monotonic() - began > seconds
            if over or (found and float(found[0][0].r_factor) < enough):
                break
        if not found:  # nothing came near: the best of what there is, as good as it gets
            arm, state = min(((a, a.best) for a in arms if a.best), key=lambda one: float(one[1].r_factor))
            found = [(_polished(state.x, arm, problem, 0.0, rng), 1, arm)]
            lowest = float(found[0][0].cost)
        kept = [one for one in found if float(one[0].cost) <= _KEPT * lowest + 1e-12][:_REPORTED]
        return _distinct([_solution(*_settled(*one, arms, problem, rng), problem) for one in kept])


def _with(
    arm: _Arm, u: NDArray, state: refine.State, problem: _Problem, best: float, rng: np.random.Generator
) -> refine.State:
    """A solution fitted again with the unknowns of another arm, from structure factors `u`."""
    x = np.append(parameters_from_u(u, arm.tie), np.asarray(state.x)[-refine.EXTRA :])
    return _polished(x, arm, problem, best, rng)


def _explains_more(free: refine.State, tied: refine.State, more: float, left: float) -> bool:
    """Whether `more` unknowns explain more than noise would let them (F test)."""
    if float(tied.r_factor) < _EXACT or left <= 0:
        return False
    return bool((float(tied.cost) - float(free.cost)) / more > _FREED * float(free.cost) / left)


def _settled(
    state: refine.State, agreement: int, arm: _Arm, arms: list[_Arm], problem: _Problem, rng: np.random.Generator
) -> tuple[refine.State, int, _Arm]:
    """A solution with the highest symmetry that explains the pattern as well, and without any where none does."""
    if arm is not arms[-1] and float(state.r_factor) > _EXACT:
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
    state: refine.State, agreement: int, arm: _Arm, untied: _Arm, problem: _Problem, rng: np.random.Generator
) -> tuple[refine.State, int, _Arm]:
    """A solution without its ties, where that explains significantly more."""
    u = u_from_parameters(np.asarray(state.x)[: -refine.EXTRA], arm.tie)
    loose = _with(untied, u, state, problem, float(state.cost), rng)
    more = untied.free.sum() - arm.free.sum()
    if more > 0 and _explains_more(loose, state, more, problem.observed.size - untied.free.sum()):
        return loose, agreement, untied
    return state, agreement, arm


def _solution(state: refine.State, agreement: int, arm: _Arm, problem: _Problem) -> Solution:
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
    sigma, missing = uncertainties(np.asarray(at.normal), float(at.cost), observed.size, free)
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
    )


def _distinct(solutions: list[Solution]) -> list[Solution]:
    """The solutions, best first, without those whose pattern is that of a better one but for a part of its residual."""
    kept: list[Solution] = []
    for one in sorted(solutions, key=lambda s: s.r_factor):
        if all(r_factor(other.intensity, one.intensity) > _ALIKE * other.r_factor + _EXACT for other in kept):
            kept.append(one)
    return kept


def _ranked(
    found: list[tuple[refine.State, int, _Arm]], state: refine.State, arm: _Arm
) -> list[tuple[refine.State, int, _Arm]]:
    """The solutions with one more, best first; of those that are the same the better, with their number."""
    cost, phase = float(state.cost), float(state.x[-refine.EXTRA])
    kept, number, best = [], 1, arm
    for other, agreement, its in found:
        alike = abs(float(other.cost) - cost) <= _SAME * max(cost, float(other.cost)) + 1e-12
        if alike and abs(float(other.x[-refine.EXTRA]) - phase) < 1e-3 * phase:
            number += agreement
            state, best = (state, best) if cost <= float(other.cost) else (other, its)
        else:
            kept.append((other, agreement, its))
    return sorted([*kept, (state, number, best)], key=lambda one: float(one[0].cost))
