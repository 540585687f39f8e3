"""Campaigns in one process: answers, failures, refusals, resumed runs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib

import pytest

from mlindex.records import InputError, Status
from mlindex.runtime import lock
from mlindex.runtime.queue import Part
from mlindex.runtime.shards import read_results
from mlindex.runtime.status import status as status_of
from tests.runtime.campaigns import (
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
    values,
    wait_for,
)


def test_one_bad_item_does_not_stop_the_others(tmp_path):
    files = {**values(5), "empty": "", "no": "bad", "broken": "raise", "many": "value 1\nbad\nvalue 2\nvalue 3\n"}
    campaign = make(tmp_path, files, batch=3)
    (tmp_path / "in" / "binary.txt").write_bytes(b"\xff\xfe\x00")
    status, out, err = run(campaign)
    assert status == 1 and out == ""
    results = {r.id: r for r in read_results(tmp_path / "run" / "results.h5")}
    failed = {name for name, r in results.items() if r.status is Status.FAILED}
    assert failed == {"binary", "empty", "no", "broken", "many:1"}
    assert all(name in err and results[name].reason in err for name in failed)
    assert "is empty" in results["empty"].reason and "RuntimeError" in results["broken"].reason
    assert len(results) == 13 and results["many:3"].status is Status.SOLVED
    once(tmp_path / "run", 13)
    now = status_of(tmp_path / "run")
    assert (now["done"], now["total"], now["failed"], now["left"], now["active"]) == (13, 13, 5, 0, False)
    assert now["ranks"][0]["done"] == 13 and now["rate"] > 0 and now["eta"] is None


def test_same_file_name_in_two_folders(tmp_path):
    campaign = make(tmp_path, {"a/x": "value 1", "b/x": "value 2", "y": "value 3"})
    assert run(campaign)[0] == 0
    assert [r.id for r in read_results(tmp_path / "run" / "results.h5")] == ["in/a/x", "in/b/x", "y"]


def test_run_directory_is_described(tmp_path):
    campaign = make(tmp_path, values(1), extra='output = "out"\nname = "é \\"x\\""\n')
    assert run(campaign)[0] == 0
    written = (tmp_path / "out" / "campaign.toml").read_text()
    assert tomllib.loads(written)["campaign"] == {
        "name": 'é "x"',
        "stage": "tests.runtime.toy:ToyStage",
        "inputs": ["in/**/*.txt"],
        "output": "out",
        "batch": 2,
        "chunk": "files",
        "relaunch_seconds": 30.0,
        "rounds": 3,
    }
    assert {p.name for p in (tmp_path / "out").iterdir()} >= {"journal", "shards", "log", "results.h5"}


def test_existing_results_are_not_touched_without_resume(tmp_path):
    campaign = make(tmp_path, values(2))
    (tmp_path / "run").mkdir()
    assert run(campaign)[0] == 0, "an empty folder is as good as none"
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    status, _, err = run(campaign)
    assert status == 2 and "--resume" in err and str(tmp_path / "run") in err and err.count("\n") == 1
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == before
    other = make(tmp_path, {}, extra='output = "in"\n')
    assert run(other)[0] == 2 and run(other, "--resume")[0] == 2


def test_campaign_file_is_not_overwritten(tmp_path):
    for output in (".", "in/.."):
        campaign = make(tmp_path, values(1), extra=f'output = "{output}"\n')
        before = campaign.read_bytes()
        for arguments in ((), ("--resume",)):
            status, _, err = run(campaign, *arguments)
            assert status == 2 and f"{campaign}: output: " in err and "choose another output" in err
        assert campaign.read_bytes() == before and {p.name for p in tmp_path.iterdir()} == {
            "in",
            "campaign.toml",
            "campaign.out",
            "campaign.err",
        }


def test_resume_of_another_campaign_is_refused(tmp_path):
    campaign = make(tmp_path, values(2), batch=2)
    assert run(campaign)[0] == 0
    make(tmp_path, {}, batch=3)
    assert run(campaign, "--resume")[0] == 0, "how the work is done may change"
    make(tmp_path, {}, extra='chunk = "items"\n')
    status, _, err = run(campaign, "--resume")
    assert status == 2 and "campaign.chunk was 'files' and is 'items'" in err


def test_resume_of_a_finished_run_does_only_what_is_new(tmp_path):
    campaign = make(tmp_path, values(3))
    assert run(campaign)[0] == 0
    before = read_results(tmp_path / "run" / "results.h5")
    shards = set((tmp_path / "run" / "shards").iterdir())
    assert run(campaign, "--resume")[0] == 0
    assert set((tmp_path / "run" / "shards").iterdir()) == shards
    make(tmp_path, {"a": "value 1", "sub/f001": "value 7"})
    (tmp_path / "in" / "f002.txt").unlink()
    assert run(campaign, "--resume")[0] == 0
    after = read_results(tmp_path / "run" / "results.h5")
    same(after[:3], before)
    assert [r.id for r in after[3:]] == ["a", "in/sub/f001"]
    once(tmp_path / "run", 5)


def test_results_of_the_run_are_not_its_inputs(tmp_path):
    campaign = make(tmp_path, {})
    campaign.write_text(campaign.read_text().replace("in/**/*.txt", "**/*.h5"))
    (tmp_path / "a.h5").write_text("value 1")
    for _ in range(2):
        status, _, err = run(campaign, "--resume")
        assert status == 0, err
    assert [r.source for r in read_results(tmp_path / "run" / "results.h5")] == ["a.h5"]
    (tmp_path / "b.h5").write_text("value 2")
    assert run(campaign, "--resume")[0] == 0
    assert [r.source for r in read_results(tmp_path / "run" / "results.h5")] == ["a.h5", "b.h5"]


def test_file_name_that_is_not_utf8(tmp_path):
    """It is indexed like any other, or fails alone."""
    campaign = make(tmp_path, values(2))
    (tmp_path / "in" / os.fsdecode(b"\xff.txt")).write_text("value 4")
    (tmp_path / "in" / os.fsdecode(b"\xfe.txt")).write_text("bad")
    status, _, err = run(campaign)
    assert status == 1 and "Traceback" not in err, err
    got = {r.id: r.status is Status.FAILED for r in read_results(tmp_path / "run" / "results.h5")}
    assert got == {"f000": False, "f001": False, "\\udcff": False, "\\udcfe": True}
    assert run(campaign, "--resume")[0] == 1
    once(tmp_path / "run", 4)


def test_killed_process_is_resumed(tmp_path):
    campaign = make(tmp_path, {name: f"{text} wait 0.3" for name, text in values(12).items()})
    run_dir = tmp_path / "run"
    with running(campaign):
        wait_for(lambda: run_dir.exists() and done_so_far(run_dir) >= 3)
        now = status_of(run_dir)
        assert now["active"] and 3 <= now["done"] < now["total"] == 12 and now["eta"] > 0
    n = len(shard_keys(run_dir))
    assert 3 <= n < 12 and not status_of(run_dir)["active"]
    torn = next((run_dir / "journal").iterdir())
    torn.write_text(torn.read_text()[:-30])  # the last line torn: its items are in the shard, and are not done again
    make(tmp_path, values(12))
    assert run(campaign, "--resume")[0] == 0
    once(run_dir, 12)
    assert any(line["event"] == "recovered" for line in journaled(run_dir))
    same(read_results(run_dir / "results.h5"), expected(campaign))


def test_items_of_lost_shards_are_done_again(tmp_path):
    campaign = make(tmp_path, values(6))
    run_dir = tmp_path / "run"
    assert run(campaign)[0] == 0
    wanted = read_results(run_dir / "results.h5")
    for damage in (lambda p: p.unlink(), lambda p: p.write_bytes(p.read_bytes()[:900])):
        shard = max((run_dir / "shards").glob("*.h5"))
        damage(shard)
        assert run(campaign, "--resume")[0] == 0
        same(read_results(run_dir / "results.h5"), wanted)
        assert set(shard_keys(run_dir).values()) == {1}
    log = "".join(p.read_text() for p in (run_dir / "log").glob("*.log"))
    assert "not a readable results file" in log and "is gone, with" in log
    assert status_of(run_dir)["missing"] == []
    (run_dir / "results.h5").unlink()
    shutil.rmtree(run_dir / "journal")
    assert run(campaign, "--resume")[0] == 0
    same(read_results(run_dir / "results.h5"), wanted)
    once(run_dir, 6)


def test_second_run_waits_and_then_refuses(tmp_path):
    campaign = make(tmp_path, values(1))
    assert run(campaign)[0] == 0
    held = lock.acquire(tmp_path / "run", Part())
    try:
        with pytest.raises(InputError, match="another run is at work on it"):
            lock.acquire(tmp_path / "run", Part(), patience=0.3)
        with pytest.raises(InputError, match="another run is at work on all of it"):
            lock.acquire(tmp_path / "run", Part(1, 3), patience=0.3)
        assert lock.active(tmp_path / "run") == [(0, 1)]
    finally:
        os.close(held)
    parts = [lock.acquire(tmp_path / "run", Part(k, 3)) for k in range(2)]
    assert lock.active(tmp_path / "run") == [(0, 3), (1, 3)]
    for handle in parts:
        os.close(handle)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('stage = "nothing"', "there is no stage 'nothing'"),
        ('stage = "tests.runtime.toy:Nothing"', "tests.runtime.toy:Nothing.*cannot be loaded"),
        ('stage = "tests.runtime.toy:ToyStage"\nbatsch = 3', "batsch.*valid keys"),
        ('stage = "tests.runtime.toy:ToyStage"\nbatch = 0', "campaign.batch"),
        ('stage = "tests.runtime.toy:ToyStage"\nitem_seconds = inf', "campaign.item_seconds.*less than or equal to"),
    ],
)
def test_bad_campaigns_are_refused(tmp_path, text, message):
    campaign = make(tmp_path, values(1))
    campaign.write_text(f'[campaign]\ninputs = ["in/*.txt"]\n{text}\n')
    status, _, err = run(campaign)
    assert status == 2 and err.count("\n") == 1
    assert re.search(message, err)
    assert run(make(tmp_path, {}))[0] == 0, "and the run directory is not spoiled"


def test_inputs_that_match_nothing_are_refused(tmp_path):
    campaign = make(tmp_path, {})
    status, _, err = run(campaign)
    assert status == 2 and "no file matches 'in/**/*.txt'" in err
    assert not (tmp_path / "run").exists()


CALL = """
import json, sys
from mlindex.runtime.run import run_campaign
assert not {"jax", "mpi4py"} & set(sys.modules)
calls = []
summary = run_campaign(sys.argv[1], progress=lambda *state: calls.append(state))
assert "mpi4py" not in sys.modules
print(json.dumps([calls, summary.total, summary.done, summary.failed, summary.failures, summary.exit_status]))
"""


def test_progress_and_summary(tmp_path):
    campaign = make(tmp_path, {**values(3), "many": "value 1\n" * 5, "no": "bad"})
    command = [sys.executable, "-c", CALL, str(campaign)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    calls, total, n, failed, failures, status = json.loads(done.stdout)
    assert calls[0] == [0, 0, 5] and calls[-1] == [9, 1, 9] and calls == sorted(calls)
    assert (total, n, failed, status) == (9, 9, 1, 1)
    assert [f[:2] for f in failures] == [["no", "in/no.txt"]]


def test_status_of_no_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="not the directory of a run"):
        status_of(tmp_path)
