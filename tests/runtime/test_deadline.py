"""The time limit: an exception in Python, the end of the process in compiled code; and it leaves no trace when kept."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlindex.records import Item, Result, Status
from mlindex.runtime.deadline import Interrupt, Limit, TookTooLong, interrupted_after, overdue, reason
from mlindex.stage import solve
from tests.runtime.campaigns import PATIENCE, ROOT, wait_for
from tests.runtime.toy import ToyStage, hang

HANG = """
import sys
from pathlib import Path
from mlindex.runtime.deadline import Limit
from tests.runtime.toy import hang_in_c
limit = Limit(0.1, Path(sys.argv[1]), 3)
print(limit([(0, 0)], ["quick"], lambda: "quick one done", allowed=0.1), flush=True)
print(limit._process.pid, flush=True)
limit([(int(i), 1) for i in sys.argv[2:]], [f"item {i}" for i in sys.argv[2:]], hang_in_c, allowed=0.1)
"""


@pytest.fixture
def limit(tmp_path):
    return Limit(0.2, tmp_path / "journal.jsonl", 1)


def hanging(journal: Path, *items: int) -> tuple[subprocess.CompletedProcess[str], list[dict]]:
    command = [sys.executable, "-c", HANG, str(journal), *map(str, items)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    return done, [json.loads(line) for line in journal.read_text().splitlines()]


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_hang_in_compiled_code_ends_the_process(tmp_path):
    done, lines = hanging(tmp_path / "j", 7)
    assert done.returncode == -signal.SIGKILL and "quick one done" in done.stdout
    assert "item 7: took longer than the limit of 0.1 s (item_seconds)" in done.stderr and "rank 3" in done.stderr
    assert "in hang_in_c" in done.stderr, "and the stack is told"
    assert [(line["event"], line["items"], line["rank"]) for line in lines] == [("overdue", [[7, 1]], 3)]
    assert abs(lines[0]["time"] - time.time()) < PATIENCE
    assert overdue(lines) == ({(7, 1): reason(0.1)}, {})
    wait_for(lambda: gone(int(done.stdout.split()[-1])))


def test_of_several_items_none_is_condemned(tmp_path):
    done, lines = hanging(tmp_path / "j", 2, 5, 6, 8)
    assert "item 2, item 5, item 6 and 1 others" in done.stderr
    assert overdue([*lines, {"event": "batch"}, *lines]) == ({}, {(i, 1): 2 for i in (2, 5, 6, 8)})


def test_journal_that_cannot_be_written_does_not_save_the_process(tmp_path):
    (tmp_path / "j").mkdir()
    command = [sys.executable, "-c", HANG, str(tmp_path / "j"), "4"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == -signal.SIGKILL and "item 4" in done.stderr


def test_hang_in_python_raises(limit):
    with pytest.raises(TookTooLong, match=r"^took longer than the limit of 0\.2 s \(item_seconds\)$"):
        limit([(0, 0)], ["a"], hang, allowed=0.1)
    assert limit([(0, 0)], ["a"], lambda: 5, allowed=0.1) == 5


def test_exception_lost_in_a_destructor_is_raised_again(limit):
    class Deaf:
        def __init__(self) -> None:
            self.heard = 0

        def work(self) -> None:
            while True:
                try:
                    hang()
                except Interrupt:
                    self.heard += 1
                    if self.heard > 1:
                        raise

    deaf = Deaf()
    with pytest.raises(TookTooLong):
        limit([(0, 0)], ["a"], deaf.work, allowed=0.1)
    assert deaf.heard == 2


def test_alarms_of_others_are_left_as_they_were():
    came: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, _: came.append(number))
    try:
        signal.alarm(100)
        assert interrupted_after(50.0, lambda: "done") == "done"
        assert 95 < signal.getitimer(signal.ITIMER_REAL)[0] <= 100
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(Interrupt):
            interrupted_after(0.1, hang)
        wait_for(lambda: bool(came))
        signal.alarm(0)
        assert interrupted_after(1.0, lambda: signal.getitimer(signal.ITIMER_REAL)[0]) > 0
        assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
        assert callable(signal.getsignal(signal.SIGALRM)) and came == [signal.SIGALRM]
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_compiling_does_not_count(limit):
    """JAX's time on a program is no item's; the item's own is."""
    space = {"__name__": "jax._src.compiler", "time": time}
    exec(
        "def compiling(seconds, then):\n    end = time.monotonic() + seconds\n    while time.monotonic() < end:\n"
        "        time.sleep(0.01)\n    return then",
        space,
    )
    assert limit([(0, 0)], ["a"], lambda: space["compiling"](1.0, 7), allowed=0.3) == 7
    with pytest.raises(TookTooLong):
        limit([(0, 0)], ["a"], lambda: space["compiling"](0.5, hang)(), allowed=0.3)
    assert limit._process.poll() is None


