"""A whole search in one lattice as one compiled program, for lattices of at most three free parameters.

Templates are solved, screened, thinned to distinct cells and refined without leaving the device, on shapes that depend
on the lattice alone, so a list costs one call a lattice. It is the quick way: fewer lines combined, fewer candidates
and fewer steps than `search.screened` and `search.refined`, whose kernels it shares.
"""

from __future__ import annotations

import math
from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from mlindex.crystal.lattice import BRAVAIS, SYSTEMS
from mlindex.crystal.metric import metric_determinant, products_from_hkl
from mlindex.crystal.reflections import reference_hkl
from mlindex.powder import assign, propose, refine
from mlindex.powder.lines import Lines
from mlindex.powder.templates import design, solved_templates

LINES = 20  # that candidates are screened and refined against
TOLERANCE = 0.035  # degrees 2theta, of the screening
MOST_FREE = 3  # parameters; beyond, too few of the solved cells lie in the volume window to screen them all
# Among how many of the first lines each line of a combination is, by number of free parameters: of a pattern that
# begins with many lines of one zone, the last line of a combination must reach beyond them
_COMBINED = {1: (16,), 2: (5, 16), 3: (3, 7, 15)}
_LOWEST = {1: 12, 2: 20}  # reflections combined exhaustively, by number of free parameters
_TEMPLATES = 100  # of three-parameter lattices
_SCREENED = 64  # reflections
_REFERENCE = {1: 60, 2: 120, 3: 200}  # reflections in refinement
_REFINED = {1: 16, 2: 48, 3: 32}
_LOOKED_AT = 4  # times as many of the best candidates are looked at for distinct ones
_TILE = 2048
_ALIKE = 0.004  # relative difference of the free parameters of one cell
_SCALES = np.array([3.0, 1.7, 1.0, 1.0, 1.0], np.float32) * np.float32(TOLERANCE / 3)  # degrees 2theta, of the loss


class Observed(NamedTuple):
    """The lines of one list as the device sees them, the same for every lattice; padding has weight 0."""

    q2: Float[Array, " n"]
    q: Float[Array, " n"]
    width: Float[Array, " n"]  # of q, for a degree of 2theta
    weight: Float[Array, " n"]
    table: UInt32[Array, " bins"]
    scale: Float[Array, ""]
    zero: Float[Array, ""]  # degrees 2theta: usual size of the zero shift, 0 where there can be none


class Lattice(NamedTuple):
    """The constants of one Bravais lattice."""

    inverse: Float[Array, "t p p"]
    subsets: Int[Array, "s p"]
    screened: Float[Array, "m p"]
    products: Float[Array, "k 6"]
    embed: Float[Array, "6 p"]
    project: Float[Array, "p 6"]
    density: Float[Array, ""]  # distinct reflections per node of the conventional lattice, twice


def observed(lines: Lines, zero: float = 0.0) -> Observed:
    """The first `LINES` of `lines`, with the table that screens them; `zero`: usual size of a zero shift (degrees)."""
    first = lines.first(LINES)
    padding = LINES - len(first)
    table, scale = assign.line_table(first.q, TOLERANCE * first.w)

    def padded(values: np.ndarray) -> np.ndarray:
        return np.pad(values, (0, padding), constant_values=1.0).astype(np.float32)

    weight = np.pad(np.ones(len(first), np.float32), (0, padding))
    values = (padded(first.q2), padded(first.q), padded(first.w), weight, table, scale, np.float32(zero))
    return Observed(*map(jnp.asarray, values))


def _combinations(among: tuple[int, ...]) -> Int[np.ndarray, "s p"]:
    """Ascending choices of lines, the i-th among the first `among[i]`."""
    every = propose.line_subsets(among[-1], len(among))
    return every[(every < np.array(among)).all(1)]


@cache
def _lattice(bravais: str) -> Lattice:
    lattice = BRAVAIS[bravais]
    system = SYSTEMS[lattice.system]
    p = lattice.n_free
    inverse = solved_templates(bravais, _TEMPLATES, _LOWEST.get(p))
    count = math.perm(_LOWEST[p], p) if p in _LOWEST else _TEMPLATES
    constants = (
        # a template of zeros gives no cell: lattices of one system share their shapes, hence a compiled program
        np.pad(inverse, ((0, count - len(inverse)), (0, 0), (0, 0))),
        _combinations(_COMBINED[p]),
        design(reference_hkl(bravais, _SCREENED), lattice.system).astype(np.float32),
        products_from_hkl(reference_hkl(bravais, _REFERENCE[p]).astype(np.float32)),
        system.embed.astype(np.float32),
        system.project.astype(np.float32),
        np.float32(4 * np.pi / assign.NODES_PER_REFLECTION[lattice.system] / lattice.multiplicity),
    )
    return Lattice(*map(jnp.asarray, constants))


