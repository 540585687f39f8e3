"""One frame: propose, assign, refine, judge, greedily over grains and materials, and jointly at the end.

Anchors are the brightest spots that no grain explains yet. Their pairs propose orientations of every material, a table
look-up screens these by the hundred thousand, the best are refined against the whole pattern, and the grain with
the largest log-likelihood ratio against chance is accepted, material against material, as long as it passes
`THRESHOLD`. A spot supports one grain only. The search ends when the widest net brings up nothing more. At the end
every grain must stand without the spots that any other grain explains as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from mlindex.laue import assign, judge, propose, refine
from mlindex.laue.geometry import Detector
from mlindex.laue.materials import Material
from mlindex.laue.screening import Net, Queue, Scene, screened
from mlindex.records import InputError

THRESHOLD = 40.0  # nats that a grain must be likelier than chance; orientations differ in about e^25 ways
LEAST_SPOTS = 6
# Share of the strongest rays that must be seen, by whether atoms say which these are; two lattices of different kinds
# agree in less (0.57 was the most in 1,700 frames), true ones of whole frames in more than 0.71, dim ones 0.6
LEAST_COVERAGE = {True: 0.58, False: 0.45}
GREATEST_STRAIN = 0.01


NETS = (Net(10, 150, 0.05, 3.0), Net(16, 200, 0.1, 4.0), Net(30, 300, 0.12, 4.0))
_ANCHORS = (30, 240)  # the least and the most
_FAILURES = 8  # refined candidates of one material, in a row, that may fail
_RIVALS, _RIVAL = 6, 0.75  # how many that screen nearly as well (pseudo-symmetry) are refined together, and how nearly
_DOUBTFUL = 0.8  # coverage below which a grain may be a relative of the true one
# Spots that a grain cannot have, for each that it can, beyond which it is of another material: extinct, of too high an
# energy, and the same where less than `_FAINT` of its rays are seen
_EXTINCT, _OUTSIDE, _OUTSIDE_FAINT, _FAINT = 0.06, 0.6, 0.1, 0.4
_EVERY = (1 << 31) - 2  # bits of the orders 1 to 30
_PRIOR = 2e-3  # of strains, while orientations are still uncertain
_SCHEDULE = ((4.0, 120, True), (3.0, 300, False), (1.5, 1000, False), (1.0, 10**6, False))  # px, rays, rotation only
_LEFT_OVER = 0.6  # of the spots of a typical grain
_NEAR = 1.5  # px within which a spot may belong to a ray


@dataclass(frozen=True, eq=False)
class Grain:
    """One grain of a frame.

    `ub` (3, 3) takes hkl to q (1/angstrom) in LT and `u` is its rotation, in the setting equivalent by symmetry that
    turns least from the laboratory axes; both are unstrained where the strain is not significant. `strain` and
    `strain_esd`: deviatoric, in the direct crystal axes (x along a), always as measured. `spots` (m,) are the indices
    of its spots, `hkl` (m, 3) their primitive reflections; `n_predicted` rays should be seen, `match_rate` is
    m / n_predicted. `score`: log-likelihood ratio against chance (nats) without the spots that other grains explain;
    `rms_px` of one coordinate.
    """

    material: Material
    ub: NDArray[np.float64]
    u: NDArray[np.float64]
    strain: NDArray[np.float64]
    strain_esd: NDArray[np.float64]
    spots: NDArray[np.int64]
    hkl: NDArray[np.int64]
    n_matched: int
    n_predicted: int
    match_rate: float
    score: float
    rms_px: float


class Found(NamedTuple):
    """A grain under way: number of its material, `ub`, score, the share of its strongest rays that are seen (`cover`)
    and whether atoms say which these are (`known`), the rays and spots that are its own, `sigma` of its fit (px)."""

    which: int
    ub: NDArray[np.float64]
    score: float
    cover: float
    known: bool
    ray: NDArray[np.int64]
    spot: NDArray[np.int64]
    n_predicted: int
    sigma: float

    @property
    def stands(self) -> bool:
        """Whether this is beyond chance and beyond the likeness of two lattices."""
        return bool(
            self.score >= THRESHOLD and len(self.spot) >= LEAST_SPOTS and self.cover >= LEAST_COVERAGE[self.known]
        )

    @property
    def reach(self) -> float:
        """Pixels within which a spot is one of this grain."""
        return max(4 * self.sigma, 0.5)


def polished(scene: Scene, ub: Float[np.ndarray, "3 3"], crystal: propose.Crystal) -> NDArray[np.float64] | None:
    """`ub` refined on more and more rays within less and less pixels; None where there is nothing to refine on."""
    ray, _ = assign.visible(ub, crystal.hkl, crystal.orders, scene.plane, scene.energy)
    for radius, count, rotation_only in _SCHEDULE:
        seen, at = assign.visible(ub, crystal.hkl, crystal.orders, scene.plane, scene.energy, ray[:count])
        match = assign.matched(seen, at, scene.tree, radius)
        hit = match.spot >= 0
        if hit.sum() < LEAST_SPOTS - 1:
            return None
        fit = refine.refined(
            ub,
            crystal.hkl[match.ray[hit]],
            scene.xy[match.spot[hit]],
            scene.plane,
            sigma=max(0.3, radius / 4),
            prior=_PRIOR,
            steps=2,
            rotation_only=rotation_only,
        )
        ub = fit.ub
    return ub


def judged(scene: Scene, ub: Float[np.ndarray, "3 3"], which: int, crystal: propose.Crystal) -> Found:
    """The score of an orientation over all its rays, and the spots that are not another grain's."""
    match = scene.match(ub, crystal)
    near = match.distance < _NEAR
    # The median of a squared distance in two dimensions is 2 ln 2 sigma^2
    sigma = float(np.sqrt(np.median(match.distance[near] ** 2) / (2 * np.log(2)))) if near.any() else 0.5
    sigma = float(np.clip(sigma, 0.1, 0.6))
    taken = near & (scene.owner[match.spot] >= 0)
    found = Found(which, ub, -np.inf, 0.0, crystal.known, match.ray, match.spot, len(match.ray), sigma)
    mine = (match.distance < found.reach) & ~taken
    found = found._replace(ray=match.ray[mine], spot=match.spot[mine])
    stretch = np.linalg.svd(ub @ np.linalg.inv(crystal.b), compute_uv=False)
    if np.abs(stretch / np.cbrt(np.prod(stretch)) - 1).max() > GREATEST_STRAIN:
        return found
    score = judge.log_likelihood_ratio(match.distance, taken, judge.density_at(scene.density, match.xy), sigma)
    return found._replace(score=score, cover=judge.coverage(mine[~taken]))


