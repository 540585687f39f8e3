"""The training of powder indexing in this process: progress on standard error, a table of what was made at the end."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from mlindex.records import InputError
from mlindex.report.tables import printer, say
from mlindex.runtime import device


def _checked(output: Path) -> None:
    """Make the folder before hours are spent on what goes into it."""
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{output}: cannot be written to ({error.strerror}); give another folder with -o") from None
    if not os.access(output, os.W_OK):
        raise InputError(f"{output}: cannot be written to (permission denied); give another folder with -o")


def train_parts(data: Path, output: Path, parts: Sequence[str], minutes: float, lists: int, seed: int) -> int:
    """Train `parts` on the crystals in `data` and print a table; the exit status. Raises `InputError`."""
    device.apply()
    from mlindex.powder import train

    say(f"{data}: reading")
    crystals = train.read(data, say)
    _checked(output)
    entries = crystals.entries
    counts = ", ".join(f"{int((entries.set == s).sum())} {s}" for s in ("train", "validation", "test"))
    say(f"{len(entries)} crystals: {counts}; rejected: {sum(entries.rejected.values())}")
    plan = dataclasses.replace(train.PLAN, seed=seed, minutes=minutes, lists=lists)
    made = train.train(crystals, output, parts, plan, say)
    table = Table(box=None, padding=(0, 1))
    for name in ("part", "file", "kB", "s", "quality"):
        table.add_column(name, justify="right" if name in ("kB", "s") else "left", overflow="fold")
    for one in made:
        size = one.path.stat().st_size / 1000
        table.add_row(one.part, one.path.name, f"{size:.0f}", f"{one.card['seconds']:.0f}", one.quality)
        if kept := one.card.get("kept"):
            say(f"{one.part}: no crystals of {', '.join(kept)}; these are as they are installed")
    printer().print(f"{output}:", soft_wrap=True)
    printer().print(table)
    return 0
