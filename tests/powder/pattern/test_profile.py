"""Profiles against SciPy's integrals and against differences."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.optimize import approx_fprime

from mlindex.powder.pattern.profile import Doublet, height, peak, pseudo_voigt, second_position, total

CU = Doublet(1.5405929, 1.5444274)
shapes = st.tuples(st.floats(0.02, 2.0), st.floats(0.0, 1.0), st.floats(-0.5, 0.5))


@given(shapes)
def test_unit_area_and_width(shape):
    width, eta, skew = shape
    sides = [
        quad(lambda x: pseudo_voigt(np.array([x]), 0.0, width, eta, skew)[0][0], *ends, limit=200)[0]
        for ends in ((-np.inf, 0), (0, np.inf))
    ]
    assert sum(sides) == pytest.approx(1.0, abs=1e-6)
    assert sides[0] / sides[1] == pytest.approx(np.exp(2 * skew), rel=1e-5) or sides[1] / sides[0] == pytest.approx(
        np.exp(2 * skew), rel=1e-5
    )
    ends = np.array([-0.5 * width * np.exp(skew), 0.0, 0.5 * width * np.exp(-skew)])
    value = pseudo_voigt(ends, 0.0, width, eta, skew)[0]
    np.testing.assert_allclose(value[[0, 2]], value[1] / 2, rtol=1e-9)


@given(shapes, st.floats(20.0, 120.0), st.booleans())
def test_derivatives(shape, at, both):
    width, eta, skew = shape
    doublet = CU if both else None
    x = at + width * np.linspace(-2, 2.3, 17)
    p = np.array([at, np.log(width), eta, skew, 3.0])
    _, slopes = peak(x, p, doublet)
    for i in range(len(x)):
        numeric = approx_fprime(p, lambda v, i=i: peak(x[i : i + 1], v, doublet)[0][0], 1e-7)
        np.testing.assert_allclose(slopes[:, i], numeric, atol=2e-4 * max(1.0, 1 / width) ** 2 * 3)


def test_bragg_of_the_second_line():
    tth = np.array([20.0, 60.0, 130.0])
    other, factor = second_position(tth, CU)
    np.testing.assert_allclose(np.sin(np.radians(other / 2)) / CU.second, np.sin(np.radians(tth / 2)) / CU.first)
    step = 1e-5
    np.testing.assert_allclose(factor, (second_position(tth + step, CU)[0] - other) / step, rtol=1e-5)


def test_height_and_sum():
    p = np.array([[30.0, np.log(0.1), 0.4, 0.0, 5.0], [40.0, np.log(0.2), 0.9, 0.1, 2.0]])
    x = np.linspace(20, 50, 30001)
    y = total(x, p)
    np.testing.assert_allclose([y[10000], y[20000]], height(p), rtol=2e-3)
    assert total(x, p[:0]).sum() == 0
