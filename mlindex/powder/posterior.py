"""The posterior over the lattices that a search has judged, and over "none of these", from a small trained model.

The evidence (`judge`) is the likelihood under a model of lines that is not the whole truth: true cells have more
unseen lines at some symmetries than at others, superstructures are rare but not as rare as one number can say, and the
cells that explain by chance come in kinds. What the evidence leaves out is learned. With d_c the evidence of candidate
c less that of the best, x_c its features and t those of the list, the posterior is a conditional logit times the
probability that the list is solved at all:

    p_c = sigma(z) exp(l_c) / sum_c exp(l_c),   p_none = 1 - sigma(z),
    l_c = exp(a . t + o y_c) d_c / 10 + b . x_c,   z = s . t,

where y_c is 1 for a candidate whose volume is no simple multiple or part of that of the best: between a lattice and its
sublattices the evidence errs more than between lattices that have nothing in common. The weight of the evidence is
positive whatever was learned. The weights are shared by all candidates, and a list may
have any number of them. A hidden layer of four or eight units in l and z gained nothing on families left out, with two
thousand lists. Source of the form: McFadden, in Frontiers in Econometrics (1974) 105.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file
from scipy.special import expit

from mlindex.crystal.lattice import BRAVAIS
from mlindex.crystal.metric import transform_metric, volume_from_reciprocal_metric
from mlindex.crystal.reduction import vonorms
from mlindex.powder import judge, merit
from mlindex.powder.lines import Lines
from mlindex.powder.search import ORDER, Judged
from mlindex.records import InputError

MOST = 20  # candidates that have features; what follows them keeps its order and has no probability
WEIGHTS = Path(__file__).parents[1] / "models" / "powder_posterior.safetensors"

_SAME_VOLUME = 0.004  # relative, of cells that may be a super- or sublattice, or one lattice in two symmetries
_MULTIPLES = np.array([1.0, 2.0, 3.0, 4.0, 6.0])  # of the volume, of cells that are said to be related
_FIRST = 20  # lines
_CLOSE = 30.0  # nats below the best within which a candidate tells how many lines may be unexplained
_RELATED = (
    *(f"a cell of 1/{ratio} of the volume" for ratio in (2, 3, 4)),
    *(f"a cell of {ratio} times the volume" for ratio in (2, 3, 4)),
    "a cell of higher symmetry",
    "a cell of lower symmetry",
)

CANDIDATE = (
    *(f"is {bravais}" for bravais in ORDER),
    "gain a line",
    "unexplained among the first 20",
    "unexplained share",
    "log error",
    "zero shift",
    "log predicted a line",
    "share seen",
    "share seen, first half",
    "log volume a line",
    "log aspect",
    "log shortest vector",
    "absent share",
    "log absences",
    "log M20",
    "shape of residuals",
    *(f"evidence of {relation}" for relation in _RELATED),
    "lines seen beyond the smaller cell",
    "share seen beyond the smaller cell",
    "lines explained beyond the smaller cell",
    "lines seen beyond by the larger cell",
    "share seen beyond by the larger cell",
    "lines explained beyond by the larger cell",
    "fewest unexplained in the list",
    "of other origin than the best",
    "log lines",
    "no wavelength",
)
OTHER = CANDIDATE.index("of other origin than the best")
LIST = (
    "one",
    "gain a line of the best",
    "gain a line of the best, squared",
    "lead of the best over other volumes",
    "log lines",
    "no wavelength",
    "unexplained share of the best",
    "log error of the best",
    "share seen of the best",
    "log predicted a line of the best",
    "free parameters of the best",
)


@dataclass(frozen=True)
class Features:
    """What the model sees of one list: `difference` (k,) of the evidence to the best in nats, `candidate` (k, f) and
    `whole` (t,), the columns `CANDIDATE` and `LIST`."""

    difference: Float[np.ndarray, " k"]
    candidate: Float[np.ndarray, "k f"]
    whole: Float[np.ndarray, " t"]


def _of_candidate(one: Judged, lines: Lines) -> tuple[list[float], tuple[int, int, int]]:
    """The features of one candidate that need no other, and its lines seen, predicted and not explained; `lines` are
    those that were fitted."""
    fit = one.fit
    n = len(lines)
    _, present, seen = judge._predicted(fit, lines, one.absent)
    position = np.full(len(present), np.inf)
    np.minimum.at(position, fit.cluster, fit.q2)
    low = present & (position <= fit.q2[fit.reflection[min(n, _FIRST) // 2 - 1]])
    in_range = position <= lines.q2[-1]
    taken = int((~present & in_range).sum())
    residual = np.abs(fit.residual[fit.indexed])
    rms = float(np.sqrt((residual**2).mean()))
    own = [
        one.gain / n - 4.0,
        float((~fit.indexed[:_FIRST]).sum()),
        float((~fit.indexed).mean()),
        float(np.log(fit.error / judge.ERROR_MEDIAN)),
        abs(fit.zero) / 0.05 if fit.zero_fitted else 0.0,
        float(np.log(max(int(present.sum()), 1) / n)),
        float(seen.sum() / max(int(present.sum()), 1)),
        float(seen[low].sum() / max(int(low.sum()), 1)),
        0.0,  # volume, aspect and shortest vector are made for all candidates at once
        0.0,
        0.0,
        taken / max(int(in_range.sum()), 1),
        float(np.log1p(taken)),
        float(np.log(max(merit.de_wolff(fit, lines), 0.1))),
        float(np.median(residual) / max(rms, 1e-6)),
    ]
    return own, (int(seen.sum()), int(present.sum()), int((~fit.indexed).sum()))


def _relations(
    volume: Float[np.ndarray, " k"],
    free: Int[np.ndarray, " k"],
    gain: Float[np.ndarray, " k"],
    seen: Int[np.ndarray, " k"],
    predicted: Int[np.ndarray, " k"],
    unexplained: Int[np.ndarray, " k"],
) -> Float[np.ndarray, "k r"]:
    """How each candidate stands to the best candidate of each relation (`_RELATED`), 0 where there is none.

    For each relation the logistic of a fifth of its evidence less the candidate's own, in nats. For a cell of a part of
    the volume, then for one of several times the volume: the logarithm of the lines that the larger adds and are seen,
    the share of the added ones that is seen, and the lines that it explains and the smaller does not.
    """
    ratio = volume[None, :] / volume[:, None]
    alike = np.abs(ratio - 1) < _SAME_VOLUME
    times = [np.abs(ratio / r - 1) < _SAME_VOLUME for r in (1 / 2, 1 / 3, 1 / 4, 2, 3, 4)]
    relations = [*times, alike & (free[None, :] < free[:, None]), alike & (free[None, :] > free[:, None])]
    columns = []
    for relation in relations:
        other = np.where(relation, gain[None, :], -np.inf).max(1)
        columns.append(np.where(relation.any(1), 1.0 / (1.0 + np.exp(np.clip(gain - other, -60, 60) / 5.0)), 0.0))
    row = np.arange(len(gain))
    for parts, sign in ((times[:3], 1), (times[3:], -1)):
        relation = np.logical_or.reduce(parts)
        any_other = relation.any(1)
        other = np.where(relation, gain[None, :], -np.inf).argmax(1)
        added = np.maximum(sign * (seen[row] - seen[other]), 0)
        share = added / np.maximum(sign * (predicted[row] - predicted[other]), np.maximum(added, 1))
        explained = np.clip(sign * (unexplained[other] - unexplained[row]), -3, 6)
        columns += [np.where(any_other, x, 0.0) for x in (np.log1p(added), share, explained / 3.0)]
    return np.stack(columns, 1)


def features(ranked: Sequence[Judged], lines: Lines) -> Features:
    """The features of the first `MOST` of `ranked`, all fitted to the first lines of `lines`.

    Raises `ValueError` where nothing is ranked.
    """
    if not ranked:
        raise ValueError("a posterior needs at least one candidate")
    chosen = list(ranked[:MOST])
    used = lines.first(len(chosen[0].fit.indexed))
    n = len(used)
    gain = np.array([j.gain for j in chosen])
    each = [_of_candidate(j, used) for j in chosen]
    own = np.array([x for x, _ in each])
    seen, predicted, unexplained = np.array([x for _, x in each]).T
    primitive = np.array([transform_metric(j.fit.g, BRAVAIS[j.fit.bravais].primitive) for j in chosen])
    volume = np.asarray(volume_from_reciprocal_metric(primitive))
    norms = np.sort(vonorms(primitive), axis=1)
    own[:, 8] = np.log(volume * used.q[-1] ** 3 * 2 * np.pi / 3 / n)
    own[:, 9] = 0.5 * np.log(norms[:, -1] / norms[:, 0])
    own[:, 10] = 0.5 * np.log(norms[:, 0])
    free = np.array([BRAVAIS[j.fit.bravais].n_free for j in chosen])
    kind = np.array([[float(j.fit.bravais == b) for b in ORDER] for j in chosen])
    common = np.array([np.log(n / 30), float(lines.wavelength is None)])
    related = _relations(volume, free, gain, seen, predicted, unexplained)
    fewest = min(int(unexplained[gain > gain.max() - _CLOSE].min()), 6)
    best = int(gain.argmax())
    ratio = np.maximum(volume, volume[best]) / np.minimum(volume, volume[best])
    apart = ratio > 1.02
    other = np.abs(ratio[:, None] / _MULTIPLES - 1).min(1) > _SAME_VOLUME
    context = np.broadcast_to(np.append(fewest, common), (len(chosen), 3))
    candidate = np.concatenate([kind, own, related, context[:, :1], other[:, None], context[:, 1:]], 1)
    lead = float(gain[best] - gain[apart].max()) if apart.any() else 40.0
    whole = [1.0, own[best, 0], own[best, 0] ** 2, min(lead, 40.0) / 10, *common, *own[best, [2, 3, 6, 5]], free[best]]
    return Features(gain - gain[best], candidate, np.array(whole, float))


@cache
def weights(path: Path = WEIGHTS) -> dict[str, NDArray]:
    """The weights in a file, by default the shipped ones. Raises `InputError`."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: these are no weights of a posterior ({error}); train them again") from None


