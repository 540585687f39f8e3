"""The patterns of a run that its report shows: read from its results files, without the others in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mlindex.records import InputError
from mlindex.report.bloch_patterns import Shown, pattern_sections
from mlindex.report.leading import leading_rows
from mlindex.report.section import Section
from mlindex.runtime.shards import ShardData, read_shard

SHOWN = 4  # patterns with pictures, the first in the order of the inputs
_TABLES = ("patterns", "factors", "beams", "tilts", "intensities")


def _shown(data: ShardData, row: int) -> Shown:
    tables = {}
    for name in _TABLES:
        first, count = (int(data.items[f"{name}_{what}"][row]) for what in ("offset", "count"))
        columns = [column.name for column in data.columns[name]]
        tables[name] = leading_rows(data.path, data.stage, name, columns, np.arange(first, first + count))
    return Shown(str(data.items["id"][row]), str(data.items["status"][row]), tables)


def report_patterns(run: Path, problems: list[str]) -> list[Section]:
    """The pictures of the first patterns of a run directory or results file; nothing where there is no pattern.

    What cannot be read is added to `problems`.
    """
    paths = sorted((run / "shards").glob("*.h5")) if run.is_dir() else [run]
    found: dict[tuple[int, int], tuple[ShardData, int]] = {}
    for path in paths:
        try:
            data = read_shard(path, tables=False)
        except (InputError, OSError):
            continue  # the report says so already
        if f"{_TABLES[-1]}_count" not in data.items:
            continue
        for row in np.flatnonzero(np.asarray(data.items[f"{_TABLES[-1]}_count"]) > 0).tolist():
            found.setdefault((int(data.items["input"][row]), int(data.items["index"][row])), (data, row))
    shown = []
    for place in sorted(found)[:SHOWN]:
        data, row = found[place]
        try:
            shown.append(_shown(data, row))
        except OSError as error:  # replaced by its trimmed form between one look and the next
            problems.append(f"{data.path}: could not be read ({error}); write the report again")
    return pattern_sections(shown, len(found))
