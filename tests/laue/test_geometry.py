"""Detector geometry against Lauetools' own angles in measured files, and its laws."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlindex.formats import lauetools
from mlindex.laue import geometry
from mlindex.laue.geometry import DIRECTIONS, Detector
from mlindex.records import InputError

REFERENCE = Path(__file__).parents[1] / "reference" / "lauetools"


@st.composite
def detectors(draw):
    return Detector(
        distance=draw(st.floats(20.0, 300.0)),
        xcen=draw(st.floats(-200.0, 2000.0)),
        ycen=draw(st.floats(-200.0, 2000.0)),
        xbet=draw(st.floats(-20.0, 20.0)),
        xgam=draw(st.floats(-180.0, 180.0)),
        pixel=draw(st.floats(0.02, 0.2)),
        shape=(2018, 2016),
        kf_direction=draw(st.sampled_from(DIRECTIONS)),
    )


@pytest.mark.parametrize("name", ["Ge0001.cor", "Ge_blanc_0000_LT_5.cor", "img_Ge_sCMOS_0000_181peaks.cor"])
def test_angles_of_measured_spots(name):
    """2theta and chi that Lauetools wrote beside X and Y, with the calibration it wrote below them."""
    spots = lauetools.read_cor(REFERENCE / name)
    kf = geometry.direction_from_pixel(spots.x, spots.y, geometry.detector_from_calibration(spots.calibration))
    two_theta, chi = geometry.angles_from_kf(kf)
    np.testing.assert_allclose(two_theta, spots.two_theta, atol=1e-5)
    np.testing.assert_allclose(chi, spots.chi, atol=1e-5)


@given(detectors(), st.lists(st.tuples(st.floats(1, 2016), st.floats(1, 2018)), min_size=1, max_size=5))
def test_pixel_to_direction_and_back(detector, pixels):
    x, y = np.array(pixels).T
    kf = geometry.direction_from_pixel(x, y, detector)
    np.testing.assert_allclose(np.linalg.norm(kf, axis=-1), 1, rtol=1e-12)
    back_x, back_y, on = geometry.pixel_from_direction(3.7 * kf, detector)
    np.testing.assert_allclose(back_x, x, atol=1e-7)
    np.testing.assert_allclose(back_y, y, atol=1e-7)
    assert on.all()
    assert not geometry.pixel_from_direction(-kf, detector)[2].any()


@given(detectors())
def test_the_plane_is_at_its_distance_and_its_axes_are_pixels(detector):
    across, down, origin = detector.plane.to_lab.T
    normal = np.cross(across, down) / detector.pixel**2
    np.testing.assert_allclose(np.linalg.norm(normal), 1, rtol=1e-12)
    np.testing.assert_allclose(np.linalg.norm([across, down], axis=1), detector.pixel, rtol=1e-12)
    np.testing.assert_allclose(abs(normal @ origin), detector.distance, rtol=1e-9)
    foot = origin + detector.xcen * across + detector.ycen * down
    np.testing.assert_allclose(np.cross(foot, normal), 0, atol=1e-9 * np.linalg.norm(origin) + 1e-9)
    np.testing.assert_allclose(detector.plane.to_pixel @ detector.plane.to_lab, np.eye(3), atol=1e-8)


def test_where_the_untilted_detectors_stand():
    """The middle of a detector looks where its name says, in the LT frame."""
    towards = {"Z>0": (0, 0, 1), "Y>0": (0, 1, 0), "Y<0": (0, -1, 0), "X>0": (1, 0, 0), "X<0": (-1, 0, 0)}
    for name, expected in towards.items():
        detector = Detector(80.0, 1000.0, 900.0, 0.0, 0.0, kf_direction=name)
        kf = geometry.direction_from_pixel(np.array(1000.0), np.array(900.0), detector)
        np.testing.assert_allclose(kf, expected, atol=1e-12)
        # On the top detector rows count along the beam, and columns towards -y (as Lauetools' calc_uflab has it)
        if name == "Z>0":
            beyond = geometry.direction_from_pixel(np.array([1000.0, 1100.0]), np.array([1000.0, 900.0]), detector)
            assert beyond[0, 0] > 0 and beyond[1, 1] < 0


@given(st.floats(5, 170), st.floats(-179, 179))
def test_angles_and_directions(two_theta, chi):
    kf = geometry.kf_from_angles(np.array(two_theta), np.array(chi))
    found = geometry.angles_from_kf(kf)
    np.testing.assert_allclose(found, (two_theta, chi), rtol=1e-10, atol=1e-9)
    q = geometry.q_from_kf(kf)
    theta, c = np.radians(two_theta) / 2, np.radians(chi)
    np.testing.assert_allclose(q, [-np.sin(theta), np.cos(theta) * np.sin(c), np.cos(theta) * np.cos(c)], atol=1e-12)
    for factor in (1.0, 2.3, -0.4):  # the sign and the length of q do not matter to a mirror
        np.testing.assert_allclose(geometry.kf_from_q(factor * q), kf, atol=1e-12)


@given(st.floats(5, 170), st.floats(-179, 179), st.floats(0.5, 10))
def test_energy_is_that_of_bragg(two_theta, chi, spacing):
    q = geometry.q_from_kf(geometry.kf_from_angles(np.array(two_theta), np.array(chi))) / spacing
    wavelength = 2 * spacing * np.sin(np.radians(two_theta) / 2)
    np.testing.assert_allclose(geometry.energy_from_q(q), 12.398419843 / wavelength, rtol=1e-9)
    np.testing.assert_allclose(geometry.energy_from_q(-2 * q), -2 * 12.398419843 / wavelength, rtol=1e-9)


def test_jax_gives_the_same_and_its_derivative():
    detector = Detector(79.553, 979.32, 932.31, 0.37, 0.447)
    q = np.array([[-0.6, 0.1, 0.7], [-0.7, -0.2, 0.6]])

    def place(parameters, vectors):
        plane = geometry.plane_from_parameters(parameters, detector.pixel, detector.shape)
        x, y, _ = geometry.pixel_from_direction(geometry.kf_from_q(vectors), plane)
        return jnp.stack([x, y])

    with jax.enable_x64(True):
        values = place(jnp.asarray(detector.parameters), jnp.asarray(q))
        slope = np.asarray(jax.jacobian(place)(jnp.asarray(detector.parameters), jnp.asarray(q)))
    expected = geometry.pixel_from_direction(geometry.kf_from_q(q), detector)
    np.testing.assert_allclose(values, expected[:2], rtol=1e-12)
    for i, step in enumerate([1e-4, 1e-3, 1e-3, 1e-4, 1e-4]):
        moved = [
            geometry.pixel_from_direction(
                geometry.kf_from_q(q), detector.with_parameters(detector.parameters + sign * step * np.eye(5)[i])
            )[:2]
            for sign in (1, -1)
        ]
        numeric = (np.array(moved[0]) - np.array(moved[1])) / (2 * step)
        np.testing.assert_allclose(slope[..., i], numeric, rtol=1e-5, atol=1e-5)


@given(detectors())
def test_no_direction_on_the_detector_is_beyond_the_largest_two_theta(detector):
    x, y = np.meshgrid(np.linspace(0.5, 2016.5, 40), np.linspace(0.5, 2018.5, 40))
    two_theta, _ = geometry.angles_from_kf(geometry.direction_from_pixel(x, y, detector))
    assert two_theta.max() <= geometry.largest_two_theta(detector) + 0.02


def test_sample_frame():
    """At 40 degrees the normal of a sample that faces the detector lies in the plane xz of the laboratory."""
    turn = geometry.sample_from_lab(40.0)
    np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-14)
    assert np.isclose(np.linalg.det(turn), 1)
    normal = turn.T @ [0, 0, 1]
    np.testing.assert_allclose(normal, [-np.sin(np.radians(40)), 0, np.cos(np.radians(40))], atol=1e-12)


@pytest.mark.parametrize(
    ("change", "word"),
    [({"distance": -1.0}, "positive"), ({"kf_direction": "up"}, "position"), ({"shape": (0, 5)}, "shape")],
)
def test_impossible_detectors(change, word):
    with pytest.raises(ValueError, match=word):
        Detector(**{"distance": 70.0, "xcen": 1.0, "ycen": 1.0, "xbet": 0.0, "xgam": 0.0} | change)


def test_an_image_of_another_size_than_the_camera_of_the_calibration() -> None:
    """A .det without the size of its frames, and an image that is binned: the geometry would be wrong by a factor."""
    of_camera = lauetools.Calibration(70.0, 1000.0, 1000.0, 0.0, 0.0, 0.0734)
    assert geometry.detector_from_calibration(of_camera, shape=(2018, 2016)).shape == (2018, 2016)
    with pytest.raises(InputError, match="2018 x 2016 pixels, and this image has 1009 x 1008"):
        geometry.detector_from_calibration(of_camera, shape=(1009, 1008))
