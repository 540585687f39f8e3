"""Which low-index reflections the first lines of a pattern are: templates from which a cell is solved directly.

A template of a lattice with p free parameters is p reflections (p, 3) with an invertible p x p system: p chosen
lines, in ascending order, are given these indices, and the metric follows by one matrix product. For one- and
two-parameter lattices all low-index templates are made here. For the others the useful ones are few among very many
and were counted on calculated patterns (`build`); they are stored in the order in which a greedy multiple cover took
them, so a shorter list is a prefix of a longer one.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Sequence
from functools import cache
from importlib import resources

import numpy as np
from jaxtyping import Float, Int, Integer

from mlindex.crystal.lattice import BRAVAIS, SYSTEMS
from mlindex.crystal.metric import products_from_hkl
from mlindex.crystal.reflections import reference_hkl

STORED = "powder_templates.npz"
_LOW_INDEX = {1: 12, 2: 34}  # reflections combined exhaustively, by number of free parameters
_WORST_AMPLIFICATION = 12.0  # of the errors of the lines, in the solved parameters


def design(hkl: Integer[np.ndarray, "... 3"], system: str) -> Float[np.ndarray, "... p"]:
    """The rows a of q2 = a . x for the free parameters x of a lattice system."""
    return products_from_hkl(np.asarray(hkl, np.float64)) @ SYSTEMS[system].embed


def _exhaustive(bravais: str, lowest: int | None) -> Int[np.ndarray, "t p 3"]:
    p = BRAVAIS[bravais].n_free
    low = reference_hkl(bravais, lowest or _LOW_INDEX[p])
    return np.array(list(itertools.permutations(low, p)))


@cache
def _stored(bravais: str) -> Int[np.ndarray, "t p 3"]:
    with resources.as_file(resources.files("mlindex.models") / STORED) as path, np.load(path) as archive:
        return archive[bravais].astype(np.int64)


@cache
def solved_templates(bravais: str, count: int, lowest: int | None = None) -> Float[np.ndarray, "t p p"]:
    """Inverse systems, float32 (t, p, p): free parameters = inverse @ q2 of the p lines.

    For one- and two-parameter lattices all combinations of the `lowest` reflections (None: as many as a thorough search
    needs), for the others at most `count` templates.
    """
    lattice = BRAVAIS[bravais]
    hkl = _exhaustive(bravais, lowest) if lattice.n_free in _LOW_INDEX else _stored(bravais)[:count]
    rows = design(hkl, lattice.system)
    return np.linalg.inv(rows[np.abs(np.linalg.det(rows)) > 0.5]).astype(np.float32)


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


def build(
    patterns: Sequence[Integer[np.ndarray, "_ 3"]], bravais: str, count: int, first: int, largest_index: int = 9
) -> Int[np.ndarray, "t p 3"]:
    """Templates that occur in the hkl lists `patterns` of known crystals, at most `count`, best first.

    All p-subsets of the `first` lines of every pattern are counted up to a change of basis; a greedy multiple cover
    then takes the template that adds most, each pattern counting 0.7 times as much after every template that fits it.
    """
    system, p = BRAVAIS[bravais].system, BRAVAIS[bravais].n_free
    fits: dict[bytes, set[int]] = {}
    example: dict[bytes, np.ndarray] = {}
    for number, pattern in enumerate(patterns):
        lines = np.asarray(pattern)[:first]
        subsets = np.array(list(itertools.combinations(range(len(lines)), p)), np.int64).reshape(-1, p)
        hkl = lines[subsets]
        rows = design(hkl, system)
        good = (np.abs(np.linalg.det(rows)) > 0.5) & (np.abs(hkl).max((1, 2)) <= largest_index)
        hkl, rows = hkl[good], rows[good]
        hkl = hkl[np.abs(np.linalg.inv(rows)).sum(2).max(1) < _WORST_AMPLIFICATION]
        if not len(hkl):
            continue
        for key, indices in zip(_invariants(hkl, system, BRAVAIS[bravais].centring).astype(np.int16), hkl, strict=True):
            fits.setdefault(key.tobytes(), set()).add(number)
            example.setdefault(key.tobytes(), indices)
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
        weight[members[key]] *= 0.7
    return np.array(taken, np.int8)
