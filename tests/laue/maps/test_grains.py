"""Grains over a scan: against a fill by hand, in whatever equivalent setting each frame reports them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlindex.crystal.rotation import laue_rotations, misorientation, random_rotations, rotation_from_vector
from mlindex.crystal.spacegroup import space_group
from mlindex.formats.ctf import Phase
from mlindex.laue.maps import fields
from mlindex.laue.maps.grains import average_misorientation, linked, means, neighbouring_pairs
from mlindex.laue.maps.phases import rotations_of
from mlindex.laue.maps.scan import Scan
from mlindex.laue.materials import material


def flood(kind: np.ndarray) -> np.ndarray:
    """Connected regions of equal numbers (-1: none), by walking; from 1 in the order of their first place."""
    found, last = np.zeros(kind.shape, int), 0
    for start in np.ndindex(kind.shape):
        if kind[start] < 0 or found[start]:
            continue
        last += 1
        stack = [start]
        while stack:
            row, column = stack.pop()
            inside = 0 <= row < kind.shape[0] and 0 <= column < kind.shape[1]
            if not inside or found[row, column] or kind[row, column] != kind[start]:
                continue
            found[row, column] = last
            stack += [(row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)]
    return found


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 10**6), st.sampled_from(["m-3m", "6/mmm", "2/m"]))
def test_regions_are_those_of_a_flood_fill(rows, columns, seed, group):
    """A map of three orientations with holes: the grains are its connected regions, whatever setting a frame has."""
    rng = np.random.default_rng(seed)
    rotations, scan = laue_rotations(group), Scan(rows, columns)
    kind = rng.integers(-1, 3, (rows, columns))
    base = random_rotations(np.random.default_rng(1), 3)
    frame = np.flatnonzero(kind.ravel() >= 0)
    u = base[kind.ravel()[frame]] @ rotations[rng.integers(len(rotations), size=len(frame))]
    phase, score = np.zeros(len(frame), int), np.ones(len(frame))
    known = np.ones((rows, columns), bool)  # a frame without a grain is known to have none
    pairs = neighbouring_pairs(frame, phase, u, [rotations], scan, known)
    grain = np.zeros(scan.size, int)
    grain[frame] = linked(frame, pairs, score, 1.0)
    expected = flood(kind).ravel()
    assert (np.unique(np.stack([grain, expected], 1), axis=0).shape[0]) == len(np.unique(expected))
    sizes = np.bincount(grain)[1:]
    assert (np.diff(sizes) <= 0).all(), "the largest first"
    mean = means(grain[frame], phase, u, score, [rotations])
    assert mean.angle.max(initial=0) < 1e-4
    assert np.nanmax(np.append(average_misorientation(grain[frame], pairs), 0)) < 1e-4


def test_a_gradient_is_one_grain_and_the_limit_counts():
    """Frames 0.8 degrees apart are one grain at a limit of 1 degree, however far the ends are; and none at 0.5."""
    scan, rotations = Scan(1, 9), laue_rotations("m-3m")
    (base,) = random_rotations(np.random.default_rng(0), 1)
    angle = 0.8 * np.arange(9)
    u = rotation_from_vector(np.radians(angle)[:, None] * np.array([0.0, 0.0, 1.0])) @ base
    u = u @ rotations[np.arange(9)]
    frame, phase, score = np.arange(9), np.zeros(9, int), np.ones(9)
    pairs = neighbouring_pairs(frame, phase, u, [rotations], scan, np.ones((1, 9), bool))
    assert linked(frame, pairs, score, 0.5).tolist() == list(range(1, 10))
    grain = linked(frame, pairs, score, 1.0)
    assert grain.tolist() == [1] * 9
    mean = means(grain, phase, u, score, [rotations])
    np.testing.assert_allclose(mean.angle, np.abs(angle - angle.mean()), atol=1e-6)
    np.testing.assert_allclose(average_misorientation(grain, pairs), 0.8, atol=1e-6)
    np.testing.assert_allclose(misorientation(mean.u[0], u, rotations), mean.angle, atol=1e-6)


def test_several_grains_a_frame_and_two_phases():
    """Two grains in each frame that change places by score, and one of another phase with the same orientation."""
    scan, rotations = Scan(2, 2), [laue_rotations("m-3m"), laue_rotations("6/mmm")]
    a, b = random_rotations(np.random.default_rng(3), 2)
    frame = np.array([0, 0, 1, 1, 1, 2, 3, 3])
    u = np.stack([a, b, b, a, a, a, b, a])
    phase = np.array([0, 0, 0, 0, 1, 0, 0, 0])
    pairs = neighbouring_pairs(frame, phase, u, rotations, scan, np.ones((2, 2), bool))
    grain = linked(frame, pairs, np.ones(8), 1.0)
    assert grain.tolist() == [1, 2, 2, 1, 3, 1, 2, 1]


def test_each_is_the_others_nearest():
    """Of two alike crystals in each frame (0.4 degrees), the nearest are linked and they stay two."""
    scan, rotations = Scan(1, 2), laue_rotations("m-3m")
    (base,) = random_rotations(np.random.default_rng(0), 1)
    turn = [rotation_from_vector(np.radians([0.0, 0.0, angle])) for angle in (0.0, 0.4, 0.05, 0.45)]
    frame, phase = np.array([0, 0, 1, 1]), np.zeros(4, int)
    u = np.array(turn) @ base
    pairs = neighbouring_pairs(frame, phase, u, [rotations], scan, np.ones((1, 2), bool))
    assert linked(frame, pairs, np.array([2.0, 1, 1, 1]), 1.0).tolist() == [1, 2, 1, 2]


@pytest.mark.parametrize(("state", "grains"), [(fields.FAILED, 1), (fields.MISSING, 1), (fields.UNSOLVED, 2)])
def test_what_could_not_be_read_is_looked_across(state, grains):
    """A grain goes on behind a frame that nobody has seen, but not behind one without a crystal."""
    u = np.broadcast_to(np.eye(3), (2, 3, 3))
    maps = maps_of_cells(Scan(1, 3), np.array([0, 1, 2]), np.array([3, state, 3]), np.array([1, 0, 1]), u)
    assert len(maps.pixels) == grains and np.isnan(maps.points["kam"]).all(), "no frames side by side"
    assert maps.strongest(maps.points["grain"]).tolist() == [[1, 0, grains]]
    assert maps.state.tolist() == [[3, state, 3]]


def maps_of_cells(scan, number, state, count, u, **rest) -> fields.ScanMaps:
    """Maps of copper with these orientations, and no more."""
    n = len(u)
    crystal = material("Cu")
    grains = {
        "material": np.array(["Cu"] * n, object),
        "cell": np.repeat(crystal.cell[None], n, 0),
        "laue_group": np.array(["m-3m"] * n, object),
        "space_group": np.full(n, 225),
        "ub": np.asarray(u) @ crystal.b,
        "strain": np.zeros((n, 3, 3)),
        "strain_esd": np.full((n, 3, 3), 1e-4),
        "match_rate": np.full(n, 0.8),
        "score": np.arange(n, 0.0, -1),
        "n_matched": np.full(n, 30),
        "rms_px": np.full(n, 0.2),
    }
    return fields.maps_of(scan, number, state, count, grains, **rest)


def test_frames_in_any_order_and_none_at_all():
    u = random_rotations(np.random.default_rng(0), 3)
    there = maps_of_cells(Scan(2, 2), np.array([3, 0]), np.array([3, 3]), np.array([1, 2]), u)
    assert there.frame.tolist() == [0, 0, 3] and there.rank.tolist() == [0, 1, 0]
    np.testing.assert_array_equal(there.strongest(there.points["match_rate"]), [[0.8, np.nan], [np.nan, 0.8]])
    number = int(there.points["grain"][1])
    assert there.of_grain(there.points["grain"], number).tolist() == [[number, 0], [0, 0]]
    nothing = maps_of_cells(Scan(2, 2), np.array([1]), np.array([2]), np.array([0]), np.empty((0, 3, 3)))
    assert nothing.phases == () and nothing.strongest(nothing.points["kam"]).shape == (2, 2)


@pytest.mark.parametrize(
    "text",
    [
        *("Cu", "Ti", "ZrO2", "CuWO4", "TiO2", "Al2O3", "Q:P 31 1 2:5,5,6,90,90,120", "R:R -3 c:R:5,5,5,55,55,55"),
        *("M:P 1 1 21/b:4,5,6,90,90,100", "O:Pnma:4,5,6,90,90,90", "X:I 41/a:4,4,6,90,90,90"),
        *("Y:P a -3:4,4,4,90,90,90", "Z:R -3:H:5,5,9,90,90,120", "H:P 63/m:5,5,9,90,90,120"),
    ],
)
def test_the_symmetry_of_a_phase_is_that_of_its_material(text):
    """From cell, Laue class and number alone, in settings that are not the standard too."""
    crystal = material(text)
    phase = Phase(crystal.name, crystal.cell, crystal.laue_group, crystal.group.number)
    found, expected = rotations_of(phase), crystal.rotations
    assert len(found) == len(expected)
    assert np.abs(found[:, None] - expected).max((2, 3)).min(1).max() < 1e-6


def test_a_phase_without_a_number_has_the_symmetry_of_its_lattice_or_class():
    cell = np.array([4.0, 5.0, 6.0, 90.0, 90.0, 100.0])
    expected = space_group("P 1 1 2").rotations(cell)
    found = rotations_of(Phase("M", cell, "2/m"))
    assert np.abs(found[:, None] - expected).max((2, 3)).min(1).max() < 1e-6
    assert len(rotations_of(Phase("X", np.array([4.0, 4.0, 6.0, 90.0, 90.0, 90.0]), "4/m"))) == 4
