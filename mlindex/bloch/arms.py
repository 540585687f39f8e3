"""Where an inversion looks: the symmetries that are searched in turn, and the thicknesses and starts of each.

All arms share what their starts tell of the thickness, and get shares of the time: most the highest symmetry, whose
fits are cheapest, then the search without any, whose valleys are widest.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Complex, Float
from numpy.typing import NDArray

from mlindex.bloch import refine
from mlindex.bloch.beams import Geometry
from mlindex.bloch.jacobian import Unknowns, parameters_from_u, u_from_parameters, unknowns
from mlindex.bloch.judge import lengths
from mlindex.bloch.propagate import intensities
from mlindex.bloch.starts import kinematic_sizes, simplest_first, thickness_candidates
from mlindex.bloch.symmetry import Tie, centred

STAGES = ((0.25, 20), (0.5, 15), (1.0, 30))  # share of the tilts, the simplest first, and steps
_BETTER, _FEW = 0.4, 1  # share of the starts that goes on to the next stage; so many go on in any case
_TILTS, _PER_UNKNOWN = 32, 8  # of a stage; intensities an unknown
_SIZED = 0.75  # how often a start has the kinematic sizes
_SMALL = 0.01  # 1/A^2 of a random start
_KINDS = ((_SMALL, 1.0), (3 * _SMALL, 1e-2), (_SMALL, 10.0), (3 * _SMALL, 0.1))  # sizes and dampings of random starts
_CLEAR = 0.4  # cost at a thickness against the median of all, where it need not wait until each has had one
_JITTER = 0.15  # of a starting model, in every other start: what it lacks may be in its way
_BEST = 0.5  # how often a start is at the thickness that served best, when each has had one
BESIDE = 0.05  # R factor, below which a few signs may be all that is wrong
_FLIPS, _FLIPPED = 0.5, (1.0, 2.0, 4.0)  # how often signs of the best solution are turned there, and how many
_FIRST, _LAST, _OTHERS = 4.0, 2.0, 1.0  # shares of the time: the highest symmetry, none, those between
_OFF = 0.5  # of a starting model: how far it may be from a symmetry that is tried with it, in the root of squares


class Thicknesses:
    """Where the next start is made: all candidates in turn, unless one is clearly best; then mostly the best ones."""

    def __init__(self, candidates: Float[np.ndarray, " k"]) -> None:
        self.depth = np.array(candidates)
        self.cost = np.full(len(candidates), np.inf)
        self.turn = 0

    def next(self, rng: np.random.Generator) -> int:
        """The number of a candidate."""
        known = self.cost[np.isfinite(self.cost)]
        if len(known) > 1 and known.min() < _CLEAR * np.median(known) and rng.random() < _BEST:
            return int(np.argmin(self.cost))
        self.turn += 1
        if self.turn <= len(self.depth):
            return self.turn - 1
        # Each next best half as often as the one before
        return int(np.argsort(self.cost, kind="stable")[min(int(rng.geometric(_BEST)), len(self.depth)) - 1])

    def learn(self, which: int, cost: float) -> None:
        """What a start came to, against what is usual with its symmetry."""
        self.cost[which] = min(self.cost[which], cost)


@dataclass(eq=False)
class Arm:
    """The search with one symmetry: its unknowns, how long it took (s), and what it found.

    `free` is 1 for parameters that vary; `size`: the tilts of a stage; `share` of the time; `given`: parameters of a
    starting model; `sizes`: kinematic sizes of the orbits (1/A^2); `scores`: costs a tilt at each stage.
    """

    tie: Tie
    how: Unknowns
    free: NDArray[np.float64]
    size: int
    share: float
    places: Thicknesses
    given: NDArray[np.float64] | None
    sizes: NDArray[np.float64]
    spent: float = 0.0
    turns: int = 0
    scores: list[list[float]] = field(default_factory=lambda: [[] for _ in STAGES])
    best: refine.State | None = None

    def start(self, rng: np.random.Generator) -> tuple[NDArray[np.float64], float, bool]:
        """Structure factors, damping, and whether they are those of the best solution but for signs."""
        count = len(self.free) - refine.EXTRA
        free = self.free[:count]
        if self.best is not None and float(self.best.r_factor) < BESIDE and rng.random() < _FLIPS:
            # A wrong sign of a weak U is a valley of its own, often the only thing that is missing
            turned = np.where(rng.random(count) < rng.choice(_FLIPPED) / count, -1.0, 1.0)
            return np.asarray(self.best.x)[:count] * turned, 1e-2, True
        if self.given is not None:
            off = _JITTER if self.turns % 2 else 0.0
            return self.given * (1 + off * rng.normal(size=count) * free), 1e-2, False
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


def arms_of(
    observed: Float[np.ndarray, "m n"],
    geometry: Geometry,
    ties: list[Tie],
    *,
    start: Complex[np.ndarray, " d"] | None,
    limits: tuple[float, float],
    varied: Float[np.ndarray, " e"],
    cutoff: float | None,
) -> list[Arm]:
    """One arm a symmetry, in the order of `ties`, of which the last is never left out.

    `start`: structure factors to begin with; symmetries that are far from theirs are left out. `limits` of the
    thickness (A). `varied`: 1 for each of the parameters beside the structure factors that is fitted. `cutoff`: see
    `search.invert`.
    """
    sizes = kinematic_sizes(observed, geometry)[len(geometry.dhkl) // 2 + 1 :]
    candidates = thickness_candidates(observed, geometry, limits)
    near = lengths(geometry)[len(geometry.dhkl) // 2 + 1 :] <= (np.inf if cutoff is None else cutoff)
    places = Thicknesses(candidates)
    arms: list[Arm] = []
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
        free = np.concatenate([np.bincount(tie.orbit, np.abs(part) * near, tie.count) > 0 for part in fixed])
        many = -(-_PER_UNKNOWN * int(free.sum()) // geometry.shape[1])
        orbit_size = np.bincount(tie.orbit, sizes > 0, tie.count)
        arms.append(
            Arm(
                tie,
                how,
                np.append(free, varied).astype(np.float64),
                min(len(observed), max(_TILTS, -(-many // 16) * 16)),
                _FIRST if number == 0 else _LAST if number == len(ties) - 1 else _OTHERS,
                places,
                given,
                np.bincount(tie.orbit, sizes, tie.count) / np.maximum(orbit_size, 1),
            )
        )
    if start is not None:
        places = Thicknesses(_near_model(arms[0], observed, geometry, limits, candidates))
        for arm in arms:
            arm.places = places
    return arms


def _near_model(
    arm: Arm, observed: NDArray, geometry: Geometry, limits: tuple[float, float], candidates: NDArray
) -> NDArray[np.float64]:
    """The thicknesses at which a starting model itself is nearest to the pattern, and those that the fringes name."""
    tilts = np.sort(simplest_first(observed, geometry)[: 2 * _TILTS])
    trial = np.arange(limits[0], limits[1] + 1.0)
    u = u_from_parameters(np.asarray(arm.given), arm.tie)
    model = intensities(u, geometry.part(tilts), trial, method="eigenvectors")
    off = np.sum((np.sqrt(model) - np.sqrt(observed[tilts])) ** 2, (1, 2))
    inner = np.flatnonzero((off[1:-1] < off[:-2]) & (off[1:-1] <= off[2:])) + 1
    near = trial[inner[np.argsort(off[inner])][: len(candidates)]]
    both = np.concatenate([np.ravel(pair) for pair in zip(near, candidates, strict=False)] or [candidates])
    return np.concatenate([both, candidates[len(near) :]])
