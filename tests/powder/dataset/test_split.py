"""The split against one that the benchmark's script made, and its laws; the groups."""

from __future__ import annotations

import json

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mlindex.powder.dataset.groups import groups, merged_patterns
from mlindex.powder.dataset.split import FEWEST, SETS, split
from tests.powder.dataset.crystals import REFERENCE, stored_entries


def test_sets_are_those_of_the_benchmark():
    rows = json.loads((REFERENCE / "split.json").read_text())
    bravais, family, lines, known = (np.array(column) for column in zip(*rows, strict=True))
    found = split(bravais, family.astype(str), lines)
    usable = known != ""
    assert usable.sum() > 400
    np.testing.assert_array_equal(found[usable], known[usable])
    np.testing.assert_array_equal(lines >= FEWEST, usable)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 30), st.integers(1, 60)), min_size=1, max_size=60))
def test_a_family_is_in_one_set_and_sets_are_balanced(rows: list[tuple[str, int, int]]):
    bravais = np.array([row[0] for row in rows])
    family = np.array([f"{row[0]}{row[1]}" for row in rows])
    lines = np.array([row[2] for row in rows])
    found = split(bravais, family, lines)
    for name in set(family):
        assert len(set(found[family == name])) == 1
    for lattice in set(bravais):
        usable = (bravais == lattice) & (lines >= FEWEST)
        counts = [len(set(family[usable & (found == s)])) for s in SETS]
        assert max(counts) - min(counts) <= 1
    order = np.random.default_rng(0).permutation(len(rows))
    np.testing.assert_array_equal(split(bravais[order], family[order], lines[order]), found[order])


def test_rare_patterns_join_the_nearest_common_one():
    counts = {"P 1 2 1": 100, "P 1 21 1": 90, "P 1 c 1": 3, "P 1 21/c 1": 80}
    joined = merged_patterns("mP", counts, fewest=50)
    assert {s: joined[s] for s in counts if counts[s] >= 50} == {s: s for s in counts if counts[s] >= 50}
    assert joined["P 1 c 1"] == "P 1 21/c 1"  # which has the absences of the glide plane, and 0k0 beside them
    assert set(merged_patterns("mP", counts, fewest=1000).values()) == {"P 1 2 1"}


def test_groups_number_every_entry_in_its_lattice():
    entries = stored_entries()
    fine, coarse = groups(entries, fewest=1), groups(entries)
    for bravais, names in fine.names.items():
        here = entries.bravais == bravais
        train = here & (entries.set == "train")
        assert set(names) >= set(entries.extinction[train])
        for symbol, number in zip(entries.extinction[train], fine.number[train], strict=True):
            assert names[number] == symbol
        assert len(coarse.names[bravais]) == 1
    assert coarse.number.max() == 0
