"""What is to be done, by whom it is being done, and what is done: the book that rank 0 keeps. It knows no MPI.

A batch names inputs and not their content, so the queue holds no data: a byte an input, and a byte an item for those
inputs of many items that are begun and not ended. An input with many items comes in parts: its first worker tells how
many there are.

Why a lost batch comes back item by item: the item that killed its worker is among them. Alone, it can kill only once
more before it is recorded as failed, and the others are done. (A whole batch tried again would cost two more workers.)
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

KILLS = 2  # workers that an item may take with it before it has failed

Key = tuple[int, int]


@dataclass(frozen=True)
class Part:
    """Part `number` of `of` equal parts of a campaign, each the work of one job, as a task of a SLURM array is.

    `chunk` "files": every `of`-th input file; "items": one stretch of the items of every file.
    """

    number: int = 0
    of: int = 1
    chunk: str = "files"

    def __str__(self) -> str:
        return f"{self.number}of{self.of}"

    @property
    def whole(self) -> bool:
        """The whole campaign."""
        return self.of == 1

    def inputs(self, n: int) -> range:
        """Which of `n` inputs have items of this part."""
        return range(self.number, n, self.of) if self.chunk == "files" else range(n)

    def items(self, i: int, size: int) -> range:
        """Which of the `size` items of input `i` (one of `inputs`) belong to this part."""
        if self.chunk == "files":
            return range(size)
        at = (self.number + i) % self.of  # so that inputs of one item do not all fall to the last part
        return range(size * at // self.of, size * (at + 1) // self.of)

    def numbers(self, input_: NDArray[np.int64], index: NDArray[np.int64], of: NDArray[np.int64]) -> NDArray[np.int64]:
        """The number of the part that each item belongs to, given its input, its index, and the size of its input."""
        if self.chunk == "files":
            return input_ % self.of
        stretch = -(-(index + 1) * self.of // of) - 1
        return (stretch - input_) % self.of


@dataclass(frozen=True)
class Unit:
    """Items `start` to `stop` of an input; `stop` None: at most `first` of an input with an unknown number of items."""

    input: int
    start: int = 0
    stop: int | None = None
    kills: int = 0
    first: int = 1


@dataclass(frozen=True)
class Done:
    """What became of one item, as the acknowledgement of a batch tells it."""

    input: int
    index: int
    of: int
    status: str

    @property
    def key(self) -> Key:
        return self.input, self.index


class Queue:
    """The items of one part of a campaign.

    `inputs`: how many there are; `batch`: items a batch, and `ahead`: batches that a worker may hold, of which it works
    on the first, both of which may be changed at any time; `done`: (input, index) of
    the items that earlier runs have finished; `of`: the number of items of inputs already read; `kills`: how many
    workers an item has taken with it before.
    """

    def __init__(
        self,
        inputs: int,
        batch: int,
        part: Part | None = None,
        done: Iterable[Key] = (),
        of: Mapping[int, int] | None = None,
        kills: Mapping[Key, int] | None = None,
    ) -> None:
        self.batch = batch
        self.ahead = 1
        self.part = part or Part()
        self._of = np.full(inputs, -1, np.int32)
        self._complete = bytearray(inputs)  # inputs of which nothing is left
        self._marks: dict[int, bytearray] = {}  # by input that is begun: 1 for an item that is done
        self._left: dict[int, int] = {}
        self._kills = dict(kills or {})
        self._front: deque[Unit] = deque()
        self._out: dict[int, dict[int, list[Unit]]] = {}  # by worker and number, in the order of their work
        self._number = itertools.count()
        self._abandoned = False
        self._items_out = 0
        self.condemned: list[Unit] = []
        self.done = 0
        numbers = self.part.inputs(inputs)
        self.total = len(numbers)  # an unread input counts as one
        for i, size in (of or {}).items():
            self.opened(i, size)
        for key in done:
            if key[0] in numbers:
                self._mark(*key)
        self._stream = self._units(numbers)

    def size(self, i: int) -> int | None:
        """How many items an input has, if it has been read."""
        return None if self._of[i] < 0 else int(self._of[i])

    def items(self, i: int) -> range:
        """The items of an input that has been read and that belong to this part."""
        return self.part.items(i, int(self._of[i]))

    def opened(self, i: int, of: int) -> None:
        """A worker has found how many items an input has."""
        if self._of[i] >= 0 or i not in self.part.inputs(len(self._of)):
            return
        self._of[i] = of
        n = len(self.items(i))
        self.total += n - 1
        if n == 0:
            self._complete[i] = 1

    def _is_done(self, i: int, index: int) -> bool:
        return bool(self._complete[i] or (i in self._marks and self._marks[i][index]))

    def _mark(self, i: int, index: int) -> bool:
        """Count an item of a known input as done; False where it was, or is not of this part."""
        items = self.items(i)
        if index not in items or self._is_done(i, index):
            return False
        self.done += 1
        if len(items) > 1:
            marks = self._marks.setdefault(i, bytearray(int(self._of[i])))
            self._left[i] = self._left.get(i, len(items)) - 1
            marks[index] = 1
            if self._left[i]:
                return True
            del self._marks[i], self._left[i]
        self._complete[i] = 1
        return True

    def _units(self, numbers: range) -> Iterator[Unit]:
        """What was never handed out, in order, made when it is asked for."""
        for i in numbers:
            if not self._complete[i]:
                if self._of[i] < 0:
                    yield Unit(i, kills=self._kills.get((i, 0), 0))
                else:
                    yield from self._cut(i, self.items(i))

    def _cut(self, i: int, items: range) -> Iterator[Unit]:
        """Units for those of the items that are not done, suspects alone."""
        start = items.start
        while start < items.stop:
            if self._is_done(i, start):
                start += 1
                continue
            stop, kills = start + 1, self._kills.get((i, start), 0)
            while (
                not kills
                and stop < items.stop
                and stop - start < self.batch
                and not self._is_done(i, stop)
                and (i, stop) not in self._kills
            ):
                stop += 1
            yield Unit(i, start, stop, kills)
            start = stop

    def _next(self) -> Unit | None:
        """The next unit, which is left in its place; what has killed too often is taken out."""
        while not self._abandoned:
            if not self._front:
                unit = next(self._stream, None)
                if unit is None:
                    return None
                self._front.append(unit)
            if self._front[0].kills < KILLS:
                return self._front[0]
            self.condemned.append(self._front.popleft())
        return None

    @property
    def finished(self) -> bool:
        """Nothing is left to hand out or to wait for."""
        return not self._out and self._next() is None

    def load(self, worker: int) -> int:
        """How many batches a worker holds."""
        return len(self._out.get(worker, ()))

    def take(self, worker: int, workers: int) -> tuple[int, list[Unit]] | None:
        """The next batch for a worker, or None; batches get smaller towards the end, so that all end together."""
        if (load := self.load(worker)) >= self.ahead or (unit := self._next()) is None:
            return None
        plenty = 2 * self.ahead * workers * self.batch <= self.total - self.done - self._items_out
        if load and (unit.kills or not plenty):
            return None
        room = self.batch
        while room > 1 and room * workers > self.total - self.done - self._items_out:
            room = (room + 1) // 2
        units: list[Unit] = []
        while room > 0 and (unit := self._next()) is not None:
            if units and unit.kills:
                break
            self._front.popleft()
            size = _size(unit)
            if unit.stop is None and not unit.kills:  # what is suspect is tried item by item
                unit = replace(unit, first=self.batch)
            if size > room:
                self._front.appendleft(replace(unit, start=unit.start + room))
                unit, size = replace(unit, stop=unit.start + room), room
            units.append(unit)
            self._items_out += size
            room -= self.batch if unit.kills else size
        number = next(self._number)
        self._out.setdefault(worker, {})[number] = units
        return number, units

    def abandon(self) -> None:
        """Hand out nothing more."""
        self._abandoned = True

    def complete(self, worker: int, number: int, done: Sequence[Done]) -> list[Done]:
        """A worker has committed a batch; those of its items that were not done before."""
        new = self._record(done)
        held = self._out.get(worker, {})
        if number in held:
            self._reopen(held.pop(number), lost=False)
            if not held:
                del self._out[worker]
        return new

    def lose(
        self, worker: int, committed: Sequence[Done], guilty: Collection[Key] = ()
    ) -> tuple[list[Done], list[Unit]]:
        """A worker is lost that had committed items; those not known before, and the units it may have died of.

        `guilty`: items that are known to have ended it. They fail without another try, and no other is suspect.
        """
        new = self._record(committed)
        self._kills |= dict.fromkeys(guilty, KILLS)
        batches = list(self._out.pop(worker, {}).values())
        while batches and self._settled(batches[0]):  # committed, and not yet acknowledged
            self._reopen(batches.pop(0), lost=False)
        for untouched in reversed(batches[1:]):
            self._reopen(untouched, lost=False)
        return new, self._reopen(batches[0], lost=not guilty) if batches else []

    def _record(self, done: Sequence[Done]) -> list[Done]:
        for d in done:
            self.opened(d.input, d.of)
        return [d for d in done if self._mark(*d.key)]

    def _settled(self, units: Sequence[Unit]) -> bool:
        """Nothing is left of these units."""
        for unit in units:
            if self._of[unit.input] < 0 and not self._complete[unit.input]:
                return False
            items = self.items(unit.input) if unit.stop is None else range(unit.start, unit.stop)
            if any(not self._is_done(unit.input, index) for index in items):
                return False
        return True

    def _reopen(self, units: Sequence[Unit], *, lost: bool) -> list[Unit]:
        """Put back what is left of units; where their worker was lost, what it had at hand is suspect."""
        suspects: list[Unit] = []
        rest: list[Unit] = []
        for unit in units:
            self._items_out -= _size(unit)
            if self._of[unit.input] < 0:  # not even read
                if lost:
                    self._kills[unit.input, 0] = unit.kills + 1
                if not self._complete[unit.input]:
                    suspects.append(Unit(unit.input, kills=self._kills.get((unit.input, 0), 0)))
                continue
            items = self.items(unit.input) if unit.stop is None else range(unit.start, unit.stop)
            hot = items[: unit.first] if unit.stop is None else items
            if lost:
                for index in hot:
                    if not self._is_done(unit.input, index):
                        self._kills[unit.input, index] = self._kills.get((unit.input, index), 0) + 1
            suspects += self._cut(unit.input, hot)
            rest += self._cut(unit.input, items[len(hot) :])
        self._front.extendleft(reversed(suspects + rest))
        return suspects if lost else []


def _size(unit: Unit) -> int:
    return 1 if unit.stop is None else unit.stop - unit.start