def test_watchdog_spares_a_long_compilation(monkeypatch, limit):
    monkeypatch.setattr("mlindex.runtime.deadline._GRACE", 0.3)
    space = {"__name__": "jax._src.compiler", "time": time}
    exec("def compiling():\n    for _ in range(150):\n        time.sleep(0.01)\n    return 7", space)
    assert limit([(0, 0)], ["a"], space["compiling"], allowed=0.2) == 7


JAX = """
import jax, jax.numpy as jnp
from mlindex.runtime.deadline import interrupted_after
@jax.jit
def program(x):
    for k in range(60):
        x = jnp.sort(jnp.sin(x + k))
    return x
x = jnp.ones(64)
x.block_until_ready()
spared = []
interrupted_after(0.4, lambda: program(x).block_until_ready(), lambda: spared.append(1))
print(len(spared))
"""


def test_real_compilation_is_not_interrupted():
    """A program that takes JAX longer than the limit is compiled, run, and its process ends in order."""
    command = [sys.executable, "-c", JAX]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0


def test_errors_and_results_pass_through(limit):
    with pytest.raises(ZeroDivisionError):
        limit([(0, 0)], ["a"], lambda: 1 // 0, allowed=5.0)
    answers = []
    thread = threading.Thread(
        target=lambda: answers.append(limit([(0, 0)], ["a"], lambda: time.sleep(0.3) or 1, allowed=0.1))
    )
    thread.start()
    thread.join()
    assert answers == [1], "where no handler can run, only the watchdog counts the time"


def test_watchdog_that_was_killed_is_replaced(limit):
    assert limit([(0, 0)], ["a"], lambda: 1, allowed=5.0) == 1
    first = limit._process
    first.kill()
    first.wait()
    assert limit([(0, 0)], ["a"], lambda: 2, allowed=5.0) == 2
    assert limit([(0, 0)], ["a"], lambda: 3, allowed=5.0) == 3
    assert limit._process.pid != first.pid and limit._process.poll() is None


@given(st.lists(st.sampled_from(["value 1", "value 2", "bad", "raise", "exit", "late"]), min_size=1, max_size=6))
def test_late_items_fail_alone(words):
    """`solve` with a guard that finds some items late: they fail with its reason, and the others are as without it."""
    items = [
        Item(f"i{k}", f"i{k}.txt", attrs={"what": word.replace("late", "value 3")}) for k, word in enumerate(words)
    ]
    late = {f"i{k}" for k, word in enumerate(words) if word == "late"}

    def guard(some, work):
        if late & {item.id for item in some}:
            raise TookTooLong("late")
        return work()

    got = solve(ToyStage(None), items, guard)
    without = solve(ToyStage(None), items)
    assert [r.id for r in got] == [i.id for i in items]
    for word, one, other in zip(words, got, without, strict=True):
        failing = word in ("bad", "raise", "exit", "late")
        assert isinstance(one, Result) and (one.status is Status.FAILED) == failing
        assert one.reason == ("late" if word == "late" else other.reason)


def test_reason_names_the_setting():
    assert reason(2.5) == "took longer than the limit of 2.5 s (item_seconds)"
