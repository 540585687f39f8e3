"""What an inversion is worth: R factors, standard uncertainties, what the pattern does not determine, and the origin.

Intensities do not depend on where the origin of the crystal is: U_g exp(2 pi i g.d) gives the same pattern for every d.
Two phases are free therefore, and a solution is reported with two strong U of low order made real and positive. Where
strong ones are no basis of the zone (those of a nearly centred projection), the sum of all U decides between the few
origins that are left: weak U alone would hand their uncertain phases on to all others.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np
from jaxtyping import Complex, Float, Int
from numpy.typing import NDArray

from mlindex.bloch.beams import Geometry

_NEAREST = 12  # differences among which the two that fix the origin are looked for
_NO_BASIS = 0.3  # what a pair that is no basis counts, against one that is
_NULL = 1e-10  # of the largest eigenvalue of the normal matrix: what is below is not determined


@dataclass(frozen=True, eq=False)
class Solution:
    """Structure factors and a thickness that explain a pattern.

    `u` (d,) in 1/A^2 at `Geometry.dhkl`, U_000 = 0, the origin as the module says; `sigma` (d,) the standard
    uncertainty of each of its components; `thickness` and `thickness_sigma` in A. `r_factor` = sum |I - I_fit| / sum I,
    `weighted_r` the same of the amplitudes, squared: sqrt(sum (sqrt I - sqrt I_fit)^2 / sum I). `intensity` (m, n)
    as fitted. `undetermined`: combinations of unknowns, beside the origin, that the pattern says nothing about.
    `agreement`: how many starts ended here. `symmetry`: of the projection, to which the structure factors are tied (see
    `symmetry`; p1: to none). `intensity` holds the `scale` and the `background` (of the incident beam), if fitted.
    `condition`, `weakest` and `weakest_sigma`: see `Uniqueness`; nan and None where nobody has asked.
    """

    u: NDArray[np.complex128]
    sigma: NDArray[np.float64]
    thickness: float
    thickness_sigma: float
    r_factor: float
    weighted_r: float
    intensity: NDArray[np.float64]
    undetermined: int
    agreement: int = 1
    symmetry: str = "p1"
    scale: float = 1.0
    background: float = 0.0
    condition: float = float("nan")
    weakest: NDArray[np.float64] | None = None
    weakest_sigma: float = float("nan")


class Uniqueness(NamedTuple):
    """How well a pattern determines its structure factors, whatever the other parameters are.

    `condition`: the smallest eigenvalue of J^T J that is determined over the largest; its root is the uncertainty of
    the best determined combination of structure factors over that of the worst. `share` (d,): the part that U at
    `Geometry.dhkl` has in the least determined combination (in those that are not determined, if there are any); the
    same for g and -g, and the sum over one half is 1. `sigma`: the standard uncertainty of that combination, 1/A^2,
    infinite where it is not determined.
    """

    condition: float
    share: NDArray[np.float64]
    sigma: float


def r_factor(observed: Float[np.ndarray, "m n"], model: Float[np.ndarray, "m n"]) -> float:
    """sum |I - I_model| / sum I."""
    return float(np.abs(observed - model).sum() / observed.sum())


def weighted_r(observed: Float[np.ndarray, "m n"], model: Float[np.ndarray, "m n"]) -> float:
    """sqrt(sum (sqrt I - sqrt I_model)^2 / sum I): counting noise is alike in all its terms."""
    return float(np.sqrt(((np.sqrt(observed) - np.sqrt(model)) ** 2).sum() / observed.sum()))


def uncertainties(
    normal: Float[np.ndarray, "p1 p1"], cost: float, observations: int, free: Float[np.ndarray, " p1"]
) -> tuple[Float[np.ndarray, " p1"], int]:
    """Standard uncertainties of the parameters, and how many combinations of them have none.

    `normal` = J^T J of residuals of which the sum of squares is `cost`; parameters that are not `free` have zero. The
    combinations that are not determined are left where they are.
    """
    values, vectors = np.linalg.eigh(normal)
    known = values > _NULL * values[-1]
    variance = cost / max(observations - int(known.sum()), 1)
    inverse = (vectors[:, known] / values[known]) @ vectors[:, known].T
    return np.sqrt(variance * np.diag(inverse)), int(free.sum()) - int(known.sum())


def uniqueness(
    normal: Float[np.ndarray, "p1 p1"],
    cost: float,
    observations: int,
    free: Float[np.ndarray, " p1"],
    orbit: Int[np.ndarray, " h"],
    *,
    others: int,
) -> Uniqueness:
    """How well structure factors are determined; `normal`, `cost`, `observations`, `free` as in `uncertainties`.

    The last `others` parameters are none of structure factors (thickness, scale, ...) and may take any value. The first
    are Re U of the orbits and, if they vary, Im U of the same; `orbit` numbers those of the upper half of `dhkl`.
    """
    count = len(free) - others
    used = np.flatnonzero(free)
    inner, outer = used[used < count], used[used >= count]
    if not len(inner):
        return Uniqueness(float("nan"), np.zeros(2 * len(orbit) + 1), float("nan"))
    cross = normal[np.ix_(inner, outer)]
    rest = np.linalg.pinv(normal[np.ix_(outer, outer)], hermitian=True)
    # What is left of the matrix where the others follow the structure factors (its Schur complement)
    values, vectors = np.linalg.eigh(normal[np.ix_(inner, inner)] - cross @ rest @ cross.T)
    known = values > max(_NULL * values[-1], 0.0)
    weak = vectors[:, :1] if known.all() else vectors[:, ~known]
    weight = np.zeros(count)
    weight[inner] = np.sum(weak**2, 1)
    of_orbit = weight.reshape(-1, int(orbit.max()) + 1).sum(0) / np.maximum(np.bincount(orbit), 1)
    half = of_orbit[orbit] / weight.sum()
    variance = cost / max(observations - int(known.sum()) - len(outer), 1)
    return Uniqueness(
        float(values[known][0] / values[-1]) if known.any() else 0.0,
        np.concatenate([half[::-1], [0.0], half]),
        float(np.sqrt(variance / values[0])) if known.all() else float("inf"),
    )


def origin_pair(u: Complex[np.ndarray, " d"], geometry: Geometry) -> list[int]:
    """The places in `dhkl`, beyond the middle, of the two differences whose U are made real and positive.

    Two of low order whose weaker U is as strong as can be; where they are no basis of all differences, a few origins do
    the same, which counts against them. One where all beams are of one row, none where there is the direct beam alone.
    """
    middle = len(geometry.dhkl) // 2
    near = middle + 1 + np.argsort(lengths(geometry)[middle + 1 :], kind="stable")
    basis = [int(place) for place in near[:1]]
    for place in near[1:]:
        if np.cross(geometry.dhkl[basis[0]], geometry.dhkl[place]).any():
            basis.append(int(place))
            break
    if len(basis) < 2:
        return basis
    coefficients = _coefficients(geometry.dhkl, geometry.dhkl[basis])
    strength = -1.0
    near = near[:_NEAREST]
    for i, first in enumerate(near):
        for second in near[i + 1 :]:
            area = round(abs(np.linalg.det(coefficients[[first, second]])))
            score = float(min(abs(u[first]), abs(u[second]))) * (1.0 if area == 1 else _NO_BASIS)
            if area and score > 1.2 * strength:
                basis, strength = [int(first), int(second)], score
    return basis


def with_origin(u: Complex[np.ndarray, " d"], geometry: Geometry) -> Complex[np.ndarray, " d"]:
    """The same structure factors with the origin that the module says."""
    pair = origin_pair(u, geometry)
    if not pair:
        return u
    coefficients = _coefficients(geometry.dhkl, geometry.dhkl[pair])
    # Phases that are turned by whole turns: another origin, where the two are no basis
    turns = range(round(1 / np.abs(coefficients[np.abs(coefficients) > 1e-6]).min()))
    angles = np.angle(u[pair])
    best, most = u, -np.inf
    for whole in product(turns, repeat=len(pair)):
        moved = u * np.exp(-1j * (coefficients @ (angles + 2 * np.pi * np.array(whole))))
        if moved.real.sum() > most + 1e-9 * np.abs(u).sum():
            best, most = moved, moved.real.sum()
    return best


def lengths(geometry: Geometry) -> Float[np.ndarray, " d"]:
    """|g| (1/A) of the differences."""
    p, q = np.unravel_index(np.unique(geometry.index, return_index=True)[1], geometry.index.shape)
    return np.linalg.norm(geometry.g[p] - geometry.g[q], axis=1)


def _coefficients(hkl: Int[np.ndarray, "d 3"], basis: Int[np.ndarray, "b 3"]) -> Float[np.ndarray, "d b"]:
    """Each hkl of a zone as a sum of two of them."""
    return np.linalg.lstsq(basis.T.astype(np.float64), hkl.T.astype(np.float64), rcond=None)[0].T
