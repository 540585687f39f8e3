"""Success over time, by stage and by array task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from mlindex.report.canvas import INK, STATUS_COLOURS, Picture, legend_above, stacked, whole_numbers
from mlindex.report.census import STATUSES, Census
from mlindex.report.markup import Markup, element, table
from mlindex.report.quantities import clock, count, duration, percent, rate, unit_of_time
from mlindex.report.section import Section
from mlindex.report.timeline import Timeline

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_WHY = {"None": "not begun", "signal": "stopped by a signal", "stop_after": "enough solved"}


def _fraction(solved: np.ndarray, done: np.ndarray) -> np.ndarray:
    return np.where(done > 0, 100 * solved / np.maximum(done, 1), np.nan)


def _picture(line: Timeline) -> Picture:
    scale, unit = unit_of_time(line.worked)
    edges, done = line.edges / scale, line.counts.sum(1)
    grown = np.concatenate([np.zeros((1, 3)), line.counts.cumsum(0)])
    width = duration(float(line.edges[1]))

    def draw(figure: Figure) -> None:
        bars, sums, share = figure.subplots(1, 3)
        stacked(bars, edges, dict(zip(STATUSES, line.counts.T, strict=True)), STATUS_COLOURS)
        bars.set(title="Items done", ylabel=f"items in {width}")
        for name, values in zip(STATUSES, grown.T, strict=True):
            sums.plot(edges, values, color=STATUS_COLOURS[name], linewidth=1.8)
        sums.set(title="Items done in all", ylabel="items", ylim=(0, None), xlim=(edges[0], edges[-1]))
        whole_numbers(sums)
        middle = (edges[1:] + edges[:-1]) / 2
        some = done > 0
        share.plot(
            middle[some], _fraction(line.counts[:, 0], done)[some], "o", color=STATUS_COLOURS["solved"], markersize=3
        )
        share.plot(edges[1:], _fraction(grown[1:, 0], grown[1:].sum(1)), color=INK, linewidth=1.4)
        share.set(title="Indexed", ylabel="solved / done (%)", ylim=(0, 103), xlim=(edges[0], edges[-1]))
        for axes in (bars, sums, share):
            axes.set_xlabel(f"time worked ({unit})")
            for place, _ in line.pauses:
                axes.axvline(place / scale, color=INK, linewidth=0.8, linestyle=":")
        legend_above(figure, STATUSES, STATUS_COLOURS)

    pauses = ""
    if line.pauses:
        lengths = ", ".join(duration(length) for _, length in line.pauses[:5])
        more = " and more" if len(line.pauses) > 5 else ""
        pauses = f" Dotted lines: pauses between jobs, left out of the time axis ({lengths}{more})."
    caption = (
        f"From {clock(line.start)} to {clock(line.end)}. Right: points are the items of one bin, the line all items "
        f"so far.{pauses}"
    )
    rows = [
        [f"{edges[i]:.4g}–{edges[i + 1]:.4g}", *counts, percent(counts[0], sum(counts))]
        for i, counts in enumerate(line.counts.tolist())
    ]
    numbers = table([f"time worked ({unit})", *STATUSES, "indexed"], rows, id="timeline-numbers")
    return Picture("timeline", "Success over time", caption, draw, (10.8, 2.75), numbers)


def _stages(census: Census) -> list[list[Any]]:
    rows: list[list[Any]] = []
    for number, stage in enumerate(census.stages):
        mine = census.stage == number
        solved, unsolved, failed = census.counts(mine)
        done = int(mine.sum())
        spent = float(census.seconds[mine].sum())
        each = f"{spent / done:.3g}" if done else ""
        rows.append([stage, *map(count, (done, solved, unsolved, failed)), percent(solved, done), each])
    return rows


def _tasks(census: Census, status: Mapping[str, Any] | None) -> list[list[Any]]:
    """One row an array task: as the status of the run tells it, else from the jobs that wrote the results."""
    rows: list[list[Any]] = []
    if status is not None:
        for task in status.get("tasks", ()):
            counts = [task[name] for name in STATUSES]
            state = "working" if task.get("active") else _WHY.get(str(task.get("why")), str(task.get("why") or ""))
            speed = rate(task["rate"]) if task.get("rate") else ""
            more = [count(task["left"]), percent(counts[0], task["done"]), speed, task["rounds"], task["lost"], state]
            rows.append([f"{task['part']} of {task['parts']}", *map(count, (task["done"], *counts)), *more])
        return rows
    part_of = np.array([(w.part, w.parts) for w in census.writers], np.int64).reshape(-1, 2)[census.writer]
    for part, parts in sorted(map(tuple, np.unique(part_of, axis=0).tolist()), key=lambda key: (key[1], key[0])):
        counts = list(census.counts((part_of == (part, parts)).all(1)))
        rows.append(
            [
                f"{part} of {parts}",
                *map(count, (sum(counts), *counts)),
                "",
                percent(counts[0], sum(counts)),
                "",
                "",
                "",
                "",
            ]
        )
    return rows


def progress_section(census: Census, line: Timeline | None, status: Mapping[str, Any] | None) -> Section:
    """The timeline, and a table by stage and one by array task."""
    parts: list[Markup | Picture] = []
    if line is None:
        parts.append(element("p", "No item is done yet.", class_="quiet"))
    else:
        parts.append(_picture(line))
    if len(census):
        head = ["Stage", "Done", "Solved", "Unsolved", "Failed", "Indexed", "Seconds each"]
        parts.append(table(head, _stages(census), id="stages"))
    tasks = _tasks(census, status)
    if len(tasks) > 1:
        head = [
            "Array task",
            "Done",
            "Solved",
            "Unsolved",
            "Failed",
            "Left",
            "Indexed",
            "Rate",
            "Rounds",
            "Lost",
            "State",
        ]
        parts.append(table(head, tasks, left=(0, 10), id="tasks"))
    return Section("progress", "Success over time", parts, overview=True)
