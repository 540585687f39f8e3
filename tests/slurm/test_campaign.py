"""Campaigns through `mlindex submit` on a real SLURM: to the end, cut short and requeued, cancelled and resubmitted."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest

from mlindex.runtime.master import build_master
from mlindex.runtime.shards import read_results
from tests.runtime.campaigns import done_so_far, expected, make, once, same, values
from tests.slurm.cluster import wait_for
from tests.slurm.conftest import slurm_table


def ids(out: str) -> tuple[str, str]:
    """The numbers of the array job and of the merge job, from what `submit` prints."""
    return re.search(r"^array job (\d+):", out, re.M).group(1), re.search(r"^merge job (\d+):", out, re.M).group(1)


def log_of(run, job: str) -> str:
    return (run / "log" / f"slurm-{job}.out").read_text()


def complete(campaign, n: int) -> None:
    """Every item is in the shards once, with the answers that the stage gives without the runtime."""
    run = campaign.parent / "run"
    build_master(run)
    once(run, n)
    same(read_results(run / "results.h5"), expected(campaign))


def test_array_to_the_end_in_a_folder_with_a_hostile_name(cluster, submit, tmp_path):
    folder = tmp_path / "a b'c\"d#e%j$HOME;é"
    folder.mkdir()
    campaign = make(folder, values(8), extra=slurm_table("tasks = 2\nlimit = 2\nranks = 2\n"))
    answer = submit(campaign)
    assert answer.code == 0, answer.err
    array, merge = ids(answer.out)
    assert "parts 0-1 of 2" in answer.out
    states = cluster.wait(array, "COMPLETED")
    assert set(states) == {f"{array}_0", f"{array}_1"}
    assert "4 of 4 done" in log_of(folder / "run", f"{array}_0") and "4 of 4 done" in log_of(
        folder / "run", f"{array}_1"
    )
    cluster.wait(merge, "COMPLETED")
    told = log_of(folder / "run", f"{merge}-merge")
    assert "8 of 8 done" in told and (folder / "run" / "report.html").exists()
    complete(campaign, 8)
    again = submit(campaign)
    assert again.code == 0 and "complete" in again.out and "job" not in again.out
    assert len((folder / "run/journal/submit.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize("launch", ['launcher = "mpiexec"', 'launcher = "srun"\nmpi = "pmix"'], ids=["mpiexec", "srun"])
def test_signal_before_the_limit_ends_the_round_and_the_task_goes_on_in_the_next(cluster, submit, tmp_path, launch):
    campaign = make(tmp_path, values(24, "wait 0.5"), extra=slurm_table(f"ranks = 2\n{launch}\n"))
    array, merge = ids(submit(campaign).out)
    run = tmp_path / "run"
    wait_for(lambda: done_so_far(run) >= 2, "the first items")
    cluster.run("scancel", "--signal=USR1", "--batch", f"{array}_0")
    cluster.wait(array, "PENDING")
    before = done_so_far(run)
    assert 2 <= before < 24, "the batches in hand are committed, and no more are begun"
    assert set(cluster.jobs(merge).values()) == {"PENDING"}, "a task that is requeued has not ended"
    assert "back into the queue" in log_of(run, f"{array}_0")
    # what SLURM's PMIx at times leaves of a step that was ended, and then refuses the next one of this number over
    left = Path(f"/tmp/spmix_appdir_{os.getuid()}_{array}.0")
    left.mkdir(exist_ok=True)
    try:
        cluster.start_now(array)
        cluster.wait(array, "COMPLETED")
    finally:
        shutil.rmtree(left)
    assert cluster.details(f"{array}_0")["Restarts"] == "1"
    cluster.run("scancel", merge)
    complete(campaign, 24)
    parts = {tuple(note["part"]) for note in starts(run)}
    assert parts == {(0, 1)} and [note["done"] for note in starts(run)] == [0, before]


def starts(run) -> list[dict]:
    """The lines that rank 0 wrote at each start, in order."""
    lines = [json.loads(t) for path in (run / "journal").glob("*-r0000.jsonl") for t in path.read_text().splitlines()]
    return sorted((line for line in lines if line["event"] == "start"), key=lambda line: line["time"])


def test_time_limit(cluster, submit, tmp_path):
    """SLURM's own signal, at a real limit of a minute, which comes within half a minute here."""
    table = slurm_table('time = "00:01:00"\nsignal_seconds = 45\n')
    campaign = make(tmp_path, values(45, "wait 0.8"), extra=table)
    array, merge = ids(submit(campaign).out)
    cluster.run("scancel", merge)
    while cluster.wait(array, "PENDING", "COMPLETED") != {f"{array}_0": "COMPLETED"}:
        cluster.start_now(array)
        wait_for(lambda: set(cluster.jobs(array).values()) != {"PENDING"}, "the next round")
    assert int(cluster.details(f"{array}_0")["Restarts"]) >= 1
    assert "work left: back into the queue" in log_of(tmp_path / "run", f"{array}_0")
    complete(campaign, 45)


def test_cancelled_task_alone_is_submitted_again(cluster, submit, tmp_path):
    campaign = make(tmp_path, values(16, "wait 0.4"), extra=slurm_table("tasks = 2\n"))
    array, merge = ids(submit(campaign).out)
    run = tmp_path / "run"
    wait_for(lambda: done_so_far(run) >= 2, "the first items")
    busy = submit(campaign)
    assert busy.code == 0 and f"in the queue or running (job {array})" in busy.out
    cluster.run("scancel", f"{array}_1")
    wait_for(lambda: cluster.jobs(array)[f"{array}_1"] == "CANCELLED", "the end of the cancelled task")
    answer = submit(campaign)
    second, merge_again = ids(answer.out)
    assert "part 1 of 2" in answer.out
    assert set(cluster.jobs(second)) == {f"{second}_1"}
    assert f"when jobs {array}, {merge} and {second} have ended" in answer.out
    cluster.wait(array, "COMPLETED", "CANCELLED")
    cluster.wait(second, "COMPLETED")
    cluster.run("scancel", merge, merge_again)
    complete(campaign, 16)


def test_another_division_is_refused_while_jobs_of_the_last_one_are_there(cluster, submit, tmp_path):
    campaign = make(tmp_path, values(4), extra=slurm_table('tasks = 2\nextra = ["--hold"]\n'))
    array, merge = ids(submit(campaign).out)
    campaign.write_text(campaign.read_text().replace("tasks = 2", "tasks = 4"))
    refused = submit(campaign)
    assert refused.code == 2 and re.search(f"job {array} works on 2 parts.*scancel {array}", refused.err)
    cluster.run("scancel", array, merge)
    wait_for(lambda: set(cluster.jobs(array).values()) == {"CANCELLED"}, "the end of the held job")
    answer = submit(campaign)
    assert "parts 0-3 of 4" in answer.out
    cluster.run("scancel", *ids(answer.out))


def test_what_sbatch_refuses_is_one_sentence(cluster, submit, tmp_path):
    campaign = make(tmp_path, values(1), extra=slurm_table('partition = "nowhere"\n'))
    answer = submit(campaign)
    assert answer.code == 2 and "partition" in answer.err
    assert answer.err.count("\n") == 1 and answer.out == ""
