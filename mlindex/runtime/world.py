"""The processes of a run and the messages between them: the only module that imports mpi4py.

Messages are byte buffers with a tag. Waiting is polling with short sleeps, because a blocking MPI call keeps a core
busy and the dispatcher shares its cores with the workers. Errors return; where MPI knows of failed processes (ULFM, the
fault tolerance chapter of MPI 5), a lost rank is a number in `lost`, and where it does not, MPI ends the job.
"""

from __future__ import annotations

import atexit
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlindex.records import InputError
from mlindex.runtime import device

_START = 120  # seconds in which all ranks must have met
_END = 10  # seconds that MPI gets to end after the loss of a rank
_SHORTEST, _LONGEST = 2e-5, 2e-3  # seconds between two looks for a message
_DISPATCHER = 5e-4  # the same for rank 0, whose delay costs every worker


class Disconnected(RuntimeError):
    """The rank that this one takes its work from is gone."""


@dataclass(frozen=True)
class Message:
    """One message: who sent it, its tag, and its bytes, uint8 of shape (n,)."""

    source: int
    tag: int
    data: NDArray[np.uint8]


class World:
    """The ranks of one MPI job."""

    def __init__(self) -> None:
        # the start of MPI does not survive the loss of a rank, and would wait for ever; this ends the process then
        signal.alarm(_START)
        from mpi4py import MPI  # here and not above: a process on its own must not need MPI

        self._mpi: Any = MPI
        self._comm = MPI.COMM_WORLD
        self._comm.Set_errhandler(MPI.ERRORS_RETURN)
        self.rank: int = self._comm.Get_rank()
        self.size: int = self._comm.Get_size()
        self.lost: set[int] = set()
        self._sent: list[tuple[Any, NDArray[np.uint8]]] = []  # with the data, which MPI still reads
        self._gone = {getattr(MPI, name, -1) for name in ("ERR_PROC_FAILED", "ERR_PROC_FAILED_PENDING", "ERR_REVOKED")}

    def worker_masks(self) -> dict[int, frozenset[int]]:
        """The CPUs that each worker of this node may use, by local rank; every rank must call it, first of all."""
        node = self._comm.Split_type(self._mpi.COMM_TYPE_SHARED)
        mine = (device.place(os.environ).local_rank, self.rank, device.available_cpus())
        masks = {local: mask for local, rank, mask in node.allgather(mine) if rank != 0}
        node.Free()
        signal.alarm(0)  # from here on the loss of a rank is an error that returns
        return masks

    def _notice(self, error: Exception) -> None:
        if not isinstance(error, self._mpi.Exception) or error.Get_error_class() not in self._gone:
            raise error
        self._comm.Ack_failed()
        failed, everyone = self._comm.Get_failed(), self._comm.Get_group()
        self.lost |= set(failed.Translate_ranks(list(range(failed.Get_size())), everyone))

    def send(self, dest: int, tag: int, data: NDArray[np.uint8]) -> bool:
        """Send bytes, without waiting for them to be taken; False where `dest` is lost.

        Two ranks that each waited for the other to take a long message would wait for ever.
        """
        try:
            self._sent.append((self._comm.Isend([data, self._mpi.BYTE], dest, tag), data))
        except self._mpi.Exception as error:
            self._notice(error)
            return False
        self._settle()
        return dest not in self.lost

    def _settle(self) -> None:
        """Forget what was sent and taken, or sent to a rank that is lost."""
        under_way = []
        for request, data in self._sent:
            try:
                if not request.Test():
                    under_way.append((request, data))
            except self._mpi.Exception as error:
                self._notice(error)
        self._sent = under_way

    def flush(self, timeout: float = 10.0) -> None:
        """Wait until what was sent is taken, or its time is up."""
        end = time.monotonic() + timeout
        while self._sent and time.monotonic() < end:
            self._settle()
            time.sleep(_SHORTEST)

    def receive(self, timeout: float) -> Message | None:
        """The next message from anyone; None after `timeout` seconds, or as soon as a rank is found lost."""
        status, pause, end = self._mpi.Status(), _SHORTEST, time.monotonic() + timeout
        while True:
            try:
                if self._sent:
                    self._settle()
                if self._comm.Iprobe(status=status):
                    data = np.empty(status.Get_count(self._mpi.BYTE), np.uint8)
                    source, tag = status.Get_source(), status.Get_tag()
                    self._comm.Recv([data, self._mpi.BYTE], source, tag)
                    return Message(source, tag, data)
            except self._mpi.Exception as error:
                self._notice(error)
                return None
            if time.monotonic() > end:
                return None
            time.sleep(pause)
            pause = min(2 * pause, _DISPATCHER if self.rank == 0 else _LONGEST)

    def receive_from_root(self) -> Message:
        """The next message from rank 0; raises `Disconnected` when rank 0 is lost."""
        while (message := self.receive(10.0)) is None or message.source != 0:
            if 0 in self.lost:
                raise Disconnected("the dispatcher (rank 0) is gone")
        return message

    def expect_trouble_at_exit(self) -> None:
        """Bound the time that MPI takes to end: after the loss of a rank, MPI_Finalize waits for ever now and then."""
        atexit.register(signal.alarm, _END)  # which runs before MPI_Finalize; all that matters is on disk by then

    def abort(self) -> None:
        """End every process of the job."""
        self._comm.Abort(1)


def join(env: Mapping[str, str]) -> World | None:
    """The job that the launcher put this process in; None for a process on its own, without importing mpi4py.

    Raises `InputError` where the launcher started many processes and MPI knows of one: each would do all of the work.
    """
    here = device.place(env)
    if here.size == 1:
        return None
    world = World()
    if world.size != here.size:
        signal.alarm(0)
        raise InputError(
            f"the launcher started {here.size} processes but MPI joins {world.size}; use the mpiexec of the installed "
            "MPI, or the `srun --mpi=` that it understands (pmix for Open MPI, pmi2 for MPICH)"
        )
    return world
