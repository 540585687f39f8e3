"""Pull scheduling: workers ask rank 0 for batches, and a batch whose worker is lost goes to another.

`Queue` decides and knows no MPI; `dispatch` runs it on rank 0, which does nothing else, and `serve` answers it on the
workers. A batch names inputs and not their content, so rank 0 reads no file, needs no JAX, and holds no data; results
stay with the worker that made them. An input with many items comes in parts: its first worker tells how many there are.

Why a lost batch comes back item by item: the item that killed its worker is among them. Alone, it can kill only once
more before it is recorded as failed, and the others are done. (A whole batch tried again would cost two more workers.)
"""

from __future__ import annotations

import itertools
import json
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from mlindex.records import InputError, Item, items_from_buffer, items_to_buffer
from mlindex.runtime.world import Message

HELLO, START, WORK, OPENED, DONE, STOP, BYE, END = range(1, 9)
KILLS = 2  # workers that an item may take with it before it has failed
_POLL = 0.2  # seconds

Key = tuple[int, int]


@dataclass(frozen=True)
class Unit:
    """Items `start` to `stop` of an input; `stop` None: a first batch of an input with an unknown number of items."""

    input: int
    start: int = 0
    stop: int | None = None
    kills: int = 0


@dataclass(frozen=True)
class Done:
    """What became of one item, as the acknowledgement of a batch tells it."""

    input: int
    index: int
    of: int
    failed: bool

    @property
    def key(self) -> Key:
        return self.input, self.index


class Queue:
    """What is to be done, by whom it is being done, and what is done.

    `inputs`: numbers of the inputs, in order; `done` and `of`: the items that earlier runs have finished, and the
    number of items of inputs already read; `kills`: how many workers an item has taken with it before; `batch`: items
    a batch.
    """

    def __init__(
        self,
        inputs: Iterable[int],
        batch: int,
        done: Collection[Key] = (),
        of: Mapping[int, int] | None = None,
        kills: Mapping[Key, int] | None = None,
    ) -> None:
        self.batch = batch
        self.done: set[Key] = set(done)
        self.of: dict[int, int] = dict(of or {})
        self._kills = dict(kills or {})
        self._inputs = list(inputs)
        self._pending: deque[Unit] = deque()
        self._out: dict[int, tuple[int, list[Unit]]] = {}
        self._number = itertools.count()
        self.condemned: list[Unit] = []
        for i in self._inputs:
            self._pending.extend(self._rest(i))
        self._sort_out()

    @property
    def total(self) -> int:
        """Number of items, an unread input counting as one."""
        return sum(self.of.get(i, 1) for i in self._inputs)

    @property
    def finished(self) -> bool:
        """Nothing is left to hand out or to wait for."""
        return not self._pending and not self._out

    def _rest(self, i: int) -> list[Unit]:
        """What is left of an input that nobody works on."""
        of = self.of.get(i)
        if of is None:
            return [Unit(i, kills=self._kills.get((i, 0), 0))]
        return self._cut(i, 0, of)

    def _cut(self, i: int, start: int, stop: int) -> list[Unit]:
        """Units for the items from `start` to `stop` that are not done, suspects alone."""
        units: list[Unit] = []
        for index in range(start, stop):
            if (i, index) in self.done:
                continue
            kills = self._kills.get((i, index), 0)
            last = units[-1] if units else None
            if kills or last is None or last.kills or last.stop != index or index - last.start >= self.batch:
                units.append(Unit(i, index, index + 1, kills))
            else:
                units[-1] = Unit(i, last.start, index + 1)
        return units

    def _sort_out(self) -> None:
        """Take what has killed too often out of the queue."""
        self.condemned += [unit for unit in self._pending if unit.kills >= KILLS]
        self._pending = deque(unit for unit in self._pending if unit.kills < KILLS)

    def take(self, worker: int, workers: int) -> tuple[int, list[Unit]] | None:
        """The next batch for a worker, or None; batches get smaller towards the end, so that all end together."""
        if not self._pending or worker in self._out:
            return None
        room = self.batch
        while room > 1 and room * workers > len(self._pending):
            room = (room + 1) // 2
        units: list[Unit] = []
        while self._pending and room > 0:
            unit = self._pending[0]
            size = 1 if unit.stop is None else unit.stop - unit.start
            if units and (unit.kills or size > room):
                break
            units.append(self._pending.popleft())
            room -= self.batch if unit.kills else size
        number = next(self._number)
        self._out[worker] = number, units
        return number, units

    def abandon(self) -> None:
        """Hand out nothing more."""
        self._pending.clear()

    def opened(self, i: int, of: int) -> None:
        """A worker has found how many items an input has."""
        self.of[i] = of

    def complete(self, worker: int, number: int, done: Sequence[Done]) -> list[Done]:
        """A worker has committed a batch; those of its items that were not done before."""
        new = self._record(done)
        if self._out.get(worker, (None,))[0] == number:
            self._reopen(self._out.pop(worker)[1], lost=False)
        return new

    def lose(self, worker: int, committed: Sequence[Done]) -> tuple[list[Done], list[Unit]]:
        """A worker is lost that had committed items; those not known before, and the units it may have died of."""
        new = self._record(committed)
        units = self._out.pop(worker)[1] if worker in self._out else []
        return new, self._reopen(units, lost=True)

    def _record(self, done: Sequence[Done]) -> list[Done]:
        new = [d for d in done if d.key not in self.done]
        self.done |= {d.key for d in new}
        self.of |= {d.input: d.of for d in new}
        return new

    def _reopen(self, units: Sequence[Unit], *, lost: bool) -> list[Unit]:
        """Put back what is left of units; where their worker was lost, what it had at hand is suspect."""
        suspects: list[Unit] = []
        rest: list[Unit] = []
        for unit in units:
            of = self.of.get(unit.input)
            if of is None:  # not even read
                if lost:
                    self._kills[unit.input, 0] = unit.kills + 1
                suspects += self._rest(unit.input)
                continue
            stop = of if unit.stop is None else unit.stop
            hot = min(stop, unit.start + self.batch) if unit.stop is None else stop
            if lost:
                for index in range(unit.start, hot):
                    if (unit.input, index) not in self.done:
                        self._kills[unit.input, index] = self._kills.get((unit.input, index), 0) + 1
            suspects += self._cut(unit.input, unit.start, hot)
            rest += self._cut(unit.input, hot, stop)
        self._pending.extendleft(reversed(suspects + rest))
        self._sort_out()
        return suspects if lost else []


