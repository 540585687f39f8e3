"""What the frames of a scan give each other: the grains of a solved neighbour are orientations to try first.

A worker remembers the frames that it solved last. The frame before is a neighbour, and so is the one a row above, if
this worker had it. Only what is tried first depends on this: a guess becomes a grain on the evidence of its own frame.
"""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlindex.crystal.rotation import misorientation
from mlindex.crystal.strain import u_from_ub

Guess = tuple[int, NDArray[np.float64]]  # number of the material, ub (1/angstrom)
ALIKE = 0.1  # degrees within which two guesses would be refined to the same


class Place(NamedTuple):
    """The `number` of a frame in a `series`: a file of many frames, or files that differ by the number they end in."""

    series: str
    number: int


def place_of(source: str) -> Place | None:
    """The place that the name of a frame tells: FILE::dataset#3, or scan_0003.tif; None for a name without a number."""
    stack, hash_, index = source.rpartition("#")
    if hash_ and index.isdigit():
        return Place(stack, int(index))
    folder, name = os.path.split(source)
    stem, suffix = os.path.splitext(name)
    match = re.fullmatch(r"(.*?)(\d+)", stem)
    return None if match is None else Place(os.path.join(folder, f"{match[1]}{suffix}"), int(match[2]))


class Neighbours:
    """The grains of the last frames.

    `columns` is the length of a row of the scan; None where there is no scan: then only the frame before in the same
    file of many frames is a neighbour. `rotations` (m, 3, 3) are those of each material.
    """

    def __init__(self, columns: int | None, rotations: Sequence[NDArray[np.float64]]) -> None:
        self._columns, self._rotations = columns, rotations
        self._last: deque[tuple[Place | None, list[Guess]]] = deque(maxlen=(columns or 0) + 1)

    def _near(self, place: Place | None) -> list[list[Guess]]:
        """The grains of the neighbours, the nearest first."""
        if not self._last:
            return []
        before, grains = self._last[-1]
        if self._columns is None:
            follows = place is not None and before == place._replace(number=place.number - 1)
            return [grains] if follows and place is not None and "::" in place.series else []
        found = [grains]
        if place is not None and before is not None:
            above = place._replace(number=place.number - self._columns)
            found += [g for at, g in self._last if at == above]
        elif len(self._last) > self._columns:
            found.append(self._last[-self._columns][1])
        return found

    def guesses(self, source: str) -> list[Guess]:
        """The orientations to try first in the frame called `source`, each once."""
        chosen: list[Guess] = []
        turned: list[tuple[int, NDArray[np.float64]]] = []
        for grains in self._near(place_of(source)):
            for which, ub in grains:
                u = u_from_ub(ub)
                same = np.array([other for kind, other in turned if kind == which]).reshape(-1, 3, 3)
                if len(same) and misorientation(u, same, self._rotations[which]).min() < ALIKE:
                    continue
                chosen.append((which, ub))
                turned.append((which, u))
        return chosen

    def remember(self, source: str, grains: Sequence[Guess]) -> None:
        """Keep the grains of a frame; frames without any are of no help, but keep their place."""
        self._last.append((place_of(source), list(grains)))