def _ordered(x: Float[Array, "... p"], exchanged: int) -> Float[Array, "... p"]:
    """Free parameters with the first `exchanged` axes, which may change places, in the order of the reference lists:
    longest last."""
    return jnp.concatenate([-jnp.sort(-x[..., :exchanged], axis=-1), x[..., exchanged:]], -1)


def _screen(x: Float[Array, "k p"], lines: Observed, lattice: Lattice) -> Float[Array, " k"]:
    """As `assign.screen`, from the free parameters."""

    def tile(x: Float[Array, "t p"]) -> Float[Array, " t"]:
        q2 = sum(x[:, i, None] * lattice.screened[None, :, i] for i in range(x.shape[1]))
        bins = jnp.clip((jnp.sqrt(jnp.maximum(q2, 0)) * lines.scale).astype(jnp.int32), 0, assign.BINS - 1)
        bits = jax.lax.reduce(lines.table[bins], np.uint32(0), jax.lax.bitwise_or, (1,))
        volume = jax.lax.rsqrt(metric_determinant(x @ lattice.embed.T))
        expected = lattice.density * TOLERANCE * lines.width * lines.q**2
        weight = -jnp.log(-jnp.expm1(-volume[:, None] * expected[None])) * lines.weight[None]
        seen = (bits[:, None] >> jnp.arange(LINES, dtype=jnp.uint32)[None]) & 1
        return jnp.sum(seen * weight, 1)

    return jax.lax.map(tile, x.reshape(-1, _TILE, x.shape[1])).reshape(-1)


def _first_of_its_kind(x: Float[Array, "k p"]) -> Bool[Array, " k"]:
    """False for a cell that is like an earlier one."""
    alike = jnp.all(jnp.abs(x[:, None] / x[None] - 1) < _ALIKE, -1)
    return ~jnp.any(jnp.tril(alike, -1), 1)


@partial(jax.jit, static_argnames=("exchanged", "count"))
def _survey(
    lines: Observed, lattice: Lattice, window: Float[Array, 2], seed: UInt32[Array, ""], exchanged: int, count: int
) -> tuple[Float[Array, "k 6"], Float[Array, " k"]]:
    p = lattice.embed.shape[1]
    known = jnp.where(lines.weight > 0, lines.q2, jnp.nan)  # a line that is not there gives no cell
    x = jnp.einsum("tij,sj->tsi", lattice.inverse, known[lattice.subsets]).reshape(-1, p)
    x = _ordered(x, exchanged)
    determinant = metric_determinant(x @ lattice.embed.T)
    valid = jnp.all(x > 0, 1) & (determinant > window[0]) & (determinant < window[1])
    x = jnp.where(valid[:, None], x, 1.0)
    padding = -len(x) % _TILE
    score = _screen(jnp.pad(x, ((0, padding), (0, 0)), constant_values=1.0), lines, lattice)[: len(x)]
    best, index = jax.lax.top_k(jnp.where(valid, score, -1.0), min(_LOOKED_AT * count, len(x)))
    x = x[index]
    best, index = jax.lax.top_k(jnp.where(_first_of_its_kind(x), best, -1.0), count)
    x = x[index]
    sigma = 2 * lines.q * lines.width
    problem = refine.Problem(lines.q2, sigma, lines.weight, lattice.products, lattice.embed, lines.zero)
    keys = jax.random.split(jax.random.key(seed), count)
    g, fitted = refine.refine(x @ lattice.embed.T, keys, problem, lattice.project, _SCALES)
    fitted = jnp.where(best > 0, fitted, -jnp.inf)
    fitted, index = jax.lax.top_k(fitted, count)
    g = g[index]
    x = _ordered(g @ lattice.project.T, exchanged)
    return x @ lattice.embed.T, jnp.where(_first_of_its_kind(x), fitted, -jnp.inf)


def survey(
    lines: Observed, bravais: str, window: propose.Window, seed: int
) -> tuple[Float[np.ndarray, "j 6"], Float[np.ndarray, " j"]]:
    """Distinct refined cells of one lattice and their scores (`refine.refine_one`, nats), best first.

    `window` limits the primitive volume.
    """
    lattice = BRAVAIS[bravais]
    m = lattice.multiplicity
    limits = np.array([1 / (window.high * m) ** 2, 1 / (window.low * m) ** 2], np.float32)
    exchanged = {"oP": 3, "oI": 3, "oF": 3, "oS": 2}.get(bravais, 0)
    g, score = _survey(
        lines, _lattice(bravais), limits, np.uint32(seed), exchanged=exchanged, count=_REFINED[lattice.n_free]
    )
    g, score = np.asarray(g, np.float64), np.asarray(score)
    found = np.isfinite(score)
    return g[found], score[found]
