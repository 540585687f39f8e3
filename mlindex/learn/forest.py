"""Random forests as arrays: regression trees of several outputs, grown on histograms and asked in one gather loop.

Each tree sees a share of the samples, drawn without replacement, and is split where the variance of the outputs falls
most, level by level, all nodes of a level at once; thresholds are quantiles of the inputs, so that a histogram of
every input holds all that a split needs. The single trees are what is asked for, not their mean.

Sources: L. Breiman, Machine Learning 45 (2001) 5 (forests); G. Ke et al., NIPS (2017) (growth on histograms).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from numpy.typing import NDArray

BINS = 64  # of each input
DEEPEST = 14  # levels


class Forest(NamedTuple):
    """Trees with their nodes (..., t, m) and the values of their leaves (..., t, l, o); node 0 is the root.

    `feature`: the input that a node looks at, -1 for a leaf. `threshold`: inputs at most so large go left. `left`: the
    node on the left, the one on the right follows it; of a leaf, its row of `value`. Arrays of a stack of forests have
    a leading axis.
    """

    feature: Any  # int8
    threshold: Any  # float16
    left: Any  # int16
    value: Any  # float16


def _edges(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Thresholds (i, BINS - 1) of every input, which a half-precision number holds exactly, ascending."""
    edges = np.quantile(x, np.arange(1, BINS) / BINS, axis=0).T
    return np.sort(edges.astype(np.float16).astype(np.float32), axis=1)


def _grown(
    bins: NDArray[np.uint8], y: NDArray[np.float64], edges: NDArray[np.float32], smallest: int
) -> tuple[list[tuple[int, float, int]], NDArray[np.float64]]:
    """The nodes of one tree (feature, threshold, left) and the values of its leaves."""
    n, inputs = bins.shape
    outputs = y.shape[1]
    node = np.zeros(n, np.int64)  # among those of this level, -1 once in a leaf
    table: list[tuple[int, float, int]] = [(-1, 0.0, 0)]
    level = [0]  # nodes of this level by their place in the table
    values: list[NDArray[np.float64]] = []
    for depth in range(DEEPEST + 1):
        if not level:
            break
        alive = np.flatnonzero(node >= 0)
        cell = (node[alive, None] * inputs + np.arange(inputs)) * BINS + bins[alive]
        shape = (len(level), inputs, BINS)
        size = int(np.prod(shape))
        count = np.bincount(cell.ravel(), minlength=size).reshape(shape).cumsum(2)
        total = count[:, 0, -1]
        gain = np.zeros(shape)
        sums = np.empty((len(level), outputs))
        with np.errstate(divide="ignore", invalid="ignore"):
            for o in range(outputs):
                weights = np.repeat(y[alive, o], inputs)
                sum_left = np.bincount(cell.ravel(), weights, minlength=size).reshape(shape).cumsum(2)
                whole = sums[:, o] = sum_left[:, 0, -1]
                right = total[:, None, None] - count
                gain += sum_left**2 / count + (whole[:, None, None] - sum_left) ** 2 / right
                gain -= (whole**2 / total)[:, None, None]
        allowed = (count >= smallest) & (total[:, None, None] - count >= smallest)
        offered = np.where(allowed, gain, -1.0).reshape(len(level), -1)
        best = offered.argmax(1)
        split = (offered[np.arange(len(level)), best] > 1e-9) & (depth < DEEPEST)
        feature, threshold = best // BINS, best % BINS
        child = np.full(len(level), -1)
        following: list[int] = []
        for i, place in enumerate(level):
            if split[i]:
                left = len(table)
                table[place] = (int(feature[i]), float(edges[feature[i], threshold[i]]), left)
                table += [(-1, 0.0, 0)] * 2
                child[i] = len(following)
                following += [left, left + 1]
            else:
                table[place] = (-1, 0.0, len(values))
                values.append(sums[i] / max(int(total[i]), 1))
        mine = node[alive]
        goes_right = bins[alive, feature[mine]] > threshold[mine]
        node[alive] = np.where(split[mine], child[mine] + goes_right, -1)
        level = following
    return table, np.array(values)


