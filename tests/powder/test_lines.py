"""Lines and their error model, against Bragg's law."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlindex.powder.lines import lines_from_q2
from tests.powder.patterns import CELLS, CU, positions, q2_from_tth, tth_from_q2

WAVELENGTH = st.floats(0.4, 2.3)


@given(wavelength=WAVELENGTH, seed=st.integers(0, 10**6))
def test_error_of_a_line_is_that_of_its_angle(wavelength, seed):
    tth = np.sort(np.random.default_rng(seed).uniform(3, 140, 15))
    lines = lines_from_q2(q2_from_tth(tth, wavelength), wavelength)
    step = 1e-4
    slope = np.sqrt(q2_from_tth(tth + step, wavelength)) - np.sqrt(q2_from_tth(tth - step, wavelength))
    np.testing.assert_allclose(lines.w, slope / (2 * step), rtol=1e-6)


@given(wavelength=WAVELENGTH, zero=st.floats(-0.1, 0.1), seed=st.integers(0, 10**6))
def test_a_zero_shift_is_taken_off(wavelength, zero, seed):
    tth = np.sort(np.random.default_rng(seed).uniform(8, 100, 12))
    shifted = lines_from_q2(q2_from_tth(tth + zero, wavelength), wavelength).shifted(zero)
    np.testing.assert_allclose(tth_from_q2(shifted.q2, wavelength), tth, atol=1e-4 if abs(zero) < 0.02 else 2e-3)


@given(st.permutations(list(np.linspace(0.01, 0.3, 9))))
def test_order_does_not_matter(q2):
    a, b = lines_from_q2(np.array(q2), 1.2), lines_from_q2(np.sort(q2), 1.2)
    assert (a.q2 == b.q2).all() and (a.w == b.w).all() and (np.diff(a.q2) > 0).all()
    assert len(a.first(4)) == 4 and a.first(4).q2[-1] == b.q2[3]


@pytest.mark.parametrize("wavelength", [CU, None])
def test_two_measurements_of_one_sample_are_one_list(wavelength):
    q2 = positions(*CELLS["oP"], 25, 0.2)
    once = lines_from_q2(q2, wavelength)
    shift = 0.008 * once.w * 2 * once.q  # of q2, for 0.008 degrees
    twice = lines_from_q2(np.concatenate([q2 + shift, q2 - shift]), wavelength)
    np.testing.assert_allclose(twice.q2, once.q2, rtol=1e-9)
    np.testing.assert_allclose(twice.w, once.w, rtol=1e-9)
    pair = lines_from_q2(np.append(q2, q2[3] + shift[3]), wavelength)
    assert len(pair) == len(q2) + 1, "a sharp pattern may resolve one pair"


@given(wavelength=st.floats(0.05, 0.4), seed=st.integers(0, 10**6))
def test_the_unit_of_errors_is_less_than_a_degree_at_short_wavelengths(wavelength, seed):
    tth = np.sort(np.random.default_rng(seed).uniform(1, 40, 15))
    lines = lines_from_q2(q2_from_tth(tth, wavelength), wavelength)
    step = 0.5e-4 * lines.degrees
    slope = np.sqrt(q2_from_tth(tth + step, wavelength)) - np.sqrt(q2_from_tth(tth - step, wavelength))
    np.testing.assert_allclose(lines.w * 1e-4, slope, rtol=1e-6)
    assert lines.degrees == pytest.approx(wavelength / 0.4)


def test_errors_without_a_wavelength_are_less_than_the_spacing_of_lines():
    usual = np.linspace(0.01, 0.3, 30)
    lines = lines_from_q2(usual, None)
    np.testing.assert_allclose(
        2 * lines.q * lines.w * 0.025, 1e-4 + 6e-4 * usual, rtol=1e-12
    )  # the model of a serial powder
    for size in (1, 2, 5):  # lines of cells so many times larger; errors in proportion to the positions
        lines = lines_from_q2(usual / 200 / size**2, None)
        assert (0.025 * 2 * lines.q * lines.w)[0] < 0.11 * np.diff(lines.q2)[0]


@given(size=st.floats(0.01, 1.0), wavelength=WAVELENGTH)
def test_the_unit_of_errors_is_less_than_a_degree_where_lines_are_close(size, wavelength):
    tth = 3 + 0.4 * size * np.arange(60)
    lines = lines_from_q2(q2_from_tth(tth, wavelength), wavelength)
    assert lines.degrees == pytest.approx(min(0.4 * size / 0.25, 1.0), rel=0.01)
    assert lines.first(10).degrees == lines.shifted(0.01).degrees == lines.degrees
