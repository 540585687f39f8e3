"""Beams and tilts of a rocked pattern: which g, which incident directions, and the excitation of each.

Lengths in angstrom, without 2 pi: |g| = 1/d, |k| = 1/lambda. The frame of a zone axis [uvw] has z along it, against the
incident beam, x along the part of a* that is perpendicular to z (of b* where a* is parallel to z), and y = z x x. A
tilt (mrad) moves the tangential part of the incident wave vector, k_t = tilt k0, in this frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from mlindex.crystal.electrons import wavelength
from mlindex.crystal.metric import CellLike, b_matrix_from_cell, checked_cell

_SAME = 1e-9  # 1/A^2: |g|^2 that differ by less are one shell
_WHOLE = 1e-6  # what a whole number may be off by


@dataclass(frozen=True, eq=False)
class Geometry:
    """The beams and the tilts of a pattern.

    `hkl` (n, 3); `g` (n, 3) in 1/A, z = 0 in the zero-order zone; `kt` (m, 2) in 1/A; `k0` = 1/lambda in 1/A. `dhkl`
    (d, 3) are the distinct differences of two beams, in lexicographic order (so dhkl[d - 1 - i] = -dhkl[i] and 000 is
    the middle one), and `index` (n, n) the place of hkl[p] - hkl[q] among them.
    """

    hkl: NDArray[np.int64]
    g: NDArray[np.float64]
    kt: NDArray[np.float64]
    k0: float
    dhkl: NDArray[np.int64]
    index: NDArray[np.int64]

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of tilts and of beams."""
        return len(self.kt), len(self.hkl)

    @cached_property
    def origin(self) -> int:
        """The place of the direct beam 000."""
        return int(np.flatnonzero(~self.hkl.any(1))[0])

    @cached_property
    def excitation(self) -> Float[np.ndarray, "m n"]:
        """The diagonal 2 k0 s_g = -(g^2 + 2 g.k) in 1/A^2 of the structure matrix, tilts by beams.

        In the zero-order zone g.k is g.k_t; beams of higher zones add g_z k_z, k_z = -sqrt(k0^2 - k_t^2).
        """
        return excitation(self.g, self.kt, self.k0)

    def part(self, tilts: NDArray) -> Geometry:
        """The same beams with some of the tilts (indices, or a mask)."""
        return Geometry(self.hkl, self.g, self.kt[tilts], self.k0, self.dhkl, self.index)


def excitation(g: Float[np.ndarray, "n 3"], kt: Float[np.ndarray, "m 2"], k0: float) -> Float[np.ndarray, "m n"]:
    """`Geometry.excitation`: -(g^2 + 2 g.k) in 1/A^2, tilts by beams."""
    kz = -np.sqrt(k0**2 - np.sum(kt**2, -1))
    return -(np.sum(g**2, -1) + 2 * (kt @ g[:, :2].T + np.outer(kz, g[:, 2])))


def differences(hkl: Int[np.ndarray, "n 3"]) -> tuple[Int[np.ndarray, "d 3"], Int[np.ndarray, "n n"]]:
    """`dhkl` and `index` of `Geometry`: the distinct hkl[p] - hkl[q], and the place of each among them."""
    every = hkl[:, None] - hkl[None]
    dhkl, place = np.unique(every.reshape(-1, 3), axis=0, return_inverse=True)
    return dhkl, place.reshape(len(hkl), len(hkl))


def zone_frame(cell: CellLike, zone: Sequence[int]) -> Float[np.ndarray, "3 3"]:
    """M (1/A) with g = M hkl in the frame of the zone axis [uvw].

    Raises `ValueError` for a cell that is none and for the axis 000.
    """
    b = b_matrix_from_cell(checked_cell(np.asarray(cell, np.float64)))
    axis = np.linalg.inv(b).T @ np.asarray(zone, np.float64)
    if len(zone) != 3 or not np.all(np.isfinite(axis)) or not axis.any():
        raise ValueError(f"zone axis {list(zone)}: three indices u, v, w are needed, not all zero")
    z = axis / np.linalg.norm(axis)
    for star in b.T:
        x = star - (star @ z) * z
        if np.linalg.norm(x) > 1e-6 * np.linalg.norm(star):
            break
    x = x / np.linalg.norm(x)
    return np.array([x, np.cross(z, x), z]) @ b


def _within(cell: CellLike, g_max: float, centring: Float[np.ndarray, "k 3"] | None = None) -> Int[np.ndarray, "n 3"]:
    b = b_matrix_from_cell(checked_cell(np.asarray(cell, np.float64)))
    reach = np.floor(g_max * np.linalg.norm(np.linalg.inv(b), axis=1) + 1e-9).astype(int)
    axes = [np.arange(-n, n + 1) for n in reach]
    hkl = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    if centring is None:
        return hkl
    phase = hkl @ np.asarray(centring, np.float64).T
    return hkl[np.all(np.abs(phase - np.rint(phase)) < _WHOLE, axis=1)]


def _q2(cell: CellLike, hkl: Int[np.ndarray, "n 3"]) -> Float[np.ndarray, " n"]:
    return np.sum((hkl @ b_matrix_from_cell(np.asarray(cell, np.float64)).T) ** 2, -1)


