"""Input files: found, numbered, and named so that no two items of a campaign share an id."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlindex.records import InputError, Item
from mlindex.runtime import inputs

PART = st.text("ab.:#~2", min_size=1, max_size=3).filter(lambda s: s.strip("."))
SOURCES = st.lists(st.lists(PART, min_size=1, max_size=3).map("/".join), unique=True, max_size=12)


@given(SOURCES, SOURCES)
def test_labels_are_unique_and_never_change(first, second):
    once = inputs.label(first)
    more = inputs.label(second, once)
    assert more[: len(once)] == once
    assert [i.source for i in more] == [*first, *(s for s in second if s not in first)]
    assert len({i.label for i in more}) == len(more)
    assert not any({":", "#"} & set(i.label) for i in more)


def test_label_is_the_stem_where_that_is_enough():
    labels = [i.label for i in inputs.label(["d/quartz.txt", "a/x.txt", "b/x.txt", "c/y.txt", "c/y.csv"])]
    assert labels == ["quartz", "a/x", "b/x", "c/y.txt", "c/y.csv"]


def test_globs_are_sorted_and_relative(tmp_path):
    for name in ("b.txt", "a.txt", "sub/c.txt", "[1].txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = inputs.find(["sub/*", "*.txt", "./a.txt", "[1].txt"], tmp_path, "c.toml")
    assert found == ["sub/c.txt", "[1].txt", "a.txt", "b.txt"]
    with pytest.raises(InputError, match=r"c\.toml.*nothing/\*"):
        inputs.find(["*.txt", "nothing/*"], tmp_path, "c.toml")


def test_ids_of_items(tmp_path):
    assert inputs.item_id("a/x", Item("whatever", "/d/x.txt"), 1) == "a/x"
    assert inputs.item_id("a/x", Item("x_3", "/d/x.txt"), 5) == "a/x:3"
    assert inputs.item_id("a/x", Item("frame 7", "/d/x.txt"), 5) == "a/x:frame 7"


def test_manifest_round_trip_and_a_torn_end(tmp_path):
    wanted = inputs.label(["é/x.txt", "y z.txt"])
    assert list(inputs.read(tmp_path)) == []
    inputs.write(tmp_path, wanted)
    assert list(inputs.read(tmp_path)) == wanted
    with open(tmp_path / inputs.MANIFEST, "a") as file:
        file.write('{"label": "to')
    assert list(inputs.read(tmp_path)) == wanted
