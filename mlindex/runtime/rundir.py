"""The run directory: made for a new campaign, checked for a resumed one."""

from __future__ import annotations

import contextlib
import json
import os
import re
import tomllib
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlindex.config import Campaign, read_campaign
from mlindex.records import InputError
from mlindex.runtime import inputs, journal, lock
from mlindex.runtime.disk import disk_problem
from mlindex.runtime.inputs import Input
from mlindex.runtime.master import MASTER, Survey, survey
from mlindex.runtime.queue import Part

_FOLDERS = (journal.FOLDER, "shards", "log", lock.FOLDER)
_CAMPAIGN = "campaign.toml"
_OURS = {*_FOLDERS, _CAMPAIGN, MASTER, inputs.MANIFEST, inputs.PARTIAL, "merged.h5", "report", "report.html"}
_OPERATION = {
    "name",
    "batch",
    "item_seconds",
    "stop_after",
    "max_failures",
    "relaunch_seconds",
    "rounds",
}  # may change between jobs


@dataclass(frozen=True)
class Plan:
    """One job of a campaign: its part of it, the run directory, the folder that inputs are relative to, a unique job
    name, the inputs, what is done of the whole campaign, and sentences about what was found and mended.

    `lock` is an open file, to be closed at the end of the job.
    """

    campaign: Campaign
    part: Part
    run: Path
    base: Path
    job: str
    inputs: Sequence[Input]
    seen: Survey
    notes: list[str]
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


def settings(run: Path) -> dict[str, Any]:
    """The resolved settings that a run directory was made with; raises `InputError` where there are none."""
    try:
        return tomllib.loads((run / _CAMPAIGN).read_text())
    except (OSError, tomllib.TOMLDecodeError):
        raise InputError(
            f"{run}: is not the directory of a run ({_CAMPAIGN} cannot be read); choose another output"
        ) from None


def _same(run: Path, wanted: Mapping[str, Any]) -> None:
    """Raise `InputError` naming what differs between the campaign and the one that the run directory was made for."""
    had, now = _flat(settings(run)), _flat(tomllib.loads(to_toml(wanted)))
    for name in _OPERATION:
        had.pop(f"campaign.{name}", None)
        now.pop(f"campaign.{name}", None)
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
    """Add a line with the time to the log of a job; a log that cannot be written stops nothing."""
    with contextlib.suppress(OSError), open(run / "log" / f"{job}.log", "a") as file:
        file.write(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} {text}\n")


def _replace(path: Path, text: str) -> None:
    partial = path.parent / "log" / f"{path.name}.partial"
    partial.write_text(text)
    os.replace(partial, path)


@contextlib.contextmanager
def _writing(run: Path) -> Iterator[None]:
    """Inside, a disk that does not take what is written below `run` is an `InputError`."""
    try:
        yield
    except OSError as error:
        if (problem := disk_problem(run, error)) is None:
            raise
        raise InputError(str(problem)) from error


def create(path: Path, rescan: bool = True) -> Path:
    """Make the run directory of the campaign at `path`, or check it and add inputs that are new; the directory.

    Results that it holds stay. Without `rescan` the inputs of a directory that has some stay as they are. Raises
    `InputError` for a campaign that cannot be read, inputs that do not exist, a directory of another campaign, and one
    that cannot be written.
    """
    campaign = read_campaign(path)
    with _writing(path.parent.resolve() / campaign.campaign.output):
        return _create(path, campaign, rescan)


def _run_of(path: Path, campaign: Campaign) -> Path:
    """The run directory; raises `InputError` where the settings in it would take the place of the campaign file."""
    run = path.parent.resolve() / campaign.campaign.output
    if (run / _CAMPAIGN).exists() and (run / _CAMPAIGN).samefile(path):
        raise InputError(
            f"{path}: output: a run writes its own {_CAMPAIGN} into {run}, where this file is; choose another output"
        )
    return run


def _create(path: Path, campaign: Campaign, rescan: bool) -> Path:
    base = path.parent.resolve()
    run, values = _run_of(path, campaign), resolved(campaign)
    if new := _is_new(run):
        sources = _found(campaign, base, str(path))
    else:
        _same(run, values)
    for folder in _FOLDERS:
        (run / folder).mkdir(parents=True, exist_ok=True)
    preparing = lock.preparing(run)
    try:
        known = [] if new and rescan else inputs.read(run)
        if not new and (rescan or not len(known)):
            sources = _still(campaign, base) if len(known) else _found(campaign, base, str(path))
        if rescan or not len(known):
            if getattr(campaign.stage_settings(), "scan", None):
                _in_raster_order(path, sources, known)
            inputs.write(run, inputs.label(sources, known))
        _replace(run / _CAMPAIGN, to_toml(values))
    finally:
        os.close(preparing)
    return run


