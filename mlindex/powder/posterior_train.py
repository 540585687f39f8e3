"""Training of the posterior (`posterior`): outcomes of searches whose answer is known, and the model fitted to them.

Two kinds of lists teach. Those that the search worked on (`searched`) have all the wrong cells that a search meets, and
some lack the true one: they teach when "none of these" is right. A search takes seconds, and ranking goes wrong mostly
between a lattice and its relatives; so the true cell is also judged among its own relatives alone (`related`), in a
tenth of a second. Such a list always has its answer and lacks the wrong cells of other origin, so it enters by the
probability of the right candidate given that one of its candidates is right: a conditional logit may be fitted to a
choice from some of the alternatives (McFadden, in Spatial Interaction Theory and Planning Models (1978) 75).
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, logsumexp, softmax

from mlindex.crystal.lattice import BRAVAIS
from mlindex.crystal.metric import transform_metric
from mlindex.crystal.reduction import lattice_distance
from mlindex.powder.judge import TEMPERATURE
from mlindex.powder.lines import Lines
from mlindex.powder.posterior import CANDIDATE, LIST, MOST, OTHER, features
from mlindex.powder.relatives import relatives
from mlindex.powder.search import JUDGED, Judged, judged, merged, search, volume_allowed, with_superstructures
from mlindex.powder.solution import SOLVED_GAIN
from mlindex.records import InputError

SAME = 0.01  # largest relative difference of the Voronoi vectors of a right answer from the truth
SOLVED_WIDTH = 0.25  # nats a line around SOLVED_GAIN in which a list turns from unsolved to solved, before training
DECAY = 5.0  # of the squared distance from the start, on the scale of the summed loss
STEPS = 300  # of L-BFGS
RELATED = 0.5  # weight of a list of relatives
LEADERS = 3  # cells whose relatives a list of relatives has

_IMPURITIES = 3  # lines that a sublattice may lose


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
    """Features and truth of n lists, padded to k candidates; `real` (n, k) says which there are.

    `right` (n, k) are the candidates that are the true lattice; `searched` (n,) is false for lists of relatives;
    `family` (n,) is a number of the isotype family, for folds.
    """

    difference: Float[np.ndarray, "n k"]
    candidate: Float[np.ndarray, "n k f"]
    whole: Float[np.ndarray, "n t"]
    real: Bool[np.ndarray, "n k"]
    right: Bool[np.ndarray, "n k"]
    searched: Bool[np.ndarray, " n"]
    family: Int[np.ndarray, " n"]
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
    if found.candidate.shape[1:] != (MOST, len(CANDIDATE)) or found.whole.shape[1:] != (len(LIST),):
        raise InputError(f"{path}: the outcomes have other features than this version; collect them again")
    return found


def joined(parts: Sequence[Outcomes]) -> Outcomes:
    """The lists of all parts."""
    return Outcomes(**{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Outcomes)})


def outcome(of: Labelled, ranked: Sequence[Judged], right: Sequence[bool], *, searched: bool) -> Outcomes:
    """One list as `Outcomes` of length one; `right` says which of `ranked` are the true lattice."""
    seen = features(ranked, of.lines)
    k = len(seen.difference)
    pad = MOST - k
    number = int.from_bytes(hashlib.sha256(of.family.encode()).digest()[:7], "big")
    return Outcomes(
        difference=np.pad(seen.difference, (0, pad)).astype(np.float32)[None],
        candidate=np.pad(seen.candidate, ((0, pad), (0, 0))).astype(np.float32)[None],
        whole=seen.whole.astype(np.float32)[None],
        real=(np.arange(MOST) < k)[None],
        right=np.pad(np.asarray(right[:k], bool), (0, pad))[None],
        searched=np.array([searched]),
        family=np.array([number]),
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


def related(of: Labelled) -> list[Judged]:
    """The true cell ranked among its relatives and theirs, without a search; empty where it cannot be fitted."""
    if of.metric is None:
        return []
    lines = of.lines.first(JUDGED)
    fit_zero = lines.wavelength is not None
    found = judged(lines, [(of.bravais, of.metric)], fit_zero=fit_zero)
    for leaders in (1, LEADERS):
        for leader in found[:leaders]:
            tolerance = max(0.004, 6 * leader.fit.error * float(lines.w[0] / lines.q[0]))
            near = [
                (b, g)
                for b, g in relatives(leader.fit, tolerance=tolerance, missing=_IMPURITIES)
                if volume_allowed(lines, b, g, None)
            ]
            found = found + judged(lines, near, fit_zero=fit_zero, zero=leader.fit.zero)
        found = merged(found)
    return with_superstructures(found, lines)


def collect(lists: Iterable[Labelled], *, searched: bool, seed: int = 0) -> Iterable[Outcomes]:
    """The outcome of each list, from a search or from relatives alone, as they are made; a list for which nothing
    can be judged is left out."""
    for number, one in enumerate(lists):
        ranked = search(one.lines, seed=seed + number) if searched else related(one)
        if ranked:
            yield outcome(one, ranked, is_true(ranked, one), searched=searched)


def _scales(outcomes: Outcomes) -> dict[str, NDArray]:
    """Means and standard deviations of the features; those of what is constant 0 and 1."""
    rows = outcomes.candidate[outcomes.real]
    lists = outcomes.whole[outcomes.searched] if outcomes.searched.any() else outcomes.whole
    mean, deviation = lists.mean(0), lists.std(0)
    mean[0] = 0.0
    kinds = np.array([name.startswith("is ") or name == CANDIDATE[OTHER] for name in CANDIDATE])  # stay 0 and 1
    return {
        "candidate_mean": np.where(kinds, 0.0, rows.mean(0)).astype(np.float32),
        "candidate_scale": np.where(kinds, 1.0, np.maximum(rows.std(0), 1e-3)).astype(np.float32),
        "list_mean": mean.astype(np.float32),
        "list_scale": np.where(deviation > 1e-6, deviation, 1.0).astype(np.float32),
    }


def _start(scales: dict[str, NDArray]) -> dict[str, NDArray]:
    """Weights before training: what `solution` says of the evidence alone. Training is drawn to them, so where the data
    are silent the evidence speaks."""
    evidence, solved = np.zeros(len(LIST)), np.zeros(len(LIST))
    evidence[0] = np.log(10.0 / TEMPERATURE)  # of d / 10
    gain = LIST.index("gain a line of the best")  # less 4
    solved[gain] = scales["list_scale"][gain] / SOLVED_WIDTH
    solved[0] = (scales["list_mean"][gain] + 4.0 - SOLVED_GAIN) / SOLVED_WIDTH
    start = {"evidence": evidence, "other": np.zeros(1), "linear": np.zeros(len(CANDIDATE)), "solved": solved}
    return {name: value.astype(np.float32) for name, value in start.items()}


class _Data(NamedTuple):
    """Scaled features `x` (n, k, f) and `t` (n, t), truth as in `Outcomes`, and the `share` (n,) of each list."""

    x: Any
    t: Any
    difference: Any
    real: Any
    right: Any
    searched: Any
    share: Any


def _logits(model: dict[str, Any], x: Any, t: Any, difference: Any, real: Any) -> tuple[Any, Any]:
    """l (n, k) and z (n,) as `posterior.logits`, for padded lists of scaled features."""
    weight = jnp.exp((t @ model["evidence"])[:, None] + model["other"][None] * x[:, :, OTHER])
    each = weight * difference / 10 + x @ model["linear"]
    return jnp.where(real, each, -1e30), t @ model["solved"]


def _losses(each: Any, solved: Any, right: Any, searched: Any) -> Any:
    """- log of the probability of what is right, for each list (n,): see the module's description."""
    found = right.any(1)
    choice = jax.nn.logsumexp(each, axis=1) - jax.nn.logsumexp(jnp.where(right, each, -1e30), axis=1)
    return jnp.where(found, choice, 0.0) + jnp.where(searched, jax.nn.softplus(jnp.where(found, -solved, solved)), 0.0)


