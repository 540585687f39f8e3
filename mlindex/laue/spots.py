"""Spots of a Laue frame: background, local maxima and sub-pixel fits, in one jitted pass of fixed shapes.

The background is the median of cells of 36 x 36 pixels as a remedian (Rousseeuw and Bassett, J. Am. Stat. Assoc. 85, 97
(1990): medians of medians of few values, which are networks of minima and maxima and need no sort), its 3 x 3 median
over the cells, and bilinear between their centres. Candidates are the local maxima of what remains, smoothed by a
binomial filter (sigma 1 pixel), that exceed `threshold` times its noise, measured in the same cells. Each is fitted
with an elliptical Gaussian above a constant by Gauss-Newton steps with the weights of Poisson noise, 1 / (noise^2 +
gain x model), whose fixed point is the maximum of the Poisson likelihood; pixels that are masked, saturated, hot,
outside the frame or nearer to another spot carry no weight.

Positions follow Lauetools: x along a row, y along a column, and the centre of the first pixel is at (1, 1), so the
pixel `image[i, j]` has its centre at x = j + 1, y = i + 1 (as in the lists that Lauetools made of two real frames).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from functools import partial, reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from numpy.typing import NDArray
from pydantic import Field
from scipy.spatial import cKDTree

from mlindex.config import Settings

CELL = 36  # pixels of a background cell: 9 x 4
SMALLEST = 64  # pixels a side
_MARGIN = 8  # pixels around the frame: 1 for hot pixels, 2 for the filter, 1 for local maxima, and to spare
_BLOCK = 4  # at most one candidate in a block of 4 x 4 pixels
_CHUNK = 128  # candidates fitted together
_STEPS = 10  # of Gauss and Newton
_TAPS = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)
_SMOOTHED = 70 / 256  # noise of the smoothed frame, where the noise of the pixels is 1 and independent
_HOT = 5.0  # a pixel so many times above each of its neighbours is no spot: sigma would be less than 0.5 pixel
_NEIGHBOURS = 4  # other spots that a fit takes account of
_FITTED = 0.5  # of the threshold, for the fitted amplitude: its uncertainty is larger, for it knows no width
_LOOSE = 0.4  # pixels: what is located worse is a bump of the background
_SAME = 2.0  # pixels between two spots at least, as fitted
_FWHM = float(2 * np.sqrt(2 * np.log(2)))
_ORDER = ((1, 2), (4, 5), (7, 8), (0, 1), (3, 4), (6, 7), (1, 2), (4, 5), (7, 8), (0, 3), (5, 8), (4, 7), (3, 6), (1, 4), (2, 5), (4, 7), (4, 2), (6, 4), (4, 2))  # fmt: skip  # noqa: E501


class Flag(enum.IntFlag):
    """What is to be known of a spot; 0 is a good one."""

    SATURATED = 1  # saturated pixels, left out of the fit
    EDGE = 2  # part of its window is outside the frame or masked
    HOT = 4  # a hot pixel, left out of the fit, lies on it
    MERGED = 8  # another spot in its window
    MOMENT = 16  # saturated, and the fit failed: position, size and intensity are moments of the pixels


class SpotSettings(Settings):
    """How spots are looked for."""

    threshold: float = Field(6.0, gt=0)  # of the smoothed frame's noise, and of the uncertainty of the amplitude
    min_distance: int = Field(3, ge=1, le=16)  # pixels, along either axis, between two spots
    radius: int = Field(5, ge=3, le=16)  # pixels: a spot is fitted in a square of 2 radius + 1
    min_fwhm: float = Field(1.25, gt=0)  # pixels; a point, seen by pixels, has 0.7 to 1.3
    max_fwhm: float = Field(10.0, gt=0)  # pixels
    gain: float = Field(1.0, gt=0)  # counts a photon; the noise of a pixel is taken to be a photon at least
    max_spots: int = Field(8192, ge=128, multiple_of=128)  # of more candidates the brightest, and `overflow` is set


@dataclass(frozen=True)
class Spots:
    """The spots of one frame, the brightest peak first; every array has shape (n,).

    `x`, `y` in pixels (Lauetools' convention, see the module), `x_esd`, `y_esd` their standard uncertainties, scaled by
    the misfit where it is above the noise; `intensity` the volume under the fitted Gaussian above the background and
    `amplitude` its height, in counts; `fwhm_x`, `fwhm_y` in pixels along the axes; `background` in counts; `flag` a
    combination of `Flag`. `overflow`: the frame had more candidates than `max_spots`.
    """

    x: Float[np.ndarray, " n"]
    y: Float[np.ndarray, " n"]
    intensity: Float[np.ndarray, " n"]
    amplitude: Float[np.ndarray, " n"]
    background: Float[np.ndarray, " n"]
    fwhm_x: Float[np.ndarray, " n"]
    fwhm_y: Float[np.ndarray, " n"]
    x_esd: Float[np.ndarray, " n"]
    y_esd: Float[np.ndarray, " n"]
    flag: Int[np.ndarray, " n"]
    overflow: bool = False

    def __len__(self) -> int:
        return len(self.x)


class Fit(NamedTuple):
    """One fitted candidate; positions from the centre of its window."""

    keep: Bool[Array, ""]
    x: Float[Array, ""]
    y: Float[Array, ""]
    intensity: Float[Array, ""]
    amplitude: Float[Array, ""]
    background: Float[Array, ""]
    fwhm_x: Float[Array, ""]
    fwhm_y: Float[Array, ""]
    x_esd: Float[Array, ""]
    y_esd: Float[Array, ""]
    flag: Int[Array, ""]


def find_spots(image: NDArray, settings: SpotSettings | None = None, *, saturation: float | None = None) -> Spots:
    """The spots of a frame (ny, nx) in counts; NaN pixels are masked, those at `saturation` or above not fitted.

    Of several saturated maxima in one window the brightest is kept. A plateau that fills the window is located poorly.
    Raises `ValueError` for a frame that is not two-dimensional or smaller than 64 x 64 pixels.
    """
    settings, image = settings or SpotSettings(), np.asarray(image)
    if image.ndim != 2 or min(image.shape) < SMALLEST:
        raise ValueError(f"a frame has two dimensions of {SMALLEST} pixels or more, not the shape {image.shape}")
    ceiling = np.inf if saturation is None else saturation
    fits, corner, overflow = spots_pass(
        jnp.asarray(image, jnp.float32),
        jnp.asarray([ceiling, settings.threshold, settings.gain, settings.min_fwhm, settings.max_fwhm], jnp.float32),
        radius=settings.radius,
        min_distance=settings.min_distance,
        max_spots=settings.max_spots,
    )
    keep = np.asarray(fits.keep)
    columns = {name: np.asarray(value)[keep] for name, value in fits._asdict().items() if name != "keep"}
    for name, start in zip("yx", np.asarray(corner)[keep].T, strict=True):
        columns[name] = columns[name].astype(np.float64) + start + 1  # Lauetools counts pixels from 1
    kept = _distinct(columns, settings.radius)
    return Spots(**{name: value[kept] for name, value in columns.items()}, overflow=bool(overflow))


def _distinct(columns: dict[str, NDArray], radius: int) -> Bool[np.ndarray, " n"]:
    """Leave out what lies on an earlier, brighter one: the fits of two maxima of one peak, or of one plateau."""
    position = np.stack([columns["x"], columns["y"]], 1)
    saturated = columns["flag"] & Flag.SATURATED > 0
    kept = np.ones(len(position), bool)
    for i, j in sorted(cKDTree(position).query_pairs(radius)):
        if (saturated[i] and saturated[j]) or np.hypot(*(position[i] - position[j])) < _SAME:
            kept[j] &= ~kept[i]
    return kept


def median9(values: list[Array]) -> Array:
    """The median of nine arrays, by 19 exchanges (Paeth, Graphics Gems (1990), 171)."""
    v = [*values]
    for i, j in _ORDER:
        v[i], v[j] = jnp.minimum(v[i], v[j]), jnp.maximum(v[i], v[j])
    return v[4]


def cell_median(image: Float[Array, "y x"], rows: int = CELL) -> Float[Array, "gy gx"]:
    """The remedian of each cell of `rows` (36, or 9 where each fourth is given) x 36 pixels: 9 rows, 4 such, columns.

    Infinite values stand for masked pixels, with a sign by turns, so that they hardly move the median of the others.
    """

    def down(a: Float[Array, "m n"], height: int) -> Float[Array, "g n"]:
        a = a.reshape(-1, height // 9, 9, a.shape[1])
        m = median9([a[:, :, i] for i in range(9)])
        if height == 9:
            return m[:, 0]
        ends = jnp.stack([jnp.min(m, 1), jnp.max(m, 1)], 1)
        (value, count), (outer, of_them) = (
            (jnp.sum(jnp.where(jnp.isfinite(v), v, 0), 1), jnp.sum(jnp.isfinite(v), 1)) for v in (m, ends)
        )
        inner = (value - outer) / jnp.maximum(count - of_them, 1)
        return jnp.where(count > of_them, inner, jnp.where(jnp.isfinite(ends[:, 0]), ends[:, 0], ends[:, 1]))

    half = down(image, rows)
    return down(jnp.where(jnp.isfinite(half), half, _by_turns(half.shape)).T, CELL).T


def _by_turns(shape: tuple[int, ...]) -> Array:
    return jnp.where((jnp.arange(shape[0])[:, None] + jnp.arange(shape[1])) % 2 == 1, jnp.inf, -jnp.inf)


def neighbours9(grid: Float[Array, "gy gx"]) -> list[Array]:
    """A grid and its eight shifts by one, edges repeated."""
    p = jnp.pad(grid, 1, mode="edge")
    ny, nx = grid.shape
    return [p[i : i + ny, j : j + nx] for i in range(3) for j in range(3)]


def filled(grid: Float[Array, "gy gx"]) -> Float[Array, "gy gx"]:
    """Cells without a value get the mean of their neighbours', from the outside in; 0 where there is none at all."""

    def grow(_: Int[Array, ""], g: Float[Array, "gy gx"]) -> Float[Array, "gy gx"]:
        around = jnp.stack(neighbours9(g))
        known = jnp.isfinite(around)
        mean = jnp.sum(jnp.where(known, around, 0), 0) / jnp.sum(known, 0)
        return jnp.where(jnp.isfinite(g), g, mean)

    grid = jax.lax.fori_loop(0, 12, grow, jnp.where(jnp.isfinite(grid), grid, jnp.nan))
    return jnp.where(jnp.isfinite(grid), grid, 0)


def bilinear(grid: Float[Array, "gy gx"]) -> Float[Array, "y x"]:
    """Every pixel's value from those at the centres of the cells of 36 x 36 pixels; constant beyond the outermost.

    Along x as a matrix product: XLA would merge anything else with what made the grid, and make it for every pixel.
    """
    at = np.clip((np.arange(grid.shape[1] * CELL) + 0.5) / CELL - 0.5, 0, grid.shape[1] - 1)
    weight = np.maximum(1 - np.abs(at - np.arange(grid.shape[1])[:, None]), 0).astype(np.float32)
    rows = jnp.pad(jnp.matmul(grid, weight, precision=jax.lax.Precision.HIGHEST), ((1, 1), (0, 0)), mode="edge")
    t = ((np.arange(CELL, dtype=np.float32) + 0.5) / CELL)[None, :, None]
    fine = (rows[:-1, None] * (1 - t) + rows[1:, None] * t).reshape(-1, rows.shape[1])
    return fine[CELL // 2 : -(CELL // 2)]


def highest_neighbour(a: Float[Array, "y x"]) -> Float[Array, "v w"]:
    """The highest of the eight neighbours of each pixel but the outermost."""
    ny, nx = a.shape[0] - 2, a.shape[1] - 2
    return reduce(jnp.maximum, [a[i : i + ny, j : j + nx] for i in range(3) for j in range(3) if (i, j) != (1, 1)])


def without_hot(c: Float[Array, "y x"], least: Float[Array, ""]) -> tuple[Float[Array, "v w"], Bool[Array, "v w"]]:
    """Pixels (less one all round) with the hot ones replaced by their highest neighbour, and which those are.

    Hot is what stands more than `_HOT` times above each of its eight neighbours, and above `least`.
    """
    highest, centre = highest_neighbour(c), c[1:-1, 1:-1]
    hot = centre > _HOT * jnp.maximum(highest, least)
    return jnp.where(hot, highest, centre), hot


def smoothed(f: Float[Array, "y x"]) -> Float[Array, "v w"]:
    """The binomial filter of five pixels along both axes; loses two pixels all round."""
    ny, nx = f.shape[0] - 4, f.shape[1] - 4
    rows = reduce(jnp.add, [w * f[i : i + ny] for i, w in enumerate(_TAPS)])
    return reduce(jnp.add, [w * rows[:, i : i + nx] for i, w in enumerate(_TAPS)])


def cholesky_solve(h: Float[Array, "n n"], rhs: Float[Array, "n k"]) -> Float[Array, "n k"]:
    """The solution of h x = rhs for a small positive definite h, written out so that a batch of them vectorises."""
    n = h.shape[0]
    zero = jnp.float32(0)
    low: list[list[Array]] = [[zero] * n for _ in range(n)]
    for i in range(n):
        for j in range(i + 1):
            s = h[i, j] - sum((low[i][k] * low[j][k] for k in range(j)), zero)
            low[i][j] = jnp.sqrt(jnp.maximum(s, 1e-30)) if i == j else s / low[j][j]
    x: list[Array] = []
    for i in range(n):
        x.append((rhs[i] - sum((low[i][k] * x[k] for k in range(i)), zero)) / low[i][i])
    for i in reversed(range(n)):
        x[i] = (x[i] - sum((low[k][i] * x[k] for k in range(i + 1, n)), zero)) / low[i][i]
    return jnp.stack(x)


def fit_one(
    c: Float[Array, "m m"], good: Bool[Array, "m m"], noise: Float[Array, ""], gain: Float[Array, ""]
) -> tuple[Float[Array, " 7"], Float[Array, " 7"], Float[Array, " 7"]]:
    """The Gaussian A exp(-(p u^2 + 2 q u v + r v^2) / 2) + b, with (u, v) from (x, y), in a window of counts c.

    Returns (A, b, x, y, p, q, r), their standard uncertainties scaled by the misfit, and the moments of the inner
    window in the same form. `noise` is that of a pixel, in counts. A weak prior on (p, q, r) around the moments keeps
    the shape of the weakest spots finite.
    """
    half = c.shape[0] // 2
    axis = np.arange(-half, half + 1, dtype=np.float32)
    dx, dy = np.broadcast_to(axis, c.shape), np.broadcast_to(axis[:, None], c.shape)
    inner = (np.maximum(np.abs(dx), np.abs(dy)) <= 3).astype(np.float32)
    weight = jnp.maximum(c - noise, 0) * inner
    total = jnp.maximum(jnp.sum(weight), 1e-6)
    x, y = jnp.sum(weight * dx) / total, jnp.sum(weight * dy) / total
    xx = jnp.clip(jnp.sum(weight * dx**2) / total - x**2, 0.3, 4)
    yy = jnp.clip(jnp.sum(weight * dy**2) / total - y**2, 0.3, 4)
    xy = jnp.sum(weight * dx * dy) / total - x * y
    xy = jnp.clip(xy / jnp.sqrt(xx * yy), -0.8, 0.8) * jnp.sqrt(xx * yy)
    det = xx * yy - xy**2
    shape = jnp.stack([yy, -xy, xx]) / det
    height = jnp.maximum(jnp.max(c * inner), noise)
    start = jnp.concatenate([jnp.stack([height, jnp.float32(0), x, y]), shape])
    spread = jnp.stack([shape[0], jnp.sqrt(shape[0] * shape[2]), shape[2]])
    prior = jnp.concatenate([jnp.zeros(4, jnp.float32), 1 / spread**2])

    def normal(s: Float[Array, " 7"]) -> Float[Array, "8 8"]:
        a, b, x, y, p, q, r = s
        u, v = dx - x, dy - y
        e = jnp.exp(-0.5 * (p * u**2 + 2 * q * u * v + r * v**2))
        m = a * e
        w = jnp.where(good, 1 / (noise**2 + gain * m), 0)
        slopes = [e, jnp.ones_like(e), m * (p * u + q * v), m * (q * u + r * v)]
        j = jnp.stack([*slopes, -0.5 * m * u**2, -m * u * v, -0.5 * m * v**2, c - m - b]).reshape(8, -1)
        j = j * jnp.sqrt(w).reshape(-1)
        return j @ j.T

    def step(_: Int[Array, ""], s: Float[Array, " 7"]) -> Float[Array, " 7"]:
        h = normal(s)
        gradient = h[:7, 7] + prior * (start - s)
        damped = h[:7, :7] + jnp.diag(prior + 1e-4 * jnp.diagonal(h)[:7] + 1e-12)
        d = cholesky_solve(damped, gradient[:, None])[:, 0]
        a, b, x, y, p, q, r = s
        p1, r1 = jnp.clip(p + d[4], p / 2, 2 * p), jnp.clip(r + d[6], r / 2, 2 * r)
        most = 0.9 * jnp.sqrt(p1 * r1)
        x1, y1 = x + jnp.clip(d[2], -0.7, 0.7), y + jnp.clip(d[3], -0.7, 0.7)
        return jnp.stack([jnp.clip(a + d[0], a / 2, 4 * a), b + d[1], x1, y1, p1, jnp.clip(q + d[5], -most, most), r1])

    s = jax.lax.fori_loop(0, _STEPS, step, start)
    h = normal(s)
    misfit = jnp.maximum(h[7, 7] / jnp.maximum(jnp.sum(good) - 7, 1), 1)
    covariance = cholesky_solve(h[:7, :7] + jnp.diag(prior + 1e-12), jnp.eye(7, dtype=jnp.float32))
    return s, jnp.sqrt(jnp.maximum(jnp.diagonal(covariance), 0) * misfit), start


def fit_candidate(
    c: Float[Array, "k k"],
    raw: Float[Array, "k k"],
    inside: Bool[Array, "k k"],
    others: Int[Array, "o 2"],
    noise: Float[Array, ""],
    limits: Float[Array, " 5"],
    max_shift: int,
) -> Fit:
    """A candidate, from its window with a pixel to spare all round: counts above background, as read, in the frame.

    `others` are the positions (y, x) of its neighbours from its own; `limits` as of `spots_pass`.
    """
    saturation, threshold, gain, narrowest, widest = limits
    half = c.shape[0] // 2 - 1
    c1, hot = without_hot(c, noise)
    raw, inside = raw[1:-1, 1:-1], inside[1:-1, 1:-1] & jnp.isfinite(raw[1:-1, 1:-1])
    dy, dx = np.mgrid[-half : half + 1, -half : half + 1]
    own = dy**2 + dx**2
    nearer = (dy - others[:, 0, None, None]) ** 2 + (dx - others[:, 1, None, None]) ** 2 < own
    saturated = raw >= saturation
    good = inside & ~hot & ~saturated & ~jnp.any(nearer, 0)
    s, esd, moment = fit_one(c1, good, noise, gain)

    core = own <= 9
    flag = Flag.SATURATED * jnp.any(saturated & core) + Flag.EDGE * jnp.any(~inside)
    flag += Flag.HOT * jnp.any(hot & core & inside) + Flag.MERGED * jnp.any(jnp.max(jnp.abs(others), 1) <= half)

    def widths_from(shape: Float[Array, " 3"]) -> tuple[Array, Array, Array]:
        p, q, r = shape
        det = p * r - q**2
        return _FWHM * jnp.sqrt(r / det), _FWHM * jnp.sqrt(p / det), 2 * jnp.pi / jnp.sqrt(det)

    def sane(s: Float[Array, " 7"]) -> Bool[Array, ""]:
        wx, wy, _ = widths_from(s[4:])
        near = jnp.maximum(jnp.abs(s[2]), jnp.abs(s[3])) <= max_shift
        return near & (jnp.minimum(wx, wy) >= narrowest) & (jnp.maximum(wx, wy) <= widest) & (s[0] > 0)

    fitted = jnp.all(jnp.isfinite(s)) & sane(s)
    blunt = jnp.any(saturated & core) & sane(moment)  # its flanks do not say how it goes on: take the moments
    s = jnp.where(fitted, s, moment)
    wx, wy, volume = widths_from(s[4:])
    sure = (s[0] > _FITTED * threshold * esd[0]) & (jnp.maximum(esd[2], esd[3]) < _LOOSE)
    keep, error = jnp.where(fitted, sure, blunt), jnp.where(fitted, esd, 1.0)
    flag = (flag + Flag.MOMENT * ~fitted).astype(jnp.int32)
    return Fit(keep, s[2], s[3], s[0] * volume, s[0], s[1], wx, wy, error[2], error[3], flag)


def above_background(padded: Float[Array, "y x"]) -> Float[Array, "y x"]:
    """Counts above the local background; 0 where a pixel is masked."""
    known = jnp.isfinite(padded)
    grid = filled(cell_median(jnp.where(known, padded, _by_turns(padded.shape))))
    return jnp.where(known, padded - bilinear(median9(neighbours9(grid))), 0)


def smoothed_and_noise(
    c: Float[Array, "y x"], known: Bool[Array, "y x"], gain: Float[Array, ""]
) -> tuple[Float[Array, "v w"], Float[Array, "gy gx"]]:
    """The smoothed counts without hot pixels (three pixels less all round), and their noise in each cell of c.

    The noise is 1.4826 times the median absolute deviation over each fourth row, and that of one photon at least.
    """

    def deviation(rows: Float[Array, "r x"], known: Bool[Array, "r x"]) -> Float[Array, "gy gx"]:
        rows = jnp.where(known, jnp.abs(rows), _by_turns(rows.shape))
        return 1.4826 * filled(cell_median(rows, 9))

    pixel_noise = jnp.maximum(jnp.median(deviation(c[3::4], known[3::4])), gain)
    d = smoothed(without_hot(c, pixel_noise)[0])
    rows = jnp.pad(d[::4], ((0, 1), (3, 3)), mode="edge")
    noise = jnp.maximum(deviation(rows, known[3::4]), _SMOOTHED * gain)
    return d, median9(neighbours9(noise))


def block_maxima(d: Float[Array, "v w"], limit: Float[Array, "a b"], inside: Bool[Array, "a b"]) -> Int[Array, "by bx"]:
    """The highest local maximum above the limit in each block of 4 x 4 pixels, 0 where there is none.

    d has a pixel more all round than `limit`. The value is the bits of the height with the place in the block in the
    lowest four, so that its order is that of the heights.
    """
    ny, nx = limit.shape
    centre, top = d[1:-1, 1:-1], highest_neighbour(d)
    place = jnp.arange(ny)[:, None] % _BLOCK * _BLOCK + jnp.arange(nx)[None, :] % _BLOCK
    bits = jax.lax.bitcast_convert_type(jnp.maximum(centre, 0), jnp.int32)
    key = jnp.where((centre >= top) & (centre > limit) & inside, (bits & ~15) | place.astype(jnp.int32), 0)
    rows = jnp.max(key.reshape(ny // _BLOCK, _BLOCK, nx), 1)
    return jnp.max(rows.reshape(ny // _BLOCK, nx // _BLOCK, _BLOCK), 2)


def place_from_key(block: Int[Array, "*n"], key: Int[Array, "*n"], across: int) -> Int[Array, "*n 2"]:
    """(row, column) of a maximum, from the number of its block, of which there are `across` in a row, and its value."""
    inner = key & 15
    return jnp.stack([block // across * _BLOCK + inner // _BLOCK, block % across * _BLOCK + inner % _BLOCK], -1)


def around(
    blocks: Int[Array, "by bx"], block: Int[Array, ""], reach: int
) -> tuple[Int[Array, " n"], Int[Array, " n"], Int[Array, "n 2"]]:
    """Numbers, values and places of the maxima in the blocks up to `reach` away, along either axis, and in its own."""
    across, side = blocks.shape[1], 2 * reach + 1
    y, x, offset = block // across, block % across, np.arange(-reach, reach + 1)
    near = jax.lax.dynamic_slice(jnp.pad(blocks, reach), (y, x), (side, side)).reshape(-1)
    ids = ((y + offset)[:, None] * across + x + offset).reshape(-1)
    return ids, near, place_from_key(ids, near, across)


def brightest(
    blocks: Int[Array, "by bx"], min_distance: int, max_spots: int
) -> tuple[Int[Array, " k"], Int[Array, "k 2"], Int[Array, ""], Int[Array, "by bx"]]:
    """Blocks and places of the brightest maxima without a higher one within `min_distance`, how many, and their map."""
    # As floats, whose order is the same: XLA has a fast selection for these alone
    value, block = jax.lax.top_k(jax.lax.bitcast_convert_type(blocks.reshape(-1), jnp.float32), max_spots)
    value = jax.lax.bitcast_convert_type(value, jnp.int32)
    at = place_from_key(block, value, blocks.shape[1])

    def alone(at: Int[Array, " 2"], block: Int[Array, ""], value: Int[Array, ""]) -> Bool[Array, ""]:
        ids, near, places = around(blocks, block, -(-min_distance // _BLOCK))
        higher = (near >> 4 > value >> 4) | ((near >> 4 == value >> 4) & (ids < block))
        return (value > 0) & ~jnp.any((near > 0) & higher & (jnp.max(jnp.abs(places - at), 1) <= min_distance))

    kept = jax.vmap(alone)(at, block, value)
    order = jnp.argsort(~kept, stable=True)
    value, block, at = jnp.where(kept, value, 0)[order], block[order], at[order]
    seeds = jnp.zeros(blocks.size, jnp.int32).at[block].max(value).reshape(blocks.shape)
    return block, at, jnp.sum(kept), seeds


@partial(jax.jit, static_argnames=("radius", "min_distance", "max_spots"))
def spots_pass(
    image: Float[Array, "ny nx"],
    limits: Float[Array, " 5"],
    *,
    radius: int,
    min_distance: int,
    max_spots: int,
) -> tuple[Fit, Int[Array, "k 2"], Bool[Array, ""]]:
    """Fits of the candidates (k = max_spots, kept or not), the pixels (row, column) they count from, and overflow.

    `limits`: saturation in counts, threshold, gain, the smallest and the largest full width in pixels.
    """
    threshold, gain = limits[1], limits[2]
    ny, nx = image.shape
    m, start = _MARGIN, _MARGIN - 4  # the first pixel of the frame: in `padded`, and in what is four pixels less
    y, x = (-(-(n + 2 * m) // CELL) * CELL for n in (ny, nx))
    padded = jnp.pad(image, ((m, y - ny - m), (m, x - nx - m)), mode="symmetric")
    # The gain is never 0: but what a branch returns is computed once, and not again for each neighbour that is read
    c = jax.lax.cond(gain > 0, above_background, jnp.zeros_like, padded)
    empty = jnp.zeros((y - 6, x - 6), jnp.float32), jnp.zeros((y // CELL, x // CELL), jnp.float32)
    d, noise = jax.lax.cond(gain > 0, smoothed_and_noise, lambda *_: empty, c, jnp.isfinite(padded), gain)

    row, column = jnp.arange(y - 8)[:, None] - start, jnp.arange(x - 8)[None, :] - start
    within = (row >= 0) & (row < ny) & (column >= 0) & (column < nx)
    blocks = block_maxima(d, bilinear(noise)[4:-4, 4:-4] * threshold, within)
    max_spots = min(max_spots, blocks.size // _CHUNK * _CHUNK)
    block, at, found, seeds = brightest(blocks, min_distance, max_spots)

    spare, far = radius + 1, 4 * radius
    raw, net = jnp.pad(padded, spare, constant_values=np.nan), jnp.pad(c, spare)

    def one(at: Int[Array, " 2"], block: Int[Array, ""]) -> Fit:
        _, near, others = around(seeds, block, -(-2 * radius // _BLOCK))
        others -= at
        distance = jnp.sum(others**2, 1)
        distance = jnp.where((near > 0) & (distance > 0), distance, 2 * far**2)
        shortest, which = jax.lax.top_k(-distance, _NEIGHBOURS)
        others = jnp.where(shortest[:, None] > -2 * far**2, others[which], far)
        corner, window = (at[0] + 4, at[1] + 4), (2 * spare + 1, 2 * spare + 1)
        ys, xs = at[0] - start + np.arange(-spare, spare + 1), at[1] - start + np.arange(-spare, spare + 1)
        return fit_candidate(
            jax.lax.dynamic_slice(net, corner, window),
            jax.lax.dynamic_slice(raw, corner, window),
            ((ys >= 0) & (ys < ny))[:, None] & ((xs >= 0) & (xs < nx))[None, :],
            others,
            jnp.maximum(noise[(at[0] + 4) // CELL, (at[1] + 4) // CELL] / _SMOOTHED, gain),
            limits,
            min_distance,
        )

    def chunk(state: tuple[Int[Array, ""], Fit]) -> tuple[Int[Array, ""], Fit]:
        i, fits = state
        part = [jax.lax.dynamic_slice_in_dim(a, i * _CHUNK, _CHUNK) for a in (at, block)]
        put = partial(jax.lax.dynamic_update_slice_in_dim, start_index=i * _CHUNK, axis=0)
        return i + 1, jax.tree.map(put, fits, jax.vmap(one)(*part))

    # Only as many chunks as there are candidates
    fits = jax.tree.map(lambda leaf: jnp.zeros((max_spots,), leaf.dtype), jax.eval_shape(one, at[0], block[0]))
    _, fits = jax.lax.while_loop(lambda state: state[0] * _CHUNK < found, chunk, (jnp.int32(0), fits))
    fits = fits._replace(keep=fits.keep & (jnp.arange(max_spots) < found))
    return fits, at - start, jnp.sum(blocks > 0) > max_spots