def _in_raster_order(path: Path, sources: Sequence[str], known: Sequence[Input]) -> None:
    """Raise `InputError` for a frame that appeared late in the midst of a scan: its number would be that of the end."""
    had = {k.source for k in known}
    last = max((i for i, source in enumerate(sources) if source in had), default=0)
    late = [source for source in sources[:last] if source not in had]
    if late:
        raise InputError(
            f"{path}: inputs: {late[0]} belongs before {sources[last]}, whose place in the scan is taken; "
            "give the scan another output and run it again"
        )


def prepare(path: Path, resume: bool, part: Part | None = None, rescan: bool = True) -> Plan:
    """Make or check the run directory of the campaign at `path`, take the lock of a part, and find what is done.

    Without `rescan` no inputs are looked for where the directory has some: whoever starts the ranks has done so. Raises
    `InputError` as `create` does, for a run directory that holds results without `resume`, and where another
    run is at work on it.
    """
    campaign = read_campaign(path)
    base = path.parent.resolve()
    run = _run_of(path, campaign)
    part = replace(part or Part(), chunk=campaign.campaign.chunk)
    if not _is_new(run) and not resume:
        raise InputError(f"{run}: exists and is not empty; resume the run (--resume) or choose another output")
    if extended := part.whole and not _is_new(run):  # by inputs that are new, once nobody else is at work
        _same(run, resolved(campaign))
    else:
        create(path, rescan=part.whole and rescan)
    held = lock.acquire(run, part)
    if extended and rescan:
        create(path)
    label = os.environ.get("SLURM_JOB_ID", os.getpid())
    job = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{label}-{part}-{uuid.uuid4().hex[:4]}"
    with _writing(run):
        seen, notes = _mended(run, job, part)
    return Plan(campaign, part, run, base, job, inputs.read(run), seen, notes, held)


def _found(campaign: Campaign, base: Path, origin: str, patterns: Sequence[str] | None = None) -> list[str]:
    run = Path(os.path.abspath(base / campaign.campaign.output))
    return inputs.find(campaign.campaign.inputs if patterns is None else patterns, base, origin, [run])


def _still(campaign: Campaign, base: Path) -> list[str]:
    """The inputs that there are now, which may be none: the manifest knows the others."""
    sources: list[str] = []
    for pattern in campaign.campaign.inputs:
        try:
            sources += _found(campaign, base, "", [pattern])
        except InputError:
            continue
    return list(dict.fromkeys(sources))


def _settled(name: str, part: Part) -> bool:
    """No process can be writing the shard of this name, while this job holds the lock of `part`."""
    match = re.search(r"-(\d+)of(\d+)-[0-9a-f]{4}-r\d+-", name)
    return match is None or int(match[2]) != part.of or int(match[1]) == part.number


def _at_hand(path: Path) -> bool:
    """All bytes of a file can be read; False where it is gone. Raises `InputError` where it is there and they cannot.

    A file that the system does not give now (permissions, a network disk) may be whole, and is not to be thrown away.
    """
    try:
        with path.open("rb") as file:
            while file.read(1 << 24):
                pass
    except FileNotFoundError:
        return False
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); mend that and resume the run, or move the file away to have "
            "its items done again"
        ) from None
    return True


def _mended(run: Path, job: str, part: Part) -> tuple[Survey, list[str]]:
    """What is done, after shards that are not whole are set aside and the journal is made complete; what was found."""
    notes: list[str] = []
    own = journal.Journal(run, job, 0)
    for leftover in (run / "shards").glob(".*.partial"):
        if _settled(leftover.name, part):
            leftover.unlink(missing_ok=True)
    seen = survey(run)
    broken = {path for path, _ in seen.unreadable if _settled(path.name, part) and _at_hand(path)}
    if broken:
        seen = survey(run)  # once more: what kept it from being read may just have passed
    aside = set()
    for path, sentence in seen.unreadable:
        if path not in broken:
            continue
        with contextlib.suppress(FileNotFoundError):  # another job has just done the same
            os.replace(path, path.with_suffix(".unreadable"))
            notes.append(f"{sentence}; set aside as {path.stem}.unreadable")
            aside.add(path.name)
    held = {shard.path.name: len(shard.items["input"]) for shard in seen.shards if _settled(shard.path.name, part)}
    for name, items in sorted(journal.promised(run).items()):
        if not _settled(name, part):
            continue
        if not (run / "shards" / name).exists() and items > 0:
            own.event("missing", shard=name, items=items)
            if name not in aside:
                notes.append(f"{run / 'shards' / name}: is gone, with {items} items, which are done again")
        elif held.get(name, items) > items:
            own.event("recovered", shard=name, items=held[name] - items)
        held.pop(name, None)
    for name, items in held.items():  # no journal has a word of these
        if items:
            own.event("recovered", shard=name, items=items)
    for text in notes:
        note(run, job, text)
    return seen, notes