def zone_beams(
    cell: CellLike, zone: Sequence[int], g_max: float, centring: Float[np.ndarray, "k 3"] | None = None
) -> Int[np.ndarray, "n 3"]:
    """The beams of the zero-order zone with |g| <= `g_max` (1/A), by |g| and then in lexicographic order.

    `centring`: translations of the lattice, in parts of the cell. They leave out the hkl that are no points of the
    reciprocal lattice; what glides and screws extinguish is excited by way of others, and stays.
    """
    hkl = _within(cell, g_max, centring)
    hkl = hkl[hkl @ np.asarray(zone, np.int64) == 0]
    q2 = _q2(cell, hkl)
    keep = q2 <= g_max**2 + _SAME
    hkl, q2 = hkl[keep], np.round(q2[keep] / _SAME)
    return hkl[np.lexsort((*hkl.T[::-1], q2))]


def shell_beams(
    cell: CellLike, zone: Sequence[int], count: int, centring: Float[np.ndarray, "k 3"] | None = None
) -> Int[np.ndarray, "n 3"]:
    """The first full shells of the zero-order zone that hold `count` beams; `centring` as for `zone_beams`.

    Raises `ValueError`, one sentence that names the nearest numbers, where no shell ends at that number.
    """
    if count < 1:
        raise ValueError(f"a pattern has at least one beam, not {count}")
    zone_frame(cell, zone)
    primitive = np.asarray(zone, np.int64) // np.gcd.reduce(np.asarray(zone, np.int64))
    b = b_matrix_from_cell(checked_cell(np.asarray(cell, np.float64)))
    area = np.linalg.norm(np.linalg.inv(b).T @ primitive) * np.linalg.det(b)  # 1/A^2 a beam, in the zone
    g_max = np.sqrt((count + 8) * area / np.pi)
    # one beam more, so that the last shell is known to end
    while len(hkl := zone_beams(cell, zone, g_max, centring)) <= count:
        g_max *= 1.3
    q2 = _q2(cell, hkl)
    ends = np.flatnonzero(np.diff(q2) > _SAME) + 1
    if count in ends:
        return hkl[:count]
    while not len(above := ends[ends > count]):
        g_max *= 1.3
        ends = np.flatnonzero(np.diff(_q2(cell, zone_beams(cell, zone, g_max, centring))) > _SAME) + 1
    near = [*ends[ends < count][-1:], above[0]]
    raise ValueError(
        f"no full shell of the zone {list(zone)} holds {count} beams; the nearest hold {' and '.join(map(str, near))}"
    )


def tilt_disc(steps: int, range_mrad: float) -> tuple[Float[np.ndarray, "m 2"], Int[np.ndarray, "m 2"]]:
    """Tilts (mrad) on the square grid i, j with i^2 + j^2 <= `steps`^2 scaled so that i = `steps` is `range_mrad`, and
    these i, j; in lexicographic order.

    Raises `ValueError` for a negative number of steps or a range that is not positive.
    """
    if steps < 0 or not (np.isfinite(range_mrad) and range_mrad > 0):
        raise ValueError(f"a disc of tilts needs steps >= 0 and a positive range, not {steps} and {range_mrad} mrad")
    axis = np.arange(-steps, steps + 1)
    ij = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    ij = ij[np.sum(ij**2, -1) <= steps**2]
    return ij / max(steps, 1) * range_mrad, ij


def geometry(
    hkl: Int[np.ndarray, "n 3"],
    tilt: Float[np.ndarray, "m 2"],
    *,
    cell: CellLike,
    zone: Sequence[int],
    voltage_kv: float,
) -> Geometry:
    """The geometry of beams `hkl` and tilts (mrad) of a crystal seen along a zone axis.

    Raises `ValueError`: beams without 000 or twice the same, a tilt beyond grazing incidence, no cell, zone or voltage.
    """
    beams = np.asarray(hkl, np.int64)
    if not len(beams) or np.all(beams.any(1)):
        raise ValueError("the direct beam 0 0 0 is missing among the beams")
    if len(np.unique(beams, axis=0)) < len(beams):
        raise ValueError("a beam is listed twice")
    k0 = 1 / wavelength(voltage_kv)
    kt = np.asarray(tilt, np.float64) / 1e3 * k0
    if not np.all(np.isfinite(kt)) or np.any(np.sum(kt**2, -1) >= k0**2):
        raise ValueError("a tilt is not finite, or beyond 1000 mrad")
    return Geometry(beams, beams @ zone_frame(cell, zone).T, kt, k0, *differences(beams))


def higher_zone_beams(
    cell: CellLike,
    zone: Sequence[int],
    tilt: Float[np.ndarray, "m 2"],
    *,
    voltage_kv: float,
    g_max: float,
    s_max: float,
    centring: Float[np.ndarray, "k 3"] | None = None,
) -> Int[np.ndarray, "n 3"]:
    """The beams outside the zero-order zone with |g| <= `g_max` (1/A) whose excitation error |s_g| falls to `s_max`
    (1/A) or less at some tilt (mrad); by |g| and then in lexicographic order. `centring` as for `zone_beams`."""
    hkl = _within(cell, g_max, centring)
    hkl = hkl[hkl @ np.asarray(zone, np.int64) != 0]
    q2 = _q2(cell, hkl)
    hkl = hkl[q2 <= g_max**2 + _SAME]
    k0 = 1 / wavelength(voltage_kv)
    kt = np.asarray(tilt, np.float64) / 1e3 * k0
    hkl = hkl[np.abs(excitation(hkl @ zone_frame(cell, zone).T, kt, k0)).min(0) <= 2 * k0 * s_max]
    return hkl[np.lexsort((*hkl.T[::-1], np.round(_q2(cell, hkl) / _SAME)))]
