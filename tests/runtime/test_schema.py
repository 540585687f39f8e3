"""The layout of results files: what the runtime writes is valid, each kind of damage is named, and h5dump reads it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from mlindex.powder.stage import PowderStage
from mlindex.records import Item, Schema, Status, failed
from mlindex.runtime.master import build_master
from mlindex.runtime.merge import merge
from mlindex.runtime.schema import FIELDS, KINDS, ROOT, SHARD_COLUMNS, STATUSES, item_columns, layout_text
from mlindex.runtime.shards import Entry, Shard, provenance, read_results, write_results
from mlindex.runtime.validate import validate
from tests.runtime.test_shards import SCHEMA, result

JOB = "20260101T000000-1-1of4-abcd"
SETTINGS = {"campaign": {"name": "night shift"}, "toy": {"seed": 7}}


def write(run: Path, rank: int, numbers: list[int], schema: Schema = SCHEMA, close: bool = True) -> Path:
    """A shard of a campaign with the results of these inputs."""
    (run / "shards").mkdir(exist_ok=True)
    own = {**provenance("toy", SETTINGS), "host": f"node{rank}", "rank": rank, "job": JOB, "part": 1, "parts": 4}
    shard = Shard(run / "shards", f"{JOB}-r{rank:04d}", "toy", schema, own)
    rows = [
        result(f"i{k}", k % 4, f"text {k} ", Status.SOLVED if k % 3 else Status.UNSOLVED)
        if schema.tables and k % 5
        else failed(Item(f"i{k}", f"in/{k}.txt"), f"no {k}")
        for k in numbers
    ]
    _, name = shard.commit([Entry(r, k, 0, 1, rank) for k, r in zip(numbers, rows, strict=True)])
    if close:
        shard.close()
    return run / "shards" / name


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run of three ranks, of which one only dispatched, and another is still at it."""
    folder = tmp_path_factory.mktemp("run")
    write(folder, 1, [7, 2, 0, 5])
    write(folder, 2, [9, 1, 4], close=False)
    write(folder, 0, [3], Schema({}))
    build_master(folder)
    merge(folder)
    return folder


@pytest.fixture
def files(run, tmp_path) -> dict[str, Path]:
    """The three kinds of file, to be damaged."""
    copy = shutil.copytree(run, tmp_path / "run")
    return {"shard": next(copy.glob("shards/*r0001-*.h5")), "master": copy / "results.h5", "merged": copy / "merged.h5"}


def test_what_the_runtime_writes_is_valid(run):
    written = [*(run / "shards").glob("*.h5"), run / "results.h5", run / "merged.h5"]
    assert len(written) == 5
    assert [validate(path, SCHEMA) for path in written] == [[]] * 5


def test_results_of_the_powder_stage_are_valid(tmp_path):
    """Its schema is found by the name of the stage."""
    settings = {"powder": {"seed": 3}}
    items = [failed(Item("a", "a.txt"), "a.txt: is empty; give a list")]
    path = write_results(tmp_path / "a.h5", "powder", PowderStage.schema, items, provenance("powder", settings))
    assert validate(path) == []
    with h5py.File(path, "r+") as file:
        file["powder/solutions/m20"].attrs["units"] = "angstrom"
        del file["powder/lines/hkl"]
    told = " ".join(validate(path))
    assert "/powder/lines/hkl: is missing" in told and "/powder/solutions/m20" not in told.replace("units", "")


def replace(file: h5py.File, name: str, values: np.ndarray) -> None:
    """Another dataset in the place of one, with its attributes."""
    kept = dict(file[name].attrs)
    del file[name]
    file[name] = values
    for key, value in kept.items():
        file[name].attrs[key] = value


def edit(name: str, row: int, value: object) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        values = file[name][:]
        values[row] = value
        kind = file[name].dtype
        replace(file, name, values.astype(kind))

    return change


def drop(name: str) -> Callable[[h5py.File], None]:
    return lambda file: file.__delitem__(name)


def attribute(place: str, name: str, value: object) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        if value is None:
            del file[place].attrs[name]
        else:
            file[place].attrs[name] = value

    return change