def grow(
    x: Float[np.ndarray, "n i"],
    y: Float[np.ndarray, "n o"],
    *,
    trees: int = 80,
    share: float = 0.1,
    smallest: int = 10,
    seed: int = 0,
) -> Forest:
    """A forest of `trees`, each grown on a `share` of the samples with at least `smallest` of them in every leaf.

    Outputs should be scaled alike: the variance that a split removes is summed over them. Raises `ValueError` where a
    tree would have no sample, or where there are more inputs than an int8 counts.
    """
    size = round(share * len(x))
    if size < 1 or trees < 1:
        raise ValueError(f"a tree needs samples: {len(x)} of them, share {share}, {trees} trees")
    if x.shape[1] > 127:
        raise ValueError(f"a forest looks at 127 inputs at most, got {x.shape[1]}")
    rng = np.random.default_rng(seed)
    edges = _edges(np.asarray(x, np.float32))
    # the bin of a value is the number of thresholds below it: equal goes left, as in `leaves`
    bins = np.stack([np.searchsorted(e, c, side="left") for e, c in zip(edges, x.T, strict=True)], 1).astype(np.uint8)
    grown = []
    for _ in range(trees):
        rows = rng.choice(len(x), size, replace=False)
        grown.append(_grown(bins[rows], np.asarray(y[rows], np.float64), edges, smallest))
    most = max(len(table) for table, _ in grown)
    leaves = max(len(values) for _, values in grown)
    forest = Forest(
        np.full((trees, most), -1, np.int8),
        np.zeros((trees, most), np.float16),
        np.zeros((trees, most), np.int16),
        np.zeros((trees, leaves, y.shape[1]), np.float16),
    )
    for t, (table, values) in enumerate(grown):
        feature, threshold, left = (np.array(column) for column in zip(*table, strict=True))
        forest.feature[t, : len(table)] = feature
        forest.threshold[t, : len(table)] = threshold
        forest.left[t, : len(table)] = left
        forest.value[t, : len(values)] = values
    return forest


def stacked(forests: list[Forest], outputs: int) -> Forest:
    """Forests of equally many trees as one stack, padded with leaves of zeros, every value to `outputs` numbers."""
    most = max(f.feature.shape[1] for f in forests)
    leaves = max(f.value.shape[1] for f in forests)

    def padded(a: NDArray, *sizes: int, value: int = 0) -> NDArray:
        widths = [(0, size - n) for size, n in zip(sizes, a.shape[1:], strict=True)]
        return np.pad(a, [(0, 0), *widths], constant_values=value)

    return Forest(
        np.stack([padded(f.feature, most, value=-1) for f in forests]),
        np.stack([padded(f.threshold, most) for f in forests]),
        np.stack([padded(f.left, most) for f in forests]),
        np.stack([padded(f.value, leaves, outputs) for f in forests]),
    )


def leaves(forest: Forest, x: Float[Array, " i"]) -> Int[Array, " t"]:
    """The row of `value` that each tree of one forest comes to for one sample."""
    trees = np.arange(forest.feature.shape[0])

    def down(_: Any, node: Any) -> Any:
        feature = forest.feature[trees, node].astype(jnp.int32)
        right = x[jnp.maximum(feature, 0)] > forest.threshold[trees, node].astype(jnp.float32)
        return jnp.where(feature < 0, node, forest.left[trees, node].astype(jnp.int32) + right)

    node = jax.lax.fori_loop(0, DEEPEST, down, jnp.zeros(len(trees), jnp.int32))
    return forest.left[trees, node].astype(jnp.int32)


def answers(forest: Forest, x: Float[Array, " i"]) -> Float[Array, "t o"]:
    """What each tree of one forest says of one sample."""
    return forest.value[np.arange(forest.feature.shape[0]), leaves(forest, x)].astype(jnp.float32)
