"""What made the results: settings, seed, versions, and the jobs that took part."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mlindex.report.census import Census
from mlindex.report.markup import Markup, element, table
from mlindex.report.quantities import clock, count, duration
from mlindex.report.section import Section
from mlindex.report.timeline import spans

JOBS = 40  # rows of the table of jobs
_ELSEWHERE = {"settings", "host", "hosts", "rank", "job", "kind", "part", "parts", "ranks"}  # told in other tables
_OF_THE_FILE = {"NX_class", "default", "creator", "file_name", "file_time", "HDF5_Version", "NeXus_version"}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "(none)"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "(none)" if value is None or value == "" else str(value)


def settings_of(attributes: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """The distinct settings that the results files remember, flat, as "powder.effort"; passes over what is no JSON."""
    found = []
    for text in attributes.get("settings", ()):
        try:
            value = json.loads(text)
        except (TypeError, ValueError):
            continue
        if isinstance(value, dict):
            found.append(_flat(value))
    return found


def _settings(attributes: Mapping[str, Sequence[Any]]) -> Markup:
    every = settings_of(attributes)
    names = dict.fromkeys(name for one in every for name in one)
    rows = []
    for name in names:
        values = dict.fromkeys(_shown(one[name]) if name in one else "(not set)" for one in every)
        rows.append([name, " | ".join(values)])
    return table(["Setting", "Value"], rows, left=(0, 1), id="settings")


def _versions(attributes: Mapping[str, Sequence[Any]]) -> Markup:
    rows = [
        [name.replace("_version", "").replace("_", " "), " | ".join(_shown(v) for v in values)]
        for name, values in attributes.items()
        if name not in _ELSEWHERE | _OF_THE_FILE
        # of a merged file: says more than the versions beside it only where several took part
        and (name != "software" or any(len(v) > 1 for v in values if isinstance(v, list)))
    ]
    return table(["What", "Value"], rows, left=(0, 1), id="versions")


def _jobs(census: Census) -> tuple[Markup, int]:
    job_of = np.array([w.job for w in census.writers], object)
    rows = []
    jobs = spans(census)
    for span in jobs[-JOBS:]:
        writers = [w for w in census.writers if w.job == span.job]
        items = int((job_of[census.writer] == span.job).sum())
        hosts = sorted({w.host for w in writers if w.host})
        named = ", ".join(hosts[:4]) + (f" and {len(hosts) - 4} more" if len(hosts) > 4 else "")
        task = f"{writers[0].part} of {writers[0].parts}" if writers[0].parts > 1 else ""
        row = [span.job, task, clock(span.start), duration(span.end - span.start), len(writers), named, count(items)]
        rows.append(row)
    return table(
        ["Job", "Task", "Began", "Worked", "Ranks", "Hosts", "Items"], rows, left=(0, 1, 2, 5), id="jobs"
    ), len(jobs)


def provenance_section(census: Census) -> Section:
    """Settings, versions and jobs, from the attributes of the results files; several values stand side by side."""
    if not census.attributes:
        said = "There is no results file yet that could tell."
        return Section("provenance", "Settings and versions", [element("p", said, class_="quiet")])
    jobs, number = _jobs(census)
    title = "Jobs" if number <= JOBS else f"Jobs: the last {JOBS} of {number}"
    tables = element(
        "div", element("div", element("h3", "Settings"), _settings(census.attributes)),
        element("div", element("h3", "Versions and seed"), _versions(census.attributes)), class_="pair",
    )  # fmt: skip
    return Section("provenance", "Settings and versions", [tables, element("h3", title), jobs])
