"""The detector's geometry from frames of a reference crystal: one that is known not to be strained, as Ge or Si.

Round by round: the frames are indexed with the geometry so far, the five parameters are fitted together with the
rotations of all grains of all frames, and spots and rays are matched again, until nothing changes. Where the start is
too far off for the search, a wider one comes first: orientations are screened on strong rays with a reach of many
pixels, over a grid of geometries, and each is refined with the geometry free inside a prior while the reach shrinks;
the likelihood against chance of `judge` says which is right.

The cell is taken as known, and is not refined, so no strain can be told from the frames that a geometry was refined
on: the two are the same to within a few hundredths of a pixel (correlations of 0.93 to 1.00). With both free, the
strains of a hundred spots of germanium are six to eight times as uncertain; and with a crystal that is strained by
1e-3, a detector that is wrong by 0.05 mm, half a pixel and 0.06 degrees leaves residuals below the noise. That is why
`index laue` does not refine the geometry on the frame that it indexes: calibrate on a reference crystal, then index
with that calibration.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool
from numpy.typing import NDArray
from scipy.special import stdtrit

from mlindex.laue import assign, propose
from mlindex.laue.geometry import Detector, direction_from_pixel, q_from_kf
from mlindex.laue.geometry_fit import GeometryFit, Observed, fitted, scale_of
from mlindex.laue.materials import Material
from mlindex.laue.screening import Net, Queue, Scene, screened
from mlindex.laue.search import LEAST_SPOTS, THRESHOLD, Grain, index_frame, judged
from mlindex.records import InputError

PARAMETERS = ("distance", "xcen", "ycen", "xbet", "xgam")
UNITS = ("mm", "px", "px", "deg", "deg")
_SPREAD = np.array([0.025, 20.0, 20.0, 0.5, 0.5])  # how far off a start usually is; the first in parts of the distance
_DETERMINED = 0.25  # of the spread: a parameter with a larger standard uncertainty is not determined by the frames
_LOOSE = 5.0  # times the spread: the prior in the rounds, which keeps what is not determined from running away
_ROUNDS, _MATCHES = 6, 12  # of indexing, and of matching after each
_POOR = 0.5  # share of the spots that grains explain, below which a wider search may find a better geometry
_WIDE = Net(0, 150, 0.8, 20.0)  # degrees and pixels by which a wrong geometry may move pairs and spots
_ANCHORS, _TRIES, _FRAMES = 40, 8, 3  # brightest spots, candidates refined a geometry, frames looked at
_SHRINKING = ((20.0, 40), (14.0, 60), (8.0, 100), (4.0, 200), (2.0, 1000), (1.0, 10**6), (1.0, 10**6))  # px, rays
_SAME = 0.1  # standard uncertainties by which geometries may differ for grains to be the same
_PRICE = 20.0  # nats that five free parameters may gain by chance
_GRID = (0.0, -1.0, 1.0, -2.0, 2.0)  # of distance and centre, in `_STEP`
_STEP = np.array([0.035, 45.0, 45.0])


@runtime_checkable
class HasSpots(Protocol):
    """A frame: columns and rows `x`, `y` (n,) px, and `intensity` (n,) of its spots."""

    @property
    def x(self) -> NDArray[np.float64]: ...

    @property
    def y(self) -> NDArray[np.float64]: ...

    @property
    def intensity(self) -> NDArray[np.float64]: ...


@dataclass(frozen=True, eq=False)
class Calibrated:
    """A refined geometry.

    `detector` is the new and `start` the old one; `esd` (5,) the standard uncertainties of `PARAMETERS` in `UNITS` and
    `correlation` (5, 5), both NaN for what is not `determined` (5,) by the frames and was held at its start.
    `rms_before` and `rms_after` (px) of one coordinate over the same `n_spots`, with the rotations that suit each
    geometry best. `grains`: those of each frame with the new geometry, best first; `widened` says whether the start
    was too far off for the search.
    """

    start: Detector
    detector: Detector
    esd: NDArray[np.float64]
    correlation: NDArray[np.float64]
    determined: NDArray[np.bool_]
    rms_before: float
    rms_after: float
    n_spots: int
    grains: tuple[tuple[Grain, ...], ...]
    widened: bool


class _Member(NamedTuple):
    """A grain under way: the frame that it is in, the number of its material, its spots, and what is observed."""

    frame: int
    which: int
    spot: NDArray[np.int64]
    observed: Observed


@dataclass(frozen=True, eq=False)
class _Session:
    """What stays the same during a calibration; the crystals' tables are those of the start, which is near enough."""

    frames: Sequence[HasSpots]
    start: Detector
    materials: Sequence[Material]
    energy: tuple[float, float]
    grains: int | None
    scenes: list[Scene]
    crystals: list[propose.Crystal]

    @property
    def spread(self) -> NDArray[np.float64]:
        return _SPREAD * np.array([self.start.distance, 1.0, 1.0, 1.0, 1.0])

    def guesses(self, members: Sequence[_Member]) -> list[list[tuple[int, NDArray[np.float64]]]]:
        """What the grains under way are for the search, frame by frame."""
        return [[(m.which, m.observed.ub) for m in members if m.frame == i] for i in range(len(self.frames))]

    def indexed(
        self, detector: Detector, guesses: Sequence[Sequence[tuple[int, NDArray[np.float64]]]] | None = None
    ) -> list[list[Grain]]:
        """The grains of each frame; the guesses are tried first."""
        return [
            index_frame(
                frame.x,
                frame.y,
                frame.intensity,
                detector,
                self.materials,
                energy=self.energy,
                grains=self.grains,
                guesses=guesses[i] if guesses else (),
            )
            for i, frame in enumerate(self.frames)
        ]


