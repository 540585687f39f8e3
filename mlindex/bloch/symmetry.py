"""The symmetry of a projection, read from its pattern, and the structure factors that it ties together.

A projection with the operation x -> R x + t has U_(R g) = U_g exp(2 pi i g.t), and its pattern, in the zero-order zone,
I_(R g)(R k) = I_g(k), whatever the thickness. A pattern that is rocked about the zone axis therefore shows the point
group of the projection. There are ten, and with the glides seventeen plane groups; all but p1, p3, pm, pg, cm, p3m1 and
p31m have a twofold axis, at which all U are real.

Operations for which no tilt has its partner (a sixfold axis and a square grid of tilts) are neither shown nor excluded.
Source: International Tables for Crystallography A (2016), sections 1.3 and 2.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
from jaxtyping import Complex, Float, Int
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from mlindex.bloch.beams import Geometry

_ZERO = 1e-6  # of lengths and phases that are equal
_METRIC = 1e-3  # of the shortest vector of a net: what may be missing for an operation of it
_PARTNERS = 8  # tilts that have one, for an operation to be tested


@dataclass(frozen=True, eq=False)
class Tie:
    """Structure factors that are the same but for signs: those at the upper half of `Geometry.dhkl`.

    Re U_h = `real`[h] Re U of its orbit, Im U_h = `imaginary`[h] Im U of its orbit, signs 1, -1 or 0 (it vanishes);
    `orbit` (h,) numbers the orbits. `name` says the operations: the order of the axis, m for mirrors, g for glides.
    `holds_origin`: no shift of the origin keeps the ties, but those to a like place.
    """

    name: str
    orbit: NDArray[np.int64]
    real: NDArray[np.int64]
    imaginary: NDArray[np.int64]
    holds_origin: bool

    @property
    def count(self) -> int:
        """The number of orbits."""
        return int(self.orbit.max(initial=-1)) + 1

    @property
    def unknowns(self) -> int:
        """The number of components that do not vanish."""
        return sum(int(np.unique(self.orbit[part != 0]).size) for part in (self.real, self.imaginary))

    def project(self, u: Complex[np.ndarray, " d"]) -> Complex[np.ndarray, " d"]:
        """The means of `u` over the orbits, at `Geometry.dhkl`."""
        half = (u + u[::-1].conj())[len(u) // 2 + 1 :] / 2
        size = np.maximum(np.bincount(self.orbit, minlength=self.count), 1)
        parts = []
        for sign, value in ((self.real, half.real), (self.imaginary, half.imag)):
            parts.append(sign * (np.bincount(self.orbit, sign * value, self.count) / size)[self.orbit])
        upper = parts[0] + 1j * parts[1]
        return np.concatenate([upper[::-1].conj(), [0.0], upper])


def untied(geometry: Geometry) -> Tie:
    """Every structure factor for itself."""
    half = len(geometry.dhkl) // 2
    one = np.ones(half, np.int64)
    return Tie("p1", np.arange(half), one, one, False)


def twofold(geometry: Geometry) -> Tie:
    """All structure factors real: the projection has its twofold axis at the origin."""
    half = len(geometry.dhkl) // 2
    one = np.ones(half, np.int64)
    return Tie("p2", np.arange(half), one, 0 * one, True)


def hypotheses(intensity: Float[np.ndarray, "m n"], geometry: Geometry, limit: float) -> list[Tie]:
    """The symmetries that a pattern allows, the highest first; the last is none (p1).

    They are the largest point group that it allows, that of the operations that it shows, and the twofold axis, each
    with mirrors and with the glides. `limit`: R factor between equivalent intensities up to which they are the same.
    """
    # Beams out of the zone see the structure along the beam too
    flat = np.abs(geometry.g[:, 2]).max(initial=0.0) < _ZERO if geometry.g.shape[1] > 2 else True
    if not flat or not len(geometry.dhkl) // 2:
        return [untied(geometry)]
    every = _net_operations(geometry)
    shown = [_shown(r, intensity, geometry, limit) for r in every]
    allowed = [group for group in _subgroups(every) if all(shown[k] is not False for k in group)]
    largest = max(allowed, key=len)
    seen = [group for group in allowed if all(shown[k] for k in group)]
    chosen = [largest, max(seen, key=len)] if seen else [largest]
    chosen += [group for group in allowed if len(group) == 2 and any(np.allclose(every[k], -np.eye(2)) for k in group)]
    ties: list[Tie] = []
    for group in dict.fromkeys(chosen):
        for shifts in _translations([every[k] for k in sorted(group)], geometry):
            tie = _tie([every[k] for k in sorted(group)], shifts, geometry)
            if not any(np.array_equal(_key(tie), _key(other)) for other in ties):
                ties.append(tie)
    return [tie for tie in ties if tie.name != "p1"] + [untied(geometry)]


def centred(u: Complex[np.ndarray, " d"], tie: Tie, geometry: Geometry) -> Complex[np.ndarray, " d"]:
    """`u` with the origin, of those at halves and thirds of the cell, where it obeys a symmetry best, and made to."""
    _, inverse = bases(geometry)
    index = geometry.index
    g = np.zeros((len(geometry.dhkl), 2))
    g[index] = (geometry.g[:, None] - geometry.g[None])[..., :2]
    best, least = u, np.inf
    for fraction in product((0.0, 1 / 3, 1 / 2, 2 / 3), repeat=2):
        moved = u * np.exp(2j * np.pi * (g @ (inverse @ np.array(fraction))))
        tied = tie.project(moved)
        off = float(np.sum(np.abs(tied - moved) ** 2))
        if off < least - 1e-12:
            best, least = tied, off
    return best


def _key(tie: Tie) -> NDArray[np.int64]:
    return np.stack([tie.orbit, tie.real, tie.imaginary])


def bases(geometry: Geometry) -> tuple[Float[np.ndarray, "2 2"], Float[np.ndarray, "2 2"]]:
    """A primitive basis of the net of differences (1/A) and its dual (A), in columns."""
    g = (geometry.g[:, None] - geometry.g[None])[..., :2].reshape(-1, 2)
    g = g[np.linalg.norm(g, axis=1) > _ZERO]
    g = g[np.argsort(np.linalg.norm(g, axis=1).round(9), kind="stable")]
    first = g[0]
    area = np.abs(first[0] * g[:, 1] - first[1] * g[:, 0])
    if not np.any(area > _ZERO):  # all beams in one row: the other direction is no unknown
        basis = np.column_stack([first, [-first[1], first[0]]])
    else:
        basis = np.column_stack([first, g[int(np.argmax(area > _ZERO))]])
    return basis, np.linalg.inv(basis).T


def _unit(geometry: Geometry) -> float:
    """A length (1/A) below which two vectors of the net are one."""
    return float(_METRIC * np.linalg.norm(bases(geometry)[0], axis=0).min())


def _places(points: Float[np.ndarray, "k 2"], others: Float[np.ndarray, "l 2"], unit: float) -> Int[np.ndarray, " l"]:
    """The place of each of `others` among the points, -1 where there is none nearer than `unit`."""
    off, place = cKDTree(points).query(others)
    return np.where(off < unit, place, -1).astype(np.int64)


def _net_operations(geometry: Geometry) -> list[Float[np.ndarray, "2 2"]]:
    """The rotations and mirrors of the net of the differences, which may be more than those of the beams."""
    basis, _ = bases(geometry)
    # A mirror of a net halves the angle between two of its vectors of one length, which are among these
    vectors = np.array([basis @ np.array(c) for c in product((-1, 0, 1), repeat=2) if any(c)])
    lines = np.arctan2(vectors[:, 1], vectors[:, 0])
    turns = np.arange(12) * np.pi / 6
    doubles = np.unique(np.round((lines[:, None] + lines).ravel() % (2 * np.pi), 6))
    found = [np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]) for a in turns]
    found += [np.array([[np.cos(a), np.sin(a)], [np.sin(a), -np.cos(a)]]) for a in doubles]
    kept: list[NDArray] = []
    for r in found:
        part = np.linalg.solve(basis, r @ basis)
        if np.all(np.abs(part - np.round(part)) < _METRIC) and not any(np.allclose(r, k, atol=1e-3) for k in kept):
            kept.append(r)
    return kept


def _shown(r: NDArray, intensity: NDArray, geometry: Geometry, limit: float) -> bool | None:
    """Whether a pattern has an operation; None where its tilts cannot tell."""
    g = geometry.g[:, :2]
    beams = _places(g, g @ r.T, _unit(geometry))
    step = float(np.ptp(geometry.kt, axis=0).max(initial=0.0)) or 1.0
    tilts = _places(geometry.kt, geometry.kt @ r.T, _METRIC * step)
    has = tilts >= 0
    if has.sum() < min(_PARTNERS, len(tilts)):
        return None
    here, there = intensity[has][:, beams >= 0], intensity[tilts[has]][:, beams[beams >= 0]]
    return bool(np.abs(here - there).sum() <= limit * (here.sum() + there.sum()) / 2)


def _subgroups(operations: list[NDArray]) -> list[frozenset[int]]:
    """All groups among the operations: one or two of them generate each."""
    table = np.array(
        [[int(np.argmin([np.abs(a @ b - c).max() for c in operations])) for b in operations] for a in operations]
    )
    found: dict[frozenset[int], None] = {}
    for pair in product(range(len(operations)), repeat=2):
        group = set(pair)
        while True:
            more = group | {int(table[a, b]) for a in group for b in group}
            if more == group:
                break
            group = more
        found[frozenset(group)] = None
    return list(found)


def _translations(group: list[NDArray], geometry: Geometry) -> list[list[Float[np.ndarray, " 2"]]]:
    """The translations (A) that can go with the operations of a group whose rotations are about the origin."""
    basis, dual = bases(geometry)

    def lattice(vector: NDArray) -> bool:
        part = basis.T @ vector
        return bool(np.all(np.abs(part - np.round(part)) < 1e-3))

    mirrors = [k for k, r in enumerate(group) if np.linalg.det(r) < 0]
    zero = [np.zeros(2) for _ in group]
    if not mirrors:
        return [zero]
    first, found = group[mirrors[0]], [zero]
    halves = [dual @ np.array(f) / 2 for f in ((1, 0), (0, 1), (1, 1))]
    for half in halves:
        shifts = [r @ first @ half if np.linalg.det(r) < 0 else np.zeros(2) for r in group]
        closes = all(lattice(group[k] @ shifts[k] + shifts[k]) for k in mirrors)
        # Another origin at which the rotations stay as they are
        moved = [
            (first - np.eye(2)) @ d for d in halves if all(lattice(r @ d - d) for r in group if np.linalg.det(r) > 0)
        ]
        known = any(lattice(half - other[mirrors[0]] - d) for other in found for d in [np.zeros(2), *moved])
        if closes and not known:
            found.append(shifts)
    return found


def _tie(group: list[NDArray], shifts: list[NDArray], geometry: Geometry) -> Tie:
    index = geometry.index
    d = len(geometry.dhkl)
    g = np.zeros((d, 2))
    g[index] = (geometry.g[:, None] - geometry.g[None])[..., :2]
    moved = [_places(g, g @ r.T, _unit(geometry)) for r in group]
    phase = [np.cos(2 * np.pi * (g @ t)) for t in shifts]
    middle = d // 2
    orbit = np.full(middle, -1)
    real, imaginary = np.zeros(middle, np.int64), np.zeros(middle, np.int64)
    number = 0
    for start in range(middle):
        if orbit[start] >= 0:
            continue
        signs: dict[int, set[tuple[int, int]]] = {}
        for to, s in zip(moved, phase, strict=True):
            place, sign = int(to[middle + 1 + start]), int(np.sign(s[middle + 1 + start]))
            if place < 0:
                continue
            above = place > middle
            at = place - middle - 1 if above else middle - 1 - place
            signs.setdefault(at, set()).add((sign, sign if above else -sign))
        has_real = all(len({pair[0] for pair in pairs}) == 1 for pairs in signs.values())
        has_imaginary = all(len({pair[1] for pair in pairs}) == 1 for pairs in signs.values())
        for at, pairs in signs.items():
            orbit[at] = number
            one = next(iter(pairs))
            real[at], imaginary[at] = one[0] * has_real, one[1] * has_imaginary
        number += 1
    mirrors = [k for k, r in enumerate(group) if np.linalg.det(r) < 0]
    name = f"p{len(group) - len(mirrors)}"
    if mirrors:
        name += "g" if any(np.abs(shifts[k]).max() > _ZERO for k in mirrors) else "m"
    # A direction that all operations keep is one along which the origin can go
    kept = np.linalg.norm(sum(group) / len(group), 2) > 0.5
    return Tie(name, orbit, real, imaginary, not kept)
