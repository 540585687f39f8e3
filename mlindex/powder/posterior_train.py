"""Training of the posterior (`posterior`): outcomes of searches whose answer is known, and the model fitted to them.

What a search has found after each of its passes is one example, because the posterior ends the search as well as
judging its answer. It teaches twice: whether any of the candidates is right (s), and, where one is, how the evidence
divides the probability among them (a and b). Searches for training are more patient than others, so that there are
examples on both sides of where a search ends. Lists of relatives of the true cell that were not searched, a hundred
times cheaper, made the calibration of searches worse (error 0.064 against 0.034) and are not used.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, log_expit, log_softmax, logsumexp, softmax

from mlindex.crystal.lattice import BRAVAIS
from mlindex.crystal.metric import transform_metric
from mlindex.crystal.reduction import lattice_distance
from mlindex.powder.judge import TEMPERATURE
from mlindex.powder.lines import Lines
from mlindex.powder.posterior import LIST, WEIGHING, features, tempered
from mlindex.powder.ranking import Judged
from mlindex.powder.search import EFFORTS, JUDGED, states
from mlindex.records import InputError

MOST = 20  # candidates of a list that are kept
SAME = 0.01  # largest relative difference of the Voronoi vectors of a right answer from the truth
# Nats a line over a uniform background at which a list is as likely solved as not, and the width, before training: the
# best cells of random lists gain up to 3.3, true ones rarely less than 4
SOLVED_GAIN, SOLVED_WIDTH = 3.7, 0.25
BEND = 5.0  # nats, b before training
PATIENCE = 1.5  # by which the doubt that ends a search is divided in training
DECAY = 1.0  # of the squared distance from the start, on the scale of the summed loss


class Labelled(NamedTuple):
    """One list with its answer: `metric` (6,) is the true conventional reciprocal metric of `bravais`, None where
    nothing is right."""

    uid: str
    family: str
    variant: str
    bravais: str
    lines: Lines
    metric: NDArray[np.float64] | None


@dataclass(frozen=True)
class Outcomes:
    """Features and truth of n states of searches, padded to k candidates; `real` (n, k) says which there are.

    `right` (n, k) are the candidates that are the true lattice; `family` (n,) is a number of the isotype family, for
    folds. The states of one search follow one another, `turn` (n,) counts them from 0, and `doubt` (n,) is the
    probability of "none of these" below which the search would end there (1 for a last state).
    """

    difference: Float[np.ndarray, "n k"]
    whole: Float[np.ndarray, "n t"]
    real: Bool[np.ndarray, "n k"]
    right: Bool[np.ndarray, "n k"]
    family: Int[np.ndarray, " n"]
    turn: Int[np.ndarray, " n"]
    doubt: Float[np.ndarray, " n"]
    uid: NDArray
    variant: NDArray
    bravais: NDArray

    def __len__(self) -> int:
        return len(self.real)

    def subset(self, index: NDArray) -> Outcomes:
        """The lists at `index`."""
        return Outcomes(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    def digest(self) -> str:
        """SHA-256 of the content."""
        made = hashlib.sha256()
        for f in fields(self):
            array = np.ascontiguousarray(getattr(self, f.name))
            made.update(f"{f.name} {array.dtype.str} {array.shape}".encode() + array.tobytes())
        return made.hexdigest()

    def save(self, path: str | Path) -> None:
        """Write a .npz without pickles."""
        np.savez_compressed(path, **{f.name: getattr(self, f.name) for f in fields(self)})


def load(path: str | Path) -> Outcomes:
    """Outcomes that `Outcomes.save` wrote. Raises `InputError`."""
    try:
        with np.load(path, allow_pickle=False) as file:
            found = Outcomes(**{f.name: file[f.name] for f in fields(Outcomes)})
    except (OSError, KeyError, ValueError) as error:
        raise InputError(f"{path}: these are no outcomes of searches ({error}); collect them again") from None
    if found.real.shape[1:] != (MOST,) or found.whole.shape[1:] != (len(LIST),):
        raise InputError(f"{path}: the outcomes have other features than this version; collect them again")
    return found


def joined(parts: Sequence[Outcomes]) -> Outcomes:
    """The lists of all parts."""
    return Outcomes(**{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Outcomes)})


def outcome(
    of: Labelled, ranked: Sequence[Judged], right: Sequence[bool], *, turn: int = 0, doubt: float = 1.0
) -> Outcomes:
    """One state as `Outcomes` of length one; `right` says which of `ranked` are the true lattice."""
    seen = features(ranked, of.lines, surveyed_only=turn == 0)
    k = min(len(ranked), MOST)
    number = int.from_bytes(hashlib.sha256(of.family.encode()).digest()[:7], "big")
    return Outcomes(
        difference=np.pad(seen.difference[:k], (0, MOST - k)).astype(np.float32)[None],
        whole=seen.whole.astype(np.float32)[None],
        real=(np.arange(MOST) < k)[None],
        right=np.pad(np.asarray(right[:k], bool), (0, MOST - k))[None],
        family=np.array([number]),
        turn=np.array([turn]),
        doubt=np.array([doubt], np.float32),
        uid=np.array([of.uid]),
        variant=np.array([of.variant]),
        bravais=np.array([of.bravais]),
    )


def is_true(ranked: Sequence[Judged], of: Labelled) -> list[bool]:
    """Which of `ranked` are the true lattice, within `SAME`."""
    if of.metric is None or not ranked:
        return [False] * len(ranked)
    primitive = np.array([transform_metric(j.fit.g, BRAVAIS[j.fit.bravais].primitive) for j in ranked])
    truth = transform_metric(of.metric, BRAVAIS[of.bravais].primitive)
    return (lattice_distance(primitive, truth) <= SAME).tolist()


def collect(lists: Iterable[Labelled], *, seed: int = 0) -> Iterable[Outcomes]:
    """The states of the search of each list, as they are made; those with nothing to be judged are left out."""
    doubts = [one.doubt for one in EFFORTS["normal"][1:]]
    for number, one in enumerate(lists):
        every = states(one.lines.first(JUDGED), seed=seed + number, patience=PATIENCE)
        made = [
            outcome(one, ranked, is_true(ranked, one), turn=turn, doubt=doubt)
            for turn, (ranked, doubt) in enumerate(zip(every, [*doubts, 1.0], strict=False))
            if ranked
        ]
        if made:
            yield joined([*made[:-1], replace(made[-1], doubt=np.ones(1, np.float32))])


def _start(mean: NDArray, scale: NDArray) -> NDArray[np.float64]:
    """Weights before training, (a, ln b, s): a tempered evidence and a logistic of the gain a line. Training is drawn
    to them, so where the data are silent the evidence speaks."""
    evidence, solved = np.zeros(len(WEIGHING)), np.zeros(len(LIST))
    evidence[0] = -np.log(TEMPERATURE)
    gain = LIST.index("gain a line of the best")  # less 4
    solved[gain] = scale[gain] / SOLVED_WIDTH
    solved[0] = (mean[gain] + 4.0 - SOLVED_GAIN) / SOLVED_WIDTH
    return np.concatenate([evidence, [np.log(BEND)], solved])


def _parts(flat: NDArray) -> tuple[NDArray, float, NDArray]:
    """a, b and s."""
    return flat[: len(WEIGHING)], float(np.exp(flat[len(WEIGHING)])), flat[len(WEIGHING) + 1 :]


def _logs(outcomes: Outcomes, t: NDArray, a: NDArray, b: float) -> Float[np.ndarray, "n k"]:
    """log f of the candidates, -inf for padding."""
    weight = np.exp(t[:, WEIGHING] @ a)
    return np.where(outcomes.real, tempered(outcomes.difference.astype(float), weight[:, None], b), -np.inf)


def _objective(
    flat: NDArray, start: NDArray, t: NDArray, outcomes: Outcomes, decay: float
) -> tuple[float, NDArray[np.float64]]:
    """- log of the probability of what is right, summed over the lists, plus the decay; and its gradient."""
    a, b, s = _parts(flat)
    each = _logs(outcomes, t, a, b)
    solved = t @ s
    found = outcomes.right.any(1)
    right = np.where(outcomes.right, each, -np.inf)[found]
    choice = logsumexp(each[found], axis=1) - logsumexp(right, axis=1)
    loss = choice.sum() - log_expit(np.where(found, solved, -solved)).sum() + decay * np.sum((flat - start) ** 2)
    share = softmax(each[found], axis=1) - softmax(right, axis=1)
    known = np.where(outcomes.real[found], each[found], 0.0)
    by_weight = np.sum(share * known, axis=1)  # d each / d (a . t) = each
    ratio = outcomes.difference[found].astype(float) / b
    # d each / d ln b = each + w b (-ratio) / (1 - ratio), with w b = each / -log1p(-ratio)
    bent = known * (1 + ratio / (1 - ratio) / np.where(ratio < 0, np.log1p(-ratio), 1.0))
    slope = [t[found][:, WEIGHING].T @ by_weight, [np.sum(share * bent)], t.T @ (expit(solved) - found)]
    return float(loss), np.concatenate(slope) + 2 * decay * (flat - start)


def fitted(outcomes: Outcomes, *, decay: float = DECAY) -> dict[str, NDArray]:
    """The weights (float32) that minimise the summed loss plus `decay` times the squared distance from the start.

    Raises `ValueError` for no lists.
    """
    if not len(outcomes):
        raise ValueError("a posterior cannot be fitted to no lists")
    mean, deviation = outcomes.whole.mean(0).astype(float), outcomes.whole.std(0).astype(float)
    mean[0] = 0.0
    scale = np.where(deviation > 1e-6, deviation, 1.0)
    start = _start(mean, scale)
    arguments = (start, (outcomes.whole - mean) / scale, outcomes, decay)
    found = minimize(_objective, start, arguments, jac=True, method="L-BFGS-B", options={"maxiter": 500})
    evidence, bend, solved = _parts(found.x)
    model = {"evidence": evidence, "bend": np.log([bend]), "solved": solved, "mean": mean, "scale": scale}
    return {name: np.asarray(value, np.float32) for name, value in model.items()}


def probabilities(outcomes: Outcomes, model: dict[str, NDArray]) -> Float[np.ndarray, "n k1"]:
    """The posterior of every list: candidates, then "none of these"."""
    t = (outcomes.whole - model["mean"]) / model["scale"]
    each = _logs(outcomes, t, model["evidence"], float(np.exp(model["bend"][0])))
    share = expit(t @ model["solved"])
    return np.column_stack([np.exp(log_softmax(each, axis=1)) * share[:, None], 1 - share])


def cross_validated(outcomes: Outcomes, *, folds: int = 5, decay: float = DECAY) -> Float[np.ndarray, "n k1"]:
    """The posterior of every list under a model that was fitted without its family."""
    fold = outcomes.family % folds
    made = np.full((len(outcomes), MOST + 1), np.nan)
    for number in range(folds):
        left_out = fold == number
        if left_out.any():
            model = fitted(outcomes.subset(np.flatnonzero(~left_out)), decay=decay)
            made[left_out] = probabilities(outcomes.subset(np.flatnonzero(left_out)), model)
    return made


def figures(outcomes: Outcomes, probability: Float[np.ndarray, "n k1"]) -> dict[str, float]:
    """The loss a list, the share of lists whose first is right, the share lost to ranking, and the calibration error of
    the probability of the first (ten bins of equal width)."""
    right = outcomes.right
    first = probability[:, :-1].argmax(1)
    row = np.arange(len(first))
    hit, stated = right[row, first], probability[row, first]
    target = np.concatenate([right, ~right.any(1, keepdims=True)], 1)
    loss = -np.log(np.maximum((probability * target).sum(1), 1e-12))
    return {
        "lists": float(len(first)),
        "loss": float(loss.mean()),
        "first": float(hit.mean()),
        "lost_to_ranking": float((right.any(1) & ~hit).mean()),
        "calibration_error": calibration_error(stated, hit),
    }


def ended(outcomes: Outcomes, probability: Float[np.ndarray, "n k1"]) -> Int[np.ndarray, " lists"]:
    """The state in which the search of each list ends under a posterior: the first one with little doubt."""
    # a state without candidates is left out, so that the first one kept of a search need not have turn 0
    new = (np.diff(outcomes.turn) <= 0) | (outcomes.uid[1:] != outcomes.uid[:-1])
    lists = np.cumsum(np.append(True, new)) - 1
    ends = np.flatnonzero(probability[:, -1] < outcomes.doubt)
    ends = np.union1d(ends, np.append(np.flatnonzero(np.diff(lists)), len(lists) - 1))
    return ends[np.unique(lists[ends], return_index=True)[1]]


def calibration_error(stated: Float[np.ndarray, " n"], hit: Bool[np.ndarray, " n"], *, bins: int = 10) -> float:
    """The expected calibration error: | mean stated probability - share right | over `bins` of equal width, weighted by
    their numbers. Source: Naeini, Cooper & Hauskrecht, AAAI (2015) 2901."""
    place = np.minimum((stated * bins).astype(int), bins - 1)
    gap = np.bincount(place, stated - hit, bins)
    return float(np.abs(gap).sum() / max(len(stated), 1))


def train(outcomes: Outcomes, *, decay: float = DECAY, folds: int = 5) -> tuple[dict[str, NDArray], dict[str, Any]]:
    """The weights of the posterior and their card: data, settings, seconds, figures of a validation over families, of
    the states in which the searches end.

    Nothing is random. Raises `ValueError` for no lists, or lists of one fold alone.
    """
    began = time.process_time()
    model = fitted(outcomes, decay=decay)
    made = cross_validated(outcomes, folds=folds, decay=decay)
    ends = ended(outcomes, made)
    card: dict[str, Any] = {
        "model": "posterior of judged lattices",
        "data": outcomes.digest(),
        "states": len(outcomes),
        "lists": len(ends),
        "decay": decay,
        "cross_validation": figures(outcomes.subset(ends), made[ends]),
        "seconds": round(time.process_time() - began, 1),
    }
    return model, card
