"""What an inversion is worth: R factors, standard uncertainties, what the pattern does not determine, and the origin.

Intensities do not depend on where the origin of the crystal is: U_g exp(2 pi i g.d) gives the same pattern for every d.
Two phases are free therefore, and a solution is reported with two strong U of low order, a basis of the zone, made real
and positive.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Complex, Float, Int
from numpy.typing import NDArray

from mlindex.bloch.beams import Geometry

_NEAREST = 8  # differences among which the two that fix the origin are looked for
_NULL = 1e-10  # of the largest eigenvalue of the normal matrix: what is below is not determined


@dataclass(frozen=True, eq=False)
class Solution:
    """Structure factors and a thickness that explain a pattern.

    `u` (d,) in 1/A^2 at `Geometry.dhkl`, U_000 = 0, the origin as the module says; `sigma` (d,) the standard
    uncertainty of each of its components; `thickness` and `thickness_sigma` in A. `r_factor` = sum |I - I_fit| / sum I,
    `weighted_r` the same of the amplitudes, squared: sqrt(sum (sqrt I - sqrt I_fit)^2 / sum I). `intensity` (m, n)
    as fitted. `undetermined`: combinations of unknowns, beside the origin, that the pattern says nothing about.
    `agreement`: how many starts ended here.
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


def origin_pair(u: Complex[np.ndarray, " d"], geometry: Geometry) -> list[int]:
    """The places in `dhkl`, beyond the middle, of the two differences whose U are made real and positive.

    A basis of all differences (so that no other origin does the same), whose weaker U is as strong as can be. One
    where all beams are of one row, none where there is the direct beam alone.
    """
    middle = len(geometry.dhkl) // 2
    near = middle + 1 + np.argsort(_lengths(geometry)[middle + 1 :], kind="stable")
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
            weak = float(min(abs(u[first]), abs(u[second])))
            area = abs(np.linalg.det(coefficients[[first, second]]))
            if abs(area - 1) < 1e-6 and weak > 1.2 * strength:
                basis, strength = [int(first), int(second)], weak
    return basis


def with_origin(u: Complex[np.ndarray, " d"], geometry: Geometry) -> Complex[np.ndarray, " d"]:
    """The same structure factors with the origin that the module says."""
    pair = origin_pair(u, geometry)
    if not pair:
        return u
    return u * np.exp(-1j * (_coefficients(geometry.dhkl, geometry.dhkl[pair]) @ np.angle(u[pair])))


def _lengths(geometry: Geometry) -> Float[np.ndarray, " d"]:
    """|g| of the differences."""
    p, q = np.unravel_index(np.unique(geometry.index, return_index=True)[1], geometry.index.shape)
    return np.linalg.norm(geometry.g[p] - geometry.g[q], axis=1)


def _coefficients(hkl: Int[np.ndarray, "d 3"], basis: Int[np.ndarray, "b 3"]) -> Float[np.ndarray, "d b"]:
    """Each hkl of a zone as a sum of two of them."""
    return np.linalg.lstsq(basis.T.astype(np.float64), hkl.T.astype(np.float64), rcond=None)[0].T
