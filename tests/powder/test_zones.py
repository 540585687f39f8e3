"""Dominant rows and zones: found where they were put, absent from generic lists, and worth a new choice of lines."""

from __future__ import annotations

import numpy as np
import pytest

from mlindex.powder import zones
from mlindex.powder.lines import lines_from_q2
from tests.powder.patterns import CELLS, CU, measured, positions, q2_from_tth, reflections, tth_from_q2

TOLERANCE = 0.035  # degrees 2theta


def listed(cell, group, count=25, error=0.004):
    tth = tth_from_q2(positions(cell, group, count, 0.06))
    return lines_from_q2(q2_from_tth(tth + np.random.default_rng(1).normal(0, error, count)), CU)


def indices(lines, cell, group):
    """The true indices of each line."""
    hkl, q2 = reflections(cell, group, lines.q2[-1] * 1.05)
    return hkl[np.abs(lines.q2[:, None] - q2).argmin(1)]


LONG = [((5.1, 6.3, 61, 90, 90, 90), "P m m m"), ((4.1, 5.2, 48.0, 90, 97, 90), "P 1 2/m 1")]
SHORT = [((23.1, 19.3, 3.1, 90, 90, 90), "P m m m", 2), ((21.3, 3.3, 17.9, 90, 104, 90), "P 1 2/m 1", 1)]


@pytest.mark.parametrize(("cell", "group"), LONG)
def test_orders_of_a_long_axis_are_a_row(cell, group):
    lines = listed(cell, group)
    hkl = indices(lines, cell, group)
    orders = (hkl[:, :2] == 0).all(1)
    assert orders[:8].all()  # that is what makes it dominant
    known = zones.row_members(lines, TOLERANCE)
    assert not known[0] and known[1:][orders[1:]].all()
    assert known[~orders].sum() <= 3  # by chance
    choice = zones.selections(lines, 13, TOLERANCE)[0]
    assert orders[choice].sum() == 1 and len(choice) == 13 and (np.diff(choice) > 0).all()


@pytest.mark.parametrize(("cell", "group", "axis"), SHORT)
def test_zone_of_a_short_axis(cell, group, axis):
    lines = listed(cell, group, 32)
    inside = indices(lines, cell, group)[:, axis] == 0
    assert inside[:16].all()
    base, explained = zones.dominant_zone(lines, TOLERANCE)
    assert 2 <= len(base) <= 3 and explained[base].all()
    assert explained[inside].mean() > 0.9


def test_lines_outside_the_zone_are_combined():
    cell, group = (14.1, 12.3, 3.9, 90, 90, 90), "P m m m"
    lines = listed(cell, group, 30)
    inside = indices(lines, cell, group)[:, 2] == 0
    assert inside[:14].mean() > 0.7 and not inside.all()
    _, explained = zones.dominant_zone(lines, TOLERANCE)
    assert explained[inside].mean() > 0.9 and explained[~inside].mean() < 0.5
    choice = zones.selections(lines, 13, TOLERANCE)[-1]
    assert (~inside[choice]).mean() > 2 * (~inside[:13]).mean()


@pytest.mark.parametrize("name", ["mP", "aP"])
def test_generic_lists_have_no_dominant_zone(name):
    lines = lines_from_q2(measured(name, 25), CU)
    base, explained = zones.dominant_zone(lines, TOLERANCE)
    assert len(base) == 0 and not explained.any()


@pytest.mark.parametrize("seed", range(4))
def test_random_lines_have_no_dominant_zone(seed):
    tth = np.sort(np.random.default_rng(seed).uniform(12, 50, 25))
    lines = lines_from_q2(q2_from_tth(tth), CU)
    assert len(zones.dominant_zone(lines, 0.01)[0]) == 0
    assert zones.row_members(lines, 0.01)[:13].sum() <= 4


@pytest.mark.parametrize("name", CELLS)
def test_selections_are_choices_of_lines(name):
    lines = lines_from_q2(measured(name, 25), CU)
    for choice in zones.selections(lines, 13, TOLERANCE):
        assert 4 <= len(choice) <= 13 and (np.diff(choice) > 0).all() and choice[-1] < 25
