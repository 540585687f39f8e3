"""Parts of a campaign, as the tasks of an array do them, and early ends: by a signal, enough solutions, failures."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlindex.records import InputError
from mlindex.runtime import inputs
from mlindex.runtime.master import build_master
from mlindex.runtime.queue import Done, Part, Queue
from mlindex.runtime.run import part_from_text
from mlindex.runtime.rundir import create
from mlindex.runtime.shards import read_results
from mlindex.runtime.status import status as status_of
from tests.runtime.campaigns import (
    PATIENCE,
    ROOT,
    done_so_far,
    expected,
    journaled,
    make,
    once,
    run,
    running,
    same,
    shard_keys,
    told,
    values,
    wait_for,
)

SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=12)


@given(SIZES, st.integers(1, 6), st.sampled_from(["files", "items"]))
def test_parts_are_a_partition(sizes, of, chunk):
    """Each item is in exactly one part, by `items` and by `numbers`."""
    parts = [Part(k, of, chunk) for k in range(of)]
    found = [[(i, k) for i in part.inputs(len(sizes)) for k in part.items(i, sizes[i])] for part in parts]
    everything = [(i, k) for i, n in enumerate(sizes) for k in range(n)]
    assert sorted(key for mine in found for key in mine) == everything
    keys = np.array(everything)
    numbers = Part(0, of, chunk).numbers(keys[:, 0], keys[:, 1], np.array(sizes)[keys[:, 0]])
    assert [(k, tuple(key)) for k, mine in enumerate(found) for key in mine] == sorted(
        (int(n), key) for n, key in zip(numbers, everything, strict=True)
    )


@given(SIZES, st.integers(1, 4), st.integers(1, 5), st.sampled_from(["files", "items"]))
def test_queues_of_all_parts_do_everything_once(sizes, of, batch, chunk):
    handed = []
    for k in range(of):
        part = Part(k, of, chunk)
        queue = Queue(len(sizes), batch, part)
        while not queue.finished:
            number, units = queue.take(0, 1)
            done = []
            for unit in units:
                size = sizes[unit.input]
                chosen = range(unit.start, unit.start if unit.stop is None else unit.stop)
                if unit.stop is None:
                    chosen = part.items(unit.input, size)[: unit.first]
                    queue.opened(unit.input, size)
                done += [Done(unit.input, index, size, "solved") for index in chosen]
            assert len(queue.complete(0, number, done)) == len(done)
            handed += [d.key for d in done]
        assert queue.done == queue.total
    assert sorted(handed) == [(i, k) for i, n in enumerate(sizes) for k in range(n)]


@pytest.mark.parametrize("text", ["3/3", "1", "a/b", "-1/2", "1/0"])
def test_bad_parts_are_refused(text):
    with pytest.raises(InputError, match=f"--part {text}: give K/N"):
        part_from_text(text)


@pytest.mark.parametrize("chunk", ["files", "items"])
def test_parts_at_once_share_a_run_directory(tmp_path, chunk):
    files = {**values(9), "many": "".join(f"value {k}\n" for k in range(11)), "no": "bad"}
    whole = make(tmp_path / "whole", files)
    assert run(whole)[0] == 1
    campaign = make(tmp_path / "parts", files, extra=f'chunk = "{chunk}"\n')
    program = [sys.executable, "-m", "mlindex.runtime.run", str(campaign), "--resume", "--part"]
    processes = [subprocess.Popen([*program, f"{k}/3"], cwd=ROOT, stderr=subprocess.PIPE) for k in range(3)]
    assert sorted(p.wait(PATIENCE) for p in processes) == [0, 0, 1], [p.communicate() for p in processes]
    for process in processes:
        process.communicate()
    run_dir = tmp_path / "parts" / "run"
    assert not (run_dir / "results.h5").exists(), "no part writes what is for all"
    same(read_results(build_master(run_dir)), read_results(tmp_path / "whole" / "run" / "results.h5"))
    once(run_dir, 21)
    now = status_of(run_dir)
    assert [t["part"] for t in now["tasks"]] == [0, 1, 2] and sum(t["total"] for t in now["tasks"]) == 21
    assert all(t["done"] == t["total"] and t["why"] == "done" and t["rounds"] == 1 for t in now["tasks"])
    assert run(campaign, "--resume", "--part", "1/3")[0] in (0, 1)
    once(run_dir, 21)


def test_directory_that_another_part_is_making_is_a_new_one(tmp_path):
    """What is there while the manifest is written: the folders and a part of its text, but no settings."""
    campaign = make(tmp_path, values(3))
    (tmp_path / "run" / "lock").mkdir(parents=True)
    (tmp_path / "run" / inputs.PARTIAL).write_text('{"label": "a", "sou')
    for part in ("0/2", "1/2"):
        assert run(campaign, "--resume", "--part", part)[0] == 0
    build_master(tmp_path / "run")
    once(tmp_path / "run", 3)


def test_part_is_refused_while_the_whole_is_at_work(tmp_path):
    campaign = make(tmp_path, {k: f"{v} wait 1" for k, v in values(30).items()})
    with running(campaign):
        wait_for(lambda: (tmp_path / "run" / "journal").exists() and done_so_far(tmp_path / "run") > 0)
        program = [sys.executable, "-m", "mlindex.runtime.run", str(campaign), "--resume", "--part", "0/2"]
        done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 2 and "another run is at work on all of it" in done.stderr


@pytest.mark.parametrize("ranks", ["1", "2"])
def test_asked_by_signal_it_finishes_the_batch_and_is_run_again(tmp_path, ranks):
    campaign = make(tmp_path, {k: f"{v} wait 0.2" for k, v in values(30).items()})
    run_dir = tmp_path / "run"
    with running(campaign, "--ranks", ranks) as process:
        wait_for(lambda: (run_dir / "journal").exists() and done_so_far(run_dir) >= 2)
        process.send_signal(signal.SIGUSR1)
        status = process.wait(PATIENCE)
    assert status == 75 and "stopped as asked" in told(campaign)[1], told(campaign)
    keys = shard_keys(run_dir)
    assert 2 <= len(keys) < 30 and set(keys.values()) == {1}
    ends = [line for line in journaled(run_dir) if line["event"] == "stop"]
    assert [e["why"] for e in ends] == ["signal"] and ends[0]["done"] == len(keys) == done_so_far(run_dir)
    make(tmp_path, values(30))
    assert run(campaign, "--resume", "--ranks", ranks)[0] == 0
    once(run_dir, 30)
    same(read_results(run_dir / "results.h5"), expected(campaign))


def test_rounds_without_progress_come_to_an_end(tmp_path, monkeypatch):
    """A job that is asked to end before it could begin is run again, but not for ever."""
    (tmp_path / "stop").touch()
    monkeypatch.setenv("MLINDEX_STOP", str(tmp_path / "stop"))
    campaign = make(tmp_path, values(4), extra="rounds = 3\n")
    assert [run(campaign, "--resume")[0] for _ in range(3)] == [75, 75, 1]
    assert "3 jobs in a row were stopped before they had done an item" in told(campaign)[1]
    assert shard_keys(tmp_path / "run") == {}
    monkeypatch.delenv("MLINDEX_STOP")
    assert run(campaign, "--resume")[0] == 0
    once(tmp_path / "run", 4)


@pytest.mark.parametrize("ranks", ["1", "2"])
def test_enough_solutions_end_a_run(tmp_path, ranks):
    campaign = make(tmp_path, values(40), batch=1, extra="stop_after = 5\n")
    status, _, err = run(campaign, "--ranks", ranks)
    assert status == 0, err
    now = status_of(tmp_path / "run")
    assert 5 <= now["solved"] <= 5 + 2 * 2 and now["left"] >= 25  # two batches of one in the hands of each worker
    assert [line["why"] for line in journaled(tmp_path / "run") if line["event"] == "stop"] == ["stop_after"]
    make(tmp_path, values(40), batch=1, extra="stop_after = 100\n")
    assert run(campaign, "--ranks", ranks, "--resume")[0] == 0
    once(tmp_path / "run", 40)


def test_too_many_failures_end_a_run(tmp_path):
    campaign = make(tmp_path, {**{f"a{k}": "bad" for k in range(9)}, **values(20)}, batch=1, extra="max_failures = 3\n")
    status, _, err = run(campaign)
    assert status == 1 and "4 items have failed, more than max_failures allows" in err
    now = status_of(tmp_path / "run")
    assert now["failed"] == 4 and now["solved"] == 0 and len(now["failures"]) == 4
    assert all("is a bad item" in failure["reason"] for failure in now["failures"])


def test_create_adds_inputs_and_keeps_results(tmp_path):
    campaign = make(tmp_path, values(4))
    assert create(campaign) == tmp_path / "run"
    assert run(campaign, "--resume", "--part", "0/2")[0] == 0
    make(tmp_path, {"x": "value 1"})
    create(campaign)
    names = [json.loads(line)["label"] for line in (tmp_path / "run" / "inputs.jsonl").read_text().splitlines()]
    assert names == ["f000", "f001", "f002", "f003", "x"]
    for k in range(2):
        assert run(campaign, "--resume", "--part", f"{k}/2")[0] == 0
    build_master(tmp_path / "run")
    once(tmp_path / "run", 5)
