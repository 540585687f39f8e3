"""Blind inversion of a pattern: many starts from nearly nothing, at thicknesses that the fringes name.

Where a beam is far from its Bragg position its intensity goes as sin^2(pi t s) / s^2, so the Fourier transform of
s^2 I along the excitation error s peaks at the thickness; tilts on a grid repeat the peak, and a few candidates remain.
From each, structure factors near zero are let grow by strongly damped steps on some of the tilts, which is cheap, and
the best go on with all of them. Other starts are the best so far, disturbed. The search ends when the pattern is
explained but for its counting noise, or when the time or the starts are used up.
"""

from __future__ import annotations

import time

import jax
import numpy as np
from jaxtyping import Complex, Float
from numpy.typing import NDArray

from mlindex.bloch import refine
from mlindex.bloch.beams import Geometry
from mlindex.bloch.jacobian import Unknowns, parameters_from_u, u_from_parameters, unknowns
from mlindex.bloch.judge import Solution, origin_pair, r_factor, uncertainties, weighted_r, with_origin
from mlindex.bloch.noise import quantum, r_of_noise
from mlindex.bloch.propagate import intensities

_GRID = 2.0  # A, of the thicknesses that are tried in the transform
_FAR = 0.3  # of the largest excitation error, beyond which fringes count
_PEAKS, _LEAST = 8, 0.35  # thicknesses, and how strong against the best
_SMALL, _DAMPED = 0.01, 1.0  # 1/A^2 of a random start; its damping
_KINDS = ((_SMALL, _DAMPED), (3 * _SMALL, 1e-2), (_SMALL, 10.0))  # sizes and dampings that succeed where others do not
_BEST = 0.4  # how often a start is at the thickness that served best, when each has had two
_HOPS, _DISTURBED = 0.4, (0.3, 1.0)  # how often a start is the best solution disturbed, and by what fraction
_HOPEFUL = 0.35  # R factor of a solution that is worth disturbing
_STEPS = 30  # of a cheap start
_ROUNDS, _ROUND = 6, 10  # on all tilts, and the steps in each
_LIGHT = (1e-2, 1e-4)  # damping of the first of them, and of the others
_TILTS = 64  # of a cheap start, for up to 13 beams; more with more beams
_EXACT = 1e-6  # R factor where nothing is left to explain
_PROMISING, _SAME = 1.25, 0.02  # cost against the best, to go on with a start; and to be the same solution
_STARTS = 300
_KEPT, _ALIKE = 2.0, 0.3  # cost against the best of what is reported; share of a residual that is no other solution
_NOISE = 1.15  # R factor against that of the counting noise where nothing is left to explain


def thickness_candidates(
    intensity: Float[np.ndarray, "m n"], geometry: Geometry, thickness: tuple[float, float]
) -> Float[np.ndarray, " k"]:
    """Thicknesses (A) within the limits at which the fringes of all beams together are strongest, the best first."""
    low, high = thickness
    trial = np.arange(low, high + _GRID, _GRID)
    power = np.zeros(len(trial))
    for beam in range(intensity.shape[1]):
        s = geometry.excitation[:, beam] / (2 * geometry.k0)
        far = np.abs(s) > _FAR * np.abs(s).max(initial=0.0)
        if beam == geometry.origin or far.sum() < 8:
            continue
        fringe = intensity[far, beam] * s[far] ** 2
        fringe = np.clip(fringe - np.median(fringe), -3 * fringe.std(), 3 * fringe.std())
        fringe = fringe - fringe.mean()
        norm = len(fringe) * (fringe @ fringe)
        if norm > 0:
            power += np.abs(np.exp(2j * np.pi * np.outer(trial, s[far])) @ fringe) ** 2 / norm
    inner = np.flatnonzero((power[1:-1] > power[:-2]) & (power[1:-1] >= power[2:])) + 1
    peaks = inner[np.argsort(-power[inner])]
    peaks = peaks[power[peaks] > _LEAST * power.max(initial=0.0)][:_PEAKS]
    return trial[peaks] if len(peaks) else np.geomspace(max(low, 1.0), high, _PEAKS)