def impossible(scene: Scene, found: Found, crystal: propose.Crystal) -> bool:
    """Whether the spots of this lattice are not those of this material.

    They end where this material has strong reflections still, or there are some that it cannot have, of two kinds:
    reflections that are extinct, and rays of which all orders are beyond the highest energy. The
    latter are also seen where that energy is set too low; but not as many as rays inside the band, and
    hardly any when most of those are too weak to be seen.
    """
    plane, (low, high) = scene.plane, scene.energy
    match = scene.match(found.ub, crystal)
    hit = np.isin(match.ray, found.ray)
    lowest = assign.lowest_energy(found.ub, crystal.hkl[match.ray], crystal.orders[match.ray], scene.energy)
    if judge.ends_early(hit, lowest, high):
        return True
    own = np.zeros(len(scene.xy), bool)
    own[match.spot[match.distance < found.reach]] = True

    def shown(orders: Int[np.ndarray, " k"], band: tuple[float, float]) -> Int[np.ndarray, " v"]:
        return assign.visible(found.ub, crystal.lattice, orders, plane, band)[0]

    inside = shown(crystal.lattice_orders, (low, high))
    extinct = np.setdiff1d(
        shown(np.full_like(crystal.lattice_orders, _EVERY), (low, high)),
        shown(crystal.lattice_orders, (low, high * propose.BEYOND)),
    )
    outside = np.setdiff1d(shown(crystal.lattice_orders, (high, high * propose.BEYOND)), inside)
    faint = len(found.spot) < _FAINT * found.n_predicted
    for ray, share in ((extinct, _EXTINCT), (outside, _OUTSIDE_FAINT if faint else _OUTSIDE)):
        at = assign.projected(plane, crystal.lattice[ray] @ found.ub.T)[0]
        there = assign.matched(ray, at, scene.tree, found.reach).spot
        elsewhere = int((~own[there[there >= 0]]).sum())
        expected = float((judge.density_at(scene.density, at) * np.pi * found.reach**2).sum())
        if judge.betrayed(len(found.spot), elsewhere, expected, share):
            return True
    return False


