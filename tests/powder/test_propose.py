"""Proposed cells: positive definite, inside the volume window, the true one among them."""

from __future__ import annotations

import itertools

import gemmi
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlindex.crystal.lattice import BRAVAIS, SYSTEMS
from mlindex.crystal.metric import transform_metric
from mlindex.crystal.reduction import lattice_distance, primitive_metric
from mlindex.powder import propose
from mlindex.powder.lines import lines_from_q2
from mlindex.powder.templates import solved_templates
from tests.powder.patterns import CELLS, CU, measured, positions

LINES = {1: 12, 2: 12, 3: 12, 4: 11, 6: 11}  # combined, by number of free parameters


def matrices(g):
    return g[:, [[0, 5, 4], [5, 1, 3], [4, 3, 2]]].astype(float) * (0.5 + 0.5 * np.eye(3))


def volumes(g):
    """Direct volumes by gemmi, from the cells of the inverted metric."""
    found = []
    for direct in np.linalg.inv(matrices(g)):
        edges = np.sqrt(np.diag(direct))
        cosines = [direct[i, j] / edges[i] / edges[j] for i, j in ((1, 2), (0, 2), (0, 1))]
        found.append(gemmi.UnitCell(*edges, *np.rad2deg(np.arccos(cosines))).volume)
    return np.array(found)


@pytest.mark.parametrize("name", BRAVAIS)
@pytest.mark.parametrize("scale", [0.8, 1.0, 3.0])
def test_window_holds_the_true_volume_and_scales_with_it(name, scale):
    cell = np.array(CELLS[name][0]) * ([scale] * 3 + [1] * 3)
    window = propose.volume_window(lines_from_q2(positions(cell, CELLS[name][1], 20, 0.06), CU), name)
    assert window.low < gemmi.UnitCell(*cell).volume / BRAVAIS[name].multiplicity < window.high


@pytest.mark.parametrize("name", BRAVAIS)
def test_the_users_limit_is_of_the_conventional_cell(name):
    lines = lines_from_q2(measured(name, 20), CU)
    free = propose.volume_window(lines, name)
    middle = float(np.sqrt(free.low * free.high))
    limited = propose.volume_window(lines, name, middle * BRAVAIS[name].multiplicity)
    assert limited.low == free.low and limited.high == pytest.approx(middle)
    assert propose.volume_window(lines, name, 1e9) == free


@pytest.mark.parametrize("name", ["cI", "hR", "tP", "oF", "mC", "aP"])
@settings(max_examples=6)
@given(seed=st.integers(0, 10**6))
def test_in_window_is_what_a_physicist_would_say(name, seed):
    rng = np.random.default_rng(seed)
    lattice = BRAVAIS[name]
    embed = SYSTEMS[lattice.system].embed
    subsets = propose.line_subsets(9, lattice.n_free)
    q2 = np.sort(rng.uniform(0.005, 0.2, 9)).astype(np.float32)
    inverse = solved_templates(name, 25)
    low, high = 60.0, 2500.0
    limits = np.array([1 / high**2, 1 / low**2], np.float32)
    said = np.asarray(propose.in_window(inverse, q2, subsets, embed.astype(np.float32), limits)).ravel()
    g = (np.einsum("tij,sj->tsi", inverse.astype(float), q2.astype(float)[subsets]) @ embed.T).reshape(-1, 6)
    matrix = matrices(g)
    smallest, det = np.linalg.eigvalsh(matrix)[:, 0], np.linalg.det(matrix)
    truth = (smallest > 0) & (det > 1 / high**2) & (det < 1 / low**2)
    # float32 cannot tell a cell on the edge: rounding in proportion to the terms of the determinant
    noise = 1e-5 * np.prod(np.abs(g[:, :3]).max(1)[:, None].repeat(3, 1), 1)
    edge = (np.abs(det) < noise) | (np.abs(det - 1 / high**2) < noise) | (np.abs(det - 1 / low**2) < noise)
    assert (said == truth)[~edge].all() and (~edge).mean() > 0.5
    assert truth.any() or name == "aP"
    chosen = g[truth & ~edge][:20]
    if len(chosen):
        volume = volumes(chosen)
        assert ((volume > low * 0.999) & (volume < high * 1.001)).all()