@jax.jit
def _objective(model: dict[str, Any], start: dict[str, Any], data: _Data, decay: Any) -> tuple[Any, dict[str, Any]]:
    """The loss of a model and its gradient."""

    def total(model: dict[str, Any]) -> Any:
        penalty = sum(jnp.sum((model[name] - start[name]) ** 2) for name in model)
        loss = _losses(*_logits(model, data.x, data.t, data.difference, data.real), data.right, data.searched)
        return jnp.sum(data.share * loss) + decay * penalty

    return jax.value_and_grad(total)(model)


def fitted(
    outcomes: Outcomes,
    *,
    use: Bool[np.ndarray, " n"] | None = None,
    decay: float = DECAY,
    steps: int = STEPS,
) -> dict[str, NDArray]:
    """The weights (float32) that minimise the summed loss of the lists `use` (all if None), lists of relatives weighted
    by `RELATED`, plus `decay` times the squared distance of the weights from where they start, by `steps` of L-BFGS.

    Raises `ValueError` for no lists.
    """
    use = np.ones(len(outcomes), bool) if use is None else use
    if not use.any():
        raise ValueError("a posterior cannot be fitted to no lists")
    scales = _scales(outcomes)
    start = _start(scales)
    x, t = _scaled(outcomes, scales)
    share = np.where(use, np.where(outcomes.searched, 1.0, RELATED), 0.0).astype(np.float32)
    data = _Data(x, t, outcomes.difference, outcomes.real, outcomes.right, outcomes.searched, share)
    sizes = {name: value.size for name, value in start.items()}

    def unpacked(flat: NDArray) -> dict[str, NDArray]:
        parts = np.split(flat, np.cumsum(list(sizes.values()))[:-1])
        return {n: p.reshape(start[n].shape).astype(np.float32) for n, p in zip(sizes, parts, strict=True)}

    def objective(flat: NDArray) -> tuple[float, NDArray]:
        value, slope = _objective(unpacked(flat), start, data, np.float32(decay))
        return float(value), np.concatenate([np.asarray(slope[name], np.float64).ravel() for name in sizes])

    flat = np.concatenate([value.ravel() for value in start.values()])
    found = minimize(objective, flat, jac=True, method="L-BFGS-B", options={"maxiter": steps, "maxcor": 20})
    return unpacked(found.x) | scales


