"""Pull scheduling: workers ask rank 0 for batches, and a batch whose worker is lost goes to another.

`dispatch` runs a `Queue` on rank 0, which does nothing else, and `serve` answers it on the workers. A batch names
inputs and not their content, so rank 0 reads no file, needs no JAX, and holds no data; results stay with the worker
that made them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from mlindex.records import InputError, Item, items_from_buffer, items_to_buffer
from mlindex.runtime.disk import DiskProblem
from mlindex.runtime.queue import Done, Key, Queue, Unit
from mlindex.runtime.world import Message

HELLO, START, WORK, OPENED, DONE, STOP, BYE, END = range(1, 9)
_POLL = 0.2  # seconds


@runtime_checkable
class Messenger(Protocol):
    """What `dispatch` and `serve` need of a world."""

    rank: int
    size: int
    lost: set[int]

    def send(self, dest: int, tag: int, data: NDArray[np.uint8]) -> bool: ...

    def receive(self, timeout: float) -> Message | None: ...

    def receive_from_root(self) -> Message: ...

    def flush(self) -> None: ...


def pack(value: Any) -> NDArray[np.uint8]:
    """A value that JSON knows, as the bytes of a message."""
    return np.frombuffer(json.dumps(value).encode(), np.uint8).copy()


def unpack(message: Message) -> Any:
    """The value that `pack` made a message of."""
    return json.loads(message.data.tobytes())


@runtime_checkable
class Events(Protocol):
    """What `dispatch` asks of its caller, and tells it."""

    def ready(self, worker: int, hello: Mapping[str, Any]) -> None:
        """A worker is ready to start."""

    def committed(self, worker: int) -> Sequence[Done]:
        """The items that a lost worker has committed."""
        ...

    def guilty(self, worker: int) -> Sequence[Key]:
        """The items that are known to have ended a lost worker."""
        ...

    def lost(self, worker: int, suspects: Sequence[Unit]) -> None:
        """A worker is lost."""

    def condemn(self, unit: Unit) -> Sequence[Done]:
        """Record a unit as failed."""
        ...

    def progress(self, done: Sequence[Done], total: int) -> None:
        """These items are done now."""

    def timed(self, worker: int, items: int, seconds: float, workers: int) -> None:
        """A batch of so many items took a worker so long, while so many workers are at work."""

    def trouble(self, worker: int, problem: str) -> None:
        """A worker cannot write its results."""

    def stop(self) -> bool:
        """Whether to hand out nothing more."""
        ...


def dispatch(
    world: Messenger, queue: Queue, start: Mapping[str, Any], unit_item: Callable[[Unit], Item], events: Events
) -> None:
    """Rank 0: hand out batches until all is done or no worker is left, then let the workers close and wait for them.

    `start` goes to each worker first; `unit_item` turns a unit into what travels. Raises `InputError` with the reason
    of a worker that cannot start, after all have ended.
    """
    idle: set[int] = set()  # those that might take a batch
    open_, gone = set(range(1, world.size)), set[int]()
    problems: list[str] = []
    while open_:
        for worker in sorted(idle, key=lambda w: (queue.load(w), w)):
            if (batch := queue.take(worker, len(open_))) is None:
                if not queue.load(worker):
                    break
                idle.discard(worker)
                continue
            number, units = batch
            label = Item("batch", "", attrs={"number": number})
            world.send(worker, WORK, items_to_buffer([label, *map(unit_item, units)]))
            if queue.load(worker) >= queue.ahead:
                idle.discard(worker)
        while queue.condemned:
            done = events.condemn(queue.condemned.pop())
            events.progress(queue.complete(0, -1, done), queue.total)
        if idle and queue.finished and not queue.condemned:
            for worker in idle:
                world.send(worker, STOP, pack({}))
            idle.clear()
        message = world.receive(_POLL)
        if message is not None:
            if message.tag == HELLO and (problem := unpack(message).get("error")):
                problems.append(problem)
                open_.discard(message.source)
                queue.abandon()
            else:
                _hear(message, queue, world, start, events, idle, open_)
        for worker in sorted(world.lost - gone):
            gone.add(worker)
            idle.discard(worker)
            open_.discard(worker)
            new, suspects = queue.lose(worker, events.committed(worker), events.guilty(worker))
            events.progress(new, queue.total)
            events.lost(worker, suspects)
        if events.stop():
            queue.abandon()
    if problems:
        raise InputError(problems[0])


def _hear(
    message: Message,
    queue: Queue,
    world: Messenger,
    start: Mapping[str, Any],
    events: Events,
    idle: set[int],
    open_: set[int],
) -> None:
    worker, told = message.source, unpack(message)
    if message.tag == HELLO:
        events.ready(worker, told)
        world.send(worker, START, pack(start))
        idle.add(worker)
    elif message.tag == OPENED:
        queue.opened(told["input"], told["of"])
    elif message.tag == DONE:
        new = queue.complete(worker, told["number"], [Done(*values) for values in told["done"]])
        idle.add(worker)
        if problem := told.get("problem"):
            events.trouble(worker, problem)
            queue.abandon()
        elif told["done"]:
            events.timed(worker, len(told["done"]), told["seconds"], len(open_))
        events.progress(new, queue.total)
    elif message.tag == BYE:
        open_.discard(worker)


def dismiss(world: Messenger) -> None:
    """Rank 0, where the run cannot start: answer every worker's greeting with the end."""
    waiting = set(range(1, world.size))
    while waiting := waiting - world.lost:
        message = world.receive(_POLL)
        if message is not None and message.tag == HELLO:
            world.send(message.source, STOP, pack({}))
            waiting.discard(message.source)
    world.flush()


def release(world: Messenger) -> None:
    """Rank 0, when all is written: let the workers leave, and tell them whether a rank was lost."""
    for worker in set(range(1, world.size)) - world.lost:
        world.send(worker, END, pack({"lost": sorted(world.lost)}))
    world.flush()


def leave(world: Messenger) -> bool:
    """A worker that has closed its shard: say so, and wait for rank 0 to end; whether a rank was lost."""
    world.send(0, BYE, pack({}))
    while (message := world.receive_from_root()).tag != END:
        continue
    return bool(unpack(message)["lost"])


Work = Callable[[Sequence[Item], Callable[[int, int], None]], Sequence[Done]]


def serve(world: Messenger, hello: Mapping[str, Any], begin: Callable[[Mapping[str, Any]], Work]) -> None:
    """A worker: greet rank 0, do what comes, and return at the end.

    `begin` makes the function that does one batch out of what rank 0 tells at the start. That function commits before
    it returns, raises `DiskProblem` where the disk does not take the results, and calls its second argument with
    (input, number of items) for an input that it has opened. Raises `Disconnected` when rank 0 is lost.
    """
    world.send(0, HELLO, pack(hello))
    work: Work | None = None

    def opened(i: int, of: int) -> None:
        world.send(0, OPENED, pack({"input": i, "of": of}))

    while (message := world.receive_from_root()).tag != STOP:
        if message.tag == START:
            work = begin(unpack(message))
        elif message.tag == WORK and work is not None:
            label, *items = items_from_buffer(message.data)
            told: dict[str, Any] = {"number": label.attrs["number"], "done": []}
            begun = time.monotonic()
            try:
                told["done"] = [[d.input, d.index, d.of, d.status] for d in work(items, opened)]
            except DiskProblem as error:
                told["problem"] = str(error)
            world.send(0, DONE, pack({**told, "seconds": time.monotonic() - begun}))
