"""Reference lists against brute enumeration, and multiplicities against gemmi."""

from __future__ import annotations

import gemmi
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlindex.crystal.lattice import BRAVAIS, SYSTEMS, allowed, metric_from_free
from mlindex.crystal.metric import inverted_metric, q2_from_hkl
from mlindex.crystal.reflections import hkl_within, line_key, multiplicity, reference_hkl

MULTIPLICITY_GROUP = {
    "cubic": "F m -3 m",
    "tetragonal": "I 4/m m m",
    "hexagonal": "P 6/m m m",
    "rhombohedral": "R -3 m:H",
    "orthorhombic": "F m m m",
    "monoclinic": "C 1 2/m 1",
    "triclinic": "P -1",
}


def random_metric(system, seed):
    rng = np.random.default_rng(seed)
    free = rng.uniform(0.004, 0.03, SYSTEMS[system].n_free)
    if system == "monoclinic":
        free[3] = rng.uniform(-0.8, 0.8) * np.sqrt(free[0] * free[2])
    if system == "triclinic":
        free[3:] = rng.uniform(-0.7, 0.7, 3) * np.sqrt([free[1] * free[2], free[0] * free[2], free[0] * free[1]])
    return metric_from_free(free, system)


def every_line(g, centring, q2_max):
    """All distinct q2 up to q2_max by brute force over the full box."""
    limits = np.floor(np.sqrt(inverted_metric(g)[:3] * q2_max)).astype(int) + 1
    hkl = np.stack(np.meshgrid(*[np.arange(-m, m + 1) for m in limits], indexing="ij"), -1).reshape(-1, 3)
    hkl = hkl[allowed(hkl, centring) & np.any(hkl != 0, axis=1)]
    return hkl[q2_from_hkl(g, hkl) <= q2_max]


@pytest.mark.parametrize("name", BRAVAIS)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_every_line_of_a_cell_once(name, seed):
    lattice = BRAVAIS[name]
    g = random_metric(lattice.system, seed)
    q2_max = 0.35
    found = hkl_within(g, name, q2_max)
    q2 = q2_from_hkl(g, found)
    assert np.all(np.diff(q2) >= -1e-9) and np.all(q2 <= q2_max * 1.001) and np.all(allowed(found, lattice.centring))
    full = every_line(g, lattice.centring, q2_max)
    keys = line_key(found, lattice.system)
    assert len(np.unique(keys, axis=0)) == len(keys)
    if lattice.system == "triclinic":
        assert 2 * len(found) == len(full)  # Friedel pairs only
    np.testing.assert_array_equal(np.unique(keys, axis=0), np.unique(line_key(full, lattice.system), axis=0))


@pytest.mark.parametrize("name", BRAVAIS)
def test_reference_list(name):
    lattice = BRAVAIS[name]
    listed = reference_hkl(name, 300)
    assert (
        listed.shape == (300, 3) and np.all(np.any(listed != 0, axis=1)) and np.all(allowed(listed, lattice.centring))
    )
    assert len(np.unique(line_key(listed, lattice.system), axis=0)) == 300
    np.testing.assert_array_equal(reference_hkl(name, 40), listed[:40])
    # complete at the low end: whatever box is searched, no line below the first tenth is missing
    box = np.stack(np.meshgrid(*[np.arange(-2, 3)] * 3, indexing="ij"), -1).reshape(-1, 3)
    low = box[allowed(box, lattice.centring) & (np.abs(box).sum(1) > 0) & (np.abs(box).sum(1) <= 2)]
    keys = {tuple(k) for k in line_key(listed, lattice.system)}
    assert {tuple(k) for k in line_key(low, lattice.system)} <= keys


def test_first_lines_of_the_textbook():
    assert reference_hkl("cF", 5).tolist() == [[1, 1, 1], [2, 0, 0], [2, 2, 0], [3, 1, 1], [2, 2, 2]]
    assert reference_hkl("cI", 4).tolist() == [[1, 1, 0], [2, 0, 0], [2, 1, 1], [2, 2, 0]]
    sums = (reference_hkl("cP", 40) ** 2).sum(1)
    assert set(range(1, 41)) - set(sums.tolist()) == {7, 15, 23, 28, 31, 39}  # no sum of three squares


@pytest.mark.parametrize("system", MULTIPLICITY_GROUP)
def test_multiplicity_against_gemmi(system):
    centring = MULTIPLICITY_GROUP[system][0]
    group = gemmi.SpaceGroup(MULTIPLICITY_GROUP[system]).operations()
    box = np.stack(np.meshgrid(*[np.arange(-3, 4)] * 3, indexing="ij"), -1).reshape(-1, 3)
    hkl = box[allowed(box, centring) & np.any(box != 0, axis=1)]
    order = len(group.sym_ops)  # centrosymmetric: Friedel mates are in the group
    epsilon = group.epsilon_factor_without_centering_array(hkl.astype(np.int32))
    np.testing.assert_array_equal(multiplicity(hkl, system), order // epsilon)


def test_bad_requests_are_named():
    with pytest.raises(ValueError, match="unknown Bravais lattice 'xP'"):
        reference_hkl("xP", 10)
    with pytest.raises(ValueError, match="at least one"):
        reference_hkl("cP", 0)
    with pytest.raises(ValueError, match="not that of a cell"):
        hkl_within(np.array([1.0, 1.0, 1.0, 5.0, 0.0, 0.0]), "aP", 2.0)
