"""Random crystals as starts: patterns from gemmi's structure factors name theirs, and every one obeys its symmetry."""

from __future__ import annotations

import numpy as np
import pytest

from mlindex.bloch import beams, crystals, propagate, starts, symmetry
from mlindex.crystal.electrons import electron_structure_factors
from mlindex.crystal.scattering import Structure

# Atoms on axes of p4m and p6m, two kinds in the first, a honeycomb of one kind (in projection) in the second
PEROVSKITE = ((3.905, 3.905, 3.905, 90.0, 90.0, 90.0), ("Sr", "Ti", "O", "O", "O"), "p4m")
WURTZITE = ((3.2498, 3.2498, 5.2066, 90.0, 90.0, 120.0), ("Zn", "Zn", "O", "O"), "p6m")
PLACES = {
    "p4m": ((0, 0, 0), (0.5, 0.5, 0.5), (0.5, 0.5, 0), (0.5, 0, 0.5), (0, 0.5, 0.5)),
    "p6m": ((1 / 3, 2 / 3, 0), (2 / 3, 1 / 3, 0.5), (1 / 3, 2 / 3, 0.382), (2 / 3, 1 / 3, 0.882)),
}


def pattern_of(crystal: tuple, count: int, depth: float) -> tuple[beams.Geometry, np.ndarray, symmetry.Tie, np.ndarray]:
    """Geometry, U, the symmetry of the projection, and the pattern at a thickness (A)."""
    cell, elements, name = crystal
    structure = Structure(elements, np.array(PLACES[name]), np.ones(len(elements)), np.zeros(len(elements)))
    tilt, _ = beams.tilt_disc(8, 40.0)
    at = beams.geometry(beams.shell_beams(cell, (0, 0, 1), count), tilt, cell=cell, zone=(0, 0, 1), voltage_kv=120.0)
    u = electron_structure_factors(structure, cell, at.dhkl, 120.0)
    u[len(u) // 2] = 0.0
    pattern = propagate.intensities(u, at, depth)
    tie = next(t for t in symmetry.hypotheses(pattern, at, 1e-3) if t.name == name)
    return at, u, tie, pattern


def sizes_of(pattern: np.ndarray, at: beams.Geometry, tie: symmetry.Tie) -> np.ndarray:
    """Kinematic sizes of the orbits (1/A^2)."""
    upper = starts.kinematic_sizes(pattern, at)[len(at.dhkl) // 2 + 1 :]
    return np.bincount(tie.orbit, upper, tie.count) / np.maximum(np.bincount(tie.orbit, upper > 0, tie.count), 1)


@pytest.mark.parametrize("count", [7, 19])
def test_one_of_five_starts_has_the_thickness_and_nearly_the_structure_factors(count):
    at, u, tie, pattern = pattern_of(WURTZITE, count, 320.0)
    # The origin is free: of the crystals that differ by a shift, the pattern names none
    away = symmetry.centred(u, tie, at)
    shifted = [away * np.exp(1j * np.pi * (at.dhkl @ np.array(s))) for s in np.ndindex(2, 2, 1)]
    alike = []
    for seed in range(5):
        found = crystals.likely(
            pattern,
            at,
            tie,
            sizes=sizes_of(pattern, at, tie),
            order=starts.simplest_first(pattern, at),
            limits=(50.0, 800.0),
            step=5.0,
            rng=np.random.default_rng(seed),
        )
        assert found is not None
        near = abs(found[1] - 320.0) < 12.0
        alike.append(
            near * max(abs(np.vdot(found[0], v)) for v in shifted) / np.linalg.norm(found[0]) / np.linalg.norm(u)
        )
    assert max(alike) > 0.9


def test_crystals_that_are_drawn_obey_the_symmetry_and_have_the_sizes():
    at, _, tie, pattern = pattern_of(PEROVSKITE, 13, 320.0)
    sizes = sizes_of(pattern, at, tie)
    known = np.append(sizes, 0.0)[tie.orbit]
    for u in crystals.drawn(sizes, at, tie, np.random.default_rng(1)):
        np.testing.assert_allclose(u, u[::-1].conj(), atol=1e-15)
        np.testing.assert_allclose(tie.project(u)[len(known) + 1 :], u[len(known) + 1 :], atol=1e-15)
        upper = np.abs(u[len(known) + 1 :])[known > 0]
        assert np.linalg.norm(upper) == pytest.approx(np.linalg.norm(known))


def test_without_sizes_there_is_no_crystal():
    at, _, tie, pattern = pattern_of(PEROVSKITE, 9, 320.0)
    given = {"order": np.arange(len(pattern)), "limits": (50.0, 800.0), "step": 5.0, "rng": np.random.default_rng(0)}
    assert crystals.likely(pattern, at, tie, sizes=np.zeros(tie.count), **given) is None
