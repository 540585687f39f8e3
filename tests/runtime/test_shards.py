"""Shards: what goes in comes out, and nothing that happens to the writer makes a file unreadable."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlindex.records import Column, InputError, Item, Result, Schema, Status, failed
from mlindex.runtime import shards
from mlindex.runtime.master import build_master, survey
from mlindex.runtime.shards import Entry, Shard, provenance, read_numbers, read_results, read_shard, write_results
from mlindex.runtime.validate import validate
from tests.runtime.campaigns import PATIENCE, ROOT, same, wait_for

SCHEMA = Schema(
    {
        "solutions": (
            Column("cell", "float64", (2, 3), "angstrom", "unit cell"),
            Column("name", "str", (), "", "name"),
            Column("good", "bool"),
        ),
        "lines": (Column("hkl", "int32", (3,), "", "Miller indices"), Column("weight", "float32", (), "1/angstrom")),
    }
)
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=90)


def result(name: str, n: int, text: str = "x", status: Status = Status.SOLVED) -> Result:
    random = np.random.default_rng(n)
    solutions = {
        "cell": random.normal(size=(n, 2, 3)),
        "name": np.array([f"{text}{k}" for k in range(n)], object),
        "good": random.random(n) < 0.5,
    }
    lines = {"hkl": np.full((2 * n, 3), n, np.int32), "weight": np.full(2 * n, 0.5, np.float32)}
    return Result(name, f"{name}.txt", status, "", 1.5, {"solutions": solutions, "lines": lines})


RESULTS = st.builds(result, TEXT, st.integers(0, 4), TEXT, st.sampled_from([Status.SOLVED, Status.UNSOLVED]))
FAILED = st.builds(lambda name, why: failed(Item(name, "é"), why, 0.5), TEXT, TEXT)


@given(st.lists(st.lists(RESULTS | FAILED, min_size=1, max_size=4), max_size=5))
def test_round_trip_open_and_trimmed(batches):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shard = Shard(folder, "s", "toy", SCHEMA, {})
        number = iter(range(100))
        for batch in batches:
            shard.commit([Entry(r, next(number), 0, 1) for r in batch])
        for _ in range(2):
            got = [r for path in sorted(folder.glob("*.h5")) for r in read_results(path)]
            same(got, [r for batch in batches for r in batch])
            shard.close()


def test_layout_is_described(tmp_path):
    attributes = provenance("powder", {"powder": {"seed": 7}, "campaign": {"inputs": ["é" * 40000]}})
    path = write_results(tmp_path / "r.h5", "toy", SCHEMA, [result("a", 2)], attributes)
    with h5py.File(path) as file:
        assert file.attrs["NX_class"] == "NXroot" and file["toy"].attrs["NX_class"] == "NXentry"
        assert file["toy/solutions/cell"].attrs["units"] == "angstrom"
        assert file["toy/solutions/cell"].attrs["long_name"] == "unit cell"
        assert file["toy/lines/hkl"].dtype == np.int32 and file["toy/solutions/good"].dtype == bool
        assert file.attrs["seed"] == 7 and file.attrs["h5py_version"] == h5py.__version__
        assert len(file.attrs["settings"]) > 40000
        assert file["toy/items/lines_count"][:].tolist() == [4]
        assert file["toy/solutions/name"].asstr()[:].tolist() == ["x0", "x1"]


def test_no_results_make_a_file(tmp_path):
    assert read_results(write_results(tmp_path / "r.h5", "toy", SCHEMA, [])) == []


def test_longer_texts_and_more_rows_go_to_further_files(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "_ROWS", (4, 4))
    monkeypatch.setattr(shards, "_BYTES", 1)
    shard = Shard(tmp_path, "s", "toy", SCHEMA, {})
    wanted = [result(f"i{k}", k % 3, "long " * (10 * k)) for k in range(9)] + [result("big", 50)]
    names = [shard.commit([Entry(r, k, 0, 1)])[1] for k, r in enumerate(wanted)]
    assert len(set(names)) > 3 and names == sorted(names)
    same([r for path in sorted(tmp_path.glob("*.h5")) for r in read_results(path)], wanted)


@pytest.mark.parametrize(
    "tables",
    [
        {"unknown": {}},
        {"lines": {"hkl": np.zeros((1, 3), np.int32)}},
        {"lines": {"hkl": np.zeros((1, 2), np.int32), "weight": np.zeros(1, np.float32)}},
        {"lines": {"hkl": np.zeros((1, 3), np.float64), "weight": np.zeros(1, np.float32)}},
        {"lines": {"hkl": np.zeros((2, 3), np.int32), "weight": np.zeros(1, np.float32)}},
    ],
)
def test_result_that_breaks_its_schema_fails_alone(tmp_path, tables):
    shard = Shard(tmp_path, "s", "toy", SCHEMA, {})
    written, name = shard.commit(
        [Entry(Result("a", "a", Status.SOLVED, tables=tables), 0, 0, 1), Entry(result("b", 2), 1, 0, 1)]
    )
    assert [e.result.status for e in written] == [Status.FAILED, Status.SOLVED]
    got = read_results(tmp_path / name)
    assert "schema" in got[0].reason and got[0].tables == {}
    same(got[1:], [result("b", 2)])


class _Killed(BaseException):
    pass


@settings(max_examples=120)
@given(st.integers(0, 30000), st.booleans())
def test_any_prefix_of_the_writes_is_a_readable_shard(budget, close_early):
    """A kill is a prefix of the bytes written: at every one the file has the committed items, whole, and no others."""
    real, left, committed = os.pwrite, [budget], 0
    batches = [[result(f"i{k}{j}", (k + j) % 4) for j in range(2)] for k in range(5)]

    def pwrite(handle: int, data: memoryview, at: int) -> int:
        n = min(len(data), left[0])
        left[0] -= n
        done = real(handle, data[:n], at) if n else 0
        if n < len(data):
            raise _Killed
        return done

    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "pwrite", pwrite)
        shard = Shard(Path(name), "s", "toy", SCHEMA, {})
        try:
            for k, batch in enumerate(batches):
                shard.commit([Entry(r, k, j, 2) for j, r in enumerate(batch)])
                committed += 1
                if close_early and k == 2:
                    shard.close()
                    break
            shard.close()
        except _Killed:
            pass
        got = [r for path in sorted(Path(name).glob("*.h5")) for r in read_results(path)]
        wanted = [r for batch in batches for r in batch]
        assert 2 * committed <= len(got) <= 2 * committed + 2 and len(got) % 2 == 0
        same(got, wanted[: len(got)])


WRITER = """
import sys
from pathlib import Path
from mlindex.runtime.shards import Entry, Shard
from tests.runtime.test_shards import SCHEMA, result
shard = Shard(Path(sys.argv[1]), "s", "toy", SCHEMA, {})
for k in range(1000000):
    shard.commit([Entry(result(f"i{k}", k % 7, "x" * (k % 200)), k, 0, 1)])
    print(k, flush=True)
