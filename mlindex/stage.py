"""What a method must offer to be run in a campaign, and the table of the methods there are."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

from mlindex.records import InputError, Item, Result, Schema, failed

STAGES = {
    "powder": "mlindex.powder.stage:PowderStage",
    "laue": "mlindex.laue.stage:LaueStage",
    "bloch": "mlindex.bloch.stage:BlochStage",
}


@runtime_checkable
class Stage(Protocol):
    """read . prepare (host) . kernel (device) . finish (host), over a batch of items.

    A stage is built from its validated settings and keeps no state between batches, so the answer to an item depends on
    the item and the settings alone and not on the rank or the batch it came in.
    """

    name: ClassVar[str]
    schema: ClassVar[Schema]

    def __init__(self, settings: Any) -> None: ...

    def read(self, source: str) -> list[Item]:
        """The items in one input file; raises `InputError` with one sentence for a file that cannot be used."""
        ...

    def prepare(self, items: Sequence[Item]) -> Any:
        """Host arrays for the kernel; raises `InputError` for an item that cannot be used."""
        ...

    def kernel(self, prepared: Any) -> Any:
        """The device work."""
        ...

    def finish(self, items: Sequence[Item], out: Any) -> list[Result]:
        """One result an item, in order; `seconds` may be left at zero."""
        ...

    def record(self, result: Result) -> dict[str, Any]:
        """The JSON object of one result (what `--json` prints)."""
        ...


def load(name: str, settings: Any) -> Stage:
    """The stage called `name` ("powder", or "package.module:Class" for one outside the table)."""
    target = STAGES.get(name, name)
    if ":" not in target:
        raise InputError(f"there is no stage {name!r}; the stages are {', '.join(sorted(STAGES))}")
    module, attribute = target.split(":")
    return getattr(importlib.import_module(module), attribute)(settings)


def _attempt(stage: Stage, items: Sequence[Item]) -> list[Result]:
    return stage.finish(items, stage.kernel(stage.prepare(items)))


Guard = Callable[[Sequence[Item], Callable[[], list[Result]]], list[Result]]


def solve(stage: Stage, items: Sequence[Item], guard: Guard | None = None) -> list[Result]:
    """The results of a batch; an item that fails becomes a failed result and the others go on.

    `guard` calls its second argument, the work on the items that are its first, and may raise instead of returning: an
    item that takes too long fails like one that raises.
    """
    start = time.perf_counter()
    try:
        results = _attempt(stage, items) if guard is None else guard(items, lambda: _attempt(stage, items))
    except (Exception, SystemExit) as error:  # one bad item must not take the batch with it, nor the process
        if len(items) > 1:
            return [result for item in items for result in solve(stage, [item], guard)]
        reason = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
        results = [failed(items[0], reason, time.perf_counter() - start)]
    share = (time.perf_counter() - start) / max(len(items), 1)
    return [r if r.seconds else Result(r.id, r.source, r.status, r.reason, share, r.tables) for r in results]
