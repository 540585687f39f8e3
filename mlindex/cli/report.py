"""`mlindex report`: read what a run has now, write a page of it. Nothing in the run's results is written to."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlindex.cli.maps import report_sections
from mlindex.cli.patterns import report_patterns
from mlindex.records import InputError
from mlindex.report import bloch_section, canvas, laue_section, powder_section
from mlindex.report.census import Block, Census, Writer, collect
from mlindex.report.leading import leading_rows
from mlindex.report.page import Source, page
from mlindex.runtime.shards import ShardData, read_shard
from mlindex.runtime.status import status as status_of

NAME = "report.html"
COLUMNS = {  # by stage: its main table, and what is read of it
    "powder": (powder_section.TABLE, powder_section.COLUMNS),
    "laue": (laue_section.TABLE, laue_section.COLUMNS),
    "bloch": (bloch_section.TABLE, bloch_section.COLUMNS),
}
_PART = re.compile(r"-(\d+)of(\d+)-[0-9a-f]+$")  # in the name of a job


def _part(job: str) -> tuple[int, int]:
    """The part of the campaign that a job worked on, of how many."""
    named = _PART.search(job)
    return (int(named[1]), int(named[2])) if named else (0, 1)


def _writers(data: ShardData) -> tuple[list[Writer], NDArray[np.int64]]:
    """Who wrote the items of a file, and the row of it for each item."""
    n = len(data.items["id"])
    host, job = str(data.attributes.get("host", "")), str(data.attributes.get("job", data.path.stem))
    if "shard" not in data.items:  # one shard: one job and host; a rank alone may stand for others
        ranks, of = np.unique(np.asarray(data.items["rank"], np.int64), return_inverse=True)
        return [Writer(job, host, int(rank), *_part(job)) for rank in ranks], of.reshape(n)
    import h5py

    with h5py.File(data.path, "r", locking=False) as file:
        group = file["shards"]
        text = {name: [v.decode(errors="replace") for v in group[name][:]] for name in ("job", "host")}
        columns = zip(text["job"], text["host"], group["rank"][:], group["part"][:], group["parts"][:], strict=True)
        writers = [Writer(j, h, int(rank), int(part), int(parts)) for j, h, rank, part, parts in columns]
    return writers, np.asarray(data.items["shard"], np.int64)


def _block(data: ShardData) -> Block:
    """What the report needs of one results file."""
    writers, writer = _writers(data)
    has = np.zeros(len(data.items["id"]), bool)
    best: Mapping[str, NDArray] = {}
    table, names = COLUMNS.get(data.stage, ("", ()))
    if f"{table}_count" in data.items:
        has = np.asarray(data.items[f"{table}_count"]) > 0
        if has.any():
            rows = np.asarray(data.items[f"{table}_offset"], np.int64)[has]
            best = leading_rows(data.path, data.stage, table, names, rows)
    return Block(data.stage, data.items, writers, writer, has, best, data.attributes)


def _blocks(paths: list[Path], problems: list[str]) -> Iterator[Block]:
    for path in paths:
        try:
            yield _block(read_shard(path, tables=False))
        except InputError as error:
            if path.exists():  # else a job has just set it aside
                problems.append(str(error))
        except OSError as error:  # replaced by its trimmed form between one look and the next
            problems.append(f"{path}: could not be read ({error}); write the report again")


def gather(run: Path) -> tuple[Census, dict[str, Any] | None, list[str]]:
    """What a run directory, or one results file, holds now; where it stands (None for a file); what cannot be read.

    Raises `InputError` for what is neither.
    """
    if not run.exists():
        raise InputError(f"{run}: there is no such run or results file; check the name")
    problems: list[str] = []
    if run.is_dir():
        status = status_of(run)
        return collect(_blocks(sorted((run / "shards").glob("*.h5")), problems)), status, problems
    return collect([_block(read_shard(run, tables=False))]), None, problems


def _written(path: Path, content: bytes) -> None:
    """Write a file in one step, so that a browser never sees half of it."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content)
    os.replace(partial, path)


def write_report(run: Path, output: Path | None, tolerance: float = 1.0) -> Path:
    """Write the report of a run directory or results file, and its pictures beside it; the path of the page.

    `tolerance` (per cent, on lengths) is that of like lattices. Raises `InputError` for what the user has to change.
    """
    canvas.check()
    if not 0 < tolerance <= 20:
        raise InputError(f"--tolerance {tolerance:g}: is no tolerance in per cent; give a number above 0, up to 20")
    census, status, problems = gather(run)
    path = output or (run / NAME if run.is_dir() else run.with_suffix(".html"))
    folder = path.with_suffix("")
    if folder == path:
        raise InputError(f"{path}: the pictures go into a folder of this name; give the page another, as {path}.html")
    name = str(status["name"]) if status else run.name
    sections = report_sections(run, problems) if "laue" in census.stages else []
    sections += report_patterns(run, problems) if "bloch" in census.stages else []
    source = Source(
        place=str(run.resolve()),
        census=census,
        status=status,
        now=time.time(),
        problems=problems,
        name=name,
        pictures=folder.name,
        tolerance=tolerance / 100,
        sections=sections,
    )
    html, pictures = page(source)
    try:
        folder.mkdir(exist_ok=True)
        for picture, content in pictures.items():
            _written(folder / picture, content)
        _written(path, html.encode(errors="replace"))
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); give another file with -o") from None
    return path


def report(run: Path, output: Path | None, tolerance: float = 1.0) -> int:
    """Write the report and print its path; the exit status."""
    print(write_report(run, output, tolerance))
    return 0
