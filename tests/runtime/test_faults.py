"""What a night brings: lost processes, full disks, spoiled inputs, items that never end, shards that are gone.

One law for all: what was committed is neither lost nor indexed twice, each failed item is listed with its reason, and a
resumed run does the rest. All with real processes and real faults.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mlindex.records import Item, Status, failed
from mlindex.runtime.disk import DiskProblem, disk_problem
from mlindex.runtime.master import survey
from mlindex.runtime.shards import Entry, read_results, read_shard
from mlindex.runtime.status import status as status_of
from mlindex.runtime.worker import Ledger
from tests.runtime.campaigns import (
    PATIENCE,
    ROOT,
    expected,
    kill_all,
    make,
    once,
    rank_pid,
    run,
    running,
    same,
    shard_keys,
    shards,
    told,
    values,
    wait_for,
)
from tests.runtime.toy import ToyStage

LATE = "took longer than the limit of 0.3 s (item_seconds)"
LIMIT = "item_seconds = 0.3\n"


def answers(campaign: Path) -> list:
    return read_results(campaign.parent / "run" / "results.h5")


def failures(campaign: Path) -> dict[str, str]:
    """The reason of each failed item."""
    return {r.id: r.reason for r in answers(campaign) if r.status is Status.FAILED}


def committed(campaign: Path, n: int) -> bool:
    """`n` items or more are in the shards."""
    return len(shard_keys(campaign.parent / "run")) >= n


def rows(run_dir: Path) -> dict[tuple[int, int], tuple]:
    """What the shards say of each item, and when it was committed."""
    found = {}
    for shard in map(read_shard, shards(run_dir)):
        columns = [shard.items[name].tolist() for name in ("id", "status", "reason", "rank", "time")]
        found |= dict(zip(shard.places(), zip(*columns, strict=True), strict=True))
    return found


# lost processes


def test_killed_worker_costs_nothing(tmp_path):
    """kill -9 of a rank in the middle of a run: the run ends with 0, and every item is solved exactly once."""
    campaign = make(tmp_path, {k: f"{v} wait 0.1" for k, v in values(24).items()}, batch=3)
    with running(campaign, "--ranks", "2") as process:
        wait_for(lambda: committed(campaign, 6))
        os.kill(rank_pid(campaign, 1), signal.SIGKILL)
        status = process.wait(PATIENCE)
    assert status == 0, told(campaign)
    once(tmp_path / "run", 24)
    same(answers(campaign), expected(campaign))
    now = status_of(tmp_path / "run")
    assert now["lost"] == 1 and {row["rank"] for row in now["ranks"]} == {1, 2}


def test_lost_dispatcher_ends_the_run_and_leaves_it_resumable(tmp_path):
    campaign = make(tmp_path, {k: f"{v} wait 0.2" for k, v in values(10).items()})
    with running(campaign, "--ranks", "2") as process:
        wait_for(lambda: committed(campaign, 2))
        os.kill(rank_pid(campaign, 0), signal.SIGKILL)
        status = process.wait(PATIENCE)
    assert status == 1 and "resume the run" in told(campaign)[1]
    before = rows(tmp_path / "run")
    assert run(campaign, "--ranks", "2", "--resume")[0] == 0
    once(tmp_path / "run", 10)
    assert before.items() <= rows(tmp_path / "run").items()


@pytest.mark.parametrize("arguments", [(), ("--ranks", "2")])
def test_job_killed_while_it_writes_shards(tmp_path, arguments):
    """kill -9 of every process at random moments of a run that does little but write: it gets on, and loses nothing."""
    lines = [f"value {k} wait 0.002" for k in range(800)]
    campaign = make(tmp_path, {"a": "\n".join(lines), "b": "value 3"}, batch=3)
    run_dir = tmp_path / "run"
    moments = random.Random(len(arguments))
    kept: dict[tuple[int, int], tuple] = {}
    for _ in range(3):
        there = len(shards(run_dir))
        with running(campaign, *arguments, "--resume"):
            wait_for(lambda n=there: len(shards(run_dir)) > n)
            time.sleep(moments.uniform(0.0, 0.15))
            kill_all(campaign)
        now = rows(run_dir)
        assert kept.items() <= now.items() and set(shard_keys(run_dir).values()) <= {1}
        kept = now
    assert 0 < len(kept) < 801
    status, _, err = run(campaign, *arguments, "--resume")
    assert status == 0, err
    once(run_dir, 801)
    assert kept.items() <= rows(run_dir).items()
    stage, path = ToyStage(None), "in/a.txt"
    wanted = [stage.finish([Item(f"a:{k}", path)], [k])[0] for k in range(800)]
    same(answers(campaign), [*wanted, *stage.finish([Item("b", "in/b.txt")], [3])])


# items that never end


def test_hang_in_python_fails_alone(tmp_path):
    files = {**values(6), "hang": "hang", "many": "value 1\nhang\nvalue 2\n", "reader": "hang the reader"}
    campaign = make(tmp_path, files, batch=4, extra=LIMIT)
    status, _, err = run(campaign)
    assert status == 1, err
    once(tmp_path / "run", 11)
    assert failures(campaign) == {"hang": LATE, "many:1": LATE, "reader": LATE}
    assert all(f"{name} " in err for name in ("hang", "many:1", "reader")) and err.count(LATE) == 3


def test_hang_in_compiled_code_costs_one_worker(tmp_path):
    """Alone in its batch, an item that cannot be interrupted is condemned by its first worker's end."""
    campaign = make(tmp_path, {**values(8, "wait 0.05"), "f003": "hang-in-c"}, batch=1, extra=LIMIT)
    status, _, err = run(campaign, "--ranks", "2")
    assert status == 1, err
    once(tmp_path / "run", 8)
    assert failures(campaign) == {"f003": LATE} and status_of(tmp_path / "run")["lost"] == 1
    log = "".join(path.read_text() for path in (tmp_path / "run" / "log").iterdir())
    assert f"f003: {LATE} and cannot be interrupted" in log and "in hang_in_c" in log