@runtime_checkable
class Messenger(Protocol):
    """What `dispatch` and `serve` need of a world."""

    rank: int
    size: int
    lost: set[int]

    def send(self, dest: int, tag: int, data: NDArray[np.uint8]) -> bool: ...

    def receive(self, timeout: float) -> Message | None: ...

    def receive_from_root(self) -> Message: ...


def pack(value: Any) -> NDArray[np.uint8]:
    """A value that JSON knows, as the bytes of a message."""
    return np.frombuffer(json.dumps(value).encode(), np.uint8).copy()


def unpack(message: Message) -> Any:
    """The value that `pack` made a message of."""
    return json.loads(message.data.tobytes())


@runtime_checkable
class Events(Protocol):
    """What `dispatch` tells its caller."""

    def ready(self, worker: int, hello: Mapping[str, Any]) -> None:
        """A worker is ready to start."""

    def committed(self, worker: int) -> Sequence[Done]:
        """The items that a lost worker has committed."""
        ...

    def lost(self, worker: int, suspects: Sequence[Unit]) -> None:
        """A worker is lost."""

    def condemn(self, unit: Unit) -> Sequence[Done]:
        """Record a unit as failed."""
        ...

    def progress(self, done: Sequence[Done], total: int) -> None:
        """These items are done now."""


def dispatch(
    world: Messenger, queue: Queue, start: Mapping[str, Any], unit_item: Callable[[Unit], Item], events: Events
) -> None:
    """Rank 0: hand out batches until all is done or no worker is left, then let the workers close and wait for them.

    `start` goes to each worker first; `unit_item` turns a unit into what travels. Raises `InputError` with the reason
    of a worker that cannot start, after all have ended.
    """
    idle: set[int] = set()
    open_, gone = set(range(1, world.size)), set[int]()
    problems: list[str] = []
    while open_:
        for worker in sorted(idle):
            if (batch := queue.take(worker, len(open_))) is not None:
                number, units = batch
                label = Item("batch", "", attrs={"number": number})
                idle.discard(worker)
                world.send(worker, WORK, items_to_buffer([label, *map(unit_item, units)]))
        if queue.finished:
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
            new, suspects = queue.lose(worker, events.committed(worker))
            events.progress(new, queue.total)
            events.lost(worker, suspects)
        while queue.condemned:
            done = events.condemn(queue.condemned.pop())
            events.progress(queue.complete(0, -1, done), queue.total)
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


def release(world: Messenger) -> None:
    """Rank 0, when all is written: let the workers leave, and tell them whether a rank was lost."""
    for worker in set(range(1, world.size)) - world.lost:
        world.send(worker, END, pack({"lost": sorted(world.lost)}))


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
    it returns, and calls its second argument with (input, number of items) for an input that it found to have more
    than one. Raises `Disconnected` when rank 0 is lost.
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
            done = [[d.input, d.index, d.of, d.failed] for d in work(items, opened)]
            world.send(0, DONE, pack({"number": label.attrs["number"], "done": done}))
