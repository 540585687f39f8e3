"""The seven lattice systems as linear maps to the reciprocal metric, and the fourteen Bravais lattices.

A lattice system is a matrix M (6, p): g = M x for its p free parameters x, in 1/angstrom^2. `project` (p, 6) goes
back and averages a metric that is not exactly of the system over the holohedry, so it does not depend on which of
the equivalent axes is called a.

Settings: monoclinic b unique; hexagonal and rhombohedral in hexagonal axes, hR obverse (-h + k + l = 3n); oS and mC
with the C face centred.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Num
from numpy.typing import NDArray

from mlindex.crystal.metric import matrix_from_metric, metric_from_matrix


def _frozen(values: Any) -> NDArray[np.float64]:
    array = np.array(values, np.float64)
    array.setflags(write=False)
    return array


@dataclass(frozen=True, eq=False)
class LatticeSystem:
    """One of the seven lattice systems: `embed` (6, p) gives g from the free parameters, `project` (p, 6) the
    reverse.

    The free parameters are elements of g: cubic (g11); tetragonal, hexagonal and rhombohedral (g11, g33);
    orthorhombic (g11, g22, g33); monoclinic (g11, g22, g33, 2 g13); triclinic g itself.
    """

    name: str
    embed: NDArray[np.float64]
    project: NDArray[np.float64]

    @property
    def n_free(self) -> int:
        """The number of free parameters."""
        return self.embed.shape[1]


_HEXAGONAL_EMBED = [[1, 0], [1, 0], [0, 1], [0, 0], [0, 0], [1, 0]]
# The trace over the hexagonal plane, (2/3)(g11 + g22 - g12): the one linear form that the six-fold axis leaves alone.
_HEXAGONAL_PROJECT = [[2 / 3, 2 / 3, 0, 0, 0, -1 / 3], [0, 0, 1, 0, 0, 0]]

SYSTEMS: dict[str, LatticeSystem] = {
    name: LatticeSystem(name, _frozen(embed), _frozen(project))
    for name, embed, project in (
        ("cubic", [[1], [1], [1], [0], [0], [0]], [[1 / 3, 1 / 3, 1 / 3, 0, 0, 0]]),
        (
            "tetragonal",
            [[1, 0], [1, 0], [0, 1], [0, 0], [0, 0], [0, 0]],
            [[1 / 2, 1 / 2, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0]],
        ),
        ("hexagonal", _HEXAGONAL_EMBED, _HEXAGONAL_PROJECT),
        ("rhombohedral", _HEXAGONAL_EMBED, _HEXAGONAL_PROJECT),
        ("orthorhombic", np.eye(6)[:, :3], np.eye(6)[:3]),
        ("monoclinic", np.eye(6)[:, [0, 1, 2, 4]], np.eye(6)[[0, 1, 2, 4]]),
        ("triclinic", np.eye(6), np.eye(6)),
    )
}


@dataclass(frozen=True, eq=False)
class Bravais:
    """A Bravais lattice: `primitive` is P in (primitive basis) = (conventional basis) P, with det P = 1 /
    `multiplicity`."""

    name: str
    system: str
    centring: str
    n_free: int
    multiplicity: int
    primitive: NDArray[np.float64]


_PRIMITIVE = {
    "P": np.eye(3),
    "A": np.array([[1, 0, 0], [0, 1 / 2, 1 / 2], [0, -1 / 2, 1 / 2]]),
    "B": np.array([[1 / 2, 0, -1 / 2], [0, 1, 0], [1 / 2, 0, 1 / 2]]),
    "C": np.array([[1 / 2, 1 / 2, 0], [-1 / 2, 1 / 2, 0], [0, 0, 1]]),
    "I": np.array([[-1, 1, 1], [1, -1, 1], [1, 1, -1]]) / 2,
    "F": np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]]) / 2,
    "R": np.array([[2, -1, -1], [1, 1, -2], [1, 1, 1]]) / 3,  # obverse
}

# Lowest symmetry last, as a search would fall back
_FOURTEEN = (
    ("cF", "cubic", "F"),
    ("cI", "cubic", "I"),
    ("cP", "cubic", "P"),
    ("hR", "rhombohedral", "R"),
    ("hP", "hexagonal", "P"),
    ("tI", "tetragonal", "I"),
    ("tP", "tetragonal", "P"),
    ("oF", "orthorhombic", "F"),
    ("oI", "orthorhombic", "I"),
    ("oS", "orthorhombic", "C"),
    ("oP", "orthorhombic", "P"),
    ("mC", "monoclinic", "C"),
    ("mP", "monoclinic", "P"),
    ("aP", "triclinic", "P"),
)

BRAVAIS: dict[str, Bravais] = {
    name: Bravais(
        name,
        system,
        centring,
        SYSTEMS[system].n_free,
        round(1 / float(np.linalg.det(_PRIMITIVE[centring]))),
        _frozen(_PRIMITIVE[centring]),
    )
    for name, system, centring in _FOURTEEN
}


def primitive_transform(centring: str) -> NDArray[np.float64]:
    """P (3, 3) in (primitive basis) = (conventional basis) P for centring P, A, B, C, I, F or R (obverse).

    Raises `ValueError` for another letter.
    """
    if centring not in _PRIMITIVE:
        raise ValueError(f"unknown centring {centring!r}; the centrings are {', '.join(sorted(_PRIMITIVE))}")
    return _PRIMITIVE[centring].copy()


def metric_from_free(free: Float[Any, "... p"], system: str) -> Float[Any, "... 6"]:
    """g (..., 6) from the free parameters (..., p) of a lattice system; NumPy or JAX arrays."""
    return free @ SYSTEMS[system].embed.T.astype(free.dtype)


def free_from_metric(g: Float[Any, "... 6"], system: str) -> Float[Any, "... p"]:
    """The free parameters (..., p) of the metric of the lattice system nearest to g (its average over the
    holohedry)."""
    return g @ SYSTEMS[system].project.T.astype(g.dtype)


def allowed(hkl: Int[Any, "... 3"], centring: str) -> Bool[Any, " ..."]:
    """True where the centring (P, A, B, C, I, F, or R obverse) lets a reflection be seen.

    Raises `ValueError` for another letter.
    """
    h, k, l = hkl[..., 0], hkl[..., 1], hkl[..., 2]  # noqa: E741
    match centring:
        case "P":
            return h == h
        case "A":
            return (k + l) % 2 == 0
        case "B":
            return (h + l) % 2 == 0
        case "C":
            return (h + k) % 2 == 0
        case "I":
            return (h + k + l) % 2 == 0
        case "F":
            return ((h + k) % 2 == 0) & ((k + l) % 2 == 0)
        case "R":
            return (-h + k + l) % 3 == 0
    raise ValueError(f"unknown centring {centring!r}; the centrings are {', '.join(sorted(_PRIMITIVE))}")


@cache
def holohedry(system: str) -> NDArray[np.int64]:
    """The point group of a lattice system, (order, 3, 3) integer W with (a', b', c') = (a, b, c) W; hkl' = hkl W.

    Found as the matrices of elements -1, 0, 1 that keep every metric of the system; the orders are 48, 16, 24, 12,
    8, 4, 2. A rhombohedral lattice has the 12 operations that also keep the obverse centring.
    """
    rank = SYSTEMS[system].n_free
    generic = metric_from_free(np.array([1.0, 1.7, 2.9, 0.31, 0.43, 0.59])[:rank], system)
    elements = np.stack(np.meshgrid(*[np.array([-1, 0, 1])] * 9, indexing="ij"), -1).reshape(-1, 3, 3)
    matrix = matrix_from_metric(generic)
    image = np.einsum("nij,jk,nlk->nil", elements.astype(float), matrix, elements.astype(float))
    found = elements[np.all(np.abs(image - matrix) < 1e-9, axis=(1, 2))]
    operations = found.astype(np.int64)  # W G* W^T = G* is what hkl' = hkl W must keep
    if system == "rhombohedral":
        trial = np.array([[1, 0, 1], [0, 1, -1], [-1, 1, 1], [3, 0, 0]])  # of the lattice
        operations = operations[np.all(allowed(trial @ operations, "R"), axis=1)]
    operations.setflags(write=False)
    return operations


def symmetrised_metric(g: Num[Any, "... 6"], operations: Int[Any, "m 3 3"]) -> Float[Any, "... 6"]:
    """The average of g over the point operations W (hkl' = hkl W), which need not be those of a standard setting."""
    matrix = matrix_from_metric(np.asarray(g, np.float64))
    w = np.asarray(operations, np.float64)
    return metric_from_matrix(np.einsum("mij,...jk,mlk->...il", w, matrix, w) / len(w))
