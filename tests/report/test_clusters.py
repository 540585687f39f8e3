"""Clusters of like lattices against a constructed truth, and what no change of basis or order may change."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlindex.crystal.lattice import BRAVAIS
from mlindex.crystal.reduction import lattice_distance, niggli_from_cell, same_lattice
from mlindex.report.clusters import TOLERANCE, clusters_from_cells, labels_from_metrics, primitive_metrics

CELLS = {  # more than 5 % apart in some Voronoi vector
    "cF": (5.43, 5.43, 5.43, 90, 90, 90),
    "hR": (4.759, 4.759, 12.992, 90, 90, 120),
    "oP": (5.1, 7.3, 11.9, 90, 90, 90),
    "mC": (15.2, 6.4, 9.7, 90, 104.0, 90),
    "aP": (6.1, 7.9, 9.3, 98.0, 103.0, 95.0),
    "tI": (8.1, 8.1, 6.3, 90, 90, 90),
}
FREE = {"cF": [0, 0, 0], "hR": [0, 0, 1], "oP": [0, 1, 2], "mC": [0, 1, 2], "aP": [0, 1, 2], "tI": [0, 0, 1]}


def shaken(rng: np.random.Generator, name: str, n: int, width: float) -> np.ndarray:
    """n cells of the lattice with relative errors of its free edges; angles stay, and symmetry is kept."""
    factors = 1 + rng.normal(0, width, (n, 3))
    cells = np.tile(np.array(CELLS[name], float), (n, 1))
    cells[:, :3] *= factors[:, FREE[name]]
    return cells


@pytest.fixture
def mixture():
    """Cells of the six lattices in a random order, with the name of each."""
    rng = np.random.default_rng(5)
    sizes = dict(zip(CELLS, (300, 120, 60, 25, 10, 1), strict=True))
    cells = np.concatenate([shaken(rng, name, n, 0.001) for name, n in sizes.items()])
    names = np.repeat(list(sizes), list(sizes.values()))
    order = rng.permutation(len(names))
    return cells[order], names[order].tolist(), sizes


def test_the_constructed_clusters_are_found(mixture):
    cells, names, sizes = mixture
    found = clusters_from_cells(cells, names)
    assert [len(c) for c in found] == sorted(sizes.values(), reverse=True)
    for cluster, (name, size) in zip(found, sizes.items(), strict=True):
        assert cluster.bravais == ((name, size),)
        assert {names[i] for i in cluster.members} == {name}
        np.testing.assert_allclose(cluster.cell, CELLS[name], rtol=2e-3)


def test_median_and_spread_are_those_of_the_errors():
    rng = np.random.default_rng(1)
    (cluster,) = clusters_from_cells(shaken(rng, "oP", 4000, 0.001), ["oP"] * 4000)
    edges = np.array(CELLS["oP"][:3])
    np.testing.assert_allclose(cluster.cell[:3], edges, rtol=1e-4)
    np.testing.assert_allclose(cluster.spread, [*(0.001 * edges), 0, 0, 0], rtol=0.05)
    assert cluster.volume == pytest.approx(edges.prod(), rel=1e-3)


def test_settings_and_lattice_names_do_not_matter():
    """A centred cell and its Niggli cell as aP are one lattice; statistics are of the one that is more frequent."""
    rng = np.random.default_rng(2)
    cells = shaken(rng, "mC", 30, 0.0005)
    niggli = np.array([niggli_from_cell(cell, "C")[0] for cell in cells[:10]])
    (cluster,) = clusters_from_cells(np.concatenate([cells[10:], niggli]), ["mC"] * 20 + ["aP"] * 10)
    assert cluster.bravais == (("mC", 20), ("aP", 10)) and len(cluster.alike) == 20
    np.testing.assert_allclose(cluster.cell, CELLS["mC"], rtol=1e-3)


def test_two_settings_of_one_lattice_do_not_mix_in_the_median():
    """oP with a and b exchanged in a few (they may be nearly equal): the median is of the usual setting."""
    cells = np.array([[5.0, 7.0, 9.0, 90, 90, 90]] * 9 + [[7.0, 5.0, 9.0, 90, 90, 90]] * 4)
    (cluster,) = clusters_from_cells(cells, ["oP"] * 13)
    assert len(cluster) == 13 and len(cluster.alike) == 9
    np.testing.assert_array_equal(cluster.cell, cells[0])


def test_a_chain_of_lattices_is_not_one_cluster():
    """Cubic lattices from 4 to 8 angstrom, each like the next: no cluster is wider than twice the tolerance."""
    edges = np.geomspace(4, 8, 1000)
    cells = np.stack([edges] * 3 + [np.full(1000, 90.0)] * 3, 1)
    found = clusters_from_cells(cells, ["cP"] * 1000)
    assert sum(len(c) for c in found) == 1000
    for cluster in found:
        mine = edges[cluster.members]
        assert mine.max() / mine.min() <= 1 + 2.1 * TOLERANCE


def test_what_is_no_lattice_is_in_no_cluster():
    cells = np.array(
        [[5, 5, 5, 90, 90, 90], [5, 5, np.nan, 90, 90, 90], [5, 5, 5, 170, 10, 10], [-5, 5, 5, 90, 90, 90]]
    )
    found = clusters_from_cells(cells, ["cP", "oP", "aP", "aP"])
    assert [c.members.tolist() for c in found] == [[0]]
    assert clusters_from_cells(cells[:1], ["?"]) == []
    assert clusters_from_cells(np.empty((0, 6)), []) == []


@given(st.integers(0, 10_000))
def test_laws(seed):
    """Each lattice in one cluster; members are within twice the tolerance; two
    that are alone are farther apart than the tolerance."""
    rng = np.random.default_rng(seed)
    names = [list(BRAVAIS)[i] for i in rng.integers(0, 14, 12)]
    edges = rng.uniform(4, 12, (4, 3))[rng.integers(0, 4, 12)] * (1 + rng.normal(0, 0.004, (12, 3)))
    cells = np.concatenate([edges, np.full((12, 3), 90.0)], 1)
    metrics = primitive_metrics(cells, names)
    found = clusters_from_cells(cells, names)
    assert sorted(int(i) for c in found for i in c.members) == list(range(12))
    distance = lattice_distance(metrics[:, None], metrics[None])
    for cluster in found:
        assert distance[np.ix_(cluster.members, cluster.members)].max() <= 2.1 * TOLERANCE
    alone = [int(c.members[0]) for c in found if len(c) == 1]
    apart = distance[np.ix_(alone, alone)]
    assert (apart[~np.eye(len(alone), dtype=bool)] > TOLERANCE).all()
    twice = clusters_from_cells(cells[::-1], names[::-1])
    assert sum(map(len, twice)) == 12


def test_equal_lattices_are_together_and_same_lattice_agrees():
    cells = np.repeat([CELLS["oP"], CELLS["aP"]], 5, axis=0).astype(float)
    labels = labels_from_metrics(primitive_metrics(cells, ["oP"] * 5 + ["aP"] * 5))
    assert len(set(labels[:5].tolist())) == 1 and len(set(labels.tolist())) == 2
    assert not same_lattice(CELLS["oP"], "P", CELLS["aP"], "P")


def test_a_wider_tolerance_joins():
    cells = np.array([[5.0, 6, 7, 90, 90, 90], [5.1, 6.12, 7.14, 90, 90, 90]])
    assert [len(c) for c in clusters_from_cells(cells, ["oP"] * 2)] == [1, 1]
    assert [len(c) for c in clusters_from_cells(cells, ["oP"] * 2, tolerance=0.03)] == [2]
