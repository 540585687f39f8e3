"""Observed line positions with the error model that the search and the judgement share.

Errors are those of an angle: a line at q (= 1/d) is uncertain by sigma_q = s w, with s in degrees 2theta and
w = cos(theta)/lambda * pi/180 the change of q per degree. Patterns of short wavelengths are squeezed into a few
degrees, and those of large cells have lines that could not be told apart with the errors of a laboratory: below 0.4
angstrom, and where the lines are nearer than a quarter of a degree on average, s counts in units that are as much
smaller.

A list without a wavelength is taken for one of a serial powder, whose q2 is uncertain by 0.0001 + 0.0006 q2 (the
write-up of ML-Index): w has that dependence on q, scaled so that s still reads as degrees on a laboratory
diffractometer (Cu K alpha) in the middle of a pattern. There the constant is at most a tenth of the spacing of lines.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

_SERIAL = (1e-4, 6e-4)  # standard deviation of q2 of a serial powder: constant (1/angstrom^2) and slope
_SERIAL_DEGREES = 0.025  # the same for Cu K alpha 1 at d = 4 angstrom, degrees 2theta
_OF_SPACING = 0.1  # the constant at most, of the mean distance in q2 of neighbouring lines
_SPACED = 40  # lines from the first on that tell the spacing
# angstrom and degrees 2theta: the wavelength and the spacing of lines below which the unit of s is less than a degree
_SHORT, _CLOSE = 0.4, 0.25
_TWICE, _SHARE_TWICE = 0.02, 0.2  # degrees 2theta between lines that are one, and the share from which they are


@dataclass(frozen=True)
class Lines:
    """Lines of one pattern: q2 (n,) in 1/angstrom^2 ascending, q (n,), w (n,) in 1/angstrom per degree of 2theta.

    `degrees`: the unit of all that is said to be in degrees of 2theta, w included; 1 but for short wavelengths and
    large cells.
    """

    q2: NDArray[np.float64]
    q: NDArray[np.float64]
    w: NDArray[np.float64]
    wavelength: float | None
    degrees: float = 1.0

    def __len__(self) -> int:
        return len(self.q2)

    def first(self, n: int) -> Lines:
        """The first n lines."""
        return Lines(self.q2[:n], self.q[:n], self.w[:n], self.wavelength, self.degrees)

    def shifted(self, zero: float) -> Lines:
        """The lines after a zero shift in degrees 2theta is taken off."""
        if zero == 0.0:
            return self
        q = self.q - zero * self.w
        keep = q > 0.2 * self.q[0]
        return Lines(q[keep] ** 2, q[keep], self.w[keep], self.wavelength, self.degrees)


def _width(q2: NDArray[np.float64], wavelength: float | None) -> tuple[NDArray[np.float64], float]:
    """The change of q per unit of s, for all lines (n,) of a list, and the unit in degrees of 2theta."""
    first = q2[:_SPACED]
    if wavelength is None:
        constant = min(_SERIAL[0], _OF_SPACING * float(first[-1] - first[0]) / max(len(first) - 1, 1))
        return (constant + _SERIAL[1] * q2) / (2 * np.sqrt(q2)) / _SERIAL_DEGREES, 1.0
    degree = np.sqrt(np.clip(1 - q2 * wavelength**2 / 4, 1e-4, 1)) / wavelength * np.pi / 180
    spacing = np.diff(np.sqrt(first)) / degree[1 : len(first)]
    unit = min(1.0, wavelength / _SHORT, float(spacing.mean()) / _CLOSE if len(spacing) else 1.0)
    return unit * degree, unit


def lines_from_q2(q2: Float[np.ndarray, " n"], wavelength: float | None) -> Lines:
    """The lines at q2 (1/angstrom^2); `wavelength` in angstrom.

    Lines nearer to each other than 0.02 degrees become one, at their mean, where a fifth of the list are such: it is
    then made of two measurements of one sample. Single pairs stay, since a sharp pattern resolves them.
    """
    q2 = np.sort(np.asarray(q2, np.float64))
    width, _ = _width(q2, wavelength)
    near = np.diff(np.sqrt(q2)) < _TWICE * width[1:]
    if near.sum() > _SHARE_TWICE * len(q2):
        line = np.cumsum(np.append(True, ~near)) - 1
        q2 = np.bincount(line, q2) / np.bincount(line)
    width, unit = _width(q2, wavelength)
    return Lines(q2, np.sqrt(q2), width, wavelength, unit)