class _Round(NamedTuple):
    """The state after a round: geometry, its grains under way, and those that the search found in each frame with the
    geometry `seen`, that of the round before."""

    detector: Detector
    members: list[_Member]
    grains: list[list[Grain]]
    seen: Detector

    @property
    def score(self) -> float:
        return sum(grain.score for grains in self.grains for grain in grains)

    @property
    def matches(self) -> int:
        return sum(grain.n_matched for grains in self.grains for grain in grains)


def _seen_by(scene: Scene, detector: Detector) -> Scene:
    """The spots of a scene with another geometry of the same camera."""
    view = copy.copy(scene)
    view.plane = detector.plane
    view.q = q_from_kf(direction_from_pixel(scene.xy[:, 0], scene.xy[:, 1], detector))
    return view


def _members(session: _Session, grains: Sequence[Sequence[Grain]]) -> list[_Member]:
    """The grains without their strain, on the spots that the search gave them."""
    names = [id(m) for m in session.materials]
    return [
        _Member(
            i,
            names.index(id(g.material)),
            g.spots,
            Observed(g.u @ g.material.b, g.hkl.astype(np.float64), session.scenes[i].xy[g.spots]),
        )
        for i, found in enumerate(grains)
        for g in found
    ]


def _matched_again(session: _Session, detector: Detector, members: Sequence[_Member], reach: float) -> list[_Member]:
    """The same grains on the spots that are now within `reach` (px), each spot with the nearest of its grains."""
    plane, again = detector.plane, []
    for i, scene in enumerate(session.scenes):
        mine = [m for m in members if m.frame == i]
        nearest = np.full(len(scene.xy), np.inf)
        matches = []
        for one in mine:
            crystal = session.crystals[one.which]
            ray, at = assign.visible(one.observed.ub, crystal.hkl, crystal.orders, plane, session.energy)
            match = assign.matched(ray, at, scene.tree, reach)
            matches.append(match)
            hit = match.spot >= 0
            np.minimum.at(nearest, match.spot[hit], match.distance[hit])
        for one, match in zip(mine, matches, strict=True):
            hit = match.spot >= 0
            hit[hit] = match.distance[hit] <= nearest[match.spot[hit]]
            spot, hkl = match.spot[hit], session.crystals[one.which].hkl[match.ray[hit]]
            if len(spot) >= LEAST_SPOTS:
                again.append(one._replace(spot=spot, observed=Observed(one.observed.ub, hkl, scene.xy[spot])))
    return again


