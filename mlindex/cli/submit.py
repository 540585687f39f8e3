"""Submit a campaign to SLURM: an array job for what is left to do, and a job that merges and reports after it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from mlindex.config import Campaign, read_campaign
from mlindex.records import InputError
from mlindex.report.tables import say
from mlindex.runtime import inputs, journal, rundir, slurm
from mlindex.runtime.master import survey
from mlindex.runtime.status import status
from mlindex.stage import STAGES

_NOTES = "submit.jsonl"


def submit(campaign_file: Path, dry_run: bool) -> int:
    """Submit the campaign, print the numbers of its jobs, and note them in the run directory; the exit status.

    Only parts with work left that no job of an earlier submission is at or waits for are submitted. With `dry_run` the
    scripts go to standard output and nothing is written or submitted. Raises `InputError` for what the user has to
    change, and where sbatch or squeue refuse.
    """
    campaign = read_campaign(campaign_file)
    path = campaign_file.parent.resolve() / campaign_file.name
    for name in campaign.slurm.stage:
        if name not in STAGES and name != campaign.campaign.stage:
            raise InputError(
                f"{path}: [slurm.stage.{name}]: there is no such stage; the stages are {', '.join(STAGES)}"
            )
    slurm.resources(campaign, path)
    if notice := slurm.short_notice(campaign):
        say(f"warning: {path}: {notice}")
    run = path.parent / campaign.campaign.output
    if dry_run:
        parts = _left(campaign, run) if (run / inputs.MANIFEST).exists() else None
        if parts is not None and not parts:
            return _nothing_left(campaign, run)
        sys.stdout.write(slurm.array_script(campaign, path, parts=parts, python=sys.executable))
        sys.stdout.write("\n" + slurm.merge_script(campaign, path, python=sys.executable))
        return 0
    if not slurm.installed():
        raise InputError(
            "there is no sbatch on the PATH; submit from a login node of a cluster, or see the scripts with --dry-run"
        )
    rundir.create(path)
    with _alone(run):
        return _submit(campaign, path, run)


def _submit(campaign: Campaign, path: Path, run: Path) -> int:
    tasks = slurm.resources(campaign, path).tasks
    notes = list(journal.events(run, _NOTES))
    queued = slurm.queued([str(note[kind]) for note in notes for kind in ("array", "merge") if note.get(kind)])
    of = {str(note["array"]): int(note["parts"]) for note in notes}
    for other in queued:
        if other.job in of and of[other.job] != tasks:
            raise InputError(
                f"{path}: [slurm]: tasks = {tasks}, but job {other.job} works on {of[other.job]} parts of it; "
                f"undo the change, wait for that job, or end it (scancel {other.job})"
            )
    left = _left(campaign, run)
    taken = {other.task for other in queued if other.job in of}
    taken |= {row["part"] for row in status(run)["tasks"] if row["active"] and row["parts"] == tasks}
    parts = [part for part in left if part not in taken]
    if not parts:
        if not left:
            return _nothing_left(campaign, run)
        jobs = " and ".join(sorted({f"job {other.job}" for other in queued if other.job in of}))
        print(f"nothing to submit: what is left of {run} is in the queue or running ({jobs or 'on this host'})")
        return 0
    stamp = f"{datetime.now(UTC):%Y%m%dT%H%M%S}"
    script = run / "log" / f"{stamp}-array.sh"
    script.write_text(slurm.array_script(campaign, path, parts=parts, python=sys.executable))
    array = slurm.sbatch(script)
    note: dict[str, Any] = {"event": "submit", "array": array, "tasks": parts, "parts": tasks, "merge": None}
    print(f"array job {array}: {'part' if len(parts) == 1 else 'parts'} {slurm.compressed(parts)} of {tasks}")
    try:
        # behind the jobs of earlier submissions too, and never beside another merge
        after = list(dict.fromkeys([array, *(other.job for other in queued)]))
        script = run / "log" / f"{stamp}-merge.sh"
        script.write_text(slurm.merge_script(campaign, path, after=after, python=sys.executable))
        note["merge"] = slurm.sbatch(script)
        *many, last = sorted(after, key=lambda job: (len(job), job))
        before = f"jobs {', '.join(many)} and {last} have" if many else f"job {last} has"
        print(f"merge job {note['merge']}: when {before} ended")
    finally:  # a refused merge must not make anyone forget the array
        journal.append(run / journal.FOLDER / _NOTES, note)
    say(f"watch it with: mlindex status {shlex.quote(str(run))} --watch; end it with: scancel {array}")
    return 0


def _nothing_left(campaign: Campaign, run: Path) -> int:
    """Say why there is nothing left to do; the exit status."""
    why = f"has stop_after = {campaign.campaign.stop_after} solutions" if status(run)["left"] else "is complete"
    print(f"nothing to submit: {run} {why}; mlindex merge and mlindex report put it together")
    return 0


def _left(campaign: Campaign, run: Path) -> Sequence[int]:
    """The parts of a run directory that have something left to do."""
    chosen, tasks = campaign.campaign, campaign.slurm.for_stage(campaign.campaign.stage).tasks
    now = status(run)
    if not now["left"] or (chosen.stop_after is not None and now["solved"] >= chosen.stop_after):
        return []
    if chosen.max_failures is not None and now["failed"] > chosen.max_failures:
        raise InputError(
            f"{run}: {now['failed']} items have failed, which is more than max_failures = {chosen.max_failures}; "
            "look at them with mlindex status, and allow more to go on"
        )
    known, opened = len(inputs.read(run)), len(np.unique(survey(run).input))
    everything = range(tasks if chosen.chunk == "items" else min(tasks, known))
    if {row["parts"] for row in now["tasks"]} != {tasks} or (chosen.chunk == "items" and opened < known):
        return everything  # it was divided in another way, or nobody knows how many items there are
    return [row["part"] for row in now["tasks"] if row["left"]]


@contextlib.contextmanager
def _alone(run: Path) -> Iterator[None]:
    """Keep another `submit` of the same run waiting, where the file system has locks."""
    handle = os.open(run / journal.FOLDER / _NOTES, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
