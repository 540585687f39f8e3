"""Strains in other axes, with their uncertainties.

A deviatoric strain is reported in the direct crystal axes (x along a, b in xy). With `u` from the reciprocal crystal
axes (x along a*) to LT, D from the direct to the reciprocal axes, and S from LT to the sample, the strain in the sample
is R e R^T, R = S u D; to first order in the strain, as strains themselves are.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from mlindex.laue.record import strain_size

COMPONENTS = ("xx", "yy", "zz", "yz", "xz", "xy")
_ROW = np.array([0, 1, 2, 1, 0, 0])
_COLUMN = np.array([0, 1, 2, 2, 2, 1])


def six(tensor: Float[np.ndarray, "*n 3 3"]) -> Float[np.ndarray, "*n 6"]:
    """The components of symmetric tensors in the order of `COMPONENTS`."""
    return tensor[..., _ROW, _COLUMN]


def turned(strain: Float[np.ndarray, "n 3 3"], rotation: Float[np.ndarray, "n 3 3"]) -> NDArray[np.float64]:
    """R e R^T, (n, 3, 3)."""
    return rotation @ strain @ np.swapaxes(rotation, -1, -2)


def turned_esd(esd: Float[np.ndarray, "n 3 3"], rotation: Float[np.ndarray, "n 3 3"]) -> NDArray[np.float64]:
    """Standard uncertainties (n, 3, 3) of R e R^T, the six components of e taken as independent."""
    variance = np.zeros(esd.shape)
    for k, l in zip(_ROW, _COLUMN, strict=True):  # noqa: E741
        slope = rotation[..., :, None, k] * rotation[..., None, :, l]
        if k != l:  # such a component stands there twice
            slope = slope + rotation[..., :, None, l] * rotation[..., None, :, k]
        variance += slope**2 * esd[..., k, l, None, None] ** 2
    return np.sqrt(variance)


def equivalent(strain: Float[np.ndarray, "n 3 3"], esd: Float[np.ndarray, "n 3 3"]) -> NDArray[np.float64]:
    """The equivalent (von Mises) strain of deviatoric strains, sqrt(2/3 e:e), (n,), less what their errors add to it
    (see `strain_size`)."""
    return np.sqrt(2 / 3) * strain_size(strain, esd)


def equivalent_esd(strain: Float[np.ndarray, "n 3 3"], esd: Float[np.ndarray, "n 3 3"]) -> NDArray[np.float64]:
    """Standard uncertainty (n,) of the equivalent strain, the components independent; without strain that of all.

    It is that of a strain well above it. Of one that is not, it says how large a strain goes unseen.
    """
    twice = np.where(np.eye(3) > 0, 1.0, 2.0)
    norm = np.sqrt(np.sum(strain**2, (-1, -2)))
    safe = np.where(norm > 0, norm, 1.0)[..., None, None]
    slope = np.where(norm[..., None, None] > 0, twice * strain / safe, np.sqrt(twice))
    upper = np.triu(np.ones((3, 3)))
    return np.sqrt(2 / 3 * np.sum(upper * (slope * esd) ** 2, (-1, -2)))