def tried(scene: Scene, queue: Queue) -> list[Found]:
    """Refine candidates of a queue until one stands; those that screen nearly as well are tried beside it."""
    standing: list[Found] = []
    while not standing and queue.head > -np.inf and queue.failures < _FAILURES:
        head = queue.head
        for _ in range(_RIVALS):
            ub = polished(scene, queue.pop() @ queue.crystal.b, queue.crystal)
            if ub is not None:
                found = judged(scene, ub, queue.which, queue.crystal)
                standing += [found] if found.stands else []
            if queue.head < _RIVAL * head:
                break
        queue.failures = 0 if standing else queue.failures + 1
    return standing


def relative(scene: Scene, found: Found, material: Material, crystal: propose.Crystal) -> Found:
    """The best of a grain and of those that it may be mistaken for, by the pseudo-symmetry of its crystal."""
    best = found
    for rotation in propose.pseudo_rotations(material, scene.detector, scene.energy):
        turned = found.ub @ np.linalg.inv(crystal.b) @ rotation @ crystal.b
        ub = polished(scene, turned, crystal)
        other = best if ub is None else judged(scene, ub, found.which, crystal)
        best = other if other.stands and other.score > best.score else best
    return best


def harvested(
    scene: Scene,
    queues: Sequence[Queue],
    pool: list[Found],
    materials: Sequence[Material],
    crystals: Sequence[propose.Crystal],
    most: int,
) -> list[Found]:
    """The grains that the queues and the pool hold, the best first at every step; the scene learns their spots."""
    found: list[Found] = []
    start = int(scene.owner.max(initial=-1)) + 1
    while len(found) < most:
        for queue in queues:
            if all(other.which != queue.which for other in pool):
                pool = pool + tried(scene, queue)
        if not pool:
            break
        best = max(pool, key=lambda one: one.score)
        crystal = crystals[best.which]
        pool = [one for one in pool if one is not best]
        if best.cover < _DOUBTFUL:
            best = relative(scene, best, materials[best.which], crystal)
        fit = refine.refined(
            best.ub,
            crystal.hkl[best.ray],
            scene.xy[best.spot],
            scene.plane,
            sigma=best.sigma,
            prior=_PRIOR,
            steps=2,
        )
        grain = judged(scene, fit.ub, best.which, crystal)
        grain = grain if grain.stands else best
        scene.owner[grain.spot] = start + len(found)
        found.append(grain)
        for queue in queues:
            queue.rule_out(scene.owner)
        again = [judged(scene, one.ub, one.which, crystals[one.which]) for one in pool]
        pool = [one for one in again if one.stands]
    return found


def pruned(scene: Scene, found: Sequence[Found], crystals: Sequence[propose.Crystal]) -> list[Found]:
    """The grains that stand without the spots that any other explains as well, the weakest given up first.

    Their scores are those. The scene is left with the spots of each, shared ones with the nearest.
    """
    keep = list(found)
    while True:
        matches = [scene.match(one.ub, crystals[one.which]) for one in keep]
        reach = [match.spot[match.distance < one.reach] for one, match in zip(keep, matches, strict=True)]
        count = np.bincount(np.concatenate([*reach, np.empty(0, np.int64)]), minlength=len(scene.xy))
        alone = []
        for one, spots in zip(keep, reach, strict=True):
            others = count.copy()
            others[spots] -= 1
            scene.owner = np.where(others > 0, 0, -1)
            alone.append(judged(scene, one.ub, one.which, crystals[one.which]))
        weak = [i for i, one in enumerate(alone) if not one.stands]
        if not weak:
            scene.owner = np.where(count > 1, 0, -1)
            weak = [i for i, one in enumerate(alone) if impossible(scene, one, crystals[one.which])]
        if not weak:
            break
        keep.pop(min(weak, key=lambda i: alone[i].score))
    nearest = np.full(len(scene.xy), np.inf)
    scene.owner = np.full(len(scene.xy), -1)
    for i, (one, match) in enumerate(zip(keep, matches, strict=True)):
        inside = match.distance < one.reach
        spot, distance = match.spot[inside], match.distance[inside]
        closer = distance < nearest[spot]
        scene.owner[spot[closer]], nearest[spot[closer]] = i, distance[closer]
    settled = []
    for i, (one, match) in enumerate(zip(alone, matches, strict=True)):
        mine = match.distance < keep[i].reach
        mine[mine] = scene.owner[match.spot[mine]] == i
        settled.append(one._replace(ray=match.ray[mine], spot=match.spot[mine]))
    return settled


