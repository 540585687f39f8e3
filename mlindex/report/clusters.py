"""Clusters of like lattices among many cells, whatever their settings and the Bravais lattices they were given.

Each lattice is a point: the logarithms of the lengths of its seven Voronoi vectors, sorted. No change of basis moves
the point, and its largest coordinate difference to another is at most the lattices' `lattice_distance`, so a k-d tree
over the points finds every lattice within a tolerance. A cluster is what lies within the tolerance of its centre, the
most crowded place among what is left (bins for a first guess, then a shift of the mean); so clusters cannot grow
along a chain of lattices that differ by little each, as single linkage would let them. Whether a lattice belongs to
the centre is decided by `lattice_distance` itself.

Sources: Conway & Sloane, Proc. R. Soc. A 436 (1992) 55 (vonorms); Comaniciu & Meer, IEEE Trans. PAMI 24 (2002) 603
(mean shift).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from scipy.spatial import KDTree

from mlindex.crystal.lattice import BRAVAIS
from mlindex.crystal.metric import direct_metric_from_cell, matrix_from_metric
from mlindex.crystal.reduction import lattice_distance, primitive_metric, vonorms

TOLERANCE = 0.01  # relative, on lengths; that of crystal.reduction.same_lattice
_SHIFTS = 8  # of the mean, at most
_CHUNK = 1024  # lattices compared at a time; each takes 30 kB
_SETTING = 3  # tolerances that a cell may be from the usual one and count as given in the same setting
_NORMAL = 1.4826  # standard deviations a median absolute deviation, of a normal distribution


@dataclass(frozen=True)
class Cluster:
    """Like lattices: `members` are rows of the cells, `bravais` counts their Bravais lattices, the most frequent
    first.

    `cell` and `spread` (6,) are the median and 1.4826 median absolute deviations (angstrom, degrees) of the `alike`
    members: those of the most frequent Bravais lattice in its most frequent setting. `volume` (angstrom^3) is theirs.
    """

    members: NDArray[np.int64]
    bravais: tuple[tuple[str, int], ...]
    alike: NDArray[np.int64]
    cell: NDArray[np.float64]
    spread: NDArray[np.float64]
    volume: float

    def __len__(self) -> int:
        return len(self.members)


def primitive_metrics(cells: Float[np.ndarray, "n 6"], bravais: Sequence[str]) -> Float[np.ndarray, "n 6"]:
    """Reciprocal metrics (1/angstrom^2) of primitive bases of conventional cells; NaN where there is no lattice."""
    names = np.asarray(bravais, object)
    metrics = np.full((len(cells), 6), np.nan)
    for name in set(names.tolist()) & set(BRAVAIS):
        rows = np.flatnonzero(names == name)
        rows = rows[np.isfinite(cells[rows]).all(1) & (cells[rows, :3] > 0).all(1)]
        rows = rows[((cells[rows, 3:] > 0) & (cells[rows, 3:] < 180)).all(1)]
        direct = matrix_from_metric(direct_metric_from_cell(cells[rows]))
        rows = rows[np.linalg.det(direct) > 1e-9 * np.prod(cells[rows, :3], axis=1) ** 2]
        if rows.size:
            metrics[rows] = primitive_metric(cells[rows], BRAVAIS[name].centring)
    return metrics


def _near(metrics: NDArray, centre: int, rows: NDArray[np.int64], tolerance: float) -> Bool[np.ndarray, " m"]:
    parts = [
        lattice_distance(metrics[centre], metrics[rows[at : at + _CHUNK]]) <= tolerance
        for at in range(0, len(rows), _CHUNK)
    ]
    return np.concatenate([np.empty(0, bool), *parts])


def _crowded(tree: KDTree, points: NDArray, left: NDArray[np.int64], found: NDArray, tolerance: float) -> int:
    """The point in the middle of the nearest crowd of free points, starting from the free points `left`."""
    centre = points[left[0]]
    if left.size > 1:
        centre = np.median(points[left], axis=0)
    elif (found[tree.query_ball_point(centre, tolerance, p=np.inf)] < 0).sum() <= 2:
        return int(left[0])  # the usual case among many samples: nothing to average
    near = left
    for _ in range(_SHIFTS):
        inside = np.array(tree.query_ball_point(centre, tolerance, p=np.inf), np.int64)
        inside = inside[found[inside] < 0]
        if not inside.size:
            break
        near = inside
        shifted = np.median(points[near], axis=0)
        moved, centre = np.abs(shifted - centre).max(), shifted
        if moved < tolerance / 50:
            break
    return int(near[np.abs(points[near] - centre).max(1).argmin()])


def labels_from_metrics(metrics: Float[np.ndarray, "n 6"], tolerance: float = TOLERANCE) -> Int[np.ndarray, " n"]:
    """The cluster of each primitive reciprocal metric, from 0 in the order in which they are found; -1 for NaN."""
    labels = np.full(len(metrics), -1, np.int64)
    valid = np.flatnonzero(np.isfinite(metrics).all(1))
    if not valid.size:
        return labels
    metrics = metrics[valid]
    points = 0.5 * np.log(np.sort(vonorms(metrics), axis=-1))
    tree = KDTree(points)
    found = np.full(len(points), -1, np.int64)
    # most lattices of a campaign of many samples have no neighbour at all: these are settled at once
    nearest = tree.query(points, k=[2], p=np.inf)[0][:, 0]
    lonely = nearest > 2 * tolerance
    found[lonely] = np.arange(lonely.sum())
    count = int(lonely.sum())
    bins, bin_of = np.unique(np.floor(points / tolerance).astype(np.int64), axis=0, return_inverse=True)
    order = np.argsort(bin_of, kind="stable")
    ends = np.cumsum(np.bincount(bin_of, minlength=len(bins)))
    for number in np.argsort(-np.bincount(bin_of[~lonely], minlength=len(bins)), kind="stable"):
        inside = order[ends[number - 1] if number else 0 : ends[number]]
        while (left := inside[found[inside] < 0]).size:
            middle = _crowded(tree, points, left, found, tolerance)
            around = np.array(tree.query_ball_point(points[middle], 1.01 * tolerance, p=np.inf), np.int64)
            around = np.sort(around[found[around] < 0])
            members = around[_near(metrics, middle, around, tolerance)] if around.size > 1 else around
            found[members] = count
            found[middle] = count
            count += 1
    labels[valid] = found
    return labels


def _alike(cells: NDArray, tolerance: float) -> Bool[np.ndarray, " n"]:
    """Which of the cells of one lattice are in its most frequent setting."""
    scale = np.array([_SETTING * tolerance] * 3 + [np.degrees(_SETTING * tolerance)] * 3)
    points = np.concatenate([np.log(cells[:, :3]), cells[:, 3:]], 1) / scale
    _, which, sizes = np.unique(np.rint(points), axis=0, return_inverse=True, return_counts=True)
    usual = np.median(points[which == sizes.argmax()], axis=0)
    return (np.abs(points - usual) <= 1).all(1)


def clusters_from_cells(
    cells: Float[np.ndarray, "n 6"], bravais: Sequence[str], tolerance: float = TOLERANCE
) -> list[Cluster]:
    """The clusters among conventional cells (angstrom, degrees) with their Bravais lattices, the largest first.

    A lattice that is like no other is a cluster of one. Cells that span no volume, and lattices of unknown name, are
    in none. `tolerance` is relative, on lengths.
    """
    labels = labels_from_metrics(primitive_metrics(cells, bravais), tolerance)
    order = np.argsort(labels, kind="stable")
    order = order[labels[order] >= 0]
    groups = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1) if order.size else []
    names = np.asarray(bravais, object)
    volumes = np.full(len(cells), np.nan)
    volumes[order] = np.sqrt(np.linalg.det(matrix_from_metric(direct_metric_from_cell(cells[order]))))
    found = []
    for members in groups:
        if len(members) == 1:  # without statistics: there may be a hundred thousand of these
            row = int(members[0])
            found.append(Cluster(members, ((names[row], 1),), members, cells[row], np.zeros(6), float(volumes[row])))
            continue
        ranked = sorted(Counter(names[members].tolist()).items(), key=lambda pair: (-pair[1], pair[0]))
        usual = members[names[members] == ranked[0][0]]
        alike = usual[_alike(cells[usual], tolerance)]
        cell = np.median(cells[alike], axis=0)
        spread = _NORMAL * np.median(np.abs(cells[alike] - cell), axis=0)
        found.append(Cluster(members, tuple(ranked), alike, cell, spread, float(np.median(volumes[alike]))))
    return sorted(found, key=lambda cluster: (-len(cluster), int(cluster.members[0])))
