"""Assignment of lines to reflections, against brute force in float64."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlindex.crystal.metric import products_from_hkl
from mlindex.crystal.reflections import reference_hkl
from mlindex.powder import assign
from mlindex.powder.lines import lines_from_q2
from tests.powder.patterns import CELLS, CU, measured

PRODUCTS = products_from_hkl(reference_hkl("oP", 96).astype(np.float32))
COUNT = 20


def candidates(rng, count=assign.TILE):
    """Orthorhombic metrics, the first that of a known cell."""
    g = np.zeros((count, 6), np.float32)
    g[:, :3] = rng.uniform(4, 15, (count, 3)) ** -2.0
    g[0, :3] = np.array(CELLS["oP"][0][:3]) ** -2.0
    return g


def set_up(seed):
    rng = np.random.default_rng(seed)
    lines = lines_from_q2(measured("oP", COUNT, seed=seed), CU)
    width = rng.uniform(0.01, 0.08) * lines.w
    return rng, lines, width, *assign.line_table(lines.q, width)


def score_of(bits, g, expected):
    """The score of `screen` in float64, from its formula."""
    volume = 1 / np.sqrt(np.prod(g[:, :3].astype(float), 1))
    weight = -np.log(-np.expm1(-volume[:, None] * expected.astype(float)))
    return (((bits[:, None] >> np.arange(len(expected), dtype=np.uint32)) & 1) * weight).sum(1)


@settings(max_examples=8)
@given(seed=st.integers(0, 10**6))
def test_table_explains_what_brute_force_explains(seed):
    rng, lines, width, table, scale = set_up(seed)
    g = candidates(rng)[:512]
    bits = np.asarray(assign.explained(jnp.asarray(g), jnp.asarray(PRODUCTS), jnp.asarray(table), jnp.asarray(scale)))
    said = (bits[:, None] >> np.arange(COUNT, dtype=np.uint32)) & 1 == 1
    q = np.sqrt(g.astype(float) @ PRODUCTS.astype(float).T)
    distance = np.abs(q[:, None, :] - lines.q[:, None]).min(2)
    bin_width = 1 / float(scale)
    assert said[distance < width - bin_width].all()
    assert not said[distance > np.maximum(width, bin_width) + bin_width].any()
    assert said[0].all()


@settings(max_examples=8)
@given(seed=st.integers(0, 10**6))
def test_float32_screening_ranks_as_float64(seed):
    rng, lines, width, table, scale = set_up(seed)
    g = candidates(rng)
    expected = (2 * width * 2 * np.pi * lines.q**2 / 3.4).astype(np.float32)
    score = np.asarray(assign.screen(g, PRODUCTS, table, scale, expected))
    q = np.sqrt(g.astype(float) @ PRODUCTS.astype(float).T)
    bits = np.bitwise_or.reduce(table[np.clip((q * float(scale)).astype(int), 0, assign.BINS - 1)], axis=1)
    exact = score_of(bits, g, expected)
    # A reflection on the edge of a bin may fall to either side; everything else agrees to rounding
    same = np.abs(score - exact) < 1e-4 * (1 + exact)
    assert same.mean() > 0.98
    kept, kept_exact = np.argsort(-score)[:256], np.argsort(-exact)[:256]
    assert score[0] == pytest.approx(exact[0], rel=1e-4) and score.argmax() == exact.argmax()
    assert np.isin(kept_exact, kept).mean() > 0.97


def test_screening_goes_by_tiles_and_padding_weighs_nothing():
    rng, lines, width, table, scale = set_up(5)
    g = candidates(rng, 2 * assign.TILE)
    expected = (2 * width * 2 * np.pi * lines.q**2).astype(np.float32)
    whole = np.asarray(assign.screen(g, PRODUCTS, table, scale, expected))
    halves = [np.asarray(assign.screen(half, PRODUCTS, table, scale, expected)) for half in np.split(g, 2)]
    np.testing.assert_array_equal(whole, np.concatenate(halves))
    padded = np.asarray(assign.screen(g, PRODUCTS, table, scale, np.pad(expected, (0, 12), constant_values=50.0)))
    np.testing.assert_allclose(padded, whole, rtol=1e-5, atol=1e-5)


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 32))
def test_table_has_a_bit_for_each_line_and_an_empty_end(seed, count):
    rng = np.random.default_rng(seed)
    q = np.sort(rng.uniform(0.05, 0.7, count))
    width = np.full(count, 10 ** rng.uniform(-8, -2))  # narrower than a bin too
    table, scale = assign.line_table(q, width)
    assert table[-1] == 0 and table.shape == (assign.BINS,)
    own = table[(q * float(scale)).astype(int)]
    assert all(own[i] >> i & 1 for i in range(count))
    centre = (np.arange(assign.BINS) + 0.5) / float(scale)
    for i in range(count):
        marked = centre[(table >> np.uint32(i)) & 1 == 1]
        assert np.abs(marked - q[i]).max() <= max(width[i], 0.51 / float(scale)) * (1 + 1e-6)


def test_a_word_has_32_bits():
    with pytest.raises(ValueError, match="32 lines, got 33"):
        assign.line_table(np.linspace(0.1, 0.5, 33), np.full(33, 1e-3))


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    size=st.sampled_from([2, 7, 64, 400]),
    exponent=st.sampled_from([-6, -1, 0, 6, 30]),
    ties=st.booleans(),
)
def test_nearest_is_argmin(seed, size, exponent, ties):
    rng = np.random.default_rng(seed)
    values = rng.integers(1, 9, size) if ties else rng.uniform(0.01, 1, size)
    q2_ref = (values * 10.0**exponent).astype(np.float32)
    q2 = (rng.uniform(0.01, 8 if ties else 1, 20) * 10.0**exponent).astype(np.float32)
    index, difference = (np.asarray(x) for x in assign.nearest(jnp.asarray(q2), jnp.asarray(q2_ref)))
    distance = np.abs(q2[:, None] - q2_ref[None])  # float32, as the kernel sees it
    least = distance.min(1)
    assert ((index >= 0) & (index < size)).all()
    found = distance[np.arange(20), index]
    resolution = 2.0 ** -(23 - max((size - 1).bit_length(), 1))
    assert (found <= least * (1 + 2 * resolution)).all()
    np.testing.assert_array_equal(difference, q2 - q2_ref[index])


def test_nearest_survives_overflow_and_exact_hits():
    q2_ref = np.array([np.inf, 0.25, 3e38, 0.5], np.float32)
    index, difference = assign.nearest(jnp.asarray([0.5, 0.2], jnp.float32), jnp.asarray(q2_ref))
    assert np.asarray(index).tolist() == [3, 1] and float(difference[0]) == 0.0
    only, _ = assign.nearest(jnp.asarray([0.5], jnp.float32), jnp.asarray([0.1], jnp.float32))
    assert np.asarray(only).tolist() == [0]