def logits(of: Features, model: Mapping[str, NDArray]) -> tuple[Float[np.ndarray, " k"], float]:
    """l (k,) of the candidates and z of the list."""
    x = (of.candidate - model["candidate_mean"]) / model["candidate_scale"]
    t = (of.whole - model["list_mean"]) / model["list_scale"]
    weight = np.exp(t @ model["evidence"] + model["other"] * x[:, OTHER])
    return weight * of.difference / 10 + x @ model["linear"], float(t @ model["solved"])


def posterior(of: Features, model: Mapping[str, NDArray]) -> tuple[Float[np.ndarray, " k"], float]:
    """The probability of each candidate and that of "none of these"; they sum to one."""
    each, solved = logits(of, model)
    values = np.exp(each - each.max())
    share = float(expit(solved))
    return share * values / values.sum(), 1.0 - share


def ranked_by_posterior(
    ranked: Sequence[Judged], lines: Lines
) -> tuple[Int[np.ndarray, " k"], Float[np.ndarray, " k"], float]:
    """(order, probability, p_none): the indices into `ranked`, most probable first, the probability of each in that
    order, and that of "none of these".

    Candidates after the first `MOST` follow in the order that they have, with probability 0. Of candidates that are
    equally probable the one with more evidence comes first. For no candidates "none of these" is certain.
    """
    if not ranked:
        return np.empty(0, np.int64), np.empty(0), 1.0
    probability, none = posterior(features(ranked, lines), weights())
    order = np.argsort(-probability, kind="stable")
    rest = np.arange(len(probability), len(ranked))
    return np.append(order, rest), np.append(probability[order], np.zeros(len(rest))), none
