"""Simulated patterns against Lauetools, the kernel against the host, and what a frame promises of its truth."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlindex.crystal.rotation import misorientation, random_rotations
from mlindex.crystal.strain import cell_from_ub
from mlindex.laue import simulate
from mlindex.laue.geometry import DIRECTIONS, KEV_ANGSTROM, Detector, angles_from_kf, direction_from_pixel
from mlindex.laue.materials import material, rays

REFERENCE = Path(__file__).parents[1] / "reference" / "lauetools"
DETECTOR = Detector(79.553, 979.32, 932.31, 0.37, 0.447)
BAND = (5.0, 23.0)
GROUPS = {"Cu": "Fm-3m", "Si": "Fd-3m:1", "ZrO2": "P21/c"}


@pytest.mark.parametrize("name", ["Cu1", "Si1", "ZrO2_1"])
def test_spots_of_lauetools(name):
    """Each spot that Lauetools 3.2.19 predicts is predicted: its pixel, its energy and its primitive hkl."""
    truth = json.loads((REFERENCE / "sim1_truth.json").read_text())[name]
    cell = ",".join(str(v) for v in truth["lattice"])
    crystal = material(f"{truth['material']}:{GROUPS[truth['material']]}:{cell}")
    ub = np.array(truth["U"][0]) @ crystal.b
    found = simulate.spots_of(ub, rays(crystal, 22.0, DETECTOR), DETECTOR, (5.0, 22.0))
    expected = np.loadtxt(REFERENCE / f"sim1_{name}_truth.txt")
    expected = expected[(expected[:, :2].min(1) > 0.5)]  # Lauetools' images begin at 0, ours at the first pixel's edge
    distance = np.hypot(expected[:, None, 0] - found.x, expected[:, None, 1] - found.y)
    nearest = distance.argmin(1)
    assert len(expected) > 20 and distance.min(1).max() < 1e-4
    # And no more than those: 15 % of its spots were dropped, and those beyond a circle on the detector cut
    inner = np.hypot(found.x - 1008, found.y - 1009) < 800
    if name == "ZrO2_1":  # enough spots for a fraction, and no atoms that extinguish what the group allows
        assert 0.78 < np.mean(distance.min(0)[inner] < 0.1) < 0.93
    hkl = expected[:, 2:5].astype(int)
    order = np.gcd.reduce(hkl, axis=1)
    np.testing.assert_array_equal(hkl // order[:, None], found.hkl[nearest])
    # Lauetools lists one order that is in the band; ours is the lowest
    times = expected[:, 5] / found.energy[nearest]
    assert np.all(times > 1 - 1e-4)
    first = np.linalg.norm(found.hkl @ ub.T, axis=1) ** 2 / (-2 * (found.hkl @ ub.T)[:, 0]) * KEV_ANGSTROM
    np.testing.assert_allclose(expected[:, 5], first[nearest] * order, rtol=5e-5)  # its h c is 12.398


@pytest.mark.parametrize("name", ["Si", "ZrO2"])
def test_the_kernel_agrees_with_the_host(name):
    crystal = material(name)
    table = rays(crystal, BAND[1], DETECTOR)
    ub = random_rotations(np.random.default_rng(0), 3) @ crystal.b
    with jax.enable_x64(True), jax.numpy_rank_promotion("raise"):
        batch = jax.jit(simulate.predict)(jnp.asarray(ub), table, DETECTOR.plane, BAND)
        single = simulate.predict(jnp.asarray(ub[1]), table, DETECTOR, BAND)
    short = jax.jit(simulate.predict)(jnp.asarray(ub, jnp.float32), table, DETECTOR.plane, BAND)
    assert short.x.dtype == jnp.float32
    for i in range(3):
        host = simulate.spots_of(ub[i], table, DETECTOR, BAND)
        seen = np.flatnonzero(batch.visible[i])
        np.testing.assert_allclose(batch.x[i][seen], host.x, atol=1e-8)
        np.testing.assert_allclose(batch.y[i][seen], host.y, atol=1e-8)
        np.testing.assert_allclose(batch.energy[i][seen], host.energy, rtol=1e-12)
        np.testing.assert_array_equal(np.asarray(batch.sign[i])[seen, None] * table.hkl[seen], host.hkl)
        both = np.asarray(short.visible[i] & batch.visible[i])
        assert both.sum() >= len(seen) - 3  # a ray at the very edge of the band or of the image may differ
        assert np.abs(np.asarray(short.x[i])[both] - np.asarray(batch.x[i])[both]).max() < 2e-3
    np.testing.assert_array_equal(single.visible, batch.visible[1])
    assert all(np.isfinite(np.asarray(field)).all() for field in batch)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_every_visible_spot_obeys_bragg(direction):
    """Its angle, spacing and energy satisfy lambda = 2 d sin(theta) for an allowed order, on any side of the sample."""
    crystal = material("GaN")
    detector = Detector(60.0, 1000.0, 1000.0, 1.5, -2.0, kf_direction=direction)
    ub = random_rotations(np.random.default_rng(4), 1)[0] @ crystal.b
    found = simulate.spots_of(ub, rays(crystal, 23.0, detector), detector, BAND)
    assert len(found.x) > 10
    two_theta, _ = angles_from_kf(direction_from_pixel(found.x, found.y, detector))
    spacing = 1 / np.linalg.norm(found.hkl @ crystal.b.T, axis=1)
    first = KEV_ANGSTROM / (2 * spacing * np.sin(np.radians(two_theta / 2)))
    order = np.rint(found.energy / first).astype(int)
    np.testing.assert_allclose(found.energy, order * first, rtol=1e-9)
    assert np.all((found.energy >= BAND[0]) & (found.energy <= BAND[1]) & (order >= 1))
    assert not crystal.group.absent(found.hkl * order[:, None]).any()
    assert np.all(found.intensity > 0)


def test_equivalent_orientations_give_one_pattern():
    for name in ("Ti", "ZrO2", "Al2O3"):
        crystal = material(name)
        table = rays(crystal, BAND[1], DETECTOR)
        u = random_rotations(np.random.default_rng(2), 1)[0]
        first = simulate.spots_of(u @ crystal.b, table, DETECTOR)
        other = simulate.spots_of(u @ crystal.rotations[-1] @ crystal.b, table, DETECTOR)
        a, b = (np.array(sorted(zip(s.x.round(5), s.y.round(5), s.intensity, strict=True))) for s in (first, other))
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-4)


def test_a_frame_and_its_truth():
    rng = np.random.default_rng(7)
    grains = simulate.random_grains(rng, [material("Si"), material("GaN"), material("Si")], strain=1e-3)
    frame = simulate.simulate_frame(rng, grains, DETECTOR, BAND, noise=0.2, dropped=0.15, spurious=0.1)
    assert np.all(np.diff(frame.intensity) <= 0) and len(frame.grains) == 3
    true = frame.grain >= 0
    assert 0.03 < np.mean(~true) < 0.17
    total = sum(len(simulate.spots_of(ub, rays(m, BAND[1], DETECTOR), DETECTOR, BAND).x) for m, ub in grains)
    assert 0.75 < true.sum() / total < 0.95
    shift = np.stack([frame.x - frame.x_true, frame.y - frame.y_true])[:, true]
    assert 0.17 < shift.std() < 0.23
    for i, grain in enumerate(frame.grains):
        assert grain.n_spots == np.sum(frame.grain == i)
        assert abs(np.trace(grain.strain)) < 1e-12 and 1e-4 < np.abs(grain.strain).max() < 5e-3
        np.testing.assert_allclose(np.linalg.det(grain.u), 1, rtol=1e-12)
        np.testing.assert_allclose(cell_from_ub(grain.ub), grain.material.cell, rtol=1e-2)
        mine = frame.grain == i
        q = frame.hkl[mine] @ grain.ub.T
        kf = direction_from_pixel(frame.x_true[mine], frame.y_true[mine], DETECTOR)
        reflected = np.array([1.0, 0, 0]) - 2 * q[:, :1] / (q**2).sum(1, keepdims=True) * q
        np.testing.assert_allclose(kf, reflected, atol=1e-9)
    assert misorientation(frame.grains[0].u, frame.grains[2].u, frame.grains[0].material.rotations) > 0.5


def test_frames_are_reproducible_and_may_be_empty():
    def draw(seed):
        rng = np.random.default_rng(seed)
        return simulate.simulate_frame(rng, simulate.random_grains(rng, [material("Cu")]), DETECTOR)

    np.testing.assert_array_equal(draw(3).x, draw(3).x)
    assert len(draw(3).x) != len(draw(4).x) or not np.array_equal(draw(3).x, draw(4).x)
    empty = simulate.simulate_frame(np.random.default_rng(0), [], DETECTOR)
    assert len(empty.x) == 0 and empty.hkl.shape == (0, 3)


def test_the_spectrum_at_energies_far_beyond_the_band():
    """Orders of rays that nearly graze the beam have them; half of the photons are left at the mirror's cut-off."""
    energy = np.array([10.0, 24.0, 800.0, 1e13])
    expected = [1 / (1 + np.exp(-14)), 2.4**2 * np.exp(-2.8) / 2, 0.0, 0.0]
    np.testing.assert_allclose(simulate.bending_magnet(energy), expected, rtol=1e-12)