def test_hang_in_compiled_code_among_others(tmp_path):
    """The others of its batch are done: first both are suspect, then it is alone."""
    campaign = make(tmp_path, {"many": "value 1\nhang-in-c", **values(2)}, batch=2, extra=LIMIT)
    status, _, err = run(campaign, "--ranks", "3")
    assert status == 1, err
    once(tmp_path / "run", 4)
    assert failures(campaign) == {"many#2": LATE} and status_of(tmp_path / "run")["lost"] == 2


def test_hang_in_compiled_code_of_a_process_on_its_own(tmp_path):
    """It ends the run with a sentence that names the item; the resumed run records it and does the others."""
    campaign = make(tmp_path, {**values(3), "f001": "hang-in-c"}, batch=1, extra=LIMIT)
    status, _, err = run(campaign)
    assert status == -signal.SIGKILL and f"f001: {LATE} and cannot be interrupted" in err
    before = rows(tmp_path / "run")
    assert set(before) == {(0, 0)}
    status, _, err = run(campaign, "--resume")
    assert status == 1 and failures(campaign) == {"f001": LATE}
    once(tmp_path / "run", 3)
    assert before.items() <= rows(tmp_path / "run").items()


# inputs


def test_inputs_that_spoil_after_the_start(tmp_path):
    """Each fails by itself, with a sentence that names it; a FIFO is not waited for."""
    campaign = make(tmp_path, {**values(7), "f000": "value 1 wait 1.5"}, batch=1)
    folder = tmp_path / "in"
    with running(campaign) as process:
        wait_for(lambda: (tmp_path / "run" / "inputs.jsonl").exists())
        for k in (1, 2, 3, 4, 5):
            (folder / f"f{k:03d}.txt").unlink()
        (folder / "f002.txt").mkdir()
        os.mkfifo(folder / "f003.txt")
        (folder / "f004.txt").symlink_to("nowhere")
        (folder / "f005.txt").symlink_to("/proc/self/mem")  # a file that not even root can read at its beginning
        status = process.wait(PATIENCE)
    assert status == 1
    once(tmp_path / "run", 7)
    got = failures(campaign)
    assert set(got) == {f"f{k:03d}" for k in (1, 2, 3, 4, 5)}
    assert "in/f001.txt: has vanished" in got["f001"] and "in/f004.txt: has vanished" in got["f004"]
    assert "in/f002.txt: is no longer a file" in got["f002"] and "in/f003.txt: is no longer a file" in got["f003"]
    assert "Input/output error" in got["f005"]
    assert all(name in told(campaign)[1] and reason in told(campaign)[1] for name, reason in got.items())


def test_spoiled_peak_lists(tmp_path):
    """The powder stage: truncated, empty, binary, unreadable; every one is named in its reason, and none hangs."""
    folder = tmp_path / "in"
    folder.mkdir()
    good = "# quantity: d\n" + "".join(f"{10.0 / k:.6f}\n" for k in range(1, 31))
    (folder / "truncated.txt").write_text(good[:40])
    (folder / "empty.txt").write_bytes(b"")
    (folder / "binary.txt").write_bytes(bytes(range(256)) * 20)
    (folder / "unreadable.txt").symlink_to("/proc/self/mem")
    (folder / "gone.txt").symlink_to("nowhere")  # no file: not an input
    campaign = tmp_path / "campaign.toml"
    campaign.write_text('[campaign]\nstage = "powder"\ninputs = ["in/*.txt"]\nitem_seconds = 60\n')
    status, _, err = run(campaign)
    assert status == 1, err
    once(tmp_path / "run", 4)
    got = failures(campaign)
    assert set(got) == {"truncated", "empty", "binary", "unreadable"}
    assert all(f"{name}.txt" in reason and "\n" not in reason and reason in err for name, reason in got.items())


