"""`mlindex index powder`: what goes where, with which exit status."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from mlindex.config import PowderSettings
from mlindex.runtime.shards import read_results
from tests.cli.fake import FakeStage
from tests.runtime.campaigns import PATIENCE, ROOT


def test_table_on_standard_output(mlindex, lists):
    answer = mlindex("index", "powder", lists / "alpha.txt")
    assert answer.code == 0 and answer.err == ""
    assert "alpha" in answer.out and "12.9920(13)" in answer.out and "R -3 c" in answer.out


def test_one_json_object_a_list_and_nothing_else(mlindex, lists):
    answer = mlindex("index", "powder", "--json", lists / "alpha.txt", lists / "noise.txt", lists / "broken.csv")
    records = [json.loads(line) for line in answer.out.splitlines()]
    assert [r["status"] for r in records] == ["solved", "unsolved", "failed"]
    assert [r["id"] for r in records] == ["alpha", "noise", "broken"]
    assert records[0]["source"] == str(lists / "alpha.txt")
    assert answer.code == 1


def test_a_bad_file_is_named_and_the_others_go_on(mlindex, lists):
    answer = mlindex("index", "powder", lists / "none.txt", lists / "broken.csv", lists / "bug.txt", lists / "beta.txt")
    assert answer.code == 1 and "beta" in answer.out and "failed" not in answer.out
    assert f"failed: none: {lists / 'none.txt'}: there is no such file" in answer.err
    assert "failed: broken:" in answer.err and "q2 = -2, is not positive" in answer.err
    assert "failed: bug: RuntimeError: a bug" in answer.err
    assert "4 lists: 1 solved, 3 failed" in answer.err and "Traceback" not in answer.err


PROGRAM = """
import sys
from mlindex import stage
from mlindex.cli.main import main
from mlindex.runtime import device
stage.STAGES["powder"] = "tests.cli.fake:FakeStage"
device.apply = lambda *a: None
main(sys.argv[1:])
"""


def process(*arguments: object, **how) -> subprocess.Popen:
    words = [sys.executable, "-c", PROGRAM, *map(os.fsencode, arguments)]
    return subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **how)


@pytest.mark.parametrize(("option", "encoding"), [(["--json"], "utf-8"), (["--json"], "ascii"), ([], "utf-8")])
def test_a_name_that_is_not_utf_8_is_printed(lists, option, encoding):
    path = os.fsencode(lists) + b"/caf\xe9-\xc3\xa9.txt"
    (lists / "alpha.txt").rename(os.fsdecode(path))
    answer = process("index", "powder", *option, path, env={**os.environ, "PYTHONIOENCODING": encoding})
    out, err = answer.communicate(timeout=PATIENCE)
    assert answer.returncode == 0 and not err, err
    assert json.loads(out)["source"] == os.fsdecode(path) if option else b"caf" in out


@pytest.mark.parametrize("option", [["--json"], []])
def test_results_are_written_where_nobody_reads_what_is_printed(lists, option):
    """As with `| head -1`: the pipe is closed after the first line."""
    names = [lists / f"{name}.txt" for name in ("alpha", "beta", "noise")]
    for output in ([], ["-o", lists / "r.h5"]):
        answer = process("index", "powder", *option, *output, *names)
        assert answer.stdout.readline()
        answer.stdout.close()
        err = answer.stderr.read().decode()
        answer.stderr.close()
        code = answer.wait(PATIENCE)
        assert "Traceback" not in err and "Broken" not in err and "Exception" not in err
        assert code in ((0,) if output else (0, 1))
    assert [r.id for r in read_results(lists / "r.h5")] == ["alpha", "beta", "noise"]
    assert "3 lists: 2 solved, 1 unsolved" in err and f"results in {lists / 'r.h5'}" in err


def test_directories_and_globs(mlindex, lists):
    names = [json.loads(line)["id"] for line in mlindex("index", "powder", "--json", lists).out.splitlines()]
    assert names == ["alpha", "beta", "broken", "bug", "noise"]
    answer = mlindex("index", "powder", "--json", lists / "*a.txt", lists / "alpha.txt")
    assert [json.loads(line)["id"] for line in answer.out.splitlines()] == ["alpha", "beta"]


def test_files_of_one_name_are_told_apart(mlindex, lists, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "alpha.txt").write_text((lists / "alpha.txt").read_text())
    answer = mlindex("index", "powder", "--json", lists / "alpha.txt", tmp_path / "other" / "alpha.txt")
    assert len({json.loads(line)["id"] for line in answer.out.splitlines()}) == 2


def test_output_file_holds_all_results_and_the_settings(mlindex, lists):
    path = lists / "results.h5"
    answer = mlindex("index", "powder", "-o", path, "--seed", 7, lists / "alpha.txt", lists / "broken.csv")
    assert answer.code == 1 and f"results in {path}" in answer.err
    found = read_results(path)
    assert [(r.id, str(r.status)) for r in found] == [("alpha", "solved"), ("broken", "failed")]
    assert list(found[0].tables["solutions"]["bravais"]) == ["hR", "mP"]
    exported = mlindex("export", path, "--to", "json")
    assert exported.code == 0 and [json.loads(x)["id"] for x in exported.out.splitlines()] == ["alpha", "broken"]


def test_every_setting_is_an_option(mlindex, lists):
    options = {
        "effort": "quick",
        "lattice": "mP,mC",
        "max_volume": 1000.0,
        "impurities": 2,
        "solutions": 5,
        "quantity": "d",
        "wavelength": 0.15,
        "geometry": "detector.geom",
        "seed": 3,
    }
    arguments = [x for name, value in options.items() for x in (f"--{name.replace('_', '-')}", value)]
    arguments += ["--no-zero-shift", "--lattice", "aP"]
    assert mlindex("index", "powder", *arguments, lists / "alpha.txt").code == 0
    wanted = PowderSettings(**{**options, "lattice": ("mP", "mC", "aP"), "zero_shift": False})
    assert FakeStage.built == [wanted]
    assert {*options, "zero_shift"} == set(PowderSettings.model_fields), "a new setting needs an option"


def test_without_options_the_defaults_stand(mlindex, lists):
    mlindex("index", "powder", lists / "alpha.txt")
    mlindex("index", "powder", "--wavelength", "CuKa1", lists / "alpha.txt")
    assert FakeStage.built == [PowderSettings(), PowderSettings(wavelength=1.5405929)]


def test_the_option_that_contradicts_the_file_is_said(mlindex, lists, caplog):
    answer = mlindex("index", "powder", "--json", "--quantity", "d", lists / "alpha.txt")
    assert answer.code == 0 and len(answer.out.splitlines()) == 1
    assert "says that its positions are q2; they are read as d" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--effort", "fast"], "effort"),
        (["--lattice", "xx"], "lattice"),
        (["--max-volume", "-1"], "max_volume"),
        (["--impurities", "9"], "impurities"),
        (["--wavelength", "-1"], "wavelength"),
        (["--wavelength", "long"], "'long' is no wavelength"),
        (["--quantity", "theta"], "quantity"),
        (["-o", "/nowhere/results.h5"], "/nowhere/results.h5: cannot be written"),
        (["*.nothing"], "*.nothing: there are no files here"),
    ],
)
def test_bad_usage_is_one_sentence_and_status_2(mlindex, lists, arguments, says):
    answer = mlindex("index", "powder", lists / "alpha.txt", *arguments)
    assert answer.code == 2 and answer.out == ""
    assert says in answer.err and answer.err.count("\n") == 1 and answer.err.startswith("mlindex: ")
    assert not FakeStage.built


@pytest.mark.parametrize(
    "arguments",
    [["index", "powder"], ["index", "powder", "--wrong", "x"], ["nothing"], ["index", "powder", "--seed", "x"]],
)
def test_usage_errors_of_the_parser(mlindex, arguments):
    answer = mlindex(*arguments)
    assert answer.code == 2 and answer.out == "" and "Usage" in answer.err and "Traceback" not in answer.err


def test_an_empty_directory(mlindex, tmp_path):
    answer = mlindex("index", "powder", tmp_path)
    assert answer.code == 2 and "there are no files here" in answer.err


def test_an_interrupt_keeps_what_is_done(mlindex, lists):
    (lists / "interrupt.txt").write_text((lists / "alpha.txt").read_text())
    files = [lists / "alpha.txt", lists / "interrupt.txt", lists / "beta.txt"]
    answer = mlindex("index", "powder", "-o", lists / "r.h5", *files)
    assert answer.code == 130 and "interrupted before 3 files" in answer.err
    assert [r.id for r in read_results(lists / "r.h5")] == ["alpha"]
