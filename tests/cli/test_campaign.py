"""`mlindex run`, `status` and `export`, in one process (the ranks have tests of their own)."""

from __future__ import annotations

import csv
import io
import json

import gemmi
import pytest

from mlindex.cli import campaign


@pytest.fixture
def toml(lists):
    path = lists / "campaign.toml"
    path.write_text('[campaign]\ninputs = ["*.txt", "broken.csv"]\n\n[powder]\nseed = 5\n')
    return path


def test_run_prints_a_row_a_list_and_names_the_failures(mlindex, toml):
    answer = mlindex("run", toml)
    assert answer.code == 1
    rows = answer.out.splitlines()
    for name, part in (("alpha", "12.9920(13)"), ("beta", "hR"), ("noise", "unsolved"), ("broken", "failed")):
        assert any(row.startswith(name) and part in row for row in rows), name
    assert rows[-1].startswith("5 of 5 done (2 solved, 1 unsolved, 2 failed)")
    assert "failed: bug (bug.txt): RuntimeError: a bug" in answer.err and "failed: broken (broken.csv)" in answer.err


def test_run_without_failures_ends_with_0(mlindex, lists):
    (lists / "c.toml").write_text('[campaign]\ninputs = ["alpha.txt", "noise.txt"]\n')
    answer = mlindex("run", lists / "c.toml")
    assert answer.code == 0 and answer.err == ""


def test_a_large_campaign_gets_a_summary(mlindex, toml, monkeypatch):
    monkeypatch.setattr(campaign, "SMALL", 4)
    answer = mlindex("run", toml)
    assert len(answer.out.splitlines()) == 1 and "5 of 5 done" in answer.out


def test_a_second_run_needs_resume(mlindex, toml):
    mlindex("run", toml)
    again = mlindex("run", toml)
    assert again.code == 2 and again.out == "" and "resume" in again.err and again.err.count("\n") == 1
    resumed = mlindex("run", toml, "--resume")
    assert "5 of them before" in resumed.out


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[campaign]\ninputs = ['alpha.txt']\nspeed = 3\n", "unknown key 'campaign.speed'; the valid keys are name"),
        ("[campaign]\ninputs = ['alpha.txt']\n[powder]\neffort = 'fast'\n", "powder.effort"),
        ("[campaign]\ninputs = ['none*.txt']\n", "none*.txt"),
        ("[campaign]\ninputs = ['alpha.txt']\nstage = 'magic'\n", "no stage 'magic'"),
        ("[campaign\n", "not valid TOML"),
        (None, "cannot be read"),
    ],
)
def test_a_bad_campaign_is_one_sentence_and_status_2(mlindex, lists, text, says):
    path = lists / "bad.toml"
    if text is not None:
        path.write_text(text)
    answer = mlindex("run", path)
    assert answer.code == 2 and says in answer.err and answer.err.count("\n") == 1 and answer.out == ""


def test_status(mlindex, toml):
    mlindex("run", toml)
    answer = mlindex("status", toml.parent / "run")
    assert (
        answer.code == 0 and "complete" in answer.out and "5 of 5 done (2 solved, 1 unsolved, 2 failed)" in answer.out
    )
    told = json.loads(mlindex("status", toml.parent / "run", "--json").out)
    assert told["total"] == 5 and told["left"] == 0
    nothing = mlindex("status", toml.parent)
    assert nothing.code == 2 and nothing.err.count("\n") == 1


def test_status_names_failures_and_tasks_and_watches_to_the_end(mlindex, toml):
    for k in range(2):
        assert mlindex("run", toml, "--resume", "--part", f"{k}/2").code in (0, 1)
    answer = mlindex("status", toml.parent / "run", "--watch")
    assert answer.code == 0 and answer.out.count("complete") == 3, "the run, and its two tasks"
    assert "failed: broken (broken.csv)" in answer.out and "40.0% of those done are solved" in answer.out
    assert mlindex("run", toml, "--part", "2/2").code == 2


def test_export_in_every_format(mlindex, toml):
    mlindex("run", toml)
    run = toml.parent / "run"
    records = [json.loads(line) for line in mlindex("export", run, "--to", "json").out.splitlines()]
    assert [r["id"] for r in records] == ["alpha", "beta", "bug", "noise", "broken"]
    rows = list(csv.DictReader(io.StringIO(mlindex("export", run, "--to", "csv").out)))
    assert len(rows) == 7 and rows[0]["bravais"] == "hR"
    path = toml.parent / "out.cif"
    answer = mlindex("export", run / "results.h5", "--to", "cif", "-o", path)
    assert answer.code == 0 and answer.out == "" and answer.err.startswith("1 unsolved item has no block in the CIF")
    assert [block.name for block in gemmi.cif.read(str(path))] == ["alpha", "beta"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nothing", "--to", "json"], "no such run"),
        (["alpha.txt", "--to", "json"], "not a readable results file"),
        ([".", "--to", "json"], "no results"),
        (["run", "--to", "xml"], "use one of json, csv, cif"),
        (["run", "--to", "csv", "-o", "nowhere/x.csv"], "cannot be written"),
    ],
)
def test_export_of_what_is_not_there(mlindex, toml, monkeypatch, arguments, says):
    monkeypatch.chdir(toml.parent)
    mlindex("run", toml)
    answer = mlindex("export", *arguments)
    assert answer.code == 2 and says in answer.err and answer.err.count("\n") == 1 and answer.out == ""
