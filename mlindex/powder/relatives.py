"""The lattices related to a leading cell: higher metric symmetry, sublattices and superlattices.

A search returns what fits; next to every lattice that fits there are a doubled one that fits as well, a halved one
that misses few lines, and often one of higher symmetry within the errors. They are made here and judged with the rest.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float

from mlindex.crystal.derivatives import superlattices_and_sublattices
from mlindex.crystal.lattice import BRAVAIS
from mlindex.crystal.metric import transform_metric
from mlindex.crystal.symmetry import conventional_cells
from mlindex.powder.judge import Fit

MOST_INDEX = 3  # of a derived lattice: among the many of higher index one always happens to explain an impurity


def _conventional(g_primitive: Float[np.ndarray, " 6"], tolerance: float) -> Iterator[tuple[str, np.ndarray]]:
    for cell in conventional_cells(g_primitive, tolerance):
        yield cell.bravais, cell.metric


def relatives(fit: Fit, *, tolerance: float, missing: int) -> list[tuple[str, Float[np.ndarray, " 6"]]]:
    """(Bravais lattice, conventional reciprocal metric) of the lattices worth judging next to `fit`.

    `tolerance` is the relative change of q2 allowed for a higher symmetry. A smaller cell is tried where it loses at
    most `missing` of the indexed lines, a larger one only where lines are left unindexed.
    """
    lattice = BRAVAIS[fit.bravais]
    to_primitive = lattice.primitive
    g = transform_metric(fit.g, to_primitive)
    found = list(_conventional(g, tolerance))
    larger, smaller = superlattices_and_sublattices(g, MOST_INDEX)
    hkl = fit.hkl @ to_primitive
    line = fit.cluster[fit.reflection[fit.indexed]]
    for transform, metric in zip(smaller.transform, smaller.metric, strict=True):
        indices = hkl @ transform
        kept = (np.abs(indices - np.rint(indices)) < 1e-6).all(1)
        # A line stays if any of the reflections that coincide in it stays
        lost = int((np.bincount(fit.cluster, kept)[line] == 0).sum())
        if lost <= missing:
            found.extend(_conventional(metric, tolerance))
    if not fit.indexed.all():
        for metric in larger.metric:
            found.extend(_conventional(metric, tolerance))
    return found
