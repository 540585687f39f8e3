"""The five detector parameters and the rotations of many unstrained grains, fitted together to the pixels of spots.

A grain of a reference crystal moves as a rotation alone, so it has three parameters; all grains share the five of the
detector. The normal equations have an arrow's shape, and each grain is eliminated from them on its own. The derivative
of a pixel with respect to a parameter needs the pixel alone: to_pixel is the inverse of to_lab, so
d(pixel) = -to_pixel d(to_lab) (X, Y, 1), less its part along (X, Y, 1).

The loss is that of Geman and McClure, as in `refine`, and the covariance that of an M-estimator: Huber, Robust
Statistics (1981), eq. 7.6.5, with the mean over both coordinates of a spot.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray

from mlindex.crystal.rotation import cross_matrix, rotation_from_vector
from mlindex.laue.geometry import Detector
from mlindex.laue.refine import pixels_and_gradients, weights

# The axis about which `xbet` turns the detector, in LT
_HINGE = {"Z>0": (0.0, 1.0, 0.0), "X>0": (0.0, 1.0, 0.0), "X<0": (0.0, 1.0, 0.0), "Y>0": (0.0, 0.0, -1.0)}
_HINGE["Y<0"] = (0.0, 0.0, 1.0)
_HALVINGS = 6  # of a step that makes the fit worse
_SMALL = 1e-3  # of its standard uncertainty: a step below that is the last
_LEAST_SIGMA = 0.1  # px: a smaller scale would throw out good spots where the rest happen to fit well


class Observed(NamedTuple):
    """The spots of one grain: `ub` (3, 3) of the unstrained lattice in LT, `hkl` (n, 3) and pixels `xy` (n, 2)."""

    ub: NDArray[np.float64]
    hkl: NDArray[np.float64]
    xy: NDArray[np.float64]


class GeometryFit(NamedTuple):
    """A fit of detector and grains: see `fitted`.

    `residual`: observed minus predicted (px), (n, 2) for each grain. `covariance` (5, 5) of (distance, xcen, ycen,
    xbet, xgam) in mm, px, degrees: zero in the rows of a parameter that was held, infinite where nothing tells one.
    """

    detector: Detector
    ub: list[NDArray[np.float64]]
    residual: list[NDArray[np.float64]]
    covariance: NDArray[np.float64]

    @property
    def rms(self) -> float:
        """Root mean square of one coordinate, px."""
        return float(np.sqrt(np.mean(np.concatenate(self.residual) ** 2)))


def detector_gradients(detector: Detector, xy: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2 5"]:
    """Derivatives of the pixel that a direction meets, now at `xy`, with respect to the parameters.

    In px per mm (distance), px (xcen, ycen) and degree (xbet, xgam).
    """
    to_lab, to_pixel, _ = detector.plane
    face = np.cross(to_lab[:, 0], to_lab[:, 1]) / detector.pixel**2  # the normal, up to its sign
    normal = face if face @ to_lab[:, 2] > 0 else -face
    change = np.zeros((5, 3, 3))
    change[0, :, 2] = normal
    change[1, :, 2], change[2, :, 2] = -to_lab[:, 0], -to_lab[:, 1]
    change[3] = cross_matrix(np.array(_HINGE[detector.kf_direction])) @ to_lab
    turn = np.array([[0.0, 1.0, -detector.ycen], [-1.0, 0.0, detector.xcen], [0.0, 0.0, 0.0]])  # by xgam = -gamma
    change[4] = to_lab @ turn
    change[3:] *= np.pi / 180
    at = np.concatenate([xy, np.ones((len(xy), 1))], 1)
    moved = -np.einsum("ij,pjk,nk->nip", to_pixel, change, at)
    return moved[:, :2] - xy[:, :, None] * moved[:, 2:]


def scale_of(residual: Float[np.ndarray, "n 2"], parameters: int) -> float:
    """Standard deviation (px) of one coordinate, from the median: that of a squared distance is 2 ln 2 sigma^2.

    So many `parameters` were fitted: few spots are nearer to a fit than to the truth, and half of them may be on it.
    """
    square = float(np.median(np.einsum("ni,ni->n", residual, residual)))
    missing = max(1 - parameters / (2 * len(residual)), 0.1)
    return max(float(np.sqrt(square / (2 * np.log(2)) / missing)), _LEAST_SIGMA)


def _residuals(detector: Detector, grains: Sequence[Observed]) -> list[NDArray[np.float64]]:
    plane = detector.plane
    return [one.xy - pixels_and_gradients(plane, one.hkl @ one.ub.T)[0] for one in grains]


def _loss(residual: Sequence[NDArray[np.float64]], sigma: float) -> float:
    square = np.concatenate([np.einsum("ni,ni->n", one, one) for one in residual])
    c2 = (4 * sigma) ** 2
    return float((c2 * square / (c2 + square)).sum())  # Geman and McClure; c2 makes it a sum of squares where small


def _jacobians(detector: Detector, one: Observed) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(2n, 5) with respect to the detector, (2n, 3) with respect to a rotation vector (radians) in LT."""
    q = one.hkl @ one.ub.T
    xy, gradient = pixels_and_gradients(detector.plane, q)
    turning = np.cross(np.eye(3)[None], q[:, None, :])  # (n, 3, 3): how q moves with each rotation
    rotation = np.einsum("nij,naj->nia", gradient, turning)
    return detector_gradients(detector, xy).reshape(-1, 5), rotation.reshape(-1, 3)


