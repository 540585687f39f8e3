"""Colours of crystal directions (inverse pole figures) by orix, the field's library, and the keys to them.

orix colours the fundamental sector of the eleven Laue classes as EDAX TSL does: its axes are those with x along a and z
along c*, and of a monoclinic crystal z is the unique axis. Directions are turned into these axes here. orix is imported
when something is coloured. Source: Nolze & Hielscher, J. Appl. Cryst. 49 (2016) 1786.
"""

from __future__ import annotations

from functools import cache
from itertools import permutations, product
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from mlindex.crystal.strain import direct_matrix_from_cell
from mlindex.formats.ctf import Phase
from mlindex.laue.maps.phases import reciprocal_from_direct, rotations_of
from mlindex.records import InputError

_PIXELS = 240  # of a key, across
_INDEX = 6  # the greatest index of a corner's label


def check() -> None:
    """Raise `InputError` where orix is missing."""
    try:
        import orix  # noqa: F401
    except ImportError:
        raise InputError(
            "maps need orix, which is not installed; install it with: pip install 'mlindex-hpc[report]'"
        ) from None


@cache
def _symmetry(laue_group: str) -> Any:
    """The Laue class of this name as orix has it."""
    from orix.quaternion import symmetry

    return next(getattr(symmetry, name) for name in _POINT_GROUPS[laue_group] if hasattr(symmetry, name))


_POINT_GROUPS = {  # in orix, by Schoenflies symbol
    "-1": ("Ci",),
    "2/m": ("C2h",),
    "mmm": ("D2h",),
    "4/m": ("C4h",),
    "4/mmm": ("D4h",),
    "-3": ("S6",),
    "-3m": ("D3d",),
    "6/m": ("C6h",),
    "6/mmm": ("D6h",),
    "m-3": ("Th",),
    "m-3m": ("Oh",),
}


def _frames() -> list[NDArray[np.float64]]:
    """Proper rotations to try, the identity first: those that permute the axes, and these after a turn about z."""
    signed = []
    for order in permutations(range(3)):
        for signs in product((1.0, -1.0), repeat=3):
            matrix = np.eye(3)[list(order)] * np.array(signs)[:, None]
            if np.linalg.det(matrix) > 0:
                signed.append(matrix)
    signed.sort(key=lambda m: (-np.trace(m), -m[2, 1]))  # then y to z, as for monoclinic crystals
    sine, cosine = 0.5, np.sqrt(0.75)
    turn = np.array([[cosine, -sine, 0.0], [sine, cosine, 0.0], [0.0, 0.0, 1.0]])
    return [*signed, *(m @ turn for m in signed)]


def _same(first: NDArray, second: NDArray) -> bool:
    """Whether two groups of rotations have the same members."""
    distance = np.abs(first[:, None] - second[None]).max((2, 3))
    return len(first) == len(second) and bool((distance.min(1) < 5e-3).all())


def _about_its_axes(rotations: NDArray[np.float64]) -> NDArray[np.float64]:
    """The rotation to axes with z along the axis of the highest order, and x along a two-fold one if there is any."""
    turns = [(np.trace(r), np.linalg.svd(r - np.eye(3))[2][2]) for r in rotations if np.trace(r) < 2.9]
    main = max(turns, key=lambda one: one[0])[1]
    flat = [axis for trace, axis in turns if trace < -0.9 and abs(axis @ main) < 0.1]
    x = flat[0] if flat else np.cross(main, np.eye(3)[int(np.argmin(np.abs(main)))])
    x = x / np.linalg.norm(x)
    return np.stack([x, np.cross(main, x), main])


class _Frame(NamedTuple):
    to_key: NDArray[np.float64]  # from reciprocal crystal axes to those of the key
    symmetry: Any


@cache
def _frame(name: str, cell: tuple[float, ...], laue_group: str, number: int) -> _Frame:
    phase = Phase(name, np.array(cell), laue_group, number)
    symmetry = _symmetry(laue_group)
    group = symmetry.laue.proper_subgroup.to_matrix()
    rotations = rotations_of(phase)
    direct = reciprocal_from_direct(phase.cell).T
    for turn in _frames():
        to_key = turn @ direct
        if _same(to_key @ rotations @ to_key.T, group):
            return _Frame(to_key, symmetry)
    base = _about_its_axes(rotations)
    to_key = next((t @ base for t in _frames() if _same(t @ base @ rotations @ base.T @ t.T, group)), direct)
    return _Frame(to_key, symmetry)


