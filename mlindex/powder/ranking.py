"""Cells with their evidence, ranked: each fitted and judged, each lattice once, superstructures allowed for.

The search judges what it proposes here, and the posterior (`posterior`) is made of what is ranked.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float

from mlindex.crystal.extinctions import extinction_groups
from mlindex.crystal.lattice import BRAVAIS
from mlindex.crystal.metric import transform_metric
from mlindex.crystal.reduction import lattice_distance, vonorms
from mlindex.powder import judge
from mlindex.powder.lines import Lines

ORDER = ("cF", "cI", "cP", "hR", "hP", "tI", "tP", "oF", "oI", "oS", "oP", "mC", "mP", "aP")
SHORTEST = 2.1  # angstrom: beryllium has 2.2, and no crystal that gets indexed a shorter lattice vector
_BEHIND = 30.0  # nats of evidence that the gain of a superstructure hardly ever makes up for
SAME_LATTICE = 0.004  # largest relative difference of the Voronoi vectors of one lattice found twice


@dataclass(frozen=True)
class Judged:
    """A fit with its evidence, the extinction pattern that explains the lines best, and the evidence of chance."""

    fit: judge.Fit
    evidence: float
    space_group: str
    gain: float  # evidence over that of a uniform background
    absent: Bool[np.ndarray, " m"]  # reflections that the space group takes away
    probability: float = float("nan")  # that it is the lattice of the list; see `posterior`


def judged(
    lines: Lines, cells: Iterable[tuple[str, Float[np.ndarray, " 6"]]], *, fit_zero: bool, zero: float = 0.0
) -> list[Judged]:
    """Fit and evidence of each cell; those that cannot be fitted are left out."""
    chance = judge.chance_evidence(lines)
    found = []
    for bravais, g in cells:
        fit = judge.fit_cell(lines, g, bravais, zero=zero, fit_zero=fit_zero)
        if fit is None:
            continue
        groups = extinction_groups(bravais, fit.hkl)
        values = judge.evidence(fit, lines, groups.mask) + np.log(groups.counts / groups.counts.sum())
        total = float(np.logaddexp.reduce(values))
        if np.isfinite(total):
            best = int(values.argmax())
            found.append(Judged(fit, total, groups.names[best], total - chance, groups.mask[best]))
    return found


def merged(found: Sequence[Judged], *, tolerance: float = SAME_LATTICE, most: int = 60) -> list[Judged]:
    """Best first, each lattice once, at most `most`."""
    order = sorted(found, key=lambda j: (-j.evidence, ORDER.index(j.fit.bravais), j.fit.g.tolist()))
    if not order:
        return []
    primitive = np.array([transform_metric(j.fit.g, BRAVAIS[j.fit.bravais].primitive) for j in order])
    norms = np.sort(vonorms(primitive), axis=-1)  # sorting never parts equal lattices, so it serves to rule out
    kept: list[int] = []
    for i in np.flatnonzero(norms[:, 0] > SHORTEST**2).tolist():
        if len(kept) == most:
            break
        alike = [k for k in kept if np.abs(norms[i] / norms[k] - 1).max() <= 2.5 * tolerance]
        if not alike or lattice_distance(primitive[alike], primitive[i]).min() > tolerance:
            kept.append(i)
    return [order[i] for i in kept]


def with_superstructures(found: Sequence[Judged], lines: Lines, *, most: int = 20) -> list[Judged]:
    """The first `most`, with the gain of `judge.superstructure_gain` where they are not far behind, ranked anew."""
    gains = [
        judge.superstructure_gain(j.fit, lines, j.absent) if j.evidence > found[0].evidence - _BEHIND else 0.0
        for j in found[:most]
    ]
    raised = [replace(j, evidence=j.evidence + gain, gain=j.gain + gain) for j, gain in zip(found, gains, strict=False)]
    return sorted(raised, key=lambda j: -j.evidence)
