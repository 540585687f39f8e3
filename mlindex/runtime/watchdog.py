"""The process beside a rank that ends it when its work is overdue and it cannot end itself.

Code that hangs with Python's lock held lets no handler and no thread of its own process run; and a process that ends
itself with a status other than 0 is no lost rank to Open MPI, whose rank 0 would wait for it for ever. Hence another
process, and SIGKILL. It is run by its path and imports the standard library alone, so that it starts in milliseconds
and needs a few megabytes.

Orders come on its standard input, one JSON object a line: `{"seconds", "event", "sentence"}` sets the alarm and `{}`
takes it back. When the alarm goes off, the event is appended to the journal before the kill, and the sentence goes to
standard error. The end of the input, which is the end of the rank, ends it.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import time
from typing import Any


def strike(order: dict[str, Any], journal: str, rank: int) -> None:
    """Write down what was overdue, and kill the process `rank` if it is still the one that started this one."""
    if os.getppid() != rank:
        return
    line = json.dumps({**order["event"], "time": time.time()}) + "\n"
    with contextlib.suppress(OSError):  # a full disk: then it is a worker lost for a reason that nobody knows
        handle = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.write(handle, line.encode())
        os.close(handle)
    with contextlib.suppress(OSError):
        os.write(2, (order["sentence"] + "\n").encode())
    os.kill(rank, signal.SIGKILL)


def watch(journal: str, rank: int) -> None:
    """Wait for orders and carry them out, until the input ends."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2"):  # they are for the rank, and come to its group
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    order: dict[str, Any] = {}
    due, rest = 0.0, b""
    while True:
        left = max(due - time.monotonic(), 0.0) if order else None
        if not select.select([0], [], [], left)[0]:
            strike(order, journal, rank)
            return
        data = os.read(0, 1 << 16)
        if not data:
            return
        *whole, rest = (rest + data).split(b"\n")
        for text in whole:
            order = json.loads(text)
            due = time.monotonic() + order.get("seconds", 0.0)


if __name__ == "__main__":
    watch(sys.argv[1], int(sys.argv[2]))
