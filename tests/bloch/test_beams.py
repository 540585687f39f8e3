"""Beams and tilts: shells, frames, differences, and the excitation error as the distance from the Ewald sphere."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlindex.bloch.beams import (
    differences,
    geometry,
    higher_zone_beams,
    shell_beams,
    tilt_disc,
    zone_beams,
    zone_frame,
)
from mlindex.crystal.metric import direct_metric_from_cell, matrix_from_metric, q2_from_hkl, reciprocal_metric_from_cell

CUBIC = (3.905, 3.905, 3.905, 90.0, 90.0, 90.0)
TRICLINIC = (4.1, 5.3, 6.7, 82.0, 97.0, 105.0)
zones = st.tuples(*[st.integers(-3, 3)] * 3).filter(any)
cells = st.tuples(*[st.floats(3, 9)] * 3, *[st.floats(70, 110)] * 3)


@given(cell=cells, zone=zones)
def test_the_frame_of_a_zone(cell, zone):
    frame, metric = zone_frame(cell, zone), matrix_from_metric(reciprocal_metric_from_cell(np.array(cell)))
    np.testing.assert_allclose(frame.T @ frame, metric, atol=1e-12)  # lengths and angles are kept
    assert np.linalg.det(frame) > 0
    # g.z is the number of the layer over the length of the lattice vector
    length = np.sqrt(np.array(zone) @ matrix_from_metric(direct_metric_from_cell(np.array(cell))) @ np.array(zone))
    hkl = np.random.default_rng(0).integers(-5, 6, (10, 3))
    np.testing.assert_allclose(hkl @ frame[2], hkl @ np.array(zone) / length, atol=1e-12)


def test_x_is_along_the_first_reciprocal_axis_in_the_plane():
    x, y, z = zone_frame(TRICLINIC, (0, 0, 1))
    assert x[0] > 0 and abs(y[0]) < 1e-14 and abs(z[0]) < 1e-14
    star = zone_frame(CUBIC, (1, 0, 0))  # a* is along the zone axis, so b* is taken
    np.testing.assert_allclose(star @ [0, 1, 0], [1 / 3.905, 0, 0], atol=1e-15)
    np.testing.assert_allclose(star @ [0, 0, 1], [0, 1 / 3.905, 0], atol=1e-15)


@given(cell=cells, zone=zones, g_max=st.floats(0.1, 1.0))
def test_beams_of_a_zone_are_all_there_are(cell, zone, g_max):
    """By brute force over a cube that surely holds them: |h_i| = |g . a_i| <= g_max a_i."""
    hkl = zone_beams(cell, zone, g_max)
    reach = int(np.ceil(g_max * max(cell[:3])))
    axis = np.arange(-reach, reach + 1)
    every = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    q2 = q2_from_hkl(reciprocal_metric_from_cell(np.array(cell)), every)
    wanted = every[(q2 <= g_max**2) & (every @ np.array(zone) == 0)]
    assert {tuple(h) for h in hkl} == {tuple(h) for h in wanted}
    length = q2_from_hkl(reciprocal_metric_from_cell(np.array(cell)), hkl)
    assert not hkl[0].any() and np.all(np.diff(length) > -1e-8)
    assert {tuple(-h) for h in hkl} == {tuple(h) for h in hkl}


@pytest.mark.parametrize(("count", "top"), [(1, 0), (5, 1), (9, 2), (13, 4), (21, 5), (25, 8), (69, 20)])
def test_shells_of_a_square_net(count, top):
    hkl = shell_beams(CUBIC, (0, 0, 1), count)
    assert len(hkl) == count and np.max(np.sum(hkl**2, 1)) == top


@given(cell=cells, zone=zones)
def test_a_shell_is_symmetric_and_complete(cell, zone):
    three = shell_beams(cell, zone, 1)
    np.testing.assert_array_equal(three, [[0, 0, 0]])
    with pytest.raises(ValueError, match="no full shell"):
        shell_beams(cell, zone, 2)  # g and -g are on one shell


def test_a_number_that_ends_no_shell_names_its_neighbours():
    with pytest.raises(ValueError, match=r"holds 12 beams; the nearest hold 9 and 13$"):
        shell_beams(CUBIC, (0, 0, 1), 12)
    with pytest.raises(ValueError, match="at least one"):
        shell_beams(CUBIC, (0, 0, 1), 0)
    with pytest.raises(ValueError, match="not all zero"):
        shell_beams(CUBIC, (0, 0, 0), 13)


@pytest.mark.parametrize(("steps", "count"), [(0, 1), (12, 441), (16, 797), (18, 1009), (8, 197), (9, 253)])
def test_discs_of_tilts(steps, count):
    tilt, ij = tilt_disc(steps, 70.0)
    assert len(tilt) == len(ij) == count
    assert np.linalg.norm(tilt, axis=1).max() == pytest.approx(70.0 if steps else 0.0)


@pytest.mark.parametrize(("steps", "span"), [(-1, 70.0), (3, 0.0), (3, float("nan"))])
def test_a_disc_that_is_none(steps, span):
    with pytest.raises(ValueError, match="disc of tilts"):
        tilt_disc(steps, span)


@given(hkl=st.lists(st.tuples(*[st.integers(-4, 4)] * 3), min_size=1, max_size=12, unique=True))
def test_differences(hkl):
    beams = np.array(hkl)
    dhkl, index = differences(beams)
    np.testing.assert_array_equal(dhkl[index], beams[:, None] - beams[None])
    np.testing.assert_array_equal(dhkl, -dhkl[::-1])  # so U is Hermitian where u[::-1] = conj(u)
    assert len(np.unique(dhkl, axis=0)) == len(dhkl) == len(np.unique(index))


@given(zone=zones, x=st.floats(-60, 60), y=st.floats(-60, 60))
def test_the_excitation_is_the_distance_from_the_sphere(zone, x, y):
    """K^2 - |k + g|^2 with k of length K against the zone axis, also of beams of higher zones."""
    hkl = np.vstack([[0, 0, 0], np.random.default_rng(1).integers(-4, 5, (8, 3))])
    hkl = np.unique(hkl, axis=0)
    at = geometry(hkl, np.array([[x, y]]), cell=TRICLINIC, zone=zone, voltage_kv=100.0)
    k = np.array([*at.kt[0], -np.sqrt(at.k0**2 - np.sum(at.kt[0] ** 2))])
    np.testing.assert_allclose(at.excitation[0], at.k0**2 - np.sum((k + at.g) ** 2, 1), atol=1e-9)
    assert not at.hkl[at.origin].any() and at.excitation[0, at.origin] == 0


def test_beams_of_higher_zones_lie_near_the_sphere():
    tilt = np.zeros((1, 2))
    hkl = higher_zone_beams(CUBIC, (0, 0, 1), tilt, voltage_kv=120.0, g_max=5.0, s_max=0.005)
    assert np.all(hkl[:, 2] > 0)  # towards the source: the sphere curves to it
    at = geometry(np.vstack([[0, 0, 0], hkl]), tilt, cell=CUBIC, zone=(0, 0, 1), voltage_kv=120.0)
    assert np.abs(at.excitation / (2 * at.k0)).max() <= 0.005
    # the first ring of Laue circles has the radius sqrt(2 K / c)
    first = np.linalg.norm(at.g[at.hkl[:, 2] == 1][:, :2], axis=1)
    assert len(first) and np.allclose(first, np.sqrt(2 * at.k0 / 3.905), rtol=0.05)
    fewer = higher_zone_beams(CUBIC, (0, 0, 1), tilt, voltage_kv=120.0, g_max=5.0, s_max=0.001)
    assert {tuple(h) for h in fewer} < {tuple(h) for h in hkl}


def test_a_part_of_the_tilts():
    tilt, _ = tilt_disc(3, 40.0)
    at = geometry(shell_beams(CUBIC, (0, 0, 1), 9), tilt, cell=CUBIC, zone=(0, 0, 1), voltage_kv=120.0)
    some = at.part(np.array([1, 5]))
    assert some.shape == (2, 9) and at.shape == (29, 9)
    np.testing.assert_array_equal(some.excitation, at.excitation[[1, 5]])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"hkl": [[1, 0, 0]]}, "0 0 0 is missing"),
        ({"hkl": [[0, 0, 0], [1, 0, 0], [1, 0, 0]]}, "listed twice"),
        ({"tilt": [[1100.0, 0.0]]}, "beyond 1000 mrad"),
        ({"tilt": [[float("nan"), 0.0]]}, "not finite"),
        ({"voltage_kv": 0.0}, "voltage must be positive"),
        ({"zone": (0, 0, 0)}, "zone axis"),
        ({"cell": (1, 1, 1, 10, 10, 170)}, "no cell has the angles"),
    ],
)
def test_bad_geometry_is_said(change, says):
    good = {"hkl": [[0, 0, 0], [1, 0, 0]], "tilt": [[1.0, 2.0]], "cell": CUBIC, "zone": (0, 0, 1), "voltage_kv": 120.0}
    good |= change
    with pytest.raises(ValueError, match=says):
        geometry(np.array(good.pop("hkl")), np.array(good.pop("tilt")), **good)
