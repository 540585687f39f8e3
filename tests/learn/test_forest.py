"""Forests against a walk down the tree in plain Python, and the laws of a regression tree."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlindex.learn import forest


def walked(grown, tree, x):
    """(leaf, depth) by recursion, as a textbook has it."""
    node, depth = 0, 0
    while grown.feature[tree, node] >= 0:
        right = x[grown.feature[tree, node]] > np.float32(grown.threshold[tree, node])
        node = int(grown.left[tree, node]) + int(right)
        depth += 1
    return int(grown.left[tree, node]), depth


def data(seed, n, inputs=5):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, inputs)).astype(np.float32)
    y = np.stack([np.where(x[:, 0] > 0.3, 1.0, -1.0), x[:, 1] * (x[:, 2] > 0)], 1)
    return x, y


def asked(grown, x):
    arrays = jax.tree.map(jnp.asarray, grown)
    return (
        np.asarray(jax.vmap(forest.leaves, in_axes=(None, 0))(arrays, x)),
        np.asarray(jax.vmap(forest.answers, in_axes=(None, 0))(arrays, x)),
    )


@settings(max_examples=5)
@given(seed=st.integers(0, 10**6), n=st.sampled_from([40, 300]), smallest=st.sampled_from([3, 10]))
def test_a_leaf_holds_the_mean_of_the_samples_that_come_to_it(seed, n, smallest):
    """With a share of one every tree has seen all samples, so its leaves can be worked out from them."""
    x, y = data(seed, n)
    grown = forest.grow(x, y, trees=2, share=1.0, smallest=smallest, seed=seed)
    leaf, value = asked(grown, x)
    for tree in range(2):
        assert [walked(grown, tree, row)[0] for row in x] == leaf[:, tree].tolist()
        for number in np.unique(leaf[:, tree]):
            mine = leaf[:, tree] == number
            assert mine.sum() >= smallest
            np.testing.assert_allclose(value[mine, tree], np.tile(y[mine].mean(0), (mine.sum(), 1)), atol=2e-3)


def test_the_first_split_is_where_the_variance_falls_most():
    x, y = data(3, 400)
    grown = forest.grow(x, y[:, :1], trees=1, share=1.0, smallest=10)
    best = {}
    for feature in range(x.shape[1]):
        for threshold in np.quantile(x[:, feature], np.arange(1, forest.BINS) / forest.BINS):
            right = x[:, feature] > np.float32(np.float16(threshold))
            best[feature, float(np.float16(threshold))] = sum(
                y[m, 0].var() * m.sum() for m in (right, ~right) if m.any()
            )
    lowest = min(best.values())
    assert best[int(grown.feature[0, 0]), float(grown.threshold[0, 0])] == pytest.approx(lowest, abs=1e-9)


def test_trees_learn_and_differ():
    x, y = data(0, 3000)
    grown = forest.grow(x, y, trees=20, share=0.1, smallest=10, seed=1)
    fresh_x, fresh_y = data(1, 500)
    _, value = asked(grown, fresh_x)
    assert np.sqrt(np.mean((value.mean(1) - fresh_y) ** 2)) < 0.35 * fresh_y.std()
    assert value[:, :, 1].std(1).mean() > 0.01
    again = forest.grow(x, y, trees=20, share=0.1, smallest=10, seed=1)
    assert all(np.array_equal(a, b) for a, b in zip(grown, again, strict=True))


def test_no_tree_is_deeper_than_the_loop():
    """Thresholds that halve the rest again and again make the deepest tree there is."""
    x = np.arange(64, dtype=np.float32)[:, None]
    grown = forest.grow(x, 4.0 ** (7.0 - np.arange(64)[:, None]), trees=1, share=1.0, smallest=1)
    leaf, _ = asked(grown, x)
    found = [walked(grown, 0, row) for row in x]
    assert [f[0] for f in found] == leaf[:, 0].tolist()
    assert max(f[1] for f in found) == forest.DEEPEST


def test_a_stack_answers_as_its_forests_do():
    forests = [forest.grow(*data(s, n), trees=4, share=0.5, smallest=10) for s, n in ((0, 100), (1, 600))]
    stack = forest.stacked(forests, 3)
    x = data(7, 30)[0]
    for n, alone in enumerate(forests):
        np.testing.assert_array_equal(
            asked(alone, x)[1], asked(jax.tree.map(lambda a, n=n: a[n], stack), x)[1][..., :2]
        )
    assert not stack.value[..., 2].any()


def test_growth_refuses_what_cannot_be_done():
    x, y = data(0, 4)
    with pytest.raises(ValueError, match="needs samples"):
        forest.grow(x, y, share=0.1)
    with pytest.raises(ValueError, match="127 inputs"):
        forest.grow(np.zeros((20, 200), np.float32), np.zeros((20, 1)))