"""


@pytest.mark.parametrize("delay", [0.0, 0.013, 0.031, 0.1, 0.2])
def test_killed_writer_leaves_what_it_acknowledged(tmp_path, delay):
    """The real thing: SIGKILL of a process that writes as fast as it can, and reads while it does."""
    with open(tmp_path / "acknowledged", "w") as out:
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], cwd=ROOT, stdout=out)
    try:
        wait_for(lambda: (tmp_path / "acknowledged").stat().st_size > 0)
        during = len(survey_keys(tmp_path))
        time.sleep(delay)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    told = (tmp_path / "acknowledged").read_text().split("\n")[:-1]
    got = [r for path in sorted(tmp_path.glob("*.h5")) for r in read_results(path)]
    assert 0 < during <= len(got) and len(told) <= len(got) <= len(told) + 1
    same(got, [result(f"i{k}", k % 7, "x" * (k % 200)) for k in range(len(got))])


def survey_keys(folder: Path) -> list[tuple[int, int]]:
    return [key for path in sorted(folder.glob("*.h5")) for key in read_shard(path, tables=False).places()]


def fill(run: Path, stem: str, numbers: list[int], schema: Schema = SCHEMA) -> None:
    (run / "shards").mkdir(exist_ok=True)
    shard = Shard(run / "shards", stem, "toy", schema, provenance("toy", {}))
    rows = [result(f"i{k}", k % 4, "x" * k) if schema.tables else failed(Item(f"i{k}", ""), "lost") for k in numbers]
    shard.commit([Entry(r, k, 0, 1) for k, r in zip(numbers, rows, strict=True)])
    if stem != "open":
        shard.close()


def test_master_shows_all_shards_in_order_once(tmp_path):
    fill(tmp_path, "open", [9, 2, 30])
    fill(tmp_path, "b", [1, 2, 4, 25])
    fill(tmp_path, "rank0", [3], Schema({}))
    wanted = [failed(Item("i3", ""), "lost") if k == 3 else result(f"i{k}", k % 4, "x" * k) for k in (1, 2, 3, 4, 9)]
    wanted += [result(f"i{k}", k % 4, "x" * k) for k in (25, 30)]
    same([r for r in read_results(build_master(tmp_path)) if r.id != "i3"], [r for r in wanted if r.id != "i3"])
    assert [r.id for r in read_results(tmp_path / "results.h5")] == [r.id for r in wanted]
    moved = tmp_path.rename(tmp_path.with_name(f"{tmp_path.name} moved"))
    same(read_results(moved / "results.h5"), read_results(build_master(moved)))


def test_unreadable_shards_are_named_and_left_out(tmp_path):
    fill(tmp_path, "a", [0, 1])
    fill(tmp_path, "b", [2, 3])
    (tmp_path / "shards" / "c-000.h5").write_bytes(b"not HDF5")
    whole = (tmp_path / "shards" / "b-000.h5").read_bytes()
    (tmp_path / "shards" / "b-000.h5").write_bytes(whole[: len(whole) // 2])
    seen = survey(tmp_path)
    assert [path.name for path, _ in seen.unreadable] == ["b-000.h5", "c-000.h5"]
    assert all(path.name in sentence and "resume its run" in sentence for path, sentence in seen.unreadable)
    assert [r.id for r in read_results(build_master(tmp_path))] == ["i0", "i1"]


READER = """
import sys
from pathlib import Path
from mlindex.records import InputError
from mlindex.runtime.shards import read_numbers, read_shard
for name in sys.argv[1:]:
    for read in (read_shard, read_numbers):
        try:
            read(Path(name))
            print("read")
        except InputError as error:
            print(error)
