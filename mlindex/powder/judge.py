"""How well a cell explains the lines: a final least-squares fit (float64) and the evidence that ranks across lattices.

The evidence is the marginal likelihood of the line positions under one lattice. Every predicted line is observed with
a probability pi, at its position with a normal error of s degrees 2theta; lines that no reflection explains come from a
uniform background. It is integrated over pi (Beta prior), over s (log-normal prior, by quadrature) and over the free
parameters and the zero shift (Laplace). So it charges for predicted lines that were not seen, for lines not explained,
for every free parameter by the precision with which the data fix it, and for a poor fit. Reflections closer than the
resolution count as one predicted line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from scipy.special import betaln

from mlindex.crystal.derivatives import hermite_forms
from mlindex.crystal.lattice import BRAVAIS, SYSTEMS
from mlindex.crystal.reflections import hkl_within
from mlindex.powder.lines import Lines
from mlindex.powder.templates import design

ERROR_MEDIAN, ERROR_SPREAD = 0.012, 0.7  # of s: degrees 2theta, and the sigma of ln s
_S = np.geomspace(0.005, 0.12, 20)
ZERO_SIGMA = 0.025  # degrees 2theta: prior of the zero shift
ZERO_REPORTED = 0.1  # the same in the last fit: the narrow one would draw cells of displaced samples by several esds
CLOSE = 0.03  # degrees 2theta: a line this near to a reflection is always used, however well the others fit
TEMPERATURE = 2.5  # by which log evidences are divided before they are called probabilities
IMPURITIES = 0.5  # expected number of background lines
# Beta prior of pi, and shares of structures whose lines a sublattice of index 2, 3 or 4 has but for weak ones: maximum
# likelihood on training lists (`benchmarks/quality/powder_visibility.py`)
SEEN = {
    "cubic": (16.0, 3.4),
    "tetragonal": (4.4, 2.0),
    "hexagonal": (2.4, 1.1),
    "rhombohedral": (3.1, 1.2),
    "orthorhombic": (4.4, 2.9),
    "monoclinic": (5.4, 4.7),
    "triclinic": (6.9, 5.8),
}
SEEN_WEAK = (1.1, 2.2)  # of pi for the lines that a superstructure adds
SUPERSTRUCTURE = {2: 0.21, 3: 0.03, 4: 0.065}
PARAMETER = 8.0  # nats: what a free parameter costs at least that 20 lines fix to 1e-4 of itself
_LOG_RANGE = 3.4  # ln of the range over which a diagonal metric element is log-uniform a priori
# Descriptions of one lattice by different axes: the prior of a metric is their sum
_DESCRIPTIONS = {"orthorhombic": 6, "monoclinic": 4, "triclinic": 24}


@dataclass(frozen=True)
class Fit:
    """A cell fitted to lines; arrays over lines are (n,), over predicted reflections (m,)."""

    bravais: str
    g: Float[np.ndarray, " 6"]
    covariance: Float[np.ndarray, "p p"]  # of the free parameters, then the zero shift if fitted; for s = `error`
    zero: float  # degrees 2theta
    zero_fitted: bool
    error: float  # degrees 2theta, of the indexed lines
    hkl: Int[np.ndarray, "m 3"]
    q2: Float[np.ndarray, " m"]  # predicted
    reflection: Int[np.ndarray, " n"]  # nearest
    residual: Float[np.ndarray, " n"]  # degrees 2theta, observed - calculated
    indexed: Bool[np.ndarray, " n"]
    cluster: Int[np.ndarray, " m"]  # predicted line that each reflection belongs to


def resolution(lines: Lines) -> float:
    """The smallest separation in degrees 2theta at which two lines are seen as two: that of the list itself."""
    gaps = np.diff(lines.q) / lines.w[1:]
    return float(np.clip(gaps.min() if len(gaps) else 0.05, 0.01, 0.07))


def _nearest(q2: NDArray, q2_ref: NDArray) -> NDArray[np.int64]:
    """Index of the nearest element of the ascending `q2_ref`."""
    right = np.clip(np.searchsorted(q2_ref, q2), 1, len(q2_ref) - 1)
    return np.where(q2 - q2_ref[right - 1] < q2_ref[right] - q2, right - 1, right)


def _one_line_a_reflection(reflection: NDArray, residual: NDArray) -> Bool[NDArray, " n"]:
    """True for the closest line of each reflection."""
    order = np.lexsort((np.abs(residual), reflection))
    first = np.ones(len(order), bool)
    first[1:] = reflection[order][1:] != reflection[order][:-1]
    keep = np.zeros(len(order), bool)
    keep[order[first]] = True
    return keep


def _clusters(position: Float[np.ndarray, " m"], width: float) -> Int[np.ndarray, " m"]:
    """The predicted line of each reflection: ascending positions closer than `width` merge, but never into a line
    wider than `width` (a huge cell would be one line)."""
    new = np.append(True, np.diff(position) > width)
    start = np.maximum.accumulate(np.where(new, position, -np.inf))
    part = np.floor((position - start) / width)
    return np.cumsum(new | np.append(False, np.diff(part) != 0)) - 1


def _assigned(
    lines: Lines, q2: Float[np.ndarray, " m"], zero: float, error: float
) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """The nearest of the ascending `q2` for each line, the residual (degrees 2theta), and the lines to be used: those
    within three standard deviations `error`, one a reflection."""
    unit = 2 * lines.q * lines.w
    observed = lines.q2 - zero * unit
    reflection = _nearest(observed, q2)
    residual = (observed - q2[reflection]) / unit
    use = (np.abs(residual) < max(3 * error, CLOSE)) & _one_line_a_reflection(reflection, residual)
    return reflection, residual, use


def _gauss_newton(
    rows: Float[np.ndarray, "n p"],
    residual: Float[np.ndarray, " n"],
    error: float,
    size: float,
    zero: float | None,
    zero_sigma: float,
) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, "k k"]]:
    """Move of the parameters and their covariance for unit variance; the last parameter is the zero shift unless `zero`
    is None.

    Weak priors keep the covariance finite where the lines leave a parameter open: an element of the metric is known to
    within `size`, the zero shift to within `zero_sigma`.
    """
    priors = np.full(rows.shape[1], size)
    if zero is not None:
        rows = np.concatenate([rows, np.ones((len(rows), 1))], 1)
        priors = np.append(priors, zero_sigma)
    norm = np.sqrt((rows**2).sum(0))
    norm[norm == 0] = 1.0  # no line depends on this parameter: the prior alone fixes it
    scaled = rows / norm
    loose = error / (norm * priors)
    right = scaled.T @ residual
    if zero is not None:
        right[-1] -= loose[-1] ** 2 * zero * norm[-1]
    inverse = np.linalg.inv(scaled.T @ scaled + np.diag(loose**2))
    return inverse @ right / norm, inverse / norm[:, None] / norm


def fit_cell(
    lines: Lines,
    g: Float[np.ndarray, " 6"],
    bravais: str,
    *,
    zero: float = 0.0,
    fit_zero: bool = False,
    zero_sigma: float = ZERO_SIGMA,
    rounds: int = 12,
) -> Fit | None:
    """Least squares in the free parameters (and the zero shift) with the assignment made anew in every round.

    `zero_sigma` (degrees 2theta) is the width of the prior of the zero shift.

    None where the cell predicts no reflection in range or the fit leaves the positive definite metrics. The weights
    are 1/s^2 for lines within three robust standard deviations of a reflection and zero beyond.
    """
    lattice = BRAVAIS[bravais]
    system = SYSTEMS[lattice.system]
    unit = 2 * lines.q * lines.w  # q2 per degree
    x = system.project @ g
    error = 0.03
    try:
        hkl = hkl_within(system.embed @ x, bravais, float(lines.q2[-1] + 0.3 * unit[-1]))
    except ValueError:
        return None
    if len(hkl) < 2:
        return None
    rows = design(hkl, lattice.system)
    p = system.n_free
    before: NDArray[np.int64] | None = None
    for _ in range(rounds):
        order = np.argsort(rows @ x, kind="stable")
        hkl, rows = hkl[order], rows[order]
        reflection, residual, use = _assigned(lines, rows @ x, zero, error)
        if use.sum() < p + 1:
            return None
        error = float(np.clip(1.4826 * np.median(np.abs(residual[use])), 0.002, 0.04))
        move, covariance = _gauss_newton(
            (rows[reflection] / unit[:, None])[use],
            residual[use],
            error,
            float(np.abs(x).max()),
            zero if fit_zero else None,
            zero_sigma,
        )
        x = x + move[:p]
        zero += float(move[-1]) if fit_zero else 0.0
        assigned = np.where(use[:, None], hkl[reflection], 0)
        if before is not None and np.array_equal(assigned, before):
            break  # the same lines on the same reflections: the problem is linear, so nothing changes any more
        before = assigned
    q2 = rows @ x
    if not np.isfinite(x).all() or q2.min() <= 0:
        return None
    order = np.argsort(q2, kind="stable")
    hkl, q2 = hkl[order], q2[order]
    reflection, residual, use = _assigned(lines, q2, zero, error)
    free = max(int(use.sum()) - p - fit_zero, 1)
    error = float(np.clip(np.sqrt((residual[use] ** 2).sum() / free), 0.001, 0.1))
    q_ref = np.sqrt(q2)
    cluster = _clusters(q_ref / np.interp(q_ref, lines.q, lines.w), resolution(lines))
    return Fit(
        bravais=bravais,
        g=system.embed @ x,
        covariance=error**2 * covariance,
        zero=zero,
        zero_fitted=fit_zero,
        error=error,
        hkl=hkl,
        q2=q2,
        reflection=reflection,
        residual=residual,
        indexed=use,
        cluster=cluster,
    )


def _log_prior(fit: Fit) -> float:
    """Log density of the free parameters a priori: diagonal elements log-uniform, the others uniform where the cell
    is reduced, and the number of equivalent descriptions."""
    g = fit.g
    system = BRAVAIS[fit.bravais].system
    diagonal = {"cubic": (0,), "tetragonal": (0, 2), "hexagonal": (0, 2), "rhombohedral": (0, 2)}.get(system, (0, 1, 2))
    value = -sum(np.log(g[i] * _LOG_RANGE) for i in diagonal)
    pairs = {"monoclinic": ((0, 2),), "triclinic": ((1, 2), (0, 2), (0, 1))}.get(system, ())
    value -= sum(np.log(2 * np.sqrt(g[i] * g[j])) for i, j in pairs)
    return float(value + np.log(_DESCRIPTIONS.get(system, 1)))


def _log_background(lines: Lines) -> Float[np.ndarray, " n"]:
    """Log density, per degree of 2theta at each line, of lines that no reflection explains: uniform in q."""
    return np.log(IMPURITIES * lines.w / lines.q[-1])


def chance_evidence(lines: Lines) -> float:
    """Log evidence of a uniform background that explains nothing, on the scale of `evidence`."""
    return float(_log_background(lines).sum()) - IMPURITIES


def log_seen(counts: Int[np.ndarray, "*b 2"], prior: Sequence[float] | NDArray) -> Float[Any, "*b"]:
    """Log probability of seeing `counts[..., 0]` of the predicted lines and missing `counts[..., 1]`, in this order;
    pi has the Beta distribution `prior`."""
    alpha, beta = prior
    return betaln(alpha + counts[..., 0], beta + counts[..., 1]) - betaln(alpha, beta)


def evidence(fit: Fit, lines: Lines, absent: Bool[np.ndarray, "e m"] | None = None) -> Float[np.ndarray, " e"]:
    """Log evidence of the lines under a fit, for each set of absences (`absent` (e, m) over fit.hkl; none if None).

    See the module's description. Densities are per degree of 2theta, so values compare between cells for the same
    lines only.
    """
    if absent is None:
        absent = np.zeros((1, len(fit.hkl)), bool)
    n_clusters = int(fit.cluster[-1]) + 1
    q_last = lines.q[-1] + resolution(lines) * lines.w[-1]
    visible = ~absent & (np.sqrt(fit.q2) <= q_last)[None]
    starts = np.searchsorted(fit.cluster, np.arange(n_clusters))
    present = np.logical_or.reduceat(visible, starts, axis=1)  # (e, clusters)
    predicted = present.sum(1)
    unique = _one_line_a_reflection(fit.reflection, fit.residual)
    explained = (present[:, fit.cluster[fit.reflection]]) & unique[None]  # (e, n)
    log_background = _log_background(lines)
    normal = -0.5 * (fit.residual / _S[:, None]) ** 2 - np.log(_S[:, None] * np.sqrt(2 * np.pi))  # (s, n)
    # A line of k unresolved reflections is at one of them: without this factor a slight distortion, which splits the
    # lines of a symmetric cell, would always fit better
    members = np.add.reduceat(visible, starts, axis=1)[:, fit.cluster[fit.reflection]]  # (e, n)
    normal = normal[None] - np.log(np.maximum(members, 1))[:, None, :]  # (e, s, n)
    hit = explained[:, None, :] & (normal > log_background)  # (e, s, n)
    hits = np.minimum(hit.sum(2), predicted[:, None])
    position = np.where(hit, normal, log_background).sum(2) - IMPURITIES
    seen = log_seen(np.stack([hits, predicted[:, None] - hits], -1), SEEN[BRAVAIS[fit.bravais].system])
    # Laplace: the covariance is that for s = fit.error and scales as s^2
    free = fit.covariance.shape[0]
    _, log_det = np.linalg.slogdet(fit.covariance)
    occam = 0.5 * (log_det - 2 * free * np.log(fit.error)) + free * np.log(_S) + 0.5 * free * np.log(2 * np.pi)
    prior = _log_prior(fit)
    if fit.zero_fitted:
        prior += -0.5 * (fit.zero / ZERO_SIGMA) ** 2 - np.log(ZERO_SIGMA * np.sqrt(2 * np.pi))
    log_s = -0.5 * (np.log(_S / ERROR_MEDIAN) / ERROR_SPREAD) ** 2
    log_s -= np.logaddexp.reduce(log_s)
    return np.logaddexp.reduce(position + seen + (occam + log_s)[None], axis=1) + prior


def predicted(
    fit: Fit, lines: Lines, absent: Bool[np.ndarray, " m"]
) -> tuple[Bool[np.ndarray, " m"], Bool[np.ndarray, " c"], Bool[np.ndarray, " c"]]:
    """Which reflections can be seen up to the last line; which predicted lines they make, and which of those are."""
    count = int(fit.cluster[-1]) + 1
    q_last = lines.q[-1] + resolution(lines) * lines.w[-1]
    visible = ~absent & (np.sqrt(fit.q2) <= q_last)
    present = np.bincount(fit.cluster, visible, count) > 0
    error = max(fit.error, float(_S[0]))
    normal = -0.5 * (fit.residual / error) ** 2 - np.log(error * np.sqrt(2 * np.pi))
    hit = _one_line_a_reflection(fit.reflection, fit.residual) & (normal > _log_background(lines))
    seen = (np.bincount(fit.cluster[fit.reflection], hit, count) > 0) & present
    return visible, present, seen


def most_to_gain(fit: Fit, lines: Lines, absent: Bool[np.ndarray, " m"], parameters: int) -> float:
    """By how much the log evidence of a perfect cell with `parameters` more free parameters would exceed that of `fit`.

    Such a cell explains every line, none worse than lines usually fit, and predicts no other; it pays for its
    parameters. Below zero, no lattice of so much lower symmetry need be searched. Its lines are taken to be seen as
    often as those of the system of `fit`: lower systems show fewer, but hexagonal ones, which gain up to a nat on cubic
    ones. That it might be a superstructure is not counted.
    """
    _, present, seen = predicted(fit, lines, absent)
    both, n = counted(present, present, seen), len(lines)
    hits, prior = int(both[0]), SEEN[BRAVAIS[fit.bravais].system]
    absences = float(log_seen(np.array([n, 0]), prior) - log_seen(both, prior))
    best = -np.log(ERROR_MEDIAN * np.sqrt(2 * np.pi)) - float(_log_background(lines).mean())
    worse = max(float(np.log(fit.error / ERROR_MEDIAN)), 0.0)
    return float(absences + (n - hits) * best + hits * worse - PARAMETER * parameters)


def counted(
    rows: Bool[np.ndarray, "*k c"], present: Bool[np.ndarray, " c"], seen: Bool[np.ndarray, " c"]
) -> Int[np.ndarray, "*k 2"]:
    """How many of the predicted lines in each of `rows` are seen and how many are not, as `log_seen` takes them."""
    return np.stack([(rows & seen).sum(-1), (rows & present & ~seen).sum(-1)], -1)


def basic_lines(
    fit: Fit, visible: Bool[np.ndarray, " m"], present: Bool[np.ndarray, " c"], index: int
) -> Bool[np.ndarray, "k c"]:
    """Which of the predicted lines each sublattice of this index has, for the sublattices that differ in it.

    Those that have all the lines, or none, are left out. `visible` and `present` from `predicted`.
    """
    forms = hermite_forms(index).astype(np.float64)
    indices = fit.hkl @ BRAVAIS[fit.bravais].primitive @ np.swapaxes(np.linalg.inv(forms), 1, 2)  # (k, m, 3)
    kept = (np.abs(indices - np.rint(indices)) < 1e-6).all(2) & visible
    basic = np.unique([np.bincount(fit.cluster, row, len(present)) > 0 for row in kept], axis=0)  # (k, clusters)
    return basic[(basic & present).any(1) & (~basic & present).any(1)]


def superstructure_gain(fit: Fit, lines: Lines, absent: Bool[np.ndarray, " m"]) -> float:
    """What the log evidence gains if the cell may be a superstructure.

    The lines that a sublattice of index 2, 3 or 4 would have, and those that the superstructure adds, are then seen
    with probabilities of their own; one such sublattice, or none, is the case, and the sum over them replaces the one
    pi.
    """
    visible, present, seen = predicted(fit, lines, absent)
    prior = SEEN[BRAVAIS[fit.bravais].system]
    both = counted(present, present, seen)
    terms = [np.log1p(-sum(SUPERSTRUCTURE.values()))]
    for index, share in SUPERSTRUCTURE.items():
        rows = basic_lines(fit, visible, present, index)
        if len(rows):
            basic = counted(rows, present, seen)
            double = log_seen(basic, prior) + log_seen(both - basic, SEEN_WEAK) - log_seen(both, prior)
            terms.append(np.log(share / len(rows)) + np.logaddexp.reduce(double))
    return float(np.logaddexp.reduce(terms))