def _scaled(
    outcomes: Outcomes, model: dict[str, NDArray]
) -> tuple[Float[np.ndarray, "n k f"], Float[np.ndarray, "n t"]]:
    x = (outcomes.candidate - model["candidate_mean"]) / model["candidate_scale"]
    return x.astype(np.float32), ((outcomes.whole - model["list_mean"]) / model["list_scale"]).astype(np.float32)


class Logits(NamedTuple):
    """`each` (n, k) of the candidates, -1e30 for padding, and `solved` (n,): l and z of `posterior`."""

    each: NDArray[np.float64]
    solved: NDArray[np.float64]

    def probabilities(self) -> Float[np.ndarray, "n k1"]:
        """The posterior of every list: candidates, then "none of these"."""
        share = expit(self.solved)
        return np.column_stack([softmax(self.each, axis=1) * share[:, None], 1 - share])


def logits_of(outcomes: Outcomes, model: dict[str, NDArray]) -> Logits:
    """The logits of every list."""
    each, solved = _logits(dict(model), *_scaled(outcomes, model), outcomes.difference, outcomes.real)
    return Logits(np.asarray(each, np.float64), np.asarray(solved, np.float64))


def probabilities(outcomes: Outcomes, model: dict[str, NDArray]) -> Float[np.ndarray, "n k1"]:
    """The posterior of every list: candidates, then "none of these"."""
    return logits_of(outcomes, model).probabilities()


def cross_validated(outcomes: Outcomes, *, folds: int = 5, **options: Any) -> Logits:
    """The logits of every list under a model that was fitted without its family."""
    fold = outcomes.family % folds
    made = Logits(np.zeros(outcomes.real.shape), np.zeros(len(outcomes)))
    for number in range(folds):
        left_out = fold == number
        if left_out.any() and not left_out.all():
            got = logits_of(outcomes, fitted(outcomes, use=~left_out, **options))
            made.each[left_out], made.solved[left_out] = got.each[left_out], got.solved[left_out]
    return made


class Tempering(NamedTuple):
    """l times `candidates`, and z times `slope` plus `shift`."""

    candidates: float
    slope: float
    shift: float


