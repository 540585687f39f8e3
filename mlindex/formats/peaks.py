"""Peak lists: text and CSV columns, NumPy arrays, JSON, GSAS-II `.pkslst`. Content decides which, not the extension.

Positions are q2 = 1/d^2 (1/angstrom^2), q = 1/d (1/angstrom; not 2 pi/d), d (angstrom) or tth = 2theta (degrees). What
they are is said by the file (a `# q2` line, a column's or a JSON key's name) or by the caller, who overrides the file.
A `.pkslst` file has a comment and then one Python list a line:
[2theta, flag, intensity, flag, sigma^2, flag, gamma, flag].
"""

from __future__ import annotations

import ast
import io
import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from mlindex.config import Quantity
from mlindex.formats.peak_columns import Columns, columns_from_text, quantity_from_name
from mlindex.formats.wavelength import is_wavelength, wavelength_from_text
from mlindex.records import InputError, PeakList

MINIMUM_LINES = 6  # distinct ones: a triclinic cell has six parameters
_MOST_LINES = 500  # far more than a search looks at; beyond are measured patterns, or all reflections of a structure
_FEWEST_POINTS = 40  # at equal steps, of a measured pattern
_LARGEST_FILE = 32 * 2**20  # bytes; nobody has a list of so many lines
_MERGE = 1e-9  # relative difference in q2 below which two lines are one
_NAMES = get_args(Quantity)
_UNITS = {"q2": "1/angstrom^2", "q": "1/angstrom", "d": "angstrom", "tth": "degrees"}
_LOG = logging.getLogger(__name__)


def q2_from_position(
    position: Float[np.ndarray, " n"], quantity: Quantity, wavelength: float | None = None
) -> Float[np.ndarray, " n"]:
    """q2 = 1/d^2 in 1/angstrom^2 of positions in `quantity`; tth (degrees) by q = 2 sin(theta) / wavelength.

    Raises `ValueError` for tth without a wavelength (angstrom).
    """
    match quantity:
        case "q2":
            return position
        case "q":
            return position**2
        case "d":
            return 1 / position**2
    if wavelength is None:
        raise ValueError("2theta needs a wavelength")
    return (2 * np.sin(np.radians(position) / 2) / wavelength) ** 2


def position_from_q2(
    q2: Float[np.ndarray, " n"], quantity: Quantity, wavelength: float | None = None
) -> Float[np.ndarray, " n"]:
    """Inverse of `q2_from_position`; NaN where the wavelength (angstrom) does not reach."""
    match quantity:
        case "q2":
            return q2
        case "q":
            return np.sqrt(q2)
        case "d":
            return 1 / np.sqrt(q2)
    if wavelength is None:
        raise ValueError("2theta needs a wavelength")
    sine = np.sqrt(q2) * wavelength / 2
    return 2 * np.degrees(np.arcsin(np.where(sine <= 1, sine, np.nan)))


def read(path: Path | str, *, quantity: str | None = None, wavelength: float | None = None) -> PeakList:
    """The peak list in a file: lines sorted, those that agree within 1e-9 merged.

    `quantity` (q2, q, d, tth) and `wavelength` (angstrom) override what the file says; contradictions are logged.
    Where a file has several columns of positions, 2theta is taken if the wavelength is known, else the first other one.
    Intensities are None unless every line has one. Raises `InputError`, one sentence, for a file that cannot be used.
    """
    path = Path(path)
    asked: Quantity | None = None
    if quantity is not None:
        asked = quantity_from_name(quantity)
        if asked is None:
            raise InputError(f"{path}: unknown quantity {quantity!r}; use one of {', '.join(_NAMES)}")
    if wavelength is not None and not is_wavelength(wavelength):
        raise InputError(f"{path}: the wavelength {wavelength:g} is not positive; give it in angstrom")
    found = columns(path)
    wavelength = _settle_wavelength(path, found.wavelength, wavelength)
    kind, position = _settle_quantity(path, found, asked, wavelength)
    return _checked(path, position, found.intensity, kind, wavelength)


