"""Whole frames: every grain and nothing else, for each Laue class; noise and other crystals; Lauetools' own frames."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mlindex.crystal.rotation import misorientation
from mlindex.laue import assign, search
from mlindex.laue.geometry import Detector, direction_from_pixel, q_from_kf
from mlindex.laue.materials import material
from mlindex.laue.simulate import random_grains, simulate_frame
from mlindex.records import InputError

DETECTOR = Detector(79.553, 979.32, 932.31, 0.37, 0.447)
REFERENCE = Path(__file__).parents[1] / "reference" / "lauetools"


def simulated(names, seed, strain=0.0, **options):
    rng = np.random.default_rng(seed)
    return simulate_frame(rng, random_grains(rng, [material(name) for name in names], strain), DETECTOR, **options)


def indexed(frame, names, **options):
    return search.index_frame(frame.x, frame.y, frame.intensity, DETECTOR, [material(n) for n in names], **options)


def partners(found, frame):
    """For each grain found the index of the true one within 0.1 degrees, or -1."""
    result = []
    for grain in found:
        angles = [
            float(misorientation(grain.u, true.u, grain.material.rotations))
            if true.material.name == grain.material.name
            else 180.0
            for true in frame.grains
        ]
        result.append(int(np.argmin(angles)) if min(angles) < 0.1 else -1)
    return result


@pytest.mark.parametrize("names", [["Cu"], ["Si"] * 3, ["Ti"] * 3, ["ZrO2"] * 3, ["CuWO4"], ["GaN", "GaN", "Si"]])
def test_every_grain_and_no_other(names):
    frame = simulated(names, seed=11)
    found = indexed(frame, sorted(set(names)))
    assert sorted(partners(found, frame)) == list(range(len(names)))
    assert [g.score for g in found] == sorted((g.score for g in found), reverse=True)
    owned = np.concatenate([g.spots for g in found])
    assert len(owned) == len(set(owned.tolist()))  # no spot twice
    for grain, true in zip(found, partners(found, frame), strict=True):
        assert grain.n_matched == len(grain.spots) == len(grain.hkl) <= grain.n_predicted
        assert grain.match_rate == pytest.approx(grain.n_matched / grain.n_predicted) and grain.rms_px < 0.3
        assert (frame.grain[grain.spots] == true).mean() > 0.97
        assert (frame.grain == true).sum() <= 1.03 * grain.n_matched + 2
        # The reflections are primitive, and ub takes them to where the spots are
        np.testing.assert_array_equal(np.gcd.reduce(grain.hkl, axis=1), 1)
        q = grain.hkl @ grain.ub.T
        seen = q_from_kf(direction_from_pixel(frame.x[grain.spots], frame.y[grain.spots], DETECTOR))
        cosine = np.einsum("ij,ij->i", q, seen) / np.linalg.norm(q, axis=1)
        assert np.degrees(np.arccos(np.clip(cosine, -1, 1))).max() < 0.05
        angle = misorientation(grain.u, np.eye(3))  # the setting that turns least
        assert angle == pytest.approx(float(misorientation(np.eye(3), grain.u, grain.material.rotations)), abs=1e-3)


def test_a_pseudo_symmetric_crystal_is_not_taken_for_its_relative():
    """Kyanite without atoms, five grains: of 950 rays each, a turned one explains 400."""
    kyanite = "kyanite:P-1:7.112,7.853,5.575,89.99,101.11,106.03"
    rng = np.random.default_rng(10)
    chosen = material(kyanite)
    frame = simulate_frame(rng, random_grains(rng, [chosen] * 5), DETECTOR)
    found = search.index_frame(frame.x, frame.y, frame.intensity, DETECTOR, [chosen])
    assert sorted(partners(found, frame)) == [0, 1, 2, 3, 4]


def test_strained_grains_are_found_with_their_strain():
    frame = simulated(["GaN"] * 2, seed=5, strain=1e-3)
    found = indexed(frame, ["GaN"])
    assert sorted(partners(found, frame)) == [0, 1]
    for grain in found:
        assert np.abs(grain.strain).max() > 3 * grain.strain_esd.min()
        assert np.trace(grain.strain) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("n", [5, 60, 1200])
def test_noise_holds_no_grain(n):
    rng = np.random.default_rng(n)
    x, y = rng.uniform(0.5, [[2016.5], [2018.5]], (2, n))
    assert search.index_frame(x, y, rng.exponential(size=n), DETECTOR, [material("Cu"), material("ZrO2")]) == []
    radius, angle = 600 + 20 * rng.normal(size=n), rng.uniform(0, 2 * np.pi, n)  # an amorphous ring
    x, y = 1008 + radius * np.cos(angle), 1009 + radius * np.sin(angle)
    assert search.index_frame(x, y, None, DETECTOR, [material("Cu")]) == []


@pytest.mark.parametrize(
    ("there", "sought"), [("Cu", "GaN"), ("Si", "GaN"), ("Ti", "GaN"), ("Si", "Cu"), ("ZrO2", "CuWO4"), ("GaN", "Si")]
)
def test_another_material_is_not_reported(there, sought):
    """Lattices that share directions: cubic and hexagonal close packing, silicon's and copper's cubes."""
    assert indexed(simulated([there] * 2, seed=21), [sought]) == []


def test_dim_grains_that_show_a_tenth_of_their_rays():
    """The strongest rays of a dim grain are of low energy, as those of another crystal can be."""
    frame = simulated(["ZrO2"] * 5, seed=1, faintest=0.03)
    assert sorted(partners(indexed(frame, ["ZrO2"]), frame)) == [0, 1, 2, 3, 4]


def test_a_lattice_of_the_same_directions_is_not_taken_for_another():
    """Both are cubic, with the same directions, but the spots of copper end at two thirds of the band."""
    assert indexed(simulated(["Cu"], seed=10), ["Si"]) == []


@pytest.mark.parametrize("highest", [20.0, 23.0, 30.0])
def test_a_highest_energy_that_is_set_wrong_costs_no_grain(highest):
    """Spots beyond the band are no proof of another material as long as they are fewer than those inside."""
    frame = simulated(["Ge"], seed=4, faintest=1e-3)
    found = indexed(frame, ["Ge"], energy=(5.0, highest))
    assert partners(found, frame) == [0]


@pytest.mark.parametrize(("name", "group"), [("Cu1", "Fm-3m"), ("Si1", "Fd-3m:1"), ("ZrO2_1", "P21/c")])
def test_frames_of_lauetools(name, group):
    """Spots that Lauetools 3.2.19 predicts, without noise: its orientation, and nearly all of its reflections."""
    truth = json.loads((REFERENCE / "sim1_truth.json").read_text())[name]
    cell = ",".join(str(v) for v in truth["lattice"])
    chosen = material(f"{truth['material']}:{group}:{cell}")
    spots = np.loadtxt(REFERENCE / f"sim1_{name}_truth.txt")
    spots = spots[spots[:, :2].min(1) > 0.5]
    found = search.index_frame(spots[:, 0], spots[:, 1], None, DETECTOR, [chosen], energy=(5.0, 22.0))
    assert len(found) == 1 and found[0].n_matched >= 0.97 * len(spots)
    assert misorientation(found[0].u, np.array(truth["U"][0]), chosen.rotations) < 1e-3
    ours = found[0].hkl @ found[0].ub.T
    theirs = spots[found[0].spots, 2:5] @ (np.array(truth["U"][0]) @ chosen.b).T
    cross = np.cross(ours, theirs) / (np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1))[:, None]
    assert np.abs(cross).max() < 1e-4


def test_a_bound_on_the_grains_and_a_neighbour_that_is_tried_first():
    frame = simulated(["Ti"] * 3, seed=2)
    every = indexed(frame, ["Ti"])
    assert len(every) == 3
    assert len(indexed(frame, ["Ti"], grains=2)) == 2
    guesses = [(0, g.ub) for g in every] + [(0, np.linalg.qr(np.ones((3, 3)) + np.eye(3))[0] @ material("Ti").b)]
    again = indexed(frame, ["Ti"], guesses=guesses)
    for one, other in zip(every, again, strict=True):
        np.testing.assert_allclose(one.u, other.u, atol=1e-7)


def test_the_answer_does_not_depend_on_the_order_of_the_spots():
    frame = simulated(["Cu"] * 2, seed=9)
    shuffled = np.random.default_rng(0).permutation(len(frame.x))
    first = indexed(frame, ["Cu"])
    second = search.index_frame(
        frame.x[shuffled], frame.y[shuffled], frame.intensity[shuffled], DETECTOR, [material("Cu")]
    )
    assert len(first) == len(second) == 2
    for one, other in zip(first, second, strict=True):
        np.testing.assert_allclose(one.u, other.u, atol=1e-9)
        assert set(one.spots.tolist()) == set(shuffled[other.spots].tolist())


def test_bad_spots_are_named():
    good = np.linspace(100, 1900, 10)
    with pytest.raises(InputError, match="no finite position"):
        search.index_frame(np.append(good, np.nan), np.append(good, 5.0), None, DETECTOR, [material("Cu")])
    with pytest.raises(InputError, match="1 of 11 spots lie outside the 2016 x 2018 pixels"):
        search.index_frame(np.append(good, 2500.0), np.append(good, 5.0), None, DETECTOR, [material("Cu")])


@pytest.mark.parametrize(
    ("name", "band", "says"),
    [
        ("Cu", (1.0, 2.0), "Cu has no reflection between 1 and 2 keV"),  # lambda > 2 d of 111
        ("Cu", (1.0, 4.6), "Cu has hardly a reflection between 1 and 4.6 keV"),
        ("nm:F m -3 m:0.3615,0.3615,0.3615,90,90,90", (5.0, 23.0), "nm has no reflection .* check the .* cell"),
    ],
)
def test_a_material_that_shows_nothing_is_named(name, band, says):
    with pytest.raises(InputError, match=says):
        indexed(simulated(["Cu"], seed=1), ["Cu", name], energy=band)


def test_one_program_serves_all_frames_of_a_size():
    """Frames of other grains and other numbers of spots compile nothing anew."""
    indexed(simulated(["Cu"] * 2, seed=30), ["Cu"])
    compiled = assign.screen._cache_size(), assign.screen_all._cache_size()
    for seed in (31, 32):
        assert len(indexed(simulated(["Cu"] * 2, seed=seed), ["Cu"])) == 2
    assert (assign.screen._cache_size(), assign.screen_all._cache_size()) == compiled
