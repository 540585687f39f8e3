"""A beam that was moved is found where it was moved to; a distance that was scaled, by how much."""

from __future__ import annotations

import numpy as np
import pytest

from mlindex.powder.stills.centre import centre_shift
from mlindex.powder.stills.distance import distance_from_lines, scaled_q
from tests.powder.stills import serial


def shift_of(name, count, **options):
    place, _ = serial.spots_of(name, count, **options)
    return centre_shift(serial.metres(place), np.full(len(place), serial.WAVELENGTH), serial.PIXEL)


@pytest.mark.parametrize(
    ("name", "off"), [("cI", (0.6, -0.2)), ("tP", (-3.1, 4.2)), ("mP", (1.7, -2.3)), ("aP", (0.0, 8.5))]
)
def test_the_beam_is_found(name, off):
    shift = shift_of(name, 12_000, off=off)
    assert shift is not None and shift.significant
    assert max(shift.esd) < 0.05
    np.testing.assert_allclose((shift.x, shift.y), off, atol=5 * max(shift.esd) + 0.02)
    azimuth = (np.arange(12) + 0.5) * np.pi / 6
    np.testing.assert_allclose(shift.sectors, off[0] * np.cos(azimuth) + off[1] * np.sin(azimuth), atol=0.4)


def test_a_beam_where_it_should_be_is_left_there():
    false = 0
    for seed in range(4):
        shift = shift_of("tP", 6000, seed=seed)
        assert shift is not None and shift.size < 0.1
        false += shift.significant
    assert false == 0


def test_on_half_a_detector():
    shift = shift_of("tP", 12_000, off=(1.0, -1.5), half=True)
    assert shift is not None
    np.testing.assert_allclose((shift.x, shift.y), (1.0, -1.5), atol=0.15)


def test_too_few_spots_say_nothing():
    assert shift_of("tP", 50) is None
    q = np.sqrt(np.random.default_rng(0).uniform(0.03**2, 0.3**2, 3000))
    r = serial.DISTANCE * np.tan(2 * np.arcsin(q * serial.WAVELENGTH / 2))
    phi = np.random.default_rng(1).uniform(0, 6.28, len(r))
    place = np.stack([r * np.cos(phi), r * np.sin(phi), np.full(len(r), serial.DISTANCE)], 1)
    shift = centre_shift(place, np.full(len(r), serial.WAVELENGTH), serial.PIXEL)
    assert shift is None or not shift.significant


@pytest.mark.parametrize("factor", [0.97, 0.9985, 1.0, 1.004, 1.05])
def test_the_distance_by_a_known_cell(factor):
    lines, _ = serial.lines_of("tP", 0.4)
    esd = np.full(len(lines), 2e-5)
    seen = scaled_q(lines, serial.WAVELENGTH, np.array([1 / factor]))[0]  # thought at 1, is at `factor`
    seen = seen + np.random.default_rng(0).normal(0, 2e-5, len(lines))
    answer = distance_from_lines(seen, esd, lines, serial.WAVELENGTH)
    assert answer is not None and answer.matched >= 4
    assert answer.factor == pytest.approx(factor, abs=5 * answer.esd)
    assert answer.significant == (factor != 1.0)


def test_the_distance_by_too_few_lines():
    lines, _ = serial.lines_of("tP", 0.4)
    assert distance_from_lines(lines[:3], np.full(3, 1e-5), lines, 1.3) is None
