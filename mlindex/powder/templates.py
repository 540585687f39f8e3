"""Which low-index reflections the first lines of a pattern are: templates from which a cell is solved directly.

A template of a lattice with p free parameters is p reflections (p, 3) with an invertible p x p system: p chosen
lines, in ascending order, are given these indices, and the metric follows by one matrix product. For one- and
two-parameter lattices all low-index templates are made here. For the others the useful ones are few among very many
and were counted on calculated patterns (`templates_train`); they are stored in the order in which a greedy multiple
cover took them, so a shorter list is a prefix of a longer one.
"""

from __future__ import annotations

import itertools
from functools import cache
from importlib import resources

import numpy as np
from jaxtyping import Float, Int, Integer

from mlindex.crystal.lattice import BRAVAIS, SYSTEMS
from mlindex.crystal.metric import products_from_hkl
from mlindex.crystal.reflections import reference_hkl

STORED = "powder_templates.npz"
_LOW_INDEX = {1: 12, 2: 34}  # reflections combined exhaustively, by number of free parameters


def design(hkl: Integer[np.ndarray, "... 3"], system: str) -> Float[np.ndarray, "... p"]:
    """The rows a of q2 = a . x for the free parameters x of a lattice system."""
    return products_from_hkl(np.asarray(hkl, np.float64)) @ SYSTEMS[system].embed


def _exhaustive(bravais: str, lowest: int | None) -> Int[np.ndarray, "t p 3"]:
    p = BRAVAIS[bravais].n_free
    low = reference_hkl(bravais, lowest or _LOW_INDEX[p])
    return np.array(list(itertools.permutations(low, p)))


@cache
def stored(bravais: str) -> Int[np.ndarray, "t p 3"]:
    """The stored templates of a lattice of three free parameters and more, best first."""
    with resources.as_file(resources.files("mlindex.models") / STORED) as path, np.load(path) as archive:
        return archive[bravais].astype(np.int64)


@cache
def solved_templates(bravais: str, count: int, lowest: int | None = None) -> Float[np.ndarray, "t p p"]:
    """Inverse systems, float32 (t, p, p): free parameters = inverse @ q2 of the p lines.

    For one- and two-parameter lattices all combinations of the `lowest` reflections (None: as many as a thorough search
    needs), for the others at most `count` templates.
    """
    lattice = BRAVAIS[bravais]
    hkl = _exhaustive(bravais, lowest) if lattice.n_free in _LOW_INDEX else stored(bravais)[:count]
    rows = design(hkl, lattice.system)
    return np.linalg.inv(rows[np.abs(np.linalg.det(rows)) > 0.5]).astype(np.float32)
