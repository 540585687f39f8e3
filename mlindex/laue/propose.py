"""Candidate orientations from pairs of spots whose angle fits a pair of strong rays.

The strong spots of a grain are nearly all rays of low index: with harmonics by ray, ten strongest spots are among the
two hundred strongest rays of the material five times out of six. So a few anchors a grain are enough, and the table
of angles between strong rays is short. Every pair of anchors and every entry of the table within the tolerance is a
candidate: the orientation that turns the bisector and the difference of the two rays onto those of the two spots, which
shares the error of the angle between both.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from mlindex.crystal.rotation import random_rotations
from mlindex.laue.assign import visible
from mlindex.laue.geometry import KEV_ANGSTROM, Detector
from mlindex.laue.materials import Material, rays
from mlindex.records import InputError

_SINES = np.array([0.4, 0.55, 0.7, 0.85])  # of the Bragg angles over which a ray's intensity is averaged
BEYOND = 1.35  # times the highest energy: how far spots are looked for that the material cannot have
_LATTICE = 6000  # of these at most
_ALIKE = 1.5  # degrees within which rays agree, for a pseudo-symmetry
_RELATIVES = 24
LEAST_ANGLE = 8.0  # degrees; spots closer than that say little about the rotation about themselves


class Crystal(NamedTuple):
    """A material as a search needs it: the rays of the whole sphere (hkl and -h-k-l apart), strongest first.

    `b` Busing-Levy (1/angstrom); `hkl` (n, 3) primitive; `orders` (n,) bits of the allowed orders; `directions` (n, 3)
    unit vectors in crystal axes; `least_sine` (n,) sin(theta) below which a ray needs more than the highest energy;
    `rotations` (m, 3, 3) of the Laue class in crystal axes; `typical` the median number of rays on the detector;
    `lattice` (k, 3) every primitive hkl of low index, extinct or not, up to `BEYOND` times the highest energy, and
    `lattice_orders` (k,) the bits of its allowed orders; `known`: whether the order is from atoms, or of |q| alone.
    """

    b: NDArray[np.float64]
    hkl: NDArray[np.float64]
    orders: NDArray[np.int64]
    directions: NDArray[np.float64]
    least_sine: NDArray[np.float64]
    rotations: NDArray[np.float64]
    typical: float
    lattice: NDArray[np.float64]
    lattice_orders: NDArray[np.int64]
    known: bool


def lattice_directions(material: Material, q_max: float) -> Float[np.ndarray, "k 3"]:
    """Every primitive hkl with |q| up to `q_max`, both signs, the `_LATTICE` lowest of them."""
    q_max = min(q_max, float((0.29 * _LATTICE * np.linalg.det(material.b)) ** (1 / 3)))
    axes = [np.arange(-n, n + 1) for n in np.floor(material.cell[:3] * q_max).astype(int)]
    hkl = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    hkl = hkl[np.gcd.reduce(hkl, axis=1) == 1]
    return hkl[np.linalg.norm(hkl @ material.b.T, axis=1) <= q_max].astype(np.float64)


@lru_cache(maxsize=32)
def crystal_of(material: Material, detector: Detector, energy: tuple[float, float]) -> Crystal:
    """The rays of `material` that `detector` can see between `energy` (lowest, highest) keV; the last are kept.

    Rays are ordered by the intensity that all their orders in the band have together, |F|^2 lambda^2 / sin^2(theta)
    for a flat spectrum, averaged over Bragg angles. Raises `InputError` for a material that shows nothing there.
    """
    table = rays(material, energy[1], detector)
    number = np.arange(1, table.strength.shape[1] + 1)
    expected = np.zeros(len(table.hkl))
    for sine in _SINES:
        each = KEV_ANGSTROM * table.q[:, None] * number / (2 * sine)
        inside = (each >= energy[0]) & (each <= energy[1])
        expected += np.where(inside, table.strength / (each * sine) ** 2, 0.0).sum(1)
    order = np.argsort(-expected, kind="stable")
    hkl = np.repeat(table.hkl[order], 2, axis=0).astype(np.float64)
    hkl[1::2] *= -1
    orders = np.repeat(table.orders[order], 2).astype(np.int64)
    q = hkl @ material.b.T
    length = np.linalg.norm(q, axis=1)
    lowest = np.log2((orders & -orders).astype(np.float64))
    lattice = lattice_directions(material, BEYOND * float(length.max(initial=0.0)))
    wide = rays(material, BEYOND * energy[1], detector)
    allowed = {
        tuple(sorted((tuple(one), tuple(-i for i in one)))): bits
        for one, bits in zip(wide.hkl.tolist(), wide.orders.tolist(), strict=True)
    }
    rng = np.random.default_rng(0)
    counts = [len(visible(u @ material.b, hkl, orders, detector.plane, energy)[0]) for u in random_rotations(rng, 9)]
    typical = float(np.median(counts))
    if not typical:
        raise InputError(
            f"{material.name} has {'hardly a' if len(hkl) else 'no'} reflection between {energy[0]:g} and "
            f"{energy[1]:g} keV on this detector; check the energy band and the cell (angstrom)"
        )
    return Crystal(
        material.b,
        hkl,
        orders,
        q / length[:, None],
        length * lowest * KEV_ANGSTROM / (2 * energy[1]),
        material.rotations,
        typical,
        lattice,
        np.array(
            [allowed.get(tuple(sorted((one, tuple(-i for i in one)))), 0) for one in map(tuple, lattice.tolist())]
        ),
        material.structure is not None,
    )


@lru_cache(maxsize=32)
def pseudo_rotations(material: Material, detector: Detector, energy: tuple[float, float]) -> Float[np.ndarray, "m 3 3"]:
    """Rotations that nearly map the strongest rays onto strong rays, without being symmetries of the crystal.

    A grain turned by one of them looks much the same: its bright spots agree and its weak ones do not. In crystal axes,
    the most alike first, at most `_RELATIVES`, one of each set that the symmetry makes equivalent.
    """
    crystal = crystal_of(material, detector, energy)
    base, strong = crystal.directions[:40], crystal.directions[:150]
    table = ray_pairs(strong[:60], np.eye(3)[None], 95.0)
    spots = spot_pairs(base[:5], 95.0)
    pair, entry, frames = candidates(spots, table, np.radians(_ALIKE), 40_000)
    found = frames[pair] @ np.swapaxes(table.frames[entry], 1, 2)
    shares = []
    for start in range(0, len(found), 500):
        cosine = np.einsum("kij,nj,mi->knm", found[start : start + 500], base.astype(np.float32), strong)
        shares.append((cosine.max(2) > np.cos(np.radians(_ALIKE))).mean(1))
    share = np.concatenate([*shares, np.empty(0)])
    kept: list[NDArray[np.float64]] = []
    known = list(crystal.rotations)  # and what is equivalent to a rotation that is kept
    for i in np.argsort(-share, kind="stable")[: int((share > 0.6).sum())]:
        if len(kept) == _RELATIVES:
            break
        one = found[i].astype(np.float64)
        if np.einsum("ij,mij->m", one, np.array(known)).max() < 1 + 2 * np.cos(np.radians(3 * _ALIKE)):
            kept.append(one)
            known += list(one @ crystal.rotations)
    return np.array(kept).reshape(-1, 3, 3)


class RayPairs(NamedTuple):
    """Pairs of strong rays by `angle` (radians, ascending) and their `frames` (t, 3, 3), axes in columns."""

    angle: NDArray[np.float64]
    frames: NDArray[np.float32]


class SpotPairs(NamedTuple):
    """Pairs of anchors, `first` and `second` (indices into the anchors), their `angle` (radians) and `frames`."""

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    angle: NDArray[np.float64]
    frames: NDArray[np.float32]


def pair_frames(a: Float[np.ndarray, "n 3"], b: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3 3"]:
    """Right-handed frames (axes in columns) of pairs of unit vectors: along a + b, along a - b, and their product."""
    axis, across = a + b, a - b
    axis = axis / np.linalg.norm(axis, axis=1, keepdims=True)
    across = across / np.linalg.norm(across, axis=1, keepdims=True)
    return np.stack([axis, across, np.cross(axis, across)], 2)


def orbit_representatives(
    directions: Float[np.ndarray, "s 3"], rotations: Float[np.ndarray, "g 3 3"]
) -> Int[np.ndarray, " m"]:
    """The first of each set of directions that the rotations of the crystal make equivalent."""
    images = np.round(np.einsum("gij,sj->sgi", rotations, directions), 6) + 0.0
    order = (
        np.lexsort(np.moveaxis(images, -1, 0)[::-1], axis=-1) if len(rotations) > 1 else np.zeros((len(images), 1), int)
    )
    canonical = np.take_along_axis(images, order[:, :1, None], 1)[:, 0]
    return np.sort(np.unique(canonical, axis=0, return_index=True)[1])


def ray_pairs(directions: Float[np.ndarray, "s 3"], rotations: Float[np.ndarray, "g 3 3"], greatest: float) -> RayPairs:
    """All ordered pairs of strong rays (unit vectors in crystal axes) between `LEAST_ANGLE` and `greatest` degrees.

    The first ray of a pair is one of each set of equivalent rays: the other choices give the same orientation again.
    """
    first = orbit_representatives(directions, rotations)
    cosine = directions[first] @ directions.T
    i, j = np.nonzero((cosine < np.cos(np.radians(LEAST_ANGLE))) & (cosine > np.cos(np.radians(greatest))))
    angle = np.arccos(cosine[i, j])
    order = np.argsort(angle, kind="stable")
    frames = pair_frames(directions[first[i]], directions[j])
    return RayPairs(angle[order], frames[order].astype(np.float32))


def spot_pairs(directions: Float[np.ndarray, "n 3"], greatest: float) -> SpotPairs:
    """All pairs of anchors (unit scattering vectors in LT), each once."""
    cosine = directions @ directions.T
    usable = (cosine < np.cos(np.radians(LEAST_ANGLE))) & (cosine > np.cos(np.radians(greatest)))
    j, i = np.nonzero(np.tril(usable, -1))  # in the order of the weaker of the two
    frames = pair_frames(directions[i], directions[j])
    return SpotPairs(i, j, np.arccos(cosine[i, j]), frames.astype(np.float32))


def candidates(
    spots: SpotPairs, rays: RayPairs, tolerance: float, most: int
) -> tuple[Int[np.ndarray, " k"], Int[np.ndarray, " k"], Float[np.ndarray, "q 3 3"]]:
    """(pair, entry, frames): candidate k turns the frame `rays.frames[entry[k]]` onto `frames[pair[k]]`.

    `tolerance` in radians. Either spot may be either ray, so `frames` holds those of the pairs and then those of the
    pairs turned round. With more than `most` candidates the pairs that come last are left out.
    """
    low = np.searchsorted(rays.angle, spots.angle - tolerance)
    count = np.searchsorted(rays.angle, spots.angle + tolerance) - low
    count = np.where(2 * np.cumsum(count) > most, 0, count)
    pair = np.repeat(np.arange(len(count)), count)
    within = np.arange(len(pair)) - np.repeat(np.cumsum(count) - count, count)
    entry = np.repeat(low, count) + within
    turned = spots.frames * np.array([1, -1, -1], np.float32)
    frames = np.concatenate([spots.frames, turned])
    return np.concatenate([pair, pair + len(count)]), np.concatenate([entry, entry]), frames
