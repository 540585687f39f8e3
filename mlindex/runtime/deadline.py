"""A time limit on the work on an item: an exception where Python still runs, and where it does not, the process's end.

At the limit an alarm raises in the main thread; the time in which JAX traces and compiles does not count. That does
nothing to compiled code that does not come back, so at twice the limit and a little more the stack goes to standard
error and the watchdog, a process of its own (`watchdog`), notes in the rank's journal what was at hand and kills the
rank: `{"event": "overdue", "items": [[input, index], ...]}`. Whoever deals with the loss or resumes the run learns from
`overdue` which items to fail: one that was overdue alone has had its time; of several that one call of the kernel
worked on, each is tried once more, alone.
"""

from __future__ import annotations

import faulthandler
import functools
import json
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from mlindex.records import InputError
from mlindex.runtime import watchdog

EVENT = "overdue"
_GRACE = 2.0  # seconds beyond twice the limit, after which the process is ended
_DUMP = 0.5  # seconds before its end at which its stack is written
_AGAIN = 1.0  # seconds between two alarms: the exception of one may be lost in a destructor or a callback
_NAMED = 3  # items that a sentence names
_SPARED = 600.0  # seconds of tracing and compiling that do not count
_PREPARING = {
    "jax._src.compiler",
    "jax._src.interpreters.mlir",
    "jax._src.interpreters.partial_eval",
    "jax._src.xla_bridge",
}

Key = tuple[int, int]
T = TypeVar("T")


class Interrupt(BaseException):
    """Raised in the work that is over its limit; not an `Exception`, which a stage may well catch."""


class TookTooLong(InputError):
    """The work on an item took longer than it may."""


def reason(seconds: float) -> str:
    """What is said of an item that took longer than `seconds`."""
    return f"took longer than the limit of {seconds:g} s (item_seconds)"


def preparing(frame: FrameType | None) -> bool:
    """Whether the Python code at `frame` is JAX at work on a program that it has not run yet."""
    while frame is not None:
        if frame.f_globals.get("__name__") in _PREPARING:
            return True
        frame = frame.f_back
    return False


def interrupted_after(seconds: float, work: Callable[[], T], spare: Callable[[], None] = lambda: None) -> T:
    """What `work` returns; raises `Interrupt` out of it after `seconds`.

    The time in which JAX traces and compiles does not count, up to ten minutes: it is the program's and not the item's,
    and jaxlib (0.10) compiles in a thread that it forgets when it is interrupted, and that brings the process down at
    its end. `spare` is called now and then in the meantime. Only in the main thread, where Python handles signals; in
    another the work has all the time it wants. An alarm that was set before goes off when it would have.
    """
    if threading.current_thread() is not threading.main_thread():
        return work()
    armed, spent, spared = True, 0.0, 0.0
    start = last = time.monotonic()

    def tick(_number: int, frame: FrameType | None) -> None:
        nonlocal last, spent, spared
        if not armed:
            return
        now = time.monotonic()
        passed, last = now - last, now
        if spared < _SPARED and preparing(frame):
            spared += passed
            spare()
            return
        spent += passed
        if spent >= seconds:
            signal.setitimer(signal.ITIMER_REAL, _AGAIN, _AGAIN)
            raise Interrupt

    before = signal.signal(signal.SIGALRM, tick)
    left, interval = signal.getitimer(signal.ITIMER_REAL)
    pause = min(max(seconds / 8, 0.01), 1.0)
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, pause, pause)
            return work()
        finally:
            armed = False
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL if before is None else before)
        if left:
            signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - start), 1e-3), interval)


def _end(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(_GRACE)
    except subprocess.TimeoutExpired:  # a child of the stage holds the other end of its input
        process.kill()
        process.wait()


class Limit:
    """The time limit of the items of one rank: `seconds` each; `journal` is the file of that rank's journal."""

    def __init__(self, seconds: float, journal: Path, rank: int) -> None:
        self.seconds, self._journal, self._rank = seconds, journal, rank
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self, items: Sequence[Key], names: Sequence[str], work: Callable[[], T], *, allowed: float) -> T:
        """What `work` on these items returns; raises `TookTooLong` after `allowed` seconds.

        `items` are the places (input, index) of what is at hand, and `names` what they are called.
        """
        watch = functools.partial(self._watch, items, names, 2 * allowed + _GRACE)
        watch()
        try:
            return interrupted_after(allowed, work, watch)
        except Interrupt:
            raise TookTooLong(reason(self.seconds)) from None
        finally:
            faulthandler.cancel_dump_traceback_later()
            self._order({})

    def _watch(self, items: Sequence[Key], names: Sequence[str], end: float) -> None:
        event = {"event": EVENT, "rank": self._rank, "items": [list(key) for key in items], "seconds": self.seconds}
        told = ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} others" if len(names) > _NAMED else "")
        sentence = (
            f"{told}: {reason(self.seconds)} and cannot be interrupted; this process (rank {self._rank}) is ended, "
            "and a resumed run goes on without " + ("it" if len(names) == 1 else "the one to blame")
        )
        faulthandler.dump_traceback_later(end - _DUMP, file=2)
        self._order({"seconds": end, "event": event, "sentence": sentence})

    def _order(self, order: Mapping[str, Any]) -> None:
        """Tell the watchdog; one that is gone, or was never there, is started for an order that it can carry out."""
        text = json.dumps(order).encode() + b"\n"
        if self._process is not None:
            assert self._process.stdin is not None
            try:
                self._process.stdin.write(text)
                return
            except OSError:
                self._process = None
        if order:
            self._process = self._started()
            assert self._process.stdin is not None
            self._process.stdin.write(text)

    def _started(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-I", "-S", str(watchdog.__file__), str(self._journal), str(os.getpid())]
        process = subprocess.Popen(command, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        weakref.finalize(self, _end, process)
        return process


def overdue(lines: Iterable[Mapping[str, Any]]) -> tuple[dict[Key, str], Counter[Key]]:
    """What the lines of a journal say of processes that were ended for being overdue.

    First the items that were at hand alone, each with the reason for which it has failed; then how many times each
    item was at hand with others, any of which may be to blame.
    """
    alone: dict[Key, str] = {}
    shared: Counter[Key] = Counter()
    for line in lines:
        if line.get("event") == EVENT:
            keys = [(int(i), int(k)) for i, k in line["items"]]
            if len(keys) == 1:
                alone[keys[0]] = reason(float(line["seconds"]))
            else:
                shared.update(keys)
    return alone, shared
