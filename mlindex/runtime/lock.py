"""Who is at work on a run: one lock a part, held by all processes of a job, and gone with the last of them.

`flock` on files in `RUN/lock`, which network file systems pass on between nodes (NFS 4, Lustre with `-o flock`); where
there are no locks, nothing is refused and nobody is seen at work.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
from pathlib import Path

from mlindex.records import InputError
from mlindex.runtime.queue import Part

FOLDER = "lock"
_PREPARING = "prepare"


def _open(run: Path, name: str) -> int:
    (run / FOLDER).mkdir(exist_ok=True)
    return os.open(run / FOLDER / name, os.O_RDWR | os.O_CREAT, 0o666)


def held(path: Path) -> bool:
    """Some process holds this lock, as far as the file system tells."""
    try:
        handle = os.open(path, os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(handle)
    return False


def hold(path: Path) -> int:
    """Hold the lock that `path` stands for, with any others that do; the open file, to be closed or left to the end."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    _downgrade(handle)
    return handle


def active(run: Path) -> list[tuple[int, int]]:
    """The parts, as (number, of), that some process is at work on."""
    found = []
    for path in sorted((run / FOLDER).glob("*of*")):
        if (match := re.fullmatch(r"(\d+)of(\d+)", path.name)) and held(path):
            found.append((int(match[1]), int(match[2])))
    return found


def _take(handle: int, patience: float) -> bool:
    """Wait for a lock for this process alone; False where others keep it."""
    end = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > end:
                return False
            time.sleep(0.1)
        except OSError:  # a file system without locks
            return True


def acquire(run: Path, part: Part, patience: float = 10.0) -> int:
    """Take a part of a run for this process and those that `share` it; the open file, to be closed at the end.

    Raises `InputError` while another job holds it, or holds a part of another division.
    """
    handle = _open(run, str(part))
    if not _take(handle, patience):
        os.close(handle)
        what = "it" if part.whole else f"part {part.number} of {part.of} of it"
        raise InputError(f"{run}: another run is at work on {what}; wait for it to end, or end it")
    others = [(k, n) for k, n in active(run) if n != part.of]
    if others:
        os.close(handle)
        k, n = others[0]
        raise InputError(
            f"{run}: another run is at work on {'all' if n == 1 else f'part {k} of {n}'} of it; wait for it to end"
        )
    _downgrade(handle)
    return handle


def _downgrade(handle: int) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_SH)
    except OSError:  # a file system without locks
        return


def share(run: Path, part: Part) -> int:
    """Hold the lock of a part that this process takes part in; the open file."""
    handle = _open(run, str(part))
    _downgrade(handle)
    return handle


def preparing(run: Path) -> int:
    """Wait until no other process prepares the run directory; the open file, to be closed when it is prepared."""
    handle = _open(run, _PREPARING)
    _take(handle, 600.0)
    return handle


def settle(run: Path, part: Part, patience: float = 15.0) -> None:
    """Wait until no process is at work on a part: ranks outlive the end of their launcher by a second or two."""
    end = time.monotonic() + patience
    while held(run / FOLDER / str(part)) and time.monotonic() < end:
        time.sleep(0.1)
