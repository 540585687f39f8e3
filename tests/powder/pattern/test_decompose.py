"""Scans whose lines are known: found, in their place within their uncertainty, and no others."""

from __future__ import annotations

import numpy as np
import pytest

from mlindex.powder.pattern.decompose import decompose
from mlindex.powder.pattern.noise import Noise, noise_of_pattern
from mlindex.powder.pattern.profile import Doublet
from tests.powder.pattern.scans import CU1, CU2, lines_of, scan


def matched(found, tth):
    """The nearest peak to each line, and the peaks that are nearest to none."""
    nearest = np.abs(found.position[None, :] - tth[:, None]).argmin(axis=1)
    return nearest, np.setdiff1d(np.arange(len(found)), nearest)


@pytest.fixture(scope="module", params=[False, True], ids=["one wavelength", "doublet"])
def many(request):
    """Six scans of two cells: pulls of the positions and areas of all clear lines, the false and the missed ones."""
    pulls, areas, false, missed, lines = [], [], 0, 0, 0
    for seed in range(3):
        for name in ("oP", "tP"):
            tth, area = lines_of(name, seed=seed)
            x, y = scan(tth, area, doublet=request.param, seed=seed)
            found = decompose(x, y, noise=Noise(), doublet=Doublet(CU1, CU2) if request.param else None).peaks
            nearest, extra = matched(found, tth)
            miss = found.position[nearest] - tth
            hit = np.abs(miss) < 0.05
            pulls.append((miss / found.position_esd[nearest])[hit])
            areas.append(((found.area[nearest] - area * 0.02) / (area * 0.02))[hit & (area > 2000)])
            false, missed, lines = false + len(extra), missed + int(np.sum(~hit & (area > 400))), lines + len(tth)
    return np.concatenate(pulls), np.concatenate(areas), false, missed, lines


def test_lines_are_where_they_are_within_their_uncertainty(many):
    pulls = many[0]
    assert abs(np.mean(pulls)) < 4 / np.sqrt(len(pulls))
    assert 0.7 < np.sqrt(np.mean(pulls**2)) < 1.3


def test_no_line_is_missed_and_few_are_false(many):
    _, _, false, missed, lines = many
    assert lines > 80 and missed == 0  # of those of 400 counts and more: the noise beneath is of about 30
    assert false <= 3  # of six scans


def test_areas(many):
    assert np.abs(np.median(many[1])) < 0.04


BACKGROUNDS = {
    "falling": lambda x: 200 + 800 * np.exp(-(x - 8) / 15),
    "rising": lambda x: 200 + 800 * (x - 8) / 64,
    "hump": lambda x: 200 + 800 * np.exp(-(((x - 30) / 10) ** 2)),
}


@pytest.mark.parametrize("kind", sorted(BACKGROUNDS))
@pytest.mark.parametrize("strength", [1.0, 30.0])
@pytest.mark.parametrize("exact", [True, False], ids=["exact", "noisy"])
def test_uncertainties_where_the_background_was_subtracted(kind, strength, exact):
    pulls = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        for name in ("oP", "tP"):
            tth, area = lines_of(name, seed=seed)
            x, lines = scan(tth, strength * area, level=0.0, seed=seed)
            true = BACKGROUNDS[kind](x)
            taken = true if exact else true * (1 + 0.01 * np.sin(x / 3)) + rng.normal(0, 2)
            y = lines + rng.poisson(true) - taken
            found = decompose(x, 0.01 * y, noise=noise_of_pattern(0.01 * y)).peaks
            nearest, _ = matched(found, tth)
            miss = found.position[nearest] - tth
            hit = np.abs(miss) < 0.05
            assert np.all(hit[strength * area > 2000])
            pulls.append((miss / found.position_esd[nearest])[hit])
    pull = np.concatenate(pulls)
    assert 0.7 < np.sqrt(np.mean(pull**2)) < 1.4


def test_a_background_alone_has_no_lines():
    for seed in range(5):
        x, y = scan(np.empty(0), np.empty(0), seed=seed)
        found = decompose(x, y, noise=Noise())
        assert len(found.peaks) == 0
        true = 60 * (1 + 2 * np.exp(-(x - 8) / 8))
        assert np.median(np.abs(found.background / true - 1)) < 0.05


def test_overlapping_lines_are_told_apart():
    tth = np.array([20.0, 20.16, 35.0, 48.0, 48.14, 60.0])
    x, y = scan(tth, np.full(6, 20_000.0), seed=4)
    found = decompose(x, y, noise=Noise()).peaks
    nearest, extra = matched(found, tth)
    assert len(extra) == 0
    np.testing.assert_allclose(found.position[nearest], tth, atol=5 * found.position_esd[nearest].max())


def test_the_second_line_of_a_doublet_is_no_line_of_its_own():
    tth = np.array([30.0, 60.0, 100.0, 130.0])
    x, y = scan(tth, np.full(4, 30_000.0), doublet=True, high=140.0, seed=1)
    found = decompose(x, y, noise=Noise(), doublet=Doublet(CU1, CU2)).peaks
    np.testing.assert_allclose(found.position, tth, atol=0.01)
    naive = decompose(x, y, noise=Noise()).peaks
    assert len(naive) > 4, "without it the resolved ones are found twice"


def test_scale_of_the_intensity_does_not_matter():
    tth, area = lines_of("tP")
    x, y = scan(tth, area)
    counts = decompose(x, y, noise=noise_of_pattern(y)).peaks
    scaled = decompose(x, y * 0.37, noise=noise_of_pattern(y * 0.37)).peaks
    nearest, _ = matched(scaled, tth)
    mine, _ = matched(counts, tth)
    clear = area > 1000
    np.testing.assert_allclose(scaled.position[nearest][clear], counts.position[mine][clear], atol=2e-3)


def test_a_shifted_axis_shifts_the_lines():
    tth, area = lines_of("oP")
    x, y = scan(tth, area)
    here, there = decompose(x, y, noise=Noise()).peaks, decompose(x + 3.0, y, noise=Noise()).peaks
    assert len(here) == len(there)
    np.testing.assert_allclose(there.position, here.position + 3.0, atol=1e-5)
    np.testing.assert_allclose(there.position_esd, here.position_esd, rtol=1e-2)


def test_too_few_points():
    with pytest.raises(ValueError, match="at least 32"):
        decompose(np.arange(10.0), np.ones(10), noise=Noise())
