"""What is said of runs that hold less than they should, and on disks that take no more: never silence, no traceback."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from pathlib import Path

import pytest

from mlindex.runtime.shards import read_results


@pytest.fixture
def toml(lists) -> Path:
    path = lists / "c.toml"
    path.write_text('[campaign]\ninputs = ["alpha.txt", "beta.txt", "noise.txt"]\n')
    return path


@pytest.fixture
def run(mlindex, toml) -> Path:
    """Three parts, a list and so a shard each."""
    for k in range(3):
        assert mlindex("run", toml, "--resume", "--part", f"{k}/3").code == 0
    assert len(list((toml.parent / "run" / "shards").glob("*.h5"))) == 3
    return toml.parent / "run"


def content(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.stat().st_mtime_ns, p.stat().st_size) for p in folder.rglob("*")}


def no_space(*arguments):
    raise OSError(28, "No space left on device")


def ids(text: str) -> list[str]:
    return list(dict.fromkeys(row["id"] for row in csv.DictReader(io.StringIO(text))))


def test_export_writes_nothing_into_the_run(mlindex, run):
    before = content(run)
    answer = mlindex("export", run, "--to", "csv")
    assert answer.code == 0 and ids(answer.out) == ["alpha", "beta", "noise"] and answer.err == ""
    assert content(run) == before
    mlindex("run", run.parent / "c.toml", "--resume")
    assert mlindex("export", run / "results.h5", "--to", "csv").out == answer.out


def test_items_in_two_shards_are_exported_once(mlindex, run):
    wanted = mlindex("export", run, "--to", "json").out
    shard = min((run / "shards").glob("*.h5"))
    shutil.copy(shard, shard.with_name("zzz.h5"))
    assert mlindex("export", run, "--to", "json").out == wanted and wanted.count("\n") == 3


def test_a_run_on_a_full_disk_ends_with_its_answers_and_a_sentence(mlindex, toml, monkeypatch):
    """What is committed is printed, although the master that shows it cannot be written."""
    monkeypatch.setattr("mlindex.runtime.master.new_hdf5", no_space)
    answer = mlindex("run", toml)
    assert answer.code == 1 and "No space left on device" in answer.err and "free space" in answer.err
    assert any(row.startswith("alpha") for row in answer.out.splitlines()) and "3 of 3 done" in answer.out
    assert not (toml.parent / "run" / "results.h5").exists()


@pytest.mark.parametrize("call", ["pwrite", "fsync", "replace"])
def test_index_on_a_full_disk_has_printed_its_answers(mlindex, lists, monkeypatch, call):
    before = sorted(p.name for p in lists.iterdir())
    monkeypatch.setattr(os, call, no_space)
    answer = mlindex("index", "powder", "-o", lists / "r.h5", lists / "alpha.txt", lists / "beta.txt")
    assert answer.code == 2 and "alpha" in answer.out and "beta" in answer.out
    assert answer.err.splitlines()[-1].startswith(f"mlindex: {lists / 'r.h5'}: cannot be written (No space left on dev")
    assert sorted(p.name for p in lists.iterdir()) == before, "nothing half made is left"


@pytest.mark.parametrize("what", ["cut", "deleted"])
def test_a_lost_shard_is_named_and_is_status_1(mlindex, run, what):
    shard = sorted((run / "shards").glob("*.h5"))[1]
    (lost,) = read_results(shard)
    if what == "cut":
        os.truncate(shard, 1000)
    else:
        shard.unlink()
    kept = [name for name in ("alpha", "beta", "noise") if name != lost.id]
    for command in (["export", run, "--to", "csv"], ["merge", run]):
        answer = mlindex(*command)
        assert answer.code == 1 and answer.err.count("\n") == 1, command
        assert answer.err.startswith("problem: ") and shard.name in answer.err and "resume" in answer.err
        assert command[0] != "export" or ids(answer.out) == kept
        assert command[0] != "merge" or answer.out.startswith("2 items from 2 shards")
    assert mlindex("export", run, "--to", "json", "-o", run.parent / "o.json").code == 1
    assert len((run.parent / "o.json").read_text().splitlines()) == 2
    told = json.loads(mlindex("status", run, "--json").out)
    assert (told["unreadable"], told["missing"])[:: 1 if what == "cut" else -1] == ([shard.name], [])
    assert shard.name in mlindex("status", run).out
    mlindex("run", run.parent / "c.toml", "--resume")
    whole = mlindex("export", run, "--to", "csv")
    assert whole.code == 0 and whole.err == "" and ids(whole.out) == ["alpha", "beta", "noise"]


@pytest.mark.parametrize("command", ["status", "report"])
def test_a_list_of_inputs_that_is_too_short_is_one_sentence(mlindex, run, command):
    path = run / "inputs.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))
    answer = mlindex(command, run)
    assert answer.code == 2 and answer.err.count("\n") == 1
    assert f"{path}: has 2 inputs, but the results are of 3" in answer.err
