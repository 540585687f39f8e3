"""Templates counted on the patterns of known crystals: those that are stored, best first.

Every choice of p of the first lines of a pattern is a template that fits it. A greedy multiple cover takes the template
that adds most, again and again, so a shorter list is a prefix of a longer one. Nothing is random.
"""

from __future__ import annotations

import heapq
import io
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Integer
from numpy.typing import NDArray

from mlindex.crystal.lattice import BRAVAIS, allowed
from mlindex.learn import checkpoint
from mlindex.powder.templates import design

COUNTS = {"oP": 1500, "oS": 1500, "oI": 1500, "oF": 1500, "mP": 2000, "mC": 2000, "aP": 2000}
FIRST = {"o": 12, "m": 12, "a": 11}  # lines of each pattern, by crystal family
_WORST_AMPLIFICATION = 12.0  # of the errors of the lines, in the solved parameters
_LARGEST_INDEX = 9
_LESS = 0.7  # what a pattern counts for after every template that fits it, of what it counted before
_SHOWN = (100, 500)  # templates, the first of all, for which the share of solved patterns is told
# hkl' = hkl P to the C-centred setting, from A, from B, and from I
_AXES = np.array(
    [
        np.eye(3),
        [[0, 0, -1], [0, 1, 0], [1, 0, 0]],
        [[1, 0, 0], [0, 0, 1], [0, -1, 0]],
        [[1, 0, 0], [0, 1, 0], [1, 0, -1]],
    ],
    np.int64,
)


def in_standard_axes(hkl: Integer[np.ndarray, "n 3"], bravais: str) -> Int[np.ndarray, "n 3"] | None:
    """The indices in axes in which all of them obey the centring of the lattice; None where there are none such."""
    centring = BRAVAIS[bravais].centring
    for p in _AXES if centring == "C" else _AXES[:1]:
        turned = np.asarray(hkl, np.int64) @ p
        if allowed(turned, centring).all() and not (bravais == "mC" and (p[1] != [0, 1, 0]).any()):
            return turned
    return None


def _invariants(hkl: Integer[np.ndarray, "n p 3"], system: str, centring: str) -> Int[np.ndarray, "n m"]:
    """Numbers that do not change with the choice of basis, so that equivalent templates are counted as one.

    Triclinic: all 3 x 3 minors up to sign. Monoclinic: |k| and the 2 x 2 minors of (h, l). Orthorhombic: |hkl| with
    the axes sorted.
    """
    p = hkl.shape[1]
    if system == "triclinic":
        triples = np.array(list(itertools.combinations(range(p), 3)))
        return np.abs(np.rint(np.linalg.det(hkl[:, triples].astype(float)))).astype(np.int64)
    if system == "monoclinic":
        pairs = np.array(list(itertools.combinations(range(p), 2)))
        net = hkl[:, pairs][..., [0, 2]]
        minors = np.abs(net[..., 0, 0] * net[..., 1, 1] - net[..., 0, 1] * net[..., 1, 0])
        return np.concatenate([np.abs(hkl[..., 1]), minors], 1)
    columns = np.abs(hkl)
    weight = columns * (17 ** np.arange(p))[None, :, None]
    order = np.argsort(weight.sum(1), axis=1, kind="stable")
    if centring == "C":  # c is the unique axis, only a and b can change places
        order = np.concatenate([np.argsort(weight.sum(1)[:, :2], axis=1, kind="stable"), np.full((len(hkl), 1), 2)], 1)
    return np.take_along_axis(columns, order[:, None, :], 2).reshape(len(hkl), -1)


def _fitting(
    pattern: Integer[np.ndarray, "_ 3"], bravais: str, first: int, largest_index: int
) -> tuple[list[bytes], Integer[np.ndarray, "s p 3"]]:
    """The templates among the first lines of a pattern that can be solved well, each with a key that its equivalents
    share."""
    system, p = BRAVAIS[bravais].system, BRAVAIS[bravais].n_free
    lines = np.asarray(pattern)[:first]
    subsets = np.array(list(itertools.combinations(range(len(lines)), p)), np.int64).reshape(-1, p)
    hkl = lines[subsets]
    rows = design(hkl, system)
    good = (np.abs(np.linalg.det(rows)) > 0.5) & (np.abs(hkl).max((1, 2)) <= largest_index)
    hkl, rows = hkl[good], rows[good]
    hkl = hkl[np.abs(np.linalg.inv(rows)).sum(2).max(1) < _WORST_AMPLIFICATION]
    if not len(hkl):
        return [], hkl
    keys = _invariants(hkl, system, BRAVAIS[bravais].centring).astype(np.int16)
    return [key.tobytes() for key in keys], hkl


