"""Results for other programs: JSON lines, CSV (one row a solution, grain or structure factor), CIF (one block an item,
its best cell).

Laue results have files of their own too (`FILES`); all that is special to them is in `laue_export`.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import mlindex
from mlindex.bloch.record import bloch_record
from mlindex.formats.cif import Block, text_from_blocks
from mlindex.laue.record import laue_record
from mlindex.powder.record import FIELDS, powder_record
from mlindex.records import InputError, Result, Status
from mlindex.report import bloch_export, laue_export

CRYSTAL_SYSTEMS = {
    "a": "triclinic",
    "m": "monoclinic",
    "o": "orthorhombic",
    "t": "tetragonal",
    "h": "hexagonal",
    "c": "cubic",
}
_CELL = ("a", "b", "c", "alpha", "beta", "gamma")
_SCALARS = tuple(name for name in FIELDS if name not in ("bravais", "cell", "cell_esd", "niggli"))
CSV_HEADER = (
    *("id", "source", "status", "reason", "seconds", "rank", "bravais"),
    *_CELL,
    *(f"{name}_esd" for name in _CELL),
    *(f"niggli_{name}" for name in _CELL),
    *_SCALARS,
    "unindexed",
)


def method_of(results: Sequence[Result], stage: str = "") -> str:
    """The method that results are of, "powder", "laue" or "bloch": that of their `stage` where it is one of these.

    Of another stage, or none, what their tables say.
    """
    if stage in ("powder", "laue", "bloch"):
        return stage
    return "laue" if laue_export.is_laue(results) else "bloch" if bloch_export.is_bloch(results) else "powder"


def json_lines(results: Iterable[Result], stage: str = "") -> Iterator[str]:
    """One JSON object a line and a result; `stage` is the name of theirs, where it is known."""
    results = list(results)
    record = {"powder": powder_record, "laue": laue_record, "bloch": bloch_record}[method_of(results, stage)]
    for result in results:
        yield json.dumps(record(result), allow_nan=False, ensure_ascii=False) + "\n"


def _rows(record: dict[str, Any]) -> Iterator[list[Any]]:
    head = [record["id"], record["source"], record["status"], record.get("reason", ""), record["seconds"]]
    for rank, solution in enumerate(record["solutions"], 1):
        cells = [x for key in ("cell", "cell_esd", "niggli") for x in solution.get(key, [None] * 6)]
        unindexed = " ".join(f"{q2:.8g}" for q2 in solution["unindexed"])
        yield [*head, rank, solution["bravais"], *cells, *(solution.get(key) for key in _SCALARS), unindexed]
    if not record["solutions"]:
        yield head + [None] * (len(CSV_HEADER) - len(head))


def csv_lines(results: Iterable[Result], stage: str = "") -> Iterator[str]:
    """One row a solution, best first (rank 1), below a header; one row with a status for an item without solutions.

    Of Laue frames one row a grain (see `laue_export.CSV_HEADER`), of LARBED patterns one a structure factor of each
    solution (see `bloch_export.CSV_HEADER`).
    """
    results = list(results)
    method = method_of(results, stage)
    header: tuple[str, ...] = CSV_HEADER
    body: Iterable[Iterable[list[Any]]] = (_rows(powder_record(result)) for result in results)
    if method == "laue":
        header, body = laue_export.CSV_HEADER, map(laue_export.csv_rows, results)
    elif method == "bloch":
        header, body = bloch_export.CSV_HEADER, map(bloch_export.csv_rows, results)
    for rows in itertools.chain([[header]], body):
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows(rows)
        yield out.getvalue()


def _block(result: Result) -> Block:
    best = powder_record(result)["solutions"][0]
    names = ("bravais", "m20", "f20", "n_indexed", "n_lines", "probability", "zero_shift")
    extra: dict[str, Any] = {
        "_audit_creation_method": f"mlindex {mlindex.__version__}",
        "_mlindex_source": result.source,
    }
    extra |= {f"_mlindex_{name}": best[name] for name in names if best.get(name) is not None}
    lines: list[tuple[int, int, int, float]] = []
    if table := result.tables.get("lines"):
        own = (np.asarray(table["solution"]) == 0) & np.asarray(table["indexed"], bool)
        for (h, k, l), q2 in zip(table["hkl"][own], table["q2_calc"][own], strict=True):  # noqa: E741
            lines.append((int(h), int(k), int(l), float(q2) ** -0.5))
    esd = [0.0 if x is None else x for x in best.get("cell_esd", [None] * 6)]
    system = "trigonal" if best["bravais"] == "hR" else CRYSTAL_SYSTEMS[best["bravais"][0]]
    return Block(result.id, best["cell"], esd, best["volume"], system, best.get("space_group") or "", extra, lines)


def _has_block(result: Result) -> bool:
    # an unsolved item has the cells that were rejected in its tables; who reads a CIF takes a cell for an answer
    return result.status is Status.SOLVED and len(result.tables.get("solutions", {}).get("bravais", ())) > 0


def cif_note(results: Iterable[Result]) -> str:
    """A sentence on the unsolved items, which have no block; nothing where there are none."""
    n = sum(result.status is Status.UNSOLVED for result in results)
    more = "; the cells that were rejected are in json and csv"
    return f"{n} unsolved {'item has' if n == 1 else 'items have'} no block in the CIF{more}" if n else ""


def cif_text(results: Iterable[Result], stage: str = "") -> Iterator[str]:
    """The best cell of each result that is solved, with the suggested space group and the indexed lines.

    Raises `InputError` for results of Laue frames and of LARBED patterns.
    """
    results = list(results)
    method = method_of(results, stage)
    if method == "bloch":
        raise InputError("--to cif: these are results of LARBED patterns, whose cells were given; use json or csv")
    if method == "laue":
        raise InputError("--to cif: these are results of Laue frames, whose cells were given; use fit, cor, ctf or csv")
    yield text_from_blocks(_block(result) for result in results if _has_block(result))


WRITERS: dict[str, Callable[[Iterable[Result], str], Iterator[str]]] = {
    "json": json_lines,
    "csv": csv_lines,
    "cif": cif_text,
}
FILES: dict[str, Callable[[Sequence[Result], Path | None], list[Path]]] = {
    "fit": laue_export.fit_files,
    "cor": laue_export.cor_files,
    "ctf": laue_export.ctf_file,
}


def write_files(to: str, results: Sequence[Result], output: Path | None, stage: str = "") -> list[Path]:
    """Write the files of a format in `FILES` to `output`, a file or a folder; their paths. Raises `InputError`."""
    if method_of(results, stage) != "laue":
        raise InputError(f"--to {to}: there are no results of Laue frames here; use one of {', '.join(WRITERS)}")
    try:
        return FILES[to](results, output)
    except OSError as error:
        name = error.filename or output
        raise InputError(f"{name}: cannot be written ({error.strerror}); give another name") from None
