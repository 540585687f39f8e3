"""What the shards of a run hold, together: read without a word written into the run, or merged into one file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlindex.cli.index import progress_bar
from mlindex.records import InputError, Result
from mlindex.report.tables import say
from mlindex.runtime import schema, shards
from mlindex.runtime.master import fullest, survey
from mlindex.runtime.merge import merge
from mlindex.runtime.status import left_out


@dataclass(frozen=True)
class Found:
    """The results of a run in the order of its inputs: `stage` is its name, `attributes` those of its files.

    `input`, `index` and `of` have one entry a result: the number of its input, its own in that, and how many there are.
    `problems` has a sentence for each shard whose items are not here.
    """

    stage: str
    attributes: Mapping[str, Any]
    results: list[Result]
    input: NDArray[np.int64]
    index: NDArray[np.int64]
    of: NDArray[np.int64]
    problems: list[str]


def read_run(run: Path) -> Found:
    """What a run directory holds now, or one results file; raises `InputError` where there is nothing to read."""
    if not run.exists():
        raise InputError(f"{run}: there is no such run or results file; check the name")
    if not run.is_dir():
        numbers = shards.read_numbers(run)
        number, index, of = (np.asarray(numbers.items[name], np.int64) for name in ("input", "index", "of"))
        return Found(numbers.stage, numbers.attributes, shards.read_results(run), number, index, of, [])
    seen = survey(run)
    stage = fullest(seen, run).stage
    unreadable = [sentence for _, sentence in seen.unreadable]
    found: dict[int, Result] = {}
    places = np.argsort(seen.shard, kind="stable")
    ends = np.searchsorted(seen.shard[places], np.arange(len(seen.shards)), "right")
    for shard, mine in zip(seen.shards, np.split(places, ends[:-1]), strict=True):
        if not len(mine):
            continue
        try:
            held = shards.read_results(shard.path)
        except InputError as error:
            unreadable.append(str(error))
            continue
        found |= {place: held[row] for place, row in zip(mine.tolist(), seen.row[mine].tolist(), strict=True)}
    kept = np.array(sorted(found), np.int64)
    return Found(
        stage,
        schema.combined([shard.attributes for shard in seen.shards]),
        [found[place] for place in kept.tolist()],
        seen.input[kept],
        seen.index[kept],
        seen.column("of")[kept],
        left_out(run, unreadable),
    )


def merge_run(run: Path, output: Path | None) -> int:
    """Merge a run and print what came of it; the exit status: 0, or 1 where a shard could not be read or is gone.

    Raises `InputError` for what the user has to change.
    """
    with progress_bar() as bar:
        task = bar.add_task("columns", total=None)
        done = merge(run, output, lambda n, total: bar.update(task, completed=n, total=total))
    problems = left_out(run, done.problems)
    for problem in problems:
        say(f"problem: {problem}")
    print(f"{done.items} items from {done.shards} shards: {done.path}")
    return int(bool(problems))
