"""The input files of a campaign: found once, numbered, and given the names that their items bear.

`inputs.jsonl` in the run directory has one line a file. A line is never changed or moved, so that an item keeps its
number and its name in every resumed run; files that appear later are added at the end.
"""

from __future__ import annotations

import glob
import json
import mmap
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import overload

import numpy as np

from mlindex.records import InputError, Item

MANIFEST = "inputs.jsonl"
PARTIAL = f".{MANIFEST}.partial"  # while it is written, or where a process ended in that moment


@dataclass(frozen=True)
class Input:
    """One input file: the `label` that its items are named by, and `source`, its path relative to the campaign file."""

    label: str
    source: str


def in_order(names: Iterable[str]) -> list[str]:
    """File names sorted folder by folder, with the digits in them as numbers: img_2 comes before img_10."""

    def key(name: str) -> tuple[list[list[str | int]], str]:
        parts = [re.split("([0-9]+)", part) for part in name.split("/")]
        return [[int(text) if k % 2 else text for k, text in enumerate(part)] for part in parts], name

    return sorted(names, key=key)


def find(patterns: Sequence[str], base: Path, origin: str, without: Sequence[Path] = ()) -> list[str]:
    """The files that paths and globs relative to `base` stand for, `in_order` within each pattern, each file once.

    What is `without`, or below it, is no input: a run must not take its own results for inputs. Raises `InputError`
    naming `origin` for a pattern that matches no file.
    """
    found: dict[str, None] = {}
    for pattern in patterns:
        name = os.path.expanduser(pattern)
        matches = [name] if (base / name).is_file() else in_order(glob.glob(name, root_dir=base, recursive=True))
        files = [match for match in matches if (base / match).is_file() and not _within(base / match, without)]
        if not files:
            raise InputError(f"{origin}: inputs: no file matches {pattern!r} in {base}; correct the path")
        found |= dict.fromkeys(Path(os.path.normpath(file)).as_posix() for file in files)
    return list(found)


def _within(path: Path, folders: Sequence[Path]) -> bool:
    return any(Path(os.path.abspath(path)).is_relative_to(folder) for folder in folders)


def _plain(name: str) -> str:
    # a file name may hold bytes that are not UTF-8, which can be neither printed nor written
    text = name.encode(errors="backslashreplace").decode()
    return text.replace(":", "_").replace("#", "_")


def label(sources: Sequence[str], known: Sequence[Input] = ()) -> list[Input]:
    """`known` and then one input for each new source, with unique labels: the stem, or what more of the path it takes.

    A colon or hash in a name becomes an underscore: it separates the label from what tells the items of a file apart. A
    byte that is not UTF-8 is written out.
    """
    old = {k.source for k in known}
    new = [source for source in sources if source not in old]
    taken = {k.label for k in known}
    ways = [lambda s: Path(s).stem, lambda s: Path(s).with_suffix("").as_posix(), lambda s: s]
    labels: dict[str, str] = {}
    for way in ways:
        names = {source: _plain(way(source)) for source in new if source not in labels}
        counts = Counter(names.values())
        labels |= {s: name for s, name in names.items() if counts[name] == 1 and name not in taken}
        # a name that two files would share is given to neither, now or later
        taken |= set(names.values())
    for source in new:
        name, n = _plain(source), 2
        while source not in labels:
            if f"{name}~{n}" not in taken:
                labels[source] = f"{name}~{n}"
                taken.add(labels[source])
            n += 1
    return [*known, *(Input(labels[source], source) for source in new)]


def item_id(name: str, item: Item, of: int) -> str:
    """The id in the campaign of an item of the input called `name` that has `of` items: unique if the stage's are."""
    if of == 1:
        return name
    # a colon here and a hash in `numbered`: the stage's "2" may be another item than the second
    return f"{name}:{item.id.removeprefix(Path(item.source).stem).lstrip(':_-#./ ') or item.id}"


def numbered(name: str, index: int, of: int) -> str:
    """The id of an item that has no name, because its input cannot be read or its names are not unique."""
    return name if of == 1 else f"{name}#{index + 1}"


class Manifest(Sequence[Input]):
    """The inputs of a run directory, in order, read from the file line by line when they are asked for.

    A torn last line counts as absent. A campaign may have a million inputs, of which rank 0 holds nothing but 8 bytes.
    """

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self._text = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if path.stat().st_size else b""
        ends = np.flatnonzero(np.frombuffer(self._text, np.uint8) == ord("\n"))
        self._start = np.concatenate([[0], ends + 1])

    def __len__(self) -> int:
        return len(self._start) - 1

    @overload
    def __getitem__(self, i: int) -> Input: ...
    @overload
    def __getitem__(self, i: slice) -> list[Input]: ...
    def __getitem__(self, i: int | slice) -> Input | list[Input]:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        i %= len(self)
        return Input(**json.loads(self._text[self._start[i] : self._start[i + 1]]))


def read(run: Path) -> Sequence[Input]:
    """The inputs of a run directory, in order."""
    path = run / MANIFEST
    return Manifest(path) if path.exists() else []


def write(run: Path, inputs: Sequence[Input]) -> None:
    """Replace the manifest of a run directory in one step."""
    partial = run / PARTIAL
    # in ASCII, which keeps the bytes of names that are not UTF-8
    partial.write_text("".join(json.dumps(asdict(i)) + "\n" for i in inputs))
    os.replace(partial, run / MANIFEST)