def finished(scene: Scene, found: Found, material: Material, crystal: propose.Crystal) -> Grain:
    """The last refinement of a grain on its own spots, in the standard setting."""
    hkl, xy = crystal.hkl[found.ray], scene.xy[found.spot]
    result = refine.measured(found.ub, hkl, xy, scene.plane, material, sigma=found.sigma)
    n = len(found.spot)
    return Grain(
        material,
        result.ub,
        result.u,
        result.strain,
        result.strain_esd,
        found.spot,
        np.rint(hkl @ result.setting.T).astype(np.int64),
        n,
        found.n_predicted,
        n / max(found.n_predicted, 1),
        found.score,
        result.rms,
    )


def positions(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"], detector: Detector) -> Float[np.ndarray, "n 2"]:
    """`x` and `y` (px) side by side; raises `InputError` where they are not finite or off the detector."""
    xy = np.stack([np.asarray(x, np.float64), np.asarray(y, np.float64)], 1)
    ny, nx = detector.shape
    if not np.isfinite(xy).all():
        raise InputError("some spots have no finite position; give x and y of every spot in pixels")
    outside = ((xy < -1) | (xy > np.array([nx, ny]) + 2)).any(1)
    if outside.any():
        raise InputError(
            f"{outside.sum()} of {len(xy)} spots lie outside the {nx} x {ny} pixels of the detector; "
            "give the calibration of this detector"
        )
    return xy


def index_frame(
    x: Float[np.ndarray, " n"],
    y: Float[np.ndarray, " n"],
    intensity: Float[np.ndarray, " n"] | None,
    detector: Detector,
    materials: Sequence[Material],
    *,
    energy: tuple[float, float] = (5.0, 23.0),
    grains: int | None = None,
    guesses: Sequence[tuple[int, Float[np.ndarray, "3 3"]]] = (),
) -> list[Grain]:
    """Every grain of `materials` in a frame, the best first; an empty list where no crystal is beyond chance.

    `x`, `y` (px) and `intensity` of the spots (None: they come brightest first), `energy` (lowest, highest) keV, at
    most `grains` of them. `guesses` are (number of the material, ub) of grains that may be there, as in a neighbouring
    frame, and are tried first. Raises `InputError` where positions are not finite or off the detector, and for a
    material that shows nothing on it in this band.
    """
    xy = positions(x, y, detector)
    if len(xy) < LEAST_SPOTS or not materials:
        return []
    band = (float(energy[0]), float(energy[1]))
    scene = Scene(xy, None if intensity is None else np.asarray(intensity, np.float64), detector, band)
    crystals = [propose.crystal_of(material, detector, band) for material in materials]
    most = len(xy) if grains is None else grains
    pool: list[Found] = []
    for which, guess in guesses:
        ub = polished(scene, np.asarray(guess, np.float64), crystals[which])
        one = None if ub is None else judged(scene, ub, which, crystals[which])
        pool += [one] if one is not None and one.stands else []
    found = harvested(scene, [], pool, materials, crystals, most)
    guessed, level = bool(found), 0
    while level < len(NETS) and len(found) < most:
        net = NETS[level]
        free = scene.order[scene.owner[scene.order] < 0]
        if len(free) < LEAST_SPOTS:
            break
        queues = []
        for which, (material, crystal) in enumerate(zip(materials, crystals, strict=True)):
            count = net.anchors * max(1.5, len(free) / (0.8 * crystal.typical))
            anchors = free[: int(np.clip(count, *_ANCHORS))]
            queues.append(Queue(which, crystal, *screened(scene, anchors, material, net)))
        more = harvested(scene, queues, [], materials, crystals, most - len(found))
        found += more
        level += not more
        # What neighbours brought leaves few spots; the wider nets are for those of a whole grain
        if guessed and not more and (scene.owner < 0).sum() < _LEFT_OVER * min(one.typical for one in crystals):
            break
    settled = sorted(pruned(scene, found, crystals), key=lambda one: -one.score)
    result = [finished(scene, one, materials[one.which], crystals[one.which]) for one in settled]
    # On the way the prior holds strains back; what the spots say at the end may be the lattice of another crystal
    return [grain for grain in result if (np.abs(grain.strain) - 3 * grain.strain_esd).max() < GREATEST_STRAIN]