def _frame_of(phase: Phase) -> _Frame:
    return _frame(phase.name, tuple(np.asarray(phase.cell, float).tolist()), phase.laue_group, phase.number)


def _colour(vectors: NDArray[np.float64], symmetry: Any) -> NDArray[np.float64]:
    from orix.plot import DirectionColorKeyTSL
    from orix.vector import Vector3d

    found = DirectionColorKeyTSL(symmetry).direction2color(Vector3d(vectors))
    return np.clip(np.asarray(found, np.float64).reshape(-1, 3), 0, 1)


def ipf_colours(direction: Float[np.ndarray, "n 3"], phase: Phase) -> Float[np.ndarray, "n 3"]:
    """The colours (red, green, blue, 0 to 1) of directions given in Cartesian crystal axes (x along a*, b* in xy)."""
    if not len(direction):
        return np.empty((0, 3))
    frame = _frame_of(phase)
    return _colour(np.asarray(direction, np.float64) @ frame.to_key.T, frame.symmetry)


class Key(NamedTuple):
    """The colours of a fundamental sector in stereographic projection: `image` (ny, nx, 4) over `extent` (left, right,
    bottom, top); `outline` (m, 2) of it; `corners`: ((x, y), "[100]") of those that have low indices."""

    image: NDArray[np.float64]
    extent: tuple[float, float, float, float]
    outline: NDArray[np.float64]
    corners: list[tuple[tuple[float, float], str]]


def _label(vector: NDArray[np.float64], phase: Phase, to_key: NDArray[np.float64]) -> str:
    """The direction [uvw] of low indices along a vector of the key; empty where there is none."""
    direct = reciprocal_from_direct(phase.cell) @ np.asarray(direct_matrix_from_cell(phase.cell), np.float64)
    indices = np.array([i for i in product(range(-_INDEX, _INDEX + 1), repeat=3) if any(i)])
    indices = indices[np.gcd.reduce(indices, axis=1) == 1]
    along = indices @ (to_key @ direct).T
    cosine = along @ vector / np.linalg.norm(along, axis=1)
    near = np.flatnonzero(cosine > np.cos(np.radians(0.3)))
    if not len(near):
        return ""
    best = indices[near[np.argmin(np.abs(indices[near]).sum(1))]]
    return "[" + "".join(f"{abs(i)}" if i >= 0 else f"{abs(i)}\u0305" for i in best) + "]"


def ipf_key(phase: Phase) -> Key:
    """The key to the colours of a phase."""
    from orix.vector import Vector3d

    frame = _frame_of(phase)
    sector = frame.symmetry.fundamental_sector
    axis = np.linspace(-1, 1, 2 * _PIXELS + 1)
    x, y = np.meshgrid(axis, axis)
    square = x**2 + y**2
    v = np.stack([2 * x, 2 * y, 1 - square], -1) / (1 + square)[..., None]
    # a little above the equator, so that what lies on the edge of the projection is inside
    inside = (square <= 1) & np.asarray(Vector3d(v) <= sector).reshape(square.shape)
    rows, columns = (np.flatnonzero(inside.any(k)) for k in (1, 0))
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    image = np.zeros((*square.shape, 4))
    image[inside] = np.concatenate([_colour(v[inside], frame.symmetry), np.ones((int(inside.sum()), 1))], 1)
    half = (axis[1] - axis[0]) / 2
    extent = (axis[columns[0]] - half, axis[columns[-1]] + half, axis[rows[0]] - half, axis[rows[-1]] + half)

    def flat(vectors: Any) -> NDArray[np.float64]:
        data = np.asarray(vectors.unit.data, np.float64).reshape(-1, 3)
        return data[:, :2] / (1 + np.maximum(data[:, 2:], 0))

    outline = flat(sector.edges)
    ends = np.asarray(sector.vertices.unit.data, np.float64).reshape(-1, 3)
    marked = np.concatenate([ends, np.array([[0.0, 0.0, 1.0]])])  # and the pole, where it is no corner
    _, first = np.unique(np.round(marked, 6), axis=0, return_index=True)
    marked = marked[np.sort(first)]
    places = marked[:, :2] / (1 + np.maximum(marked[:, 2:], 0))
    named = [(place, _label(vector, phase, frame.to_key)) for place, vector in zip(places, marked, strict=True)]
    corners = [((float(place[0]), float(place[1])), label) for place, label in named if label]
    return Key(image[box], extent, outline, corners)