DAMAGES = {
    "no kind": (attribute("/", "kind", None), KINDS, "/: the attribute kind is ''"),
    "another root": (attribute("/", "NX_class", "NXentry"), KINDS, "the attribute NX_class is 'NXentry'"),
    "no entry": (attribute("/", "default", "nothing"), KINDS, "there is no group 'nothing'"),
    "settings are no JSON": (attribute("/", "settings", "{"), KINDS, "the attribute settings is '{'"),
    "seed is no number": (attribute("/", "seed", "seven"), KINDS, "the attribute seed is 'seven'"),
    "file_time": (attribute("/", "file_time", None), KINDS, "the attribute file_time is missing"),
    "hosts": (attribute("/", "hosts", "node1"), ("merged",), "the attribute hosts is 'node1'"),
    "host of a merged file": (attribute("/", "host", "node1"), ("merged",), "the attribute host is not for a merged"),
    "entry class": (attribute("/toy", "NX_class", None), KINDS, "/toy: the attribute NX_class is None"),
    "no title": (drop("toy/title"), KINDS, "/toy/title: is missing"),
    "table class": (attribute("/toy/lines", "NX_class", "NXdata"), KINDS, "/toy/lines: the attribute NX_class"),
    "stranger": (lambda f: f.create_group("note"), KINDS, "/note: is not part of the layout"),
    "strange column": (lambda f: f["toy/items"].create_dataset("x", data=[1]), KINDS, "/toy/items/x: is not part"),
    "no committed": (drop("committed"), KINDS, "/committed: is not one int64"),
    "more committed than rows": (edit("committed", 0, 1 << 20), KINDS, "/committed: says 1048576 items, but"),
    "no items": (drop("toy/items"), KINDS, "/toy/items: is missing"),
    "no table": (drop("toy/lines"), KINDS, "/toy/lines: is missing"),
    "no column": (drop("toy/items/reason"), KINDS, "/toy/items/reason: is missing"),
    "no column in a table": (drop("toy/lines/hkl"), KINDS, "/toy/lines/hkl: is missing"),
    "no shards": (drop("shards"), ("master", "merged"), "/shards: is missing"),
    "no host in shards": (drop("shards/host"), ("master", "merged"), "/shards/host: is missing"),
    "units": (attribute("/toy/items/seconds", "units", "h"), KINDS, "/toy/items/seconds: the attribute units is 'h'"),
    "long_name": (attribute("/toy/lines/hkl", "long_name", None), KINDS, "/toy/lines/hkl: the attribute long_name"),
    "dtype": (
        lambda f: replace(f, "toy/items/seconds", f["toy/items/seconds"][:].astype("f4")),
        KINDS,
        "/toy/items/seconds: is float32",
    ),
    "text of variable length": (
        lambda f: replace(f, "toy/items/id", np.array(["a"] * len(f["toy/items/id"]), h5py.string_dtype())),
        KINDS,
        "/toy/items/id: is object",
    ),
    "shape": (
        lambda f: replace(f, "toy/lines/hkl", f["toy/lines/hkl"][:, :2]),
        KINDS,
        "/toy/lines/hkl: is int32 with rows of shape (2,)",
    ),
    "short column": (
        lambda f: replace(f, "toy/lines/hkl", f["toy/lines/hkl"][:-1]),
        KINDS,
        "/toy/lines: its columns have different lengths",
    ),
    "negative index": (edit("toy/items/index", 1, -1), KINDS, "/toy/items/index: is outside of its input (row 1)"),
    "twice": (edit("toy/items/input", slice(0, 2), 4), KINDS, "/toy/items/index: an item is there twice"),
    "out of order": (edit("toy/items/input", 0, 8), ("master", "merged"), "not in the order of the inputs (row 0"),
    "offset": (edit("toy/items/lines_offset", 1, 1 << 30), KINDS, "/toy/items/lines_offset: points outside"),
    "count": (edit("toy/items/lines_count", 1, -1), KINDS, "/toy/items/lines_offset: points outside"),
    "shard": (edit("toy/items/shard", 2, 3), ("master", "merged"), "/toy/items/shard: is no row of /shards (row 2)"),
    "status": (
        lambda f: replace(
            f, "toy/items/status", np.array([b"good"] * len(f["toy/items/status"]), h5py.string_dtype(length=4))
        ),
        KINDS,
        "/toy/items/status: is none of solved, unsolved, failed (row 0 and",
    ),
    "no reason": (
        lambda f: replace(f, "toy/items/reason", np.zeros(len(f["toy/items/reason"]), h5py.string_dtype(length=4))),
        KINDS,
        "/toy/items/reason: a failed item has no reason",
    ),
}


@pytest.mark.parametrize(
    ("damage", "kind"), [(name, kind) for name, (_, kinds, _) in DAMAGES.items() for kind in kinds]
)
def test_damage_is_named(files, damage, kind):
    change, _, says = DAMAGES[damage]
    with h5py.File(files[kind], "r+") as file:
        change(file)
    told = validate(files[kind], SCHEMA)
    assert all(sentence.startswith(f"{files[kind]}: /") and "\n" not in sentence for sentence in told)
    assert any(says in sentence for sentence in told), told


