"""Absence patterns against gemmi's single-reflection test, and against the rules in the International Tables."""

from __future__ import annotations

from itertools import permutations

import gemmi
import numpy as np
import pytest

from mlindex.crystal.extinctions import extinction_groups, line_members, space_groups
from mlindex.crystal.lattice import BRAVAIS, allowed
from mlindex.crystal.reflections import line_key, reference_hkl


@pytest.mark.parametrize("name", BRAVAIS)
def test_masks_against_gemmi(name):
    hkl = reference_hkl(name, 60)
    found = extinction_groups(name, hkl)
    assert not found.mask[0].any() and len(np.unique(found.mask, axis=0)) == len(found.mask)
    lattice = BRAVAIS[name]
    q2_system = "hexagonal" if name == "hR" else lattice.system
    top = int(np.abs(hkl).max())
    box = np.stack(np.meshgrid(*[np.arange(-top - 2, top + 3)] * 3, indexing="ij"), -1).reshape(-1, 3)
    box = box[allowed(box, lattice.centring)]
    keys = line_key(box, q2_system)
    # one reflection at a time, with the members of its line found by brute force
    rows = list(range(0, len(found.names), max(1, len(found.names) // 6)))
    for row in rows:
        group = gemmi.SpaceGroup(found.names[row] + (":H" if name == "hR" else "")).operations()
        assert gemmi.SpaceGroup(found.names[row]).number == found.numbers[row]
        for reflection, absent in list(zip(hkl, found.mask[row], strict=True))[::3]:
            line = box[np.all(keys == line_key(reflection, q2_system), axis=1)]
            assert absent == all(group.is_systematically_absent([int(i) for i in r]) for r in line)


@pytest.mark.parametrize("name", BRAVAIS)
def test_every_space_group_has_a_row(name):
    hkl = reference_hkl(name, 300)
    found = extinction_groups(name, hkl)
    members, owner = line_members(hkl, name)
    assert set(owner.tolist()) == set(range(len(hkl)))
    for group in space_groups(name):
        rows = [n for n, symbols in enumerate(found.members) if group.hm in symbols]
        assert rows
        absent = group.operations().systematic_absences(members.astype(np.int32))
        expected = np.array([absent[owner == i].all() for i in range(0, len(hkl), 7)])
        assert any(np.array_equal(found.mask[row][::7], expected) for row in rows)


def test_all_space_groups_are_covered_once():
    numbers = [{group.number for group in space_groups(name)} for name in BRAVAIS]
    assert sum(len(n) for n in numbers) == 230
    assert set().union(*numbers) == set(range(1, 231))


def test_monoclinic_patterns_are_those_of_the_tables():
    """International Tables A (2016), table 1.6.4.3: eight patterns for P, two for C (unique axis b)."""
    hkl = reference_hkl("mP", 400)
    found = extinction_groups("mP", hkl)
    h, k, l = hkl.T  # noqa: E741
    screw = (h == 0) & (l == 0) & (k % 2 == 1)
    glides = {
        "": np.zeros(len(hkl), bool),
        "a": (k == 0) & (h % 2 != 0),
        "c": (k == 0) & (l % 2 != 0),
        "n": (k == 0) & ((h + l) % 2 != 0),
    }
    expected = {(glide | extra).tobytes() for glide in glides.values() for extra in (glides[""], screw)}
    assert {row.tobytes() for row in found.mask} == expected
    assert "P 1 21/n 1" in found.names and "P 1 21/c 1" in found.names
    assert len(extinction_groups("mC", reference_hkl("mC", 400)).names) == 2


def test_orthorhombic_patterns_are_closed_under_the_order_of_the_axes():
    box = np.stack(np.meshgrid(*[np.arange(5)] * 3, indexing="ij"), -1).reshape(-1, 3)[1:]
    for name in ("oP", "oI", "oF", "oS"):
        hkl = box[allowed(box, BRAVAIS[name].centring)]
        place = {tuple(r): n for n, r in enumerate(hkl.tolist())}
        patterns = {row.tobytes() for row in extinction_groups(name, hkl).mask}
        for order in permutations(range(3)):
            if name == "oS" and order[2] != 2:
                continue  # only a and b may change places under a C face
            moved = [place[tuple(r)] for r in hkl[:, order].tolist()]
            assert {row[moved].tobytes() for row in extinction_groups(name, hkl).mask} == patterns


def test_number_of_patterns_in_the_literature():
    """International Tables A (2016), section 1.6.4: conditions by lattice, every setting of the axes counted."""
    counts = {name: len(extinction_groups(name, reference_hkl(name, 500)).names) for name in BRAVAIS}
    assert counts["aP"] == 1 and counts["mP"] == 8 and counts["mC"] == 2
    assert counts["oF"] == 5 and counts["oI"] == 8 and counts["hR"] == 2


def test_low_symmetry_laue_classes_lose_only_whole_lines():
    """Pa-3: 0kl needs k even, but k0l stands in the same line; 100 and 110 are gone entirely."""
    hkl = np.array([[1, 0, 0], [3, 0, 0], [2, 1, 0], [1, 1, 0], [3, 1, 0], [5, 1, 1]])
    found = extinction_groups("cP", hkl)
    row = next(n for n, symbols in enumerate(found.members) if "P a -3" in symbols)
    # 300 shares its line with 221, which Pa-3 allows; 110 and 310 have two odd indices and lose every member
    assert found.mask[row].tolist() == [True, False, False, True, True, False]


def test_reflections_forbidden_by_the_centring_are_in_no_pattern():
    hkl = np.array([[1, 0, 0], [1, 1, 1], [2, 0, 0]])
    assert not extinction_groups("cF", hkl).mask[:, 0].any()
    with pytest.raises(ValueError, match="unknown Bravais lattice"):
        extinction_groups("xx", hkl)