def _fit(
    session: _Session, detector: Detector, members: Sequence[_Member], sigma: float
) -> tuple[Detector, list[_Member], float]:
    """Geometry and rotations on the spots that the grains have now, and the scale of the residuals (px)."""
    observed = [m.observed for m in members]
    width = _LOOSE * session.spread
    fit = fitted(detector, observed, sigma=sigma, width=width, centre=session.start.parameters)
    moved = [m._replace(observed=m.observed._replace(ub=ub)) for m, ub in zip(members, fit.ub, strict=True)]
    return fit.detector, moved, scale_of(np.concatenate(fit.residual), 5 + 3 * len(members))


def _settled(session: _Session, detector: Detector, members: list[_Member]) -> tuple[Detector, list[_Member]]:
    """Fit and match in turn until the grains keep their spots."""
    sigma = 2.0
    for _ in range(_MATCHES if members else 0):
        before = [m.spot for m in members]
        detector, members, sigma = _fit(session, detector, members, sigma)
        members = _matched_again(session, detector, members, float(np.clip(4 * sigma, 0.5, 8.0)))
        same = len(before) == len(members) and all(
            np.array_equal(np.sort(a), np.sort(m.spot)) for a, m in zip(before, members, strict=True)
        )
        if same or not members:
            break
    return detector, members


def _rounds(session: _Session, detector: Detector, grains: list[list[Grain]]) -> _Round | None:
    """Index, fit and match until the same spots are explained; None where there is nothing to begin with."""
    before: list[tuple[int, int, int]] = []
    for _ in range(_ROUNDS):
        seen = detector
        detector, members = _settled(session, seen, _members(session, grains))
        now = sorted((m.frame, m.which, len(m.spot)) for m in members)
        if now == before or not members:
            break
        before = now
        grains = session.indexed(detector, session.guesses(members))
    return _Round(detector, members, grains, seen) if members else None


def _geometries(session: _Session) -> Iterator[Detector]:
    """The start and those around it, the nearest first: distance and centre on a grid."""
    offsets = sorted(itertools.product(_GRID, repeat=3), key=lambda o: (sum(abs(v) for v in o), abs(o[1]) + abs(o[2])))
    for offset in offsets:
        move = np.array(offset) * _STEP * np.array([session.start.distance, 1.0, 1.0])
        yield session.start.with_parameters(session.start.parameters + np.concatenate([move, [0.0, 0.0]]))


def _loosened(
    session: _Session, scene: Scene, detector: Detector, u: NDArray[np.float64], which: int
) -> tuple[Detector, NDArray[np.float64]] | None:
    """Geometry and ub of a candidate, refined on more and more rays within fewer and fewer pixels."""
    crystal, centre = session.crystals[which], detector.parameters
    ub = u @ crystal.b
    for radius, count in _SHRINKING:
        ray, at = assign.visible(ub, crystal.hkl, crystal.orders, detector.plane, session.energy)
        match = assign.matched(ray[:count], at[:count], scene.tree, radius)
        hit = match.spot >= 0
        if hit.sum() < LEAST_SPOTS:
            return None
        one = Observed(ub, crystal.hkl[match.ray[hit]], scene.xy[match.spot[hit]])
        fit = fitted(detector, [one], sigma=max(0.3, radius / 4), width=session.spread, centre=centre, steps=4)
        detector, ub = fit.detector, fit.ub[0]
    return detector, ub


def _looked_for(session: _Session) -> Detector | None:
    """A geometry with which one of the frames shows a grain beyond chance, from the start outwards."""
    order = np.argsort([-len(frame.x) for frame in session.frames], kind="stable")[:_FRAMES]
    for detector in _geometries(session):
        for i, which in itertools.product(order, range(len(session.materials))):
            scene = _seen_by(session.scenes[i], detector)
            anchors = scene.order[:_ANCHORS]
            queue = Queue(which, session.crystals[which], *screened(scene, anchors, session.materials[which], _WIDE))
            for _ in range(_TRIES):
                if queue.head == -np.inf:
                    break
                found = _loosened(session, scene, detector, queue.pop(), which)
                if found is None:
                    continue
                one = judged(_seen_by(scene, found[0]), found[1], which, session.crystals[which])
                if one.stands and one.score > THRESHOLD + _PRICE:
                    return found[0]
    return None


