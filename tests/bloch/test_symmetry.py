"""Symmetry of projections: patterns of crystals from gemmi's structure factors show the plane group of their zone."""

from __future__ import annotations

from itertools import product

import gemmi
import numpy as np
import pytest

from mlindex.bloch import beams, propagate, starts, symmetry
from mlindex.crystal.electrons import electron_structure_factors
from mlindex.crystal.scattering import Structure

CUBIC, WURTZITE = (3.905, 3.905, 3.905, 90.0, 90.0, 90.0), (3.2498, 3.2498, 5.2066, 90.0, 90.0, 120.0)
TETRAGONAL, TRIGONAL = (4.594, 4.594, 2.959, 90.0, 90.0, 90.0), (4.913, 4.913, 5.405, 90.0, 90.0, 120.0)
PEROVSKITE = ("P m -3 m", CUBIC, [("Sr", 0, 0, 0), ("Ti", 0.5, 0.5, 0.5), ("O", 0.5, 0.5, 0)])
ZNO = ("P 63 m c", WURTZITE, [("Zn", 1 / 3, 2 / 3, 0.0), ("O", 1 / 3, 2 / 3, 0.382)])
RUTILE = ("P 42/m n m", TETRAGONAL, [("Ti", 0, 0, 0), ("O", 0.305, 0.305, 0)])
QUARTZ = ("P 32 2 1", TRIGONAL, [("Si", 0.47, 0, 2 / 3), ("O", 0.4135, 0.2669, 0.7858)])
# Crystal, zone, beams, and the plane group of the projection (International Tables A, "symmetry of special
# projections"), named after the order of the axis, m or g
CRYSTALS = {
    "perovskite [001]": (PEROVSKITE, (0, 0, 1), 25, "p4m"),
    "wurtzite [001]": (ZNO, (0, 0, 1), 19, "p6m"),
    "rutile [001]": (RUTILE, (0, 0, 1), 21, "p4g"),
    "rutile [100]": (RUTILE, (1, 0, 0), 15, "p2m"),
    "quartz [001]": (QUARTZ, (0, 0, 1), 19, "p3m"),
}


def crystal(name: str, steps: int = 6, mrad: float = 40.0) -> tuple[beams.Geometry, np.ndarray]:
    """Geometry with tilts that all symmetries map to each other but the hexagonal ones, and U."""
    (group, cell, sites), zone, count, _ = CRYSTALS[name]
    images: dict[tuple, tuple[str, tuple[float, ...]]] = {}
    for operation, (element, *fraction) in product(gemmi.SpaceGroup(group).operations(), sites):
        place = tuple(x % 1.0 for x in operation.apply_to_xyz(fraction))
        images[element, tuple(round(x * 1000) % 1000 for x in place)] = (element, place)
    elements, places = zip(*images.values(), strict=True)
    structure = Structure(elements, np.array(places), np.ones(len(places)), np.zeros(len(places)))
    tilt, _ = beams.tilt_disc(steps, mrad)
    at = beams.geometry(beams.shell_beams(cell, zone, count), tilt, cell=cell, zone=zone, voltage_kv=120.0)
    u = electron_structure_factors(structure, cell, at.dhkl, 120.0)
    u[len(u) // 2] = 0.0
    return at, u


@pytest.mark.parametrize("name", CRYSTALS)
def test_the_projection_of_a_crystal_obeys_its_plane_group(name):
    at, u = crystal(name)
    pattern = propagate.intensities(u, at, 300.0)
    ties = symmetry.hypotheses(pattern, at, 1e-3)
    assert ties[-1].name == "p1"
    # Structure factors obey it at one of the origins that are tried, which changes phases alone
    kept = [tie.name for tie in ties if np.abs(symmetry.centred(u, tie, at)).sum() > (1 - 1e-6) * np.abs(u).sum()]
    assert kept[0] == CRYSTALS[name][3]
    assert ties[0].unknowns < len(at.dhkl) / 3


def test_a_pattern_without_symmetry_allows_none():
    at, u = crystal("perovskite [001]")
    rng = np.random.default_rng(0)
    half = u[len(u) // 2 + 1 :] + 0.02 * (rng.normal(size=len(u) // 2) + 1j * rng.normal(size=len(u) // 2))
    pattern = propagate.intensities(np.concatenate([half[::-1].conj(), [0.0], half]), at, 300.0)
    assert [tie.name for tie in symmetry.hypotheses(pattern, at, 0.05)] == ["p1"]


def test_what_the_tilts_cannot_deny_is_allowed():
    at, u = crystal("perovskite [001]")
    one_sided = at.part(np.flatnonzero((at.kt[:, 0] > 0.01) & (at.kt[:, 1] > at.kt[:, 0] + 0.01)))
    names = [tie.name for tie in symmetry.hypotheses(propagate.intensities(u, one_sided, 300.0), one_sided, 1e-3)]
    assert names[0] == "p4m"


@pytest.mark.parametrize("name", CRYSTALS)
def test_far_from_bragg_intensities_tell_the_sizes_of_structure_factors(name):
    """Weak scattering, where the kinematic formula is the law: the strong ones within a quarter."""
    at, u = crystal(name, 12, 83.0)
    sizes = starts.kinematic_sizes(propagate.intensities(0.05 * u, at, 870.0), at)
    beam = sizes > 0
    strong = beam & (np.abs(u) > 0.3 * np.abs(u[beam]).max())
    np.testing.assert_allclose(sizes[strong], 0.05 * np.abs(u[strong]), rtol=0.25)
    assert np.corrcoef(sizes[beam], np.abs(u[beam]))[0, 1] > 0.97
