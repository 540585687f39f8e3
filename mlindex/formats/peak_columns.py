"""Columns of text: which are positions, which are intensities, and what the comments say about them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlindex.config import Quantity
from mlindex.formats.wavelength import wavelength_from_text
from mlindex.records import InputError

_ALIASES: dict[str, Quantity] = {
    **dict.fromkeys(("q2", "qsq", "qsquared", "1/d2", "d*2", "q2obs"), "q2"),
    **dict.fromkeys(("q", "1/d", "d*", "qobs"), "q"),
    **dict.fromkeys(("d", "dspacing", "dspacings", "dspace", "dsp", "dvalue", "dobs"), "d"),
    **dict.fromkeys(("tth", "2th", "2theta", "twotheta", "ttheta", "2t", "2thetaobs", "2thobs", "two-theta"), "tth"),
}
INTENSITY_NAMES = ("intensity", "counts", "I", "Iobs")  # for messages; there are more
_INTENSITY = {"i", "height", "heights", "counts", "area", "irel", "i/i0", "iobs"}  # and what begins with int
_ERROR = {"sigma", "esd", "err", "error", "errors", "uncertainty", "sig", "std", "stddev", "e"}
_UNITS = {"deg", "degree", "degrees", "a", "å", "angstrom", "1/a", "1/å", "1/a2", "1/å2", "a1", "a2", "å1", "å2"}
_FILLER = _UNITS | {"in", "unit", "units", "values", "list", "1/angstrom", "1/angstrom2"}
_COMMENT = ("#", "!", "%", "//", ";")


@dataclass(frozen=True)
class Columns:
    """What a file holds before it is judged: columns of positions with their names (None: not said), each (n,) float64;
    intensities (n,) and the wavelength in angstrom where the file has them; `error` (n,), what may be the
    uncertainty of the intensities.
    """

    positions: Sequence[tuple[Quantity | None, NDArray[np.float64]]]
    intensity: NDArray[np.float64] | None = None
    wavelength: float | None = None
    error: NDArray[np.float64] | None = None


def _plain(name: str) -> str:
    name = name.lower().strip(" \t\"'").replace("²", "2").replace("θ", "theta")
    return re.sub(r"[\s_^°.:=-]|\*\*", "", name)


def quantity_from_name(name: str) -> Quantity | None:
    """The quantity that a column, a key or an option names ("q^2", "d(A)", "two_theta", "Pos. [°2Th.]"), or None."""
    name = name.strip(" \t\"'")
    whole = _ALIASES.get(_plain(name))
    if whole:
        return whole
    bracket = re.fullmatch(r"\s*([^\[(]*)[\[(]([^\])]*)[\])]\s*", name)
    if not bracket:
        return None
    return _ALIASES.get(_plain(bracket.group(1))) or (_ALIASES.get(_plain(bracket.group(2))))


def _is_intensity(name: str) -> bool:
    return _plain(re.sub(r"[\[(].*", "", name)) in _INTENSITY or _plain(name).startswith(("relint", "int"))


def _names(line: str) -> list[str]:
    for separator in (";", "\t", ","):
        if separator in line:
            return [field.strip() for field in line.split(separator)]
    return re.sub(r"\s+(?=[\[(])", "", line).split()  # a unit in brackets belongs to the name before it


def _number(field: str) -> float | None:
    try:
        return float(re.sub(r"\(\d+\)$", "", field.strip("\"'")))  # 5.431(2) is 5.431
    except ValueError:
        return None


def _values(line: str, decimal_comma: bool) -> list[float | None]:
    if decimal_comma:
        line = re.sub(r"(?<=\d),(?=\d)", ".", line)
    line = re.sub(r"[\s,;]+$", "", line.strip())
    return [_number(field) for field in re.split(r"\s*[,;\t]\s*|\s+", line)]


def _has_decimal_comma(lines: Sequence[str]) -> bool:
    """Whether commas are decimal: there is no point, and between numbers stands another separator or nothing."""
    if any("." in line for line in lines):
        return False
    fields = [re.split(r"[;\t ]+", line.strip(" ;\t")) for line in lines]
    with_comma = [field for row in fields for field in row if "," in field]
    return bool(with_comma) and all(re.fullmatch(r"[-+]?\d+,\d+(?:[eE][-+]?\d+)?", field) for field in with_comma)


def _wavelength_in(line: str) -> float | None:
    found = re.search(r"(?i)(?:\bwave(?:length)?\b|\blambda\b|λ)\s*(?:\([^)]*\)|\[[^\]]*\])?[\s:=,;]*(.+)", line)
    return wavelength_from_text(found.group(1)) if found else None


def _header(line: str, width: int) -> dict[int, str] | None:
    """The names of the columns by index where the line gives them, else None: a comment in words names nothing."""
    line = re.sub(r"(?i)^\s*(?:quantity|columns?)\s*[:=]?\s*", "", line)
    names = _names(line)
    if len(names) == width and any(quantity_from_name(name) for name in names):
        return dict(enumerate(names))
    if not names or quantity_from_name(names[0]) is None:
        return None
    rest = [name for name in names[1:] if _plain(name.strip("()[]")) not in _FILLER]
    if all(_is_intensity(name) for name in rest):
        return {0: names[0], **({1: rest[0]} if rest else {})}
    return None


def columns_from_text(path: Path, text: str) -> Columns:
    """The columns of a text: separated by white space, comma, semicolon or tab; comments begin with # ! % ; or //.

    A comment or a line of names before the numbers says what the columns are. Without one the second column is the
    intensity. One line of many numbers is taken as a column. Raises `InputError` naming the line that is not numbers.
    """
    comments: list[str] = []
    body: list[tuple[int, str]] = []
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if stripped.startswith(_COMMENT):
            comments.append(stripped.lstrip("#!%;/ \t"))
        elif stripped:
            content, _, comment = stripped.partition("#")
            body.append((number, content.strip()))
            comments.extend([comment] if comment else [])
    decimal_comma = _has_decimal_comma([line for _, line in body if re.match(r"[-+]?\d+[,;\s\d]", line)])
    rows = [(number, line, _values(line, decimal_comma)) for number, line in body]
    heads, data = _split(path, rows)
    if not data:
        raise InputError(f"{path}: holds no numbers; give a list of line positions")
    wavelength = next((w for line in [*comments, *heads] if (w := _wavelength_in(line)) is not None), None)
    if len(data) == 1 and len(data[0][2]) > 2:
        data = [(data[0][0], data[0][1], [value]) for value in data[0][2]]
    width = max(len(values) for _, _, values in data)
    header: dict[int, str] = {}
    for line in [*comments, *heads]:
        header = _header(line, width) or header
    return _selected(path, data, header, wavelength)


def _are_names(line: str, width: int) -> bool:
    """Whether a first line of unknown words can be the names of columns: one for each, none a misspelt number."""
    names = [name.strip("\"'") for name in _names(line)]
    return len(names) == width and all(name[:1].isalpha() for name in names)


def _split(
    path: Path, rows: Sequence[tuple[int, str, list[float | None]]]
) -> tuple[list[str], list[tuple[int, str, list[float | None]]]]:
    """Lines of names or of a wavelength before the numbers, and the lines of numbers."""
    for at, (number, line, values) in enumerate(rows):
        if any(value is not None for value in values):
            names = any(quantity_from_name(name) for name in _names(line))
            if names or (_wavelength_in(line) is not None and values[0] is None):
                continue
            return [line for _, line, _ in rows[:at]], list(rows[at:])
        known = _wavelength_in(line) is not None or any(quantity_from_name(name) for name in _names(line))
        if not known and not (at == 0 and len(rows) > 1 and _are_names(line, len(rows[1][2]))):
            raise _not_numbers(path, number, line)
    return [line for _, line, _ in rows], []


def _not_numbers(path: Path, number: int, line: str) -> InputError:
    shown = line if len(line) <= 40 else line[:37] + "..."
    return InputError(f"{path}: line {number} ({shown!r}) is not numbers; correct it, or begin a comment with #")


def _selected(
    path: Path, data: Sequence[tuple[int, str, list[float | None]]], header: dict[int, str], wavelength: float | None
) -> Columns:
    def column(index: int, needed: bool) -> NDArray[np.float64]:
        out = np.full(len(data), np.nan)
        for at, (number, line, values) in enumerate(data):
            value = values[index] if index < len(values) else None
            if value is None and needed:
                raise _not_numbers(path, number, line)
            out[at] = np.nan if value is None else value
        return out

    kinds = {index: kind for index, name in header.items() if (kind := quantity_from_name(name))}
    at_intensity = next((index for index, name in header.items() if _is_intensity(name) and index not in kinds), None)
    if at_intensity is None and 1 not in header:
        at_intensity = 1
    intensity = None if at_intensity is None else column(at_intensity, False)
    if intensity is not None and np.all(np.isnan(intensity)):
        intensity = None
    at_error = next((index for index, name in header.items() if _plain(name) in _ERROR and index not in kinds), None)
    if at_error is None and 2 not in header and max(len(values) for _, _, values in data) == 3:
        at_error = 2
    error = None if at_error is None else column(at_error, False)
    if not kinds:
        return Columns([(None, column(0, True))], intensity, wavelength, error)
    positions = [(kind, column(index, True)) for index, kind in kinds.items()]
    return Columns(positions, intensity, wavelength, error)