def tempering(outcomes: Outcomes, logits: Logits) -> Tempering:
    """The three numbers that make the logits of searched lists, when left out, most probable.

    A model says too much of lists that it was not fitted to, and lists of relatives are harder than searches. A weak
    prior keeps the numbers near 1, 1 and 0. Source: Platt, in Advances in Large Margin Classifiers (1999) 61; Guo et
    al., ICML (2017) 1321.
    """
    searched = outcomes.searched
    found = np.asarray(outcomes.right.any(1))
    both = searched & found

    def loss(values: NDArray) -> float:
        each = np.exp(values[0]) * logits.each[both]
        right = np.where(outcomes.right[both], each, -np.inf)
        choice = (logsumexp(each, axis=1) - logsumexp(right, axis=1)).sum()
        solved = np.exp(values[1]) * logits.solved[searched] + values[2]
        unsure = np.logaddexp(0, np.where(found[searched], -solved, solved)).sum()
        return float(choice + unsure + (values**2).sum())

    best = minimize(loss, np.zeros(3), method="Nelder-Mead", options={"xatol": 1e-4, "fatol": 1e-4, "maxiter": 2000}).x
    return Tempering(float(np.exp(best[0])), float(np.exp(best[1])), float(best[2]))


def tempered_logits(logits: Logits, by: Tempering) -> Logits:
    """The logits after tempering."""
    return Logits(by.candidates * logits.each, by.slope * logits.solved + by.shift)


def tempered(model: dict[str, NDArray], by: Tempering) -> dict[str, NDArray]:
    """The model whose logits are those of `model` after tempering."""
    made = dict(model)
    made["linear"] = (model["linear"] * by.candidates).astype(np.float32)
    made["solved"] = (model["solved"] * by.slope).astype(np.float32)
    # the first feature of a list is 1 with mean 0 and scale 1, so its weights are constants
    one = np.eye(len(LIST), dtype=np.float32)[0]
    made["evidence"] = model["evidence"] + np.float32(np.log(by.candidates)) * one
    made["solved"] = made["solved"] + np.float32(by.shift) * one
    return made


def figures(outcomes: Outcomes, probability: Float[np.ndarray, "n k1"]) -> dict[str, float]:
    """Figures of the lists that were searched: the loss a list, the share first, the share lost to ranking, and the
    calibration error of the probability of the first (ten bins of equal width)."""
    use = outcomes.searched
    probability, right = probability[use], outcomes.right[use]
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


def calibration_error(stated: Float[np.ndarray, " n"], hit: Bool[np.ndarray, " n"], *, bins: int = 10) -> float:
    """The expected calibration error: | mean stated probability - share right | over `bins` of equal width, weighted by
    their numbers. Source: Naeini, Cooper & Hauskrecht, AAAI (2015) 2901."""
    place = np.minimum((stated * bins).astype(int), bins - 1)
    gap = np.bincount(place, stated - hit, bins)
    return float(np.abs(gap).sum() / max(len(stated), 1))


def train(
    outcomes: Outcomes, *, decay: float = DECAY, steps: int = STEPS, folds: int = 5
) -> tuple[dict[str, NDArray], dict[str, Any]]:
    """The weights of the posterior and their card: data, settings, seconds, figures of a validation over families.

    The model is fitted to all lists and tempered by what the cross-validation says. Nothing is random. Raises
    `ValueError` for no lists.
    """
    began = time.process_time()
    options: dict[str, Any] = {"decay": decay, "steps": steps}
    left_out = cross_validated(outcomes, folds=folds, **options)
    by = tempering(outcomes, left_out)
    model = tempered(fitted(outcomes, **options), by)
    card: dict[str, Any] = {
        "model": "posterior of judged lattices",
        "data": outcomes.digest(),
        "lists": {"searched": int(outcomes.searched.sum()), "related": int((~outcomes.searched).sum())},
        **options,
        "tempering": [round(x, 4) for x in by],
        "cross_validation": figures(outcomes, tempered_logits(left_out, by).probabilities()),
        "seconds": round(time.process_time() - began, 1),
    }
    return model, card