def write(
    path: Path | str,
    peaks: PeakList,
    *,
    quantity: Quantity = "q2",
    more: Mapping[str, Float[np.ndarray, " n"]] | None = None,
) -> None:
    """Write a peak list as text that `read` reads back: `# q2`, `# wavelength`, then the columns with all their digits.

    `more` holds further columns by name, without blanks; `read` passes over those that name no position.
    Raises `InputError` where 2theta is asked of a list without a wavelength, or of lines out of its reach.
    """
    path = Path(path)
    if quantity == "tth" and peaks.wavelength is None:
        raise InputError(f"{path}: 2theta cannot be written without a wavelength; write q2, q or d")
    position = position_from_q2(peaks.q2, quantity, peaks.wavelength)
    if not np.all(np.isfinite(position)):
        raise InputError(f"{path}: the wavelength does not reach every line; write q2, q or d")
    beside = dict(more or {}) if peaks.intensity is None else {"intensity": peaks.intensity, **(more or {})}
    names = [quantity, *beside]
    head = [f"# {' '.join(names)}", *([f"# wavelength {peaks.wavelength!r}"] if peaks.wavelength is not None else [])]
    rows = zip(position, *beside.values(), strict=True)
    path.write_text("\n".join([*head, *(" ".join(repr(float(x)) for x in row) for row in rows)]) + "\n")


def text(path: Path) -> str:
    """The text in a file; raises `InputError` for one that is missing, empty, too large, or binary."""
    return _decoded(path, _bytes(path))