def test_rows_of_a_merged_table_are_in_the_order_of_the_items(files):
    with h5py.File(files["merged"], "r+") as file:
        for what in ("offset", "count"):
            name = f"toy/items/lines_{what}"
            values = file[name][:]
            values[[1, 2]] = values[[2, 1]]
            replace(file, name, values)
    assert any("/toy/lines are not in the order of items" in sentence for sentence in validate(files["merged"], SCHEMA))


def test_missing_source_of_a_master_is_named(files):
    files["shard"].unlink()
    told = validate(files["master"], SCHEMA)
    assert told and all(f"shows rows of shards/{files['shard'].name}, which is not there" in s for s in told)


@pytest.mark.parametrize("kind", KINDS)
def test_truncated_and_foreign_files_are_named(files, kind):
    path = files[kind]
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"no HDF5"):
        path.write_bytes(content)
        assert [s.startswith(f"{path}: is not a readable HDF5 file") for s in validate(path, SCHEMA)] == [True]
    path.unlink()
    assert len(validate(path, SCHEMA)) == 1


def test_layout_text_names_everything(run):
    text = layout_text("toy", SCHEMA)
    columns = [
        *item_columns(SCHEMA.tables, "merged"),
        *SHARD_COLUMNS,
        *FIELDS,
        *(c for t in SCHEMA.tables.values() for c in t),
    ]
    for name in [*(c.name for c in columns), *(a.name for a in ROOT)]:
        assert f"\n- `{name}`: " in text
    with h5py.File(run / "merged.h5") as file:
        groups = ["/"]
        file.visititems(lambda name, thing: groups.append(f"/{name}") if isinstance(thing, h5py.Group) else None)
        assert all(f"`{group}` (NX" in text for group in groups)
        assert set(file.attrs) <= {a.name for a in ROOT}
    assert "- `cell`: float64 (2, 3) [angstrom]: unit cell\n" in text


def test_nexus_attributes(run):
    with h5py.File(run / "merged.h5") as file:
        assert file.attrs["file_name"] == "merged.h5" and file.attrs["HDF5_Version"] == h5py.version.hdf5_version
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", file.attrs["file_time"])
        assert isinstance(file[file.attrs["default"]], h5py.Group)
        assert file["toy/title"].asstr()[()] == "night shift"
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", file["toy/start_time"].asstr()[()])
        assert file["toy/program_name"].asstr()[()] == "mlindex"
        assert file["toy/program_name"].attrs["version"] == file.attrs["mlindex_version"]


def h5dump(*arguments: object) -> str:
    program = shutil.which("h5dump")
    assert program is not None, "h5dump is not installed: apt-get install hdf5-tools"
    done = subprocess.run(
        [program, *map(str, arguments)], capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"}
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout


def printed(path: Path, name: str) -> list[str]:
    """The values of a dataset as h5dump prints them, but for the zero bytes that fill texts of fixed length."""
    text = h5dump("-y", "-w", "1", "-m", "%.17g", "-d", name, path)
    data = text[text.index("DATA {") + 6 : text.index("ATTRIBUTE") if "ATTRIBUTE" in text else text.rindex("}")]
    return [
        word.strip().strip('"').replace("\\000", "") for word in data.rpartition("}")[0].replace("\n", " ").split(",")
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_h5dump_reads_what_h5py_reads(files, kind):
    path = files[kind]
    header, everything = h5dump("-H", path), h5dump(path)
    for name in ("hkl", "lines_offset", "status", "committed", "reason"):
        assert f'DATASET "{name}"' in header and f'DATASET "{name}"' in everything
    assert "night shift" in everything and "angstrom" in everything
    with h5py.File(path) as file:
        for name in ("toy/lines/hkl", "toy/items/input", "toy/items/lines_offset"):
            assert [int(v) for v in printed(path, f"/{name}")] == file[name][:].ravel().tolist()
        for name in ("toy/solutions/cell", "toy/items/seconds"):
            assert [float(v) for v in printed(path, f"/{name}")] == file[name][:].ravel().tolist()
    statuses = [str(r.status) for r in read_results(path)]
    assert printed(path, "/toy/items/status") == statuses and set(statuses) <= set(STATUSES)
    names = [name for r in read_results(path) for name in r.tables.get("solutions", {"name": []})["name"]]
    assert sorted(printed(path, "/toy/solutions/name")) == sorted(names) != []
