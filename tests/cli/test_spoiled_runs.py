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
def three(mlindex, toml) -> Path:
    """A run of three parts, a list and so a shard each."""
    for k in range(3):
        assert mlindex("run", toml, "--resume", "--part", f"{k}/3").code == 0
    assert len(list((toml.parent / "run" / "shards").glob("*.h5"))) == 3
    return toml.parent / "run"


@pytest.fixture
def all_failed(run, tmp_path):
    """The command line with the real stages, and a run of one frame, which failed."""
    (tmp_path / "bad.cor").write_text("nothing\n")
    (tmp_path / "c.toml").write_text('[campaign]\ninputs = ["bad.cor"]\nstage = "laue"\n[laue]\nmaterials = ["Cu"]\n')
    assert run("run", tmp_path / "c.toml").code == 1
    return run, tmp_path / "run"


def content(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.stat().st_mtime_ns, p.stat().st_size) for p in folder.rglob("*")}


def no_space(*arguments):
    raise OSError(28, "No space left on device")


def ids(text: str) -> list[str]:
    return list(dict.fromkeys(row["id"] for row in csv.DictReader(io.StringIO(text))))


def test_export_writes_nothing_into_the_run(mlindex, three):
    before = content(three)
    answer = mlindex("export", three, "--to", "csv")
    assert answer.code == 0 and ids(answer.out) == ["alpha", "beta", "noise"] and answer.err == ""
    assert content(three) == before
    mlindex("run", three.parent / "c.toml", "--resume")
    assert mlindex("export", three / "results.h5", "--to", "csv").out == answer.out


def test_items_in_two_shards_are_exported_once(mlindex, three):
    wanted = mlindex("export", three, "--to", "json").out
    shard = min((three / "shards").glob("*.h5"))
    shutil.copy(shard, shard.with_name("zzz.h5"))
    assert mlindex("export", three, "--to", "json").out == wanted and wanted.count("\n") == 3


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
def test_a_lost_shard_is_named_and_is_status_1(mlindex, three, what):
    shard = sorted((three / "shards").glob("*.h5"))[1]
    (lost,) = read_results(shard)
    if what == "cut":
        os.truncate(shard, 1000)
    else:
        shard.unlink()
    kept = [name for name in ("alpha", "beta", "noise") if name != lost.id]
    for command in (["export", three, "--to", "csv"], ["merge", three]):
        answer = mlindex(*command)
        assert answer.code == 1 and answer.err.count("\n") == 1, command
        assert answer.err.startswith("problem: ") and shard.name in answer.err and "resume" in answer.err
        assert command[0] != "export" or ids(answer.out) == kept
        assert command[0] != "merge" or answer.out.startswith("2 items from 2 shards")
    assert mlindex("export", three, "--to", "json", "-o", three.parent / "o.json").code == 1
    assert len((three.parent / "o.json").read_text().splitlines()) == 2
    told = json.loads(mlindex("status", three, "--json").out)
    assert (told["unreadable"], told["missing"])[:: 1 if what == "cut" else -1] == ([shard.name], [])
    assert shard.name in mlindex("status", three).out
    mlindex("run", three.parent / "c.toml", "--resume")
    whole = mlindex("export", three, "--to", "csv")
    assert whole.code == 0 and whole.err == "" and ids(whole.out) == ["alpha", "beta", "noise"]


@pytest.mark.parametrize("command", ["status", "report"])
def test_a_list_of_inputs_that_is_too_short_is_one_sentence(mlindex, three, command):
    path = three / "inputs.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))
    answer = mlindex(command, three)
    assert answer.code == 2 and answer.err.count("\n") == 1
    assert f"{path}: has 2 inputs, but the results are of 3" in answer.err


def test_a_run_whose_frames_all_failed_is_exported_as_laue_frames(all_failed):
    run, folder = all_failed
    record = json.loads(run("export", folder, "--to", "json").out)
    assert record["status"] == "failed" and record["grains"] == [] and "solutions" not in record
    assert ",grain," in run("export", folder, "--to", "csv").out.splitlines()[0]
    refused = run("export", folder, "--to", "cif")
    assert refused.code == 2 and "these are results of Laue frames" in refused.err
    assert run("export", folder, "--to", "ctf", "-o", folder.parent / "map.ctf").code == 0
