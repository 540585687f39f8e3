"""Input files: found, numbered, and named so that no two items of a campaign share an id."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlindex.cli.index import files_from
from mlindex.records import InputError, Item
from mlindex.runtime import inputs
from mlindex.runtime.rundir import create

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


def test_digits_are_sorted_as_numbers(tmp_path):
    names = ["s_2/i.h5", "s_2/i_0.h5", "s_2/i_1.h5", "s_2/i_2.h5", "s_2/i_007.h5", "s_2/i_10.h5", "s_10/i_1.h5"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert inputs.find(["*/*.h5"], tmp_path, "c.toml") == names
    assert [Path(p).relative_to(tmp_path / "s_2").as_posix() for p in files_from([str(tmp_path / "s_2")])] == [
        name.removeprefix("s_2/") for name in names[:-1]
    ]
    assert files_from([f"{tmp_path}/*/*.h5"]) == [str(tmp_path / name) for name in names]
    assert inputs.in_order(["b/a", "b1/a", "b", "10", "9", "09"]) == ["09", "9", "10", "b", "b/a", "b1/a"]


@given(st.lists(st.integers(0, 10**6), unique=True))
def test_order_is_that_of_the_numbers_with_and_without_zeros(numbers):
    for form in ("{}", "{:08d}"):
        names = ["d/img_" + form.format(n) + ".h5" for n in numbers]
        assert inputs.in_order(names) == ["d/img_" + form.format(n) + ".h5" for n in sorted(numbers)]


def test_what_a_run_writes_is_no_input(tmp_path):
    for name in ("a.h5", "run/results.h5", "run/shards/b.h5", "runs.h5"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert inputs.find(["**/*.h5"], tmp_path, "c.toml", [tmp_path / "run"]) == ["a.h5", "runs.h5"]
    with pytest.raises(InputError, match="no file matches"):
        inputs.find(["run/results.h5"], tmp_path, "c.toml", [tmp_path / "run"])


def test_name_that_is_not_utf8(tmp_path):
    """The file keeps its name through the manifest, and its label can be printed."""
    names = [b"\xff.txt", b"\xfe.txt", b"\\udcff.txt"]
    for name in names:
        (tmp_path / os.fsdecode(name)).touch()
    wanted = inputs.label(inputs.find(["*.txt"], tmp_path, "c.toml"))
    inputs.write(tmp_path, wanted)
    got = inputs.read(tmp_path)
    assert list(got) == wanted and {os.fsencode(i.source) for i in got} == set(names)
    assert len({i.label.encode() for i in got}) == 3


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


def test_a_frame_that_appears_in_the_midst_of_a_scan_is_refused(tmp_path):
    """Its number would be that of the end, and the map would have it and those behind it at wrong places."""
    frames = tmp_path / "in"
    frames.mkdir()
    for name in ("f1.cor", "f3.cor"):
        (frames / name).touch()
    campaign = tmp_path / "campaign.toml"
    text = '[campaign]\nstage = "laue"\ninputs = ["in/*.cor"]\n[laue]\nmaterials = ["Cu"]\n'
    campaign.write_text(text + "scan = [1, 4]\n")
    run = create(campaign)
    (frames / "f10.cor").touch()
    assert [i.label for i in inputs.read(create(campaign))] == ["f1", "f3", "f10"]
    (run / "journal" / "job-r0000.jsonl").touch()
    (frames / "f2.cor").touch()
    with pytest.raises(InputError, match=r"f2\.cor belongs before in/f10\.cor"):
        create(campaign)