class _Arrow(NamedTuple):
    """Normal equations with the grains eliminated: matrix and right side for the detector, and the way back."""

    matrix: NDArray[np.float64]
    side: NDArray[np.float64]
    back: list[tuple[NDArray[np.float64], NDArray[np.float64]]]  # rotation = first - second @ step of the detector


def _eliminated(
    detector: Detector,
    grains: Sequence[Observed],
    residual: Sequence[NDArray[np.float64]],
    weight: Sequence[NDArray[np.float64]],
) -> _Arrow:
    matrix, side, back = np.zeros((5, 5)), np.zeros(5), []
    for one, misfit, each in zip(grains, residual, weight, strict=True):
        own, turn = _jacobians(detector, one)
        w = np.repeat(each, 2)[:, None]
        block = turn.T @ (w * turn)
        inverse = np.linalg.inv(block + 1e-12 * np.trace(block) * np.eye(3))
        cross = turn.T @ (w * own)
        pull = turn.T @ (w[:, 0] * misfit.ravel())
        matrix += own.T @ (w * own) - cross.T @ inverse @ cross
        side += own.T @ (w[:, 0] * misfit.ravel()) - cross.T @ (inverse @ pull)
        back.append((inverse @ pull, inverse @ cross))
    return _Arrow(matrix, side, back)


def _inverse(matrix: NDArray[np.float64], free: Bool[np.ndarray, " 5"]) -> NDArray[np.float64]:
    """The inverse over the free parameters, zero elsewhere; infinite on the diagonal where nothing tells them."""
    result = np.zeros((5, 5))
    if not free.any():
        return result
    part = matrix[np.ix_(free, free)]
    size = np.sqrt(np.maximum(np.diag(part), 1e-300))
    value, vector = np.linalg.eigh(part / np.outer(size, size))
    if value[0] < 1e-9:
        result[free, free] = np.inf
    else:
        result[np.ix_(free, free)] = (vector / value) @ vector.T / np.outer(size, size)
    return result


def fitted(
    detector: Detector,
    grains: Sequence[Observed],
    *,
    sigma: float,
    free: Bool[np.ndarray, " 5"] | None = None,
    width: Float[np.ndarray, " 5"] | None = None,
    centre: Float[np.ndarray, " 5"] | None = None,
    steps: int = 20,
) -> GeometryFit:
    """The detector and the rotations that bring the predicted pixels of all grains nearest to the observed ones.

    `sigma` (px) is the scale of the loss; `free` says which parameters move (None: all). `width` (5,) and `centre` (5,)
    are a Gaussian prior of the parameters (None: there is none; centre None: the `detector`). At most `steps`
    Gauss-Newton steps, which are halved where the loss would rise. Grains need not be strain-free on entry, but what
    strain `ub` has it keeps.
    """
    moving = np.ones(5, bool) if free is None else np.asarray(free, bool)
    middle = detector.parameters if centre is None else np.asarray(centre, np.float64)
    precision = np.zeros(5) if width is None else (sigma / np.asarray(width, np.float64)) ** 2

    def prior(of: Detector) -> float:
        return float(precision @ (of.parameters - middle) ** 2)

    now = list(grains)
    residual = _residuals(detector, now)
    loss = _loss(residual, sigma) + prior(detector)
    for _ in range(steps):
        arrow = _eliminated(detector, now, residual, [weights(one, sigma) for one in residual])
        matrix = arrow.matrix + np.diag(precision)
        side = arrow.side - precision * (detector.parameters - middle)
        step = np.zeros(5)
        if moving.any():
            step[moving] = np.linalg.lstsq(matrix[np.ix_(moving, moving)], side[moving], rcond=1e-12)[0]
        turns = [first - second @ step for first, second in arrow.back]
        for halving in range(_HALVINGS):
            part = 0.5**halving
            wanted = detector.parameters + part * step
            if wanted[0] <= 0:
                continue
            tried = detector.with_parameters(wanted)
            moved = [
                g._replace(ub=rotation_from_vector(part * turn) @ g.ub) for g, turn in zip(now, turns, strict=True)
            ]
            after = _residuals(tried, moved)
            value = _loss(after, sigma) + prior(tried)
            if value <= loss:
                break
        else:
            break
        gain, detector, now, residual, loss = loss - value, tried, moved, after, value
        # A step lowers a quadratic loss by the square of its length in standard uncertainties, times sigma^2
        if gain < (_SMALL * sigma) ** 2:
            break
    covariance = _covariance(detector, now, residual, sigma, moving)
    return GeometryFit(detector, [g.ub for g in now], residual, covariance)


def _covariance(
    detector: Detector,
    grains: Sequence[Observed],
    residual: Sequence[NDArray[np.float64]],
    sigma: float,
    moving: Bool[np.ndarray, " 5"],
) -> NDArray[np.float64]:
    """Huber's: the scatter of the weighted residuals over the square of their mean slope, and the plain Jacobian."""
    every = np.concatenate(residual)
    ratio = np.einsum("ni,ni->n", every, every) / (4 * sigma) ** 2
    weight = (1 + ratio) ** -2
    slope = float(np.mean(weight - 2 * ratio * (1 + ratio) ** -3))
    freedom = 2 * len(every) - 3 * len(grains) - int(moving.sum())
    if freedom < 1 or slope <= 0:
        return np.diag(np.where(moving, np.inf, 0.0))
    scatter = float((weight[:, None] ** 2 * every**2).sum() / freedom) / slope**2
    plain = _eliminated(detector, grains, residual, [np.ones(len(one)) for one in residual])
    return scatter * _inverse(plain.matrix, moving)
