"""Merging: every item once and in order, also of a run that goes on; and nothing half done."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlindex.records import Column, InputError, Item, Result, Schema, Status, failed
from mlindex.runtime import merge as merging
from mlindex.runtime.master import build_master
from mlindex.runtime.merge import merge
from mlindex.runtime.shards import Entry, Shard, provenance, read_results, read_shard
from mlindex.runtime.validate import validate
from tests.runtime.campaigns import ROOT, expected, make, run, running, same, shard_keys, values, wait_for
from tests.runtime.test_schema import write
from tests.runtime.test_shards import SCHEMA, result

LAYOUTS = st.lists(  # for each shard: its inputs, whether it is closed, whether it is of the dispatcher
    st.tuples(st.lists(st.integers(0, 30), unique=True, min_size=1, max_size=9), st.booleans(), st.booleans()),
    min_size=1,
    max_size=5,
)


@settings(max_examples=15)
@given(LAYOUTS, st.integers(1, 400))
def test_merged_file_has_what_the_master_shows(layout, slab):
    """Whatever the shards, and however small the slabs."""
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(merging, "_SLAB", slab)
        patch.setattr(merging, "_GAP", slab % 3)
        patch.setattr(merging, "_OPEN", 1 + slab % 2)
        folder = Path(name)
        for rank, (numbers, close, dispatcher) in enumerate(layout):
            write(folder, rank, numbers, Schema({}) if dispatcher else SCHEMA, close)
        done = merge(folder)
        every = {k for numbers, _, _ in layout for k in numbers}
        assert done.items == len(every) and done.shards == len(layout) and done.problems == []
        wanted, got = read_shard(build_master(folder)), read_shard(done.path)
        assert got.items["input"].tolist() == sorted(every)
        same(read_results(done.path), read_results(folder / "results.h5"))
        for column in set(wanted.items) - {n for n in wanted.items if n.endswith("_offset")}:
            np.testing.assert_array_equal(got.items[column], wanted.items[column])
        if any(not dispatcher for _, _, dispatcher in layout):
            assert validate(done.path, SCHEMA) == []


def test_merged_file_is_an_ordinary_one(tmp_path):
    for rank in (1, 2):
        write(tmp_path, rank, list(range(rank, 60, 2)))
    path = merge(tmp_path, tmp_path / "all.h5").path
    alone = path.rename(tmp_path / "moved.h5")
    for shard in (tmp_path / "shards").iterdir():
        shard.unlink()
    assert [r.id for r in read_results(alone)] == [f"i{k}" for k in range(1, 60)]
    with h5py.File(alone, locking=False) as file:
        datasets = []
        file.visititems(lambda _, thing: datasets.append(thing) if isinstance(thing, h5py.Dataset) else None)
        assert not any(d.is_virtual or d.external for d in datasets)
        assert {c.name for c in read_shard(alone).columns["solutions"]} == {c.name for c in SCHEMA.tables["solutions"]}
        assert file["shards/name"].asstr()[:].tolist() == [
            f"20260101T000000-1-1of4-abcd-r000{r}-000.h5" for r in (1, 2)
        ]
        assert file["shards/part"][:].tolist() == [1, 1] and file["shards/parts"][:].tolist() == [4, 4]
        assert file["toy/items/shard"][:].tolist() == [0 if k % 2 else 1 for k in range(1, 60)]


def test_provenance_is_kept_and_versions_are_listed(tmp_path):
    (tmp_path / "shards").mkdir()
    settings_ = {"campaign": {"name": "c"}, "toy": {"seed": 11}}
    for rank, version in enumerate(("0.9", "1.0")):
        own = {
            **provenance("toy", settings_),
            "mlindex_version": version,
            "host": f"h{rank}",
            "rank": rank,
            "job": f"j{rank}",
        }
        shard = Shard(tmp_path / "shards", f"s{rank}", "toy", SCHEMA, own)
        shard.commit([Entry(result(f"i{rank}", 1), rank, 0, 1)])
        shard.close()
    attributes = read_shard(merge(tmp_path).path, tables=False).attributes
    assert json.loads(attributes["settings"]) == settings_ and attributes["seed"] == 11
    assert attributes["mlindex_version"] == "1.0" and attributes["h5py_version"] == h5py.__version__
    assert attributes["hosts"].tolist() == ["h0", "h1"]
    assert [text.split(",")[0] for text in attributes["software"]] == ["mlindex 0.9", "mlindex 1.0"]
    assert not {"host", "rank", "job"} & set(attributes) and attributes["kind"] == "merged"


def test_compression_where_it_pays(tmp_path):
    """Equal numbers take next to no space; random ones are written as they are."""
    (tmp_path / "shards").mkdir()
    schema = Schema({"t": (Column("same", "int64", (4,)), Column("random", "float64", (4,)), Column("word", "str"))})
    shard = Shard(tmp_path / "shards", "s", "toy", schema, {})
    random = np.random.default_rng(1)
    n = 30000
    bits = random.integers(0, 1 << 62, (n, 4)).view("f8")
    table = {"same": np.ones((n, 4), np.int64), "random": bits, "word": np.array(["w" * 30] * n, object)}
    shard.commit([Entry(Result("a", "a", Status.SOLVED, tables={"t": table}), 0, 0, 1)])
    shard.close()
    path = merge(tmp_path).path
    with h5py.File(path) as file:
        group = file["toy/t"]
        assert group["same"].compression == "gzip" and group["same"].shuffle and group["same"].chunks
        assert group["word"].compression == "gzip" and group["random"].compression is None and group["random"].chunks
        assert group["same"].id.get_storage_size() < 0.02 * group["same"].nbytes
        np.testing.assert_array_equal(group["random"][:], bits)


def test_run_that_goes_on_is_merged_as_it_is(tmp_path):
    """Merged again and again while two ranks work: each time a valid file with what was committed by then."""
    campaign = make(tmp_path, {name: f"{text} wait 0.05" for name, text in values(40).items()})
    folder, counts = tmp_path / "run", []
    with running(campaign, "--ranks", "2") as process:
        wait_for(lambda: any((folder / "shards").glob("*.h5")) if folder.exists() else False)
        while process.poll() is None:
            before = len(shard_keys(folder))
            if before:
                counts.append((before, merge(folder).items))
                assert validate(folder / "merged.h5") == []
        assert process.returncode == 0
    assert len(counts) > 2 and all(before <= n for before, n in counts) and counts[0][1] < 40
    assert merge(folder).items == 40
    same(read_results(folder / "merged.h5"), expected(campaign))
    assert {p.name for p in folder.iterdir()} >= {"merged.h5"} and not list(folder.glob(".merged*"))
    assert run(campaign, "--resume")[0] == 0, "a merged file in the run directory is no stranger there"


def test_shards_that_cannot_be_read_are_named(tmp_path):
    write(tmp_path, 1, [0, 1])
    broken = write(tmp_path, 2, [2, 3])
    broken.write_bytes(broken.read_bytes()[:700])
    done = merge(tmp_path)
    assert done.items == 2 and len(done.problems) == 1 and str(broken) in done.problems[0]


def test_shard_of_the_first_version_has_its_status_as_text(tmp_path):
    path = write(tmp_path, 1, [0, 1, 3])
    with h5py.File(path, "r+") as file:
        attributes = dict(file["toy/items/status"].attrs)
        del file["toy/items/status"]
        dataset = file["toy/items"].create_dataset("status", data=np.array([b"failed", b"solved", b"unsolved"]))
        dataset.attrs.update(attributes)
    statuses = [r.status for r in read_results(merge(tmp_path).path)]
    assert statuses == [Status.FAILED, Status.SOLVED, Status.UNSOLVED]


def test_shards_with_other_words_for_a_column_are_merged(tmp_path):
    """As after a run went on with another version, which describes a column in another way."""
    write(tmp_path, 1, [0, 1])
    with h5py.File(write(tmp_path, 2, [2, 3]), "r+") as file:
        file["toy/items/reason"].attrs["long_name"] = "why the item failed"
    assert merge(tmp_path).items == 4


def test_texts_of_a_merged_file_are_before_or_behind_its_data(tmp_path):
    """Where they are looked at before HDF5 opens the file, which would not come back from damaged ones."""
    write(tmp_path, 1, list(range(40)))
    done = merge(tmp_path)
    with h5py.File(done.path) as file:
        datasets = [d for g in (file["toy/items"], *file["toy"].values()) for d in getattr(g, "values", list)()]
        assert all(d.attrs["long_name"] for d in datasets)
        data = [d.id.get_offset() for d in datasets if d.id.get_offset() is not None]
    heaps = [m.start() for m in re.finditer(rb"GCOL\x01\0\0\0", done.path.read_bytes())]
    assert len(data) > 10 and heaps and not any(min(data[10:]) < at < max(data) for at in heaps)


def test_shards_with_other_columns_are_refused(tmp_path):
    write(tmp_path, 1, [0, 1])
    shard = Shard(tmp_path / "shards", "other", "toy", Schema({"lines": (Column("hkl", "int64", (3,)),)}), {})
    shard.commit([Entry(failed(Item("x", "x"), "no"), 9, 0, 1)])
    with pytest.raises(InputError, match=r"other-000.h5: has other columns"):
        merge(tmp_path)


def test_what_cannot_be_merged_is_said(tmp_path):
    with pytest.raises(InputError, match="not the directory of a run"):
        merge(tmp_path)
    (tmp_path / "shards").mkdir()
    with pytest.raises(InputError, match="no results to merge"):
        merge(tmp_path)
    shard = write(tmp_path, 1, [0])
    for output, says in ((tmp_path, "cannot be written"), (tmp_path / "no" / "x.h5", "exists"), (shard, "is a shard")):
        with pytest.raises(InputError, match=says):
            merge(tmp_path, output)
    assert len(read_results(shard)) == 1


LIMITED = """
import resource, signal, sys
from mlindex.records import InputError
from mlindex.runtime.merge import merge
# after the imports: Python would cut off the bytecode that it keeps of them
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
try:
    merge(sys.argv[1])
