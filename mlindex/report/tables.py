"""Tables for people: the ranked solutions of one list, and the best of each of many."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from mlindex.formats.cif import number_with_esd
from mlindex.powder.record import powder_record
from mlindex.records import Result, Status

PLAIN_WIDTH = 160  # columns where no terminal says how many there are
_COLUMNS = ("type", "a, b, c (Å)", "α, β, γ (°)", "V (Å³)", "M20", "lines", "prob.", "zero (°)", "space group")
_LEFT = {"list", "type", "a, b, c (Å)", "α, β, γ (°)", "space group"}
_ANGLES = {"a": (3, 4, 5), "m": (4,), "h": (5,)}  # by crystal family, those worth printing; the others are right


def _number(value: float | None, spec: str) -> str:
    return "" if value is None else format(value, spec)


def _cells(solution: dict[str, Any]) -> list[str]:
    """The cells of one row, without its rank or name, from a solution of `powder_record`."""
    esd = solution.get("cell_esd") or [None] * 6
    cell = [
        number_with_esd(value, 0.0 if s is None else s, 4 if i < 3 else 3)
        for i, (value, s) in enumerate(zip(solution["cell"], esd, strict=True))
    ]
    lines = f"{solution['n_indexed']}/{solution['n_lines']}" if "n_lines" in solution else str(solution["n_indexed"])
    zero = solution.get("zero_shift")
    return [
        solution["bravais"],
        " ".join(cell[:3]),
        " ".join(cell[i] for i in _ANGLES.get(solution["bravais"][0], ())) or "90",
        _number(solution["volume"], ".1f"),
        _number(solution["m20"], ".1f"),
        lines,
        _number(solution.get("probability"), ".2f"),
        "" if zero is None else f"{zero:+.3f}",
        solution.get("space_group") or "",
    ]


def _table(title: str, first: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 1))
    table.collapse_padding, table.pad_edge = True, False
    table.add_column(first, justify="left" if first in _LEFT else "right", overflow="fold")
    for name in _COLUMNS:
        table.add_column(name, justify="left" if name in _LEFT else "right", overflow="fold")
    return table


def _ambiguities(solutions: Sequence[dict[str, Any]]) -> list[str]:
    """One sentence for each set of solutions that no line position can tell apart."""
    sets: dict[int, list[int]] = {}
    for rank, solution in enumerate(solutions, 1):
        if solution.get("ambiguity"):
            sets.setdefault(solution["ambiguity"], []).append(rank)
    return [
        f"{' and '.join(map(str, ranks))} have identical line positions; only intensities can decide"
        for ranks in sets.values()
        if len(ranks) > 1
    ]


def result_table(result: Result) -> RenderableType:
    """The solutions of one result, best first, and what the best leaves unexplained; one line if there is none.

    Lengths in angstrom, angles in degrees, standard uncertainties in parentheses, unindexed lines as d in angstrom.
    """
    record = powder_record(result)
    if result.status is Status.FAILED:
        return Text.assemble((record["id"], "bold"), "  failed: ", record.get("reason", ""))
    solutions = record["solutions"]
    notes = [record["reason"]] if record.get("reason") else []
    if not solutions:
        return Text.assemble((record["id"], "bold"), "  unsolved", *(f": {note}" for note in notes))
    solved = result.status is Status.SOLVED
    verdict = "" if solved else "  unsolved: no solution is good enough to be called one; the best are"
    table = _table(f"{record['id']}{verdict}", "#")
    for rank, solution in enumerate(solutions, 1):
        table.add_row(str(rank), *_cells(solution), style="bold" if rank == 1 and solved else "")
    if solutions[0]["unindexed"]:
        spacings = ", ".join(f"{q2**-0.5:.4f}" for q2 in solutions[0]["unindexed"])
        notes.append(f"not indexed by 1: d = {spacings} Å")
    return Group(table, *(Text(f"   {note}") for note in [*notes, *_ambiguities(solutions)]))


def best_table(results: Sequence[Result]) -> RenderableType:
    """One row a result: its best solution, or why there is none."""
    table = _table("", "list")
    table.title = None
    for result in results:
        record = powder_record(result)
        if result.status is Status.FAILED or not record["solutions"]:
            table.add_row(record["id"], "", f"{record['status']}: {record.get('reason', 'no solution')}".rstrip(": "))
        else:
            mark = "" if result.status is Status.SOLVED else " (unsolved)"
            table.add_row(record["id"] + mark, *_cells(record["solutions"][0]))
    return table


def tally(results: Sequence[Result]) -> str:
    """ "12 lists: 10 solved, 1 unsolved, 1 failed"."""
    counts = {status: sum(r.status is status for r in results) for status in Status}
    parts = ", ".join(f"{n} {status}" for status, n in counts.items() if n)
    return f"{len(results)} list{'' if len(results) == 1 else 's'}: {parts or 'nothing to do'}"


def say(message: str) -> None:
    """Print one sentence on standard error, in one line however long it is."""
    printer(stderr=True).print(message, soft_wrap=True)


def printer(stderr: bool = False) -> Console:
    """A console that does not fold its lines at 80 columns where there is no terminal, nor mark up what it prints."""
    console = Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    return (
        console
        if console.is_terminal
        else Console(stderr=stderr, highlight=False, markup=False, emoji=False, width=PLAIN_WIDTH, soft_wrap=False)
    )