"""


def zeroed(path: Path, places: list[tuple[int, int]]) -> list[Path]:
    """Copies of a file, each with zeros from a byte to another."""
    whole, made = path.read_bytes(), []
    for first, last in places:
        made.append(path.with_name(f"b-{first}-{last}.h5"))
        made[-1].write_bytes(whole[:first] + bytes(last - first) + whole[last:])
    return made


def test_zeros_where_hdf5_keeps_its_own_structure_do_not_hang(tmp_path):
    """Another process reads, as the HDF5 library walks for ever through a heap of attributes that is zeros."""
    fill(tmp_path, "b", list(range(2, 30)))
    places = [(0, 2048), (8, 512), (96, 1024), *((at, at + 512) for at in range(0, 4608, 512))]
    copies = zeroed(tmp_path / "shards" / "b-000.h5", places)
    done = subprocess.run(
        [sys.executable, "-c", READER, *map(str, copies)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    said = done.stdout.splitlines()
    assert len(said) == 2 * len(copies)
    for path, sentence in zip(np.repeat(copies, 2), said, strict=True):
        free = sentence == "read" and int(path.name.split("-")[1]) > 2048  # where there was nothing, or data
        assert free or (f"{path.name}: is not a readable results file" in sentence and "resume its run" in sentence)
    assert sum("the heap at byte" in sentence for sentence in said) >= 8


def test_heaps_behind_the_data_are_looked_at(tmp_path):
    """A table of 200 columns has more descriptions than one heap holds; those after the first lie behind all data."""
    columns = tuple(Column(f"column{k}", "float64", (), "angstrom", f"the number {k} of many") for k in range(200))
    fields = {c.name: np.arange(3.0) for c in columns}
    shard = Shard(tmp_path, "s", "toy", Schema({"numbers": columns}), {})
    shard.commit([Entry(Result("a", "a.txt", Status.SOLVED, tables={"numbers": fields}), 0, 0, 1)])
    path = tmp_path / "s-000.h5"
    assert path.stat().st_size > 1 << 24, "as long as the writer leaves it"
    for _ in range(2):
        whole = path.read_bytes()
        heaps = [m.start() for m in re.finditer(rb"GCOL\x01\0\0\0", whole)]
        assert len(heaps) > 1 and len(read_results(path)[0].tables["numbers"]["column7"]) == 3
        for at in heaps:
            path.write_bytes(whole[: at + 64] + bytes(1024) + whole[at + 1088 :])
            with pytest.raises(InputError, match=rf"s-000\.h5: is not .*the heap at byte {at} is damaged"):
                read_shard(path)
            assert f"the heap at byte {at} is damaged" in validate(path)[0]
        path.write_bytes(whole)
        shard.close()


@pytest.mark.parametrize("byte", [255, 0])
def test_bad_sector_is_said_of_the_shard(tmp_path, byte):
    """Each sector in turn is overwritten: the shard is read, or is named and left out, and the others are there."""
    fill(tmp_path, "a", [0, 1])
    fill(tmp_path, "b", list(range(2, 30)))
    shard = tmp_path / "shards" / "b-000.h5"
    whole, left_out = shard.read_bytes(), 0
    for at in range(0, len(whole), 512):
        shard.write_bytes(whole[:at] + bytes([byte]) * len(whole[at : at + 512]) + whole[at + 512 :])
        for read in (read_shard, read_numbers):
            try:
                read(shard)
            except InputError as error:
                assert "b-000.h5: is not a readable results file" in str(error), at
        seen = survey(tmp_path)
        assert {0, 1} <= set(seen.input.tolist()) <= set(range(30))
        assert seen.unreadable or (len(seen) == 30 and sum(seen.counts().values()) == 30), at
        left_out += len(seen.unreadable)
    assert left_out > len(whole) / 512 / 3


def test_count_that_no_table_has_rows_for(tmp_path):
    fill(tmp_path, "b", [2, 3])
    shard = tmp_path / "shards" / "b-000.h5"
    for count in (3, -1):
        with h5py.File(shard, "r+") as file:
            file["committed"][0] = count
        with pytest.raises(InputError, match=rf"b-000\.h5: is not.*{count} items are said to be in 2 rows"):
            read_shard(shard)


def test_master_without_its_shards_is_refused(tmp_path):
    """HDF5 shows zeros for what it cannot find; the master says which shard, and reads again when that is back."""
    fill(tmp_path, "a", [1, 2])
    fill(tmp_path, "b", [3, 6])
    master = build_master(tmp_path)
    wanted = read_results(master)
    (tmp_path / "alone").mkdir()
    alone = Path(shutil.copy(master, tmp_path / "alone"))
    for read in (read_results, read_shard, read_numbers):
        with pytest.raises(InputError, match=r"alone/results\.h5: shows shards/.-000\.h5, which is not there; .*merge"):
            read(alone)
    alone.unlink()
    alone.symlink_to(master)
    same(read_results(alone), wanted)
    shard = tmp_path / "shards" / "b-000.h5"
    whole = shard.read_bytes()
    for damage in (whole[:900], whole[: len(whole) // 2], b""):
        shard.write_bytes(damage)
        with pytest.raises(InputError, match=r"shards/b-000\.h5: is not a readable results file"):
            read_results(master)
    shard.unlink()
    with pytest.raises(InputError, match=r"results\.h5: shows shards/b-000\.h5, which is not there"):
        read_results(master)
    shard.write_bytes(whole)
    same(read_results(master), wanted)


def test_nothing_to_build_from_is_said(tmp_path):
    with pytest.raises(InputError, match="no results"):
        build_master(tmp_path)
