"""Starting the ranks of a run with the `mpiexec` of the installed MPI, and passing signals on to them."""

from __future__ import annotations

import contextlib
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType

from mlindex.records import InputError

_CARRIED = re.compile(r"(MLINDEX|JAX|XLA|OMP|OPENBLAS|MKL|HDF5|PYTHON|VIRTUAL_ENV|LD_LIBRARY_PATH|PATH$)\w*")
_GRACE = 20.0  # seconds that mpiexec gets to end its ranks, or to end after them
_HARD = 3.0  # and then between being asked to end and being killed


def find_mpiexec() -> str:
    """The `mpiexec` beside this Python, or the first on the PATH; raises `InputError` where there is none."""
    beside = Path(sys.executable).parent / "mpiexec"
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which("mpiexec")
    if found is None:
        raise InputError(
            "--ranks needs mpiexec, which is not installed; pip install 'mlindex-hpc[mpi]', or run without --ranks"
        )
    return found


def version_of(mpiexec: str) -> str:
    """What `mpiexec --version` prints."""
    done = subprocess.run(
        [mpiexec, "--version"], capture_output=True, text=True, env=environment(os.environ), check=False
    )
    return done.stdout + done.stderr


def environment(env: Mapping[str, str]) -> dict[str, str]:
    """The environment of `mpiexec`: Open MPI refuses to run as root, as in a container, unless told twice."""
    extra = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"} if os.geteuid() == 0 else {}
    return {**env, **extra}


def command(mpiexec: str, version: str, processes: int, program: Sequence[str], env: Mapping[str, str]) -> list[str]:
    """The command line that starts `processes` processes of `program`.

    Open MPI from 5.0 on is asked for fault tolerance (ULFM), so that the loss of a rank does not end the job. Ranks
    are not bound by the launcher, and may be more than the cores: the one that dispatches sleeps, and `device`
    divides the cores among the others.
    """
    options = ["-n", str(processes)]
    if "open mpi" in version.lower() or "openrte" in version.lower() or "prrte" in version.lower():
        number = re.search(r"(\d+)\.\d+", version)
        if number is not None and int(number.group(1)) >= 5:
            options += ["--with-ft", "ulfm"]
        options += ["--oversubscribe", "--bind-to", "none"]
        options += [part for name in sorted(env) if _CARRIED.fullmatch(name) for part in ("-x", name)]
    return [mpiexec, *options, *program]


@contextlib.contextmanager
def _forwarding(child: subprocess.Popen[bytes]) -> Iterator[list[int]]:
    """While inside, the signals that ask this process to end go to the child; the list holds those that came."""
    came: list[int] = []

    def forward(number: int, _: FrameType | None) -> None:
        came.append(number)
        child.terminate()

    if threading.current_thread() is not threading.main_thread():
        yield came  # only the main thread can handle signals
        return
    before = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run(
    arguments: Sequence[str], log: Path, env: Mapping[str, str], poll: Callable[[], float], over: Callable[[], bool]
) -> tuple[int, int | None]:
    """Run a command, its output going to the end of `log`; its exit status, and the signal that asked to stop, if any.

    `poll` is called again and again in the meantime and returns how many seconds it wants to rest. `over` tells that
    the command has no more to do: Open MPI's mpiexec waits for ever now and then, when it has lost a rank and the
    others are gone as well. It then gets a while to end by itself, and is ended.
    """
    with open(log, "ab") as output:
        child = subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(env),
            start_new_session=True,  # the terminal's Ctrl-C comes to us alone, and we pass it on once
        )
        ways = [child.terminate, child.kill]
        due = math.inf
        with _forwarding(child) as came:
            while child.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(_GRACE if came else poll())
                if came and child.poll() is None:
                    child.kill()
                if due == math.inf and over():
                    due = time.monotonic() + _GRACE
                if time.monotonic() > due and ways and child.poll() is None:
                    output.write(b"mpiexec has not ended with its ranks, and is ended\n")
                    ways.pop(0)()
                    due += _HARD
    return child.returncode, came[-1] if came else None
