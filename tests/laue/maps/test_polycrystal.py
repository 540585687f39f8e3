"""The simulated sample: what its words promise of gradients and strains, and the same for the same seed."""

from __future__ import annotations

import numpy as np

from mlindex.crystal.rotation import misorientation
from mlindex.crystal.strain import deviatoric_strain, u_from_ub
from mlindex.laue.maps.polycrystal import polycrystal
from mlindex.laue.maps.scan import Scan
from mlindex.laue.materials import material

MATERIALS = [material("Cu"), material("Ti")]


def test_neighbours_within_a_grain_are_nearly_alike_and_grains_are_not():
    sample = polycrystal(np.random.default_rng(2), MATERIALS, Scan(12, 15), layers=2, strain=1e-3)
    assert sample.owner.shape == (2, 12, 15) and sample.volumes == [1.0, 0.7]
    assert set(sample.owner[0].ravel()).isdisjoint(sample.owner[1].ravel())
    inside, across = [], []
    for number in range(12 * 15 - 1):
        if (number + 1) % 15 == 0:
            continue
        row, column = divmod(number, 15)
        for layer, ((one, a), (other, b)) in enumerate(zip(sample.at(number), sample.at(number + 1), strict=True)):
            same = sample.owner[layer, row, column] == sample.owner[layer, row, column + 1]
            if same:
                assert one is other
                change = deviatoric_strain(a, one.cell) - deviatoric_strain(b, one.cell)
                assert np.abs(change).max() < 3e-4
            if one is other:
                angle = float(misorientation(u_from_ub(a), u_from_ub(b), one.rotations))
                (inside if same else across).append(angle)
    assert 0 < np.mean(inside) < 0.1 and max(inside) < 0.2 and np.median(across) > 10
    assert {m.name for m, _ in sample.at(0)} <= {"Cu", "Ti"}


def test_the_seed_decides():
    first, again, other = (polycrystal(np.random.default_rng(k), MATERIALS, Scan(3, 4), strain=1e-3) for k in (1, 1, 2))
    np.testing.assert_array_equal(first.owner, again.owner)
    for number in range(12):
        np.testing.assert_array_equal(first.at(number)[0][1], again.at(number)[0][1])
    assert not np.allclose(first.at(0)[0][1], other.at(0)[0][1])
    assert len({one.material.name for one in first.crystallites}) == 2, "every material has a grain"