class _Thicknesses:
    """Where the next start is made: all candidates in turn twice, then often the one that served best."""

    def __init__(self, candidates: Float[np.ndarray, " k"]) -> None:
        self.depth = np.array(candidates)
        self.cost = np.full(len(candidates), np.inf)
        self.turn = 0

    def next(self, rng: np.random.Generator) -> int:
        """The number of a candidate."""
        self.turn += 1
        if self.turn <= 2 * len(self.depth) or rng.random() > _BEST:
            return (self.turn - 1) % len(self.depth)
        return int(np.argmin(self.cost))

    def learn(self, which: int, depth: float, cost: float) -> None:
        """What a start came to."""
        if cost < self.cost[which]:
            self.depth[which], self.cost[which] = depth, cost


def _start(
    rng: np.random.Generator,
    free: Float[np.ndarray, " p1"],
    given: Float[np.ndarray, " p"] | None,
    best: Float[np.ndarray, " p1"] | None,
) -> tuple[Float[np.ndarray, " p"], float, bool]:
    """Parameters, damping, and whether they are the best solution so far, disturbed."""
    count = len(free) - 1
    if best is not None and rng.random() < _HOPS:
        size = np.abs(best[:-1]) * rng.choice(_DISTURBED) + _SMALL / 3
        return (best[:-1] + size * rng.normal(size=count)) * free[:-1], _DAMPED, True
    if given is not None:
        return given * (1 + 0.1 * rng.normal(size=count)) * free[:-1], 1e-2, False
    scale, damping = _KINDS[rng.integers(len(_KINDS))]
    return rng.normal(size=count) * scale * free[:-1], damping, False


def _solution(
    state: refine.State,
    agreement: int,
    observed: NDArray,
    geometry: Geometry,
    every: refine.Data,
    how: Unknowns,
    free: NDArray,
) -> Solution:
    depth = _depth(state, geometry)
    u = with_origin(u_from_parameters(np.asarray(state.x)[:-1]), geometry)
    model = intensities(u, geometry, depth)
    # Uncertainties are those beside an origin that is fixed: two phases are no unknowns any more
    fixed, half = free.copy(), (len(free) - 1) // 2
    for place in origin_pair(u, geometry):
        fixed[half + abs(place - half) - 1] = 0.0
    at = refine.init(np.append(parameters_from_u(u), _phase(depth, geometry)), 1.0, every, how, fixed)
    sigma, missing = uncertainties(np.asarray(at.normal), float(at.cost), observed.size, fixed)
    each = np.sqrt((sigma[:half] ** 2 + sigma[half:-1] ** 2) / 2)
    return Solution(
        u,
        np.concatenate([each[::-1], [0.0], each]),
        depth,
        float(sigma[-1]) * refine.PHASE * geometry.k0 / np.pi,
        r_factor(observed, model),
        weighted_r(observed, model),
        model,
        missing,
        agreement,
    )


