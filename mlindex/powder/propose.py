"""Candidate cells: solved directly from templates of low-index reflections, or drawn at random at a likely volume.

A candidate is a row of free parameters of its lattice system; only candidates whose primitive volume agrees with the
density of lines are kept. Learned ones are in `proposals`.
"""

from __future__ import annotations

import itertools
from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from mlindex.crystal.lattice import BRAVAIS, SYSTEMS
from mlindex.crystal.metric import metric_determinant, reciprocal_metric_from_cell
from mlindex.powder.lines import Lines
from mlindex.powder.templates import solved_templates

# Primitive volume in units of n / ((2 pi / 3) q_n^3), the volume that would have n nodes in the half sphere of q_n: the
# second to the ninety-eighth percentile of known crystals with observable lines, a little widened.
_NODES_PER_LINE = {
    "cP": (3.0, 150.0),
    "cI": (3.0, 150.0),
    "cF": (3.0, 150.0),
    "tP": (2.5, 60.0),
    "tI": (2.5, 45.0),
    "hP": (3.0, 60.0),
    "hR": (2.0, 24.0),
    "oP": (1.7, 20.0),
    "oS": (1.5, 20.0),
    "oI": (1.5, 22.0),
    "oF": (1.5, 20.0),
    "mP": (1.3, 12.0),
    "mC": (1.1, 14.0),
    "aP": (0.8, 8.0),
}


class Window(NamedTuple):
    """Limits of the primitive direct volume, in cubic angstrom."""

    low: float
    high: float


def volume_window(lines: Lines, bravais: str, max_volume: float | None = None) -> Window:
    """The primitive volumes that the density of `lines` allows; `max_volume` is that of the conventional cell."""
    unit = len(lines) * 3 / (2 * np.pi) / lines.q[-1] ** 3
    low, high = (unit * factor for factor in _NODES_PER_LINE[bravais])
    if max_volume is not None:
        high = min(high, max_volume / BRAVAIS[bravais].multiplicity)
    return Window(float(low), float(high))  # Python floats, so that comparisons give bool


@cache
def _subsets(n: int, p: int) -> Int[np.ndarray, "s p"]:
    return np.array(list(itertools.combinations(range(n), p)), np.int32).reshape(-1, p)


def line_subsets(n: int, p: int) -> Int[np.ndarray, "s p"]:
    """All ascending choices of p of the first n lines."""
    return _subsets(n, p)


@jax.jit
def in_window(
    inverse: Float[Array, "t p p"],
    q2: Float[Array, " n"],
    subsets: Int[Array, "s p"],
    embed: Float[Array, "6 p"],
    determinants: Float[Array, 2],
) -> Bool[Array, "t s"]:
    """True where template and line subset give a cell (positive definite metric) inside the volume window.

    `determinants` are the limits of det g* = 1 / V^2. Lines that are NaN (padding) never give a cell.
    """
    g = jnp.einsum("tij,sj->tsi", inverse, q2[subsets]) @ embed.T
    a, b, c, d, e, f = (g[..., i] for i in range(6))
    det = metric_determinant(g)
    plane = (4 * a * b > f * f) & (4 * a * c > e * e) & (4 * b * c > d * d)
    return (det > determinants[0]) & (det < determinants[1]) & (a > 0) & (b > 0) & (c > 0) & plane


@jax.jit
def solve(
    inverse: Float[Array, "t p p"],
    q2: Float[Array, " n"],
    subsets: Int[Array, "s p"],
    embed: Float[Array, "6 p"],
    template: Int[Array, " k"],
    subset: Int[Array, " k"],
) -> Float[Array, "k 6"]:
    """The metrics of the chosen (template, subset) pairs."""
    return jnp.einsum("kij,kj->ki", inverse[template], q2[subsets[subset]]) @ embed.T


def bucket(n: int, smallest: int) -> int:
    """The power of two times `smallest` that holds n, so that few shapes are compiled."""
    return smallest << max(0, int(np.ceil(np.log2(max(n, 1) / smallest))))


def from_templates(
    q2: Float[np.ndarray, " c"], bravais: str, *, window: Window, n_lines: int, n_templates: int, tile: int
) -> tuple[Float[Array, "k 6"], int]:
    """Metrics (k, 6) float32 solved from the first `n_lines` of the given lines, padded to a power of two times `tile`,
    and how many are real."""
    lattice = BRAVAIS[bravais]
    embed = SYSTEMS[lattice.system].embed.astype(np.float32)
    inverse = solved_templates(bravais, n_templates)
    subsets = line_subsets(n_lines, lattice.n_free)
    combined = np.full(n_lines, np.nan, np.float32)
    combined[: min(n_lines, len(q2))] = q2[:n_lines]
    m = lattice.multiplicity
    limits = np.array([1 / (window.high * m) ** 2, 1 / (window.low * m) ** 2], np.float32)
    template, subset = np.nonzero(np.asarray(in_window(inverse, combined, subsets, embed, limits)))
    count = len(template)
    padding = bucket(count, tile) - count
    template, subset = (np.pad(x, (0, padding), mode="edge" if count else "constant") for x in (template, subset))
    return solve(inverse, combined, subsets, embed, template.astype(np.int32), subset.astype(np.int32)), count


def at_random(
    lines: Lines, bravais: str, *, window: Window, count: int, rng: np.random.Generator
) -> Float[np.ndarray, "k 6"]:
    """Metrics (count, 6) float32 of random cells: log-uniform volume inside the window, edges of a random shape.

    Edge ratios are log-normal (a factor of 1.6), angles uniform between 70 and 110 degrees where they are free.
    """
    lattice = BRAVAIS[bravais]
    edges = np.exp(rng.normal(0, np.log(1.6), (count, 3)))
    angles = rng.uniform(70, 110, (count, 3))
    g = reciprocal_metric_from_cell(np.concatenate([edges, angles], 1))
    system = SYSTEMS[lattice.system]
    g = g @ system.project.T @ system.embed.T
    volume = 1 / np.sqrt(np.maximum(metric_determinant(g), 1e-12))
    wanted = np.exp(rng.uniform(np.log(window.low), np.log(max(window.high, window.low * 1.01)), count))
    scale = (wanted * lattice.multiplicity / volume) ** (-2 / 3)
    return (g * scale[:, None]).astype(np.float32)
