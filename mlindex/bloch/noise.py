"""How large a residual the counting noise of a pattern explains, and which R says that a fit is right.

Where all beams are recorded, their sum over the beams is the same at every tilt, and what it varies by is noise: with
counting noise, whose variance is q I for an intensity I and q the fraction that one electron is, the variance of the
sum is q times the sum. Intensity that leaves the recorded beams varies the sum too: q is then too large.

Where somebody has divided each tilt by its own sum, that tells nothing. But by reciprocity the direct beam is as strong
at a tilt as at the opposite one, whatever the crystal and its thickness, if every beam of the zero-order zone has its
opposite: structure matrices of opposite tilts are each other's transpose, -g in the place of g. Their difference is
noise, and more where the tilts are not centred. Neither answer is too small but by chance.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy.spatial import cKDTree

from mlindex.bloch.beams import Geometry

MODEL_R = 0.02  # what scattering factors and the choice of beams may cost: a few times what programs differ by
_NOISE_FACTOR = 1.5  # R against that of the noise; wrong minima of noisy patterns have several times as much
_MODEL_RMS = 0.05  # of the diffracted beams: what models may be off by, as MODEL_R where half of the beam is diffracted
_QUANTUM = 12.0  # over the root of the number of tilts: the part of itself that `quantum` may be too small by
_ROUNDING = 1e-14  # below this it is no noise
_MAD = 1.4826  # of a normal distribution, standard deviation over the median absolute deviation
_MUCH = 2.0  # the quantum from the sums over that from opposite tilts, beyond which intensity leaves the beams
_PAIRS = 8  # of opposite tilts, from which something can be said
_CENTRED = 1e-2  # of the step between tilts: what may be missing for two to be opposite
_FLAT = 1e-6  # 1/A: a beam that is no farther out belongs to the zero-order zone


def quantum(intensity: Float[np.ndarray, "m n"], geometry: Geometry | None = None) -> float:
    """The fraction of the incident beam that one count is; 0 where no noise is seen.

    From the scatter of the sums over the beams and, with a `geometry`, from the direct beam at opposite tilts.
    """
    by_sums = _quantum_of_sums(intensity)
    by_centre = None if geometry is None else _quantum_of_opposites(intensity, geometry, divided=by_sums == 0)
    if by_centre is None:
        return by_sums
    # The direct beam alone scatters more: it decides where the sums see much more than noise, or nothing
    return by_sums if 0 < by_sums < _MUCH * by_centre else by_centre


def _quantum_of_sums(intensity: Float[np.ndarray, "m n"]) -> float:
    total = intensity.sum(1)
    middle = float(np.median(total))
    if len(total) < 3 or middle <= 0:
        return 0.0
    one = float((_MAD * np.median(np.abs(total - middle))) ** 2 / middle)
    return one if one > _ROUNDING else 0.0


def _quantum_of_opposites(intensity: Float[np.ndarray, "m n"], geometry: Geometry, *, divided: bool) -> float | None:
    """`quantum` from the direct beam; None where the geometry lacks opposites. `divided`: tilts by their own sums."""
    listed = {tuple(hkl) for hkl in geometry.hkl.tolist()}
    closed = all(tuple(hkl) in listed for hkl in (-geometry.hkl).tolist())
    if not closed or np.abs(geometry.g[:, 2]).max() > _FLAT or len(geometry.kt) < 2:
        return None
    tree = cKDTree(geometry.kt)
    step = float(np.median(tree.query(geometry.kt, k=2)[0][:, 1]))
    off, opposite = tree.query(-geometry.kt)
    first = np.flatnonzero((off <= _CENTRED * step) & (opposite > np.arange(len(opposite))))
    direct = intensity[:, geometry.origin]
    one, other = direct[first], direct[opposite[first]]
    # The variance of a count, or of a share of all counts
    variance = one * (1 - one) + other * (1 - other) if divided else one + other
    known = variance > 0
    if known.sum() < _PAIRS:
        return None
    found = float((_MAD * np.median(np.abs(one - other)[known] / np.sqrt(variance[known]))) ** 2)
    return found if found > _ROUNDING else 0.0


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


def diffracted(
    observed: Float[np.ndarray, "m n"], model: Float[np.ndarray, "m n"], one: float, origin: int
) -> tuple[float, float]:
    """What the diffracted beams of a fit are off by, and the most that counts as right.

    Both are root mean squares, as parts of that of these beams; nan where they are dark. `origin`: the place of the
    direct beam. The squares of counting noise of quantum `one` sum to the intensity times `one`, however few the counts
    are; the quantum is known as well as the number of tilts allows.
    """
    seen, fitted = np.delete(observed, origin, 1), np.delete(model, origin, 1)
    power = float((seen**2).sum())
    if not power > 0:
        return float("nan"), 0.0
    left = float(((seen - fitted) ** 2).sum())
    counting = (1 + _QUANTUM / np.sqrt(len(seen))) * one * float(seen.sum()) / power
    return float(np.sqrt(left / power)), float(np.sqrt(_MODEL_RMS**2 + counting))
