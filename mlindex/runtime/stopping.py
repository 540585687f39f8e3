"""Being asked to end early: SIGUSR1, which SLURM sends before the time limit, or a file that the launcher makes."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

FILE = "MLINDEX_STOP"  # variable with the path of a file whose existence means: stop


@contextlib.contextmanager
def listening(tell: Path | None = None) -> Iterator[Callable[[], bool]]:
    """While inside, SIGUSR1 does not end the process: the function given says whether it came, or the file is there.

    `tell`: a file to make when it comes, for the processes that this one has started.
    """
    came = threading.Event()
    named = os.environ.get(FILE)

    def note(number: int, frame: FrameType | None) -> None:
        came.set()
        if tell is not None:
            tell.touch()

    def asked() -> bool:
        return came.is_set() or (named is not None and Path(named).exists())

    if threading.current_thread() is not threading.main_thread():
        yield asked  # only the main thread can handle signals
        return
    before = signal.signal(signal.SIGUSR1, note)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGUSR1, before)