except InputError as error:
    print(error)
"""


def test_full_disk_leaves_the_file_that_was_there(tmp_path):
    """A limit on the size of files stands in for the disk."""
    write(tmp_path, 1, list(range(200)))
    (tmp_path / "merged.h5").write_text("the one of yesterday")
    command = [sys.executable, "-c", LIMITED, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.startswith(f"{tmp_path / 'merged.h5'}: cannot be made (") and done.stdout.count("\n") == 1
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "merged.h5").read_text() == "the one of yesterday"
    assert not list(tmp_path.glob(".merged*"))


MEASURED = """
import resource, sys
from mlindex.runtime.merge import merge
merge(sys.argv[1])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_the_data(tmp_path):
    """200 MB in two shards pass through much less memory."""
    peaks = []
    for n in (1, 6):
        folder = tmp_path / str(n)
        (folder / "shards").mkdir(parents=True)
        for rank in (1, 2):
            shard = Shard(folder / "shards", f"s{rank}", "toy", Schema({"t": (Column("x", "float64", (32,)),)}), {})
            for k in range(n):
                table = {"x": np.full((1 << 16, 32), k, np.float64)}
                shard.commit([Entry(Result(f"{k}", "", Status.SOLVED, tables={"t": table}), 2 * k + rank, 0, 1)])
        command = [sys.executable, "-c", MEASURED, str(folder)]
        peaks.append(int(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout))
    assert peaks[1] - peaks[0] < 80_000, "kB, of 160,000 that are more"
