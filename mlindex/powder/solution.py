"""From ranked fits to what is reported: standard settings, standard uncertainties, probabilities, ambiguous sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int

from mlindex.crystal.extinctions import extinction_groups
from mlindex.crystal.lattice import BRAVAIS, SYSTEMS
from mlindex.crystal.metric import cell_from_reciprocal_metric, transform_metric, volume_from_reciprocal_metric
from mlindex.crystal.reduction import niggli_from_cell
from mlindex.crystal.settings import standard_setting
from mlindex.powder import judge, merit
from mlindex.powder.lines import Lines
from mlindex.powder.ranking import Judged, judged


@dataclass(frozen=True)
class Solution:
    """One reported cell: lengths in angstrom, angles and zero shift in degrees, volume in cubic angstrom.

    Arrays over the lines of the list are (n,). `ambiguity` numbers the sets of lattices with identical line positions;
    0 is none.
    """

    bravais: str
    cell: Float[np.ndarray, " 6"]
    cell_esd: Float[np.ndarray, " 6"]
    niggli: Float[np.ndarray, " 6"]
    volume: float
    m20: float
    f20: float
    information: float
    score: float
    probability: float
    space_group: str
    zero_shift: float
    zero_shift_esd: float
    ambiguity: int
    q2_calc: Float[np.ndarray, " n"]
    hkl: Int[np.ndarray, "n 3"]
    indexed: Bool[np.ndarray, " n"]

    @property
    def n_indexed(self) -> int:
        """Lines that are indexed."""
        return int(self.indexed.sum())

    @property
    def n_lines(self) -> int:
        """Lines that were to be indexed."""
        return len(self.indexed)


def cell_uncertainty(fit: judge.Fit, p: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, " 6"]:
    """Standard uncertainties of the cell in the basis P, from the covariance of the free parameters."""
    system = SYSTEMS[BRAVAIS[fit.bravais].system]
    x = system.project @ fit.g
    step = 1e-6 * np.abs(x).max()

    def cell(x: Float[np.ndarray, " p"]) -> Float[np.ndarray, " 6"]:
        return cell_from_reciprocal_metric(transform_metric(system.embed @ x, p))

    jacobian = np.stack([(cell(x + d) - cell(x - d)) / (2 * step) for d in step * np.eye(len(x))], 1)
    covariance = fit.covariance[: len(x), : len(x)]
    variance = np.einsum("ij,jk,ik->i", jacobian, covariance, jacobian)
    return np.sqrt(np.where(variance > 1e-18, variance, 0.0))


def same_positions(a: judge.Fit, b: judge.Fit, lines: Lines) -> bool:
    """True where two cells predict the same lines within a third of the resolution, up to the last observed line."""
    tolerance = judge.resolution(lines) / 3
    limit = lines.q[-1]

    def covered(of: judge.Fit, by: judge.Fit) -> bool:
        q = np.sqrt(of.q2[of.q2 <= limit**2])
        q_other = np.sqrt(by.q2)
        width = tolerance * np.interp(q, lines.q, lines.w)
        return bool((np.abs(q[:, None] - q_other).min(1) < width).all())

    return covered(a, b) and covered(b, a)


def ambiguous_sets(fits: Sequence[judge.Fit], lines: Lines) -> list[int]:
    """For each fit the number, from 1, of the set of fits with the same line positions; 0 where it is alone."""
    number = [0] * len(fits)
    sets = 0
    for i in range(len(fits)):
        if number[i]:
            continue
        alike = [j for j in range(i + 1, len(fits)) if not number[j] and same_positions(fits[i], fits[j], lines)]
        if alike:
            sets += 1
            for j in (i, *alike):
                number[j] = sets
    return number


def with_extinctions(fit: judge.Fit, lines: Lines, space_group: str) -> judge.Fit:
    """The fit with each line on the nearest reflection that the space group lets be seen, if there is one as near as
    an indexed line must be; otherwise the line stays where it is."""
    groups = extinction_groups(fit.bravais, fit.hkl)
    if space_group not in groups.names:
        return fit
    visible = np.flatnonzero(~groups.mask[groups.names.index(space_group)])
    if not len(visible):
        return fit
    unit = 2 * lines.q * lines.w
    distance = (lines.q2 - fit.zero * unit)[:, None] - fit.q2[visible]
    best = np.abs(distance).argmin(1)
    residual = distance[np.arange(len(best)), best] / unit
    moved = (np.abs(residual) < max(3 * fit.error, judge.CLOSE)) & fit.indexed
    return replace(
        fit,
        reflection=np.where(moved, visible[best], fit.reflection),
        residual=np.where(moved, residual, fit.residual),
    )


def in_standard_axes(of: Judged, lines: Lines) -> Judged:
    """`of` with its metric, and the name of its space group, in the axes of the standard setting.

    A search meets a lattice in any axes, in which P 21/c may be P 21/a: the group is found anew, by the evidence.
    """
    _, p = standard_setting(cell_from_reciprocal_metric(of.fit.g), of.fit.bravais)
    if np.array_equal(np.rint(p), np.eye(3)):
        return of
    cell = (of.fit.bravais, transform_metric(of.fit.g, p))
    again = judged(lines.first(len(of.fit.indexed)), [cell], fit_zero=of.fit.zero_fitted, zero=of.fit.zero)
    return replace(of, fit=again[0].fit, space_group=again[0].space_group, absent=again[0].absent) if again else of


def solutions(ranked: Sequence[Judged], lines: Lines, count: int) -> list[Solution]:
    """The `count` first of `ranked`, fitted to all lines."""
    if not ranked:
        return []
    chosen = [in_standard_axes(of, lines) for of in ranked[:count]]
    sets = ambiguous_sets([j.fit for j in chosen], lines)
    made = []
    for of, ambiguity in zip(chosen, sets, strict=True):
        fit = judge.fit_cell(
            lines,
            of.fit.g,
            of.fit.bravais,
            zero=of.fit.zero,
            fit_zero=of.fit.zero_fitted,
            zero_sigma=judge.ZERO_REPORTED,
        )
        used = lines if fit is not None else lines.first(len(of.fit.reflection))
        fit = fit or of.fit
        fit = with_extinctions(fit, used, of.space_group)
        cell, p = standard_setting(cell_from_reciprocal_metric(fit.g), fit.bravais)
        made.append(
            Solution(
                bravais=fit.bravais,
                cell=np.round(cell, 9),
                cell_esd=cell_uncertainty(fit, p),
                niggli=np.round(niggli_from_cell(cell, BRAVAIS[fit.bravais].centring)[0], 9),
                volume=float(volume_from_reciprocal_metric(fit.g)),
                m20=merit.de_wolff(fit, used),
                f20=merit.smith_snyder(fit, used),
                information=merit.information(fit, used),
                score=of.gain,
                probability=of.probability,
                space_group=of.space_group,
                zero_shift=fit.zero * lines.degrees if fit.zero_fitted else float("nan"),
                zero_shift_esd=float(np.sqrt(fit.covariance[-1, -1])) * lines.degrees
                if fit.zero_fitted
                else float("nan"),
                ambiguity=ambiguity,
                q2_calc=fit.q2[fit.reflection],
                hkl=np.rint(fit.hkl[fit.reflection] @ p).astype(np.int64),
                indexed=fit.indexed,
            )
        )
    return made
