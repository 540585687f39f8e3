"""How large an R factor the counting noise of a pattern explains, and which R says that a fit is right.

Where all beams are recorded, their sum over the beams is the same at every tilt, and what it varies by is noise: with
counting noise, whose variance is q I for an intensity I and q the fraction that one electron is, the variance of the
sum is q times the sum. Intensity that leaves the recorded beams varies the sum too: q is then too large, never too
small, unless somebody has divided each tilt by its own sum.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

MODEL_R = 0.02  # what scattering factors and the choice of beams may cost: a few times what programs differ by
_NOISE_FACTOR = 1.5  # R against that of the noise; wrong minima of noisy patterns have several times as much
_ROUNDING = 1e-14  # below this it is no noise
_MAD = 1.4826  # of a normal distribution, standard deviation over the median absolute deviation


def quantum(intensity: Float[np.ndarray, "m n"]) -> float:
    """The fraction of the incident beam that one count is, from the scatter of the sums over the beams; 0 for none."""
    total = intensity.sum(1)
    middle = float(np.median(total))
    if len(total) < 3 or middle <= 0:
        return 0.0
    one = float((_MAD * np.median(np.abs(total - middle))) ** 2 / middle)
    return one if one > _ROUNDING else 0.0


def r_of_noise(intensity: Float[np.ndarray, "m n"], one: float) -> float:
    """sum |I - I_observed| / sum I that Poisson noise of quantum `one` makes of intensities without noise.

    The mean deviation of a count of mean c is 2 c exp(-c) below 1, and near sqrt(2 c / pi) above.
    """
    if one <= 0 or not intensity.sum() > 0:
        return 0.0
    counts = np.maximum(intensity, 0.0) / one
    deviation = np.minimum(np.sqrt(2 * counts / np.pi), 2 * counts * np.exp(-np.minimum(counts, 1.0)))
    return float(deviation.sum() / counts.sum())


def largest_r(noise: float) -> float:
    """The R factor up to which a fit counts as right, where noise explains `noise`."""
    return MODEL_R + _NOISE_FACTOR * noise
