"""Rotation and deviatoric strain of one grain from the pixels of its spots, by Gauss-Newton in float64.

The orientation matrix moves as (1 + W) UB with W a traceless 3x3 matrix: three rotations (its antisymmetric part) and
five deviatoric strains (its symmetric part), all that the directions of a white-beam pattern can tell. The derivative
of a pixel with respect to W is an outer product of its gradient with respect to q, and q. A prior on the strains, far
wider than their uncertainties in any usual pattern, keeps a grain of few spots from running away.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.special import fdtrc

from mlindex.crystal.strain import deviatoric_strain, u_from_ub
from mlindex.laue.geometry import Plane
from mlindex.laue.materials import Material

_WIDE = 1e-2  # prior of strains where they are measured: no strain of a white-beam pattern comes near it
_SIGNIFICANT = 1e-5  # level of the test that a strain is real: a campaign has many thousands of grains

_SKEW = np.zeros((3, 3, 3))
for _axis, (_i, _j) in enumerate(((1, 2), (2, 0), (0, 1))):
    _SKEW[_axis, _j, _i], _SKEW[_axis, _i, _j] = 1.0, -1.0
_STRAIN = np.zeros((5, 3, 3))
for _axis, (_i, _j) in enumerate(((1, 2), (2, 0), (0, 1))):
    _STRAIN[_axis, _i, _j] = _STRAIN[_axis, _j, _i] = np.sqrt(0.5)
_STRAIN[3] = np.diag([1.0, -1.0, 0.0]) / np.sqrt(2)
_STRAIN[4] = np.diag([1.0, 1.0, -2.0]) / np.sqrt(6)
MOVES = np.concatenate([_SKEW, _STRAIN]).reshape(8, 9)  # rotations about x, y, z; orthonormal deviatoric strains


def weights(residual: Float[np.ndarray, "n 2"], sigma: float) -> Float[np.ndarray, " n"]:
    """Robust weights (Geman-McClure, scale 4 sigma) of residuals in pixels."""
    return (1 + np.einsum("ni,ni->n", residual, residual) / (4 * sigma) ** 2) ** -2


class Fit(NamedTuple):
    """A refined matrix, residuals (observed minus predicted, px), and the covariance of the moves (radians, strain)."""

    ub: NDArray[np.float64]
    residual: NDArray[np.float64]
    covariance: NDArray[np.float64]


def pixels_and_gradients(
    plane: Plane, q: Float[np.ndarray, "n 3"]
) -> tuple[Float[np.ndarray, "n 2"], Float[np.ndarray, "n 2 3"]]:
    """Pixels of scattering vectors on the detector, and their derivatives with respect to q."""
    square = np.einsum("ni,ni->n", q, q)
    # kf |q|^2 / (-2 q_x) = q - x |q|^2 / (2 q_x): its direction is all that counts, and it is simple to differentiate
    half = square / (2 * q[:, 0])
    ray = q.copy()
    ray[:, 0] -= half
    change = np.broadcast_to(np.eye(3), (len(q), 3, 3)).copy()
    change[:, 0, :] -= q / q[:, :1]
    change[:, 0, 0] += half / q[:, 0]
    at = ray @ plane.to_pixel.T
    d_at = plane.to_pixel @ change
    xy = at[:, :2] / at[:, 2:]
    return xy, (d_at[:, :2] - xy[:, :, None] * d_at[:, 2:]) / at[:, 2:, None]


def refined(
    ub: Float[np.ndarray, "3 3"],
    hkl: Float[np.ndarray, "n 3"],
    xy: Float[np.ndarray, "n 2"],
    plane: Plane,
    *,
    sigma: float,
    prior: float,
    steps: int = 1,
    rotation_only: bool = False,
) -> Fit:
    """`ub` moved by `steps` Gauss-Newton steps towards the observed pixels `xy` of the reflections `hkl`.

    `sigma` (px) is the scale of the robust (Geman-McClure) weights and of the covariance; `prior` the standard
    deviation expected of each strain, which is measured from the `ub` given.
    """
    moves = MOVES[:3] if rotation_only else MOVES
    precision = np.zeros(len(moves))
    precision[3:] = (sigma / prior) ** 2
    total = np.zeros(len(moves))
    for _ in range(steps):
        q = hkl @ ub.T
        predicted, gradient = pixels_and_gradients(plane, q)
        residual = xy - predicted
        weight = weights(residual, sigma)
        jacobian = (gradient[:, :, :, None] * q[:, None, None, :]).reshape(-1, 9) @ moves.T
        weighted = jacobian * np.repeat(weight, 2)[:, None]
        normal = weighted.T @ jacobian + np.diag(precision) + 1e-9 * np.eye(len(moves))
        step = np.linalg.solve(normal, weighted.T @ residual.ravel() - precision * total)
        total += step
        ub = ub + (step @ moves).reshape(3, 3) @ ub
    residual = xy - pixels_and_gradients(plane, hkl @ ub.T)[0]
    return Fit(ub, residual, sigma**2 * np.linalg.inv(normal))


class Measured(NamedTuple):
    """What is reported of a grain: see `measured`."""

    ub: NDArray[np.float64]
    u: NDArray[np.float64]
    strain: NDArray[np.float64]
    strain_esd: NDArray[np.float64]
    rms: float
    setting: NDArray[np.float64]


def standard_setting(ub: Float[np.ndarray, "3 3"], material: Material) -> Float[np.ndarray, "3 3"]:
    """S (3, 3), integers, of the equivalent description ub S^-1 and hkl' = S hkl whose rotation is the smallest."""
    b = material.b
    rotations = material.rotations
    trace = np.einsum("ij,mji->m", u_from_ub(ub), rotations)
    rotation = rotations[int(np.argmax(np.round(trace, 9)))]
    return np.rint(np.linalg.inv(b) @ rotation.T @ b)


