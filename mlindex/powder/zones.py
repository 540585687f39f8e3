"""Which lines to combine when the first ones all belong to one row or one zone of the reciprocal lattice.

A long axis puts its own orders (00l), a short one a whole zone (hk0), in front of every line that tells about the other
directions. Lines that a row or a zone already explains add nothing to a solved cell; without them the combinations
reach the lines that do.
"""

from __future__ import annotations

import itertools

import numpy as np
from jaxtyping import Bool, Int
from numpy.typing import NDArray

from mlindex.powder.lines import Lines

_ORDERS = np.arange(1, 13)
_BASES = 7  # first lines from which a zone is built
_MOST_INDEX = 9
_DOMINANT = 0.55  # of the first lines in one zone
_ORDERS_SEEN = 3  # multiples among the lines to combine, from which on a row dominates


def row_members(lines: Lines, tolerance: float) -> Bool[np.ndarray, " n"]:
    """True for lines whose q is a simple rational multiple of that of an earlier line within `tolerance` (degrees)."""
    ratio = np.unique((_ORDERS[:, None] / _ORDERS[:2]).ravel())
    ratio = ratio[ratio > 1]
    known = np.zeros(len(lines), bool)
    for i in range(len(lines) - 1):
        if known[i]:
            continue
        multiples = lines.q[i] * ratio
        distance = np.abs(lines.q[i + 1 :, None] - multiples).min(1)
        known[i + 1 :] |= distance < tolerance * lines.w[i + 1 :]
    return known


def _zone_lines(a: float, b: float, ab: float, q2_max: float) -> NDArray[np.float64]:
    """The q2 of the zone with metric (a, b, ab): h^2 a + k^2 b + h k ab."""
    h, k = np.meshgrid(np.arange(0, _MOST_INDEX + 1), np.arange(-_MOST_INDEX, _MOST_INDEX + 1), indexing="ij")
    q2 = np.unique((h * h * a + k * k * b + h * k * ab).ravel())
    return q2[(q2 > 0) & (q2 <= q2_max)]


def dominant_zone(lines: Lines, tolerance: float) -> tuple[Int[np.ndarray, " z"], Bool[np.ndarray, " n"]]:
    """The lines that span the zone explaining most of the pattern, and which lines it explains.

    Rectangular zones of two lines and oblique ones of three are tried; the score is how unlikely it is to explain so
    many lines by chance. Both are empty where no zone holds more than half of the first sixteen lines.
    """
    q2, unit = lines.q2, 2 * lines.q * lines.w
    none = np.empty(0, np.int64), np.zeros(len(lines), bool)
    first = min(_BASES, len(lines))
    best_score, best = 0.0, none
    for size in (2, 3):
        for base in itertools.combinations(range(first), size):
            a, b = q2[base[0]], q2[base[1]]
            ab = q2[base[2]] - a - b if size == 3 else 0.0
            area2 = a * b - ab * ab / 4
            if area2 <= 1e-3 * a * b:
                continue
            predicted = _zone_lines(a, b, ab, q2[-1] * 1.02)
            if len(predicted) < 2:
                continue
            distance = np.abs(q2[:, None] - predicted).min(1) / unit
            explained = distance < tolerance
            expected = 2 * tolerance * unit * np.pi / (4 * np.sqrt(area2)) * (1 if size == 3 else 0.5)
            score = -np.log(-np.expm1(-expected[explained])).sum() - 2.0 * size
            if explained[:16].mean() > _DOMINANT and score > best_score:
                best_score, best = score, (np.array(base), explained)
    return best


def selections(lines: Lines, count: int, tolerance: float) -> list[Int[np.ndarray, " c"]]:
    """Choices of at most `count` lines to combine in place of the first ones; none where nothing dominates."""
    chosen = []
    known = row_members(lines, tolerance)
    if known[:count].sum() >= _ORDERS_SEEN:
        chosen.append(np.flatnonzero(~known)[:count])
    base, explained = dominant_zone(lines, tolerance)
    if len(base):
        rest = np.setdiff1d(np.flatnonzero(~explained), base)
        chosen.append(np.sort(np.concatenate([base, rest]))[:count])
    return [c for c in chosen if len(c) >= 4]
