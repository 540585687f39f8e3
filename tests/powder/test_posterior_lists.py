"""Lists that the posterior learns from: their lines are those of the cell that is named, their errors take turns."""

from __future__ import annotations

from dataclasses import replace

import gemmi
import numpy as np
import pytest

from mlindex.crystal.metric import cell_from_reciprocal_metric
from mlindex.formats.peaks import MINIMUM_LINES
from mlindex.powder import posterior_lists
from mlindex.powder.dataset.observable import tth_from_q2
from mlindex.powder.search import JUDGED
from tests.powder.dataset.crystals import stored_entries

LATTICES = ("oP", "mP", "aP")


@pytest.fixture(scope="module")
def entries():
    stored = stored_entries()
    stored = stored.take(np.isin(stored.bravais, LATTICES))
    return replace(stored, set=np.where(np.arange(len(stored)) % 2, "train", "validation"))


def reflection_angles(metric, upto):
    """2theta of all reflections of a cell, by gemmi."""
    cell = gemmi.UnitCell(*cell_from_reciprocal_metric(metric))
    listed = gemmi.make_miller_array(cell, gemmi.SpaceGroup("P 1"), 1 / np.sqrt(upto))
    return tth_from_q2(np.sort(cell.calculate_1_d2_array(listed)))


@pytest.mark.parametrize("bravais", LATTICES)
def test_lines_are_those_of_the_true_cell(entries, bravais):
    lists = posterior_lists.of_lattice(entries, bravais, lists=3, turn=0, seed=0)
    assert "clean" in {one.variant for one in lists} <= set(posterior_lists.ERRORS)
    train = set(entries.uid[(entries.bravais == bravais) & (entries.set == "train")])
    for one in lists:
        assert one.uid in train and one.bravais == bravais and MINIMUM_LINES <= len(one.lines) <= JUDGED
        assert (one.lines.wavelength is None) == (one.variant in ("serial", "bare"))
        if one.variant != "clean":
            continue
        angles = reflection_angles(one.metric, 1.01 * one.lines.q2[-1])
        seen = tth_from_q2(one.lines.q2)
        assert np.abs(seen[:, None] - angles[None]).min(1).max() < 0.05  # five standard deviations


def test_every_third_list_is_short(entries):
    for turn in range(3):
        lists = posterior_lists.of_lattice(entries, "aP", lists=12, turn=turn, seed=1)
        few = np.array([len(one.lines) <= 20 for one in lists])
        assert few[-turn % 3 :: 3].all() and few.mean() < 0.6
        assert min(len(one.lines) for one in lists) >= MINIMUM_LINES


def test_lattices_and_errors_take_turns(entries):
    found = list(posterior_lists.labelled(entries, lists=3, seed=0))
    assert [one.bravais for one in found] == [*LATTICES, ""] * 3
    assert [one.bravais for one in found if one.variant == posterior_lists.RANDOM] == [""] * 3
    assert all((one.metric is None) == (one.bravais == "") for one in found)
    assert {one.variant for one in found} == {*posterior_lists.ERRORS, posterior_lists.RANDOM}
    again = list(posterior_lists.labelled(entries, lists=3, seed=0))
    assert all(np.array_equal(a.lines.q2, b.lines.q2) for a, b in zip(found, again, strict=True))
    other = list(posterior_lists.labelled(entries, lists=3, seed=1))
    assert not any(np.array_equal(a.lines.q2, b.lines.q2) for a, b in zip(found, other, strict=False))


def test_random_lists_have_lines_apart_and_of_any_number():
    lists = [posterior_lists.random_list(n, 0) for n in range(40)]
    numbers = [len(one.lines) for one in lists]
    assert min(numbers) > 8 and max(numbers) <= JUDGED and len(set(numbers)) > 8
    assert all(np.diff(tth_from_q2(one.lines.q2)).min() > 0.0699 for one in lists)
    assert [one.lines.wavelength is None for one in lists[:4]] == [True, False, True, False]
