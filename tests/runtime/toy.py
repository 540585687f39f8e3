"""A stage for the tests of the runtime: each line of a file is an item, which says what is to happen to it.

`value N` gives a table that depends on N and the item's id alone; `wait S` sleeps first; `bad` is refused by `prepare`,
`raise` by `kernel`, `kill` kills its process, `kill-once PATH` does so if PATH does not exist yet; `hang` never comes
back and `hang-in-c` does so in compiled code that holds Python's lock and minds no signal; `exit` leaves the process.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mlindex.records import Column, InputError, Item, Result, Schema, Status
from mlindex.runtime.journal import Journal
from mlindex.runtime.shards import Entry


def hang() -> None:
    """Python code that never ends, and passes over the exceptions that it knows."""
    while True:
        try:
            time.sleep(0.01)
        except Exception:
            continue


def hang_in_c() -> None:
    """Wait, with Python's lock, for a mutex that is held already: signals only interrupt that for their C handler."""
    mutex = ctypes.create_string_buffer(128)
    library = ctypes.PyDLL(None)
    while True:
        library.pthread_mutex_lock(mutex)


class ToyStage:
    """Numbers seeded by the item, in two tables of different lengths."""

    name: ClassVar[str] = "toy"
    schema: ClassVar[Schema] = Schema(
        {
            "solutions": (
                Column("cell", "float64", (6,), "angstrom", "unit cell"),
                Column("name", "str", (), "", "name"),
                Column("good", "bool", (), "", "good"),
            ),
            "lines": (Column("hkl", "int32", (3,), "", "Miller indices"),),
        }
    )

    def __init__(self, settings: Any) -> None:
        assert settings is None

    def read(self, source: str) -> list[Item]:
        path = Path(source)
        lines = path.read_text().splitlines()
        if not lines:
            raise InputError(f"{source}: is empty; write a line into it")
        if lines == ["crash the reader"]:
            os.kill(os.getpid(), signal.SIGKILL)
        if lines == ["hang the reader"]:
            hang()
        names = [path.stem] if len(lines) == 1 else [f"{path.stem}_{k}" for k in range(len(lines))]
        return [Item(n, source, attrs={"what": line}) for n, line in zip(names, lines, strict=True)]

    def prepare(self, items: Sequence[Item]) -> list[list[str]]:
        words = [str(item.attrs["what"]).split() for item in items]
        if any(w[0] == "bad" for w in words):
            raise InputError(f"{items[0].source}: is a bad item; remove it")
        return words

    def kernel(self, prepared: list[list[str]]) -> list[int]:
        numbers = []
        for words in prepared:
            for at, word in enumerate(words):
                if word == "wait":
                    time.sleep(float(words[at + 1]))
                elif word == "raise":
                    raise RuntimeError("the kernel does not like this")
                elif word == "hang":
                    hang()
                elif word == "hang-in-c":
                    hang_in_c()
                elif word == "exit":
                    sys.exit("the kernel wants to leave")
                elif word == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                elif word == "kill-once" and not Path(words[at + 1]).exists():
                    Path(words[at + 1]).touch()
                    os.kill(os.getpid(), signal.SIGKILL)
            numbers.append(int(words[words.index("value") + 1]) if "value" in words else 0)
        return numbers

    def finish(self, items: Sequence[Item], out: list[int]) -> list[Result]:
        return [self._result(item, number) for item, number in zip(items, out, strict=True)]

    def _result(self, item: Item, number: int) -> Result:
        random = np.random.default_rng(zlib.crc32(item.id.encode()) + number)
        n = number % 4
        tables = {
            "solutions": {
                "cell": random.normal(size=(n, 6)),
                "name": np.array([f"{item.id} é {k}" for k in range(n)], object),
                "good": random.random(n) < 0.5,
            },
            "lines": {"hkl": random.integers(-9, 9, (3 * n, 3)).astype(np.int32)},
        }
        return Result(item.id, item.source, Status.SOLVED if n else Status.UNSOLVED, tables=tables)

    def record(self, result: Result) -> dict[str, Any]:
        return {"id": result.id}


class ForgetfulToyStage(ToyStage):
    """Once (if the file TOY_MARK is not there yet) its process dies after the shard has a batch, before the journal."""

    def __init__(self, settings: Any) -> None:
        super().__init__(settings)
        real, mark = Journal.items, Path(os.environ["TOY_MARK"])

        def items(journal: Journal, entries: Sequence[Entry], shard: str) -> None:
            if not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            real(journal, entries, shard)

        Journal.items = items  # type: ignore[method-assign]


class JaxToyStage(ToyStage):
    """The same on a rank that loads JAX, as every real stage does."""

    def kernel(self, prepared: list[list[str]]) -> list[int]:
        import jax.numpy as jnp

        numbers = super().kernel(prepared)
        return [int(n) for n in jnp.asarray(numbers) + 0]