@pytest.mark.parametrize("name", BRAVAIS)
def test_the_true_cell_is_proposed(name):
    lattice = BRAVAIS[name]
    q2 = positions(*CELLS[name], 20, 0.06)
    lines = lines_from_q2(q2, CU)
    window = propose.volume_window(lines, name)
    n_lines = LINES[lattice.n_free]
    g, count = propose.from_templates(q2, name, window=window, n_lines=n_lines, n_templates=300, tile=4096)
    assert g.shape[0] % 4096 == 0 and 0 < count <= g.shape[0]
    g = np.asarray(g, np.float64)
    assert (g[count:] == g[count - 1]).all()  # padding repeats a real candidate
    g = g[:count]
    projected = g @ SYSTEMS[lattice.system].project.T @ SYSTEMS[lattice.system].embed.T
    np.testing.assert_allclose(projected, g, atol=1e-6 * g[:, :3].max())
    primitive = 1 / np.sqrt(np.linalg.det(matrices(g[:5000]))) / lattice.multiplicity
    assert primitive.min() > window.low * 0.98 and primitive.max() < window.high * 1.02
    volume = gemmi.UnitCell(*CELLS[name][0]).volume
    near = g[np.abs(np.linalg.det(matrices(g)) * volume**2 - 1) < 1e-3]
    truth = primitive_metric(np.array(CELLS[name][0], float), lattice.centring)
    assert len(near) and lattice_distance(transform_metric(near[:20000], lattice.primitive), truth).min() < 1e-3


@pytest.mark.parametrize("name", ["cP", "hP", "oP", "mP"])
def test_padding_never_yields_a_cell(name):
    q2 = positions(*CELLS[name], 20)[:8]
    window = propose.volume_window(lines_from_q2(q2, CU), name)
    keys = {"window": window, "n_templates": 60, "tile": 1024}
    exact, count = propose.from_templates(q2, name, n_lines=8, **keys)
    padded, again = propose.from_templates(q2, name, n_lines=11, **keys)
    assert again == count > 0 and np.isfinite(np.asarray(padded)).all()
    a, b = (np.unique(np.asarray(x)[:count], axis=0) for x in (exact, padded))
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-9)


def test_nothing_in_the_window_is_no_candidate():
    q2 = positions(*CELLS["cP"], 20)
    g, count = propose.from_templates(q2, "cP", window=propose.Window(1e7, 2e7), n_lines=8, n_templates=10, tile=1024)
    assert count == 0 and g.shape == (1024, 6)


@pytest.mark.parametrize("name", BRAVAIS)
def test_random_cells_are_of_their_system_and_inside_the_window(name):
    lattice = BRAVAIS[name]
    lines = lines_from_q2(measured(name, 20), CU)
    window = propose.volume_window(lines, name)

    def drawn(seed):
        return propose.at_random(lines, name, window=window, count=200, rng=np.random.default_rng(seed))

    g = drawn(3)
    assert g.shape == (200, 6) and (np.linalg.eigvalsh(matrices(g))[:, 0] > 0).all()
    projected = g @ SYSTEMS[lattice.system].project.T @ SYSTEMS[lattice.system].embed.T
    np.testing.assert_allclose(projected, g, atol=1e-6 * g[:, :3].max())
    primitive = volumes(g) / lattice.multiplicity
    assert primitive.min() > window.low * 0.999 and primitive.max() < window.high * 1.001
    if window.high / window.low > 2:  # the whole window is used, not one end
        assert np.log(primitive).std() > 0.2 * np.log(window.high / window.low)
    assert (g == drawn(3)).all() and (g != drawn(4)).any()


@given(n=st.integers(6, 12), p=st.integers(1, 6))
def test_line_subsets_are_all_choices(n, p):
    found = propose.line_subsets(n, p)
    assert [tuple(row) for row in found.tolist()] == list(itertools.combinations(range(n), p))


@given(n=st.integers(0, 10**6), smallest=st.sampled_from([1, 256, 4096]))
def test_buckets_hold_and_are_few(n, smallest):
    size = propose.bucket(n, smallest)
    assert size >= max(n, smallest) and size % smallest == 0 and (size == smallest or size < 2 * n)
    assert (size // smallest).bit_count() == 1
