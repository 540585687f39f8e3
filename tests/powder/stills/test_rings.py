"""q by Bragg's law, and the lines of a histogram against those that the spots were drawn from."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlindex.powder.stills.rings import histogram, lines_of, q_from_place, quantum, slope_of_q
from tests.powder.stills import serial


@given(st.floats(0.001, 0.3), st.floats(-3.0, 3.0), st.floats(0.05, 0.5))
def test_q_and_its_slope(r, phi, z):
    place = np.array([[r * np.cos(phi), r * np.sin(phi), z]])
    wavelength = np.array([1.1])
    unit = place[0] / np.linalg.norm(place[0])
    scattering = (unit - [0, 0, 1]) / 1.1
    assert q_from_place(place, wavelength)[0] == pytest.approx(np.linalg.norm(scattering), rel=1e-9)
    step = 1e-7
    further = q_from_place(place + step * np.array([np.cos(phi), np.sin(phi), 0]), wavelength)
    slope = (further - q_from_place(place, wavelength)) / step
    assert slope_of_q(place, wavelength)[0] == pytest.approx(slope[0], rel=1e-4)


def found_of(place, **options):
    wavelength = np.full(len(place), serial.WAVELENGTH)
    resolution = float(np.median(slope_of_q(place, wavelength))) * serial.PIXEL
    return lines_of(histogram(q_from_place(place, wavelength), resolution=resolution, **options), 5.0).peaks


def test_positions_are_right_within_their_uncertainty():
    pulls, false = [], 0
    for seed, name in enumerate(("cP", "tP", "hP", "oP", "mP", "cI")):
        place, lines = serial.spots_of(name, 12_000, seed=seed)
        found = found_of(serial.metres(place))
        width = np.median(found.width)
        lone = serial.clear(lines, width)
        nearest = np.abs(found.position[None, :] - lone[:, None]).argmin(axis=1)
        miss = found.position[nearest] - lone
        assert np.mean(np.abs(miss) < width) > 0.9
        hit = np.abs(miss) < width
        pulls.append((miss / found.position_esd[nearest])[hit])
        false += int(np.sum(np.abs(found.position[:, None] - lines).min(axis=1) > 0.7 * width))
    pull = np.concatenate(pulls)
    assert len(pull) > 50
    assert abs(pull.mean()) < 4 / np.sqrt(len(pull)) and 0.7 < np.sqrt(np.mean(pull**2)) < 1.35
    assert false <= 2


def test_spots_anywhere_have_no_lines():
    q = np.sqrt(np.random.default_rng(0).uniform(0.03**2, 0.4**2, 20_000))
    assert len(lines_of(histogram(q, resolution=3e-4), 5.0).peaks) == 0


def test_every_spot_is_counted_once():
    q = np.random.default_rng(0).uniform(0.05, 0.4, 5000)
    table = histogram(q, resolution=3e-4)
    assert table.count.sum() >= 0.998 * len(q) and table.noise.gain == 1
    weighted = histogram(q, np.full(len(q), 2.0), resolution=3e-4)
    assert weighted.count.sum() == pytest.approx(2 * table.count.sum()) and weighted.noise.gain == pytest.approx(2)


def test_rounded_values_keep_to_their_steps():
    place, lines = serial.spots_of("cI", 6000)
    q = np.round(q_from_place(serial.metres(place), np.full(len(place), serial.WAVELENGTH)), 3)
    assert quantum(q) == pytest.approx(1e-3)
    table = histogram(q)
    assert table.q[1] - table.q[0] == pytest.approx(1e-3)
    np.testing.assert_allclose(table.q / 1e-3, np.rint(table.q / 1e-3), atol=1e-6)
    found = lines_of(table, 5.0).peaks
    miss = np.abs(found.position[:, None] - lines).min(axis=1)
    assert len(found) >= 5 and miss.max() < 6e-4
    assert quantum(np.random.default_rng(0).uniform(0, 1, 1000)) == 0
