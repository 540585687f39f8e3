"""Whether the best fit of a pattern is a solution, and in a sentence why it is none.

The direct beam holds most of a weak pattern, and R of all beams is small whatever the crystal. So the diffracted beams
are asked on their own: their residual must be that of noise and of models, and the fit must explain how they vary with
the tilt, which a slab without a crystal, or one with a background in its place, does not. That is an F test against
beams that are as strong at all tilts as in the mean, with every structure factor as an unknown.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from mlindex.bloch import noise
from mlindex.bloch.judge import Solution

_CLEARLY = 3.0  # F ratio from which a crystal explains more than unknowns that fit noise
_BEYOND = 0.01  # of a limit: what the thickness may be outside of it


def crystal_ratio(
    observed: Float[np.ndarray, "m n"], model: Float[np.ndarray, "m n"], origin: int, unknown: int
) -> float:
    """F ratio of a fit with so many unknowns against diffracted beams that do not vary with the tilt; `origin`: the
    place of the direct beam. 0 where nothing varies, infinite where a fit leaves nothing."""
    seen, fitted = np.delete(observed, origin, 1), np.delete(model, origin, 1)
    without = float(((seen - seen.mean(0)) ** 2).sum())
    left = float(((seen - fitted) ** 2).sum())
    if without <= left:
        return 0.0
    return (without - left) / unknown * max(seen.size - unknown, 1) / left if left else float("inf")


def why_not(
    best: Solution,
    observed: Float[np.ndarray, "m n"],
    origin: int,
    *,
    quantum: float,
    unknown: int,
    limits_nm: tuple[float, float],
    hint: str = "",
) -> str:
    """Why the best solution is none; empty where it is one.

    `observed` as fractions of the incident beam, `origin` the place of the direct beam, `quantum` what one count is (0:
    no noise), `unknown` the number of unknowns, `limits_nm` of the thickness. `hint` is added to a fit that is bad.
    """
    explained = noise.r_of_noise(best.intensity, quantum)
    limit = noise.largest_r(explained)
    if not best.r_factor <= limit:  # and where it is nan
        told = f"noise explains {explained:.3g}" if explained else "no noise is seen that explains it"
        reason = f"the best fit has R = {best.r_factor:.3g}, and {told}; an R up to {limit:.3g} would be a solution"
        return reason + hint
    off, most = noise.diffracted(observed, best.intensity, quantum, origin)
    if off > most:  # and not nan, where they are dark
        return (
            f"the best fit has R = {best.r_factor:.3g}, which the direct beam makes small: the diffracted beams are "
            f"off by {off:.3g} of what they are (root mean square), and up to {most:.3g} would be a solution{hint}"
        )
    if not crystal_ratio(observed, best.intensity, origin, unknown) > _CLEARLY:
        return (
            f"the best fit has R = {best.r_factor:.3g}, but is not clearly nearer to the diffracted beams than ones "
            "that do not vary with the tilt: the pattern shows no crystal"
        )
    low, high = limits_nm
    depth = best.thickness / 10
    if not low * (1 - _BEYOND) <= depth <= high * (1 + _BEYOND):
        return (
            f"the best fit has a thickness of {depth:.4g} nm, which is outside of the limits {low:g} to {high:g}; "
            "widen them (thickness_nm) where it may be right"
        )
    return ""
