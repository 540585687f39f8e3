"""Grains over the frames of a scan: what is one crystal in neighbouring frames, its mean orientation, its spread.

Two grains of neighbouring frames are one where their misorientation, by symmetry, is below a limit and each is the
other's nearest in that frame. What hangs together in this way is one grain of the map. Frames that could not be read
are looked across.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from mlindex.crystal.rotation import misorientation, nearest_rotation, rotation_angle
from mlindex.laue.maps.scan import Scan

_CHUNK = 200_000  # misorientations computed at a time


class Pairs(NamedTuple):
    """Pairs of points (indices `first`, `second`), the `edge` of the scan that each crosses, and the `angle` (degrees).

    A point is one grain of one frame. `adjacent`: nothing lies between the two frames.
    """

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    edge: NDArray[np.int64]
    adjacent: NDArray[np.bool_]
    angle: NDArray[np.float64]


def _edges(known: Bool[np.ndarray, "rows columns"]) -> NDArray[np.int64]:
    """(k, 2) numbers of known frames that follow each other in a row or a column."""
    number = np.arange(known.size).reshape(known.shape)
    found = [np.empty((0, 2), np.int64)]
    for numbers, mask in ((number, known), (number.T, known.T)):
        line = np.broadcast_to(np.arange(mask.shape[0])[:, None], mask.shape)[mask]
        flat = numbers[mask]
        same = line[1:] == line[:-1]
        found.append(np.stack([flat[:-1][same], flat[1:][same]], 1))
    return np.concatenate(found)


def neighbouring_pairs(
    frame: Int[np.ndarray, " n"],
    phase: Int[np.ndarray, " n"],
    u: Float[np.ndarray, "n 3 3"],
    rotations: Sequence[Float[np.ndarray, "_ 3 3"]],
    scan: Scan,
    known: Bool[np.ndarray, "rows columns"],
) -> Pairs:
    """Every pair of points of one phase in neighbouring frames, and the angle between them.

    `frame` (ascending) is the number of each point's frame, `rotations` are those of each phase, `known` the frames
    that were read.
    """
    count = np.bincount(frame, minlength=scan.size)
    start = np.cumsum(count) - count
    edges = _edges(known)
    product = count[edges[:, 0]] * count[edges[:, 1]]
    edge = np.repeat(np.arange(len(edges)), product)
    within = np.arange(len(edge)) - np.repeat(np.cumsum(product) - product, product)
    a, b = edges[edge].T
    width = np.maximum(count[b], 1)
    first, second = start[a] + within // width, start[b] + within % width
    alike = phase[first] == phase[second]
    first, second, edge = first[alike], second[alike], edge[alike]
    gap = np.abs(edges[edge, 1] - edges[edge, 0])
    angle = np.zeros(len(first))
    for which, symmetry in enumerate(rotations):
        mine = np.flatnonzero(phase[first] == which)
        for at in range(0, len(mine), _CHUNK):
            part = mine[at : at + _CHUNK]
            angle[part] = misorientation(u[first[part]], u[second[part]], symmetry)
    # Frames in one row are a column apart, those in one column a row; with one column both are the same
    adjacent = (gap == 1) | (gap == scan.columns)
    return Pairs(first, second, edge, adjacent, angle)


def _nearest(point: NDArray[np.int64], pairs: Pairs) -> NDArray[np.bool_]:
    """Whether each pair is the closest of its edge for its `point` (the first or the second)."""
    _, key = np.unique(np.stack([pairs.edge, point], 1), axis=0, return_inverse=True)
    key = key.reshape(-1)
    least = np.full(int(key.max(initial=-1)) + 1, np.inf)
    np.minimum.at(least, key, pairs.angle)
    return pairs.angle <= least[key]


def linked(
    frame: Int[np.ndarray, " n"], pairs: Pairs, score: Float[np.ndarray, " n"], limit: float
) -> Int[np.ndarray, " n"]:
    """The number of the grain, from 1, that each point belongs to; the grain in most frames first, then the likeliest.

    `limit` in degrees.
    """
    n = len(frame)
    if not n:
        return np.empty(0, np.int64)
    keep = (pairs.angle < limit) & _nearest(pairs.first, pairs) & _nearest(pairs.second, pairs)
    graph = coo_array((np.ones(int(keep.sum())), (pairs.first[keep], pairs.second[keep])), shape=(n, n))
    total, label = connected_components(graph, directed=False)
    frames = np.unique(np.stack([label, frame], 1), axis=0)[:, 0]
    size, weight = np.bincount(frames, minlength=total), np.bincount(label, score, total)
    order = np.lexsort((-weight, -size))
    number = np.empty(total, np.int64)
    number[order] = np.arange(1, total + 1)
    return number[label]


class Mean(NamedTuple):
    """Mean orientations (k, 3, 3) of k grains; of each point the `turn` R (n, 3, 3), a symmetry of the crystal, with
    u R nearest to the mean of its grain, and the `angle` (degrees) between these two."""

    u: NDArray[np.float64]
    turn: NDArray[np.float64]
    angle: NDArray[np.float64]


def means(
    grain: Int[np.ndarray, " n"],
    phase: Int[np.ndarray, " n"],
    u: Float[np.ndarray, "n 3 3"],
    score: Float[np.ndarray, " n"],
    rotations: Sequence[Float[np.ndarray, "_ 3 3"]],
) -> Mean:
    """The mean orientation of each grain (numbers from 1), in the setting of its likeliest point."""
    total = int(grain.max(initial=0))
    best = np.full(total, -1)
    order = np.argsort(score, kind="stable")
    best[grain[order] - 1] = order  # of several assignments the last holds
    mean = u[best]
    turn = np.broadcast_to(np.eye(3), (len(u), 3, 3)).copy()
    for _ in range(2):
        for which, symmetry in enumerate(rotations):
            mine = np.flatnonzero(phase == which)
            difference = np.swapaxes(mean[grain[mine] - 1], -1, -2) @ u[mine]
            turn[mine] = symmetry[np.argmax(np.einsum("nij,mji->nm", difference, symmetry), -1)]
        total_of = np.zeros((total, 3, 3))
        np.add.at(total_of, grain - 1, u @ turn)
        mean = nearest_rotation(total_of) if total else mean
    angle = rotation_angle(np.swapaxes(mean[grain - 1], -1, -2) @ u @ turn)
    return Mean(mean, turn, np.asarray(angle, np.float64))


def average_misorientation(grain: Int[np.ndarray, " n"], pairs: Pairs) -> Float[np.ndarray, " n"]:
    """The kernel average misorientation (degrees) of each point: the mean over the same grain in the frames beside,
    above and below; nan where it is in none of these."""
    inside = pairs.adjacent & (grain[pairs.first] == grain[pairs.second])
    total, count = np.zeros(len(grain)), np.zeros(len(grain))
    for point in (pairs.first[inside], pairs.second[inside]):
        np.add.at(total, point, pairs.angle[inside])
        np.add.at(count, point, 1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
