"""The split of entries into train, validation and test by family of isotypes.

Isotypes are one structure with other atoms: a family lies on one side of the split. The families of a Bravais lattice
are dealt to the three sets in turn, the one with the most usable lists first and ties by a hash of the family's name,
so that the sets have nearly the same size even where a lattice has few families. The same rule deals the lists that
indexing is measured on, so weights that are trained on "train" have seen nothing of what is measured.
"""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
from numpy.typing import NDArray

SETS = ("train", "validation", "test")
FEWEST = 10  # lines of a usable list


def family_hash(text: str) -> int:
    """The first eight bytes of the SHA-256 of a text, as an integer."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def split(bravais: NDArray, family: NDArray, lines: NDArray[np.int64]) -> NDArray:
    """The set (n,) of each entry from its Bravais lattice, family and number of observable lines, each (n,).

    Only entries with at least ten lines are counted and dealt. Others go with their family; families without any such
    entry are in no list that is ever measured, and are "train".
    """
    sizes = Counter((str(b), str(f)) for b, f, n in zip(bravais, family, lines, strict=True) if n >= FEWEST)
    order = sorted(sizes, key=lambda key: (key[0], -sizes[key], family_hash(f"family {key[1]}")))
    turn: Counter[str] = Counter()
    dealt: dict[str, str] = {}
    for lattice, name in order:
        dealt[name] = SETS[turn[lattice] % 3]
        turn[lattice] += 1
    return np.array([dealt.get(str(name), "train") for name in family], dtype="U10")
