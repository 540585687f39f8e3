"""White-beam diffraction geometry: pixels, scattered directions, scattering vectors, energies.

Vectors are in the LT frame: x along the beam, z up to the detector, y = z x x. A scattered direction is
kf = (cos 2t, sin 2t sin chi, sin 2t cos chi), the unit scattering vector q = (-sin t, cos t sin chi, cos t cos chi), t
the Bragg angle. Pixels (X, Y) are counted as in Lauetools: the centre of the first pixel of an image is (1, 1).

A detector is a plane, and its image of a direction is a perspective: with IM = origin + X across + Y down, the matrix
of columns (across, down, origin) takes (X, Y, 1) to a multiple of kf, and its inverse goes back. `Plane` holds that
pair; it is a tuple of arrays, which `jit` and `grad` take.

Every function works on NumPy and on JAX arrays, over any leading axes. Source: J.-S. Micha et al., Lauetools
(LaueGeometry: calc_uflab, calc_xycam), whose five calibration parameters these are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray

from mlindex.formats.lauetools import Calibration
from mlindex.records import InputError

KEV_ANGSTROM = 12.398419843  # h c; CODATA 2018
DIRECTIONS = ("Z>0", "Y>0", "Y<0", "X>0", "X<0")  # where the detector stands: top, the two sides, transmission, back


def _namespace(x: Any) -> Any:
    return x.__array_namespace__() if hasattr(x, "__array_namespace__") else np


class Plane(NamedTuple):
    """A detector as two inverse matrices: `to_lab` (3, 3) takes (X, Y, 1) to IM (mm), `to_pixel` kf to s (X, Y, 1).

    A direction meets the detector where s > 0. `size` (2,) is (nx, ny) in pixels.
    """

    to_lab: Any
    to_pixel: Any
    size: Any


@dataclass(frozen=True)
class Detector:
    """A flat detector: `distance` (mm) from the sample to its plane, the foot (`xcen`, `ycen`) (px) of that
    perpendicular, the tilts `xbet` and `xgam` (degrees), the edge of a `pixel` (mm), `shape` (ny, nx) of the image.

    `kf_direction` is one of `DIRECTIONS`. Lauetools knows the sides Y>0 and Y<0 only in a frame that is turned with
    the detector; here they are the top geometry turned about the beam, and all directions are in the one LT frame.
    """

    distance: float
    xcen: float
    ycen: float
    xbet: float
    xgam: float
    pixel: float = 0.0734
    shape: tuple[int, int] = (2018, 2016)
    kf_direction: str = "Z>0"

    def __post_init__(self) -> None:
        numbers = (self.distance, self.xcen, self.ycen, self.xbet, self.xgam, self.pixel)
        if not all(np.isfinite(numbers)) or self.distance <= 0 or self.pixel <= 0:
            raise ValueError(f"a detector needs a positive distance and pixel size and finite angles, got {numbers}")
        if self.kf_direction not in DIRECTIONS:
            raise ValueError(f"unknown detector position {self.kf_direction!r}; it is one of {', '.join(DIRECTIONS)}")
        if len(self.shape) != 2 or min(self.shape) < 1:
            raise ValueError(f"the shape of a detector is (rows, columns), got {self.shape}")

    @property
    def parameters(self) -> NDArray[np.float64]:
        """(distance, xcen, ycen, xbet, xgam), float64 (5,): mm, px, px, degrees, degrees."""
        return np.array([self.distance, self.xcen, self.ycen, self.xbet, self.xgam], np.float64)

    def with_parameters(self, parameters: Any) -> Detector:
        """The same detector with other calibration parameters (5,)."""
        distance, xcen, ycen, xbet, xgam = (float(p) for p in parameters)
        return replace(self, distance=distance, xcen=xcen, ycen=ycen, xbet=xbet, xgam=xgam)

    @property
    def plane(self) -> Plane:
        """The detector for kernels, float64 NumPy."""
        return plane_from_parameters(self.parameters, self.pixel, self.shape, self.kf_direction)


def plane_from_parameters(
    parameters: Float[Any, " 5"], pixel: float, shape: tuple[int, int], kf_direction: str = "Z>0"
) -> Plane:
    """The plane of (distance, xcen, ycen, xbet, xgam); differentiable in the parameters where they are JAX arrays."""
    xp = _namespace(parameters)
    distance, xcen, ycen = parameters[0], parameters[1], parameters[2]
    beta, gamma = parameters[3] * (np.pi / 180), -parameters[4] * (np.pi / 180)
    zero = 0 * distance
    sine, cosine = xp.sin(beta), xp.cos(beta)
    turned = xp.stack([xp.cos(gamma), xp.sin(gamma)])  # of the X axis in the detector's (horizontal, vertical)
    # Unit vectors in LT: the normal to the detector, its horizontal and its vertical direction before xgam
    match kf_direction:
        case "Z>0" | "Y>0" | "Y<0":
            normal = xp.stack([sine, zero, cosine])
            horizontal = xp.stack([zero, zero - 1, zero])
            vertical = xp.stack([cosine, zero, -sine])
        case "X>0":
            normal = xp.stack([cosine, zero, -sine])
            horizontal = xp.stack([zero, zero - 1, zero])
            vertical = xp.stack([-sine, zero, -cosine])
        case "X<0":
            normal = xp.stack([-cosine, zero, sine])
            horizontal = xp.stack([zero, zero + 1, zero])
            vertical = xp.stack([-sine, zero, -cosine])
        case _:
            raise ValueError(f"unknown detector position {kf_direction!r}; it is one of {', '.join(DIRECTIONS)}")
    across = pixel * (turned[0] * horizontal + turned[1] * vertical)
    down = pixel * (-turned[1] * horizontal + turned[0] * vertical)
    origin = distance * normal - xcen * across - ycen * down
    to_lab = xp.stack([across, down, origin], -1)
    if kf_direction in ("Y>0", "Y<0"):
        sign = 1.0 if kf_direction == "Y>0" else -1.0
        to_lab = np.array([[1.0, 0, 0], [0, 0, sign], [0, -sign, 0]]) @ to_lab  # z to y, or z to -y, about the beam
    # The two axes are perpendicular and of the length of a pixel, so the inverse has a closed form
    span = to_lab[:, :2] / pixel**2
    face = xp.cross(to_lab[:, 0], to_lab[:, 1])
    along = face / (face @ to_lab[:, 2])
    first, second = (span[:, i] - (span[:, i] @ to_lab[:, 2]) * along for i in (0, 1))
    return Plane(to_lab, xp.stack([first, second, along]), np.array([shape[1], shape[0]], np.float64))


def _plane(detector: Detector | Plane) -> Plane:
    return detector.plane if isinstance(detector, Detector) else detector


def direction_from_pixel(x: Float[Any, "*n"], y: Float[Any, "*n"], detector: Detector | Plane) -> Float[Any, "*n 3"]:
    """The unit vector kf (..., 3) from the sample to the pixel (x, y)."""
    xp = _namespace(x)
    pixel = xp.stack([x, y, xp.ones_like(x)], -1)
    lab = pixel @ xp.swapaxes(xp.asarray(_plane(detector).to_lab, dtype=pixel.dtype), 0, 1)
    return lab / xp.sqrt(xp.sum(lab * lab, -1, keepdims=True))


def pixel_from_direction(
    kf: Float[Any, "*n 3"], detector: Detector | Plane
) -> tuple[Float[Any, "*n"], Float[Any, "*n"], Bool[Any, "*n"]]:
    """(X, Y, on): where the direction kf (..., 3), of any length, meets the detector, and whether it does.

    `on` is False for a direction that leads away from the plane or misses the image; X and Y are finite all the same.
    """
    xp = _namespace(kf)
    plane = _plane(detector)
    s = kf @ xp.swapaxes(xp.asarray(plane.to_pixel, dtype=kf.dtype), 0, 1)
    before = s[..., 2] > 0
    scale = xp.where(before, s[..., 2], xp.ones_like(s[..., 2]))
    x, y = s[..., 0] / scale, s[..., 1] / scale
    # Pixels are counted from 1 at their centres, so the image reaches from 1/2 to n + 1/2
    on = before & (x >= 0.5) & (x < plane.size[0] + 0.5) & (y >= 0.5) & (y < plane.size[1] + 0.5)
    return x, y, on


def q_from_kf(kf: Float[Any, "*n 3"]) -> Float[Any, "*n 3"]:
    """The unit scattering vector (kf - x) / |kf - x| of a unit kf; kf must not be the beam itself."""
    xp = _namespace(kf)
    q = xp.stack([kf[..., 0] - 1, kf[..., 1], kf[..., 2]], -1)
    return q / xp.sqrt(xp.sum(q * q, -1, keepdims=True))


def kf_from_q(q: Float[Any, "*n 3"]) -> Float[Any, "*n 3"]:
    """The unit kf that planes with the scattering vector q (any length and sign) reflect from a white beam."""
    xp = _namespace(q)
    factor = 2 * q[..., 0] / xp.sum(q * q, -1)
    return xp.stack([1 - factor * q[..., 0], -factor * q[..., 1], -factor * q[..., 2]], -1)


def energy_from_q(q: Float[Any, "*n 3"]) -> Float[Any, "*n"]:
    """The photon energy (keV) at which the scattering vector q (1/angstrom, no 2 pi) diffracts, h c q^2 / (-2 q_x).

    Negative where q points along the beam: then -q diffracts, at the opposite of that energy.
    """
    return _namespace(q).sum(q * q, -1) / (-2 * q[..., 0]) * KEV_ANGSTROM


def angles_from_kf(kf: Float[Any, "*n 3"]) -> tuple[Float[Any, "*n"], Float[Any, "*n"]]:
    """(2theta, chi) in degrees of a unit kf; chi lies in (-180, 180] and is zero towards z."""
    xp = _namespace(kf)
    across = xp.sqrt(kf[..., 1] ** 2 + kf[..., 2] ** 2)
    return xp.arctan2(across, kf[..., 0]) * (180 / np.pi), xp.arctan2(kf[..., 1], kf[..., 2]) * (180 / np.pi)


def kf_from_angles(two_theta: Float[Any, "*n"], chi: Float[Any, "*n"]) -> Float[Any, "*n 3"]:
    """The unit kf of 2theta and chi in degrees."""
    xp = _namespace(two_theta)
    t, c = two_theta * (np.pi / 180), chi * (np.pi / 180)
    return xp.stack([xp.cos(t), xp.sin(t) * xp.sin(c), xp.sin(t) * xp.cos(c)], -1)


# The image of a camera that old files name by the size of its pixel (mm) alone: rows and columns
_FRAMES = {0.0734: (2018, 2016), 0.0791: (2048, 2048), 0.08057: (2048, 2048)}


def detector_from_calibration(
    calibration: Calibration, shape: tuple[int, int] | None = None, *, origin: str = "calibration"
) -> Detector:
    """The detector of a calibration that was read from a file, for an image of `shape` (rows, columns) if it is known.

    Files that name no frame get that of the camera with their pixel size. Raises `InputError`, beginning with `origin`.
    """
    c = calibration
    if c.pixel is None:
        raise InputError(f"{origin}: it has no pixel size; give a .det file whose sixth number it is")
    camera = next((f for p, f in _FRAMES.items() if abs(p - c.pixel) < 1e-4), None)
    size = shape or c.shape or camera
    if size is None:
        raise InputError(
            f"{origin}: it does not say the size of the image, and no known camera has pixels of {c.pixel:g} mm; "
            "give a .det file with eight numbers in its first line"
        )
    if shape is not None and c.shape is not None and tuple(shape) != tuple(c.shape):
        raise InputError(
            f"{origin}: it is for images of {c.shape[0]} x {c.shape[1]} pixels, and this one has "
            f"{shape[0]} x {shape[1]}; give the calibration of this detector"
        )
    if shape is not None and c.shape is None and camera is not None and tuple(shape) != camera:
        raise InputError(
            f"{origin}: its pixels of {c.pixel:g} mm are those of a camera with {camera[0]} x {camera[1]} pixels, and "
            f"this image has {shape[0]} x {shape[1]}; if it is for such images, give a .det file with eight numbers"
        )
    try:
        return Detector(c.dd, c.xcen, c.ycen, c.xbet, c.xgam, c.pixel, (size[0], size[1]), c.kf_direction)
    except ValueError as error:
        raise InputError(f"{origin}: {error}") from None


def largest_two_theta(detector: Detector) -> float:
    """The largest 2theta (degrees) that the detector sees, from every pixel of its edges."""
    ny, nx = detector.shape
    columns, rows = np.arange(nx + 1) + 0.5, np.arange(ny + 1) + 0.5
    edges = [(columns, np.full(nx + 1, 0.5)), (columns, np.full(nx + 1, ny + 0.5))]
    edges += [(np.full(ny + 1, 0.5), rows), (np.full(ny + 1, nx + 0.5), rows)]
    if pixel_from_direction(np.array([-1.0, 0.0, 0.0]), detector)[2]:
        return 180.0  # the beam's own reverse lies within the image
    return max(float(angles_from_kf(direction_from_pixel(x, y, detector))[0].max()) for x, y in edges)


def sample_from_lab(tilt: float = 40.0) -> NDArray[np.float64]:
    """The matrix (3, 3) from the LT frame to the sample frame, which is LT turned by `tilt` degrees about y."""
    sine, cosine = np.sin(np.radians(tilt)), np.cos(np.radians(tilt))
    return np.array([[cosine, 0.0, sine], [0.0, 1.0, 0.0], [-sine, 0.0, cosine]])
