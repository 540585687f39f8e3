"""Laue patterns: which rays of a crystal meet the detector, and simulated frames with their truth.

All orders of a reflection lie on one spot, so the unit of a pattern is the ray: a primitive hkl up to its sign, visible
when one of its allowed orders has an energy inside the band. A ray may be seen although its primitive reflection is
extinct (400 of silicon without 100 and 200). `predict` is the kernel that everything else calls; the rest draws frames.

Intensity of one order, up to a common factor: S(E) |F|^2 lambda^2 / sin^2(theta) times the polarisation factor
1 - kf_y^2 of a beam polarised in the horizontal plane, S the incident photons per unit of energy. Source: Buras &
Gerward, Acta Cryst. A31 (1975) 372.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.typing import NDArray
from scipy.special import expit

from mlindex.crystal.rotation import random_rotations
from mlindex.crystal.strain import deviatoric_strain, u_from_ub, ub_from_strain
from mlindex.laue.geometry import (
    KEV_ANGSTROM,
    Detector,
    Plane,
    energy_from_q,
    kf_from_q,
    pixel_from_direction,
)
from mlindex.laue.materials import MAX_ORDER, Material, Rays, rays

Spectrum = Callable[[NDArray], NDArray]


class Prediction(NamedTuple):
    """Where the rays of an orientation go: `x`, `y` (px), `visible`, `energy` (keV) of the lowest visible order,
    `order` of it, and the `sign` with which the table's hkl diffracts; each (..., n).

    Where `visible` is False the other fields are finite and mean nothing.
    """

    x: Any
    y: Any
    visible: Any
    energy: Any
    order: Any
    sign: Any


def predict(
    ub: Float[Array, "*b 3 3"], rays: Rays, detector: Plane | Detector, energy: Float[Any, " 2"] | tuple[Any, Any]
) -> Prediction:
    """The pattern of one orientation, or of a batch, on the device; pure, with fixed shapes, in the dtype of `ub`.

    `ub` takes hkl to q (1/angstrom) in the LT frame; `rays` is the table of a material, `energy` (lowest, highest) keV.
    Under `jit` pass `detector.plane`, and `rays` and `energy` as arguments, so that nothing is compiled anew.
    """
    plane = detector.plane if isinstance(detector, Detector) else detector
    dtype = jnp.result_type(ub)
    hkl = jnp.asarray(rays.hkl, dtype)
    # Written out by component: three fused products are several times faster on a CPU than a batch of 3x3 matmuls
    h, k, l = hkl[:, 0], hkl[:, 1], hkl[:, 2]  # noqa: E741
    rank = (1,) * (jnp.ndim(ub) - 2)
    h, k, l = (jnp.reshape(v, (*rank, -1)) for v in (h, k, l))  # noqa: E741
    qx, qy, qz = (ub[..., i, 0, None] * h + ub[..., i, 1, None] * k + ub[..., i, 2, None] * l for i in range(3))
    square = qx * qx + qy * qy + qz * qz
    # kf up to a positive factor: the beam mirrored, q^2 x - 2 q_x q
    ux, uy, uz = square - 2 * qx * qx, -2 * qx * qy, -2 * qx * qz
    p = jnp.asarray(plane.to_pixel, dtype)
    s0, s1, s2 = (p[i, 0] * ux + p[i, 1] * uy + p[i, 2] * uz for i in range(3))
    before = s2 > 0
    scale = 1 / jnp.where(before, s2, 1)
    x, y = s0 * scale, s1 * scale
    on = before & (x >= 0.5) & (x < plane.size[0] + 0.5) & (y >= 0.5) & (y < plane.size[1] + 0.5)
    along = jnp.maximum(jnp.abs(qx), 1e-12)
    first = (KEV_ANGSTROM / 2) * square / along  # energy of the first order
    low = jnp.clip(jnp.ceil(energy[0] / first), 1, MAX_ORDER + 1).astype(jnp.int32)
    high = jnp.clip(jnp.floor(energy[1] / first), 0, MAX_ORDER).astype(jnp.int32)
    # Bit n of `orders` is set where the order n is allowed; those inside the band are a window of bits
    window = (jnp.left_shift(2, high) - 1) & ~(jnp.left_shift(1, low) - 1)
    seen = jnp.reshape(jnp.asarray(rays.orders, jnp.int32), (*rank, -1)) & jnp.where(high >= low, window, 0)
    visible = on & (seen != 0)
    order = jax.lax.population_count((seen & -seen) - 1)
    return Prediction(x, y, visible, first * order.astype(dtype), order, jnp.where(qx < 0, 1, -1))


@dataclass(frozen=True, eq=False)
class Grain:
    """One grain of a simulated frame: the rotation `u`, `ub` (1/angstrom, with the strain), the deviatoric `strain` in
    the direct crystal axes, and the number of its spots that are in the frame."""

    material: Material
    ub: NDArray[np.float64]
    u: NDArray[np.float64]
    strain: NDArray[np.float64]
    n_spots: int = 0


@dataclass(frozen=True, eq=False)
class Frame:
    """The spots of a frame, brightest first: `x`, `y` (px), `intensity`; and the truth of each.

    `grain` is the index in `grains` (-1: spurious), `hkl` (n, 3) the primitive reflection as it diffracts, `energy`
    (keV) that of its lowest visible order, `x_true` and `y_true` the place without noise.
    """

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    intensity: NDArray[np.float64]
    grain: NDArray[np.int64]
    hkl: NDArray[np.int64]
    energy: NDArray[np.float64]
    x_true: NDArray[np.float64]
    y_true: NDArray[np.float64]
    detector: Detector
    grains: tuple[Grain, ...] = field(default_factory=tuple)


def bending_magnet(energy: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
    """A smooth spectrum, photons per unit energy (arbitrary scale), with its maximum near 10 keV and a mirror's cut-off
    near 23 keV."""
    rise = (energy / 10) ** 2 * np.exp(2 * (1 - energy / 10))
    return rise * expit(24 - energy)


def random_grains(
    rng: np.random.Generator, materials: Sequence[Material], strain: float = 0.0
) -> list[tuple[Material, NDArray[np.float64]]]:
    """(material, ub) of one grain for each entry of `materials`: uniform orientation, random deviatoric strain.

    The strain is symmetric, of trace zero, with elements of standard deviation `strain` before the trace is taken off.
    """
    grains = []
    for material, u in zip(materials, random_rotations(rng, len(materials)), strict=True):
        draw = rng.normal(size=(3, 3)) * strain
        draw = np.triu(draw) + np.triu(draw, 1).T
        draw = draw - np.eye(3) * np.trace(draw) / 3
        grains.append((material, ub_from_strain(u, material.cell, draw)))
    return grains


class Spots(NamedTuple):
    """The visible rays of one grain: `x`, `y` (px), `hkl` (n, 3) primitive as it diffracts, `energy` (n,) keV of the
    lowest visible order, `intensity` (n,) of all visible orders together."""

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    hkl: NDArray[np.int64]
    energy: NDArray[np.float64]
    intensity: NDArray[np.float64]


def spots_of(
    ub: Float[np.ndarray, "3 3"],
    table: Rays,
    detector: Detector,
    energy: tuple[float, float] = (5.0, 23.0),
    spectrum: Spectrum = bending_magnet,
) -> Spots:
    """Every spot of one grain without noise, on the host in float64: the reference for `predict`.

    `intensity` sums the orders inside the band.
    """
    matrix = np.asarray(ub, np.float64)
    q = table.hkl @ matrix.T
    sign = np.where(q[:, 0] < 0, 1, -1)
    q = q * sign[:, None]
    inside = np.abs(q[:, 0]) > 1e-12
    x, y, on = pixel_from_direction(kf_from_q(np.where(inside[:, None], q, -1.0)), detector)
    first = energy_from_q(np.where(inside[:, None], q, -1.0))
    number = np.arange(1, table.strength.shape[1] + 1)
    every = first[:, None] * number
    # The orders that exist, by the bits; the strength of an order that is not allowed is zero
    allowed = (table.orders[:, None] >> number) & 1 == 1
    seen = allowed & (every >= energy[0]) & (every <= energy[1])
    keep = np.flatnonzero(inside & on & seen.any(1))
    kf = kf_from_q(q[keep])
    sine2 = q[keep, 0] ** 2 / np.sum(q[keep] ** 2, -1)
    wave2 = (KEV_ANGSTROM / every[keep]) ** 2
    parts = np.where(seen[keep], spectrum(every[keep]) * table.strength[keep] * wave2, 0.0)
    intensity = parts.sum(1) * (1 - kf[:, 1] ** 2) / sine2
    lowest = every[keep, np.argmax(seen[keep], axis=1)]
    return Spots(x[keep], y[keep], table.hkl[keep].astype(np.int64) * sign[keep, None], lowest, intensity)


def simulate_frame(
    rng: np.random.Generator,
    grains: Sequence[tuple[Material, Float[np.ndarray, "3 3"]]],
    detector: Detector,
    energy: tuple[float, float] = (5.0, 23.0),
    *,
    noise: float = 0.2,
    dropped: float = 0.15,
    spurious: float = 0.1,
    faintest: float = 0.0,
    volumes: Sequence[float] | None = None,
    spectrum: Spectrum = bending_magnet,
) -> Frame:
    """A frame of (material, ub) grains: Gaussian `noise` (px) in x and in y, a fraction of the spots `dropped` at
    random, `spurious` ones added at random places (a fraction of those left), intensities relative to the brightest,
    which has 1e5.

    `faintest`: spots below this fraction of the brightest are not recorded. `volumes` scales the grains' intensities.
    Nothing is merged: two spots may lie on each other.
    """
    tables = {id(m): rays(m, energy[1], detector) for m, _ in grains}
    parts = [spots_of(ub, tables[id(m)], detector, energy, spectrum) for m, ub in grains]
    scale = np.ones(len(grains)) if volumes is None else np.asarray(volumes, np.float64)
    merged = Spots(*(np.concatenate(column) for column in zip(*parts, strict=True))) if parts else None
    if merged is None:
        merged = Spots(np.empty(0), np.empty(0), np.empty((0, 3), np.int64), np.empty(0), np.empty(0))
    owner = np.repeat(np.arange(len(parts)), [len(p.x) for p in parts])
    intensity = merged.intensity * scale[owner]
    top = intensity.max(initial=0.0) or 1.0
    keep = (rng.random(len(owner)) >= dropped) & (intensity >= faintest * top)
    n = int(keep.sum())
    extra = rng.binomial(n, spurious) if n and spurious else 0
    ny, nx = detector.shape
    stray = rng.uniform(0.5, [nx + 0.5, ny + 0.5], (extra, 2))
    true_x, true_y = (np.concatenate([a[keep], b]) for a, b in ((merged.x, stray[:, 0]), (merged.y, stray[:, 1])))
    grain = np.concatenate([owner[keep], np.full(extra, -1)])
    shift = rng.normal(scale=noise, size=(2, len(grain))) * (grain >= 0)
    # A spurious spot is as bright as some true one
    bright = np.concatenate([intensity[keep], rng.choice(intensity[keep], extra) if extra else np.empty(0)]) / top * 1e5
    order = np.argsort(-bright, kind="stable")
    hkl = np.concatenate([merged.hkl[keep], np.zeros((extra, 3), np.int64)])
    energies = np.concatenate([merged.energy[keep], np.zeros(extra)])
    x, y = true_x + shift[0], true_y + shift[1]
    count = np.bincount(grain[grain >= 0], minlength=len(parts))
    truth = tuple(
        Grain(m, np.asarray(ub, np.float64), u_from_ub(ub), deviatoric_strain(ub, m.cell), int(c))
        for (m, ub), c in zip(grains, count, strict=True)
    )
    place = (x[order], y[order], bright[order], grain[order], hkl[order], energies[order])
    return Frame(*place, true_x[order], true_y[order], detector, truth)


def render_image(
    rng: np.random.Generator,
    frame: Frame,
    *,
    width: float = 0.9,
    background: float = 100.0,
    peak: float = 50_000.0,
    saturation: int = 65_535,
    hot_pixels: int = 0,
) -> NDArray[np.uint16]:
    """The image (ny, nx), uint16, of a frame: round Gaussians of standard deviation `width` (px) on a background that
    falls off from its middle, Poisson noise, clipped at `saturation`.

    The brightest spot has a `peak` of that many counts above the background. `hot_pixels` single ones are saturated.
    """
    ny, nx = frame.detector.shape
    column, row = np.arange(1, nx + 1), np.arange(1, ny + 1)  # the first pixel is number 1
    fall = np.exp(-((row - ny / 2) ** 2) / ny**2)[:, None] * np.exp(-((column - nx / 2) ** 2) / nx**2)
    image = background * fall
    reach = int(np.ceil(5 * width))
    top = frame.intensity.max(initial=0.0) or 1.0
    for x, y, bright in zip(frame.x, frame.y, frame.intensity / top * peak, strict=True):
        j0, i0 = max(round(x) - 1 - reach, 0), max(round(y) - 1 - reach, 0)
        j1, i1 = max(round(x) + reach, 0), max(round(y) + reach, 0)
        across = np.exp(-((column[j0:j1] - x) ** 2) / (2 * width**2))
        down = np.exp(-((row[i0:i1] - y) ** 2) / (2 * width**2))
        image[i0:i1, j0:j1] += bright * np.outer(down, across)
    counts = rng.poisson(image)
    counts[rng.integers(0, ny, hot_pixels), rng.integers(0, nx, hot_pixels)] = saturation
    return np.minimum(counts, saturation).astype(np.uint16)
