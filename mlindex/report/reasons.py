"""Failures by reason: sentences that differ only in names of files and in numbers are one reason."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

EXAMPLES = 3
_PATH = re.compile(
    r"(?<![\w/])(?:~|\.{1,2})?/[^\s:;,'\"()]+"  # from a root
    r"|(?<![\w/.-])[\w./-]+\.(?:txt|csv|json|npy|h5|pkslst|dat|xy|cxi|cif)\b"
)
_NUMBER = re.compile(r"(?<![\w^.])[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?(?![\w^])(?!\.\d)")
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")
_LONGEST = 300  # characters of a reason that count; tracebacks and lists of values go on for ever


@dataclass(frozen=True)
class Reason:
    """One reason: `pattern` with … for what differs, how many items failed for it, and some of their rows."""

    pattern: str
    count: int
    examples: tuple[int, ...]


def without_name(sentence: str, source: str) -> str:
    """The sentence in one line, without the "FOLDER/NAME: " of its input that it begins with, as is the custom."""
    short, name = " ".join(sentence.split()), " ".join(source.split())
    return re.sub(rf"^[^:]*{re.escape(name)}:\s+", "", short) if name else short


def pattern(sentence: str, source: str = "") -> str:
    """The sentence without the name of the input (`source`), other paths, quoted text and numbers: … in their place."""
    short, name = without_name(sentence, source), " ".join(source.split())
    if "." in name or "/" in name:  # else it may be a word of the sentence
        short = re.sub(rf"(?<!\w)\S*{re.escape(name)}(?!\w)", "…", short)
    short = _QUOTED.sub("…", short)
    short = _PATH.sub("…", short[: 4 * _LONGEST])
    short = _NUMBER.sub("…", short)
    short = re.sub(r"[^\s…]*/…", "…", short)  # a folder left before a name
    short = re.sub(r"(?:…[\s,;]+)+…", "…", short)
    short = re.sub(r"^…:\s*", "", short).strip()
    return short[:_LONGEST] or "no reason was given"


def group(failures: Iterable[tuple[int, str, str]]) -> list[Reason]:
    """The reasons among (row, source, sentence), the most frequent first."""
    rows: dict[str, list[int]] = {}
    counts: dict[str, int] = {}
    for row, source, sentence in failures:
        key = pattern(sentence, source)
        counts[key] = counts.get(key, 0) + 1
        if counts[key] <= EXAMPLES:
            rows.setdefault(key, []).append(row)
    ranked = sorted(counts, key=lambda key: (-counts[key], key))
    return [Reason(key, counts[key], tuple(rows[key])) for key in ranked]
