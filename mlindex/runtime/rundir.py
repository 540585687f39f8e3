"""The run directory: made for a new campaign, checked for a resumed one."""

from __future__ import annotations

import json
import os
import tomllib
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlindex.config import Campaign, read_campaign
from mlindex.records import InputError
from mlindex.runtime import inputs, journal
from mlindex.runtime.inputs import Input
from mlindex.runtime.master import MASTER, Survey, survey

_FOLDERS = (journal.FOLDER, "shards", "log")
_CAMPAIGN = "campaign.toml"
_OURS = {*_FOLDERS, _CAMPAIGN, MASTER, inputs.MANIFEST, journal.LOCK}


@dataclass(frozen=True)
class Plan:
    """One job of a campaign: the run directory, the folder that inputs are relative to, a unique job name, the inputs.

    `lock` is an open file, to be closed at the end of the job.
    """

    campaign: Campaign
    run: Path
    base: Path
    job: str
    inputs: list[Input]
    seen: Survey
    lock: int


def resolved(campaign: Campaign) -> dict[str, Any]:
    """All settings that have an effect on the campaign, with their defaults filled in."""
    values = campaign.model_dump(mode="json", exclude_none=True)
    return {name: values[name] for name in ("campaign", campaign.campaign.stage) if name in values}


def to_toml(values: Mapping[str, Any], prefix: str = "") -> str:
    """TOML text of nested mappings of strings, numbers, booleans and lists; the same text for the same values."""
    text, sections = "", ""
    for key, value in values.items():
        if isinstance(value, Mapping):
            name = f"{prefix}{key}"
            sections += f"\n[{name}]\n" + to_toml(value, f"{name}.")
        elif isinstance(value, list | tuple):
            text += f"{key} = [{', '.join(_scalar(v) for v in value)}]\n"
        else:
            text += f"{key} = {_scalar(value)}\n"
    return (text + sections).lstrip("\n") if not prefix else text + sections


def _scalar(value: Any) -> str:
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _same(run: Path, wanted: Mapping[str, Any]) -> None:
    """Raise `InputError` naming what differs between the campaign and the one that the run directory was made for."""
    try:
        had = _flat(tomllib.loads((run / _CAMPAIGN).read_text()))
    except (OSError, tomllib.TOMLDecodeError):
        raise InputError(
            f"{run}: is not the directory of a run ({_CAMPAIGN} cannot be read); choose another output"
        ) from None
    now = _flat(tomllib.loads(to_toml(wanted)))
    changes = [
        f"{k} was {had.get(k)!r} and is {now.get(k)!r}" for k in sorted({*had, *now}) if had.get(k) != now.get(k)
    ]
    if changes:
        raise InputError(
            f"{run}: was made by another campaign ({'; '.join(changes)}); undo the change or choose another output"
        )


def _is_new(run: Path) -> bool:
    """There is nothing in the run directory, or what a run leaves that ended before its first item."""
    if not run.exists():
        return True
    if not run.is_dir():
        raise InputError(f"{run}: is a file; choose another output")
    if not {entry.name for entry in run.iterdir()} <= _OURS:
        return False
    return not any((run / folder).is_dir() and any((run / folder).iterdir()) for folder in (journal.FOLDER, "shards"))


def note(run: Path, job: str, text: str) -> None:
    """Add a line with the time to the log of a job."""
    with open(run / "log" / f"{job}.log", "a") as file:
        file.write(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} {text}\n")


def prepare(path: Path, resume: bool) -> Plan:
    """Make or check the run directory of the campaign at `path`, take its lock, and find what is done.

    Raises `InputError` for a campaign that cannot be read, inputs that do not exist, a run directory that holds another
    run's results, or this one's without `resume`; and where another run is at work on it.
    """
    campaign = read_campaign(path)
    base = path.parent.resolve()
    run = base / campaign.campaign.output
    settings = resolved(campaign)
    new = _is_new(run)
    if not new and not resume:
        raise InputError(f"{run}: exists and is not empty; resume the run (--resume) or choose another output")
    if new:
        sources = inputs.find(campaign.campaign.inputs, base, str(path))
        for folder in _FOLDERS:
            (run / folder).mkdir(parents=True, exist_ok=True)
        lock = journal.acquire(run)
        partial = run / f"log/{_CAMPAIGN}.partial"
        partial.write_text(to_toml(settings))
        os.replace(partial, run / _CAMPAIGN)
        known: list[Input] = []
    else:
        _same(run, settings)
        for folder in _FOLDERS:
            (run / folder).mkdir(exist_ok=True)
        lock = journal.acquire(run)
        known = inputs.read(run)
        sources = inputs.find(campaign.campaign.inputs, base, str(path)) if not known else _still(campaign, base)
    numbered = inputs.label(sources, known)
    inputs.write(run, numbered)
    job = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{os.environ.get('SLURM_JOB_ID', os.getpid())}-{uuid.uuid4().hex[:4]}"
    return Plan(campaign, run, base, job, numbered, _mended(run, job), lock)


def _still(campaign: Campaign, base: Path) -> list[str]:
    """The inputs that there are now, which may be none: the manifest knows the others."""
    sources: list[str] = []
    for pattern in campaign.campaign.inputs:
        try:
            sources += inputs.find([pattern], base, "")
        except InputError:
            continue
    return list(dict.fromkeys(sources))


def _mended(run: Path, job: str) -> Survey:
    """What is done, after shards that cannot be read are set aside and the journal is made complete."""
    for leftover in (run / "shards").glob(".*.partial"):
        leftover.unlink()
    seen = survey(run)
    for shard in seen.unreadable:
        path, sentence = shard
        os.replace(path, path.with_suffix(".unreadable"))
        note(run, job, f"{sentence}; set aside as {path.stem}.unreadable")
    if missing := journal.unwritten(run, seen):
        journal.Journal(run, job, 0).recover(missing)
        note(run, job, f"{len(missing)} items are in a shard and were not in the journal")
    return seen
