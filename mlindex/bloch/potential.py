"""The potential of the crystal, averaged along the beam, from structure factors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Complex, Float, Int

from mlindex.bloch.beams import zone_frame
from mlindex.crystal.electrons import gamma
from mlindex.crystal.metric import CellLike

_VOLTS = 150.4120634  # V A^2: h^2 / (2 m0 e)


def projected_cell(
    dhkl: Int[np.ndarray, "d 3"], cell: CellLike, zone: Sequence[int]
) -> Float[np.ndarray, "2 2"] | None:
    """The two shortest vectors (A, rows; x, y in the frame of the zone) of the projected cell of these differences.

    None where they span no plane. Two shortest vectors of the reciprocal plane are a basis of it; the projected lattice
    is dual to them.
    """
    plane = np.asarray(dhkl)[np.asarray(dhkl) @ np.asarray(zone) == 0]
    g = (plane @ zone_frame(cell, zone).T)[:, :2]
    g = g[np.argsort(np.sum(g**2, 1).round(9), kind="stable")]
    g = g[(g[:, 0] > 1e-6) | ((np.abs(g[:, 0]) <= 1e-6) & (g[:, 1] > 1e-6))]  # one of g and -g, towards x
    for other in g[1:]:
        basis = np.array([g[0], other])
        if abs(np.linalg.det(basis)) > 1e-6 * np.linalg.norm(g[0]) * np.linalg.norm(other):
            return np.linalg.inv(basis).T
    return None


def projected_potential(
    u: Complex[np.ndarray, " d"],
    dhkl: Int[np.ndarray, "d 3"],
    points: Float[np.ndarray, "*p 2"],
    *,
    cell: CellLike,
    zone: Sequence[int],
    voltage_kv: float,
) -> Float[np.ndarray, "*p"]:
    """V (volts, averaged along the zone axis, less its mean) at `points` (A, x and y in the frame of the zone).

    V_g = h^2 U_g / (2 m e) with the relativistic mass, and V(r) = sum_g V_g exp(2 pi i g.r) over the differences `dhkl`
    that are in the zone.
    """
    inside = np.asarray(dhkl) @ np.asarray(zone) == 0
    g = (np.asarray(dhkl)[inside] @ zone_frame(cell, zone).T)[:, :2]
    waves = np.exp(2j * np.pi * (points @ g.T))
    return (waves @ np.asarray(u)[inside]).real * _VOLTS / gamma(voltage_kv)