def _final(session: _Session, last: _Round) -> tuple[GeometryFit, Bool[np.ndarray, " 5"]]:
    """The fit without a prior, with those parameters free that the spots determine; the others are at their start."""
    observed = [m.observed for m in last.members]
    free = np.ones(5, bool)
    detector = last.detector
    while True:
        sigma, parameters = 2.0, 3 * len(observed) + int(free.sum())
        held = np.where(free, detector.parameters, session.start.parameters)
        for _ in range(4):
            fit = fitted(detector.with_parameters(held), observed, sigma=sigma, free=free)
            observed = [o._replace(ub=ub) for o, ub in zip(observed, fit.ub, strict=True)]
            held, sigma = fit.detector.parameters, scale_of(np.concatenate(fit.residual), parameters)
        # Of few spots the scatter is badly known too: by Student's t, as many standard uncertainties as three of many
        freedom = 2 * sum(len(o.xy) for o in observed) - parameters
        unsure = float(stdtrit(max(freedom, 1), 0.99865)) / 3
        esd = unsure * np.sqrt(np.diag(fit.covariance)) / (_DETERMINED * session.spread)
        if not (esd > 1).any():
            return fit, free
        free[int(np.argmax(esd))] = False


def calibrated(
    frames: Sequence[HasSpots],
    detector: Detector,
    materials: Sequence[Material],
    *,
    energy: tuple[float, float] = (5.0, 23.0),
    grains: int | None = None,
) -> Calibrated:
    """The geometry that explains the spots of reference crystals best, from the start `detector`.

    All `frames` are of one camera and one mounting; each may hold several grains of `materials` (at most `grains`), in
    any orientation, which are not strained. `energy` (lowest, highest) keV. The pixel size is kept: only the ratio of
    the distance to it shows in a pattern. Raises `InputError` where no frame shows a crystal beyond chance from this
    start.
    """
    band = (float(energy[0]), float(energy[1]))
    usable = [f for f in frames if len(f.x) >= LEAST_SPOTS]
    if not usable or not materials:
        raise InputError(f"no frame has the {LEAST_SPOTS} spots that a grain needs; give frames of a reference crystal")
    scenes = [
        Scene(np.stack([f.x, f.y], 1).astype(np.float64), np.asarray(f.intensity, np.float64), detector, band)
        for f in frames
    ]
    crystals = [propose.crystal_of(material, detector, band) for material in materials]
    session = _Session(frames, detector, materials, band, grains, scenes, crystals)
    best = _rounds(session, detector, session.indexed(detector))
    total = sum(len(f.x) for f in frames)
    widened = False
    if best is None or best.matches < _POOR * total:
        other = _looked_for(session)
        again = None if other is None else _rounds(session, other, session.indexed(other))
        if again is not None and (best is None or again.score > best.score):
            best, widened = again, True
    if best is None:
        names = " or ".join(m.name for m in materials)
        raise InputError(
            f"no crystal of {names} explains the spots better than chance with this detector or one near it; "
            "check the material, and give a start (--detector) that is nearer"
        )
    fit, free = _final(session, best)
    observed = [m.observed._replace(ub=ub) for m, ub in zip(best.members, fit.ub, strict=True)]
    before = fitted(detector, observed, sigma=1e4, free=np.zeros(5, bool))
    esd = np.where(free, np.sqrt(np.diag(fit.covariance)), np.nan)
    with np.errstate(invalid="ignore"):
        correlation = fit.covariance / np.outer(esd, esd)
    found = best.grains
    if not free.all() or (np.abs(fit.detector.parameters - best.seen.parameters) > _SAME * esd).any():
        found = session.indexed(fit.detector, session.guesses(best.members))
    return Calibrated(
        detector,
        fit.detector,
        esd,
        correlation,
        free,
        before.rms,
        fit.rms,
        sum(len(m.spot) for m in best.members),
        tuple(tuple(one) for one in found),
        widened,
    )
