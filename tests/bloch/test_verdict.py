"""What counts as solved where the direct beam holds most of a pattern, where no crystal is, and beyond the limits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import f

from mlindex.bloch import judge, noise, search, verdict
from mlindex.bloch.beams import Geometry, geometry, shell_beams, tilt_disc
from mlindex.bloch.judge import Solution, with_origin
from mlindex.bloch.propagate import intensities
from mlindex.bloch.simulate import counted, random_u
from mlindex.bloch.stage import BlochStage
from mlindex.config import BlochSettings
from mlindex.records import Item, Status
from mlindex.stage import solve
from tests.bloch.test_simulate import CUBIC

AT = {"cell": CUBIC, "zone": (0, 0, 1), "voltage_kv": 120.0}


def square(count: int = 13, steps: int = 8) -> Geometry:
    return geometry(shell_beams(CUBIC, (0, 0, 1), count), tilt_disc(steps, 70.0)[0], **AT)


def fit(seen: np.ndarray, model: np.ndarray, thickness: float = 200.0) -> Solution:
    u = np.zeros(3, complex)
    r = judge.r_factor(seen, model)
    return Solution(u, np.zeros(3), thickness, 0.1, r, r, model, 0)


def reason(seen: np.ndarray, model: np.ndarray, at: Geometry, thickness: float = 200.0) -> str:
    options = {"quantum": noise.quantum(seen, at), "unknown": len(at.dhkl), "limits_nm": (10.0, 100.0)}
    return verdict.why_not(fit(seen, model, thickness), seen, at.origin, **options)


def weak(at: Geometry, seed: int, largest: float = 0.003) -> tuple[np.ndarray, np.ndarray]:
    """A crystal that scatters little at 20 nm, and the pattern of its U, made to scatter as much, at 68 nm."""
    u = with_origin(random_u(np.random.default_rng(seed), at.dhkl, largest), at)
    right, other = intensities(u, at, 200.0), intensities(u, at, 680.0)
    return right, intensities(u * np.sqrt((1 - right[:, 0].mean()) / (1 - other[:, 0].mean())), at, 680.0)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("counts", [None, 1e5, 1e4])
def test_the_diffracted_beams_tell_a_wrong_crystal_that_scatters_little(seed, counts):
    """R of all beams is within its limit for the truth, for another thickness, and for no crystal at all."""
    at = square()
    right, wrong = weak(at, seed)
    seen = right if counts is None else counted(np.random.default_rng(seed), right, counts)
    nothing = np.zeros_like(seen)
    nothing[:, at.origin] = 1.0
    limit = noise.largest_r(noise.r_of_noise(right, noise.quantum(seen, at)))
    assert max(judge.r_factor(seen, model) for model in (right, wrong, nothing)) < limit
    assert reason(seen, right, at) == ""
    assert "which the direct beam makes small: the diffracted beams are off by" in reason(seen, wrong, at)
    assert "the diffracted beams are off by 1 of what they are" in reason(seen, nothing, at)


@pytest.mark.parametrize(("background", "counts"), [(0.0, 1e3), (0.0, 1e5), (1e-3, 1e3), (1e-3, 1e5)])
def test_a_pattern_without_a_crystal_is_unsolved_whatever_fits_it(background, counts):
    at = square(5, 6)
    clean = intensities(np.zeros(len(at.dhkl), complex), at, 200.0) + background
    seen = counted(np.random.default_rng(1), clean, counts)
    arrays = {"intensity": seen, "hkl": at.hkl, "tilt": at.kt / at.k0 * 1e3}
    arrays |= {"cell": np.array(CUBIC), "zone": np.array([0, 0, 1])}
    stage = BlochStage(BlochSettings(seconds=0.5))
    (result,) = solve(stage, [Item("blank", "blank.h5", arrays, {"voltage_kv": 120.0})])
    assert result.status is Status.UNSOLVED and ("shows no crystal" in result.reason or background)
    assert "\n" not in result.reason and "fit_scale" not in result.reason


def test_a_search_does_not_end_with_a_small_r_that_is_of_the_direct_beam(monkeypatch):
    """The first start beyond 28 nm ends at 63 nm, its R that of noise; the others find the 20 nm of the truth."""
    at = square(5, 5)
    right, _ = weak(at, 0)
    seen = counted(np.random.default_rng(0), right, 1e4)
    monkeypatch.setattr(search, "_STARTS", 8)
    found = search.invert(seen, at, thickness=(280.0, 500.0))[0]
    off, most = noise.diffracted(seen, found.intensity, noise.quantum(seen, at), at.origin)
    assert off < most and found.thickness == pytest.approx(200.0, abs=5)
    assert "a thickness of 20" in verdict.why_not(
        *(found, seen, at.origin), quantum=noise.quantum(seen, at), unknown=len(at.dhkl), limits_nm=(28.0, 50.0)
    )


@pytest.mark.parametrize(("seed", "largest", "counts"), [(1, 0.01, 1e4), (5, 0.005, 1e5)])
def test_few_beams_do_not_tell_another_thickness_than_the_one_that_fits_best(seed, largest, counts):
    """At 65 and 79 nm a weak crystal explains 5 beams nearly as well: R is that of noise, the weighted R is not."""
    at = geometry(shell_beams(CUBIC, (0, 0, 1), 5), tilt_disc(5, 60.0)[0], **AT)
    clean = intensities(with_origin(random_u(np.random.default_rng(seed), at.dhkl, largest), at), at, 180.0)
    found = search.invert(counted(np.random.default_rng(0), clean, counts), at, thickness=(50.0, 1000.0))
    assert found[0].thickness == pytest.approx(180.0, abs=4 * found[0].thickness_sigma)


@pytest.mark.parametrize(("thickness", "inside"), [(40.0, False), (99.5, True), (1005.0, True), (1100.0, False)])
def test_a_thickness_beyond_the_limits_is_no_solution(thickness, inside):
    at = square(5, 4)
    clean = intensities(random_u(np.random.default_rng(0), at.dhkl, 0.1), at, thickness)
    told = reason(clean, clean, at, thickness)
    assert (told == "") == inside
    assert inside or f"a thickness of {thickness / 10:g} nm, which is outside of the limits 10 to 100" in told


@given(seed=st.integers(0, 10**6), unknown=st.integers(1, 30))
def test_the_ratio_is_that_of_the_f_test(seed, unknown):
    """Least squares of noise with columns that know nothing of it: the ratio is none of the tails of the F test."""
    rng = np.random.default_rng(seed)
    seen = rng.normal(size=(60, 4)) + 5
    part = rng.normal(size=(60, 4, unknown))
    design = np.concatenate([np.tile(np.eye(4), (60, 1)), (part - part.mean(0)).reshape(240, unknown)], 1)
    model = (design @ np.linalg.lstsq(design, seen.ravel(), rcond=None)[0]).reshape(60, 4)
    with_direct = [np.insert(each, 2, 1.0, 1) for each in (seen, model)]
    ratio = verdict.crystal_ratio(*with_direct, 2, unknown)
    # The four means are unknowns too, which the ratio of many intensities leaves out
    assert ratio * (240 - unknown - 4) / (240 - unknown) == pytest.approx(_f_by_hand(seen, model, unknown), rel=1e-9)
    assert 1e-7 < f.sf(ratio, unknown, 240 - unknown) < 1 - 1e-7


def _f_by_hand(seen: np.ndarray, model: np.ndarray, unknown: int) -> float:
    left = np.sum((seen - model) ** 2)
    return float((60 * seen.var(0).sum() - left) / left * (240 - 4 - unknown) / unknown)


@pytest.mark.parametrize("counts", [300.0, 1e3])
def test_noise_of_the_diffracted_beams_is_within_its_limit_and_twice_as_much_is_not(counts):
    at = square(13, 12)
    clean = intensities(random_u(np.random.default_rng(2), at.dhkl, 0.01), at, 200.0)
    rng = np.random.default_rng(3)
    for _ in range(20):
        seen = counted(rng, clean, counts)
        one = noise.quantum(seen, at)
        off, most = noise.diffracted(seen, clean, one, at.origin)
        assert off < most
        off, most = noise.diffracted(seen, 2 * clean - seen, one, at.origin)
        assert off > most