def invert(
    intensity: Float[np.ndarray, "m n"],
    geometry: Geometry,
    *,
    start: Complex[np.ndarray, " d"] | None = None,
    thickness: tuple[float, float] = (50.0, 1000.0),
    seed: int = 0,
    seconds: float | None = None,
    real: bool = False,
) -> list[Solution]:
    """The structure factors and the thickness of a pattern, best first, then others that explain it nearly as well.

    `intensity` as fractions of the incident beam; `start`: structure factors (1/A^2, at `geometry.dhkl`) to begin with,
    else the search is blind; `thickness`: lowest and highest (A); `real`: the projection has its centre at the origin.
    After `seconds` no new start is begun. Raises `ValueError` for shapes that do not match and for limits of the
    thickness that are none.
    """
    observed = np.asarray(intensity, np.float64)
    if observed.shape != geometry.shape:
        raise ValueError(f"intensities of shape {observed.shape} do not match {geometry.shape} tilts and beams")
    if not 0 < thickness[0] < thickness[1]:
        raise ValueError(f"limits of the thickness must be positive and in order (A), not {thickness}")
    count = len(geometry.dhkl) - 1
    free = np.ones(count + 1)
    if real:
        free[count // 2 : -1] = 0.0
    given = None if start is None else parameters_from_u(np.asarray(start, np.complex128)) * free[:-1]
    began, rng = time.monotonic(), np.random.default_rng(seed)
    how = unknowns(geometry)
    places = _Thicknesses(thickness_candidates(observed, geometry, thickness))
    # A peak of the transform is as wide as the range of excitation errors is narrow
    width = geometry.k0 / max(float(np.ptp(geometry.excitation)), 1e-9)
    enough = max(_EXACT, _NOISE * r_of_noise(observed, quantum(observed)))
    found: list[tuple[refine.State, int]] = []
    lowest = np.inf
    with jax.enable_x64(True):
        every = refine.blocked(geometry, observed)
        size = min(len(observed), _TILTS * max(1, round(geometry.shape[1] / 13)))
        for _ in range(_STARTS):
            hopeful = bool(found) and float(found[0][0].r_factor) < _HOPEFUL
            x, damping, hop = _start(rng, free, given, np.asarray(found[0][0].x) if hopeful else None)
            which = places.next(rng)
            depth = _depth(found[0][0], geometry) if hop else float(places.depth[which]) + width * rng.uniform(-1, 1)
            chosen = np.sort(rng.permutation(len(observed))[:size])
            data = refine.blocked(geometry, observed, chosen)
            grown = refine.fitted(np.append(x, _phase(depth, geometry)), damping, data, how, free, _STEPS)
            state = _polished(grown, every, how, free, lowest)
            if not hop:
                places.learn(which, _depth(grown, geometry), float(grown.cost))
            lowest = min(lowest, float(state.cost))
            if float(state.cost) <= _KEPT * lowest:
                found = _ranked(found, state)
            over = seconds is not None and time.monotonic() - began > seconds
            if over or float(found[0][0].r_factor) < enough:
                break
        kept = [(s, k) for s, k in found if float(s.cost) <= _KEPT * lowest + 1e-12]
        return _distinct([_solution(s, k, observed, geometry, every, how, free) for s, k in kept])


def _phase(depth: float, geometry: Geometry) -> float:
    return np.pi * depth / geometry.k0 / refine.PHASE


def _depth(state: refine.State, geometry: Geometry) -> float:
    return float(state.x[-1]) * refine.PHASE * geometry.k0 / np.pi


def _distinct(solutions: list[Solution]) -> list[Solution]:
    """The solutions, best first, without those whose pattern is that of a better one but for a part of its residual."""
    kept: list[Solution] = []
    for one in solutions:
        if all(r_factor(other.intensity, one.intensity) > _ALIKE * other.r_factor + _EXACT for other in kept):
            kept.append(one)
    return kept


def _polished(grown: refine.State, every: refine.Data, how: Unknowns, free: NDArray, best: float) -> refine.State:
    """A start after steps on all tilts, as many as it needs; fewer where it stays far behind the `best` cost."""
    now = refine.fitted(grown.x, _LIGHT[0], every, how, free, _ROUND)
    for _ in range(_ROUNDS):
        before = float(now.cost)
        now = refine.fitted(now.x, _LIGHT[1], every, how, free, _ROUND)
        cost = float(now.cost)
        done = float(now.r_factor) < _EXACT or cost > (1 - 1e-4) * before
        # The rate at which the cost falls says where it may end
        if done or (cost > _PROMISING * best and cost > 0.7 * before):
            break
    return now


def _ranked(found: list[tuple[refine.State, int]], state: refine.State) -> list[tuple[refine.State, int]]:
    """The solutions with one more, best first; of those that are the same the better, with their number."""
    cost, phase = float(state.cost), float(state.x[-1])
    kept, number = [], 1
    for other, agreement in found:
        alike = abs(float(other.cost) - cost) <= _SAME * max(cost, float(other.cost)) + 1e-12
        if alike and abs(float(other.x[-1]) - phase) < 1e-3 * phase:
            number += agreement
            state = state if cost <= float(other.cost) else other
        else:
            kept.append((other, agreement))
    return sorted([*kept, (state, number)], key=lambda one: float(one[0].cost))
