"""`mlindex submit` against programs that stand in for sbatch and squeue (the real ones are in tests/slurm)."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from mlindex.runtime import journal, status


@pytest.fixture
def toml(lists):
    path = lists / "c.toml"
    path.write_text(
        '[campaign]\ninputs = ["alpha.txt", "beta.txt", "noise.txt"]\n\n[slurm]\ntasks = 3\npartition = "p"\n'
    )
    return path


@pytest.fixture
def scheduler(tmp_path, monkeypatch):
    """A scheduler that numbers jobs from 1, keeps the scripts in scripts/, and has in `queue` what squeue answers."""
    folder = tmp_path / "scheduler"
    (folder / "scripts").mkdir(parents=True)
    programs = {
        "sbatch": f'[ "$1" = --parsable ] || exit 9\nn=$(($(ls {folder}/scripts | wc -l) + 1))\n'
        f'[ ! -e {folder}/refuse ] || {{ echo "sbatch: error: no" >&2; exit 1; }}\n'
        f'cp "$2" {folder}/scripts/$n\necho "$n;cluster"\n',
        "squeue": f'echo "$*" >> {folder}/asked\ncat {folder}/queue\n',
    }
    for name, body in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{body}")
        (folder / name).chmod(0o755)
    (folder / "queue").write_text("")
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def scripts(scheduler) -> list[str]:
    return [path.read_text() for path in sorted((scheduler / "scripts").iterdir(), key=lambda path: int(path.name))]


def notes(toml) -> list[dict]:
    return [json.loads(line) for line in (toml.parent / "run/journal/submit.jsonl").read_text().splitlines()]


def test_dry_run_prints_both_scripts_and_writes_nothing(mlindex, toml):
    before = sorted(toml.parent.rglob("*"))
    answer = mlindex("submit", toml, "--dry-run")
    assert answer.code == 0 and answer.err == ""
    assert "#SBATCH --array=0-2\n" in answer.out and "#SBATCH --dependency=afterany:ARRAY_JOB_ID\n" in answer.out
    assert answer.out.count("#!/bin/bash") == 2 and sorted(toml.parent.rglob("*")) == before


@pytest.mark.parametrize(
    ("bloch", "campaign", "slurm", "warned"),
    [
        ("", "", "", True),
        ("", "item_seconds = 300", "", True),
        ("", "item_seconds = 80", "", False),
        ("seconds = 60", "", "", False),
        ("", "", "signal_seconds = 1300", False),
    ],
)
def test_a_signal_that_comes_too_late_for_an_item_is_told(mlindex, toml, bloch, campaign, slurm, warned):
    toml.write_text(
        f'[campaign]\nstage = "bloch"\ninputs = ["alpha.txt"]\n{campaign}\n[bloch]\n{bloch}\n[slurm]\n{slurm}\n'
    )
    answer = mlindex("submit", toml, "--dry-run")
    assert answer.code == 0 and answer.out.count("#!/bin/bash") == 2
    if warned:
        assert answer.err.startswith(f"warning: {toml}: [slurm]: signal_seconds = 90 is less than the time that an")
        assert "[bloch] seconds = 1200" in answer.err and answer.err.count("\n") == 1
    else:
        assert answer.err == ""


def test_dry_run_says_what_submit_would(mlindex, toml, scheduler):
    """Of a run: the parts that are left; of a complete one, that there is nothing to submit."""
    for part in range(3):
        answer = mlindex("submit", toml, "--dry-run")
        assert f"#SBATCH --array={('0-2', '1-2', '2')[part]}\n" in answer.out
        mlindex("run", toml, "--resume", "--part", f"{part}/3")
    dry = mlindex("submit", toml, "--dry-run")
    assert dry.code == 0 and dry.err == "" and dry.out.startswith("nothing to submit: ") and "is complete" in dry.out
    assert dry == mlindex("submit", toml) and not scripts(scheduler)


def test_submit_prints_and_notes_the_jobs(mlindex, toml, scheduler):
    answer = mlindex("submit", toml)
    assert answer.code == 0, answer.err
    assert answer.out == "array job 1: parts 0-2 of 3\nmerge job 2: when job 1 has ended\n"
    array, merge = scripts(scheduler)
    assert "--array=0-2\n" in array and "--dependency=afterany:1\n" in merge
    assert sorted(p.read_text() for p in (toml.parent / "run/log").glob("*.sh")) == sorted([array, merge])
    (note,) = notes(toml)
    wanted = {"event": "submit", "array": "1", "merge": "2", "tasks": [0, 1, 2], "parts": 3}
    assert {name: note[name] for name in wanted} == wanted
    assert not (scheduler / "asked").exists(), "no job, no question"
    assert [row["parts"] for row in status.status(toml.parent / "run")["tasks"]] == [3, 3, 3]


def test_what_is_queued_or_running_is_not_submitted_again(mlindex, toml, scheduler):
    mlindex("submit", toml)
    (scheduler / "queue").write_text("1 0 RUNNING\n1 2 PENDING\n2 N/A PENDING\n")
    answer = mlindex("submit", toml)
    assert answer.out == "array job 3: part 1 of 3\nmerge job 4: when jobs 1, 2 and 3 have ended\n"
    assert "--array=1\n" in scripts(scheduler)[2] and "--dependency=afterany:3:1:2\n" in scripts(scheduler)[3]
    (scheduler / "queue").write_text("1 0 RUNNING\n1 2 PENDING\n2 N/A PENDING\n3 1 PENDING\n")
    third = mlindex("submit", toml)
    assert third.code == 0 and "in the queue or running (job 1 and job 3)" in third.out and len(scripts(scheduler)) == 4
    assert len((scheduler / "asked").read_text().splitlines()) == 2, "one call each"
    assert "--jobs=1,2,3,4" in (scheduler / "asked").read_text()


def test_what_is_done_is_not_submitted_again(mlindex, toml, scheduler):
    mlindex("submit", toml)
    mlindex("run", toml, "--resume", "--part", "1/3")
    assert mlindex("submit", toml).out.startswith("array job 3: parts 0,2 of 3\n")
    mlindex("run", toml, "--resume", "--part", "0/3")
    mlindex("run", toml, "--resume", "--part", "2/3")
    answer = mlindex("submit", toml)
    assert answer.code == 0 and "is complete" in answer.out and len(scripts(scheduler)) == 4


def test_new_inputs_are_taken_in(mlindex, toml, scheduler):
    toml.write_text(toml.read_text().replace('"alpha.txt", "beta.txt", "noise.txt"', '"*a.txt"'))
    assert mlindex("submit", toml).out.startswith("array job 1: parts 0-1 of 3\n"), "there are two files"
    for part in range(3):
        mlindex("run", toml, "--resume", "--part", f"{part}/3")
    assert "is complete" in mlindex("submit", toml).out
    shutil.copy(toml.parent / "alpha.txt", toml.parent / "gamma.txt")
    assert mlindex("submit", toml).out.startswith("array job 3: part 2 of 3\n")


def test_items_of_a_file_that_nobody_has_opened_are_for_every_part(mlindex, toml, scheduler):
    toml.write_text(
        toml.read_text().replace("[campaign]", '[campaign]\nchunk = "items"').replace("tasks = 3", "tasks = 8")
    )
    assert mlindex("submit", toml).out.startswith("array job 1: parts 0-7 of 8\n")
    assert mlindex("submit", toml).out.startswith("array job 3: parts 0-7 of 8\n")


def test_division_may_change_when_no_job_is_left(mlindex, toml, scheduler):
    mlindex("submit", toml)
    toml.write_text(toml.read_text().replace("tasks = 3", "tasks = 2"))
    (scheduler / "queue").write_text("1 0 RUNNING\n")
    refused = mlindex("submit", toml)
    assert refused.code == 2 and "scancel 1" in refused.err and refused.err.count("\n") == 1
    (scheduler / "queue").write_text("2 N/A PENDING\n")
    assert mlindex("submit", toml).out.startswith("array job 3: parts 0-1 of 2\n")


def test_stop_after_and_max_failures_end_it(mlindex, toml, scheduler):
    toml.write_text(toml.read_text().replace("[campaign]", "[campaign]\nstop_after = 1\nmax_failures = 0"))
    mlindex("run", toml, "--resume", "--part", "0/3")
    answer = mlindex("submit", toml)
    assert answer.out.startswith("nothing to submit: ") and "has stop_after = 1 solutions" in answer.out
    toml.write_text(toml.read_text().replace("stop_after = 1\n", ""))
    (toml.parent / "beta.txt").write_text("no list")
    mlindex("run", toml, "--resume", "--part", "1/3")
    answer = mlindex("submit", toml)
    assert answer.code == 2 and "more than max_failures = 0" in answer.err and not scripts(scheduler)


def test_a_merge_that_is_refused_does_not_hide_the_array(mlindex, toml, scheduler):
    (scheduler / "sbatch").write_text(
        '#!/bin/sh\ncase "$2" in *merge.sh) echo "sbatch: error: no" >&2; exit 1;; esac\necho 1\n'
    )
    answer = mlindex("submit", toml)
    assert answer.code == 2 and answer.out == "array job 1: parts 0-2 of 3\n" and "refuses" in answer.err
    assert notes(toml)[0]["array"] == "1" and notes(toml)[0]["merge"] is None


def test_problems_are_one_sentence_and_status_2(mlindex, toml, scheduler, monkeypatch):
    (scheduler / "refuse").touch()
    refused = mlindex("submit", toml)
    assert refused.code == 2 and "sbatch refuses" in refused.err and ": no; correct [slurm]" in refused.err
    (scheduler / "refuse").unlink()
    mlindex("submit", toml)
    (scheduler / "squeue").write_text("#!/bin/sh\necho 'slurm_load_jobs error: timeout' >&2\nexit 1\n")
    silent = mlindex("submit", toml)
    assert silent.code == 2 and "timeout" in silent.err
    (scheduler / "squeue").write_text("#!/bin/sh\necho 'error: Invalid job id specified' >&2\nexit 1\n")
    assert mlindex("submit", toml).code == 0, "the scheduler has forgotten jobs that ended long ago"
    toml.write_text(toml.read_text() + "[slurm.stage.poder]\nranks = 2\n")
    typo = mlindex("submit", toml)
    assert typo.code == 2 and "no such stage; the stages are powder" in typo.err
    for answer in (refused, silent, typo):
        assert answer.err.count("\n") == 1 and answer.out == ""


def test_without_sbatch(mlindex, toml, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    answer = mlindex("submit", toml)
    assert answer.code == 2 and "no sbatch on the PATH" in answer.err and answer.err.count("\n") == 1
    assert not (toml.parent / "run").exists()
    assert mlindex("submit", toml, "--dry-run").code == 0


def test_events_of_submit_are_part_of_the_journal(mlindex, toml, scheduler):
    mlindex("submit", toml)
    assert [event["event"] for event in journal.rank0_events(toml.parent / "run")] == ["submit"]
