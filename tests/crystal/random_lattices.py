"""Random lattices for the tests: cells of each Bravais lattice, changes of basis, noise."""

from __future__ import annotations

import numpy as np

from mlindex.crystal.lattice import BRAVAIS
from mlindex.crystal.metric import matrix_from_metric, metric_from_matrix


def random_cell(name, rng):
    """A conventional cell of the Bravais lattice `name`, not in a standard setting."""
    a, b, c = rng.uniform(3, 20, 3)
    match BRAVAIS[name].system:
        case "cubic":
            return np.array([a, a, a, 90, 90, 90])
        case "tetragonal":
            return np.array([a, a, c, 90, 90, 90])
        case "hexagonal" | "rhombohedral":
            return np.array([a, a, c, 90, 90, 120])
        case "orthorhombic":
            return np.array([a, b, c, 90, 90, 90])
        case "monoclinic":
            return np.array([a, b, c, 90, rng.uniform(90, 130), 90])
    return np.array([a, b, c, *rng.uniform(65, 110, 3)])


def random_unimodular(rng, steps=6):
    """An integer matrix of determinant 1."""
    matrix = np.eye(3, dtype=np.int64)
    for _ in range(steps):
        i, j = rng.choice(3, 2, replace=False)
        shear = np.eye(3, dtype=np.int64)
        shear[i, j] = rng.integers(-2, 3)
        matrix = matrix @ shear
    return matrix


def strained(g, size, rng):
    """The metric after a random strain of about `size`."""
    factor = np.linalg.cholesky(matrix_from_metric(g))
    strain = rng.normal(size=(3, 3)) * size / 2
    return metric_from_matrix(factor @ (np.eye(3) + strain + strain.T) @ factor.T)
