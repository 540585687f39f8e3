"""The geometry of a detector from reference crystals: derivatives by JAX, the minimum by SciPy, uncertainties by noise
drawn many times, simulated frames from bad starts, and measured ones with the calibration that Lauetools stored."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import least_squares

from mlindex.crystal.rotation import misorientation, random_rotations, rotation_from_vector
from mlindex.formats import lauetools
from mlindex.laue.calibrate import PARAMETERS, Calibrated, calibrated
from mlindex.laue.geometry import (
    DIRECTIONS,
    Detector,
    detector_from_calibration,
    direction_from_pixel,
    pixel_from_direction,
    plane_from_parameters,
)
from mlindex.laue.geometry_fit import Observed, detector_gradients, fitted, scale_of
from mlindex.laue.materials import material
from mlindex.laue.simulate import random_grains, simulate_frame
from mlindex.records import InputError
from tests.laue.frames import BAND, DETECTOR, frame_of

REFERENCE = Path(__file__).parents[1] / "reference" / "lauetools"
SPREAD = np.array([2.0, 20.0, 20.0, 0.5, 0.5])  # mm, px, px, degrees, degrees


def shifted(detector: Detector, by: object) -> Detector:
    return detector.with_parameters(detector.parameters + np.asarray(by))


def observed(seed: int = 0, name: str = "Ge", grains: int = 1, detector: Detector = DETECTOR) -> list[Observed]:
    """Grains without noise, on the spots that the simulation gives them."""
    rng = np.random.default_rng(seed)
    found = []
    for chosen, ub in random_grains(rng, [material(name)] * grains):
        frame = simulate_frame(rng, [(chosen, ub)], detector, BAND, noise=0.0, spurious=0.0)
        found.append(Observed(ub, frame.hkl.astype(float), np.stack([frame.x, frame.y], 1)))
    return found


def noisy(grains: list[Observed], rng: np.random.Generator, sigma: float = 0.2) -> list[Observed]:
    return [g._replace(xy=g.xy + rng.normal(scale=sigma, size=g.xy.shape)) for g in grains]


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10**6), direction=st.sampled_from(DIRECTIONS))
def test_derivatives_are_those_of_jax(seed, direction):
    """jax.jacfwd through plane_from_parameters, in float64."""
    rng = np.random.default_rng(seed)
    detector = Detector(*rng.uniform([30, -200, -200, -20, -180], [300, 2200, 2200, 20, 180]), kf_direction=direction)
    xy = rng.uniform(1, 2016, (7, 2))
    kf = direction_from_pixel(xy[:, 0], xy[:, 1], detector)
    with jax.enable_x64(True):

        def pixels(parameters):
            plane = plane_from_parameters(parameters, detector.pixel, detector.shape, direction)
            return jnp.stack(pixel_from_direction(jnp.asarray(kf), plane)[:2], -1)

        expected = np.asarray(jax.jacfwd(pixels)(jnp.asarray(detector.parameters)))
    np.testing.assert_allclose(detector_gradients(detector, xy), expected, rtol=1e-8, atol=1e-9)


def test_the_minimum_is_that_of_scipy():
    """Two grains, noise and outliers: scipy.optimize.least_squares on the same loss comes to the same geometry."""
    rng = np.random.default_rng(1)
    grains = noisy(observed(1, "Cu", 2), rng)
    grains[0].xy[:3] += 1.5
    sigma = 0.25
    fit = fitted(DETECTOR, grains, sigma=sigma, steps=40)

    def loss(values):
        moved = DETECTOR.with_parameters(DETECTOR.parameters + values[:5])
        rest = []
        for number, grain in enumerate(grains):
            turn = rotation_from_vector(values[5 + 3 * number : 8 + 3 * number] * 1e-3)
            q = grain.hkl @ (turn @ grain.ub).T
            kf = q - np.array([1.0, 0, 0]) * (q**2).sum(1, keepdims=True) / (2 * q[:, :1])
            rest.append(grain.xy - np.stack(pixel_from_direction(kf, moved)[:2], 1))
        square = (np.concatenate(rest) ** 2).sum(1) / (4 * sigma) ** 2
        return np.sqrt(square / (1 + square))  # Geman and McClure

    best = least_squares(loss, np.zeros(11), xtol=1e-14, ftol=1e-14, gtol=1e-14)
    esd = np.sqrt(np.diag(fit.covariance))
    assert (np.abs(fit.detector.parameters - DETECTOR.parameters - best.x[:5]) < 0.01 * esd).all()


def test_uncertainties_are_those_of_repeated_noise():
    """Pulls of 200 draws have mean zero and unit variance, and the correlations are those of the draws."""
    rng = np.random.default_rng(2)
    truth = observed(2, "Ge")
    moves, pulls = [], []
    for _ in range(200):
        fit = fitted(DETECTOR, noisy(truth, rng), sigma=0.2)
        moves.append(fit.detector.parameters - DETECTOR.parameters)
        pulls.append(moves[-1] / np.sqrt(np.diag(fit.covariance)))
    pulls = np.array(pulls)
    np.testing.assert_allclose(pulls.std(0), 1, atol=0.15)  # three times the error of a standard deviation of 200
    assert (np.abs(pulls.mean(0)) < 3.5 / np.sqrt(200)).all()
    esd = np.sqrt(np.diag(fit.covariance))
    np.testing.assert_allclose(np.corrcoef(np.array(moves).T), fit.covariance / np.outer(esd, esd), atol=0.2)


def test_spots_of_no_grain_hardly_move_the_fit():
    """One spot in ten is somewhere within three pixels: the pulls stay near one."""
    rng = np.random.default_rng(3)
    truth = observed(3, "Ge")
    pulls = []
    for _ in range(60):
        (grain,) = noisy(truth, rng)
        stray = rng.random(len(grain.xy)) < 0.1
        grain.xy[stray] += rng.uniform(-3, 3, (int(stray.sum()), 2))
        fit = fitted(DETECTOR, [grain], sigma=0.2)
        pulls.append((fit.detector.parameters - DETECTOR.parameters) / np.sqrt(np.diag(fit.covariance)))
    assert 0.8 < np.std(pulls) < 1.3
    assert np.abs(np.mean(pulls, 0)).max() < 0.5


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), direction=st.sampled_from(DIRECTIONS))
def test_the_truth_is_recovered_without_noise(seed, direction):
    """In every position of the detector, with the rotation off too; the residuals are zero."""
    rng = np.random.default_rng(seed)
    detector = Detector(60.0, 1010.0, 990.0, 0.4, -0.3, kf_direction=direction)
    truth = observed(seed, "ZrO2", 1, detector)
    start = shifted(detector, SPREAD * rng.uniform(-1, 1, 5))
    turned = [g._replace(ub=rotation_from_vector(rng.normal(size=3) * 1e-3) @ g.ub) for g in truth]
    rough = fitted(start, turned, sigma=50.0, steps=60)
    fit = fitted(rough.detector, [g._replace(ub=ub) for g, ub in zip(truth, rough.ub, strict=True)], sigma=0.2)
    np.testing.assert_allclose(fit.detector.parameters, detector.parameters, atol=2e-4)
    assert fit.rms < 1e-4


def test_what_is_held_stays_and_has_no_uncertainty():
    rng = np.random.default_rng(5)
    start = shifted(DETECTOR, 0.1 * SPREAD)
    free = np.array([True, False, True, True, False])
    fit = fitted(start, noisy(observed(5), rng), sigma=0.5, free=free)
    np.testing.assert_array_equal(fit.detector.parameters[~free], start.parameters[~free])
    assert (fit.covariance[~free] == 0).all() and (np.diag(fit.covariance)[free] > 0).all()
    assert (fit.detector.parameters[free] != start.parameters[free]).all()


def test_as_many_parameters_as_numbers_have_no_uncertainty():
    (grain,) = observed(6)
    four = [Observed(grain.ub, grain.hkl[:4], grain.xy[:4])]  # eight numbers, eight parameters
    assert np.isinf(np.diag(fitted(DETECTOR, four, sigma=0.2).covariance)).all()


def test_a_narrow_prior_holds_and_a_wide_one_does_not():
    rng = np.random.default_rng(7)
    grains = noisy(observed(7), rng)
    start = shifted(DETECTOR, 0.05 * SPREAD)
    alone = fitted(start, grains, sigma=0.2)
    wide = fitted(start, grains, sigma=0.2, width=100 * SPREAD)
    narrow = fitted(start, grains, sigma=0.2, width=1e-6 * SPREAD)
    esd = np.sqrt(np.diag(alone.covariance))
    assert (np.abs(wide.detector.parameters - alone.detector.parameters) < 0.01 * esd).all()
    np.testing.assert_allclose(narrow.detector.parameters, start.parameters, atol=1e-4)


def test_the_scale_allows_for_what_was_fitted():
    rng = np.random.default_rng(8)
    assert scale_of(rng.normal(scale=0.3, size=(4000, 2)), 8) == pytest.approx(0.3, rel=0.05)
    residual = rng.normal(scale=0.3, size=(8, 2))
    assert scale_of(residual, 8) == pytest.approx(np.sqrt(2) * scale_of(residual, 0))


def pulls_of(found: Calibrated, truth: Detector) -> np.ndarray:
    return (found.detector.parameters - truth.parameters) / found.esd


@pytest.mark.parametrize(
    ("name", "signs", "scale"),
    [("Ge", (1, -1, 1, 1, -1), 1.0), ("Si", (-1, -1, -1, 1, 1), 1.0), ("Ge", (-1, 1, 1, -1, 1), 3.0)],
)
def test_a_bad_start(name, signs, scale):
    """2 mm, 20 px and half a degree off, and three times that: it comes to the truth, and says how good that is."""
    frame = frame_of(name, seed=len(name) + round(scale) + signs[0])
    start = shifted(DETECTOR, scale * SPREAD * signs)
    found = calibrated([frame], start, [material(name)], energy=BAND)
    assert found.widened and found.determined.all() and found.start is start
    assert np.abs(pulls_of(found, DETECTOR)).max() < 4.5
    assert found.rms_before > 5 and 0.15 < found.rms_after < 0.25
    ((grain,),) = found.grains
    assert misorientation(grain.u, frame.grains[0].u, grain.material.rotations) < 0.02
    assert grain.n_matched > 0.9 * frame.grains[0].n_spots
    # Without strain, as it is a reference
    assert np.abs(grain.strain).max() < 4e-4


def test_many_frames_and_grains_and_an_empty_one():
    """All frames share one geometry, which is better known than from each; the answer does not depend on the start."""
    frames = [frame_of(*["Cu"] * n, seed=10 + n) for n in (1, 3, 0, 2)]
    copper = [material("Cu")]
    found = calibrated(frames, shifted(DETECTOR, 0.1 * SPREAD), copper, energy=BAND)
    assert not found.widened and [len(g) for g in found.grains] == [1, 3, 0, 2]
    assert np.abs(pulls_of(found, DETECTOR)).max() < 4.5
    assert found.n_spots == sum(g.n_matched for grains in found.grains for g in grains)
    other = calibrated(frames, shifted(DETECTOR, -SPREAD), copper, energy=BAND)
    assert (np.abs(other.detector.parameters - found.detector.parameters) < 0.05 * found.esd).all()
    alone = calibrated(frames[:1], shifted(DETECTOR, 0.1 * SPREAD), copper, energy=BAND)
    assert (alone.esd > 1.5 * found.esd).all()


def test_distance_and_pixel_show_by_their_ratio_alone():
    frame = frame_of("Si", seed=20)
    half = Detector(*(DETECTOR.parameters * [0.5, 1, 1, 1, 1]), pixel=DETECTOR.pixel / 2)
    one, two = (calibrated([frame], d, [material("Si")], energy=BAND) for d in (DETECTOR, half))
    np.testing.assert_allclose(two.detector.parameters / one.detector.parameters, [0.5, 1, 1, 1, 1], rtol=1e-5)
    np.testing.assert_allclose(two.esd / one.esd, [0.5, 1, 1, 1, 1], rtol=1e-3)


@pytest.mark.parametrize(("seed", "held"), [(4, ["xcen", "ycen"]), (36, ["ycen"])])
def test_what_a_few_spots_do_not_determine_is_held(seed, held):
    """Seven spots, far away: what is not known to five pixels stays at the start, without an uncertainty."""
    far = Detector(250.0, 979.0, 932.0, 0.37, 0.447)
    start = shifted(far, 0.1 * SPREAD)
    found = calibrated([frame_of("Cu", seed=seed, detector=far, spurious=0.0)], start, [material("Cu")], energy=BAND)
    assert found.n_spots == 7
    unknown = ~found.determined
    assert [PARAMETERS[i] for i in np.flatnonzero(unknown)] == held
    np.testing.assert_array_equal(found.detector.parameters[unknown], start.parameters[unknown])
    assert np.isnan(found.esd[unknown]).all() and np.isfinite(found.esd[~unknown]).all()
    assert np.isnan(found.correlation[unknown]).all() and np.isnan(found.correlation[:, unknown]).all()
    assert abs(found.detector.distance - far.distance) < 0.2


@pytest.mark.parametrize("n", [0, 3, 20])
def test_frames_without_a_crystal(n):
    rng = np.random.default_rng(n)
    frame = SimpleNamespace(x=rng.uniform(1, 2016, n), y=rng.uniform(1, 2018, n), intensity=rng.uniform(1, 9, n))
    says = "no crystal of Si explains the spots" if n > 6 else "no frame has the 6 spots"
    with pytest.raises(InputError, match=says):
        calibrated([frame], DETECTOR, [material("Si")], energy=BAND)


@pytest.mark.parametrize(
    ("name", "n", "rms", "off"),
    [
        ("Ge_blanc_0000_LT_5.cor", 95, 0.16, (0.0, 1.0)),
        ("Ge0001.cor", 83, 0.31, (0.1,)),
        ("img_Ge_sCMOS_0000_181peaks.cor", 135, 0.155, (0.7,)),
    ],
)
def test_measured_germanium(name, n, rms, off):
    """The calibration in the footer is what Lauetools refined on this crystal; the same comes out from near and far."""
    spots = lauetools.read_cor(REFERENCE / name)
    stored = detector_from_calibration(spots.calibration)
    found = [
        calibrated([spots], shifted(stored, by * SPREAD * (-1, 1, -1, 1, 1)), [material("Ge")], energy=BAND)
        for by in off
    ]
    for one, by in zip(found, off, strict=True):
        assert (np.abs(pulls_of(one, stored)) < 3.5).all() and one.widened == (by > 0.5)
        assert (np.abs(one.detector.parameters - stored.parameters) < [0.02, 0.3, 0.3, 0.02, 0.02]).all()
        assert one.n_spots >= n and one.rms_after < rms
        assert one.rms_before == pytest.approx(one.rms_after, rel=0.05) if by == 0 else one.rms_before > 3 * rms
        assert (np.abs(one.detector.parameters - found[0].detector.parameters) < 0.05 * one.esd).all()


def test_a_det_is_read_as_it_was_written(tmp_path):
    rng = np.random.default_rng(0)
    u = random_rotations(rng, 1)[0]
    calibration = lauetools.Calibration(70.1234567890123, -3.25, 1082.5, 0.63, -0.682, 0.079142, (2018, 2016), "X>0")
    path = tmp_path / "new.det"
    lauetools.write_det(path, lauetools.DetFile(calibration, "Ge", u), "frame.cor")
    read = lauetools.read_det(path)
    assert read.calibration == calibration and read.material == "Ge"
    np.testing.assert_allclose(read.ub_rotation, u, atol=1e-7)
    lines = path.read_text().splitlines()
    # Lauetools takes eight numbers from the first line and the matrix from the sixth
    assert [float(v) for v in lines[0].split(",")][6:] == [2018, 2016] and lines[5].count(",") == 8
    bare = lauetools.Calibration(70.0, 1.0, 1.0, 0.0, 0.0)
    for missing in (lauetools.DetFile(bare, "Ge", u), lauetools.DetFile(calibration, "Ge")):
        with pytest.raises(ValueError, match=r"a \.det needs"):
            lauetools.write_det(path, missing)
