"""A stage that stands in for the powder stage in the tests of the command line: same files, same tables, no work."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

from mlindex.config import PowderSettings
from mlindex.formats import peaks
from mlindex.powder.record import powder_record
from mlindex.records import Item, Result, Schema
from tests.report.results import SCHEMA, solved, unsolved


class FakeStage:
    """Solves every list, but: "noise" is unsolved and "bug" raises. `built` are the settings it was made with."""

    name: ClassVar[str] = "powder"
    schema: ClassVar[Schema] = SCHEMA
    built: ClassVar[list[PowderSettings]] = []

    def __init__(self, settings: PowderSettings) -> None:
        self.settings = settings
        self.built.append(settings)

    def read(self, source: str) -> list[Item]:
        found = peaks.read(source, quantity=self.settings.quantity, wavelength=self.settings.wavelength)
        return [Item(found.id, source, {"q2": found.q2})]

    def prepare(self, items: Sequence[Item]) -> Any:
        if any("interrupt" in item.id for item in items):
            raise KeyboardInterrupt
        if any("bug" in item.id for item in items):
            raise RuntimeError("a bug")
        return items

    def kernel(self, prepared: Any) -> Any:
        return prepared

    def finish(self, items: Sequence[Item], out: Any) -> list[Result]:
        made = [unsolved(item.id) if "noise" in item.id else solved(item.id) for item in items]
        return [dataclasses.replace(m, source=item.source) for m, item in zip(made, items, strict=True)]

    def record(self, result: Result) -> dict[str, Any]:
        return powder_record(result)
