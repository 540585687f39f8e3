"""Weights go to disk and come back; what is not ours is refused with a sentence."""

from __future__ import annotations

import os

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from mlindex.learn import checkpoint
from mlindex.learn.layers import CountClassifier
from mlindex.records import InputError


def network(seed):
    return CountClassifier(12, 2, 5, hidden=7, rngs=nnx.Rngs(seed))


def test_round_trip(tmp_path):
    path = tmp_path / "deep" / "net.safetensors"
    first, second = network(0), network(1)
    counts, side = jnp.asarray(np.random.default_rng(0).poisson(3.0, (4, 12)), jnp.float32), jnp.zeros((4, 2))
    assert np.abs(np.asarray(first(counts, side) - second(counts, side))).max() > 1e-3
    checkpoint.save(path, checkpoint.arrays_of(first), {"seed": 3, "list": [1, 2.5, "a"]})
    arrays, card = checkpoint.load(path)
    assert card == {"seed": 3, "list": [1, 2.5, "a"]}
    checkpoint.put_arrays(second, arrays)
    np.testing.assert_array_equal(first(counts, side), second(counts, side))
    # safetensors' own reader sees the same, and nothing else is left in the folder
    assert {name: array.shape for name, array in load_file(path).items()} == {n: a.shape for n, a in arrays.items()}
    assert [p.name for p in path.parent.iterdir()] == ["net.safetensors"]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "net.safetensors"
    checkpoint.save(path, {"a": np.ones(3)}, {"n": 1})
    with pytest.raises(TypeError):
        checkpoint.save(path, {"a": np.zeros(3)}, {"n": object()})
    arrays, card = checkpoint.load(path)
    assert card == {"n": 1}
    assert arrays["a"].sum() == 3


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_the_umask_says_who_may_read(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        checkpoint.save(tmp_path / "net.safetensors", {"a": np.ones(3)}, {})
    finally:
        os.umask(before)
    assert (tmp_path / "net.safetensors").stat().st_mode & 0o777 == mode


def test_parameters_that_do_not_fit():
    arrays = checkpoint.arrays_of(network(0))
    with pytest.raises(ValueError, match=r"do not fit the network: inner\.bias"):
        checkpoint.put_arrays(network(0), {n: a for n, a in arrays.items() if n != "inner.bias"})
    with pytest.raises(ValueError, match=r"do not fit the network: outer\.kernel"):
        checkpoint.put_arrays(network(0), arrays | {"outer.kernel": np.zeros((3, 3), np.float32)})


def test_files_that_are_no_networks(tmp_path):
    with pytest.raises(InputError, match="there is no such file"):
        checkpoint.load(tmp_path / "none.safetensors")
    (tmp_path / "text").write_text("hello, this is not a network")
    with pytest.raises(InputError, match="no trained network"):
        checkpoint.load(tmp_path / "text")
    save_file({"a": np.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="no trained network"):
        checkpoint.load(tmp_path / "other.safetensors")