def test_faint_spots_go_first():
    grains = simulate.random_grains(np.random.default_rng(1), [material("ZrO2")])
    clean = {"noise": 0.0, "dropped": 0.0, "spurious": 0.0}
    everything = simulate.simulate_frame(np.random.default_rng(0), grains, DETECTOR, **clean)
    bright = simulate.simulate_frame(np.random.default_rng(0), grains, DETECTOR, faintest=0.01, **clean)
    assert 10 < len(bright.x) < len(everything.x)
    np.testing.assert_array_equal(bright.x, everything.x[: len(bright.x)])


def test_an_image_has_its_spots_where_the_frame_says():
    """The centroid of an isolated spot above the background is its place, counted from 1."""
    rng = np.random.default_rng(5)
    frame = simulate.simulate_frame(
        rng, simulate.random_grains(rng, [material("Cu")]), DETECTOR, noise=0.0, spurious=0.0
    )
    image = simulate.render_image(rng, frame, width=1.1, background=50.0, peak=40_000.0, hot_pixels=3)
    assert image.dtype == np.uint16 and image.shape == DETECTOR.shape
    assert np.sum(image == 65_535) >= 3
    x, y = frame.x[0], frame.y[0]
    i, j = round(y) - 1, round(x) - 1
    box = image[i - 5 : i + 6, j - 5 : j + 6].astype(float) - 50
    row, column = np.mgrid[i - 5 : i + 6, j - 5 : j + 6] + 1
    assert abs((box * column).sum() / box.sum() - x) < 0.05
    assert abs((box * row).sum() / box.sum() - y) < 0.05
