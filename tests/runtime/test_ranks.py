"""Campaigns on ranks, with real processes under the installed MPI's mpiexec; ranks die by real SIGKILLs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mlindex.records import Status
from mlindex.runtime import launch
from mlindex.runtime.shards import read_results
from mlindex.runtime.status import status as status_of
from tests.runtime.campaigns import (
    PATIENCE,
    ROOT,
    done_so_far,
    expected,
    journaled,
    kill_all,
    make,
    once,
    pids,
    rank_pid,
    run,
    running,
    same,
    shard_keys,
    values,
    wait_for,
)


def answers(campaign: Path) -> list:
    return read_results(campaign.parent / "run" / "results.h5")


def begun(campaign: Path, n: int) -> bool:
    """The run has done `n` items or more."""
    return (campaign.parent / "run" / "journal").exists() and done_so_far(campaign.parent / "run") >= n


def test_one_two_and_four_ranks_give_the_same_answers(tmp_path):
    files = {**values(9), "many": "".join(f"value {k}\n" for k in range(11)), "no": "bad", "broken": "raise", "nil": ""}
    got = {}
    for ranks in ("1", "2", "4"):
        campaign = make(tmp_path / "same", files, batch=2, extra=f'output = "run{ranks}"\n')
        status, out, _ = run(campaign, "--ranks", ranks)
        assert status == 1 and out == ""
        got[ranks] = read_results(tmp_path / "same" / f"run{ranks}" / "results.h5")
        once(tmp_path / "same" / f"run{ranks}", 23)
    same(got["1"], got["2"])
    same(got["1"], got["4"])
    now = status_of(tmp_path / "same" / "run4")
    assert now["done"] == 23 and {row["rank"] for row in now["ranks"]} <= {1, 2, 3, 4} and len(now["ranks"]) > 1


def test_batch_that_was_committed_and_not_acknowledged_is_not_done_again(tmp_path, monkeypatch):
    monkeypatch.setenv("TOY_MARK", str(tmp_path / "mark"))
    campaign = make(tmp_path, values(12))
    campaign.write_text(campaign.read_text().replace("ToyStage", "ForgetfulToyStage"))
    status, _, err = run(campaign, "--ranks", "2")
    assert status == 0 and (tmp_path / "mark").exists(), err
    once(tmp_path / "run", 12)
    assert status_of(tmp_path / "run")["done"] == 12
    same(answers(campaign), expected(campaign))


def test_item_that_kills_its_workers_has_failed(tmp_path):
    """Both workers die of it: others are started, and it alone is missing at the end."""
    campaign = make(
        tmp_path, {**values(8), "deadly": "value 3\nkill\nvalue 2\n", "reader": "crash the reader"}, batch=4
    )
    status, _, err = run(campaign, "--ranks", "2")
    assert status == 1, err
    once(tmp_path / "run", 12)
    failed = {r.id: r.reason for r in answers(campaign) if r.status is Status.FAILED}
    assert set(failed) == {"deadly#2", "reader"} and all("killed" in reason for reason in failed.values())


def test_asked_to_end_it_ends_with_all_its_ranks(tmp_path):
    campaign = make(tmp_path, {k: f"{v} wait 0.2" for k, v in values(30).items()})
    with running(campaign, "--ranks", "2") as process:
        wait_for(lambda: begun(campaign, 2))
        process.send_signal(signal.SIGTERM)
        status = process.wait(PATIENCE)
        left = pids(campaign)
    assert status == 128 + signal.SIGTERM and not left
    assert len(answers(campaign)) == len(shard_keys(tmp_path / "run")) >= 2


def test_ranks_divide_the_cores_and_the_dispatcher_loads_no_jax(tmp_path):
    campaign = make(tmp_path, values(6, "wait 1"), batch=1)
    campaign.write_text(campaign.read_text().replace("ToyStage", "JaxToyStage"))
    with running(campaign, "--ranks", "2"):
        wait_for(lambda: begun(campaign, 3))
        ranks = {rank: rank_pid(campaign, rank) for rank in range(3)}
        cores = {rank: os.sched_getaffinity(pid) for rank, pid in ranks.items()}
        jax = {rank: "jaxlib" in Path(f"/proc/{pid}/maps").read_text() for rank, pid in ranks.items()}
    everything = os.sched_getaffinity(0)
    assert cores[1] | cores[2] == everything and cores[0] == everything
    assert len(everything) == 1 or not cores[1] & cores[2]
    assert jax == {0: False, 1: True, 2: True}


def test_stage_that_no_rank_can_load_is_refused(tmp_path):
    campaign = make(tmp_path, values(1))
    campaign.write_text(campaign.read_text().replace("ToyStage", "Nothing"))
    status, _, err = run(campaign, "--ranks", "2")
    assert status == 2 and "tests.runtime.toy:Nothing" in err and err.count("\n") == 1
    assert run(make(tmp_path, {}))[0] == 0, "and the run directory is not spoiled"


@pytest.mark.parametrize("processes", [1, 3])
def test_inside_a_launcher_it_joins(tmp_path, processes):
    campaign = make(tmp_path, values(7))
    program = [sys.executable, "-m", "mlindex.runtime.run", str(campaign)]
    mpiexec = launch.find_mpiexec()
    env = launch.environment(os.environ)
    command = launch.command(mpiexec, launch.version_of(mpiexec), processes, program, env)
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=PATIENCE)
    kill_all(campaign)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("7 items") == 1
    once(tmp_path / "run", 7)


def test_launcher_that_mpi_does_not_know_is_refused(tmp_path):
    """Four tasks of srun that MPI takes for four runs would each do everything."""
    campaign = make(tmp_path, values(1))
    step = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    program = [sys.executable, "-m", "mlindex.runtime.run", str(campaign)]
    env = {**launch.environment(os.environ), **step}
    done = subprocess.run(program, cwd=ROOT, env=env, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 2 and "started 4 processes" in done.stderr and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("version", "wanted"),
    [
        (
            "mpiexec (Open MPI) 5.0.11\n",
            ["--with-ft", "ulfm", "--oversubscribe", "--bind-to", "none", "-x", "XLA_FLAGS"],
        ),
        ("mpiexec (OpenRTE) 4.1.6\n", ["--oversubscribe", "--bind-to", "none", "-x", "XLA_FLAGS"]),
        ("HYDRA build details:\n    Version: 4.2.1\n", []),
    ],
)
def test_command_line_of_each_mpi(version, wanted):
    got = launch.command("mpiexec", version, 3, ["program"], {"XLA_FLAGS": "", "HOME": "/h"})
    assert got == ["mpiexec", "-n", "3", *wanted, "program"]


def test_lost_worker_is_replaced_where_that_saves_time(tmp_path):
    """The ranks are started once more, because one worker alone would take much longer; nothing is done twice."""
    files = {k: f"{v} wait 0.2" for k, v in values(80).items()}
    campaign = make(tmp_path, files, batch=2, extra="relaunch_seconds = 3.0\n")
    with running(campaign, "--ranks", "2") as process:
        wait_for(lambda: begun(campaign, 8))
        os.kill(rank_pid(campaign, 1), signal.SIGKILL)
        status = process.wait(PATIENCE)
    assert status == 0
    once(tmp_path / "run", 80)
    ends = [(e["event"], e.get("why")) for e in journaled(tmp_path / "run") if e["event"] in ("start", "stop")]
    assert ends == [("start", None), ("stop", "relaunch"), ("start", None), ("stop", "done")]
    assert {(row["rank"], row["done"] > 0) for row in status_of(tmp_path / "run")["ranks"]} == {(1, True), (2, True)}
    assert len(status_of(tmp_path / "run")["ranks"]) == 4


def test_long_messages_both_ways_do_not_wait_for_each_other(tmp_path):
    """Batches ahead and acknowledgements of several kB, which MPI sends only when the other side takes them."""
    campaign = make(tmp_path, values(3000), batch=150)
    status, _, err = run(campaign, "--ranks", "2")
    assert status == 0, err
    once(tmp_path / "run", 3000)


def test_launcher_that_outlives_its_ranks_is_ended(tmp_path, monkeypatch):
    """Open MPI's does, now and then, when rank 0 was killed; and then it does not listen to SIGTERM."""
    monkeypatch.setattr(launch, "_GRACE", 0.2)
    monkeypatch.setattr(launch, "_HARD", 0.2)
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(1000)"
    ends = iter([False, False, True])
    status, asked = launch.run(
        [sys.executable, "-c", deaf], tmp_path / "log", os.environ, lambda: 0.1, lambda: next(ends, True)
    )
    assert status < 0 and asked is None and "has not ended with its ranks" in (tmp_path / "log").read_text()
    program = [sys.executable, "-c", "import time; time.sleep(1)"]
    assert launch.run(program, tmp_path / "log", os.environ, lambda: 0.1, lambda: False) == (0, None)
