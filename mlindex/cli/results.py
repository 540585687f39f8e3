"""`mlindex merge`: one file from the shards of a run."""

from __future__ import annotations

from pathlib import Path

from mlindex.cli.index import progress_bar
from mlindex.report.tables import say
from mlindex.runtime.merge import merge


def merge_run(run: Path, output: Path | None) -> int:
    """Merge a run and print what came of it; the exit status: 0, or 1 where a shard could not be read.

    Raises `InputError` for what the user has to change.
    """
    with progress_bar() as bar:
        task = bar.add_task("columns", total=None)
        done = merge(run, output, lambda n, total: bar.update(task, completed=n, total=total))
    for problem in done.problems:
        say(f"problem: {problem}")
    print(f"{done.items} items from {done.shards} shards: {done.path}")
    return int(bool(done.problems))
