"""The profile of a powder line: split pseudo-Voigt of unit area, alone or as the K alpha doublet, with derivatives.

P(x) = (1 - eta) G(x) + eta L(x), both of the same full width at half maximum (Thompson, Cox & Hastings, J. Appl.
Cryst. 20 (1987) 79), and split: the half width is width exp(-skew) / 2 above the top and width exp(skew) / 2 below it,
as axial divergence makes it (Toraya, J. Appl. Cryst. 23 (1990) 485). K alpha 2 is not stripped: it is in the model,
half as strong, at sin(theta2) = sin(theta1) lambda2 / lambda1, and the position of a line is that of K alpha 1.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

_LN2 = float(np.log(2.0))
RATIO = 0.5  # K alpha 2 to K alpha 1, integrated
PARAMETERS = 5  # of a peak: position, ln(full width at half maximum), eta, skew, area (of both lines of a doublet)
AREA = 4


class Doublet(NamedTuple):
    """Wavelengths of K alpha 1 and K alpha 2 in angstrom; for patterns over 2theta in degrees."""

    first: float
    second: float


def second_position(tth: Float[np.ndarray, " n"], doublet: Doublet) -> tuple[np.ndarray, np.ndarray]:
    """2theta (degrees) of K alpha 2 of lines whose K alpha 1 is at `tth`, and its derivative; both (n,)."""
    ratio = doublet.second / doublet.first
    theta = np.radians(tth) / 2
    sine = np.minimum(ratio * np.sin(theta), 1 - 1e-9)
    return 2 * np.degrees(np.arcsin(sine)), ratio * np.cos(theta) / np.sqrt(1 - sine**2)


def pseudo_voigt(
    x: Float[np.ndarray, " n"], at: float, width: float, eta: float, skew: float = 0.0
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, "4 n"]]:
    """P(x) of unit area, and its derivatives by position (of the top), ln(width), eta, skew. `width` in units of x."""
    t = (x - at) / width
    sign = np.sign(t)
    z = t * np.exp(sign * skew)
    bell = 2 * np.sqrt(_LN2 / np.pi) * np.exp(-4 * _LN2 * np.minimum(z**2, 100.0))
    lorentz = 2 / np.pi / (1 + 4 * z**2)
    scale = 1 / (width * np.cosh(skew))
    value = scale * ((1 - eta) * bell + eta * lorentz)
    by_z = scale * ((1 - eta) * -8 * _LN2 * z * bell - eta * 8 * z / (1 + 4 * z**2) * lorentz)
    by_skew = by_z * z * sign - value * np.tanh(skew)
    return value, np.stack([-by_z * np.exp(sign * skew) / width, -value - z * by_z, scale * (lorentz - bell), by_skew])


def peak(
    x: Float[np.ndarray, " n"], parameters: Float[np.ndarray, " 5"], doublet: Doublet | None = None
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, "5 n"]]:
    """One line, its area in units of x times intensity, and the derivatives by its five parameters."""
    at, log_width, eta, skew, area = (float(p) for p in parameters)
    width = float(np.exp(log_width))
    value, slopes = pseudo_voigt(x, at, width, eta, skew)
    if doublet is not None:
        other, factor = second_position(np.array([at]), doublet)
        value2, slopes2 = pseudo_voigt(x, float(other[0]), width, eta, skew)
        slopes2[0] *= factor[0]
        value = (value + RATIO * value2) / (1 + RATIO)
        slopes = (slopes + RATIO * slopes2) / (1 + RATIO)
    return area * value, np.concatenate([area * slopes, value[None]])


def height(parameters: Float[np.ndarray, "n 5"], doublet: Doublet | None = None) -> Float[np.ndarray, " n"]:
    """The heights of peaks (of K alpha 1 alone where there are two), in the units of the intensity."""
    width, eta = np.exp(parameters[:, 1]) * np.cosh(parameters[:, 3]), parameters[:, 2]
    top = 2 / width * ((1 - eta) * np.sqrt(_LN2 / np.pi) + eta / np.pi)
    return parameters[:, AREA] * top / (1.0 if doublet is None else 1 + RATIO)


def total(
    x: Float[np.ndarray, " n"],
    parameters: Float[np.ndarray, "m 5"],
    doublet: Doublet | None = None,
    reach: float = 40.0,
) -> Float[np.ndarray, " n"]:
    """The sum of peaks; `x` ascends, and each is followed for `reach` widths to either side."""
    out = np.zeros(len(x))
    for row in parameters:
        far = reach * float(np.exp(row[1]))
        end = row[0] if doublet is None else float(second_position(row[:1], doublet)[0][0])
        part = slice(int(np.searchsorted(x, row[0] - far)), int(np.searchsorted(x, end + far)))
        out[part] += peak(x[part], row, doublet)[0]
    return out
