"""Assignment networks: invariant to scale, blind to the order of lines, right on a perfect cell, stored and trained."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlindex.crystal.lattice import BRAVAIS, SYSTEMS
from mlindex.crystal.metric import products_from_hkl, reciprocal_metric_from_cell
from mlindex.crystal.reflections import line_key, reference_hkl
from mlindex.learn import checkpoint
from mlindex.powder import assign_network, assign_train
from mlindex.powder.templates import design
from tests.powder.patterns import CELLS, positions, reflections
from tests.powder.test_refine import perturbed

HIDDEN = [((), False), ((16,), False), ((16, 8), True)]


def reference(name):
    """The reference list (m, 3) and its q2 for the cell of the tests."""
    hkl = reference_hkl(name, assign_network.REFERENCE[BRAVAIS[name].n_free])
    g = reciprocal_metric_from_cell(np.array(CELLS[name][0], float))
    return hkl, jnp.asarray(products_from_hkl(hkl) @ g, jnp.float32)


@jax.jit
def _logits(network, q2, q2_ref, level):
    return assign_network.logits(assign_network.at_level(network, level), q2, q2_ref, jnp.max(q2))


def scores(network, q2, q2_ref, level=3):
    network = jax.tree.map(jnp.asarray, network)
    return np.asarray(_logits(network, jnp.asarray(q2, jnp.float32), jnp.asarray(q2_ref, jnp.float32), level))


@pytest.mark.parametrize("name", BRAVAIS)
def test_lines_of_the_true_cell_are_their_reflections(name):
    q2 = positions(*CELLS[name], 20, 0.06)
    hkl, q2_ref = reference(name)
    found = scores(assign_network.naive(len(hkl)), q2, q2_ref).argmax(1)
    np.testing.assert_allclose(np.asarray(q2_ref)[found], q2, rtol=1e-4)


@pytest.mark.parametrize(("hidden", "published"), HIDDEN)
@settings(max_examples=5)
@given(scale=st.floats(0.01, 30), seed=st.integers(0, 1000))
def test_scale_and_order_do_not_matter(hidden, published, scale, seed):
    _, q2_ref = reference("oP")
    network = assign_network.initial(jax.random.key(seed), len(q2_ref), hidden, published=published)
    q2 = positions(*CELLS["oP"], 20, 0.06)
    first = jax.nn.log_softmax(scores(network, q2, q2_ref), -1)
    scaled = jax.nn.log_softmax(scores(network, q2 * scale, np.asarray(q2_ref) * scale), -1)
    likely = np.asarray(first) > -12
    np.testing.assert_allclose(scaled[likely], first[likely], atol=0.02)
    order = np.random.default_rng(seed).permutation(20)
    turned = jax.nn.log_softmax(scores(network, q2[order], q2_ref), -1)
    np.testing.assert_allclose(turned[likely[order]], np.asarray(first)[order][likely[order]], atol=1e-3)


@pytest.mark.parametrize(("hidden", "published"), HIDDEN)
def test_weights_survive_the_file(hidden, published, tmp_path):
    network = assign_network.initial(jax.random.key(1), 40, hidden, published=published)
    arrays = assign_network.to_arrays(network, "mP") | assign_network.to_arrays(network, "mC")
    checkpoint.save(tmp_path / "weights.safetensors", arrays, {"seed": 1})
    stored, _ = checkpoint.load(tmp_path / "weights.safetensors")
    again = assign_network.from_arrays(stored, "mC")
    assert jax.tree.structure(again) == jax.tree.structure(network)
    for mine, theirs in zip(jax.tree.leaves(again), jax.tree.leaves(network), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", ["cI", "hR", "oS", "mC", "aP"])
def test_labels_name_the_line_whatever_equivalent_is_given(name):
    system = BRAVAIS[name].system
    hkl, q2_ref = reference(name)
    keys = jnp.asarray(line_key(hkl, system))
    known, q2 = reflections(*CELLS[name], float(q2_ref[40]))  # of every half of the sphere, by gemmi
    label = np.asarray(assign_train.labels(jnp.asarray(known[None]), keys, name))[0]
    inside = label < len(hkl)
    assert inside.mean() > 0.8
    np.testing.assert_allclose(np.asarray(q2_ref)[label[inside]], q2[inside], rtol=1e-4)
    beyond = jnp.full((1, 1, 3), 90, jnp.int32) * jnp.array([1, 1, 2])
    assert int(assign_train.labels(beyond, keys, name)[0, 0]) == len(hkl)


@pytest.mark.parametrize("name", ["cP", "hP", "mP", "aP"])
def test_moved_cells_are_off_by_the_noise(name):
    system = SYSTEMS[BRAVAIS[name].system]
    g = jnp.asarray(reciprocal_metric_from_cell(np.array(CELLS[name][0], float)), jnp.float32)
    embed, project = jnp.asarray(system.embed, jnp.float32), jnp.asarray(system.project, jnp.float32)
    x = jnp.tile(project @ g, (4000, 1))
    moved = assign_train.moved(jax.random.key(0), x, embed, project, 0.05)
    diagonal = np.abs(np.asarray(project @ assign_network.reach(g)))
    np.testing.assert_allclose(np.std(moved - x, axis=0) / diagonal, 0.05, rtol=0.06)
    np.testing.assert_allclose(np.mean(moved - x, axis=0) / diagonal, 0, atol=0.004)


def test_shipped_networks_give_the_right_lines_more_probability_than_the_plain_softmax():
    gained, more = [], []
    for name in BRAVAIS:
        hkl, q2_ref = reference(name)
        trained = assign_network.shipped(name)
        assert trained.prior.shape == (len(assign_network.LEVELS), len(hkl))
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(trained))
        q2 = positions(*CELLS[name], 20, 0.06)  # of cells that are in nobody's training set
        right = np.abs(q2[:, None] - np.asarray(q2_ref)[None]).argmin(1)
        rows = design(hkl, BRAVAIS[name].system)
        for level, noise in enumerate(assign_network.LEVELS):
            start = perturbed(name, noise, 20, seed=level) @ SYSTEMS[BRAVAIS[name].system].project.T
            for network, sums in ((assign_network.naive(len(hkl)), more), (trained, gained)):
                each = [jax.nn.log_softmax(scores(network, q2, rows @ one, level), -1) for one in start]
                sums.append(np.mean([np.asarray(p)[np.arange(20), right].mean() for p in each]))
    assert np.mean(gained) > np.mean(more)
