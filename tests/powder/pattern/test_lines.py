"""The list of a pattern: q2 with its uncertainty, the tube's other lines left out, the stage that takes it."""

from __future__ import annotations

import numpy as np
import pytest

from mlindex.config import PowderSettings
from mlindex.formats.pattern import Pattern
from mlindex.powder.pattern.lines import lines_of_pattern
from mlindex.powder.stage import PowderStage
from mlindex.records import InputError
from tests.powder.pattern.scans import CU1, lines_of, scan
from tests.powder.patterns import q2_from_tth


def pattern_of(x, y, **more):
    return Pattern(
        **{"id": "x", "source": "x.xy", "x": x, "y": y, "sigma": None, "scan": "tth", "wavelength": CU1, **more}
    )


@pytest.fixture(scope="module")
def measured():
    tth, area = lines_of("tP")
    return tth, area, *scan(tth, area, doublet=True)


def test_q2_of_a_doublet(measured):
    tth, area, x, y = measured
    for pattern, anode in ((pattern_of(x, y), "Cu"), (pattern_of(x, y, wavelength=1.5418), None)):
        found = lines_of_pattern(pattern, anode=anode)
        assert found.wavelength == pytest.approx(CU1) and "K alpha 1 and 2" in found.beside["radiation"]
        true = q2_from_tth(tth[area > 600])
        at = np.abs(found.q2[None, :] - true[:, None]).argmin(axis=1)
        pull = (found.q2[at] - true) / found.q2_esd[at]
        assert np.sqrt(np.mean(pull**2)) < 1.6
        np.testing.assert_allclose(found.two_theta[at], tth[area > 600], atol=0.02)
        assert found.record()["lines"][0]["q2"] == pytest.approx(found.q2[0])


@pytest.mark.parametrize("kind", ["counts", "share", "uncertain", "subtracted"])
def test_the_scale_of_the_intensity_does_not_matter(measured, kind):
    tth, area, _, _ = measured
    x, y = scan(tth, area)
    sigma = np.sqrt(y + 1) if kind == "uncertain" else None
    y = {"share": 0.37 * y, "subtracted": y - 60 * (1 + 2 * np.exp(-(x - 8) / 8))}.get(kind, y)
    here = lines_of_pattern(pattern_of(x, y, sigma=sigma))
    for scale in (1e-6, 1e6, 1e9):
        there = lines_of_pattern(pattern_of(x, scale * y, sigma=None if sigma is None else scale * sigma))
        assert len(there) == len(here)
        np.testing.assert_allclose(there.two_theta, here.two_theta, atol=1e-6)
        np.testing.assert_allclose(there.q2_esd, here.q2_esd, rtol=1e-3)
        np.testing.assert_allclose(there.intensity, scale * here.intensity, rtol=1e-3)
        np.testing.assert_allclose(there.height, scale * here.height, rtol=1e-3)
        np.testing.assert_allclose(there.significance, here.significance, rtol=1e-3)


def test_parts_of_different_step(tmp_path):
    tth, area = lines_of("oP", high=60.0)
    parts = [scan(tth, area, low=low, high=high, step=step) for low, high, step in ((8, 30, 0.02), (30, 62, 0.03))]
    path = tmp_path / "scan.xy"
    rows = [(a, b) for part in parts for a, b in zip(*part, strict=True)]
    path.write_text("".join(f"{a:.3f} {b:.0f}\n" for a, b in rows))
    (item,) = PowderStage(PowderSettings(quantity="tth", wavelength=CU1)).read(str(path))
    found = item.arrays["q2"]
    strong = q2_from_tth(tth[area > 600])
    assert np.abs(found[None, :] - strong[:, None]).min(axis=1).max() < 3e-4
    assert len(found) <= len(tth)


def test_over_q_and_over_2theta_agree(measured):
    tth, area, _, _ = measured
    x, y = scan(tth, area)
    by_angle = lines_of_pattern(pattern_of(x, y))
    by_q = lines_of_pattern(pattern_of(2 * np.sin(np.radians(x / 2)) / CU1, y, scan="q", wavelength=None))
    assert not by_q.angles and by_q.peak_list().wavelength is None
    known = lines_of_pattern(pattern_of(2 * np.sin(np.radians(x / 2)) / CU1, y, scan="q"))
    assert known.peak_list().wavelength == CU1, "its errors are those of angles, and a zero shift can be fitted"
    named = lines_of_pattern(pattern_of(2 * np.sin(np.radians(x / 2)) / CU1, y, scan="q", wavelength=None), anode="Cu")
    assert any("over q" in note for note in named.notes) and len(named) == len(by_q)
    clear = by_angle.significance > 20
    miss = np.abs(by_q.q2[None, :] - by_angle.q2[clear][:, None]).min(axis=1)
    assert np.all(miss < 4 * by_angle.q2_esd[clear])


def test_satellites_of_the_tube_are_left_out():
    tth = np.array([20.0, 30.0, 41.0, 47.0, 55.0, 64.0, 68.0])
    area = np.full(7, 300_000.0)
    beta = 2 * np.degrees(np.arcsin(np.sin(np.radians(tth[:2] / 2)) * 1.392234 / CU1))
    x, y = scan(np.append(tth, beta), np.append(area, [6000.0, 6000.0]), doublet=False)
    with_tube = lines_of_pattern(pattern_of(x, y), anode=None, weakest=0.0)
    assert np.abs(with_tube.two_theta[:, None] - beta).min(axis=0).max() < 0.02
    x, y = scan(np.append(tth, beta), np.append(area, [6000.0, 6000.0]), doublet=True)
    without = lines_of_pattern(pattern_of(x, y), anode="Cu")
    assert np.abs(without.two_theta[:, None] - beta).min() > 0.1
    assert any("K beta" in note for note in without.notes)
    np.testing.assert_allclose(without.two_theta, tth, atol=0.01)


def test_nothing_there():
    x, y = scan(np.empty(0), np.empty(0))
    with pytest.raises(InputError, match=r"x\.xy: has no line"):
        lines_of_pattern(pattern_of(x, y))
    with pytest.raises(InputError, match="unknown"):
        lines_of_pattern(pattern_of(x, y), anode="Zn")


def test_the_stage_takes_a_pattern(measured, tmp_path):
    tth, _, x, y = measured
    path = tmp_path / "scan.xy"
    path.write_text("".join(f"{a:.2f} {b:.0f}\n" for a, b in zip(x, y, strict=True)))
    (item,) = PowderStage(PowderSettings(wavelength=1.5418)).read(str(path))
    assert item.attrs["wavelength"] == pytest.approx(CU1)
    assert np.abs(item.arrays["q2"][None, :] - q2_from_tth(tth[5:6])[:, None]).min() < 2e-4
    with pytest.raises(InputError, match="needs a wavelength"):
        PowderStage(PowderSettings()).read(str(path))
