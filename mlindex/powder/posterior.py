"""The posterior over the lattices that a search has judged, and over "none of these", from a small trained model.

The evidence (`judge`) ranks the lattices. How far it may be believed is learned: its model of lines is not the whole
truth, and a search may not have met the true cell at all. With d_c the evidence of candidate c less that of the best
(nats) and t what can be said of the list and of its best candidate (`LIST`),

    p_c = sigma(s . t) f(d_c) / sum_c f(d_c),   p_none = 1 - sigma(s . t),
    f(d) = (1 - d / b)^(-w b),   w = exp(a . t),

where only the number of lines and whether there is a wavelength enter a. For small differences f is exp(w d); b nats
on, it falls as a power, because the larger a difference, the likelier it is that the model of lines is wrong (a tail
like that of Student's law; with exp(w d) alone the log score of families left out is 0.05 to 0.1 a list worse). Both b
and the weight w are positive and one for the list, so the order of the probabilities is that of the evidence. Features
of each candidate (lattice, share of lines
seen, relatives among the others) changed the order and gained nothing on families left out: 184 of 210 lists right
with them, 185 without.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file
from scipy.special import expit

from mlindex.crystal.lattice import BRAVAIS
from mlindex.crystal.metric import transform_metric, volume_from_reciprocal_metric
from mlindex.powder import judge
from mlindex.powder.lines import Lines
from mlindex.powder.ranking import Judged
from mlindex.records import InputError

WEIGHTS = Path(__file__).parents[1] / "models" / "powder_posterior.safetensors"

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
    "free parameters a line of the best",
    "surveyed only",
    "surveyed only, gain a line of the best",
)
WEIGHING = tuple(LIST.index(name) for name in ("one", "log lines", "no wavelength"))  # of the evidence
_OTHER_VOLUME = 1.02  # ratio from which on primitive volumes differ
_MOST_LEAD = 40.0  # nats


@dataclass(frozen=True)
class Features:
    """What the model sees of one list: `difference` (k,) of the evidence to the best (nats), `whole` (t,) as `LIST`."""

    difference: Float[np.ndarray, " k"]
    whole: Float[np.ndarray, " t"]


def features(ranked: Sequence[Judged], lines: Lines, *, surveyed_only: bool = False) -> Features:
    """The features of candidates that are fitted to the first lines of `lines`. Raises `ValueError` for none.

    `surveyed_only`: lattices of more than three parameters were not searched.
    """
    if not ranked:
        raise ValueError("a posterior needs at least one candidate")
    gain = np.array([j.gain for j in ranked])
    best = ranked[int(gain.argmax())]
    used = lines.first(len(best.fit.indexed))
    n = len(used)
    _, present, seen = judge.predicted(best.fit, used, best.absent)
    visible = max(int(present.sum()), 1)
    primitive = np.array([transform_metric(j.fit.g, BRAVAIS[j.fit.bravais].primitive) for j in ranked])
    volume = np.asarray(volume_from_reciprocal_metric(primitive))
    own = volume[int(gain.argmax())]
    apart = np.maximum(volume, own) / np.minimum(volume, own) > _OTHER_VOLUME
    lead = float(gain.max() - gain[apart].max()) if apart.any() else _MOST_LEAD
    surplus = best.gain / n - 4.0
    whole = [
        1.0,
        surplus,
        surplus**2,
        min(lead, _MOST_LEAD) / 10,
        np.log(n / 30),
        float(lines.wavelength is None),
        float((~best.fit.indexed).mean()),
        np.log(best.fit.error / judge.ERROR_MEDIAN),
        float(seen.sum()) / visible,
        np.log(visible / n),
        BRAVAIS[best.fit.bravais].n_free,
        BRAVAIS[best.fit.bravais].n_free / n,
        float(surveyed_only),
        surveyed_only * surplus,
    ]
    return Features(gain - gain.max(), np.array(whole, float))


@cache
def weights(path: Path = WEIGHTS) -> dict[str, NDArray]:
    """The weights in a file, by default the shipped ones. Raises `InputError`."""
    try:
        model = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: these are no weights of a posterior ({error}); train them again") from None
    sizes = {"evidence": len(WEIGHING), "bend": 1, "solved": len(LIST), "mean": len(LIST), "scale": len(LIST)}
    if {name: value.size for name, value in model.items()} != sizes:
        raise InputError(f"{path}: these are no weights of the posterior of this version; train them again")
    return model


def tempered(difference: Float[np.ndarray, "*k"], weight: Any, bend: float) -> Float[np.ndarray, "*k"]:
    """log f of differences of evidence, which are not positive: about w d down to d = -b, then the log of a power.

    `weight`: one, or an array that broadcasts to the differences.
    """
    return -weight * bend * np.log1p(-difference / bend)


def logits(of: Features, model: Mapping[str, NDArray]) -> tuple[Float[np.ndarray, " k"], float]:
    """log f (k,) of the candidates, and s . t of the list."""
    t = (of.whole - model["mean"]) / model["scale"]
    weight = float(np.exp(t[list(WEIGHING)] @ model["evidence"]))
    return tempered(of.difference, weight, float(np.exp(model["bend"][0]))), float(t @ model["solved"])


def posterior(of: Features, model: Mapping[str, NDArray]) -> tuple[Float[np.ndarray, " k"], float]:
    """The probability of each candidate and that of "none of these"; they sum to one."""
    each, solved = logits(of, model)
    values = np.exp(each - each.max())
    share = float(expit(solved))
    return share * values / values.sum(), 1.0 - share


def probabilities_of(
    ranked: Sequence[Judged], lines: Lines, *, surveyed_only: bool = False
) -> tuple[Float[np.ndarray, " k"], float]:
    """The probability of each candidate, and of "none of these", which is certain where there are no candidates."""
    if not ranked:
        return np.empty(0), 1.0
    return posterior(features(ranked, lines, surveyed_only=surveyed_only), weights())
