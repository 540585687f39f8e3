"""Rotations: at random, from vectors, their angle, what is nearest to a matrix, and misorientation under symmetry.

A rotation is a proper orthogonal matrix (..., 3, 3) that acts on columns. Every function takes leading batch axes;
those without a random generator or a group work on NumPy and JAX arrays alike, and keep the dtype.

Source: Shoemake, Graphics Gems III (1992) 124 (uniform rotations).
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray


def _namespace(x: Any) -> Any:
    return x.__array_namespace__() if hasattr(x, "__array_namespace__") else np


def _identity_like(matrix: Any, xp: Any) -> Any:
    return xp.zeros_like(matrix) + xp.reshape(xp.eye(3, dtype=matrix.dtype), (1,) * (matrix.ndim - 2) + (3, 3))


def rotation_from_quaternion(quaternion: Float[Any, "*n 4"]) -> Float[Any, "*n 3 3"]:
    """The rotation of a quaternion (w, x, y, z) of any length but zero."""
    xp = _namespace(quaternion)
    unit = quaternion / xp.sqrt(xp.sum(quaternion * quaternion, -1, keepdims=True))
    w, x, y, z = (unit[..., i] for i in range(4))
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return xp.stack([xp.stack(row, -1) for row in rows], -2)


def random_rotations(rng: np.random.Generator, n: int) -> Float[np.ndarray, "n 3 3"]:
    """n rotations, uniform in SO(3), float64."""
    return rotation_from_quaternion(rng.normal(size=(n, 4)))


def cross_matrix(v: Float[Any, "*n 3"]) -> Float[Any, "*n 3 3"]:
    """The matrix of w -> v x w."""
    xp = _namespace(v)
    zero = xp.zeros_like(v[..., 0])
    x, y, z = v[..., 0], v[..., 1], v[..., 2]
    rows = [[zero, -z, y], [z, zero, -x], [-y, x, zero]]
    return xp.stack([xp.stack(row, -1) for row in rows], -2)


def rotation_from_vector(vector: Float[Any, "*n 3"]) -> Float[Any, "*n 3 3"]:
    """The rotation by |vector| (radians) about `vector` (Rodrigues); smooth, also in its derivative, at zero."""
    xp = _namespace(vector)
    square = xp.sum(vector * vector, -1)[..., None, None]
    small = square < 1e-8
    safe = xp.where(small, xp.ones_like(square), square)
    angle = xp.sqrt(safe)
    first = xp.where(small, 1 - square / 6, xp.sin(angle) / angle)
    second = xp.where(small, 0.5 - square / 24, (1 - xp.cos(angle)) / safe)
    k = cross_matrix(vector)
    return _identity_like(k, xp) + first * k + second * (k @ k)


def rotation_angle(rotation: Float[Any, "*n 3 3"]) -> Float[Any, "*n"]:
    """The angle (degrees, 0 to 180) of a rotation, accurate at both ends: |R - 1|^2 = 8 sin^2(angle / 2)."""
    xp = _namespace(rotation)
    difference = rotation - _identity_like(rotation, xp)
    half_sine = xp.sqrt(xp.sum(difference * difference, (-2, -1)) / 8)
    trace = rotation[..., 0, 0] + rotation[..., 1, 1] + rotation[..., 2, 2]
    half_cosine = xp.sqrt(xp.clip(1 + trace, 0, 4)) / 2
    return 2 * xp.arctan2(half_sine, half_cosine) * (180 / np.pi)


def nearest_rotation(matrix: Float[Any, "*n 3 3"]) -> Float[Any, "*n 3 3"]:
    """The proper rotation nearest to a matrix (the orthogonal factor of its polar decomposition)."""
    xp = _namespace(matrix)
    left, _, right = xp.linalg.svd(matrix)
    sign = xp.sign(xp.linalg.det(left @ right))[..., None]
    proper = xp.concatenate([left[..., :2], left[..., 2:] * sign[..., None]], -1)
    return proper @ right


# Generators of the rotations of each Laue class, in Cartesian axes with a* along x and b* in the plane xy: c (or the
# unique axis of 2/m, which is b) as in the standard settings. -3m1 has its two-folds along a, -31m along a*.
_FOLD = {"z2": (0, 0, 180), "z3": (0, 0, 120), "z4": (0, 0, 90), "z6": (0, 0, 60), "x2": (180, 0, 0), "y2": (0, 180, 0)}
_GENERATORS: dict[str, tuple[str, ...]] = {
    "-1": (),
    "2/m": ("y2",),
    "mmm": ("z2", "x2"),
    "4/m": ("z4",),
    "4/mmm": ("z4", "x2"),
    "-3": ("z3",),
    "-3m": ("z3", "y2"),
    "-3m1": ("z3", "y2"),
    "-31m": ("z3", "x2"),
    "6/m": ("z6",),
    "6/mmm": ("z6", "x2"),
    "m-3": ("z2", "x2", "xyz3"),
    "m-3m": ("z4", "x2", "xyz3"),
}
_ABOUT_111 = np.roll(np.eye(3), 1, axis=0)


def _rotation_of(degrees: tuple[int, int, int]) -> NDArray[np.float64]:
    return rotation_from_vector(np.radians(np.array(degrees, np.float64)))


@cache
def laue_rotations(group: str) -> NDArray[np.float64]:
    """The proper rotations (m, 3, 3) of a Laue class in Cartesian crystal axes (a* along x, b* in xy).

    Standard settings: the unique axis of 2/m is b, the main axis of the others c; "-3m" means "-3m1". A crystal in
    another setting has `mlindex.crystal.spacegroup.SpaceGroup.rotations`. Raises `ValueError` for another name.
    """
    if group not in _GENERATORS:
        raise ValueError(f"unknown Laue class {group!r}; the classes are {', '.join(_GENERATORS)}")
    steps = [_ABOUT_111 if name == "xyz3" else _rotation_of(_FOLD[name]) for name in _GENERATORS[group]]
    found = [np.eye(3)]
    for member in found:  # grows while it is walked, until the group is closed
        for step in steps:
            product = step @ member
            if all(np.abs(product - other).max() > 1e-6 for other in found):
                found.append(product)
    rotations = np.array(found)
    rotations.setflags(write=False)
    return rotations


def misorientation(
    u: Float[np.ndarray, "*n 3 3"], v: Float[np.ndarray, "*k 3 3"], group: str | Float[np.ndarray, "m 3 3"] = "-1"
) -> Float[Any, " ..."]:
    """The least angle (degrees) between orientations u and v (crystal to laboratory) over the symmetry of the crystal.

    `group` is a Laue class, or its rotations (m, 3, 3) in the Cartesian axes of the crystal. u and v broadcast.
    """
    rotations = laue_rotations(group) if isinstance(group, str) else np.asarray(group, np.float64)
    difference = np.swapaxes(np.asarray(u, np.float64), -1, -2) @ np.asarray(v, np.float64)
    nearest = np.argmax(np.einsum("...ij,mji->...m", difference, rotations), -1)
    return rotation_angle(difference @ rotations[nearest])
