"""Index files in this process: find them, solve one after the other, print each as it is done."""

from __future__ import annotations

import dataclasses
import functools
import glob
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from mlindex.config import Settings
from mlindex.records import InputError, Item, Result, Status, failed
from mlindex.report.tables import printer, result_table, say, tally
from mlindex.runtime import device, inputs, shards
from mlindex.stage import load, solve

Show = Callable[[str, Result], None]


def files_from(names: Sequence[str]) -> list[str]:
    """The files that the arguments stand for, each once: a file, every file in a directory, or the matches of a glob.

    A name that is no glob is kept although there is no such file: that file fails, and the others go on. Raises
    `InputError` for a directory without files and a glob without matches.
    """
    found: dict[str, None] = {}
    for name in names:
        path = Path(name)
        if path.is_dir():
            matches = inputs.in_order(str(p) for p in path.iterdir() if p.is_file() and not p.name.startswith("."))
        elif glob.has_magic(name) and not path.exists():
            matches = inputs.in_order(match for match in glob.glob(name, recursive=True) if os.path.isfile(match))
        else:
            matches = [name]
        if not matches:
            raise InputError(f"{name}: there are no files here; give files, a directory of them, or a glob")
        found |= dict.fromkeys(matches)
    return list(found)


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"


def results_of(stage: Any, files: Sequence[str]) -> Iterator[Result]:
    """One result an item of each file, in order, named as in a campaign; a file of no use is a failed result."""
    for entry in inputs.label(files):
        try:
            items: list[Item] = stage.read(entry.source)
            if not items:
                raise InputError(f"{entry.source}: has no items; leave it out")
        except Exception as error:  # one bad file must not take the others with it
            yield failed(Item(entry.label, entry.source), _reason(error))
            continue
        for item in items:
            name = inputs.item_id(entry.label, item, len(items))
            yield from solve(stage, [dataclasses.replace(item, id=name, source=entry.source)])


def progress_bar() -> Progress:
    """A bar on standard error while that is a terminal; standard output is left alone."""
    console = printer(stderr=True)
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
        disable=not console.is_terminal,
    )


def _writable(output: Path) -> None:
    """Found out before the work, not after it."""
    if output.is_dir() or not output.parent.is_dir() or not os.access(output.parent, os.W_OK):
        raise InputError(f"{output}: cannot be written; give the name of a file in a folder that exists")


def _write(output: Path, name: str, stage: Any, results: Sequence[Result], settings: Settings) -> None:
    attributes = shards.provenance(name, {name: settings.model_dump(mode="json")})
    try:
        shards.write_results(output, name, stage.schema, results, attributes)
    except OSError as error:
        detail = (error.strerror or str(error)).splitlines()[0]
        raise InputError(
            f"{output}: cannot be written ({detail}); free space or give a file elsewhere, and index again"
        ) from None


def _line(record: Any) -> str:
    """A record as one line of JSON, with escapes for what standard output cannot hold, as names that are not UTF-8."""
    text = json.dumps(record, allow_nan=False, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return json.dumps(record, allow_nan=False)
    return text


def _shown(show: Callable[[], object]) -> bool:
    """Print something; False, and nothing is printed any more, where standard output is closed, as by `head`."""
    try:
        show()
    except (BrokenPipeError, SystemExit):  # rich ends the program over it
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)  # for what is still buffered
        os.close(nowhere)
        return False
    return True


def index_files(
    name: str,
    settings: Settings,
    names: Sequence[str],
    output: Path | None,
    as_json: bool,
    table: Callable[[Result], RenderableType] = result_table,
    tally: Callable[[Sequence[Result]], str] = tally,
) -> int:
    """Index the files with the stage called `name`; the exit status: 0, or 1 where something failed.

    Results go to standard output as they come: JSON lines, or a `table` each; `tally` counts many. Progress and
    failures go to standard error. Where standard output is closed the work goes on for `output` alone, and ends without
    it. Raises `InputError` for arguments that cannot be used.
    """
    files = files_from(names)
    if output is not None:
        _writable(output)
    device.apply()
    stage = load(name, settings)
    out = printer()
    results: list[Result] = []
    interrupted, read = False, True  # by someone, what is printed
    progress = progress_bar()
    task = progress.add_task("indexing", total=len(files))
    progress.start()
    try:
        for result in results_of(stage, files):
            results.append(result)
            progress.stop()  # or its bar would be drawn through the result where both are one terminal
            if as_json:
                read = read and _shown(functools.partial(print, _line(stage.record(result)), flush=True))
            elif result.status is not Status.FAILED:
                read = read and _shown(functools.partial(out.print, table(result)))
            if not read and output is None:
                return 1
            if result.status is Status.FAILED:
                say(f"failed: {result.id}: {result.reason}")
            progress.update(task, completed=len({r.source for r in results}))
            progress.start()
    except KeyboardInterrupt:
        interrupted = True
    finally:
        progress.stop()
    if len(files) > 1 or interrupted:
        say(tally(results) + (f"; interrupted before {len(files)} files were done" if interrupted else ""))
    if output is not None:
        _write(output, name, stage, results, settings)
        say(f"results in {output}")
    return 130 if interrupted else int(any(r.status is Status.FAILED for r in results))