def test_shard_deleted_by_hand(tmp_path):
    """It is named; its items are done again, and no others."""
    campaign = make(tmp_path, values(12, "wait 0.05"), batch=1)
    run_dir = tmp_path / "run"
    assert run(campaign, "--ranks", "2")[0] == 0
    wanted, before = answers(campaign), rows(run_dir)
    victim = min((run_dir / "shards").glob("*.h5"))
    lost = set(read_shard(victim).places())
    victim.unlink()
    assert 0 < len(lost) < 12 and status_of(run_dir)["missing"] == [victim.name]
    assert status_of(run_dir)["done"] == 12 - len(lost)
    assert run(campaign, "--resume")[0] == 0
    same(answers(campaign), wanted)
    after = rows(run_dir)
    assert {key for key in before if before[key] != after[key]} == lost
    assert set(shard_keys(run_dir).values()) == {1} and status_of(run_dir)["missing"] == []


def test_shard_that_cannot_be_opened_now_is_kept(tmp_path):
    """The error may pass: the run is refused with the reason, and the shard counts when it can be read again."""
    campaign = make(tmp_path, values(3))
    assert run(campaign)[0] == 0
    before = rows(tmp_path / "run")
    (shard,) = shards(tmp_path / "run")
    kept = shard.rename(tmp_path / "kept.h5")
    shard.symlink_to("/proc/self/mem")  # EIO
    status, _, err = run(campaign, "--resume")
    assert status == 2 and f"{shard}: cannot be read (Input/output error)" in err and err.count("\n") == 1, err
    assert shard.is_symlink() and shards(tmp_path / "run") == [shard]
    kept.replace(shard)
    assert run(campaign, "--resume")[0] == 0
    assert rows(tmp_path / "run") == before
    once(tmp_path / "run", 3)


def test_shard_of_another_part_is_not_set_aside(tmp_path):
    """That part may be at work on it; its own job sees to it, or one that has the whole run."""
    campaign = make(tmp_path, values(6))
    run_dir = tmp_path / "run"
    for k in range(2):
        assert run(campaign, "--resume", "--part", f"{k}/2")[0] == 0
    (shard,) = (path for path in shards(run_dir) if "-1of2-" in path.name)
    shard.write_bytes(b"not whole")
    status, _, err = run(campaign, "--resume", "--part", "0/2")
    assert status == 1 and f"{shard}: is not a readable results file" in err
    assert shard.read_bytes() == b"not whole" and not list((run_dir / "shards").glob("*.unreadable"))
    assert run(campaign, "--resume", "--part", "1/2")[0] == 0
    assert not shard.exists() and shard.with_suffix(".unreadable").exists()
    assert set(shard_keys(run_dir).values()) == {1} and len(shard_keys(run_dir)) == 6


# full disks

TEXT = "".join(f"value {k}\n" for k in range(500))
ON_A_SMALL_DISK = """
mount -t tmpfs -o size=$1 none "$2" || exit 99
shift; run=$1; keep=$2; shift 2
"$@"
status=$?
cp -a "$run" "$keep"
exit $status
"""


