"""Which predicted ray falls on which spot: a table look-up that screens candidates by the thousand, and exact matches.

The unit scattering vector of a ray and the pixel it hits are related by one homography: with the unit vector q of a
ray, sin(theta) = -q . x and kf = x + 2 sin(theta) q, and kf meets the plane of the detector at P kf (homogeneous pixel
coordinates). So a candidate is screened with twelve multiplications, one division and one look-up a ray: the detector
is cut into cells that know whether a spot is near.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8
from numpy.typing import NDArray

from mlindex.laue.geometry import KEV_ANGSTROM, Plane

CELL = 2  # pixels a side of the cells of a table
TILE = 4096  # candidates screened together
_BELTS, _SECTORS = 20, 40
OUTSIDE, EMPTY, NEAR = 0, 1, 2  # what a cell of a table says


def projected(
    plane: Plane, q: Float[np.ndarray, "*n 3"]
) -> tuple[Float[np.ndarray, "*n 2"], Float[np.ndarray, "*n"], Bool[np.ndarray, "*n"]]:
    """Pixels (X, Y) of scattering vectors of any length, sin(theta), and which of them hit the detector."""
    unit = q / np.sqrt(np.einsum("...i,...i->...", q, q))[..., None]
    sine = -unit[..., 0]
    kf = 2 * sine[..., None] * unit
    kf[..., 0] += 1.0
    at = kf @ plane.to_pixel.T
    ahead = (sine > 0) & (at[..., 2] > 1e-9)
    xy = at[..., :2] / np.where(ahead, at[..., 2], 1.0)[..., None]
    on = ahead & (np.abs(xy - (plane.size + 1) / 2) <= plane.size / 2).all(-1)
    return xy, sine, on


def near_table(
    xy: Float[np.ndarray, "n 2"], shape: tuple[int, int], radius: float
) -> tuple[UInt8[np.ndarray, " cells"], float]:
    """The detector in cells of `CELL` pixels, row by row: `NEAR` where a spot is within `radius` pixels of the centre.

    Cell 0 is `OUTSIDE`, and the cells follow. Also returned: the share of the cells that are `NEAR`, which is the
    chance that a ray of a wrong orientation hits.
    """
    ny, nx = (n // CELL + 1 for n in shape)
    reach = int(np.ceil(radius / CELL)) + 1
    step = np.arange(-reach, reach + 1)
    dy, dx = (d.ravel() for d in np.meshgrid(step, step, indexing="ij"))
    cell = np.floor(xy / CELL).astype(np.int64)
    ix, iy = cell[:, 0, None] + dx, cell[:, 1, None] + dy
    far = np.hypot((ix + 0.5) * CELL - xy[:, 0, None], (iy + 0.5) * CELL - xy[:, 1, None])
    keep = (far <= radius) & (ix >= 0) & (ix < nx) & (iy >= 0) & (iy < ny)
    table = np.full(1 + ny * nx, EMPTY, np.uint8)
    table[0] = OUTSIDE
    table[1 + iy[keep] * nx + ix[keep]] = NEAR
    return table, float((table == NEAR).sum() / (ny * nx))


class RayLists(NamedTuple):
    """The rays to look up first, by where the centre of the detector lies in the crystal.

    The sphere is cut into `_BELTS` x `_SECTORS` cells of equal area; for each, `rays` (cells, m, 3) are unit vectors
    and `least_sine` (cells, m) the sin(theta) below which each needs more than the highest energy (2 for none).
    """

    rays: NDArray[np.float32]
    least_sine: NDArray[np.float32]


def ray_lists(
    directions: Float[np.ndarray, "s 3"], least_sine: Float[np.ndarray, " s"], *, cone: float, most: int
) -> RayLists:
    """For each cell of the sphere the first `most` rays (strongest first) within `cone` degrees of its centre."""
    height = (np.arange(_BELTS) + 0.5) / _BELTS * 2 - 1
    longitude = (np.arange(_SECTORS) + 0.5) / _SECTORS * 2 * np.pi - np.pi
    z, phi = (a.ravel() for a in np.meshgrid(height, longitude, indexing="ij"))
    centre = np.stack([np.sqrt(1 - z * z) * np.cos(phi), np.sqrt(1 - z * z) * np.sin(phi), z], 1)
    inside = centre @ directions.T > np.cos(np.radians(cone))
    order = np.argsort(~inside, axis=1, kind="stable")[:, :most]
    valid = np.take_along_axis(inside, order, 1)
    sine = np.where(valid, least_sine[order], 2.0)
    short = ((0, 0), (0, most - order.shape[1]))  # where the material has fewer rays than that
    order, sine = np.pad(order, short), np.pad(sine, short, constant_values=2.0)
    return RayLists(directions[order].astype(np.float32), sine.astype(np.float32))


def _said(
    u: Float[Array, "k 3 3"],
    rays: Float[Array, "#k r 3"],
    least_sine: Float[Array, "#k r"],
    matrix: Float[Array, "3 3"],
    table: UInt8[Array, " cells"],
    shape: tuple[int, int],
) -> UInt8[Array, "k r"]:
    """What the table says of each ray of each candidate; `OUTSIDE` for one that is not seen."""
    forward = jnp.einsum("ab,kbj->kaj", matrix, u)

    def along(row: Float[Array, "k 3"]) -> Float[Array, "k r"]:
        return row[:, 0, None] * rays[..., 0] + row[:, 1, None] * rays[..., 1] + row[:, 2, None] * rays[..., 2]

    sine = -along(u[:, 0])
    x, y, depth = (matrix[i, 0] + 2 * sine * along(forward[:, i]) for i in range(3))
    ahead = depth > 1e-6
    scale = 1 / (jnp.where(ahead, depth, 1.0) * CELL)
    ix, iy = x * scale, y * scale
    ny, nx = (n // CELL + 1 for n in shape)
    on = (sine >= least_sine) & ahead & (ix >= 0) & (ix < nx) & (iy >= 0) & (iy < ny)
    return table[jnp.where(on, 1 + iy.astype(jnp.int32) * nx + ix.astype(jnp.int32), 0)]


@partial(jax.jit, static_argnames=("shape",))
def screen(
    spot_frames: Float[Array, "p 3 3"],
    ray_frames: Float[Array, "t 3 3"],
    pair: Int[Array, " k"],
    entry: Int[Array, " k"],
    rays: Float[Array, "c r 3"],
    least_sine: Float[Array, "c r"],
    centre: Float[Array, 3],
    matrix: Float[Array, "3 3"],
    table: UInt8[Array, " cells"],
    gain: Float[Array, ""],
    loss: Float[Array, ""],
    shape: tuple[int, int],
) -> Float[Array, " k"]:
    """Log-likelihood ratio of each candidate against chance, over the strongest rays it sends near the detector.

    Candidate k turns `ray_frames[entry[k]]` onto `spot_frames[pair[k]]`. `rays` and `least_sine` are those of
    `RayLists`, `centre` the direction of q at the centre of the detector, `matrix` takes kf to homogeneous pixels. A
    ray that falls near a spot counts `gain`, one that falls onto an empty place of the detector `-loss`, all others
    nothing.
    """
    u = jnp.einsum("kia,kja->kij", spot_frames[pair], ray_frames[entry])
    within = jnp.einsum("kij,i->kj", u, centre)
    belt = jnp.clip(((within[:, 2] + 1) / 2 * _BELTS).astype(jnp.int32), 0, _BELTS - 1)
    sector = ((jnp.arctan2(within[:, 1], within[:, 0]) / (2 * jnp.pi) + 0.5) * _SECTORS).astype(jnp.int32)
    cell = belt * _SECTORS + jnp.clip(sector, 0, _SECTORS - 1)
    said = _said(u, rays[cell], least_sine[cell], matrix, table, shape)
    return jnp.sum(jnp.where(said == NEAR, gain, jnp.where(said == EMPTY, -loss, 0.0)), 1)


@partial(jax.jit, static_argnames=("shape",))
def screen_all(
    u: Float[Array, "k 3 3"],
    rays: Float[Array, "r 3"],
    least_sine: Float[Array, " r"],
    matrix: Float[Array, "3 3"],
    table: UInt8[Array, " cells"],
    gain: Float[Array, ""],
    loss: Float[Array, ""],
    shape: tuple[int, int],
) -> Float[Array, " k"]:
    """As `screen`, for orientations `u` and over all of `rays`."""
    said = _said(u, rays[None], least_sine[None], matrix, table, shape)
    return jnp.sum(jnp.where(said == NEAR, gain, jnp.where(said == EMPTY, -loss, 0.0)), 1)


class Match(NamedTuple):
    """The rays of one grain that should be seen, and the spots they fall on.

    `ray`: indices into the rays of the crystal, strongest first; `xy`: predicted pixels; `spot`: the nearest spot, or
    -1 where none is within the radius; `distance`: to it, in pixels (infinite for none).
    """

    ray: NDArray[np.int64]
    xy: NDArray[np.float64]
    spot: NDArray[np.int64]
    distance: NDArray[np.float64]


def visible(
    ub: Float[np.ndarray, "3 3"],
    hkl: Float[np.ndarray, "r 3"],
    orders: Int[np.ndarray, " r"],
    plane: Plane,
    energy: tuple[float, float],
    among: Int[np.ndarray, " m"] | None = None,
) -> tuple[Int[np.ndarray, " v"], Float[np.ndarray, "v 2"]]:
    """Indices of the rays that are seen, and their pixels.

    Bit n of `orders` is set where the order n of a ray is allowed; a ray is seen where one of them has an energy within
    the band. `among` restricts the rays.
    """
    ray = np.arange(len(hkl)) if among is None else among
    q = hkl[ray] @ ub.T
    xy, sine, on = projected(plane, q)
    ray, xy = ray[on], xy[on]
    first = KEV_ANGSTROM / 2 * np.sqrt(np.einsum("ij,ij->i", q[on], q[on])) / sine[on]
    low = np.clip(np.ceil(energy[0] / first), 1, 31).astype(np.int64)
    high = np.clip(np.floor(energy[1] / first), 0, 30).astype(np.int64)
    window = np.where(high >= low, (1 << (high + 1)) - (1 << low), 0)
    seen = (orders[ray] & window) != 0
    return ray[seen], xy[seen]


def lowest_energy(
    ub: Float[np.ndarray, "3 3"],
    hkl: Float[np.ndarray, "r 3"],
    orders: Int[np.ndarray, " r"],
    energy: tuple[float, float],
) -> Float[np.ndarray, " r"]:
    """The energy (keV) of the lowest allowed order of each ray within the band; infinite where there is none."""
    q = hkl @ ub.T
    first = KEV_ANGSTROM / 2 * np.einsum("ij,ij->i", q, q) / np.abs(q[:, 0])
    order = np.arange(1, 31)
    each = order * first[:, None]
    there = ((orders[:, None] >> order) & 1 > 0) & (each >= energy[0]) & (each <= energy[1])
    return np.where(there, each, np.inf).min(1)


def matched(ray: Int[np.ndarray, " v"], xy: Float[np.ndarray, "v 2"], tree: Any, radius: float) -> Match:
    """The spot nearest to each predicted pixel; `tree` is a `scipy.spatial.cKDTree` of the spots.

    A spot that is the nearest to several rays belongs to the nearest of them.
    """
    distance, spot = tree.query(xy, distance_upper_bound=radius) if len(xy) else (np.empty(0), np.empty(0, np.int64))
    spot = np.where(np.isfinite(distance), spot, -1).astype(np.int64)
    order = np.lexsort((distance, spot))
    repeated = order[1:][(spot[order[1:]] == spot[order[:-1]]) & (spot[order[1:]] >= 0)]
    spot[repeated], distance[repeated] = -1, np.inf
    return Match(ray, xy, spot, distance)