def measured(
    ub: Float[np.ndarray, "3 3"],
    hkl: Float[np.ndarray, "n 3"],
    xy: Float[np.ndarray, "n 2"],
    plane: Plane,
    material: Material,
    *,
    sigma: float,
) -> Measured:
    """The last refinement of a grain on its own spots.

    Two models are fitted: a rotation of the unstrained lattice, and rotation with strain. `strain` and its standard
    uncertainties are always those of the second. `ub` and `u` are those of the first unless an F test says that the
    strain is real: five parameters that are not needed would make the orientation of a grain of thirty spots three
    times as uncertain. `rms` (px) is that of one coordinate in the model chosen; `setting` as in `standard_setting`.
    """
    strained = refined(ub, hkl, xy, plane, sigma=sigma, prior=_WIDE, steps=4)
    setting = standard_setting(strained.ub, material)
    back = np.linalg.inv(setting)
    hkl = hkl @ setting.T
    start = strained.ub @ back
    plain = refined(
        u_from_ub(start) @ material.b, hkl, xy, plane, sigma=sigma, prior=_WIDE, steps=4, rotation_only=True
    )
    strained = refined(start, hkl, xy, plane, sigma=sigma, prior=_WIDE, steps=2)
    freedom = max(2 * len(hkl) - len(MOVES), 1)
    # A spot that a model misses altogether counts as one at four sigma
    squares = [float(np.minimum(fit.residual**2, (4 * sigma) ** 2).sum()) for fit in (plain, strained)]
    ratio = (squares[0] - squares[1]) / 5 / max(squares[1] / freedom, 1e-12)
    real = float(fdtrc(5, freedom, max(ratio, 0.0))) < _SIGNIFICANT
    chosen = strained if real else plain
    # Standard uncertainties of the strain in crystal axes, by the derivative along each move
    step = 1e-5
    moved = strained.ub + step * MOVES.reshape(-1, 3, 3) @ strained.ub
    strain = deviatoric_strain(strained.ub, material.cell)
    slope = (deviatoric_strain(moved, material.cell) - strain).reshape(len(MOVES), 9) / step
    covariance = strained.covariance * squares[1] / freedom / sigma**2
    esd = np.sqrt(np.maximum(np.einsum("ai,ab,bi->i", slope, covariance, slope), 0.0)).reshape(3, 3)
    rms = float(np.sqrt((chosen.residual**2).mean()))
    return Measured(chosen.ub, u_from_ub(chosen.ub), strain, esd, rms, setting)