def build(
    patterns: Sequence[Integer[np.ndarray, "_ 3"]],
    bravais: str,
    count: int,
    first: int,
    largest_index: int = _LARGEST_INDEX,
) -> Int[np.ndarray, "t p 3"]:
    """Templates that occur in the hkl lists `patterns` of known crystals, at most `count`, best first.

    All p-subsets of the `first` lines of every pattern are counted up to a change of basis; a greedy multiple cover
    then takes the template that adds most, each pattern counting 0.7 times as much after every template that fits it.
    """
    fits: dict[bytes, set[int]] = {}
    example: dict[bytes, np.ndarray] = {}
    for number, pattern in enumerate(patterns):
        for key, indices in zip(*_fitting(pattern, bravais, first, largest_index), strict=True):
            fits.setdefault(key, set()).add(number)
            example.setdefault(key, indices)
    weight = np.ones(len(patterns))
    members = {key: np.array(sorted(found)) for key, found in fits.items()}
    heap = [(-float(len(found)), key) for key, found in members.items()]
    heapq.heapify(heap)
    taken: list[np.ndarray] = []
    while heap and len(taken) < count:
        _, key = heapq.heappop(heap)
        gain = float(weight[members[key]].sum())
        if heap and gain < -heap[0][0] - 1e-12:  # its gain has shrunk since it was pushed
            heapq.heappush(heap, (-gain, key))
            continue
        taken.append(example[key])
        weight[members[key]] *= _LESS
    return np.array(taken, np.int8).reshape(-1, BRAVAIS[bravais].n_free, 3)


def solved_share(
    templates: Integer[np.ndarray, "t p 3"], patterns: Sequence[Integer[np.ndarray, "_ 3"]], bravais: str
) -> float:
    """The share of patterns among whose first lines one of the templates is, so that their cell is among the solved
    ones; NaN without patterns."""
    lattice = BRAVAIS[bravais]
    known = {key.tobytes() for key in _invariants(templates, lattice.system, lattice.centring).astype(np.int16)}
    hits = [not known.isdisjoint(_fitting(p, bravais, FIRST[bravais[0]], _LARGEST_INDEX)[0]) for p in patterns]
    return float(np.mean(hits)) if hits else float("nan")


def train(
    patterns: Mapping[str, Sequence[NDArray]],
    unseen: Mapping[str, Sequence[NDArray]],
    *,
    progress: Callable[[str], None] | None = None,
) -> tuple[dict[str, NDArray], dict[str, Any]]:
    """The templates of every lattice with patterns, and their card.

    `patterns` and `unseen`, on which the templates are validated: by Bravais lattice the reflections (n, 3) of the
    lines of each crystal, ascending in q2, in any axes that `in_standard_axes` knows; others are left out.
    """
    arrays: dict[str, NDArray] = {}
    numbers: dict[str, int] = {}
    shares: dict[str, dict[str, float | int]] = {}
    for bravais, count in COUNTS.items():
        learnt, others = (
            [p for p in (in_standard_axes(hkl, bravais) for hkl in source.get(bravais, ())) if p is not None]
            for source in (patterns, unseen)
        )
        made = build(learnt, bravais, count, FIRST[bravais[0]])
        if not len(made):
            continue
        arrays[bravais], numbers[bravais] = made, len(learnt)
        if others:
            shown = [n for n in _SHOWN if n < len(made)] + [len(made)]
            shares[bravais] = {"patterns": len(others)}
            shares[bravais] |= {f"first {n}": round(solved_share(made[:n], others, bravais), 4) for n in shown}
        if progress is not None:
            progress(f"{bravais}: {len(made)} templates from {len(learnt)} patterns")
    card = {"set": "train", "first_lines": FIRST, "patterns": numbers, "validation": shares}
    return arrays, card


def save(path: Path, arrays: Mapping[str, NDArray], card: Mapping[str, Any]) -> None:
    """Write the archive that `templates` reads, in one move."""
    columns: dict[str, Any] = {"card": np.array(json.dumps(dict(card))), **arrays}
    content = io.BytesIO()
    np.savez_compressed(content, **columns)
    checkpoint.write(path, content.getvalue())
