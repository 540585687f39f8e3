"""Run a campaign, say where it stands, hand its results on."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer
from rich.table import Table

from mlindex.cli.index import progress_bar
from mlindex.cli.results import read_run
from mlindex.records import InputError
from mlindex.report.bloch_tables import pattern_table
from mlindex.report.export import WRITERS, cif_note
from mlindex.report.laue_tables import frame_table
from mlindex.report.tables import best_table, printer, say
from mlindex.runtime.run import part_from_text, run_campaign
from mlindex.runtime.status import status

SMALL = 50  # items of which each gets a row
SHOWN = 5  # failures that a status names


def run_and_report(campaign: Path, ranks: int | None, resume: bool, part: str | None) -> int:
    """Run a campaign and print what came of it; the exit status: 0, or 1 where something failed or is missing.

    Standard output gets a row an item, or for a large campaign only the counts; standard error progress and failures.
    Raises `InputError` for what the user has to change.
    """
    chosen = None if part is None else part_from_text(part)
    bar = progress_bar()
    task = bar.add_task("items", total=None)

    def progress(done: int, failed: int, total: int) -> None:
        note = f"items ({failed} failed)" if failed else "items"
        bar.update(task, completed=done, total=total, description=note)

    try:
        with bar:
            # in a job nobody watches: what there is to see, `mlindex status` shows
            summary = run_campaign(campaign, ranks, resume, None if bar.disable else progress, chosen)
    except KeyboardInterrupt:
        say("interrupted; --resume goes on with what is left")
        return 130
    if summary.rank:  # one of many: rank 0 reports
        return summary.exit_status
    for sentence in summary.notes:
        say(sentence)
    # from the shards: where the disk is full there is no master
    results = read_run(Path(summary.run)).results if 0 < summary.done <= SMALL and part is None else []
    if any("bravais" in result.tables.get("solutions", {}) for result in results):  # other stages have other tables
        printer().print(best_table(results))
    for result in results:
        if "grains" in result.tables:
            printer().print(frame_table(result))
        if "factors" in result.tables:
            printer().print(pattern_table(result))
    counts = ", ".join(f"{getattr(summary, name)} {name}" for name in ("solved", "unsolved", "failed"))
    before = f", {summary.skipped} of them before" if summary.skipped else ""
    print(f"{summary.done} of {summary.total} done ({counts}{before}) in {summary.seconds:.1f} s: {summary.run}")
    for name, source, reason in summary.failures[:SMALL]:
        say(f"failed: {name} ({source}): {reason}")
    if summary.failed > SMALL:
        say(f"and {summary.failed - SMALL} more that failed; mlindex report {summary.run} lists the reasons")
    if summary.lost:
        say(f"{summary.lost} workers were lost; their items were given to others")
    if summary.stopped == "signal" and not summary.problems:
        say("stopped as asked, with work left; --resume goes on")
    if summary.stopped == "stop_after":
        say("stop_after is reached; raise it and --resume to go on")
    for problem in summary.problems:
        say(f"problem: {problem}")
    return summary.exit_status


def end_export(problems: Sequence[str]) -> None:
    """Say what an export had to leave out, and end with status 1 if it had to."""
    for sentence in problems:
        say(f"problem: {sentence}")
    if problems:
        raise typer.Exit(1)


def export_results(run: Path, to: str, output: Path | None) -> None:
    """Write the results of a run to standard output or a file; ends with status 1 where a shard is missing from them.

    Raises `InputError` for what cannot be done.
    """
    if to not in WRITERS:
        raise InputError(f"--to {to}: unknown format; use one of {', '.join(WRITERS)}")
    found = read_run(run)
    text = WRITERS[to](found.results, found.stage)
    if output is None:
        for part in text:
            sys.stdout.write(part)
    else:
        try:
            with output.open("w", encoding="utf-8") as file:
                file.writelines(text)
        except OSError as error:
            raise InputError(f"{output}: cannot be written ({error.strerror}); give another file") from None
    if to == "cif" and (note := cif_note(found.results)):
        say(note)
    end_export(found.problems)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


def watch_status(run: Path, seconds: float) -> None:
    """Print where a run stands again and again until it is complete or the user has seen enough (Ctrl-C)."""
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            now = status(run)
            out = printer()
            if out.is_terminal:
                out.clear()
            _print(now)
            if not now["left"]:
                return
            time.sleep(seconds)


def print_status(run: Path, as_json: bool) -> None:
    """Print where a run stands; raises `InputError` where `run` is no run directory."""
    now = status(run)
    if as_json:
        print(json.dumps(now))
    else:
        _print(now)


def _print(now: dict[str, Any]) -> None:
    out = printer()
    state = "running" if now["active"] else ("complete" if not now["left"] else "stopped; --resume goes on")
    out.print(f"{now['run']}: {now['stage']}, {state}")
    counts = ", ".join(f"{now[name]} {name}" for name in ("solved", "unsolved", "failed"))
    out.print(f"{now['done']} of {now['total']} done ({counts}), {now['left']} left")
    if now["done"]:
        out.print(f"{now['indexed']:.1%} of those done are solved")
    if now["rate"]:
        current = f", now {now['rate_now']:.3g}" if now["active"] else ""
        left = f", {_clock(now['eta'])} left" if now["eta"] and now["active"] else ""
        out.print(f"{now['rate']:.3g} items a second{current}{left}")
    if now["lost"]:
        out.print(f"{now['lost']} workers were lost; their items were given to others")
    if now["missing"]:
        out.print(f"missing shards, whose items --resume does again: {', '.join(now['missing'])}")
    if now["unreadable"]:
        out.print(f"shards that cannot be read, whose items --resume does again: {', '.join(now['unreadable'])}")
    if len(now["tasks"]) > 1:
        out.print(_tasks(now["tasks"]))
    if now["ranks"]:
        out.print(_ranks(now["ranks"]))
    for failure in now["failures"][:SHOWN]:
        out.print(f"failed: {failure['id']} ({failure['source']}): {failure['reason']}", highlight=False)
    if now["failed"] > SHOWN:
        out.print(f"and {now['failed'] - SHOWN} more that failed")


def _tasks(rows: list[dict[str, Any]]) -> Table:
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    for name in ("task", "state", "done", "of", "solved", "failed", "a second", "left", "jobs", "lost"):
        table.add_column(name, justify="left" if name == "state" else "right")
    for row in rows:
        why = f"stopped ({row['why']})" if row["why"] not in (None, "done") else "stopped"
        state = "running" if row["active"] else "complete" if not row["left"] else why if row["rounds"] else "waiting"
        rate, left = (f"{row['rate']:.3g}" if row["rate"] else ""), (_clock(row["eta"]) if row["eta"] else "")
        cells = (row["part"], state, row["done"], row["total"], row["solved"], row["failed"], rate, left)
        table.add_row(*map(str, (*cells, row["rounds"], row["lost"])))
    return table


def _ranks(rows: list[dict[str, Any]]) -> Table:
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    for name in ("job", "rank", "host", "done", "failed", "seconds each", "last"):
        table.add_column(name, justify="left" if name in ("job", "host") else "right", overflow="fold")
    for row in rows:
        each = row["seconds"] / row["done"] if row["done"] else 0.0
        last = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row["last"])) if row["last"] else ""
        cells = (row["job"], row["rank"], row["host"], row["done"], row["failed"], f"{each:.2f}", last)
        table.add_row(*map(str, cells))
    return table
