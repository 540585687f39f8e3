"""Learned proposals: what networks and forests say of the cell, and of its volume, from the first lines of a pattern.

The lines are scaled by the last of them, so that a list and the same list of a larger cell are one input; the answer
is the logarithms of the diagonal of the reciprocal metric, the cosines of the reciprocal angles and the logarithm of
the primitive volume, in the same scale. There is a variance network and a forest for every group of space groups of
every Bravais lattice; all of them are asked in one compiled call. Candidates are draws from the networks and single
trees of the forests, scaled to the volume that goes with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.typing import NDArray
from scipy.special import logsumexp, stdtr

from mlindex.crystal.lattice import BRAVAIS, SYSTEMS
from mlindex.crystal.metric import metric_determinant
from mlindex.learn import checkpoint, variance
from mlindex.learn.forest import Forest, answers
from mlindex.powder.lines import Lines
from mlindex.powder.propose import Window, bucket

STORED = "powder_proposals.safetensors"
LINES = 20  # that the networks look at
INPUTS = 2 * LINES + 1
OUTPUTS = 7  # three logarithms of g_ii, three cosines, the logarithm of the primitive volume
VOLUME = 6  # its place
# Places of the free parameters among the outputs, by lattice system; the others follow from them
FREE = {
    "cubic": (0,),
    "tetragonal": (0, 2),
    "hexagonal": (0, 2),
    "rhombohedral": (0, 2),
    "orthorhombic": (0, 1, 2),
    "monoclinic": (0, 1, 2, 4),
    "triclinic": (0, 1, 2, 3, 4, 5),
}
_PAIRS = ((1, 2), (0, 2), (0, 1))
_FLATTEST = 0.03  # least determinant of the cosines of a cell


class Arrays(NamedTuple):
    """The weights and constants of all groups, with a leading axis of groups."""

    networks: variance.Networks
    forests: Forest
    input_centre: Any  # (g, i)
    input_scale: Any
    output_centre: Any  # (g, o)
    output_scale: Any
    spread: Any  # (g, 6, 6): the metric of the lattice from one that holds its free parameters
    multiplicity: Any  # (g,)


@dataclass(frozen=True, eq=False)
class Model:
    """The lattice of every group, its `share` of the crystals of that lattice, and the arrays."""

    bravais: tuple[str, ...]
    share: NDArray[np.float64]
    arrays: Arrays
    card: Mapping[str, Any]

    def groups(self, bravais: str) -> NDArray[np.int64]:
        """The groups of a lattice."""
        return np.flatnonzero([b == bravais for b in self.bravais])


@dataclass(frozen=True, eq=False)
class Opinion:
    """What the networks say of one list: Student distributions of the outputs (g, o), for q2 in units of `scale`."""

    model: Model
    scale: float
    location: NDArray[np.float64]
    width: NDArray[np.float64]
    freedom: NDArray[np.float64]


def inputs_from_q2(q2: Float[Any, "*b n"], weight: Float[Any, "*b n"]) -> tuple[Float[Any, "*b i"], Float[Any, " *b"]]:
    """The inputs of the networks from the first lines, ascending and padded where `weight` is 0, and the scale of q2.

    ln(q2 / scale) and q2 / scale of `LINES` lines, the scale being the last line that is there; then the share of the
    lines that are there. Padding reads as the last line.
    """
    scale = jnp.max(jnp.where(weight > 0, q2, 0.0), -1)
    ratio = jnp.where(weight > 0, jnp.maximum(q2, 1e-12) / scale[..., None], 1.0)
    present = jnp.mean((weight > 0).astype(jnp.float32), -1, keepdims=True)
    return jnp.concatenate([jnp.log(ratio), ratio, present], -1), scale


def outputs_from_metric(g: Float[Any, "*b 6"], scale: Float[Any, " *b"], multiplicity: Any) -> Float[Any, "*b o"]:
    """The outputs for conventional reciprocal metrics (1/angstrom^2); `multiplicity` of the lattices. NumPy or JAX."""
    xp = g.__array_namespace__()
    g = g / scale[..., None]
    diagonal = g[..., :3]
    cosines = [g[..., 3 + n] / (2 * xp.sqrt(diagonal[..., i] * diagonal[..., j])) for n, (i, j) in enumerate(_PAIRS)]
    volume = -0.5 * xp.log(metric_determinant(g)) - xp.log(multiplicity)
    return xp.concatenate([xp.log(diagonal), xp.stack([*cosines, volume], -1)], -1)


def metric_from_outputs(
    u: Float[Any, "*b o"], scale: Float[Any, " *b"], spread: Float[Any, "6 6"], multiplicity: Any
) -> Float[Any, "*b 6"]:
    """Conventional reciprocal metrics from outputs, positive definite, and scaled to the volume among the outputs.

    Angles that no cell has are brought towards right angles.
    """
    diagonal = jnp.exp(jnp.clip(u[..., :3], -12.0, 6.0))
    product = [jnp.sqrt(diagonal[..., i] * diagonal[..., j]) for i, j in _PAIRS]
    cosines = jnp.clip(u[..., 3:6], -0.95, 0.95)

    def metric(cosines: Any) -> Any:
        cross = 2 * cosines * jnp.stack(product, -1)
        return jnp.concatenate([diagonal, cross], -1) @ spread.T

    for _ in range(4):
        g = metric(cosines)
        flat = metric_determinant(g) < _FLATTEST * g[..., 0] * g[..., 1] * g[..., 2]
        cosines = jnp.where(flat[..., None], 0.6 * cosines, cosines)
    g = metric(cosines)
    g = jnp.where(metric_determinant(g)[..., None] > 0, g, metric(jnp.zeros_like(cosines)))
    volume = -0.5 * jnp.log(metric_determinant(g)) - jnp.log(multiplicity)
    wanted = jnp.clip(u[..., VOLUME], volume - 2.0, volume + 2.0)
    return g * (jnp.exp(2 / 3 * (volume - wanted)) * scale)[..., None]


def spreads(bravais: str) -> Float[np.ndarray, "6 6"]:
    """The matrix that makes a metric of the lattice of one in which the free parameters are in their places."""
    system = BRAVAIS[bravais].system
    return SYSTEMS[system].embed @ np.eye(6)[list(FREE[system])]


def _first(lines: Lines) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    if not len(lines):
        raise ValueError("a list without lines says nothing of a cell")
    n = min(LINES, len(lines))
    padding = (0, LINES - n)
    q2 = np.pad(lines.q2[:n], padding, mode="edge").astype(np.float32)
    return q2, np.pad(np.ones(n, np.float32), padding)


def _posteriors(arrays: Arrays, q2: Any, weight: Any) -> tuple[variance.Posterior, Any, Any]:
    x, scale = inputs_from_q2(q2, weight)
    x = (x[None] - arrays.input_centre) / arrays.input_scale
    posterior = variance.predict(arrays.networks, x[:, None, :])
    return jax.tree.map(lambda a: a[:, 0], posterior), x, scale


@jax.jit
def _asked(arrays: Arrays, q2: Float[Array, " n"], weight: Float[Array, " n"]) -> tuple[Any, Any, Any, Any]:
    posterior, _, scale = _posteriors(arrays, q2, weight)
    location = posterior.mu * arrays.output_scale + arrays.output_centre
    width = jnp.sqrt(posterior.beta / posterior.alpha) * arrays.output_scale
    return scale, location, width, 2 * posterior.alpha


@partial(jax.jit, static_argnames="count")
def _proposed(
    arrays: Arrays, q2: Float[Array, " n"], weight: Float[Array, " n"], seed: Any, count: int
) -> tuple[Float[Array, "g k 6"], Float[Array, "g t 6"]]:
    """Draws from the network of every group, and every tree of its forest."""
    posterior, x, scale = _posteriors(arrays, q2, weight)
    drawn = jnp.swapaxes(variance.samples(jax.random.key(seed), posterior, count), 0, 1)
    single = jax.vmap(answers)(arrays.forests, x)

    def cells(u: Any, centre: Any, width: Any, spread: Any, multiplicity: Any) -> Any:
        return metric_from_outputs(u * width + centre, jnp.broadcast_to(scale, u.shape[:1]), spread, multiplicity)

    rest = (arrays.output_centre, arrays.output_scale, arrays.spread, arrays.multiplicity)
    return jax.vmap(cells)(drawn, *rest), jax.vmap(cells)(single, *rest)


def opinion(lines: Lines, model: Model | None = None) -> Opinion:
    """What the networks of all groups say of the first lines. Raises `ValueError` where there are none."""
    model = shipped() if model is None else model
    scale, *student = _asked(model.arrays, *_first(lines))
    return Opinion(model, float(scale), *(np.asarray(a, np.float64) for a in student))


def _dealt(total: int, share: NDArray[np.float64]) -> NDArray[np.int64]:
    """`total` in whole parts by `share`, the largest remainders rounded up."""
    exact = total * share / share.sum()
    parts = np.floor(exact).astype(np.int64)
    parts[np.argsort(parts - exact, kind="stable")[: total - parts.sum()]] += 1
    return parts


def propose(
    lines: Lines, counts: Mapping[str, tuple[int, int]], seed: int, model: Model | None = None
) -> dict[str, Float[np.ndarray, "k 6"]]:
    """Candidates of every lattice in `counts`: so many draws from its networks, then so many single trees.

    Metrics are conventional, 1/angstrom^2, float32; both kinds are dealt to the groups of a lattice by their shares of
    the known crystals. A lattice has no more trees than its forests do. The same seed gives the same cells, and the
    cells scale with the lines. Raises `ValueError` for a list without lines.
    """
    model = shipped() if model is None else model
    drawn_of = np.zeros(len(model.bravais), np.int64)
    trees_of = np.zeros_like(drawn_of)
    trees = model.arrays.forests.feature.shape[1]
    for bravais, (draws, single) in counts.items():
        mine = model.groups(bravais)
        if not len(mine):
            continue
        drawn_of[mine] = _dealt(draws, model.share[mine])
        trees_of[mine] = np.minimum(_dealt(single, np.sqrt(model.share[mine])), trees)
    size = bucket(int(drawn_of.max(initial=1)), 16)
    drawn, forest = (np.asarray(a) for a in _proposed(model.arrays, *_first(lines), np.uint32(seed), count=size))
    rng = np.random.default_rng(seed)
    out = {}
    for bravais in counts:
        mine = model.groups(bravais)
        parts = [np.empty((0, 6), np.float32)]
        for source, numbers, whole in ((drawn, drawn_of, False), (forest, trees_of, True)):
            for group in mine:
                order = rng.permutation(trees) if whole else np.arange(size)
                parts.append(source[group, order[: numbers[group]]])
        out[bravais] = np.concatenate(parts)
    return out


@dataclass(frozen=True, eq=False)
class Mixture:
    """Student distributions (g,) of one number, with their shares."""

    share: NDArray[np.float64]
    location: NDArray[np.float64]
    width: NDArray[np.float64]
    freedom: NDArray[np.float64]

    def quantiles(self, levels: Float[np.ndarray, " l"]) -> Float[np.ndarray, " l"]:
        """Values below which the number lies with the probabilities `levels`."""
        reach = 12 * self.width
        grid = np.linspace((self.location - reach).min(), (self.location + reach).max(), 2001)
        share = self.share / self.share.sum()
        return np.interp(
            levels, (share * stdtr(self.freedom, (grid[:, None] - self.location) / self.width)).sum(1), grid
        )


def volume_quantiles(said: Opinion, bravais: str, levels: Float[np.ndarray, " l"]) -> Float[np.ndarray, " l"]:
    """Primitive volumes (cubic angstrom) below which the true one lies with the probabilities `levels`, ascending."""
    mine = said.model.groups(bravais)
    student = (a[mine, VOLUME] for a in (said.location, said.width, said.freedom))
    return np.exp(Mixture(said.model.share[mine], *student).quantiles(levels)) * said.scale**-1.5


def narrowed(window: Window, said: Opinion, bravais: str, coverage: float) -> Window:
    """The part of `window` in which the networks expect the volume with probability `coverage`."""
    tail = (1 - coverage) / 2
    low, high = volume_quantiles(said, bravais, np.array([tail, 1 - tail])).tolist()
    return Window(max(window.low, low), min(window.high, high))


def log_density(
    said: Opinion, bravais: str, g: Float[np.ndarray, "k 6"], places: tuple[int, ...]
) -> Float[np.ndarray, " k"]:
    """The networks' logarithmic density of the outputs in `places` at conventional metrics, up to a constant.

    The axes must be in the order of the standard setting where `places` tell them apart.
    """
    mine = said.model.groups(bravais)
    multiplicity = BRAVAIS[bravais].multiplicity
    u = outputs_from_metric(np.asarray(g, np.float64), np.full(len(g), said.scale), multiplicity)
    chosen = np.array(places)
    location, width, freedom = (a[mine][:, None, chosen] for a in (said.location, said.width, said.freedom))
    z2 = ((u[None][..., chosen] - location) / width) ** 2
    total = (-0.5 * (freedom + 1) * np.log1p(z2 / freedom) - np.log(width)).sum(-1)
    return logsumexp(total + np.log(said.model.share[mine])[:, None], axis=0)


def model_from_arrays(arrays: Mapping[str, NDArray], card: Mapping[str, Any]) -> Model:
    """The model of stored arrays, ready for the device."""
    bravais = tuple(card["groups"])
    constants = {k: np.asarray(arrays[k], np.float32) for k in Arrays._fields if k in arrays}
    every = Arrays(
        networks=variance.from_arrays(arrays),
        forests=Forest(*(arrays[f"forests.{name}"] for name in Forest._fields)),
        spread=np.array([spreads(b) for b in bravais], np.float32),
        multiplicity=np.array([BRAVAIS[b].multiplicity for b in bravais], np.float32),
        **constants,
    )
    return Model(bravais, np.asarray(arrays["share"], np.float64), jax.tree.map(jnp.asarray, every), card)


def load(path: str | Path) -> Model:
    """A model from a file that `proposals_train` wrote. Raises `InputError`."""
    return model_from_arrays(*checkpoint.load(path))


@cache
def shipped() -> Model:
    """The model that comes with the package."""
    with resources.as_file(resources.files("mlindex.models") / STORED) as path:
        return load(path)
