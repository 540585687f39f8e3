"""Spots of a frame: their parts against NumPy and SciPy, the whole against known positions, counts and bounds."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.spatial import cKDTree
from scipy.special import ndtr

from mlindex.laue import spots
from mlindex.laue.spots import Flag, SpotSettings, find_spots

REAL = Path(__file__).parents[1] / "reference" / "lauetools_spots" / "crops.npz"
SHAPE = (288, 320)  # of nearly all frames here: one compilation
BACKGROUND = 100.0


def gaussian(x, y, sx, sy, flux, shape):
    """Counts in each pixel of a Gaussian at (x, y), both from 1 as in Lauetools: integrals over the pixels."""
    ny, nx = shape
    across = np.diff(ndtr((np.arange(nx + 1) + 0.5 - x) / sx))
    down = np.diff(ndtr((np.arange(ny + 1) + 0.5 - y) / sy))
    return flux * down[:, None] * across


def grid(rng, pitch=32):
    """Positions (x, y) at random within the pixels of a coarse grid, all of the fits' windows apart."""
    y, x = np.mgrid[20 : SHAPE[0] - 16 : pitch, 20 : SHAPE[1] - 16 : pitch].reshape(2, -1)
    return np.stack([x, y], 1) + rng.uniform(-0.5, 0.5, (x.size, 2))


def frame(positions, flux, sigma, background=BACKGROUND):
    """Expected counts."""
    image = np.full(SHAPE, 0.0) + background
    for (x, y), f in zip(positions, np.broadcast_to(flux, len(positions)), strict=True):
        image += gaussian(x, y, sigma, sigma, f, SHAPE)
    return image


def pairs(found, positions, within=1.5):
    """For each true position the index of the spot found there, or -1."""
    if not len(found):
        return np.full(len(positions), -1)
    distance, index = cKDTree(np.stack([found.x, found.y], 1)).query(positions)
    return np.where(distance < within, index, -1)


@cache
def bound(sigma, flux, background):
    """The Cramer-Rao bound of x: Fisher information of (x, y, flux, background, sigma_x, sigma_y), Poisson pixels."""
    rng = np.random.default_rng(0)
    variances = []
    for _ in range(20):
        p = np.array([11 + rng.uniform(-0.5, 0.5), 11 + rng.uniform(-0.5, 0.5), flux, background, sigma, sigma])

        def model(p):
            return (gaussian(p[0], p[1], p[4], p[5], p[2], (21, 21)) + p[3]).ravel()

        step = 1e-4 * np.maximum(np.abs(p), 1)
        slopes = np.array([(model(p + s) - model(p - s)) / (2 * s.sum()) for s in np.diag(step)])
        variances.append(np.linalg.inv(slopes / model(p) @ slopes.T)[0, 0])
    return float(np.sqrt(np.mean(variances)))


def test_the_median_of_nine_is_that_of_numpy():
    values = np.random.default_rng(0).integers(0, 6, (9, 500)).astype(np.float32)
    assert np.array_equal(spots.median9([jnp.asarray(v) for v in values]), np.median(values, 0))


def test_cells_have_the_median_of_their_pixels_whatever_a_few_of_them_hold():
    rng = np.random.default_rng(1)
    image = rng.normal(50, 3, (144, 180)).astype(np.float32)
    dirty = np.where(rng.random(image.shape) < 0.05, 1e4, image).astype(np.float32)
    true = np.median(image.reshape(4, 36, 5, 36), (1, 3))
    assert np.abs(np.asarray(spots.cell_median(jnp.asarray(dirty))) - true).max() < 0.6  # 0.2 standard deviations
    assert np.abs(np.asarray(spots.cell_median(jnp.asarray(image[::4]), 9)) - true).max() < 1.2


