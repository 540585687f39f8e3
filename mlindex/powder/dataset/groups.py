"""Groups of entries by lattice system, Bravais lattice and pattern of reflection conditions.

Crystals of one Bravais lattice in the standard setting belong together when the same lines are absent, whatever the
space group (the extinction symbol of `mlindex.powder.dataset.lists`). A pattern with fewer than `FEWEST` training
entries joins the common pattern from which it differs in the fewest of the first sixty lines of a typical cell; where
no pattern has that many entries there is one group.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlindex.crystal.lattice import BRAVAIS
from mlindex.powder.dataset.entries import Entries
from mlindex.powder.dataset.lists import pattern_mask

FEWEST = 40  # training entries of a group of its own
_COMPARED = 60  # lines


@dataclass(frozen=True, eq=False)
class Groups:
    """`names[bravais]`: the extinction symbol that each group is named for; `number` (n,): the group of each entry in
    its Bravais lattice, int32."""

    names: dict[str, tuple[str, ...]]
    number: NDArray[np.int32]


def merged_patterns(bravais: str, counts: dict[str, int], fewest: int = FEWEST) -> dict[str, str]:
    """The extinction symbol of the group that each symbol in `counts` (its entries) joins."""
    common = sorted((s for s, n in counts.items() if n >= fewest), key=lambda s: (-counts[s], s))
    if not common:
        common = sorted(counts, key=lambda s: (int(pattern_mask(bravais, s).sum()), -counts[s], s))[:1]
    masks = np.array([pattern_mask(bravais, s)[:_COMPARED] for s in common])
    joined = {}
    for symbol in counts:
        differs = (masks != pattern_mask(bravais, symbol)[:_COMPARED]).sum(1)
        joined[symbol] = symbol if symbol in common else common[int(np.argmin(differs))]
    return joined


def groups(entries: Entries, fewest: int = FEWEST) -> Groups:
    """The groups of all entries, decided on those of the set "train" (of all, where there is none)."""
    number = np.zeros(len(entries), np.int32)
    names: dict[str, tuple[str, ...]] = {}
    for bravais in BRAVAIS:
        here = np.flatnonzero(entries.bravais == bravais)
        if not len(here):
            continue
        train = here[entries.set[here] == "train"]
        trained = Counter(entries.extinction[train if len(train) else here].tolist())
        counts = {str(s): trained[str(s)] for s in np.unique(entries.extinction[here])}
        joined = merged_patterns(bravais, counts, fewest)
        order = sorted(set(joined.values()), key=lambda s: (int(pattern_mask(bravais, s).sum()), s))
        names[bravais] = tuple(order)
        place = {symbol: order.index(name) for symbol, name in joined.items()}
        number[here] = [place[str(s)] for s in entries.extinction[here]]
    return Groups(names, number)