def columns(path: Path) -> Columns:
    """What a file of any of the formats holds, before it is judged; raises `InputError`."""
    data = _bytes(path)
    if data.startswith(b"\x93NUMPY"):
        return _from_npy(path, data)
    text = _decoded(path, data)
    start = text.lstrip()[:1]
    if start in ("{", "["):
        try:
            return _from_json(path, json.loads(text))
        except json.JSONDecodeError as error:
            if start == "{":
                raise InputError(
                    f"{path}: is not valid JSON ({error.msg} in line {error.lineno}); correct that line"
                ) from None
    body = next((line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")), "")
    if body.lstrip().startswith("["):
        return _from_pkslst(path, text)
    return columns_from_text(path, text)


def _bytes(path: Path) -> bytes:
    try:
        if path.is_dir():
            raise InputError(f"{path}: is a directory; give the files in it")
        if path.stat().st_size > _LARGEST_FILE:
            raise InputError(f"{path}: is larger than {_LARGEST_FILE >> 20} MiB and no peak list; give a list of lines")
        data = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file; check the name") from None
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        why = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: cannot be read ({why}); check the file and its permissions") from None
    if not data.strip():
        raise InputError(f"{path}: is empty; give a list of line positions")
    return data


def _decoded(path: Path, data: bytes) -> str:
    utf16 = data[:2] in (b"\xff\xfe", b"\xfe\xff")
    try:
        text = data.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("latin-1")  # the degree and angstrom signs of older Windows programs
    if sum(not (c.isprintable() or c.isspace()) for c in text) > 0:
        raise InputError(f"{path}: is a binary file; give text, JSON, .npy or .pkslst")
    return text


def _from_npy(path: Path, data: bytes) -> Columns:
    try:
        array = np.load(io.BytesIO(data), allow_pickle=False)
    except Exception as error:  # whatever a damaged header makes NumPy raise
        raise InputError(f"{path}: is not a readable .npy file ({error}); save a plain array of numbers") from None
    if array.dtype.kind not in "iuf" or array.ndim not in (1, 2):
        raise InputError(f"{path}: holds {array.ndim}-dimensional {array.dtype} data; save numbers as (n,) or (n, 2)")
    array = array.astype(np.float64)
    if array.ndim == 1 or array.shape[1] == 1:
        return Columns([(None, array.ravel())])
    if array.shape[1] != 2 and array.shape[0] == 2:
        array = array.T  # saved as two rows
    if array.shape[1] < 2:
        return Columns([(None, array.ravel())])
    return Columns([(None, array[:, 0])], array[:, 1])


def _numbers(path: Path, values: Any, what: str) -> NDArray[np.float64]:
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise InputError(f"{path}: {what} is not a list; give a list of numbers")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InputError(f"{path}: {what} holds {value!r}, which is not a number; correct or remove it")
    try:
        return np.asarray(values, np.float64)
    except OverflowError:
        raise InputError(f"{path}: {what} holds an integer that is too large; correct or remove it") from None


def _from_json(path: Path, content: Any) -> Columns:
    if isinstance(content, list):
        if content and all(isinstance(row, list) for row in content):
            return _rows(path, content, intensity=1, quantity=None)
        return Columns([(None, _numbers(path, content, "the list"))])
    positions: list[tuple[Quantity | None, NDArray[np.float64]]] = []
    intensity, wavelength = None, None
    for key, value in content.items():
        name = quantity_from_name(key)
        if value is None:
            continue
        if name is not None:
            positions.append((name, _numbers(path, value, repr(key))))
        elif key.lower() in ("intensity", "intensities", "height", "heights"):
            intensity = value
        elif key.lower() in ("wavelength", "lambda"):
            wavelength = wavelength_from_text(str(value))
            if isinstance(value, bool) or wavelength is None:
                raise InputError(f"{path}: {key!r} is {value!r}; give the wavelength in angstrom, or null")
    if not positions:
        raise InputError(f"{path}: has none of the keys q2, q, d, two_theta; name the list of positions so")
    return Columns(positions, None if intensity is None else _numbers(path, intensity, "the intensity"), wavelength)


def _rows(path: Path, rows: Sequence[Sequence[Any]], *, intensity: int, quantity: Quantity | None) -> Columns:
    if not all(rows):
        raise InputError(f"{path}: has a line without a position; remove it")
    position = _numbers(path, [row[0] for row in rows], "the first column")
    if any(len(row) <= intensity for row in rows):
        return Columns([(quantity, position)])
    return Columns([(quantity, position)], _numbers(path, [row[intensity] for row in rows], "the intensity"))


def _from_pkslst(path: Path, text: str) -> Columns:
    rows: list[Sequence[Any]] = []
    wavelength = None
    for number, line in enumerate(text.splitlines(), 1):
        if "#" in line or not line.strip():  # GSAS-II itself skips every line with a # in it
            found = re.search(r"(?i)wave(?:length)?\s*[:=]?\s*(.+)", line)
            wavelength = wavelength_from_text(found.group(1)) if found else wavelength
            continue
        try:
            # NumPy 2 writes its scalars as np.float64(9.1)
            row = ast.literal_eval(re.sub(r"np\.\w+\(([^()]*)\)", r"\1", line.strip().rstrip(",")))
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            row = None
        if isinstance(row, dict):  # what GSAS-II keeps beside the peaks of Laue fringes
            continue
        if not isinstance(row, list | tuple):
            raise InputError(f"{path}: line {number} is not a GSAS-II peak [2theta, flag, intensity, ...]; correct it")
        rows.append(row)
    return Columns(_rows(path, rows, intensity=2, quantity="tth").positions, _pkslst_intensity(rows), wavelength)


def _pkslst_intensity(rows: Sequence[Sequence[Any]]) -> NDArray[np.float64] | None:
    values = [row[2] if len(row) > 2 else None for row in rows]
    good = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    return np.asarray(values, np.float64) if good else None


def _settle_wavelength(path: Path, said: float | None, asked: float | None) -> float | None:
    if asked is not None and said is not None and abs(asked - said) > 1e-5 * asked:
        _LOG.warning("%s: says a wavelength of %g angstrom, and %g is used as asked", path, said, asked)
    chosen = asked if asked is not None else said
    if chosen is not None and not is_wavelength(chosen):
        raise InputError(f"{path}: says a wavelength of {chosen:g}; correct it or give --wavelength in angstrom")
    return chosen


def _settle_quantity(
    path: Path, columns: Columns, asked: Quantity | None, wavelength: float | None
) -> tuple[Quantity, NDArray[np.float64]]:
    named = [(name, values) for name, values in columns.positions if name is not None]
    if asked is not None:
        for name, values in named:
            if name == asked:
                return asked, values
        if named:
            _LOG.warning("%s: says that its positions are %s; they are read as %s, as asked", path, named[0][0], asked)
        return asked, columns.positions[0][1]
    if not named:
        raise InputError(
            f"{path}: does not say what its positions are; give --quantity {'|'.join(_NAMES)} or add a line '# q2'"
        )
    angles = [pair for pair in named if pair[0] == "tth"]
    others = [pair for pair in named if pair[0] != "tth"]
    if wavelength is not None:
        return (angles or others)[0]
    return (others or angles)[0]


def _checked(
    path: Path,
    position: NDArray[np.float64],
    intensity: NDArray[np.float64] | None,
    kind: Quantity,
    wavelength: float | None,
) -> PeakList:
    """The peak list of raw positions, or an `InputError` that names the first one that is wrong."""

    def refuse(wrong: NDArray[np.bool_], what: str, cure: str) -> None:
        if np.any(wrong):
            at = int(np.argmax(wrong))
            raise InputError(f"{path}: line {at + 1} of the list, {kind} = {position[at]:g}, {what}; {cure}")

    refuse(~np.isfinite(position), "is not finite", "remove it")
    refuse(position <= 0, "is not positive", "remove it or check --quantity")
    if kind == "tth":
        if wavelength is None:
            raise InputError(
                f"{path}: holds 2theta and no wavelength; give --wavelength or add a line '# wavelength 1.5406'"
            )
        refuse(position >= 180, "is no 2theta in degrees below 180", "check --quantity")
    _refuse_pattern(path, position, kind)
    with np.errstate(over="ignore", under="ignore", divide="ignore"):
        q2 = np.asarray(q2_from_position(position, kind, wavelength), np.float64)
    refuse(~np.isfinite(q2) | (q2 <= 0), f"is out of range ({_UNITS[kind]})", "check --quantity")
    if wavelength is not None:
        limit = (2 / wavelength) ** 2 * (1 + 1e-9)
        refuse(q2 > limit, f"is out of reach of {wavelength:g} angstrom", "check --wavelength")
    order = np.argsort(q2, kind="stable")
    q2 = q2[order]
    first = np.flatnonzero(np.diff(q2, prepend=-np.inf) > _MERGE * q2)
    if len(first) < MINIMUM_LINES:
        raise InputError(f"{path}: has {len(first)} distinct lines; indexing needs at least {MINIMUM_LINES}")
    if len(first) > _MOST_LINES:
        raise InputError(
            f"{path}: has {len(first)} lines, and a list has at most {_MOST_LINES}; give the first ones, or, if these "
            "are the points of a pattern, make its list with `mlindex peaks`"
        )
    if intensity is not None:
        usable = intensity.shape == position.shape and bool(np.all(np.isfinite(intensity)))
        intensity = np.maximum.reduceat(intensity[order], first) if usable else None
    return PeakList(path.stem, str(path), q2[first], wavelength, intensity)


def _refuse_pattern(path: Path, position: NDArray[np.float64], kind: Quantity) -> None:
    """A measured pattern taken for a peak list is the commonest mistake."""
    if is_scan(position, kind):
        raise InputError(
            f"{path}: is a measured pattern ({len(position)} points at even steps); make its list with `mlindex peaks`"
        )


def is_scan(position: Float[np.ndarray, " n"], quantity: Quantity | None) -> bool:
    """Whether positions are those of a measured pattern: 40 or more, in one direction, and their steps all equal but
    for rounding, or each like the one before it but at a few places (parts of different step, or a step that grows).

    Never so in q2, in which nobody measures and the lines of a cube are at equal steps; in the others (None: not known)
    the steps of a cube's lines change, and double where a sum of three squares is missing.
    """
    if quantity == "q2" or len(position) < _FEWEST_POINTS or not np.all(np.isfinite(position)):
        return False
    step = np.diff(position)
    if not (np.all(step > 0) or np.all(step < 0)):
        return False
    step = np.abs(step)
    rounding = 1e-12 * float(np.max(np.abs(position)))
    middle = float(np.median(step))
    equal = np.abs(step - middle) <= 0.15 * middle + rounding
    changes = np.abs(np.diff(step)) > 0.15 * np.minimum(step[1:], step[:-1]) + rounding
    return bool(np.mean(equal) > 0.98) or int(np.count_nonzero(changes)) <= max(3, 0.02 * len(step))