def test_masked_pixels_do_not_move_the_median_of_a_cell():
    rng = np.random.default_rng(2)
    image = rng.normal(50, 3, (108, 108)).astype(np.float32)
    masked = rng.random(image.shape) < 0.15
    masked[40:52] = True  # gaps between modules, whole rows and columns
    masked[:, 60:72] = True
    masked[72:, 72:] = True  # a whole cell
    got = np.asarray(spots.filled(spots.cell_median(jnp.where(masked, spots._by_turns(image.shape), image))))
    assert np.abs(got - 50).max() < 1.2


def test_interpolation_is_that_of_scipy():
    values = np.random.default_rng(3).normal(0, 1, (4, 5)).astype(np.float32)
    at = [(np.arange(n * 36) + 0.5) / 36 - 0.5 for n in values.shape]
    expected = scipy.ndimage.map_coordinates(values, np.meshgrid(*at, indexing="ij"), order=1, mode="nearest")
    assert np.allclose(spots.bilinear(jnp.asarray(values)), expected, atol=1e-5)


def test_the_filter_is_that_of_scipy():
    image = np.random.default_rng(4).normal(0, 1, (40, 50)).astype(np.float32)
    expected = scipy.ndimage.convolve1d(scipy.ndimage.convolve1d(image, spots._TAPS, 0), spots._TAPS, 1)
    assert np.allclose(spots.smoothed(jnp.asarray(image)), expected[2:-2, 2:-2], atol=1e-6)
    kernel = np.outer(spots._TAPS, spots._TAPS)
    assert np.sqrt(np.sum(kernel**2)) == pytest.approx(spots._SMOOTHED)


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_the_solver_is_that_of_numpy(seed):
    rng = np.random.default_rng(seed)
    a = rng.normal(0, 1, (7, 12))
    h, rhs = a @ a.T + np.eye(7), rng.normal(0, 1, (7, 2))
    got = spots.cholesky_solve(jnp.asarray(h, jnp.float32), jnp.asarray(rhs, jnp.float32))
    assert np.allclose(got, np.linalg.solve(h, rhs), atol=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_a_fit_is_the_maximum_of_the_poisson_likelihood_that_scipy_finds(seed):
    rng = np.random.default_rng(seed)
    centre = 6 + rng.uniform(-0.4, 0.4, 2)
    counts = rng.poisson(gaussian(*centre, 1.1, 1.4, 20000, (11, 11)) + BACKGROUND).astype(float)
    u = np.arange(-5, 6)

    def model(s):
        dx, dy = u - s[2], u[:, None] - s[3]
        return s[0] * np.exp(-0.5 * (s[4] * dx**2 + 2 * s[5] * dx * dy + s[6] * dy**2)) + s[1]

    def surprise(s):
        m = np.maximum(model(s), 1e-3)
        return np.sum(m - counts * np.log(m))

    fit = spots.fit_one(
        jnp.asarray(counts - BACKGROUND, jnp.float32),
        jnp.ones((11, 11), bool),
        jnp.float32(np.sqrt(BACKGROUND)),
        jnp.float32(1),
    )
    start = np.asarray(fit[0], float) + np.array([300, BACKGROUND, 0.1, -0.1, 0.03, 0, -0.03])
    best = scipy.optimize.minimize(surprise, start, method="Nelder-Mead", options={"maxiter": 20000, "xatol": 1e-6})
    shift = np.asarray(fit[0]) - best.x + np.eye(7)[1] * BACKGROUND
    assert np.all(np.abs(shift) < 0.15 * np.asarray(fit[1]))  # standard uncertainties


@pytest.mark.parametrize("place", [(60, 200), (143, 17)])
def test_the_centre_of_the_first_pixel_is_one_one(place):
    image = np.full(SHAPE, 20.0)
    row, column = place
    image[row - 2 : row + 3, column - 2 : column + 3] += 500 * np.exp(-0.5 * np.add.outer(*[np.arange(-2, 3) ** 2] * 2))
    found = find_spots(image)
    assert len(found) == 1
    assert found.x[0] == pytest.approx(column + 1, abs=1e-3) and found.y[0] == pytest.approx(row + 1, abs=1e-3)


@pytest.mark.parametrize(("sigma", "flux"), [(0.7, 1000), (0.7, 20000), (1.2, 3000), (1.2, 100000), (1.8, 8000)])
def test_positions_are_unbiased_and_nearly_as_precise_as_the_bound(sigma, flux):
    rng = np.random.default_rng(int(flux * sigma))
    slope = BACKGROUND + np.add.outer(0.1 * np.arange(SHAPE[0]), 0.15 * np.arange(SHAPE[1])) - 38
    errors, scaled, ratio = [], [], []
    for _ in range(8):
        positions = grid(rng)
        found = find_spots(rng.poisson(frame(positions, flux, sigma, slope)))
        index = pairs(found, positions)
        assert np.mean(index >= 0) > 0.995 and len(found) == np.sum(index >= 0)
        kept = index[index >= 0]
        error = np.stack([found.x, found.y], 1)[kept] - positions[index >= 0]
        errors.append(error)
        scaled.append(error / np.stack([found.x_esd, found.y_esd], 1)[kept])
        ratio.append(found.intensity[kept] / flux)
    error = np.concatenate(errors)
    expected = bound(sigma, flux, BACKGROUND)
    assert np.all(np.abs(error.mean(0)) < 0.004 + 4 * expected / np.sqrt(len(error)))
    assert 0.85 * expected < np.sqrt(np.mean(error**2)) < 1.12 * expected + 0.001
    assert 0.85 < np.sqrt(np.mean(np.concatenate(scaled) ** 2)) < 1.15
    assert abs(np.median(np.concatenate(ratio)) - 1) < 0.03


def test_where_a_spot_lies_in_its_pixel_does_not_bias_it():
    positions = grid(np.random.default_rng(5))
    for sigma in (0.6, 1.0, 2.0):
        found = find_spots(frame(positions, 20000, sigma))
        index = pairs(found, positions)
        assert np.all(index >= 0)
        assert np.abs(np.stack([found.x, found.y], 1)[index] - positions).max() < 0.01
        width = 2.3548 * np.sqrt(sigma**2 + 1 / 12)  # of a Gaussian and a pixel
        assert np.allclose([found.fwhm_x, found.fwhm_y], width, rtol=0.04)


def test_a_turned_frame_has_turned_spots():
    rng = np.random.default_rng(6)
    positions = grid(rng)
    image = rng.poisson(frame(positions, 10 ** rng.uniform(3.3, 5, len(positions)), 1.1)).astype(np.float32)
    one, other = find_spots(image), find_spots(image[::-1, ::-1])
    index = pairs(other, [[SHAPE[1] + 1, SHAPE[0] + 1]] - np.stack([one.x, one.y], 1), 0.02)
    assert len(one) == len(other) == len(positions) and np.all(index >= 0)
    assert np.allclose(one.intensity, other.intensity[index], rtol=5e-3)


@pytest.mark.parametrize("background", [0.0, 0.02, 0.5, 4.0, 50.0, 3000.0])
def test_an_empty_frame_has_no_spots(background):
    rng = np.random.default_rng(7)
    for _ in range(6):
        assert len(find_spots(rng.poisson(np.full(SHAPE, background)))) == 0


def test_rings_and_a_halo_are_no_spots():
    rng = np.random.default_rng(8)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    r = np.hypot(x - 160, y + 60)
    rings = 60 + 400 * np.exp(-0.5 * ((r - 180) / 20) ** 2) + 200 * np.exp(-0.5 * ((r - 280) / 12) ** 2)
    halo = 30 + 2000 * np.exp(-np.hypot(x - 160, y - 140) / 80)
    sharp = 60 + 400 * np.exp(-0.5 * ((r - 200) / 4) ** 2)
    for image in (rings, halo, sharp):
        assert [len(find_spots(rng.poisson(image))) for _ in range(4)] == [0, 0, 0, 0]


def test_a_frame_without_anything_has_no_spots():
    for image in (np.zeros(SHAPE), np.full(SHAPE, np.nan), np.full(SHAPE, 65535.0)):
        assert len(find_spots(image, saturation=65535.0)) == 0


def test_hot_pixels_are_no_spots_and_do_not_move_one():
    rng = np.random.default_rng(9)
    positions = grid(rng)
    image = rng.poisson(frame(positions, 20000, 1.2)).astype(float)
    clean = find_spots(image)
    for (x, y), (dx, dy) in zip(positions, rng.integers(-1, 2, (len(positions), 2)) * 2, strict=True):
        image[round(y) - 1 + dy, round(x) - 1 + dx] += 60000  # on the spot itself where both are 0
        image[round(y) + 11, round(x) + 11] += 3000
    found = find_spots(image)
    assert len(found) == len(clean)
    index = pairs(found, np.stack([clean.x, clean.y], 1))
    assert np.all(index >= 0) and np.all(found.flag[index] & Flag.HOT)
    assert np.sqrt(np.mean((found.x[index] - clean.x) ** 2)) < 0.02
    assert np.median(np.abs(found.intensity[index] / clean.intensity - 1)) < 0.02


def test_saturated_pixels_are_left_out():
    rng = np.random.default_rng(10)
    positions = grid(rng)
    image = np.minimum(rng.poisson(frame(positions, 400000, 1.3)), 20000)
    found = find_spots(image, saturation=20000.0)
    index = pairs(found, positions)
    assert np.all(index >= 0) and len(found) == len(positions) and np.all(found.flag & Flag.SATURATED)
    error = np.stack([found.x, found.y], 1)[index] - positions
    assert np.sqrt(np.mean(error**2)) < 0.02
    assert np.abs(found.amplitude / found.amplitude.mean() - 1).max() < 0.2 and found.amplitude.mean() > 30000


def test_a_broad_plateau_is_one_spot_at_most():
    rng = np.random.default_rng(16)
    positions = grid(rng, 48)
    image = np.minimum(rng.poisson(frame(positions, 3e6, 2.2)), 20000)
    found = find_spots(image, saturation=20000.0)
    distance, nearest = cKDTree(positions).query(np.stack([found.x, found.y], 1))
    assert sorted(nearest) == list(range(len(positions))) and np.all(found.flag & Flag.SATURATED)
    assert np.sqrt(np.mean(distance**2)) < 0.1
    wider = find_spots(np.minimum(image, 5000), saturation=5000.0)  # wider than a window
    _, nearest = cKDTree(positions).query(np.stack([wider.x, wider.y], 1))
    assert len(np.unique(nearest)) == len(nearest)


def test_masked_pixels_and_the_edge_are_flagged():
    rng = np.random.default_rng(11)
    positions = np.array([[3.2, 100.4], [318.1, 60.2], [150.3, 2.6], [100.0, 150.2], [200.1, 199.8]])
    image = rng.poisson(frame(positions, 30000, 1.2)).astype(float)
    image[120:180, 102:] = np.where(np.arange(102, SHAPE[1]) < 112, np.nan, image[120:180, 102:])  # beside the fourth
    found = find_spots(image)
    index = pairs(found, positions)
    assert np.all(index >= 0) and len(found) == 5
    assert (found.flag[index] & Flag.EDGE > 0).tolist() == [True, True, True, True, False]
    assert np.abs(np.stack([found.x, found.y], 1)[index] - positions).max() < 0.05


@pytest.mark.parametrize(("apart", "within"), [(6.0, 0.06), (9.0, 0.03)])
def test_close_spots_are_both_found_and_flagged(apart, within):
    rng = np.random.default_rng(12)
    first = grid(rng, 48)
    angle = rng.uniform(0, 2 * np.pi, len(first))
    second = first + apart * np.stack([np.cos(angle), np.sin(angle)], 1)
    image = rng.poisson(frame(np.concatenate([first, second]), np.repeat([40000, 20000], len(first)), 1.0))
    found = find_spots(image)
    index = pairs(found, np.concatenate([first, second]), within * 4)
    assert np.all(index >= 0) and len(found) == 2 * len(first)
    error = np.stack([found.x, found.y], 1)[index] - np.concatenate([first, second])
    assert np.sqrt(np.mean(error**2)) < within
    merged = found.flag[index] & Flag.MERGED > 0
    along = np.tile(np.abs(second - first).max(1), 2)  # the farther axis; a window reaches five pixels
    assert np.all(merged[along < 4]) and not np.any(merged[along > 7])
    assert np.all(merged | (along > 4))


def test_more_candidates_than_there_is_room_for():
    rng = np.random.default_rng(13)
    positions = grid(rng, 20)
    flux = 10 ** rng.uniform(4, 5, len(positions))
    image = rng.poisson(frame(positions, flux, 1.1))
    assert len(positions) > 150
    few, all_ = find_spots(image, SpotSettings(max_spots=128)), find_spots(image)
    assert few.overflow and not all_.overflow and len(all_) == len(positions)
    assert np.array_equal(few.x, all_.x[:128]) and len(few) == 128
    bright = np.sort(flux)[-60]
    assert np.all(pairs(few, positions[flux >= bright]) >= 0)


def test_what_scipy_finds_is_found():
    rng = np.random.default_rng(14)
    positions = rng.uniform(8, np.array(SHAPE[::-1]) - 8, (120, 2))
    image = rng.poisson(frame(positions, 10 ** rng.uniform(3.5, 5, 120), 1.1, 200)).astype(float)
    signal = scipy.ndimage.gaussian_filter(image - np.median(image), 1.0)
    noise = 1.4826 * np.median(np.abs(signal))
    top = (scipy.ndimage.maximum_filter(signal, 7) == signal) & (signal > 30 * noise)
    places = np.argwhere(top)[:, ::-1] + 1.0
    found = find_spots(image)
    assert len(places) > 90 and np.mean(pairs(found, places, 1.5) >= 0) > 0.98


@pytest.mark.parametrize(("name", "share", "rms"), [("Ge_blanc_0000", 0.95, 0.06), ("img_Ge_sCMOS_0000", 0.95, 0.06)])
def test_spots_of_real_frames_lie_where_lauetools_put_them(name, share, rms):
    with np.load(REAL) as data:
        image, listed = data[name], data[f"{name}_spots"]
    found = find_spots(image.astype(np.float32), saturation=65535.0)
    index = pairs(found, listed, 1.0)
    assert len(listed) >= 4 and np.mean(index >= 0) >= share and len(found) <= 2 * len(listed)
    error = np.stack([found.x, found.y], 1)[index[index >= 0]] - listed[index >= 0]
    assert np.sqrt(np.mean(np.sum(error**2, 1))) < rms and np.all(np.abs(np.median(error, 0)) < 0.03)


def test_one_shape_compiles_once():
    image = np.random.default_rng(15).poisson(np.full(SHAPE, 9.0))
    find_spots(image)
    before = spots.spots_pass._cache_size()
    find_spots(image, SpotSettings(threshold=5, gain=2.0), saturation=100.0)
    find_spots(image[::-1].astype(np.float32))
    assert spots.spots_pass._cache_size() == before


def test_what_cannot_be_a_frame_is_refused():
    for shape in ((10, 400), (400,), (2, 300, 300)):
        with pytest.raises(ValueError, match="two dimensions of 64 pixels"):
            find_spots(np.zeros(shape))
    with pytest.raises(ValidationError):
        SpotSettings(treshold=3)
