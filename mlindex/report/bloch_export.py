"""Results of LARBED patterns for other programs: CSV with one row a structure factor of each solution."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from mlindex.bloch.record import bloch_record
from mlindex.records import Result

CSV_HEADER = (
    *("id", "source", "status", "reason", "seconds", "rank", "r_factor", "thickness_nm"),
    *("symmetry", "agreement"),
    *("h", "k", "l", "re", "im", "sigma"),
)


def is_bloch(results: Sequence[Result]) -> bool:
    """Whether results are those of LARBED patterns."""
    return any("factors" in result.tables for result in results)


def csv_rows(result: Result) -> Iterator[list[Any]]:
    """One row a structure factor (1/angstrom^2), those of the best solution first (rank 1); one row with a status for a
    pattern without a solution."""
    record = bloch_record(result)
    head = [record["id"], record["source"], record["status"], record.get("reason", ""), record["seconds"]]
    if not record["u"]:
        yield head + [None] * (len(CSV_HEADER) - len(head))
        return
    for rank, one in enumerate([record, *record["alternatives"]], 1):
        for factor in one["u"]:
            numbers = (factor["re"], factor["im"], factor["sigma"])
            of = (one[name] for name in ("r_factor", "thickness_nm", "symmetry", "agreement"))
            yield [*head, rank, *of, *factor["hkl"], *numbers]
