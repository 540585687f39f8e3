"""A polycrystal to scan: grains on a plane, with a small gradient of orientation and a strain in each.

The grains of a layer are the Voronoi cells of random points. Several layers lie over each other, as a beam that goes
into the sample sees several grains at once; each is fainter than the one above it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from mlindex.crystal.rotation import random_rotations, rotation_from_vector
from mlindex.crystal.strain import ub_from_strain
from mlindex.laue.maps.scan import Scan
from mlindex.laue.materials import Material

_FRAMES = 8.0  # of a grain, about
_FAINTER = 0.7  # a layer, than the one above
_BEND = 0.02  # degrees a step, standard deviation of each component of the gradient of the rotation vector
_VARIES = 0.05  # of the strain, a step


@dataclass(frozen=True, eq=False)
class Crystallite:
    """One grain: orientation `u` (3, 3) and `strain` (3, 3) at its `centre` (row, column), and their gradients a step:
    `bend` (2, 3) in radians, `slope` (2, 3, 3)."""

    material: Material
    centre: NDArray[np.float64]
    u: NDArray[np.float64]
    strain: NDArray[np.float64]
    bend: NDArray[np.float64]
    slope: NDArray[np.float64]

    def ub(self, row: float, column: float) -> Float[np.ndarray, "3 3"]:
        """The matrix (1/angstrom) of the grain at a place of the scan."""
        away = np.array([row, column]) - self.centre
        turn = rotation_from_vector(away @ self.bend)
        return ub_from_strain(turn @ self.u, self.material.cell, self.strain + np.tensordot(away, self.slope, 1))


@dataclass(frozen=True, eq=False)
class Polycrystal:
    """`owner` (layers, rows, columns): the index in `crystallites` of the grain that is there."""

    scan: Scan
    crystallites: tuple[Crystallite, ...]
    owner: Int[np.ndarray, "layers rows columns"]

    @property
    def volumes(self) -> list[float]:
        """How bright each layer is, relative to the first."""
        return [_FAINTER**layer for layer in range(len(self.owner))]

    def at(self, number: int) -> list[tuple[Material, NDArray[np.float64]]]:
        """(material, ub) of the grains in a frame, the brightest first."""
        row, column = divmod(number, self.scan.columns)
        here = [self.crystallites[i] for i in self.owner[:, row, column]]
        return [(one.material, one.ub(float(row), float(column))) for one in here]


def _deviator(rng: np.random.Generator, size: float) -> NDArray[np.float64]:
    draw = rng.normal(size=(3, 3)) * size
    draw = np.triu(draw) + np.triu(draw, 1).T
    return draw - np.eye(3) * np.trace(draw) / 3


def polycrystal(
    rng: np.random.Generator, materials: Sequence[Material], scan: Scan, *, layers: int = 1, strain: float = 0.0
) -> Polycrystal:
    """Random grains, of the materials in turn, under every frame of a scan: one a layer and frame.

    `strain` is the standard deviation of the elements of their deviatoric strain, which varies a little inside a grain.
    """
    each = max(len(materials), round(scan.size / _FRAMES), 2)
    row, column = np.divmod(np.arange(scan.size), scan.columns)
    place = np.stack([row, column], 1)
    found: list[Crystallite] = []
    owner = []
    for _ in range(layers):
        centres = rng.uniform(-0.5, [scan.rows - 0.5, scan.columns - 0.5], (each, 2))
        nearest = np.argmin(np.sum((place[:, None] - centres) ** 2, -1), 1)
        owner.append((len(found) + nearest).reshape(scan.rows, scan.columns))
        for centre, u in zip(centres, random_rotations(rng, each), strict=True):
            material = materials[len(found) % len(materials)]
            bend = np.radians(rng.normal(size=(2, 3)) * _BEND)
            slope = np.stack([_deviator(rng, strain * _VARIES) for _ in range(2)])
            found.append(Crystallite(material, centre, u, _deviator(rng, strain), bend, slope))
    shape = (layers, scan.rows, scan.columns)
    return Polycrystal(scan, tuple(found), np.array(owner, np.int64).reshape(shape))
