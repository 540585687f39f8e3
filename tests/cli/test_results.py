"""`mlindex merge`, and `export` of a run directory, its master and a merged file."""

from __future__ import annotations

import csv
import io
import json

import gemmi
import pytest

from mlindex.runtime.validate import validate
from tests.report.results import SCHEMA


@pytest.fixture
def run(mlindex, lists):
    (lists / "c.toml").write_text('[campaign]\ninputs = ["*.txt", "broken.csv"]\n\n[powder]\nseed = 5\n')
    mlindex("run", lists / "c.toml")
    return lists / "run"


def test_merge_says_what_it_did(mlindex, run):
    answer = mlindex("merge", run)
    assert answer.code == 0 and answer.out == f"5 items from 1 shards: {run / 'merged.h5'}\n"
    assert validate(run / "merged.h5", SCHEMA) == []
    elsewhere = run.parent / "night.h5"
    assert mlindex("merge", run, "-o", elsewhere).code == 0 and validate(elsewhere, SCHEMA) == []
    assert mlindex("merge", run).code == 0, "once more, over the file that is there"


def test_merge_names_a_shard_that_cannot_be_read(mlindex, run):
    (run / "shards" / "zzz.h5").write_text("no HDF5")
    answer = mlindex("merge", run)
    assert answer.code == 1 and "5 items from 1 shards" in answer.out and "zzz.h5" in answer.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nothing"], "not the directory of a run"),
        (["alpha.txt"], "not the directory of a run"),
        (["run", "-o", "nowhere/x.h5"], "cannot be written"),
        (["run", "-o", "run"], "cannot be written"),
    ],
)
def test_merge_of_what_is_not_there(mlindex, run, monkeypatch, arguments, says):
    monkeypatch.chdir(run.parent)
    answer = mlindex("merge", *arguments)
    assert answer.code == 2 and says in answer.err and answer.err.count("\n") == 1 and answer.out == ""


@pytest.mark.parametrize("to", ["json", "csv", "cif"])
def test_export_is_the_same_from_run_master_and_merged_file(mlindex, run, to):
    mlindex("merge", run)
    texts = [mlindex("export", source, "--to", to) for source in (run, run / "results.h5", run / "merged.h5")]
    assert [t.code for t in texts] == [0, 0, 0] and texts[0].out == texts[1].out == texts[2].out
    if to == "json":
        assert [json.loads(line)["id"] for line in texts[2].out.splitlines()] == [
            "alpha",
            "beta",
            "bug",
            "noise",
            "broken",
        ]
    elif to == "csv":
        assert [row["id"] for row in csv.DictReader(io.StringIO(texts[2].out))] == [
            *("alpha", "alpha", "beta", "beta"),
            *("bug", "noise", "broken"),
        ]
    else:
        assert [block.name for block in gemmi.cif.read_string(texts[2].out)] == ["alpha", "beta"]