def on_a_small_disk(size: str, campaign: Path, *arguments: str) -> tuple[int, str]:
    """The run with its directory on a file system of that size, from which it is copied back; status and errors.

    The file system is in a mount namespace of its own, which needs root or unprivileged user namespaces.
    """
    run_dir, kept = campaign.parent / "run", campaign.parent / "kept"
    run_dir.mkdir()
    program = [sys.executable, "-m", "mlindex.runtime.run", str(campaign), *arguments]
    command = ["unshare", "-rm", "sh", "-c", ON_A_SMALL_DISK, "sh", size, str(run_dir), str(kept), *program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert not done.stderr.startswith(("unshare:", "mount:")), (
        f"no file system of its own: {done.stderr} Run the tests where `unshare -rm` and `mount` are allowed "
        "(in a container: --privileged, or --cap-add SYS_ADMIN --security-opt seccomp=unconfined)."
    )
    shutil.rmtree(run_dir)
    kept.rename(run_dir)
    return done.returncode, done.stderr


@pytest.mark.parametrize("arguments", [(), ("--ranks", "2")])
def test_full_disk(tmp_path, arguments):
    """The run ends in order, says where and why, keeps what it committed, and goes on where there is space again."""
    campaign = make(tmp_path, {"a": TEXT, "b": TEXT, "c": TEXT, "d": TEXT}, batch=10)
    status, err = on_a_small_disk("1m", campaign, *arguments)
    assert status == 1 and "Traceback" not in err, err
    assert f"{tmp_path / 'run'}: results cannot be written (No space left on device)" in err
    assert "free space" in err and "resume the run" in err and len(set(err.splitlines())) == err.count("\n")
    before = rows(tmp_path / "run")
    assert 0 < len(before) < 2000 and set(shard_keys(tmp_path / "run").values()) == {1}
    status, _, err = run(campaign, *arguments, "--resume")
    assert status == 0, err
    once(tmp_path / "run", 2000)
    assert before.items() <= rows(tmp_path / "run").items()


@pytest.mark.parametrize("size", ["60k", "200k"])
def test_disk_that_is_full_from_the_start(tmp_path, size):
    """There is no room for the shard, or for its first batch; nothing broken is left under a shard's name."""
    campaign = make(tmp_path, {"a": TEXT}, batch=100)
    status, err = on_a_small_disk(size, campaign)
    assert status == 1 and "Traceback" not in err, err
    assert "results cannot be written (No space left on device)" in err
    assert not survey(tmp_path / "run").unreadable and not rows(tmp_path / "run")
    assert run(campaign, "--resume")[0] == 0
    once(tmp_path / "run", 500)


def test_files_that_may_not_grow(tmp_path):
    """A limit on the size of files (as some batch systems set) is told like a full disk."""
    campaign = make(tmp_path, values(2))
    limit = "import os, resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))"
    program = [sys.executable, "-c", f"{limit}; os.execv(sys.executable, sys.argv[1:])", sys.executable]
    program += ["-m", "mlindex.runtime.run", str(campaign)]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 1 and "results cannot be written (File too large)" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and not survey(tmp_path / "run").unreadable
    assert run(campaign, "--resume")[0] == 0
    once(tmp_path / "run", 2)


@pytest.mark.parametrize("call", ["pwrite", "fdatasync", "fsync", "replace"])
def test_commit_that_fails_at_any_call_leaves_what_was_there(tmp_path, monkeypatch, call):
    """The first, second, ... such call of a commit fails: the shard holds what it held, or all of the batch."""
    for folder in ("shards", "journal"):
        (tmp_path / folder).mkdir()
    stage, real = ToyStage(None), getattr(os, call)

    def entries(numbers: range) -> list[Entry]:
        return [Entry(failed(Item(f"i{k}", "x"), "because"), k, 0, 1) for k in numbers]

    def attempt(job: str, allowed: int) -> tuple[int, list[int]]:
        """How many calls two commits and the end of a shard made, and the items that it holds."""
        count = iter(range(allowed + 100000))
        ledger = Ledger(tmp_path, job, 1, "toy", stage.schema, {})

        def failing(*arguments):
            if next(count) >= allowed:
                raise OSError(28, "No space left on device")
            return real(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(os, call, failing)
            try:
                assert len(ledger.commit(entries(range(3)))) == 3
                assert len(ledger.commit(entries(range(3, 5)))) == 2
            except DiskProblem as problem:
                assert "No space left on device" in str(problem) and "resume" in str(problem)
        before = held(job)
        made = next(count)
        if made > allowed:
            with pytest.raises(DiskProblem):
                ledger.commit(entries(range(5, 6)))
        ledger.close()
        assert held(job) == before
        return made, before

    def held(job: str) -> list[int]:
        return [k for path in (tmp_path / "shards").glob(f"{job}-*.h5") for k, _ in read_shard(path).places()]

    n, everything = attempt("whole", 100000)
    assert n >= 1 and everything == [0, 1, 2, 3, 4]
    for allowed in sorted({*range(0, n, 4), *range(max(n - 8, 0), n)}):
        assert attempt(f"job{allowed}", allowed)[1] in ([], [0, 1, 2], [0, 1, 2, 3, 4])
    assert not survey(tmp_path).unreadable


def test_other_errors_are_not_the_disks():
    assert disk_problem(Path("r"), RuntimeError("no such dataset")) is None
    assert disk_problem(Path("r"), KeyError("errno")) is None
    assert "sound" in str(disk_problem(Path("r"), OSError(5, "Input/output error")))
    assert "quota" in str(disk_problem(Path("r"), OSError(122, "Disk quota exceeded")))
